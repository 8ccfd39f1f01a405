//! Soft-cap: `y = cap * tanh(x / cap)`, backward `dx = dy * (1 - (y / cap)^2)`. Saves `y`.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    pub y: Tensor,
    pub cap: f64,
}

/// `cap * tanh(x / cap)` of every element, `cap > 0`.
pub fn forward(arena: &Arena, x: Tensor, cap: f64) -> Tensor {
    assert!(cap > 0.0, "soft-cap {cap}");
    if let Device::Gpu(gpu) = x.device() {
        return launch_forward(gpu, arena, x, cap);
    }
    let mut y = x.into_unique(arena);
    for_dtype!(y.dtype(), E => {
        y.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).for_each(|y| {
            simd(
                #[inline(always)]
                || y.iter_mut().for_each(|v| *v = E::store(cap_value(v.load(), <E as Elem>::Acc::from_f64(cap)))),
            )
        })
    });
    y
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub fn cap_value<F: Float>(x: F, cap: F) -> F {
    cap * (x / cap).tanh()
}

/// The derivative of [`cap_value`] where its result is `y`.
#[inline(always)]
pub fn cap_slope<F: Float>(y: F, cap: F) -> F {
    let ratio = y / cap;
    F::ONE - ratio * ratio
}

/// The gradient of the input.
pub fn backward(arena: &Arena, dy: Tensor, saved: &Saved) -> Tensor {
    if let Device::Gpu(gpu) = dy.device() {
        return launch_backward(gpu, arena, dy, saved);
    }
    let mut dx = dy.into_unique(arena);
    for_dtype!(dx.dtype(), E => {
        let cap = <E as Elem>::Acc::from_f64(saved.cap);
        dx.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).zip(saved.y.as_slice::<E>().par_chunks(GRAIN_ELEMS)).for_each(
            |(dx, y)| {
                simd(
                    #[inline(always)]
                    || {
                        for (d, y) in dx.iter_mut().zip(y) {
                            *d = E::store(d.load() * cap_slope(y.load(), cap));
                        }
                    },
                )
            },
        )
    });
    dx
}

fn launch_forward(gpu: &Gpu, arena: &Arena, x: Tensor, cap: f64) -> Tensor {
    let (n, dtype, x_elems) = (x.elems(), x.dtype(), x.alias());
    let mut y = x.into_output(arena);
    let grid = Grid::elementwise(n, dtype.size_bytes());
    by_dtype!(
        dtype,
        softcap_fwd_vector_f32 | softcap_fwd_vector_bf16,
        (gpu, grid, y.ptr_mut(), x_elems.ptr(), cap as f32, n)
    );
    y
}

fn launch_backward(gpu: &Gpu, arena: &Arena, dy: Tensor, saved: &Saved) -> Tensor {
    let (n, dtype, dy_elems) = (dy.elems(), dy.dtype(), dy.alias());
    let mut dx = dy.into_output(arena);
    let grid = Grid::elementwise(n, dtype.size_bytes());
    by_dtype!(
        dtype,
        softcap_bwd_vector_f32 | softcap_bwd_vector_bf16,
        (gpu, grid, dx.ptr_mut(), saved.y.ptr(), dy_elems.ptr(), saved.cap as f32, n)
    );
    dx
}

/// Forward in plain loops.
pub fn reference(x: &[f64], cap: f64) -> Vec<f64> {
    x.iter().map(|x| cap * (x / cap).tanh()).collect()
}
