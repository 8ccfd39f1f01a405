//! RMSNorm: `y = x r g` with `r = 1 / sqrt(mean(x^2) + eps)`; with a residual, `x = residual + delta` is made on the way.
//! Without a gain (`n(x)` of the heads and parts), `g = 1`.
//!
//! Saves `x` and `r`. With `d = dy g`: `dx = r d - x r^3 mean(d x)`, `dg = sum over rows of dy x r`. The residual's own
//! gradient joins in the same pass. Must move forward 2 (fused: 4), backward 3 (fused: 4) times `N C` elements.

use crate::device::Device;
use crate::device::cpu::{grain_rows, simd, sum_over_rows, sum_squares, sum_zip};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;
use std::borrow::Cow;

/// What backward needs besides the gain.
#[derive(Debug)]
pub struct Saved {
    /// `[N, C]`, the normed value (after the addition).
    pub x: Tensor,
    /// `[N]`, `r` in the accumulator type.
    pub rstd: Tensor,
}

/// `x [N, C]`, `gain [C]` or none -> `y [N, C]`.
pub fn forward<'a>(arena: &Arena, x: &Tensor, gain: impl Into<Option<&'a Tensor>>, eps: f64) -> (Tensor, Saved) {
    let ([n, c], gain) = (x.shape().rows_cols(), gain.into());
    let mut y = Tensor::uninit(arena, [n, c], x.dtype());
    let mut rstd = Tensor::uninit(arena, [n], x.dtype().accumulator());
    if let Device::Gpu(gpu) = x.device() {
        let alone = (x.alias(), None, None);
        launch_forward(gpu, &mut y, &mut rstd, alone, gain, eps);
        return (y, Saved { x: x.clone(), rstd });
    }
    for_dtype!(x.dtype(), E => {
        let (x, gain) = (x.as_slice::<E>(), gain_of::<E>(gain, c));
        let (grain, gain) = (grain_rows(c), &gain[..]);
        let tasks = y.as_mut_slice::<E>().par_chunks_mut(grain * c).zip(x.par_chunks(grain * c));
        tasks.zip(rstd.as_mut_slice().par_chunks_mut(grain)).for_each(|((y, x), rstd)| {
            simd(
                #[inline(always)]
                || {
                    for ((y, x), r) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(rstd) {
                        *r = norm_row(y, x, gain, eps);
                    }
                },
            )
        })
    });
    (y, Saved { x: x.clone(), rstd })
}

/// `residual + delta` and its norm: `(x [N, C], y [N, C])`. Reuses the bytes of `delta` when nothing else holds them.
pub fn forward_add(
    arena: &Arena,
    residual: &Tensor,
    delta: Tensor,
    gain: &Tensor,
    eps: f64,
) -> (Tensor, Tensor, Saved) {
    let ([n, c], dtype) = (residual.shape().rows_cols(), residual.dtype());
    assert_eq!(delta.shape().rows_cols(), [n, c], "residual and delta");
    let mut y = Tensor::uninit(arena, [n, c], dtype);
    let mut rstd = Tensor::uninit(arena, [n], dtype.accumulator());
    if let Device::Gpu(gpu) = residual.device() {
        let delta_elems = delta.alias();
        let mut x = delta.into_output(arena);
        launch_forward(gpu, &mut y, &mut rstd, (delta_elems, Some(&mut x), Some(residual)), Some(gain), eps);
        return (x.clone(), y, Saved { x, rstd });
    }
    let mut x = delta.into_unique(arena);
    for_dtype!(x.dtype(), E => {
        let (residual, gain) = (residual.as_slice::<E>(), gain.as_slice::<E>());
        let grain = grain_rows(c);
        let tasks = y.as_mut_slice::<E>().par_chunks_mut(grain * c).zip(x.as_mut_slice::<E>().par_chunks_mut(grain * c));
        let tasks = tasks.zip(residual.par_chunks(grain * c)).zip(rstd.as_mut_slice().par_chunks_mut(grain));
        tasks.for_each(|(((y, x), residual), rstd)| {
            simd(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(c).zip(x.chunks_exact_mut(c)).zip(residual.chunks_exact(c)).zip(rstd);
                    for (((y, x), residual), r) in rows {
                        for (x, h) in x.iter_mut().zip(residual) {
                            *x = E::store(x.load() + h.load());
                        }
                        *r = norm_row(y, x, gain, eps);
                    }
                },
            )
        })
    });
    (x.clone(), y, Saved { x, rstd })
}

/// The gain, or ones.
fn gain_of<E: Elem>(gain: Option<&Tensor>, c: usize) -> Cow<'_, [E]> {
    gain.map_or_else(|| Cow::Owned(vec![E::store(E::Acc::ONE); c]), |gain| Cow::Borrowed(gain.as_slice()))
}

/// `y = x r gain`; returns `r`.
#[inline(always)]
pub(super) fn norm_row<E: Elem>(y: &mut [E], x: &[E], gain: &[E], eps: f64) -> E::Acc {
    let mean = sum_squares(x) / E::Acc::from_f64(x.len() as f64);
    let r = E::Acc::ONE / (mean + E::Acc::from_f64(eps)).sqrt();
    for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
        *y = E::store(x.load() * r * g.load());
    }
    r
}

/// `dx += r d - x r^3 mean(d x)` with `d = dy gain`, one row. `dx` may hold the residual's gradient, or zeros.
#[inline(always)]
pub(super) fn norm_row_backward<E: Elem>(mut put: impl FnMut(usize, E::Acc), dy: &[E], x: &[E], gain: &[E], r: E::Acc) {
    let c = x.len();
    let projected = sum_weighted(dy, x, gain) / E::Acc::from_f64(c as f64);
    let slope = projected * r * r * r;
    for i in 0..c {
        put(i, dy[i].load() * gain[i].load() * r - x[i].load() * slope);
    }
}

/// `sum dy x gain`.
#[inline(always)]
fn sum_weighted<E: Elem>(dy: &[E], x: &[E], gain: &[E]) -> E::Acc {
    // Blocks that fit registers twice over: first the product of two, then its dot with the third.
    const BLOCK: usize = 64;
    let mut weighted = [E::Acc::ZERO; BLOCK];
    let mut sum = E::Acc::ZERO;
    for ((dy, x), gain) in dy.chunks(BLOCK).zip(x.chunks(BLOCK)).zip(gain.chunks(BLOCK)) {
        let weighted = &mut weighted[..dy.len()];
        for ((w, dy), g) in weighted.iter_mut().zip(dy).zip(gain) {
            *w = dy.load() * g.load();
        }
        sum += sum_zip(weighted, x, |w: E::Acc, x: E, acc: E::Acc| w.mul_add(x.load(), acc));
    }
    sum
}

/// `dy [N, C]` and, where the norm was fused with an addition, the residual's own gradient `dsum [N, C]` ->
/// the gradient of `x`; adds to `dgain [C]`. Gain and its gradient are there both, or neither.
pub fn backward<'a, 'b>(
    arena: &Arena,
    dgain: impl Into<Option<&'a mut TensorMut<'b>>>,
    dy: &Tensor,
    dsum: Option<Tensor>,
    gain: impl Into<Option<&'a Tensor>>,
    saved: &Saved,
) -> Tensor
where
    'b: 'a,
{
    let [n, c] = dy.shape().rows_cols();
    let (dgain, gain, fused) = (dgain.into(), gain.into(), dsum.is_some());
    assert_eq!(dgain.is_some(), gain.is_some(), "a gain and its gradient");
    if let Device::Gpu(gpu) = dy.device() {
        return launch_backward(gpu, arena, dgain, dy, dsum, gain, saved);
    }
    let mut dx = match dsum {
        Some(dsum) => dsum.into_unique(arena),
        None => Tensor::uninit(arena, [n, c], dy.dtype()),
    };
    for_dtype!(dy.dtype(), E => {
        let (dy, x, gain) = (dy.as_slice::<E>(), saved.x.as_slice::<E>(), gain_of::<E>(gain, c));
        let rstd = saved.rstd.as_slice::<<E as Elem>::Acc>();
        if let Some(dgain) = dgain {
            sum_over_rows(dgain.as_mut_slice::<<E as Elem>::Acc>(), n, #[inline(always)] |row, acc| {
                for ((acc, dy), x) in acc.iter_mut().zip(&dy[row * c..][..c]).zip(&x[row * c..][..c]) {
                    *acc = (dy.load() * rstd[row]).mul_add(x.load(), *acc);
                }
            });
        }
        let (grain, gain) = (grain_rows(c), &gain[..]);
        let tasks = dx.as_mut_slice::<E>().par_chunks_mut(grain * c).zip(dy.par_chunks(grain * c));
        tasks.zip(x.par_chunks(grain * c)).zip(rstd.par_chunks(grain)).for_each(|(((dx, dy), x), rstd)| {
            simd(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)).zip(rstd);
                    for (((dx, dy), x), &r) in rows {
                        if fused {
                            norm_row_backward(|i, d| dx[i] = E::store(dx[i].load() + d), dy, x, gain, r);
                        } else {
                            norm_row_backward(|i, d| dx[i] = E::store(d), dy, x, gain, r);
                        }
                    }
                },
            )
        })
    });
    dx
}

/// Widest rows of the kernels: in the registers of a warp, and of a block.
const WARP_COLS: usize = 1024;
const BLOCK_COLS: usize = 8192;

/// Most parts into which backward splits its rows, whatever the device, so that sums are the same on all.
const PARTS_MAX: usize = 264;

/// What is normed: where it lies, and with a residual where the sum goes and what is added.
type Input<'a> = (crate::tensor::Alias, Option<&'a mut Tensor>, Option<&'a Tensor>);

fn launch_forward(
    gpu: &Gpu,
    y: &mut Tensor,
    rstd: &mut Tensor,
    (x, mut sum, residual): Input,
    gain: Option<&Tensor>,
    eps: f64,
) {
    let ([n, c], dtype, eps) = (y.shape().rows_cols(), y.dtype(), eps as f32);
    assert!(c <= BLOCK_COLS, "RMSNorm of {c} columns; the kernels take at most {BLOCK_COLS}");
    // The optional ones, typed by the kernel that takes them.
    macro_rules! sum {
        () => {
            sum.as_mut().map_or(PtrMut::none(), |sum| sum.ptr_mut())
        };
    }
    macro_rules! residual {
        () => {
            residual.map_or(Ptr::none(), |residual| residual.ptr())
        };
    }
    macro_rules! gain {
        () => {
            gain.map_or(Ptr::none(), |gain| gain.ptr())
        };
    }
    if c <= WARP_COLS {
        by_dtype!(
            dtype,
            rmsnorm_fwd_warp_per_row_f32 | rmsnorm_fwd_warp_per_row_bf16,
            (gpu, Grid::over(n, 8), y.ptr_mut(), sum!(), rstd.ptr_mut(), x.ptr(), residual!(), gain!(), eps, n, c)
        );
    } else {
        by_dtype!(
            dtype,
            rmsnorm_fwd_block_per_row_f32 | rmsnorm_fwd_block_per_row_bf16,
            (gpu, Grid::linear(n), y.ptr_mut(), sum!(), rstd.ptr_mut(), x.ptr(), residual!(), gain!(), eps, c)
        );
    }
}

fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    dgain: Option<&mut TensorMut>,
    dy: &Tensor,
    dsum: Option<Tensor>,
    gain: Option<&Tensor>,
    saved: &Saved,
) -> Tensor {
    let ([n, c], dtype) = (dy.shape().rows_cols(), dy.dtype());
    let dsum_elems = dsum.as_ref().map(Tensor::alias);
    let mut dx = match dsum {
        Some(dsum) => dsum.into_output(arena),
        None => Tensor::uninit(arena, [n, c], dtype),
    };
    let rows_a_part = if c <= WARP_COLS { 32 } else { 8 };
    let parts = n.div_ceil(rows_a_part).min(PARTS_MAX);
    let mut partial = dgain.is_some().then(|| Tensor::uninit(arena, [parts, c], DType::F32));
    macro_rules! run {
        ($kernel:ident) => {
            launch::$kernel(
                gpu,
                Grid::linear(parts),
                dx.ptr_mut(),
                partial.as_mut().map_or(PtrMut::none(), |partial| partial.ptr_mut()),
                saved.x.ptr(),
                saved.rstd.ptr(),
                dy.ptr(),
                dsum_elems.as_ref().map_or(Ptr::none(), |dsum| dsum.ptr()),
                gain.map_or(Ptr::none(), |gain| gain.ptr()),
                n,
                c,
            )
        };
    }
    match (dtype, c <= WARP_COLS) {
        (DType::F32, true) => run!(rmsnorm_bwd_warp_per_row_f32),
        (DType::F32, false) => run!(rmsnorm_bwd_block_per_row_f32),
        (DType::Bf16, true) => run!(rmsnorm_bwd_warp_per_row_bf16),
        (DType::Bf16, false) => run!(rmsnorm_bwd_block_per_row_bf16),
        (other, _) => panic!("no kernel norms {other}"),
    }
    if let (Some(dgain), Some(partial)) = (dgain, &partial) {
        sum_parts(gpu, dgain, partial, 0);
    }
    dx
}

/// `out [C] += ` the sum over the rows of `partial [P, stride]`, of its columns from `first` on.
pub(super) fn sum_parts(gpu: &Gpu, out: &mut TensorMut, partial: &Tensor, first: usize) {
    let ([parts, stride], c) = (partial.dims(), out.shape().elems());
    let columns = partial.view(first, [parts * stride - first]);
    let grid = Grid::over(c, 128);
    launch::row_sum_bwd_column_per_thread_f32(gpu, grid, out.ptr_mut(), columns.ptr(), parts, c, stride);
}

/// Forward in plain loops.
pub fn reference(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let c = gain.len();
    let row = |x: &[f64]| {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / c as f64 + eps).sqrt();
        x.iter().zip(gain).map(|(x, g)| x * r * g).collect::<Vec<_>>()
    };
    x.chunks(c).flat_map(row).collect()
}
