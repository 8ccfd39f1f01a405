//! LM head and cross-entropy in one op: `l = cap(x W^T)`, `loss_n = log sum exp l_n - l_n[target_n]`.
//!
//! Rows are taken in chunks, so all `N x V` logits never exist at once. In training the gradients are formed in the
//! same pass (the loss is a leaf whose factor is known beforehand), so no logit is computed twice:
//! `dl = grad_scale (softmax(l) - onehot) (1 - (l / cap)^2)`, `dx = dl W`, `dW += dl^T x`. Backward then only hands `dx` on.

use super::softcap::{cap_slope, cap_value};
use crate::device::Device;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul, max_of, simd, sum_zip};
use crate::for_float;
use crate::tensor::{Arena, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// A target that counts for nothing.
pub const IGNORE: u32 = u32::MAX;

/// Elements of one chunk of logits: 8 MiB of f32, inside the last-level cache of most machines.
const CHUNK_ELEMS: usize = 2 << 20;

/// Rows of logits that exist at once for a vocabulary of `v`.
pub fn chunk_rows(v: usize) -> usize {
    (CHUNK_ELEMS / v.max(1)).clamp(16, 4096)
}

/// How gradients are formed.
pub struct Gradients<'a> {
    /// Factor of every row's loss in the total.
    pub scale: f64,
    /// `[V, C]`, added to.
    pub dweight: TensorMut<'a>,
}

/// `x [N, C]`, `weight [V, C]`, `targets [N]` -> losses `[N]` in nats (accumulator type, 0 where ignored) and, where
/// `gradients` asks for it, `dx [N, C]`.
///
/// # Panics
/// If a target is neither below `V` nor [`IGNORE`].
pub fn forward(
    arena: &Arena,
    x: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    softcap: Option<f64>,
    mut gradients: Option<Gradients>,
) -> (Tensor, Option<Tensor>) {
    let Device::Cpu = x.device();
    let ([n, c], [v, _]) = (x.shape().rows_cols(), weight.dims());
    assert_eq!(targets.len(), n, "targets");
    assert!(targets.iter().all(|&t| t == IGNORE || (t as usize) < v), "target beyond a vocabulary of {v}");
    let wide = x.dtype().accumulator();
    let (xw, ww) = (x.cast(arena, wide), weight.cast(arena, wide));
    let mut losses = Tensor::uninit(arena, [n], wide);
    let mut dx = gradients.is_some().then(|| Tensor::uninit(arena, [n, c], wide));
    let rows = chunk_rows(v).min(n);
    let mut logits = Tensor::uninit(arena, [rows, v], wide);
    for_float!(wide, F => {
        let (x, w) = (xw.as_slice::<F>(), Mat::new(ww.as_slice::<F>(), v, c));
        let cap = softcap.map(F::from_f64);
        let scale = gradients.as_ref().map(|g| F::from_f64(g.scale));
        for start in (0..n).step_by(rows) {
            let chunk = start..(start + rows).min(n);
            let logits = &mut logits.as_mut_slice::<F>()[..chunk.len() * v];
            let x = Mat::new(&x[chunk.start * c..chunk.end * c], chunk.len(), c);
            matmul(logits, x, w.t(), WriteMode::Overwrite, Threads::All);
            let losses = &mut losses.as_mut_slice::<F>()[chunk.clone()];
            logits.par_chunks_mut(v).zip(losses).zip(&targets[chunk.clone()]).with_min_len(4).for_each(
                |((row, loss), &target)| {
                    *loss = simd(
                        #[inline(always)]
                        || loss_row(row, target, cap, scale),
                    );
                },
            );
            if let (Some(gradients), Some(dx)) = (&mut gradients, &mut dx) {
                let dl = Mat::new(logits, chunk.len(), v);
                let dx = &mut dx.as_mut_slice::<F>()[chunk.start * c..chunk.end * c];
                matmul(dx, dl, w, WriteMode::Overwrite, Threads::All);
                matmul(gradients.dweight.as_mut_slice(), dl.t(), x, WriteMode::Accumulate, Threads::All);
            }
        }
    });
    let dx = dx.map(|dx| dx.cast(arena, x.dtype()));
    (losses, dx)
}

/// The loss of a row of logits; with `scale` the row becomes the gradient of the logits before the soft-cap.
#[inline(always)]
fn loss_row<F: Float>(row: &mut [F], target: u32, cap: Option<F>, scale: Option<F>) -> F {
    if target == IGNORE {
        row.fill(F::ZERO);
        return F::ZERO;
    }
    if let Some(cap) = cap {
        row.iter_mut().for_each(|l| *l = cap_value(*l, cap));
    }
    let (peak, at_target) = (max_of(row), row[target as usize]);
    let Some(scale) = scale else {
        let sum: F = sum_zip(row, row, |l, _, acc: F| acc + (l - peak).exp());
        return sum.ln() + peak - at_target;
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
    sum.ln() + peak - at_target
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
