//! Rotary position embedding of the packed q, k, v rows, after an optional RMSNorm of every query and key head (QK-norm).
//!
//! Rotate-half convention: with `c, s` the cosine and sine of `position * frequency_i`, `i < D/2`:
//! `y_i = x_i c - x_{i+D/2} s`, `y_{i+D/2} = x_{i+D/2} c + x_i s`. Backward rotates back. Without QK-norm nothing is saved
//! and both directions work in place. Frequencies may be rescaled as Llama 3 does.

use super::rmsnorm::{norm_row, norm_row_backward, sum_parts};
use crate::device::Device;
use crate::device::cpu::{grain_rows, simd, sum_over_rows};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// How the heads lie in a packed row: `H` query heads, `G` key heads, `G` value heads, each `D` wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub h: usize,
    pub g: usize,
    pub d: usize,
}

impl Heads {
    /// Elements of a packed row, `(H + 2 G) D`.
    pub fn row_elems(self) -> usize {
        (self.h + 2 * self.g) * self.d
    }
}

/// Frequency rescaling of Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear ramp between.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

impl Llama3Scaling {
    /// Whether all its numbers are finite and positive and the ramp rises.
    pub fn is_valid(&self) -> bool {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        positive(self.factor)
            && positive(self.low_freq_factor)
            && positive(self.high_freq_factor)
            && self.high_freq_factor > self.low_freq_factor
            && self.original_max_position_embeddings > 0
    }
}

/// The `D/2` rotation frequencies in radians per position.
pub fn frequencies(d: usize, theta: f64, scaling: Option<Llama3Scaling>) -> Vec<f64> {
    let base = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64));
    let Some(s) = scaling else { return base.collect() };
    let context = s.original_max_position_embeddings as f64;
    let (low_wavelength, high_wavelength) = (context / s.low_freq_factor, context / s.high_freq_factor);
    base.map(|f| {
        let wavelength = std::f64::consts::TAU / f;
        if wavelength < high_wavelength {
            f
        } else if wavelength > low_wavelength {
            f / s.factor
        } else {
            let smooth = (context / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
            (1.0 - smooth) * f / s.factor + smooth * f
        }
    })
    .collect()
}

/// Cosines and sines of every position, `[S, D/2]` each.
#[derive(Clone, Debug)]
pub struct Table {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Table {
    /// For positions `0..positions`, in `dtype` (f32 or f64); angles are computed in f64.
    pub fn new(positions: usize, frequencies: &[f64], dtype: DType) -> Table {
        let half = frequencies.len();
        let angle = |i: usize| (i / half) as f64 * frequencies[i % half];
        let fill = |f: fn(f64) -> f64| {
            let mut t = Tensor::owned([positions, half], dtype);
            t.copy_from_f64(&(0..positions * half).map(|i| f(angle(i))).collect::<Vec<_>>());
            t
        };
        Table { cos: fill(f64::cos), sin: fill(f64::sin) }
    }

    /// This table on `device`.
    pub fn to(&self, device: Device) -> Table {
        Table { cos: self.cos.to(device), sin: self.sin.to(device) }
    }

    /// Positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.shape().rows_cols()[0]
    }
}

/// QK-norm: the gains `[D]` of queries and keys.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    pub q_gain: &'a Tensor,
    pub k_gain: &'a Tensor,
    pub eps: f64,
}

/// What backward needs besides the table and the gains.
#[derive(Debug)]
pub struct Saved {
    /// With QK-norm: the input `[N, (H + 2G) D]` and `[N, H + G]` reciprocal norms.
    pub normed: Option<(Tensor, Tensor)>,
}

/// `qkv [N, (H + 2G) D]` -> the same with queries and keys normed and rotated. Row `n` is at position
/// `start + n % t`.
///
/// # Panics
/// If a position lies beyond the table.
pub fn forward(
    arena: &Arena,
    qkv: Tensor,
    heads: Heads,
    t: usize,
    start: usize,
    table: &Table,
    norm: Option<QkNorm>,
) -> (Tensor, Saved) {
    let [n, row] = qkv.shape().rows_cols();
    assert_eq!(row, heads.row_elems(), "packed row");
    assert!(start + t <= table.positions(), "position {} beyond a table of {}", start + t - 1, table.positions());
    if let Device::Gpu(gpu) = qkv.device() {
        return launch_forward(gpu, arena, qkv, heads, t, start, table, norm);
    }
    let Heads { h, g, d } = heads;
    let dtype = qkv.dtype();
    let Some(norm) = norm else {
        let mut y = qkv.into_unique(arena);
        for_dtype!(dtype, E => rotate_rows::<E>(y.as_mut_slice(), heads, t, start, table, Direction::Forward));
        return (y, Saved { normed: None });
    };
    let mut y = Tensor::uninit(arena, [n, row], dtype);
    let mut rstd = Tensor::uninit(arena, [n, h + g], dtype.accumulator());
    for_dtype!(dtype, E => {
        let (q_gain, k_gain) = (norm.q_gain.as_slice::<E>(), norm.k_gain.as_slice::<E>());
        let (rows_x, grain) = (qkv.as_slice::<E>(), grain_rows(row));
        let tasks = y.as_mut_slice::<E>().par_chunks_mut(grain * row).zip(rows_x.par_chunks(grain * row));
        tasks.zip(rstd.as_mut_slice().par_chunks_mut(grain * (h + g))).for_each(|((y, x), rstd)| {
            simd(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(row).zip(x.chunks_exact(row)).zip(rstd.chunks_exact_mut(h + g));
                    for ((y, x), rstd) in rows {
                        for (head, r) in rstd.iter_mut().enumerate() {
                            let gain = if head < h { q_gain } else { k_gain };
                            let at = head * d..(head + 1) * d;
                            *r = norm_row(&mut y[at.clone()], &x[at], gain, norm.eps);
                        }
                        y[(h + g) * d..].copy_from_slice(&x[(h + g) * d..]);
                    }
                },
            )
        });
        rotate_rows::<E>(y.as_mut_slice(), heads, t, start, table, Direction::Forward);
    });
    (y, Saved { normed: Some((qkv, rstd)) })
}

/// The gradient of the packed rows; with QK-norm it also adds to the gradients of the query and key gains `[D]`.
pub fn backward(
    arena: &Arena,
    dqkv: Tensor,
    heads: Heads,
    t: usize,
    table: &Table,
    norm: Option<(QkNorm, [TensorMut; 2])>,
    saved: &Saved,
) -> Tensor {
    let mut dqkv = dqkv.into_unique(arena);
    if let Device::Gpu(gpu) = dqkv.device() {
        launch_backward(gpu, arena, &mut dqkv, heads, t, table, norm, saved);
        return dqkv;
    }
    let dtype = dqkv.dtype();
    for_dtype!(dtype, E => {
        rotate_rows::<E>(dqkv.as_mut_slice(), heads, t, 0, table, Direction::Backward);
        if let (Some((norm, dgains)), Some((x, rstd))) = (norm, &saved.normed) {
            norm_backward::<E>(&mut dqkv, heads, norm, dgains, x, rstd);
        }
    });
    dqkv
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    Backward,
}

fn rotate_rows<E: Elem>(y: &mut [E], heads: Heads, t: usize, start: usize, table: &Table, direction: Direction) {
    let (cos, sin) = (table.cos.as_slice::<E::Acc>(), table.sin.as_slice::<E::Acc>());
    let (row, half) = (heads.row_elems(), heads.d / 2);
    let rotated = (heads.h + heads.g) * heads.d;
    let grain = grain_rows(row);
    y.par_chunks_mut(grain * row).enumerate().for_each(|(task, rows)| {
        simd(
            #[inline(always)]
            || {
                for (i, y) in rows.chunks_exact_mut(row).enumerate() {
                    let position = start + (task * grain + i) % t;
                    let (c, s) = (&cos[position * half..][..half], &sin[position * half..][..half]);
                    for head in y[..rotated].chunks_exact_mut(heads.d) {
                        let (low, high) = head.split_at_mut(half);
                        if direction == Direction::Forward {
                            rotate_head(low, high, c, s, |x| x);
                        } else {
                            rotate_head(low, high, c, s, |x| -x);
                        }
                    }
                }
            },
        )
    });
}

#[inline(always)]
pub(super) fn rotate_head<E: Elem>(
    low: &mut [E],
    high: &mut [E],
    cos: &[E::Acc],
    sin: &[E::Acc],
    sign: impl Fn(E::Acc) -> E::Acc,
) {
    for (((low, high), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b, s) = (low.load(), high.load(), sign(s));
        *low = E::store(a * c - b * s);
        *high = E::store(b * c + a * s);
    }
}

/// Norm backward in place over the un-rotated gradient, and the gradients of the gains.
fn norm_backward<E: Elem>(
    dqkv: &mut Tensor,
    heads: Heads,
    norm: QkNorm,
    [mut dq_gain, mut dk_gain]: [TensorMut; 2],
    x: &Tensor,
    rstd: &Tensor,
) {
    let Heads { h, g, d } = heads;
    let ([n, row], normed) = (x.shape().rows_cols(), h + g);
    let (x, rstd) = (x.as_slice::<E>(), rstd.as_slice::<E::Acc>());
    let dy = dqkv.as_slice::<E>();
    for (dgain, heads) in [(&mut dq_gain, 0..h), (&mut dk_gain, h..h + g)] {
        sum_over_rows(
            dgain.as_mut_slice::<E::Acc>(),
            n,
            #[inline(always)]
            |i, acc| {
                for head in heads.clone() {
                    let (at, r) = (i * row + head * d, rstd[i * normed + head]);
                    for ((acc, dy), x) in acc.iter_mut().zip(&dy[at..at + d]).zip(&x[at..at + d]) {
                        *acc = (dy.load() * r).mul_add(x.load(), *acc);
                    }
                }
            },
        );
    }
    let (q_gain, k_gain) = (norm.q_gain.as_slice::<E>(), norm.k_gain.as_slice::<E>());
    let grain = grain_rows(row);
    let tasks = dqkv.as_mut_slice::<E>().par_chunks_mut(grain * row).zip(x.par_chunks(grain * row));
    tasks.zip(rstd.par_chunks(grain * normed)).for_each(|((dy, x), rstd)| {
        simd(
            #[inline(always)]
            || {
                let mut incoming = vec![E::default(); d];
                let rows = dy.chunks_exact_mut(row).zip(x.chunks_exact(row)).zip(rstd.chunks_exact(normed));
                for ((dy, x), rstd) in rows {
                    for head in 0..normed {
                        let gain = if head < h { q_gain } else { k_gain };
                        let dy = &mut dy[head * d..(head + 1) * d];
                        incoming.copy_from_slice(dy);
                        let x = &x[head * d..(head + 1) * d];
                        norm_row_backward(|i, v| dy[i] = E::store(v), &incoming, x, gain, rstd[head]);
                    }
                }
            },
        )
    });
}

/// Widest head of the kernels, and most parts into which backward splits its rows.
const HEAD_COLS: usize = 512;
const PARTS_MAX: usize = 528;
/// Widest head of the kernels of backward that hold few registers.
const NARROW_HEAD_MAX: usize = 128;

#[allow(clippy::too_many_arguments)] // those of `forward`
fn launch_forward(
    gpu: &Gpu,
    arena: &Arena,
    x: Tensor,
    heads: Heads,
    t: usize,
    start: usize,
    table: &Table,
    norm: Option<QkNorm>,
) -> (Tensor, Saved) {
    let (Heads { h, g, d }, [n, row], dtype) = (heads, x.shape().rows_cols(), x.dtype());
    assert!(d <= HEAD_COLS, "heads of {d} columns; the kernels take at most {HEAD_COLS}");
    let x_elems = x.alias();
    // Without a norm in place: the values need not be touched.
    let in_place = norm.is_none() && x.is_unique();
    let (mut y, kept) = match in_place {
        true => (x, None),
        false => (Tensor::uninit(arena, [n, row], dtype), Some(x)),
    };
    let mut rstd = norm.map(|_| Tensor::uninit(arena, [n, h + g], DType::F32));
    let per_row = if in_place { h + g } else { h + 2 * g };
    let eps = norm.map_or(0.0, |norm| norm.eps) as f32;
    by_dtype!(
        dtype,
        rope_fwd_warp_per_head_f32 | rope_fwd_warp_per_head_bf16,
        (
            gpu,
            Grid::over(n * per_row, 8),
            y.ptr_mut(),
            rstd.as_mut().map_or(PtrMut::none(), |r| r.ptr_mut()),
            x_elems.ptr(),
            table.cos.ptr(),
            table.sin.ptr(),
            norm.map_or(Ptr::none(), |norm| norm.q_gain.ptr()),
            norm.map_or(Ptr::none(), |norm| norm.k_gain.ptr()),
            eps,
            n,
            per_row,
            h,
            g,
            d,
            t,
            start
        )
    );
    (y, Saved { normed: kept.zip(rstd) })
}

#[allow(clippy::too_many_arguments)] // those of `backward`
fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    dqkv: &mut Tensor,
    heads: Heads,
    t: usize,
    table: &Table,
    norm: Option<(QkNorm, [TensorMut; 2])>,
    saved: &Saved,
) {
    let (Heads { h, g, d }, [n, _], dtype, dy) = (heads, dqkv.shape().rows_cols(), dqkv.dtype(), dqkv.alias());
    let parts = n.div_ceil(32).min(PARTS_MAX);
    let (norm, dgains) = norm.unzip();
    let normed = saved.normed.as_ref().filter(|_| norm.is_some());
    let mut partial = normed.map(|_| Tensor::uninit(arena, [parts, 2 * d], DType::F32));
    let smem_bytes = if normed.is_some() { 8 * 2 * d * size_of::<f32>() } else { 0 };
    let grid = Grid { smem_bytes, ..Grid::linear(parts) };
    macro_rules! run {
        ($f32:ident | $bf16:ident) => {
            by_dtype!(
                dtype,
                $f32 | $bf16,
                (
                    gpu,
                    grid,
                    dqkv.ptr_mut(),
                    partial.as_mut().map_or(PtrMut::none(), |p| p.ptr_mut()),
                    normed.map_or(Ptr::none(), |(x, _)| x.ptr()),
                    normed.map_or(Ptr::none(), |(_, rstd)| rstd.ptr()),
                    table.cos.ptr(),
                    table.sin.ptr(),
                    dy.ptr(),
                    norm.map_or(Ptr::none(), |norm| norm.q_gain.ptr()),
                    norm.map_or(Ptr::none(), |norm| norm.k_gain.ptr()),
                    n,
                    h,
                    g,
                    d,
                    t
                )
            )
        };
    }
    if d <= NARROW_HEAD_MAX {
        run!(rope_bwd_warp_per_row_f32 | rope_bwd_warp_per_row_bf16);
    } else {
        run!(rope_bwd_wide_warp_per_row_f32 | rope_bwd_wide_warp_per_row_bf16);
    }
    if let (Some(partial), Some([mut dq_gain, mut dk_gain])) = (partial, dgains) {
        sum_parts(gpu, &mut dq_gain, &partial, 0);
        sum_parts(gpu, &mut dk_gain, &partial, d);
    }
}

/// Forward in plain loops; `norm` holds the gains of queries and keys and `eps`.
pub fn reference(
    qkv: &[f64],
    heads: Heads,
    t: usize,
    frequencies: &[f64],
    norm: Option<(&[f64], &[f64], f64)>,
) -> Vec<f64> {
    let Heads { h, g, d } = heads;
    let mut out = qkv.to_vec();
    for (n, row) in out.chunks_mut(heads.row_elems()).enumerate() {
        for (index, head) in row.chunks_mut(d).take(h + g).enumerate() {
            if let Some((q_gain, k_gain, eps)) = norm {
                let normed = super::rmsnorm::reference(head, if index < h { q_gain } else { k_gain }, eps);
                head.copy_from_slice(&normed);
            }
            for i in 0..d / 2 {
                let (sin, cos) = ((n % t) as f64 * frequencies[i]).sin_cos();
                let (a, b) = (head[i], head[i + d / 2]);
                head[i] = a * cos - b * sin;
                head[i + d / 2] = b * cos + a * sin;
            }
        }
    }
    out
}
