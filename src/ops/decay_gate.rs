//! The decay of a state's key channels: `log_alpha = -exp(A_h) softplus(f + dt)`, never positive.
//!
//! Saves `f`. Backward, with `s` the sigmoid of `f + dt`: `df = -dy exp(A) s`, `ddt` its sum over rows, `dA_h` the sum over rows and
//! the channels of head h of `dy log_alpha`. Must move 2 `N H D` elements forward, 3 backward.

use super::rmsnorm::sum_parts;
use super::short_conv::lane_width;
use super::sigmoid_gate::sigmoid;
use crate::device::Device;
use crate::device::cpu::{grain_rows, simd, sum_over_rows};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// The parameters: `a [H]`, the logarithm of each head's rate, and `dt [H, D]`.
#[derive(Clone, Copy)]
pub struct Rates<'a> {
    pub a: &'a Tensor,
    pub dt: &'a Tensor,
}

/// What backward needs besides the parameters.
#[derive(Debug)]
pub struct Saved {
    pub f: Tensor,
}

/// `log(1 + e^x)` without overflow: `max(x, 0) + log(1 + e)`, `e = e^-|x|`. Adding a small e to 1 rounds most of it away, and long
/// half-lives lie there: the logarithm is that of the rounded sum, times e over what the sum took of it.
#[inline(always)]
fn softplus<F: Float>(x: F) -> F {
    let e = (-x.abs()).exp();
    let sum = F::ONE + e;
    let log = if sum == F::ONE { e } else { sum.ln() * (e / (sum - F::ONE)) };
    x.max(F::ZERO) + log
}

fn extents(f: &Tensor, Rates { a, dt }: Rates) -> [usize; 3] {
    let (h, cols) = (a.elems(), dt.elems());
    let n = f.elems() / cols;
    assert!(cols.is_multiple_of(h) && f.elems() == n * cols, "decay of {:?} by {h} heads", f.shape());
    [n, h, cols / h]
}

/// `f [N, H D]` -> `log_alpha [N, H D]`.
pub fn forward(arena: &Arena, f: &Tensor, rates: Rates) -> (Tensor, Saved) {
    let ([n, h, d], dtype) = (extents(f, rates), f.dtype());
    let mut y = Tensor::uninit(arena, f.shape(), dtype);
    if let Device::Gpu(gpu) = f.device() {
        let grid = Grid::elementwise(n * h * d, dtype.size_bytes());
        by_dtype!(
            dtype,
            decay_gate_fwd_vector_f32 | decay_gate_fwd_vector_bf16,
            (gpu, grid, y.ptr_mut(), f.ptr(), rates.a.ptr(), rates.dt.ptr(), n, h, d)
        );
        return (y, Saved { f: f.clone() });
    }
    for_dtype!(dtype, E => {
        let (dt, minus) = (rates.dt.as_slice::<E>(), minus_rates(rates.a.as_slice::<E>()));
        let grain = grain_rows(h * d) * h * d;
        y.as_mut_slice::<E>().par_chunks_mut(grain).zip(f.as_slice::<E>().par_chunks(grain)).for_each(|(y, f)| {
            simd(
                #[inline(always)]
                || {
                    for (i, (y, f)) in y.chunks_exact_mut(d).zip(f.chunks_exact(d)).enumerate() {
                        let (dt, minus) = (&dt[i % h * d..][..d], minus[i % h]);
                        for ((y, f), dt) in y.iter_mut().zip(f).zip(dt) {
                            *y = E::store(minus * softplus(f.load() + dt.load()));
                        }
                    }
                },
            )
        })
    });
    (y, Saved { f: f.clone() })
}

/// `-exp(A)` of each head.
fn minus_rates<E: Elem>(a: &[E]) -> Vec<E::Acc> {
    a.iter().map(|a| -a.load().exp()).collect()
}

/// `dy [N, H D]` -> `df [N, H D]`; adds to `da [H]` and `ddt [H, D]`.
pub fn backward(arena: &Arena, [da, ddt]: [&mut TensorMut; 2], dy: &Tensor, rates: Rates, saved: &Saved) -> Tensor {
    let ([n, h, d], f) = (extents(&saved.f, rates), &saved.f);
    let mut df = Tensor::uninit(arena, f.shape(), dy.dtype());
    if let Device::Gpu(gpu) = dy.device() {
        launch_backward(gpu, arena, &mut df, [da, ddt], dy, rates, f);
        return df;
    }
    for_dtype!(dy.dtype(), E => {
        type Acc = <E as Elem>::Acc;
        let (f, dy, dt) = (f.as_slice::<E>(), dy.as_slice::<E>(), rates.dt.as_slice::<E>());
        let (minus, grain) = (minus_rates(rates.a.as_slice::<E>()), grain_rows(h * d) * h * d);
        let tasks = df.as_mut_slice::<E>().par_chunks_mut(grain).zip(f.par_chunks(grain)).zip(dy.par_chunks(grain));
        tasks.for_each(|((df, f), dy)| {
            simd(
                #[inline(always)]
                || {
                    for (i, df) in df.chunks_exact_mut(d).enumerate() {
                        let (dt, minus) = (&dt[i % h * d..][..d], minus[i % h]);
                        for c in 0..d {
                            let at = i * d + c;
                            df[c] = E::store(dy[at].load() * minus * sigmoid(f[at].load() + dt[c].load()));
                        }
                    }
                },
            )
        });
        sum_over_rows(ddt.as_mut_slice::<Acc>(), n, #[inline(always)] |row, ddt| {
            for (c, ddt) in ddt.iter_mut().enumerate() {
                let at = row * h * d + c;
                *ddt += dy[at].load() * minus[c / d] * sigmoid(f[at].load() + dt[c].load());
            }
        });
        sum_over_rows(da.as_mut_slice::<Acc>(), n, #[inline(always)] |row, da| {
            for (c, dt) in dt.iter().enumerate() {
                let at = row * h * d + c;
                da[c / d] += dy[at].load() * minus[c / d] * softplus(f[at].load() + dt.load());
            }
        });
    });
    df
}

/// Rows of a part of backward, and most parts: whatever the device, so that sums are the same on all.
const PART_ROWS: usize = 64;
const PARTS_MAX: usize = 264;

fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    df: &mut Tensor,
    [da, ddt]: [&mut TensorMut; 2],
    dy: &Tensor,
    rates: Rates,
    f: &Tensor,
) {
    let ([n, h, d], Rates { a, dt }) = (extents(f, rates), rates);
    let (cols, parts) = (h * d, n.div_ceil(PART_ROWS).min(PARTS_MAX));
    let mut partial = Tensor::uninit(arena, [parts, 2 * cols], DType::F32);
    let across = cols.div_ceil(32 * lane_width(d, 4, &[df, f, dt, dy]));
    let grid = Grid { blocks: [across, parts, 1], smem_bytes: 0 };
    by_dtype!(
        dy.dtype(),
        decay_gate_bwd_column_runs_f32 | decay_gate_bwd_column_runs_bf16,
        (gpu, grid, df.ptr_mut(), partial.ptr_mut(), f.ptr(), a.ptr(), dt.ptr(), dy.ptr(), n, h, d)
    );
    sum_parts(gpu, ddt, &partial, 0);
    launch::decay_gate_bwd_head_sums_f32(gpu, Grid::linear(h), da.ptr_mut(), partial.ptr(), parts, h, d);
}

/// Forward in plain loops.
pub fn reference(f: &[f64], a: &[f64], dt: &[f64]) -> Vec<f64> {
    let d = dt.len() / a.len();
    let one = |(i, f): (usize, &f64)| -a[i % dt.len() / d].exp() * (f + dt[i % dt.len()]).exp().ln_1p();
    f.iter().enumerate().map(one).collect()
}
