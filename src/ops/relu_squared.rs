//! Squared ReLU: `y = max(x, 0)^2`.
//!
//! Saves `x`. Backward: `dx = 2 max(x, 0) dy`. Must move 2 `n` elements forward, 3 backward.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    pub x: Tensor,
}

/// `max(x, 0)^2`, any shape.
pub fn forward(arena: &Arena, x: &Tensor) -> Tensor {
    let (n, dtype) = (x.elems(), x.dtype());
    let mut y = Tensor::uninit(arena, x.shape(), dtype);
    if let Device::Gpu(gpu) = x.device() {
        let grid = Grid::elementwise(n, dtype.size_bytes());
        by_dtype!(
            dtype,
            relu_squared_fwd_vector_f32 | relu_squared_fwd_vector_bf16,
            (gpu, grid, y.ptr_mut(), x.ptr(), n)
        );
        return y;
    }
    for_dtype!(dtype, E => {
        let chunks = y.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).zip(x.as_slice::<E>().par_chunks(GRAIN_ELEMS));
        chunks.for_each(|(y, x)| {
            simd(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| {
                    let above = above_zero(x.load());
                    *y = E::store(above * above);
                }),
            );
        });
    });
    y
}

/// `max(x, 0)`; NaN for NaN.
#[inline(always)]
fn above_zero<F: Float>(x: F) -> F {
    if x < F::ZERO { F::ZERO } else { x }
}

/// `dx`.
pub fn backward(arena: &Arena, dy: &Tensor, Saved { x }: &Saved) -> Tensor {
    let (n, dtype) = (dy.elems(), dy.dtype());
    let mut dx = Tensor::uninit(arena, x.shape(), dtype);
    if let Device::Gpu(gpu) = dy.device() {
        let grid = Grid::elementwise(n, dtype.size_bytes());
        by_dtype!(
            dtype,
            relu_squared_bwd_vector_f32 | relu_squared_bwd_vector_bf16,
            (gpu, grid, dx.ptr_mut(), x.ptr(), dy.ptr(), n)
        );
        return dx;
    }
    for_dtype!(dtype, E => {
        let inputs = x.as_slice::<E>().par_chunks(GRAIN_ELEMS).zip(dy.as_slice::<E>().par_chunks(GRAIN_ELEMS));
        dx.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).zip(inputs).for_each(|(dx, (x, dy))| {
            simd(
                #[inline(always)]
                || dx.iter_mut().zip(x).zip(dy).for_each(|((dx, x), dy)| {
                    let above = above_zero(x.load());
                    *dx = E::store((above + above) * dy.load());
                }),
            );
        });
    });
    dx
}

/// Forward in plain loops.
pub fn reference(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.max(0.0).powi(2)).collect()
}
