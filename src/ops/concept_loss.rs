//! Concept head: cross-entropy between what comes soon, as a bag, and the softmax over all concepts.
//!
//! `l_c = b_c + <x, U_c>`; target of a selected token t: `q(c) = sum over j of idf(c_j) [c_j = c] / sum of idf(c_j)` over the window
//! `c_j`, the concepts of tokens `t + 2 .. t + 1 + W` of its row and document. `loss = log sum exp l - sum_c q(c) l_c`; an empty
//! window counts for nothing. Rows are taken in chunks, and gradients are formed in the same pass, as in `lm_loss`:
//! `dl = scale (softmax(l) - q)`, `dx = dl U`, `dU += dl^T x`; `b` is fixed.

use super::lm_loss::{IGNORE, chunk_rows};
use super::select_rows::Stride;
use crate::device::Device;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul, max_of, simd, sum_zip};
use crate::device::gemm::{Operand, gemm};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut};
use crate::for_float;
use crate::tensor::{Arena, DType, Float, Scale, Tensor, TensorMut};
use rayon::prelude::*;

/// Where targets come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Windows {
    pub stride: Stride,
    /// Tokens of a window, `W`.
    pub window: usize,
    /// A token's concept is its id modulo this.
    pub concepts: usize,
}

/// Widest window of the kernels: a thread for each token of it.
pub const WINDOW_MAX: usize = 32;

impl Windows {
    /// The window of the selected token number `m`: concepts, [`IGNORE`] where there is none.
    fn of(self, m: usize, tokens: &[u32], doc_start: Option<&[u32]>) -> impl Iterator<Item = u32> {
        let n = self.stride.row(m);
        let end = (n / self.stride.t + 1) * self.stride.t;
        (0..self.window).map(move |j| n + 2 + j).map(move |at| {
            let is_inside = at < end && doc_start.is_none_or(|doc_start| doc_start[at] == doc_start[n]);
            if is_inside { tokens[at] % self.concepts as u32 } else { IGNORE }
        })
    }

    /// Windows that are not empty: what the mean loss is divided by.
    pub fn counted(self, tokens: &[u32], doc_start: Option<&[u32]>) -> usize {
        let is_full = |&m: &usize| self.of(m, tokens, doc_start).any(|c| c != IGNORE);
        (0..self.stride.count(tokens.len())).filter(is_full).count()
    }

    /// `[M, W]`: the windows of `tokens [N]`, documents apart where their beginnings `[N]` are given.
    pub fn gather(self, arena: &Arena, tokens: &Tensor, doc_start: Option<&Tensor>) -> Tensor {
        let m = self.stride.count(tokens.elems());
        let mut ids = Tensor::uninit(arena, [m, self.window], DType::U32);
        if let Device::Gpu(gpu) = tokens.device() {
            let (window, per_row) = (self.window, self.stride.per_row());
            let Stride { t, first, every } = self.stride;
            launch::concept_loss_fwd_windows_u32(
                gpu,
                Grid::over(m * window, 256),
                ids.ptr_mut(),
                tokens.ptr(),
                doc_start.map_or(Ptr::none(), |doc_start| doc_start.ptr()),
                self.concepts,
                window,
                per_row,
                t,
                first,
                every,
                m,
            );
            return ids;
        }
        let (tokens, doc_start) = (tokens.as_slice::<u32>(), doc_start.map(Tensor::as_slice::<u32>));
        for (m, ids) in ids.as_mut_slice::<u32>().chunks_exact_mut(self.window).enumerate() {
            ids.iter_mut().zip(self.of(m, tokens, doc_start)).for_each(|(id, concept)| *id = concept);
        }
        ids
    }
}

/// The tables of all concepts.
#[derive(Clone, Copy)]
pub struct Concepts<'a> {
    /// `U [Nc, R]`.
    pub codes: &'a Tensor,
    /// `b [Nc]`, in the accumulator type, as `idf [Nc]`.
    pub bias: &'a Tensor,
    pub idf: &'a Tensor,
}

/// How gradients are formed.
pub struct Gradients<'a> {
    /// Factor of every loss in the total.
    pub scale: Scale,
    /// `[Nc, R]`, added to; none where the codes are fixed.
    pub dcodes: Option<TensorMut<'a>>,
}

/// `x [M, R]` and `windows [M, W]` -> losses `[M]` in nats (accumulator type, 0 for empty windows) and, where `gradients` asks for it,
/// `dx [M, R]`.
///
/// # Panics
/// On the CPU, if a window holds what is no concept.
pub fn forward(
    arena: &Arena,
    x: &Tensor,
    concepts: Concepts,
    windows: &Tensor,
    gradients: Option<Gradients>,
) -> (Tensor, Option<Tensor>) {
    let rows = chunk_rows(concepts.codes.dims::<2>()[0], x.device().is_gpu());
    forward_in_chunks(arena, x, concepts, windows, gradients, rows)
}

/// [`forward`] with at most `rows` rows of logits at once.
///
/// # Panics
/// As [`forward`].
pub fn forward_in_chunks(
    arena: &Arena,
    x: &Tensor,
    concepts: Concepts,
    windows: &Tensor,
    mut gradients: Option<Gradients>,
    rows: usize,
) -> (Tensor, Option<Tensor>) {
    let ([m, r], [nc, _], [_, w]) = (x.shape().rows_cols(), concepts.codes.dims(), windows.dims());
    assert!(windows.elems() == m * w && w <= WINDOW_MAX, "windows");
    let rows = rows.min(m.max(1));
    if let Device::Gpu(gpu) = x.device() {
        return launch_forward(gpu, arena, x, concepts, windows, gradients, rows);
    }
    let windows = windows.as_slice::<u32>();
    assert!(windows.iter().all(|&c| c == IGNORE || (c as usize) < nc), "a concept beyond the {nc} there are");
    let wide = x.dtype().accumulator();
    let (xw, uw) = (x.cast(arena, wide), concepts.codes.cast(arena, wide));
    let mut losses = Tensor::uninit(arena, [m], wide);
    let mut dx = gradients.is_some().then(|| Tensor::uninit(arena, [m, r], wide));
    let mut logits = Tensor::uninit(arena, [rows, nc], wide);
    for_float!(wide, F => {
        let (x, u) = (xw.as_slice::<F>(), Mat::new(uw.as_slice::<F>(), nc, r));
        let (bias, idf) = (concepts.bias.as_slice::<F>(), concepts.idf.as_slice::<F>());
        let scale = gradients.as_ref().map(|g| F::from_f64(g.scale.value()));
        for start in (0..m).step_by(rows) {
            let chunk = start..(start + rows).min(m);
            let logits = &mut logits.as_mut_slice::<F>()[..chunk.len() * nc];
            let x = Mat::new(&x[chunk.start * r..chunk.end * r], chunk.len(), r);
            matmul(logits, x, u.t(), WriteMode::Overwrite, Threads::All);
            let losses = &mut losses.as_mut_slice::<F>()[chunk.clone()];
            let windows = windows[chunk.start * w..chunk.end * w].par_chunks(w);
            logits.par_chunks_mut(nc).zip(losses).zip(windows).for_each(|((row, loss), window)| {
                *loss = simd(
                    #[inline(always)]
                    || loss_row(row, bias, window, idf, scale),
                );
            });
            if let (Some(gradients), Some(dx)) = (&mut gradients, &mut dx) {
                let dl = Mat::new(logits, chunk.len(), nc);
                let dx = &mut dx.as_mut_slice::<F>()[chunk.start * r..chunk.end * r];
                matmul(dx, dl, u, WriteMode::Overwrite, Threads::All);
                if let Some(dcodes) = &mut gradients.dcodes {
                    matmul(dcodes.as_mut_slice(), dl.t(), x, WriteMode::Accumulate, Threads::All);
                }
            }
        }
    });
    let dx = dx.map(|dx| dx.cast(arena, x.dtype()));
    (losses, dx)
}

/// The loss of a row of logits without bias; with `scale` the row becomes their gradient.
#[inline(always)]
fn loss_row<F: Float>(row: &mut [F], bias: &[F], window: &[u32], idf: &[F], scale: Option<F>) -> F {
    let concepts = || window.iter().filter(|&&c| c != IGNORE).map(|&c| c as usize);
    let total = concepts().fold(F::ZERO, |sum, c| sum + idf[c]);
    if concepts().next().is_none() {
        row.fill(F::ZERO);
        return F::ZERO;
    }
    row.iter_mut().zip(bias).for_each(|(l, b)| *l += *b);
    let peak = max_of(row);
    let at_targets = concepts().fold(F::ZERO, |sum, c| sum + idf[c] / total * (row[c] - peak));
    let Some(scale) = scale else {
        let sum: F = sum_zip(row, row, |l, _, acc: F| acc + (l - peak).exp());
        return sum.ln() - at_targets;
    };
    row.iter_mut().for_each(|l| *l = (*l - peak).exp());
    let sum: F = sum_zip(row, row, |p, _, acc: F| acc + p);
    let factor = scale / sum;
    row.iter_mut().for_each(|p| *p *= factor);
    concepts().for_each(|c| row[c] -= scale * (idf[c] / total));
    sum.ln() - at_targets
}

fn launch_forward(
    gpu: &Gpu,
    arena: &Arena,
    x: &Tensor,
    concepts: Concepts,
    windows: &Tensor,
    mut gradients: Option<Gradients>,
    rows: usize,
) -> (Tensor, Option<Tensor>) {
    let ([m, r], [nc, _], dtype) = (x.shape().rows_cols(), concepts.codes.dims(), x.dtype());
    let [_, w] = windows.dims();
    let mut losses = Tensor::uninit(arena, [m], DType::F32);
    let mut dx = gradients.is_some().then(|| Tensor::uninit(arena, [m, r], dtype));
    let mut logits = Tensor::uninit(arena, [rows * nc], DType::F32);
    // f32 gradients replace their logits.
    let mut narrow = (gradients.is_some() && dtype == DType::Bf16).then(|| Tensor::uninit(arena, [rows * nc], dtype));
    let codes = Operand::new(concepts.codes, nc, r);
    let scale = gradients.as_ref().map(|gradients| gradients.scale.on_gpu(arena));
    for start in (0..m).step_by(rows) {
        let count = rows.min(m - start);
        let x = Operand::new(&x.view(start * r, [count, r]), count, r);
        let windows = windows.view(start * w, [count * w]);
        gemm(arena, &mut logits.view_mut(0, [count, nc]), x, codes.t(), WriteMode::Overwrite);
        let (z, grid) = (logits.alias(), Grid::linear(count));
        let mut losses = losses.view_mut(start, [count]);
        let scale = scale.as_ref().map_or(Ptr::none(), |scale| scale.ptr());
        macro_rules! run {
            ($kernel:ident, $dlogits:expr) => {
                launch::$kernel(
                    gpu,
                    grid,
                    losses.ptr_mut(),
                    $dlogits,
                    z.ptr(),
                    concepts.bias.ptr(),
                    concepts.idf.ptr(),
                    windows.ptr(),
                    scale,
                    w,
                    nc,
                )
            };
        }
        match &mut narrow {
            Some(narrow) => run!(concept_loss_fwd_block_per_row_bf16, narrow.ptr_mut()),
            None if gradients.is_some() => run!(concept_loss_fwd_block_per_row_f32, logits.ptr_mut()),
            None => run!(concept_loss_fwd_block_per_row_f32, PtrMut::none()),
        }
        if let (Some(gradients), Some(dx)) = (&mut gradients, &mut dx) {
            let dlogits = narrow.as_ref().unwrap_or(&logits).view(0, [count, nc]);
            let dl = Operand::new(&dlogits, count, nc);
            gemm(arena, &mut dx.view_mut(start * r, [count, r]), dl, codes, WriteMode::Overwrite);
            if let Some(dcodes) = &mut gradients.dcodes {
                gemm(arena, dcodes, dl.t(), x, WriteMode::Accumulate);
            }
        }
    }
    (losses, dx)
}

/// Losses in plain loops.
pub fn reference(x: &[f64], codes: &[f64], r: usize, [bias, idf]: [&[f64]; 2], windows: &[u32], w: usize) -> Vec<f64> {
    let logits = super::linear::reference(x, codes, r);
    let rows = logits.chunks(bias.len()).zip(windows.chunks(w));
    rows.map(|(row, window)| {
        let soon: Vec<usize> = window.iter().filter(|&&c| c != IGNORE).map(|&c| c as usize).collect();
        let total: f64 = soon.iter().map(|&c| idf[c]).sum();
        let l = |c: usize| row[c] + bias[c];
        let norm = (0..bias.len()).map(|c| l(c).exp()).sum::<f64>().ln();
        if soon.is_empty() { 0.0 } else { soon.iter().map(|&c| idf[c] / total * (norm - l(c))).sum() }
    })
    .collect()
}
