//! What a generator of latents is judged by: contexts of chunks, draws, and the energy score.
//!
//! `N = 4` samples `zhat_n` of a chunk, `M = 16` draws `z_m = mu + sigma eps_m` of its latent, whose `mu` and `log sigma` take no gradient:
//!
//! `L = [2 / (N M) sum |zhat_n - z_m| - 1 / (N (N - 1)) sum_{n != k} |zhat_n - zhat_k|] / sqrt(l)`, `|x| = sqrt(x^2 + 1e-12)`
//!
//! Its expectation is least where the samples are distributed as the draws (strictly proper; Gneiting and Raftery, 2007). A chunk counts
//! where its document has a token before it: the context that is generated from. Gradients are formed in the same pass (a leaf, as
//! `lm_loss`), towards `zhat` alone.

use super::latent::Chunks;
use super::lm_loss::IGNORE;
use crate::device::Device;
use crate::device::launch::{self, Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Scale, Tensor, noise};
use rayon::prelude::*;

/// Samples of the generator for a chunk.
pub const SAMPLES: usize = 4;

/// Draws of a chunk's latent.
pub const POSTERIOR: usize = 16;

/// Widest latent of the kernel: two numbers a lane.
pub const LATENT_MAX: usize = 64;

/// Streams of noise, as in the kernels.
const POSTERIOR_STREAM: u32 = 3;
const GENERATOR_STREAM: u32 = 4;

/// Under the root of a distance.
const TINY: f64 = 1e-12;

/// Chunks of a block of the kernel: a warp each.
const BLOCK_ROWS: usize = 8;

/// What chunks are generated from.
#[derive(Clone, Debug)]
pub struct Contexts {
    /// `[4 M]` u32: the token before each chunk among all, once for each sample; 0 where there is none.
    pub rows: Tensor,
    /// `[M]` u32: the first token of the chunk's document among all; [`IGNORE`] where no token of it comes before the chunk.
    pub documents: Tensor,
}

/// The context of a chunk that begins at `start` of all tokens: the token before it and the first token of the document.
fn context(start: Option<usize>, t: usize, doc_start: Option<&[u32]>) -> Option<[u32; 2]> {
    let start = start?;
    let document = start / t * t + doc_start.map_or(0, |doc_start| doc_start[start] as usize);
    (start > document).then(|| [start as u32 - 1, document as u32])
}

/// Chunks of `n` tokens that have a context.
pub fn counted(chunks: Chunks, n: usize, doc_start: Option<&[u32]>) -> usize {
    let has = |&m: &usize| context(chunks.start(m, doc_start), chunks.t, doc_start).is_some();
    (0..n / chunks.t * chunks.per_row()).filter(has).count()
}

/// The contexts of the selected chunks of `n` tokens on the device of `arena`.
pub fn contexts(arena: &Arena, chunks: Chunks, n: usize, doc_start: Option<&Tensor>) -> Contexts {
    let m = n / chunks.t * chunks.per_row();
    let [mut rows, mut documents] = [SAMPLES * m, m].map(|elems| Tensor::uninit(arena, [elems], DType::U32));
    if let Device::Gpu(gpu) = arena.device() {
        launch::energy_score_fwd_contexts_u32(
            gpu,
            Grid::over(m, 256),
            rows.ptr_mut(),
            documents.ptr_mut(),
            doc_start.map_or(Ptr::none(), |doc_start| doc_start.ptr()),
            chunks.per_row(),
            chunks.t,
            chunks.first,
            chunks.every,
            m,
        );
        return Contexts { rows, documents };
    }
    let doc_start = doc_start.map(Tensor::as_slice::<u32>);
    let each = rows.as_mut_slice::<u32>().chunks_exact_mut(SAMPLES).zip(documents.as_mut_slice::<u32>());
    for (m, (rows, document)) in each.enumerate() {
        let [row, first] = context(chunks.start(m, doc_start), chunks.t, doc_start).unwrap_or([0, IGNORE]);
        rows.fill(row);
        *document = first;
    }
    Contexts { rows, documents }
}

/// Draw number `s` of dimension `i` of a chunk's latent.
fn posterior<F: Float>(h: [F; 2], seed: u32, chunk: usize, s: usize, [i, l]: [usize; 2]) -> F {
    let index = (chunk * POSTERIOR + s) * l + i;
    h[0] + h[1].exp() * noise::normal(noise::words(seed, POSTERIOR_STREAM, index as u32)[0])
}

/// `h [M, 2 l]` -> `eps [4 M, l]`, uniform in (-1/2, 1/2), and `z [4 M, l]`, the first four of each latent's draws.
pub fn draws(arena: &Arena, h: &Tensor, noise: &Scale) -> [Tensor; 2] {
    let ([m, two_l], dtype) = (h.shape().rows_cols(), h.dtype());
    let l = two_l / 2;
    let [mut eps, mut z] = [(); 2].map(|()| Tensor::uninit(arena, [SAMPLES * m, l], dtype));
    if let Device::Gpu(gpu) = h.device() {
        let (noise, grid) = (noise.on_gpu(arena), Grid::over(SAMPLES * m * l, 256));
        by_dtype!(
            dtype,
            energy_score_fwd_draws_f32 | energy_score_fwd_draws_bf16,
            (gpu, grid, eps.ptr_mut(), z.ptr_mut(), h.ptr(), noise.ptr(), m, l)
        );
        return [eps, z];
    }
    let seed = noise.value() as u32;
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let rows = eps.as_mut_slice::<E>().par_chunks_mut(l).zip(z.as_mut_slice::<E>().par_chunks_mut(l));
        let h = h.as_slice::<E>();
        rows.enumerate().for_each(|(row, (eps, z))| {
            let (chunk, s) = (row / SAMPLES, row % SAMPLES);
            let h = &h[chunk * two_l..][..two_l];
            for i in 0..l {
                let word = noise::words(seed, GENERATOR_STREAM, (row * l + i) as u32)[0];
                eps[i] = E::store(F::from_f64(0.5 * noise::centred(word)));
                z[i] = E::store(posterior([h[i].load(), h[l + i].load()], seed, chunk, s, [i, l]));
            }
        });
    });
    [eps, z]
}

/// What the samples are held against.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    /// `[M, 2 l]`: `mu`, then `log sigma`, in the type of the samples.
    pub h: &'a Tensor,
    /// Of [`Contexts`].
    pub documents: &'a Tensor,
    pub noise: &'a Scale,
}

/// `zhat [4 M, l]` -> losses `[M]` (accumulator type, 0 where there is no context) and, where a factor of each in the total is given,
/// `dzhat [4 M, l]`.
pub fn score(arena: &Arena, zhat: &Tensor, truth: Truth, factor: Option<&Scale>) -> (Tensor, Option<Tensor>) {
    let ([rows, l], dtype) = (zhat.shape().rows_cols(), zhat.dtype());
    let (m, Truth { h, documents, noise }) = (rows / SAMPLES, truth);
    assert!(l <= LATENT_MAX && h.elems() == m * 2 * l && documents.elems() == m, "a latent of each chunk");
    let mut losses = Tensor::uninit(arena, [m], dtype.accumulator());
    let mut dzhat = factor.is_some().then(|| Tensor::uninit(arena, [rows, l], dtype));
    if let Device::Gpu(gpu) = zhat.device() {
        let (noise, factor) = (noise.on_gpu(arena), factor.map(|factor| factor.on_gpu(arena)));
        by_dtype!(
            dtype,
            energy_score_fwd_warp_per_chunk_f32 | energy_score_fwd_warp_per_chunk_bf16,
            (
                gpu,
                Grid::over(m, BLOCK_ROWS),
                losses.ptr_mut(),
                dzhat.as_mut().map_or(PtrMut::none(), |dzhat| dzhat.ptr_mut()),
                zhat.ptr(),
                h.ptr(),
                documents.ptr(),
                noise.ptr(),
                factor.as_ref().map_or(Ptr::none(), |factor| factor.ptr()),
                m,
                l
            )
        );
        return (losses, dzhat);
    }
    let seed = noise.value() as u32;
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (h, documents) = (h.as_slice::<E>(), documents.as_slice::<u32>());
        let shrink = F::from_f64(1.0 / (l as f64).sqrt());
        let of = |chunk: usize, zhat: &[E]| {
            let h = &h[chunk * 2 * l..][..2 * l];
            let at = |s: usize, i: usize| posterior([h[i].load(), h[l + i].load()], seed, chunk, s, [i, l]);
            let draws: Vec<F> = (0..POSTERIOR * l).map(|x| at(x / l, x % l)).collect();
            score_chunk(&zhat.iter().map(|x| x.load()).collect::<Vec<F>>(), &draws, l)
        };
        let chunks = losses.as_mut_slice::<F>().par_iter_mut().zip(zhat.as_slice::<E>().par_chunks(SAMPLES * l));
        let factor = factor.map(|factor| F::from_f64(factor.value()) * shrink);
        let mut none = Vec::new();
        let to = dzhat.as_mut().map_or(&mut none[..], |dzhat| dzhat.as_mut_slice::<E>());
        let to: Vec<Option<&mut [E]>> = match factor {
            Some(_) => to.chunks_mut(SAMPLES * l).map(Some).collect(),
            None => (0..m).map(|_| None).collect(),
        };
        chunks.zip(to).enumerate().for_each(|(chunk, ((loss, zhat), to))| {
            let counts = documents[chunk] != IGNORE;
            let (value, slopes) = of(chunk, zhat);
            *loss = if counts { value * shrink } else { F::ZERO };
            if let (Some(to), Some(factor)) = (to, factor) {
                for (to, slope) in to.iter_mut().zip(slopes) {
                    *to = E::store(if counts { slope * factor } else { F::ZERO });
                }
            }
        });
    });
    (losses, dzhat)
}

/// `sqrt(l)` times the score of one chunk, and its slopes.
fn score_chunk<F: Float>(zhat: &[F], draws: &[F], l: usize) -> (F, Vec<F>) {
    let (mut value, mut slopes) = (F::ZERO, vec![F::ZERO; zhat.len()]);
    let distance = |a: &[F], b: &[F]| {
        let square = a.iter().zip(b).fold(F::ZERO, |sum, (a, b)| (*a - *b).mul_add(*a - *b, sum));
        (square + F::from_f64(TINY)).sqrt()
    };
    let near = F::from_f64(2.0 / (SAMPLES * POSTERIOR) as f64);
    for (n, sample) in zhat.chunks(l).enumerate() {
        for draw in draws.chunks(l) {
            let far = distance(sample, draw);
            value += near * far;
            for i in 0..l {
                slopes[n * l + i] += (sample[i] - draw[i]) / far * near;
            }
        }
    }
    let wide = F::from_f64(2.0 / (SAMPLES * (SAMPLES - 1)) as f64);
    for n in 0..SAMPLES {
        for k in n + 1..SAMPLES {
            let (a, b) = (&zhat[n * l..][..l], &zhat[k * l..][..l]);
            let far = distance(a, b);
            value -= wide * far;
            for i in 0..l {
                let slope = (a[i] - b[i]) / far * wide;
                slopes[n * l + i] -= slope;
                slopes[k * l + i] += slope;
            }
        }
    }
    (value, slopes)
}

/// Scores in plain loops, of chunks that all have a context: `zhat [4 M, l]`, `draws [16 M, l]`.
pub fn reference(zhat: &[f64], draws: &[f64], l: usize) -> Vec<f64> {
    let distance = |a: &[f64], b: &[f64]| (a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() + TINY).sqrt();
    let chunk = |(zhat, draws): (&[f64], &[f64])| {
        let (mut near, mut wide) = (0.0, 0.0);
        for (n, sample) in zhat.chunks(l).enumerate() {
            near += draws.chunks(l).map(|draw| distance(sample, draw)).sum::<f64>();
            let others = zhat.chunks(l).enumerate().filter(|(k, _)| *k != n);
            wide += others.map(|(_, other)| distance(sample, other)).sum::<f64>();
        }
        let (n, m) = (SAMPLES as f64, POSTERIOR as f64);
        (2.0 / (n * m) * near - wide / (n * (n - 1.0))) / (l as f64).sqrt()
    };
    zhat.chunks(SAMPLES * l).zip(draws.chunks(POSTERIOR * l)).map(chunk).collect()
}

/// The draws that [`score`] holds samples against, `[16 M, l]`.
pub fn reference_draws(h: &[f64], l: usize, seed: u32) -> Vec<f64> {
    let at = |x: usize| {
        let (chunk, s, i) = (x / l / POSTERIOR, x / l % POSTERIOR, x % l);
        posterior([h[chunk * 2 * l + i], h[chunk * 2 * l + l + i]], seed, chunk, s, [i, l])
    };
    (0..h.len() / (2 * l) * POSTERIOR * l).map(at).collect()
}
