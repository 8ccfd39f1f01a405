//! A short causal convolution of each channel, and SiLU: `y_tc = silu(z_tc)`, `z_tc = sum_j w_cj x_(t-3+j)c` over [`TAPS`] taps.
//!
//! Taps do not reach before the start of a document, nor before the row, unless the three rows before it are handed in.
//! Saves `x`. Backward: `dz = dy s (1 + z (1 - s))`, `s` the sigmoid of `z`; `dx_t = sum_j w_j dz_(t+3-j)`,
//! `dw_j = sum over rows of dz_t x_(t-3+j)`. Must move 2 `N C` elements forward, 3 `N C` backward.

use super::rmsnorm::sum_parts;
use super::sigmoid_gate::sigmoid;
use crate::device::Device;
use crate::device::cpu::{simd, sum_over_rows};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, Ptr, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// Taps of a channel.
pub const TAPS: usize = 4;
/// Rows before the first that its taps reach.
pub const BEFORE: usize = TAPS - 1;

/// What came before: where documents start, `[N]` u32, 1 at the first token of each; and the last rows before the first,
/// `[B, 3, C]`, zero where there was none.
#[derive(Clone, Copy, Default)]
pub struct Past<'a> {
    pub starts: Option<&'a Tensor>,
    pub rows: Option<&'a Tensor>,
}

/// What backward needs besides the weights.
#[derive(Debug)]
pub struct Saved {
    pub x: Tensor,
    pub starts: Option<Tensor>,
    pub rows: Option<Tensor>,
}

/// The operands on the host.
#[derive(Clone, Copy)]
struct Host<'a, E> {
    x: &'a [E],
    w: &'a [E],
    starts: Option<&'a [u32]>,
    rows: Option<&'a [E]>,
    t: usize,
    c: usize,
}

impl<'a, E: Elem> Host<'a, E> {
    fn new(x: &'a Tensor, w: &'a Tensor, past: Past<'a>, t: usize) -> Host<'a, E> {
        let starts = past.starts.map(|starts| starts.as_slice());
        let rows = past.rows.map(|rows| rows.as_slice());
        Host { x: x.as_slice(), w: w.as_slice(), starts, rows, t, c: w.elems() / TAPS }
    }

    fn starts(&self, row: usize) -> bool {
        self.starts.is_some_and(|starts| starts[row] != 0)
    }

    /// The row `lag` before `row`, where a tap of `row` reaches it.
    fn row(&self, row: usize, lag: usize) -> Option<&'a [E]> {
        let (b, t) = (row / self.t, row % self.t);
        if (0..lag.min(t + 1)).any(|back| self.starts(row - back)) {
            return None;
        }
        match t.checked_sub(lag) {
            Some(_) => Some(&self.x[(row - lag) * self.c..][..self.c]),
            None => self.rows.map(|rows| &rows[(b * BEFORE + BEFORE + t - lag) * self.c..][..self.c]),
        }
    }

    /// `z` of a row, overwritten.
    fn sums(&self, z: &mut [E::Acc], row: usize) {
        z.fill(E::Acc::ZERO);
        for lag in (0..TAPS).rev() {
            if let Some(x) = self.row(row, lag) {
                let w = &self.w[BEFORE - lag..];
                for ((z, x), w) in z.iter_mut().zip(x).zip(w.iter().step_by(TAPS)) {
                    *z = w.load().mul_add(x.load(), *z);
                }
            }
        }
    }

    /// `dz` of a row, overwritten.
    fn sum_gradients(&self, dz: &mut [E::Acc], dy: &[E], row: usize) {
        self.sums(dz, row);
        simd(
            #[inline(always)]
            || {
                for (z, dy) in dz.iter_mut().zip(&dy[row * self.c..][..self.c]) {
                    let s = sigmoid(*z);
                    *z = dy.load() * s * (E::Acc::ONE + *z * (E::Acc::ONE - s));
                }
            },
        );
    }
}

fn extents(x: &Tensor, w: &Tensor, t: usize, past: Past) -> [usize; 3] {
    let c = w.elems() / TAPS;
    let n = x.elems() / c;
    assert!(w.elems() == c * TAPS && x.elems() == n * c && n.is_multiple_of(t), "convolution of {:?}", x.shape());
    assert!(past.starts.is_none_or(|starts| starts.elems() == n), "a start flag for each row");
    assert!(past.rows.is_none_or(|rows| rows.elems() == n / t * BEFORE * c), "three rows before each row");
    [n / t, n, c]
}

/// `x [N, C]`, rows of `t` tokens, `w [C, 4]` -> `y [N, C]` and the rows to go on from, `[B, 3, C]`: the last three that a next token
/// of the same document would reach, zeros where there is none.
pub fn forward(arena: &Arena, x: &Tensor, w: &Tensor, t: usize, past: Past) -> (Tensor, Tensor, Saved) {
    let ([b, n, c], dtype) = (extents(x, w, t, past), x.dtype());
    let saved = Saved { x: x.clone(), starts: past.starts.cloned(), rows: past.rows.cloned() };
    let mut y = Tensor::uninit(arena, [n, c], dtype);
    if let Device::Gpu(gpu) = x.device() {
        let mut next = Tensor::uninit(arena, [b, BEFORE, c], dtype);
        launch_forward(gpu, [&mut y, &mut next], w, t, &saved);
        return (y, next, saved);
    }
    let mut next = Tensor::zeros(arena, [b, BEFORE, c], dtype);
    for_dtype!(dtype, E => {
        let host = Host::<E>::new(x, w, past, t);
        y.as_mut_slice::<E>().par_chunks_mut(c).enumerate().for_each(|(row, y)| {
            let mut z = vec![<E as Elem>::Acc::ZERO; c];
            host.sums(&mut z, row);
            simd(
                #[inline(always)]
                || y.iter_mut().zip(&z).for_each(|(y, &z)| *y = E::store(z * sigmoid(z))),
            );
        });
        for (i, next) in next.as_mut_slice::<E>().chunks_exact_mut(c).enumerate() {
            let (b, lag) = (i / BEFORE, BEFORE - 1 - i % BEFORE);
            if let Some(x) = host.row((b + 1) * t - 1, lag) {
                next.copy_from_slice(x);
            }
        }
    });
    (y, next, saved)
}

/// `dy [N, C]` -> `dx [N, C]`; adds to `dw [C, 4]`. The rows before the first get no gradient.
pub fn backward(arena: &Arena, dw: &mut TensorMut, dy: &Tensor, w: &Tensor, t: usize, saved: &Saved) -> Tensor {
    let past = Past { starts: saved.starts.as_ref(), rows: saved.rows.as_ref() };
    let ([_, n, c], dtype) = (extents(&saved.x, w, t, past), dy.dtype());
    let mut dx = Tensor::uninit(arena, [n, c], dtype);
    if let Device::Gpu(gpu) = dy.device() {
        launch_backward(gpu, arena, &mut dx, dw, dy, w, t, saved);
        return dx;
    }
    let mut dz = Tensor::uninit(arena, [n, c], dtype.accumulator());
    for_dtype!(dtype, E => {
        type Acc = <E as Elem>::Acc;
        let (host, dy) = (Host::<E>::new(&saved.x, w, past, t), dy.as_slice::<E>());
        dz.as_mut_slice::<Acc>().par_chunks_mut(c).enumerate().for_each(|(row, dz)| host.sum_gradients(dz, dy, row));
        let dz = dz.as_slice::<Acc>();
        dx.as_mut_slice::<E>().par_chunks_mut(c).enumerate().for_each(|(row, dx)| {
            let mut sum = vec![Acc::ZERO; c];
            for lag in (0..TAPS).filter(|lag| row % t + lag < t && host.row(row + lag, *lag).is_some()) {
                let (w, dz) = (&host.w[BEFORE - lag..], &dz[(row + lag) * c..][..c]);
                for ((sum, &dz), w) in sum.iter_mut().zip(dz).zip(w.iter().step_by(TAPS)) {
                    *sum = w.load().mul_add(dz, *sum);
                }
            }
            dx.iter_mut().zip(&sum).for_each(|(dx, &sum)| *dx = E::store(sum));
        });
        sum_over_rows(dw.as_mut_slice::<Acc>(), n, |row, dw| {
            for lag in 0..TAPS {
                let Some(x) = host.row(row, lag) else { continue };
                let dw = dw[BEFORE - lag..].iter_mut().step_by(TAPS);
                dw.zip(x).zip(&dz[row * c..][..c]).for_each(|((dw, x), &dz)| *dw = dz.mul_add(x.load(), *dw));
            }
        });
    });
    dx
}

/// Tokens of a run, and runs of a block of the kernels.
const RUN: usize = 64;
const BLOCK_RUNS: usize = 8;

/// Channels of a lane: `widest` where rows of `c` allow it and all tensors begin at a multiple of 16 bytes, else 1. The kernels decide
/// likewise.
pub(super) fn lane_width(c: usize, widest: usize, tensors: &[&Tensor]) -> usize {
    let aligned = |x: &&Tensor| x.alias().is_aligned(16);
    if c.is_multiple_of(widest) && tensors.iter().all(aligned) { widest } else { 1 }
}

/// A warp for each run of tokens and 32 lanes of channels.
fn grid(b: usize, t: usize, c: usize, width: usize) -> Grid {
    Grid { blocks: [c.div_ceil(32 * width), (b * t.div_ceil(RUN)).div_ceil(BLOCK_RUNS), 1], smem_bytes: 0 }
}

fn launch_forward(gpu: &Gpu, [y, next]: [&mut Tensor; 2], w: &Tensor, t: usize, Saved { x, starts, rows }: &Saved) {
    let (c, dtype) = (w.elems() / TAPS, x.dtype());
    let b = x.elems() / c / t;
    let aligned: Vec<&Tensor> = [&*y, &*next, x, w].into_iter().chain(rows).collect();
    let grid = grid(b, t, c, lane_width(c, 16 / dtype.size_bytes(), &aligned));
    by_dtype!(
        dtype,
        short_conv_fwd_channel_runs_f32 | short_conv_fwd_channel_runs_bf16,
        (
            gpu,
            grid,
            y.ptr_mut(),
            next.ptr_mut(),
            x.ptr(),
            w.ptr(),
            starts.as_ref().map_or(Ptr::none(), |starts| starts.ptr()),
            rows.as_ref().map_or(Ptr::none(), |rows| rows.ptr()),
            b,
            t,
            c
        )
    );
}

#[allow(clippy::too_many_arguments)] // where it runs, what it writes, what it reads
fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    dx: &mut Tensor,
    dw: &mut TensorMut,
    dy: &Tensor,
    w: &Tensor,
    t: usize,
    Saved { x, starts, rows }: &Saved,
) {
    let c = w.elems() / TAPS;
    let b = x.elems() / c / t;
    let aligned: Vec<&Tensor> = [&*dx, x, w, dy].into_iter().chain(rows).collect();
    let grid = grid(b, t, c, lane_width(c, 4, &aligned));
    let mut partial = Tensor::uninit(arena, [grid.blocks[1], c * TAPS], DType::F32);
    by_dtype!(
        dy.dtype(),
        short_conv_bwd_channel_runs_f32 | short_conv_bwd_channel_runs_bf16,
        (
            gpu,
            grid,
            dx.ptr_mut(),
            partial.ptr_mut(),
            x.ptr(),
            w.ptr(),
            starts.as_ref().map_or(Ptr::none(), |starts| starts.ptr()),
            rows.as_ref().map_or(Ptr::none(), |rows| rows.ptr()),
            dy.ptr(),
            b,
            t,
            c
        )
    );
    sum_parts(gpu, dw, &partial, 0);
}

/// Forward in plain loops: `x` of one row of tokens after another, `before` the three rows before each.
pub fn reference(x: &[f64], w: &[f64], t: usize, starts: Option<&[u32]>, before: Option<&[f64]>) -> Vec<f64> {
    let c = w.len() / TAPS;
    let sum = |row: usize, channel: usize| -> f64 {
        let (b, mut sum) = (row / t, 0.0);
        for lag in 0..TAPS {
            let at = (row % t) as isize - lag as isize;
            sum += w[channel * TAPS + BEFORE - lag]
                * match (at, before) {
                    (0.., _) => x[(row - lag) * c + channel],
                    (_, Some(before)) => before[(b * BEFORE + (BEFORE as isize + at) as usize) * c + channel],
                    (_, None) => 0.0,
                };
            if at <= 0 && before.is_none() || at >= 0 && starts.is_some_and(|starts| starts[row - lag] != 0) {
                break;
            }
        }
        sum
    };
    (0..x.len()).map(|i| sum(i / c, i % c)).map(|z| z / (1.0 + (-z).exp())).collect()
}
