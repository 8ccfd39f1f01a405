//! LM head and cross-entropy in one op: `l = cap(x W^T)`, `loss_n = log sum exp l_n - l_n[target_n]`; on request `l = cap(x W^T + x' U^T)`, `x'` of
//! few columns.
//!
//! Rows are taken in chunks, so all `N x V` logits never exist at once. In training the gradients are formed in the
//! same pass (the loss is a leaf whose factor is known beforehand), so no logit is computed twice:
//! `dl = grad_scale (softmax(l) - onehot) (1 - (l / cap)^2)`, `dx = dl W`, `dW += dl^T x`, `dx' = dl U`, `dU += dl^T x'`. Backward then only hands
//! `dx` and `dx'` on.
//! On request the same pass says of each row whether another token's logit is above the target's.

use super::softcap::{cap_slope, cap_value};
use crate::device::Device;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul, max_of, simd, sum_zip};
use crate::device::gemm::{Operand, gemm};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut};
use crate::device::packed::{self, PackedWeight};
use crate::for_float;
use crate::tensor::{Arena, DType, Float, Scale, Tensor, TensorMut};
use rayon::prelude::*;

/// A target that counts for nothing.
pub const IGNORE: u32 = u32::MAX;

/// Elements of one chunk of logits on the CPU: 8 MiB of f32, inside the last-level cache of most machines.
const CHUNK_ELEMS: usize = 2 << 20;
/// On a GPU: 256 MiB of f32, so that a chunk has tiles for all multiprocessors, and the gradient of the head, which every chunk
/// reads and writes as a whole, is a small part of what is moved.
const GPU_CHUNK_ELEMS: usize = 64 << 20;

/// Rows of logits that exist at once for a vocabulary of `v`.
pub fn chunk_rows(v: usize, on_gpu: bool) -> usize {
    let elems = if on_gpu { GPU_CHUNK_ELEMS } else { CHUNK_ELEMS };
    (elems / v.max(1)).clamp(16, elems >> 9)
}

/// What logits are made of.
pub struct Operands<'a> {
    /// `[N, C]`.
    pub x: &'a Tensor,
    /// `[V, C]`.
    pub weight: &'a Tensor,
    pub low_rank: Option<LowRank<'a>>,
    pub softcap: Option<f64>,
}

/// A product of low rank that is added to the logits before the soft-cap.
pub struct LowRank<'a> {
    /// `x' [N, r]`.
    pub x: &'a Tensor,
    /// `U [V, r]`.
    pub codes: &'a Tensor,
    /// `[V, r]`, added to, where the codes are learnt and gradients are formed.
    pub dcodes: Option<TensorMut<'a>>,
}

/// How gradients are formed.
pub struct Gradients<'a> {
    /// Factor of every row's loss in the total.
    pub scale: Scale,
    /// `[V, C]`, added to.
    pub dweight: TensorMut<'a>,
}

/// What is told of each row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    Losses,
    /// Also whether the likeliest token is another than the target.
    LossesAndErrors,
}

/// What a pass comes to.
pub struct Judged {
    /// `[N]`, in nats, accumulator type; 0 where ignored.
    pub losses: Tensor,
    /// `[N]`, accumulator type, where asked for: 1 where a logit is above the target's, 0 elsewhere and where ignored.
    pub errors: Option<Tensor>,
    /// `[N, C]`, where gradients are asked for.
    pub dx: Option<Tensor>,
    /// `[N, r]`, where gradients are asked for and there is a product of low rank.
    pub dx_low: Option<Tensor>,
}

/// `x [N, C]`, `weight [V, C]`, `targets [N]` -> losses `[N]` in nats (accumulator type, 0 where ignored) and, where
/// `gradients` asks for it, `dx [N, C]`.
///
/// # Panics
/// On the CPU, if a target is neither below `V` nor [`IGNORE`]; on a GPU its loss is NaN.
pub fn forward(
    arena: &Arena,
    x: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    softcap: Option<f64>,
    gradients: Option<Gradients>,
) -> (Tensor, Option<Tensor>) {
    let rows = chunk_rows(weight.dims::<2>()[0], x.device().is_gpu());
    forward_in_chunks(arena, x, weight, targets, softcap, gradients, rows)
}

/// [`forward`] with at most `rows` rows of logits at once.
///
/// # Panics
/// As [`forward`].
pub fn forward_in_chunks(
    arena: &Arena,
    x: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    softcap: Option<f64>,
    gradients: Option<Gradients>,
    rows: usize,
) -> (Tensor, Option<Tensor>) {
    let operands = Operands { x, weight, low_rank: None, softcap };
    let Judged { losses, dx, .. } = judge(arena, operands, targets, gradients, rows, Report::Losses);
    (losses, dx)
}

/// [`forward_in_chunks`] of these operands, which also says where the likeliest token is wrong if `report` asks for it.
///
/// # Panics
/// As [`forward`].
pub fn judge(
    arena: &Arena,
    operands: Operands,
    targets: &Tensor,
    mut gradients: Option<Gradients>,
    rows: usize,
    report: Report,
) -> Judged {
    let ([n, c], [v, _]) = (operands.x.shape().rows_cols(), operands.weight.dims());
    assert_eq!(targets.elems(), n, "targets");
    let rows = rows.min(n);
    if let Device::Gpu(gpu) = operands.x.device() {
        return launch_forward(gpu, arena, operands, targets, gradients, rows, report);
    }
    let Operands { x, weight, mut low_rank, softcap } = operands;
    let targets = targets.as_slice::<u32>();
    assert!(targets.iter().all(|&t| t == IGNORE || (t as usize) < v), "target beyond a vocabulary of {v}");
    let wide = x.dtype().accumulator();
    let (xw, ww) = (x.cast(arena, wide), weight.cast(arena, wide));
    let low_wide = low_rank.as_ref().map(|low| [low.x.cast(arena, wide), low.codes.cast(arena, wide)]);
    let [mut losses, mut errors] = [(); 2].map(|()| Tensor::uninit(arena, [n], wide));
    let of_rows = |cols: usize| Tensor::uninit(arena, [n, cols], wide);
    let mut dx = gradients.is_some().then(|| of_rows(c));
    let mut dx_low = low_wide.as_ref().filter(|_| gradients.is_some()).map(|[x, _]| of_rows(x.shape().rows_cols()[1]));
    let mut logits = Tensor::uninit(arena, [rows, v], wide);
    for_float!(wide, F => {
        let (x, w) = (xw.as_slice::<F>(), Mat::new(ww.as_slice::<F>(), v, c));
        let low = low_wide.as_ref().map(|[x, codes]| (x.as_slice::<F>(), codes.as_slice::<F>(), codes.dims::<2>()[1]));
        let cap = softcap.map(F::from_f64);
        let scale = gradients.as_ref().map(|g| F::from_f64(g.scale.value()));
        for start in (0..n).step_by(rows) {
            let chunk = start..(start + rows).min(n);
            let logits = &mut logits.as_mut_slice::<F>()[..chunk.len() * v];
            let x = Mat::new(&x[chunk.start * c..chunk.end * c], chunk.len(), c);
            matmul(logits, x, w.t(), WriteMode::Overwrite, Threads::All);
            let low = low.map(|(x, codes, r)| {
                (Mat::new(&x[chunk.start * r..chunk.end * r], chunk.len(), r), Mat::new(codes, v, r), r)
            });
            if let Some((x, codes, _)) = low {
                matmul(logits, x, codes.t(), WriteMode::Accumulate, Threads::All);
            }
            let told = (&mut losses.as_mut_slice()[chunk.clone()], &mut errors.as_mut_slice()[chunk.clone()]);
            loss_rows(logits, &targets[chunk.clone()], told, cap, scale);
            let dl = Mat::new(logits, chunk.len(), v);
            if let (Some(gradients), Some(dx)) = (&mut gradients, &mut dx) {
                let dx = &mut dx.as_mut_slice::<F>()[chunk.start * c..chunk.end * c];
                matmul(dx, dl, w, WriteMode::Overwrite, Threads::All);
                matmul(gradients.dweight.as_mut_slice(), dl.t(), x, WriteMode::Accumulate, Threads::All);
            }
            if let (Some(dx), Some((x, codes, r))) = (&mut dx_low, low) {
                let dx = &mut dx.as_mut_slice::<F>()[chunk.start * r..chunk.end * r];
                matmul(dx, dl, codes, WriteMode::Overwrite, Threads::All);
                if let Some(dcodes) = low_rank.as_mut().and_then(|low| low.dcodes.as_mut()) {
                    matmul(dcodes.as_mut_slice(), dl.t(), x, WriteMode::Accumulate, Threads::All);
                }
            }
        }
    });
    let [dx, dx_low] = [dx, dx_low].map(|dx| dx.map(|dx| dx.cast(arena, x.dtype())));
    Judged { losses, errors: (report == Report::LossesAndErrors).then_some(errors), dx, dx_low }
}

/// [`judge`] with a packed head `[V, C]`, on the processor, without gradients and a product of low rank.
///
/// # Panics
/// As [`forward`].
pub fn judge_packed(
    arena: &Arena,
    x: &Tensor,
    head: PackedWeight,
    targets: &Tensor,
    softcap: Option<f64>,
    report: Report,
) -> Judged {
    let ([n, c], [v, _]) = (x.shape().rows_cols(), head.matrices[0].dims());
    let targets = targets.as_slice::<u32>();
    assert!(targets.len() == n && targets.iter().all(|&t| t == IGNORE || (t as usize) < v), "{n} targets below {v}");
    let rows = chunk_rows(v, false).min(n);
    let x = x.cast(arena, DType::F32);
    let [mut losses, mut errors] = [(); 2].map(|()| Tensor::uninit(arena, [n], DType::F32));
    let mut logits = Tensor::uninit(arena, [rows, v], DType::F32);
    for start in (0..n).step_by(rows) {
        let chunk = start..(start + rows).min(n);
        let logits = &mut logits.as_mut_slice::<f32>()[..chunk.len() * v];
        let x = &x.as_slice::<f32>()[chunk.start * c..chunk.end * c];
        packed::product(logits, x, head, WriteMode::Overwrite);
        let told = (&mut losses.as_mut_slice()[chunk.clone()], &mut errors.as_mut_slice()[chunk.clone()]);
        loss_rows(logits, &targets[chunk], told, softcap.map(|cap| cap as f32), None);
    }
    let errors = (report == Report::LossesAndErrors).then_some(errors);
    Judged { losses, errors, dx: None, dx_low: None }
}

/// [`loss_row`] of all rows of `logits`, told in slices of as many losses and errors.
fn loss_rows<F: Float>(
    logits: &mut [F],
    targets: &[u32],
    (losses, errors): (&mut [F], &mut [F]),
    cap: Option<F>,
    scale: Option<F>,
) {
    let v = logits.len() / targets.len();
    let told = losses.par_iter_mut().zip(errors);
    logits.par_chunks_mut(v).zip(told).zip(targets).with_min_len(4).for_each(|((row, (loss, error)), &target)| {
        (*loss, *error) = simd(
            #[inline(always)]
            || loss_row(row, target, cap, scale),
        );
    });
}

/// The loss of a row of logits, and whether one is above the target's; with `scale` the row becomes the gradient of the logits
/// before the soft-cap.
#[inline(always)]
fn loss_row<F: Float>(row: &mut [F], target: u32, cap: Option<F>, scale: Option<F>) -> (F, F) {
    if target == IGNORE {
        row.fill(F::ZERO);
        return (F::ZERO, F::ZERO);
    }
    if let Some(cap) = cap {
        row.iter_mut().for_each(|l| *l = cap_value(*l, cap));
    }
    let (peak, at_target) = (max_of(row), row[target as usize]);
    let error = if peak > at_target { F::ONE } else { F::ZERO };
    let Some(scale) = scale else {
        let sum: F = sum_zip(row, row, |l, _, acc: F| acc + (l - peak).exp());
        return (sum.ln() + peak - at_target, error);
    };
    let sum: F = match cap {
        None => {
            row.iter_mut().for_each(|l| *l = (*l - peak).exp());
            sum_zip(row, row, |p, _, acc: F| acc + p)
        }
        Some(_) => sum_zip(row, row, |l, _, acc: F| acc + (l - peak).exp()),
    };
    let factor = scale / sum;
    match cap {
        None => row.iter_mut().for_each(|p| *p *= factor),
        Some(cap) => row.iter_mut().for_each(|l| *l = (*l - peak).exp() * factor * cap_slope(*l, cap)),
    }
    row[target as usize] -= scale * cap.map_or(F::ONE, |cap| cap_slope(at_target, cap));
    (sum.ln() + peak - at_target, error)
}

fn launch_forward(
    gpu: &Gpu,
    arena: &Arena,
    operands: Operands,
    targets: &Tensor,
    mut gradients: Option<Gradients>,
    rows: usize,
    report: Report,
) -> Judged {
    let Operands { x, weight, mut low_rank, softcap } = operands;
    let ([n, c], [v, _], dtype) = (x.shape().rows_cols(), weight.dims(), x.dtype());
    let mut losses = Tensor::uninit(arena, [n], DType::F32);
    let mut errors = (report == Report::LossesAndErrors).then(|| Tensor::uninit(arena, [n], DType::F32));
    let mut dx = gradients.is_some().then(|| Tensor::uninit(arena, [n, c], dtype));
    let rank = low_rank.as_ref().map(|low| low.codes.dims::<2>()[1]);
    let mut dx_low = rank.filter(|_| gradients.is_some()).map(|r| Tensor::uninit(arena, [n, r], dtype));
    let mut logits = Tensor::uninit(arena, [rows * v], DType::F32);
    // f32 gradients replace their logits.
    let mut narrow = (gradients.is_some() && dtype == DType::Bf16).then(|| Tensor::uninit(arena, [rows * v], dtype));
    let (cap, weight) = (softcap.unwrap_or(0.0) as f32, Operand::new(weight, v, c));
    let scale = gradients.as_ref().map(|gradients| gradients.scale.on_gpu(arena));
    for start in (0..n).step_by(rows) {
        let count = rows.min(n - start);
        let x = Operand::new(&x.view(start * c, [count, c]), count, c);
        let targets = targets.view(start, [count]);
        gemm(arena, &mut logits.view_mut(0, [count, v]), x, weight.t(), WriteMode::Overwrite);
        let low_here = low_rank.as_ref().zip(rank).map(|(low, r)| (low.x.view(start * r, [count, r]), low.codes, r));
        if let Some((x, codes, r)) = &low_here {
            let (x, codes) = (Operand::new(x, count, *r), Operand::new(codes, v, *r));
            gemm(arena, &mut logits.view_mut(0, [count, v]), x, codes.t(), WriteMode::Accumulate);
        }
        let (z, grid) = (logits.alias(), Grid::linear(count));
        let mut losses = losses.view_mut(start, [count]);
        let mut errors = errors.as_mut().map(|errors| errors.view_mut(start, [count]));
        let error = errors.as_mut().map_or(PtrMut::none(), |errors| errors.ptr_mut());
        let scale = scale.as_ref().map_or(Ptr::none(), |scale| scale.ptr());
        if let Some(narrow) = &mut narrow {
            let (loss, dlogits) = (losses.ptr_mut(), narrow.ptr_mut());
            launch::lm_loss_fwd_block_per_row_bf16(
                gpu,
                grid,
                loss,
                error,
                dlogits,
                z.ptr(),
                targets.ptr(),
                scale,
                cap,
                v,
            );
        } else {
            let dlogits = if gradients.is_some() { logits.ptr_mut() } else { PtrMut::none() };
            let loss = losses.ptr_mut();
            launch::lm_loss_fwd_block_per_row_f32(
                gpu,
                grid,
                loss,
                error,
                dlogits,
                z.ptr(),
                targets.ptr(),
                scale,
                cap,
                v,
            );
        }
        let (Some(gradients), Some(dx)) = (&mut gradients, &mut dx) else { continue };
        let dlogits = narrow.as_ref().unwrap_or(&logits).view(0, [count, v]);
        let dl = Operand::new(&dlogits, count, v);
        gemm(arena, &mut dx.view_mut(start * c, [count, c]), dl, weight, WriteMode::Overwrite);
        gemm(arena, &mut gradients.dweight, dl.t(), x, WriteMode::Accumulate);
        if let (Some(dx), Some((x, codes, r))) = (&mut dx_low, &low_here) {
            gemm(arena, &mut dx.view_mut(start * r, [count, *r]), dl, Operand::new(codes, v, *r), WriteMode::Overwrite);
            if let Some(dcodes) = low_rank.as_mut().and_then(|low| low.dcodes.as_mut()) {
                gemm(arena, dcodes, dl.t(), Operand::new(x, count, *r), WriteMode::Accumulate);
            }
        }
    }
    Judged { losses, errors, dx, dx_low }
}

/// Losses in plain loops.
pub fn reference(x: &[f64], weight: &[f64], c: usize, targets: &[u32], softcap: Option<f64>) -> Vec<f64> {
    let logits = super::linear::reference(x, weight, c);
    let logits = softcap.map_or(logits.clone(), |cap| super::softcap::reference(&logits, cap));
    let rows = logits.chunks(weight.len() / c).zip(targets);
    rows.map(
        |(row, &target)| {
            if target == IGNORE { 0.0 } else { row.iter().map(|l| l.exp()).sum::<f64>().ln() - row[target as usize] }
        },
    )
    .collect()
}
