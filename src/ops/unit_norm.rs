//! Unit length over the last axis: `y = x r`, `r = 1 / sqrt(|x|^2 + 1e-6)`.
//!
//! Saves its input. Backward: `dx = r dy - x r^3 <x, dy>`. Must move 2 `N D` elements forward, 3 `N D` backward.

use crate::device::Device;
use crate::device::cpu::{dot, grain_rows, simd, sum_squares};
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// Added to the squared length.
pub const EPS: f64 = 1e-6;

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    pub x: Tensor,
}

#[inline(always)]
fn inverse_length<E: Elem>(x: &[E]) -> E::Acc {
    E::Acc::ONE / (sum_squares(x) + E::Acc::from_f64(EPS)).sqrt()
}

fn rows(x: &Tensor, d: usize) -> usize {
    assert!(d > 0 && x.elems().is_multiple_of(d), "rows of {d} in {:?}", x.shape());
    x.elems() / d
}

/// Every `d` neighbours of `x` to unit length.
pub fn forward(arena: &Arena, x: &Tensor, d: usize) -> (Tensor, Saved) {
    let (n, dtype) = (rows(x, d), x.dtype());
    let mut y = Tensor::uninit(arena, x.shape(), dtype);
    if let Device::Gpu(gpu) = x.device() {
        by_dtype!(
            dtype,
            unit_norm_fwd_lanes_per_row_f32 | unit_norm_fwd_lanes_per_row_bf16,
            (gpu, grid(n, d), y.ptr_mut(), x.ptr(), n, d)
        );
        return (y, Saved { x: x.clone() });
    }
    for_dtype!(dtype, E => {
        let grain = grain_rows(d) * d;
        y.as_mut_slice::<E>().par_chunks_mut(grain).zip(x.as_slice::<E>().par_chunks(grain)).for_each(|(y, x)| {
            simd(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        let r = inverse_length(x);
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = E::store(x.load() * r));
                    }
                },
            )
        })
    });
    (y, Saved { x: x.clone() })
}

/// The gradient of `x`.
pub fn backward(arena: &Arena, dy: &Tensor, d: usize, saved: &Saved) -> Tensor {
    let (n, dtype) = (rows(dy, d), dy.dtype());
    let mut dx = Tensor::uninit(arena, saved.x.shape(), dtype);
    if let Device::Gpu(gpu) = dy.device() {
        by_dtype!(
            dtype,
            unit_norm_bwd_lanes_per_row_f32 | unit_norm_bwd_lanes_per_row_bf16,
            (gpu, grid(n, d), dx.ptr_mut(), saved.x.ptr(), dy.ptr(), n, d)
        );
        return dx;
    }
    for_dtype!(dtype, E => {
        let (x, dy, grain) = (saved.x.as_slice::<E>(), dy.as_slice::<E>(), grain_rows(d) * d);
        let tasks = dx.as_mut_slice::<E>().par_chunks_mut(grain).zip(x.par_chunks(grain)).zip(dy.par_chunks(grain));
        tasks.for_each(|((dx, x), dy)| {
            simd(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d));
                    for ((dx, x), dy) in rows {
                        let r = inverse_length(x);
                        let slope = dot(x, dy) * r * r * r;
                        for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                            *dx = E::store(dy.load() * r - x.load() * slope);
                        }
                    }
                },
            )
        })
    });
    dx
}

/// Widest rows of the kernels, which hold them in the registers of a few lanes; and rows of a block.
const COLS_MAX: usize = 256;
const BLOCK_ROWS: usize = 32;

fn grid(n: usize, d: usize) -> Grid {
    assert!(d <= COLS_MAX, "unit length of rows of {d}; the kernels take at most {COLS_MAX}");
    Grid::over(n, BLOCK_ROWS)
}

/// Forward in plain loops.
pub fn reference(x: &[f64], d: usize) -> Vec<f64> {
    let row = |x: &[f64]| {
        let length = (x.iter().map(|x| x * x).sum::<f64>() + EPS).sqrt();
        x.iter().map(|x| x / length).collect::<Vec<_>>()
    };
    x.chunks(d).flat_map(row).collect()
}
