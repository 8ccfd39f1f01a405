//! The energy head's contrast of true latents with generated ones, and the retrieval score among those of other documents.
//!
//! Contrast, of a row's query `q`, keys `good` and `bad` and bias `b`: `E(k) = -<q, k> / sqrt(d) - b`,
//! `loss = weight (softplus(E(good)) + softplus(-E(bad)))`: least where `-E` is the log odds of true against generated.
//!
//! Retrieve (InfoNCE), of chunk m: its own key against those of other documents among the 256 chunks after it, the first following the
//! last: `loss = log sum_c exp(<q_m, k_c> / sqrt(d)) - <q_m, k_m> / sqrt(d)`; 0 where there is none to tell from.
//!
//! A chunk counts where it has a context ([`Contexts`](super::energy_score::Contexts)). Gradients are formed in the same pass (leaves, as
//! `lm_loss`).

use super::energy_score::SAMPLES;
use super::lm_loss::IGNORE;
use super::sigmoid_gate::sigmoid;
use crate::device::Device;
use crate::device::launch::{Grid, Ptr, PtrMut};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Scale, Tensor};
use rayon::prelude::*;

/// Chunks that one is told from.
pub const REACH: usize = 256;

/// Widest key of the retrieval kernels: four numbers a lane.
pub const KEY_MAX: usize = 128;

/// Rows of a block of the kernels: a warp each.
const BLOCK_ROWS: usize = 8;

/// What is contrasted: `R` rows, four of each chunk.
#[derive(Clone, Copy, Debug)]
pub struct Pair<T> {
    /// `[R, d]`.
    pub q: T,
    /// Key of a true latent, `[R, d]`.
    pub good: T,
    /// Key of a generated one, `[R, d]`.
    pub bad: T,
    /// `[R, 1]`: the bias of each row.
    pub bias: T,
}

/// `documents [R / 4]` -> losses `[R]` (accumulator type), and the gradient of each operand where a factor of each loss in the total
/// is given.
pub fn contrast(
    arena: &Arena,
    pair: Pair<&Tensor>,
    documents: &Tensor,
    weight: f64,
    factor: Option<&Scale>,
) -> (Tensor, Option<Pair<Tensor>>) {
    let ([rows, d], dtype) = (pair.q.shape().rows_cols(), pair.q.dtype());
    assert!(pair.good.elems() == rows * d && pair.bad.elems() == rows * d && pair.bias.elems() == rows, "a pair a row");
    assert_eq!(documents.elems() * SAMPLES, rows, "a document of each four rows");
    let mut losses = Tensor::uninit(arena, [rows], dtype.accumulator());
    let like = |x: &Tensor| Tensor::uninit(arena, x.shape(), dtype);
    let mut to =
        factor.map(|_| Pair { q: like(pair.q), good: like(pair.good), bad: like(pair.bad), bias: like(pair.bias) });
    if let Device::Gpu(gpu) = pair.q.device() {
        let factor = factor.map(|factor| factor.on_gpu(arena));
        macro_rules! run {
            ($kernel:ident) => {{
                let [dq, dgood, dbad, dbias] = match &mut to {
                    Some(Pair { q, good, bad, bias }) => [q, good, bad, bias].map(|to| to.ptr_mut()),
                    None => std::array::from_fn(|_| PtrMut::none()),
                };
                let Pair { q, good, bad, bias } = pair;
                let factor = factor.as_ref().map_or(Ptr::none(), |factor| factor.ptr());
                crate::device::launch::$kernel(
                    gpu,
                    Grid::over(rows, BLOCK_ROWS),
                    losses.ptr_mut(),
                    dq,
                    dgood,
                    dbad,
                    dbias,
                    q.ptr(),
                    good.ptr(),
                    bad.ptr(),
                    bias.ptr(),
                    documents.ptr(),
                    factor,
                    weight as f32,
                    rows,
                    d,
                )
            }};
        }
        match dtype {
            DType::F32 => run!(energy_contrast_fwd_warp_per_row_f32),
            DType::Bf16 => run!(energy_contrast_fwd_warp_per_row_bf16),
            other => panic!("no kernel computes with {other}"),
        }
        return (losses, to);
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let [q, good, bad, bias] = [pair.q, pair.good, pair.bad, pair.bias].map(|x| x.as_slice::<E>());
        let (documents, scale) = (documents.as_slice::<u32>(), F::from_f64(1.0 / (d as f64).sqrt()));
        let weight = F::from_f64(weight);
        let factor = factor.map_or(F::ZERO, |factor| F::from_f64(factor.value())) * weight;
        let mut to = to.as_mut().map(|Pair { q, good, bad, bias }| [q, good, bad, bias].map(|to| to.as_mut_slice::<E>()));
        for (row, loss) in losses.as_mut_slice::<F>().iter_mut().enumerate() {
            let at = row * d..(row + 1) * d;
            let (q, good, bad, bias) = (&q[at.clone()], &good[at.clone()], &bad[at.clone()], bias[row].load());
            let [at_good, at_bad] = [good, bad].map(|k| -dot(q, k) * scale - bias);
            let counts = documents[row / SAMPLES] != IGNORE;
            *loss = if counts { weight * (softplus(at_good) + softplus(-at_bad)) } else { F::ZERO };
            let Some([dq, dgood, dbad, dbias]) = &mut to else { continue };
            let slopes = [sigmoid(at_good) * factor, -sigmoid(-at_bad) * factor];
            let [up, down] = if counts { slopes } else { [F::ZERO; 2] };
            for (i, at) in at.enumerate() {
                let (q, good, bad) = if counts { (q[i].load(), good[i].load(), bad[i].load()) } else { (F::ZERO, F::ZERO, F::ZERO) };
                dq[at] = E::store(-(up * good + down * bad) * scale);
                dgood[at] = E::store(-up * q * scale);
                dbad[at] = E::store(-down * q * scale);
            }
            dbias[row] = E::store(-(up + down));
        }
    });
    (losses, to)
}

fn dot<E: Elem>(a: &[E], b: &[E]) -> E::Acc {
    a.iter().zip(b).fold(E::Acc::ZERO, |sum, (a, b)| a.load().mul_add(b.load(), sum))
}

fn softplus<F: Float>(x: F) -> F {
    x.max(F::ZERO) + (F::ONE + (-x.abs()).exp()).ln()
}

/// The chunks that chunk `m` is told from, its own first; none but its own where it has no context.
fn seen(documents: &[u32], m: usize) -> impl Iterator<Item = usize> {
    let rows = documents.len();
    let others = (1..=REACH.min(rows - 1))
        .map(move |ahead| (m + ahead) % rows)
        .filter(move |&c| documents[m] != IGNORE && documents[c] != IGNORE && documents[c] != documents[m]);
    std::iter::once(m).chain(others)
}

/// `q [M, d]`, `k [M, d]`, `documents [M]` -> losses `[M]` (accumulator type) and, where a factor of each in the total is given, the
/// gradients of `q` and of `k`.
pub fn retrieve(
    arena: &Arena,
    [q, k]: [&Tensor; 2],
    documents: &Tensor,
    factor: Option<&Scale>,
) -> (Tensor, Option<[Tensor; 2]>) {
    let ([m, d], dtype) = (q.shape().rows_cols(), q.dtype());
    assert!(d <= KEY_MAX && k.elems() == m * d && documents.elems() == m, "a key of each chunk");
    let [mut losses, mut norms] = [(); 2].map(|()| Tensor::uninit(arena, [m], dtype.accumulator()));
    let mut to = factor.map(|_| [(); 2].map(|()| Tensor::uninit(arena, [m, d], dtype)));
    if let Device::Gpu(gpu) = q.device() {
        let (factor, grid) = (factor.map(|factor| factor.on_gpu(arena)), Grid::over(m, BLOCK_ROWS));
        let factor = || factor.as_ref().map_or(Ptr::none(), |factor| factor.ptr());
        macro_rules! run {
            ($forward:ident, $keys:ident) => {{
                use crate::device::launch;
                let dq = to.as_mut().map_or(PtrMut::none(), |[dq, _]| dq.ptr_mut());
                let (loss, norm) = (losses.ptr_mut(), norms.ptr_mut());
                launch::$forward(gpu, grid, loss, norm, dq, q.ptr(), k.ptr(), documents.ptr(), factor(), m, d);
                if let Some([_, dk]) = &mut to {
                    let (dk, norm) = (dk.ptr_mut(), norms.ptr());
                    launch::$keys(gpu, grid, dk, q.ptr(), k.ptr(), documents.ptr(), norm, factor(), m, d);
                }
            }};
        }
        match dtype {
            DType::F32 => run!(energy_contrast_fwd_retrieve_f32, energy_contrast_bwd_keys_f32),
            DType::Bf16 => run!(energy_contrast_fwd_retrieve_bf16, energy_contrast_bwd_keys_bf16),
            other => panic!("no kernel computes with {other}"),
        }
        return (losses, to);
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (q, k, documents) = (q.as_slice::<E>(), k.as_slice::<E>(), documents.as_slice::<u32>());
        let row = |x: &[E], at: usize| x[at * d..(at + 1) * d].iter().map(|x| x.load()).collect::<Vec<F>>();
        let scale = F::from_f64(1.0 / (d as f64).sqrt());
        let factor = factor.map_or(F::ZERO, |factor| F::from_f64(factor.value())) * scale;
        // Gradients of keys come from several rows: in the accumulator type, row after row.
        let (mut dq, mut dk) = (vec![F::ZERO; m * d], vec![F::ZERO; m * d]);
        for m in 0..m {
            let at: Vec<usize> = seen(documents, m).collect();
            if at.len() == 1 {
                losses.as_mut_slice::<F>()[m] = F::ZERO;
                continue;
            }
            let own = row(q, m);
            let logits: Vec<F> = at.par_iter().map(|&c| dot(&own, &row(k, c)) * scale).collect();
            let peak = logits.iter().fold(F::NEG_INFINITY, |peak, &x| x.max(peak));
            let sum = logits.iter().fold(F::ZERO, |sum, &x| sum + (x - peak).exp());
            losses.as_mut_slice::<F>()[m] = sum.ln() + peak - logits[0];
            for (i, (&c, logit)) in at.iter().zip(logits).enumerate() {
                let p = ((logit - peak).exp() / sum - if i == 0 { F::ONE } else { F::ZERO }) * factor;
                for i in 0..d {
                    dq[m * d + i] += p * k[c * d + i].load();
                    dk[c * d + i] += p * own[i];
                }
            }
        }
        for (to, from) in to.iter_mut().flatten().zip([dq, dk]) {
            to.as_mut_slice::<E>().iter_mut().zip(from).for_each(|(to, x)| *to = E::store(x));
        }
    });
    (losses, to)
}

/// Losses of the contrast in plain loops.
pub fn reference_contrast(pair: Pair<&[f64]>, documents: &[u32], d: usize, weight: f64) -> Vec<f64> {
    let Pair { q, good, bad, bias } = pair;
    let softplus = |x: f64| x.exp().ln_1p();
    let row = |r: usize| {
        let energy = |k: &[f64]| {
            let dot: f64 = (0..d).map(|i| q[r * d + i] * k[r * d + i]).sum();
            -dot / (d as f64).sqrt() - bias[r]
        };
        let loss = weight * (softplus(energy(good)) + softplus(-energy(bad)));
        if documents[r / SAMPLES] == IGNORE { 0.0 } else { loss }
    };
    (0..bias.len()).map(row).collect()
}

/// Losses of the retrieval in plain loops.
pub fn reference_retrieve(q: &[f64], k: &[f64], documents: &[u32], d: usize) -> Vec<f64> {
    let rows = documents.len();
    let logit = |m: usize, c: usize| (0..d).map(|i| q[m * d + i] * k[c * d + i]).sum::<f64>() / (d as f64).sqrt();
    let row = |m: usize| {
        let is_other = |&c: &usize| {
            let ahead = (c + rows - m) % rows;
            (1..=REACH).contains(&ahead) && ![IGNORE, documents[m]].contains(&documents[c])
        };
        let others: Vec<usize> = (0..rows).filter(is_other).collect();
        if documents[m] == IGNORE || others.is_empty() {
            return 0.0;
        }
        let sum: f64 = others.iter().chain([&m]).map(|&c| logit(m, c).exp()).sum();
        sum.ln() - logit(m, m)
    };
    (0..rows).map(row).collect()
}
