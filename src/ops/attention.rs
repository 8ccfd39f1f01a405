//! Causal attention by blocks with an online softmax: never a `T x S` matrix in memory.
//!
//! `o_t = sum_s p_ts v_s`, `p_t = softmax over visible s of <q_t, k_s> / sqrt(D)`. A query at position `p` sees keys
//! `max(doc_start, p + 1 - window) ..= p`. Query head `j` reads key/value head `j / (H / G)`.
//! Saves the packed input, the output and `lse_t = log sum exp`. Backward recomputes `p = exp(score - lse)` block by block:
//! `dv_s = sum_t p_ts do_t`, `ds = p (do v^T - rowsum(do o))`, `dq = ds k / sqrt(D)`, `dk = ds^T q / sqrt(D)`.
//! One task owns one key/value head of one row, so every sum has a fixed order.

mod gpu;

use super::rope::Heads;
use crate::device::Device;
use crate::device::cpu::{Mat, SharedMut, Threads, WriteMode, dot, matmul_into, max_of, simd};
use crate::for_float;
use crate::tensor::{Arena, Float, Tensor};
pub use gpu::{flash_smem_bytes, flash_width};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a block.
const BLOCK_T: usize = 64;
/// Keys of a block: 64 x 128 f32 scores are 32 KiB.
const BLOCK_S: usize = 128;

/// Which keys a query may see besides causality.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Most keys a query sees, itself included.
    pub window: Option<usize>,
    /// `[B, T]`: where in its row the document of each token begins; never decreasing within a row.
    pub doc_start: Option<Tensor>,
}

impl Mask {
    /// The same with the document starts in reach, on the host.
    fn view(&self) -> MaskView<'_> {
        MaskView { window: self.window, doc_start: self.doc_start.as_ref().map(|starts| starts.as_slice()) }
    }
}

#[derive(Clone, Copy)]
struct MaskView<'a> {
    window: Option<usize>,
    doc_start: Option<&'a [u32]>,
}

impl MaskView<'_> {
    /// First key that query `t` of row `b` sees; `t_len` queries a row.
    fn first_key(&self, b: usize, t: usize, t_len: usize) -> usize {
        let by_window = self.window.map_or(0, |w| (t + 1).saturating_sub(w));
        let by_document = self.doc_start.map_or(0, |starts| starts[b * t_len + t] as usize);
        by_window.max(by_document)
    }
}

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    /// `[B T, (H + 2G) D]`, rotated.
    pub qkv: Tensor,
    /// `[B T, H D]`.
    pub out: Tensor,
    /// `[B, H, T]`, accumulator type.
    pub lse: Tensor,
    pub mask: Mask,
}

/// Keys and values of one head in some buffer: row `s` starts at `s * row_stride`.
#[derive(Clone, Copy)]
struct Rows<'a, F> {
    data: &'a [F],
    row_stride: usize,
}

impl<'a, F> Rows<'a, F> {
    fn new(data: &'a [F], start: usize, row_stride: usize) -> Rows<'a, F> {
        Rows { data: &data[start..], row_stride }
    }

    fn block(self, rows: &Range<usize>, d: usize) -> Mat<'a, F> {
        Mat::strided(&self.data[rows.start * self.row_stride..], rows.len(), d, self.row_stride)
    }

    fn row(self, i: usize, d: usize) -> &'a [F] {
        &self.data[i * self.row_stride..][..d]
    }
}

/// `qkv [B T, (H + 2G) D]` -> `[B T, H D]`, with rows of `t` tokens.
pub fn forward(arena: &Arena, qkv: &Tensor, heads: Heads, t: usize, mask: Mask) -> (Tensor, Saved) {
    let [n, row] = qkv.shape().rows_cols();
    let (Heads { h, g, d }, b) = (heads, n / t);
    assert!(n % t == 0 && row == heads.row_elems() && h % g == 0, "attention of {:?} by {heads:?}", qkv.shape());
    if qkv.device() != Device::Cpu {
        return gpu::forward(arena, qkv, heads, t, mask);
    }
    let wide = qkv.dtype().accumulator();
    let qkv_wide = qkv.cast(arena, wide);
    let mut out = Tensor::uninit(arena, [n, h * d], wide);
    let mut lse = Tensor::uninit(arena, [b, h, t], wide);
    for_float!(wide, F => {
        let (packed, mask) = (qkv_wide.as_slice::<F>(), mask.view());
        let out = SharedMut::new(out.as_mut_slice::<F>());
        lse.as_mut_slice::<F>().par_chunks_mut(t).enumerate().for_each(|(i, lse)| {
            let (b, head) = (i / h, i % h);
            let (base, group) = (b * t * row, head / (h / g));
            let q = Rows::new(packed, base + head * d, row);
            let k = Rows::new(packed, base + (h + group) * d, row);
            let v = Rows::new(packed, base + (h + g + group) * d, row);
            let first_key = |query: usize| mask.first_key(b, query, t);
            forward_head(&out, b * t * h * d + head * d, h * d, lse, q, k, v, t, d, &first_key);
        })
    });
    drop(qkv_wide);
    let out = out.cast(arena, qkv.dtype());
    (out.clone(), Saved { qkv: qkv.clone(), out, lse, mask })
}

/// One query head: writes `t` rows of `out` (first at `out_start`, `out_stride` apart) and their `lse`.
#[allow(clippy::too_many_arguments)] // the three operands, where the result goes, and the extents
fn forward_head<F: Float>(
    out: &SharedMut<F>,
    out_start: usize,
    out_stride: usize,
    lse: &mut [F],
    q: Rows<F>,
    k: Rows<F>,
    v: Rows<F>,
    t: usize,
    d: usize,
    first_key: &dyn Fn(usize) -> usize,
) {
    let scale = F::from_f64(1.0 / (d as f64).sqrt());
    let mut scores = vec![F::ZERO; BLOCK_T.min(t) * BLOCK_S.min(t)];
    let mut acc = vec![F::ZERO; BLOCK_T.min(t) * d];
    for queries in blocks(0..t, BLOCK_T) {
        let rows = queries.len();
        let acc = &mut acc[..rows * d];
        acc.fill(F::ZERO);
        let (mut peak, mut sum) = ([F::NEG_INFINITY; BLOCK_T], [F::ZERO; BLOCK_T]);
        for keys in blocks(first_key(queries.start)..queries.end, BLOCK_S) {
            let cols = keys.len();
            let scores = &mut scores[..rows * cols];
            product(scores, q.block(&queries, d), k.block(&keys, d).t(), WriteMode::Overwrite);
            simd(
                #[inline(always)]
                || {
                    for (i, row) in scores.chunks_exact_mut(cols).enumerate() {
                        let seen = visible(first_key, queries.start + i, &keys);
                        let correction = softmax_step(row, seen, scale, &mut peak[i], &mut sum[i]);
                        acc[i * d..(i + 1) * d].iter_mut().for_each(|a| *a *= correction);
                    }
                },
            );
            product(acc, Mat::new(scores, rows, cols), v.block(&keys, d), WriteMode::Accumulate);
        }
        for i in 0..rows {
            let (query, inverse) = (queries.start + i, F::ONE / sum[i]);
            // SAFETY: this task alone writes its head's columns of its row's tokens.
            let to = unsafe { out.slice(out_start + query * out_stride, d) };
            to.iter_mut().zip(&acc[i * d..]).for_each(|(o, &a)| *o = a * inverse);
            lse[query] = peak[i] + sum[i].ln();
        }
    }
}

/// Columns of a key block that a query sees.
#[inline(always)]
fn visible(first_key: &dyn Fn(usize) -> usize, query: usize, keys: &Range<usize>) -> Range<usize> {
    let start = first_key(query).clamp(keys.start, keys.end) - keys.start;
    let end = (query + 1).clamp(keys.start, keys.end) - keys.start;
    start.min(end)..end
}

/// Turns the scores of a row into `exp(score * scale - peak)`, 0 where not seen, and moves `peak` and `sum` on. Returns the
/// factor by which what was summed before shrinks.
#[inline(always)]
fn softmax_step<F: Float>(row: &mut [F], seen: Range<usize>, scale: F, peak: &mut F, sum: &mut F) -> F {
    row[..seen.start].fill(F::ZERO);
    row[seen.end..].fill(F::ZERO);
    let seen = &mut row[seen];
    if seen.is_empty() {
        return F::ONE;
    }
    let new_peak = peak.max(max_of(seen) * scale);
    let correction = (*peak - new_peak).exp();
    for s in seen.iter_mut() {
        *s = s.mul_add(scale, -new_peak).exp();
    }
    let added = crate::device::cpu::sum_zip(seen, seen, |x, _, acc| acc + x);
    *sum = *sum * correction + added;
    *peak = new_peak;
    correction
}

/// `dout [B T, H D]` -> `dqkv [B T, (H + 2G) D]`.
pub fn backward(arena: &Arena, dout: &Tensor, heads: Heads, t: usize, saved: &Saved) -> Tensor {
    if dout.device() != Device::Cpu {
        return gpu::backward(arena, dout, heads, t, saved);
    }
    let [n, row] = saved.qkv.shape().rows_cols();
    let (g, b) = (heads.g, n / t);
    let wide = dout.dtype().accumulator();
    let (qkv, out, dout_wide) = (saved.qkv.cast(arena, wide), saved.out.cast(arena, wide), dout.cast(arena, wide));
    let mut dqkv = Tensor::zeros(arena, [n, row], wide);
    for_float!(wide, F => {
        let shared = SharedMut::new(dqkv.as_mut_slice::<F>());
        let head = HeadBackward {
            heads,
            t,
            qkv: qkv.as_slice::<F>(),
            out: out.as_slice(),
            dout: dout_wide.as_slice(),
            lse: saved.lse.as_slice(),
            mask: saved.mask.view(),
        };
        (0..b * g).into_par_iter().for_each(|i| head.run(&shared, i / g, i % g))
    });
    dqkv.cast(arena, dout.dtype())
}

/// The operands of backward, one type for all heads.
struct HeadBackward<'a, F> {
    heads: Heads,
    t: usize,
    qkv: &'a [F],
    out: &'a [F],
    dout: &'a [F],
    lse: &'a [F],
    mask: MaskView<'a>,
}

impl<F: Float> HeadBackward<'_, F> {
    /// Gradients of key/value head `group` of row `b` and of the query heads that read it.
    fn run(&self, dqkv: &SharedMut<F>, b: usize, group: usize) {
        let (Heads { h, g, d }, t, row) = (self.heads, self.t, self.heads.row_elems());
        let base = b * t * row;
        let (k_at, v_at) = (base + (h + group) * d, base + (h + g + group) * d);
        let (k, v) = (Rows::new(self.qkv, k_at, row), Rows::new(self.qkv, v_at, row));
        let scale = F::from_f64(1.0 / (d as f64).sqrt());
        let block_elems = BLOCK_T.min(t) * BLOCK_S.min(t);
        let (mut p, mut ds) = (vec![F::ZERO; block_elems], vec![F::ZERO; block_elems]);
        for head in group * (h / g)..(group + 1) * (h / g) {
            let q_at = base + head * d;
            let q = Rows::new(self.qkv, q_at, row);
            let out = Rows::new(self.out, b * t * h * d + head * d, h * d);
            let dout = Rows::new(self.dout, b * t * h * d + head * d, h * d);
            let lse = &self.lse[(b * h + head) * t..][..t];
            for queries in blocks(0..t, BLOCK_T) {
                let rows = queries.len();
                let mut delta = [F::ZERO; BLOCK_T];
                for (delta, query) in delta.iter_mut().zip(queries.clone()) {
                    *delta = simd(
                        #[inline(always)]
                        || dot(dout.row(query, d), out.row(query, d)),
                    );
                }
                let first_key = |query: usize| self.mask.first_key(b, query, t);
                for keys in blocks(first_key(queries.start)..queries.end, BLOCK_S) {
                    let cols = keys.len();
                    let (p, ds) = (&mut p[..rows * cols], &mut ds[..rows * cols]);
                    product(p, q.block(&queries, d), k.block(&keys, d).t(), WriteMode::Overwrite);
                    product(ds, dout.block(&queries, d), v.block(&keys, d).t(), WriteMode::Overwrite);
                    simd(
                        #[inline(always)]
                        || {
                            for (i, (p, ds)) in p.chunks_exact_mut(cols).zip(ds.chunks_exact_mut(cols)).enumerate() {
                                let seen = visible(&first_key, queries.start + i, &keys);
                                p[..seen.start].fill(F::ZERO);
                                ds[..seen.start].fill(F::ZERO);
                                p[seen.end..].fill(F::ZERO);
                                ds[seen.end..].fill(F::ZERO);
                                let (lse, delta) = (lse[queries.start + i], delta[i]);
                                for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
                                    *p = p.mul_add(scale, -lse).exp();
                                    *ds = *p * (*ds - delta) * scale;
                                }
                            }
                        },
                    );
                    let (p, ds) = (Mat::new(p, rows, cols), Mat::new(ds, rows, cols));
                    let at =
                        |start: usize, range: &Range<usize>| dqkv.mat(start + range.start * row, range.len(), d, row);
                    // SAFETY: this task alone writes the columns of its key/value head and of the query heads that read
                    // it, for the tokens of its row; the three outputs are different columns.
                    unsafe {
                        let (one, add) = (Threads::One, WriteMode::Accumulate);
                        matmul_into(at(v_at, &keys), p.t(), dout.block(&queries, d), add, one);
                        matmul_into(at(q_at, &queries), ds, k.block(&keys, d), add, one);
                        matmul_into(at(k_at, &keys), ds.t(), q.block(&queries, d), add, one);
                    }
                }
            }
        }
    }
}

/// `c = a b` or `c += a b` within one task, `c` contiguous.
fn product<F: Float>(c: &mut [F], a: Mat<F>, b: Mat<F>, mode: WriteMode) {
    crate::device::cpu::matmul(c, a, b, mode, Threads::One);
}

/// `range` in pieces of at most `size`.
fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..(start + size).min(end))
}

/// Forward in plain loops, all heads: `qkv [B T, (H + 2G) D]` -> `[B T, H D]`.
pub fn reference(qkv: &[f64], heads: Heads, t: usize, mask: &Mask) -> Vec<f64> {
    let (Heads { h, g, d }, row, mask) = (heads, heads.row_elems(), mask.view());
    let n = qkv.len() / row;
    let mut out = vec![0.0; n * h * d];
    for i in 0..n {
        let (b, query) = (i / t, i % t);
        for head in 0..h {
            let group = head / (h / g);
            let at = |key: usize, part: usize| &qkv[(b * t + key) * row + part * d..][..d];
            let q = at(query, head);
            let keys = mask.first_key(b, query, t)..query + 1;
            let score =
                |key: usize| at(key, h + group).iter().zip(q).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
            let peak = keys.clone().map(score).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = keys.clone().map(|key| (score(key) - peak).exp()).sum();
            for key in keys {
                let p = (score(key) - peak).exp() / total;
                for (o, v) in out[i * h * d + head * d..][..d].iter_mut().zip(at(key, h + g + group)) {
                    *o += p * v;
                }
            }
        }
    }
    out
}
