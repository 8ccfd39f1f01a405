//! The continuous latent: chunks of 4 tokens, rows that are dropped, and the latent drawn from its distribution.
//!
//! Chunks are counted from the start of their document. Slot `s` of a row of `T` tokens has the one chunk that begins at `4 s .. 4 s + 3`
//! and lies whole in the row and in the document, or none: so every row has `T / 4` slots, whatever its documents.
//!
//! A row of `h [M, 2 l]` is `mu`, then `log sigma`: `z = (mu + sigma eps) keep / (1 - rate)`, `eps` standard normal, `keep` 0 at the rate
//! `rate`, else 1; without noise `z = mu`. `KL_i = (mu_i^2 + sigma_i^2 - 1) / 2 - log sigma_i`, `kl = weight sum_i max(KL_i, floor)`, 0
//! where there is no chunk. Saves `h`; the noise is drawn again: `dmu = dz keep / (1 - rate) + factor weight [KL > floor] mu`,
//! `dlog sigma = dz keep / (1 - rate) sigma eps + factor weight [KL > floor] (sigma^2 - 1)`.

use super::lm_loss::IGNORE;
use super::select_rows::Stride;
use crate::device::Device;
use crate::device::cpu::grain_rows;
use crate::device::launch::{self, Grid, Ptr, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Scale, Tensor, noise};
use rayon::prelude::*;

/// Tokens of a chunk.
pub const CHUNK: usize = 4;

/// Rows of a block of the kernel: a warp each.
const BLOCK_ROWS: usize = 8;

/// Streams of noise, as in the kernels.
const TOKEN_STREAM: u32 = 1;
const LATENT_STREAM: u32 = 2;

/// Which chunks of each row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunks {
    /// Tokens of a row.
    pub t: usize,
    /// The first slot, and slots from one to the next.
    pub first: usize,
    pub every: usize,
}

/// The tokens of chunks, `[M, 4]` u32 each.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// 0 where there is no chunk.
    pub tokens: Tensor,
    /// [`IGNORE`] where there is no chunk.
    pub targets: Tensor,
    /// [`IGNORE`] where there is no chunk, and where a token is dropped.
    pub kept: Tensor,
}

impl Chunks {
    fn slots(self) -> Stride {
        Stride { t: self.t / CHUNK, first: self.first, every: self.every }
    }

    /// Selected slots of a row.
    pub fn per_row(self) -> usize {
        self.slots().per_row()
    }

    /// Where among all tokens the chunk of the selected slot number `m` begins.
    pub fn start(self, m: usize, doc_start: Option<&[u32]>) -> Option<usize> {
        let (row, slot) = (m / self.per_row() * self.t, self.first + m % self.per_row() * self.every);
        let document = |at: usize| doc_start.map_or(0, |doc_start| doc_start[row + at] as usize);
        (slot * CHUNK..(slot + 1) * CHUNK)
            .take_while(|at| at + CHUNK <= self.t)
            .find(|&at| (at - document(at)).is_multiple_of(CHUNK) && document(at) == document(at + CHUNK - 1))
            .map(|at| row + at)
    }

    /// Chunks that there are among the selected slots of `n` tokens.
    pub fn counted(self, n: usize, doc_start: Option<&[u32]>) -> usize {
        (0..n / self.t * self.per_row()).filter(|&m| self.start(m, doc_start).is_some()).count()
    }

    /// The tokens of the selected chunks of `from [N]`, documents apart where their beginnings `[N]` are given; with noise, some are dropped
    /// at this rate.
    pub fn gather(
        self,
        arena: &Arena,
        from: &Tensor,
        doc_start: Option<&Tensor>,
        noise: Option<&Scale>,
        rate: f64,
    ) -> Gathered {
        let m = from.elems() / self.t * self.per_row();
        let [mut tokens, mut targets, mut kept] = [(); 3].map(|()| Tensor::uninit(arena, [m, CHUNK], DType::U32));
        if let Device::Gpu(gpu) = from.device() {
            let noise = noise.map(|noise| noise.on_gpu(arena));
            launch::latent_fwd_chunks_u32(
                gpu,
                Grid::over(m * CHUNK, 256),
                tokens.ptr_mut(),
                targets.ptr_mut(),
                kept.ptr_mut(),
                from.ptr(),
                doc_start.map_or(Ptr::none(), |doc_start| doc_start.ptr()),
                noise.as_ref().map_or(Ptr::none(), |noise| noise.ptr()),
                noise::threshold(rate),
                self.per_row(),
                self.t,
                self.first,
                self.every,
                m,
            );
            return Gathered { tokens, targets, kept };
        }
        let (ids, doc_start) = (from.as_slice::<u32>(), doc_start.map(Tensor::as_slice::<u32>));
        let seed = noise.map(|noise| noise.value() as u32);
        let [to_tokens, to_targets, to_kept] =
            [&mut tokens, &mut targets, &mut kept].map(|out| out.as_mut_slice::<u32>());
        for chunk in 0..m {
            let start = self.start(chunk, doc_start);
            for i in chunk * CHUNK..(chunk + 1) * CHUNK {
                let target = start.map_or(IGNORE, |start| ids[start + i % CHUNK]);
                let is_kept =
                    seed.is_none_or(|seed| noise::is_kept(noise::words(seed, TOKEN_STREAM, i as u32)[0], rate));
                to_targets[i] = target;
                to_tokens[i] = if start.is_some() { target } else { 0 };
                to_kept[i] = if is_kept { target } else { IGNORE };
            }
        }
        Gathered { tokens, targets, kept }
    }
}

/// `x [N, C]`, its rows 0 where `kept [N]` is [`IGNORE`]; backward is the same.
pub fn mask_rows(arena: &Arena, x: &Tensor, kept: &Tensor) -> Tensor {
    let ([n, c], dtype) = (x.shape().rows_cols(), x.dtype());
    assert_eq!(kept.elems(), n, "a mark for each row");
    let mut y = Tensor::uninit(arena, [n, c], dtype);
    if let Device::Gpu(gpu) = x.device() {
        by_dtype!(
            dtype,
            latent_fwd_mask_rows_f32 | latent_fwd_mask_rows_bf16,
            (gpu, Grid::elementwise(n * c, dtype.size_bytes()), y.ptr_mut(), x.ptr(), kept.ptr(), n, c)
        );
        return y;
    }
    for_dtype!(dtype, E => {
        let rows = y.as_mut_slice::<E>().par_chunks_mut(c).zip(x.as_slice::<E>().par_chunks(c));
        rows.zip(kept.as_slice::<u32>()).with_min_len(grain_rows(c)).for_each(|((y, x), &kept)| match kept {
            IGNORE => y.fill(E::store(<E as Elem>::Acc::ZERO)),
            _ => y.copy_from_slice(x),
        });
    });
    y
}

/// How latents are drawn, and what their divergence from the standard normal counts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// Latents are dropped at this rate, where there is noise.
    pub rate: f64,
    /// A latent's divergence counts as no less than this, in nats.
    pub floor: f64,
    /// Of the divergence.
    pub weight: f64,
}

impl Options {
    fn boost(self, noise: Option<&Scale>) -> f64 {
        if noise.is_some() { 1.0 / (1.0 - self.rate) } else { 1.0 }
    }
}

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    /// `[M, 2 l]`.
    pub h: Tensor,
    /// `[M, 4]` u32.
    pub targets: Tensor,
    pub noise: Option<Scale>,
    pub options: Options,
}

/// `h [M, 2 l]` -> `z [M, l]` and the weighted divergence of each chunk, `[M]`, in the accumulator type.
pub fn sample(arena: &Arena, saved: &Saved) -> (Tensor, Tensor) {
    let Saved { h, targets, noise, options } = saved;
    let ([m, two_l], dtype) = (h.shape().rows_cols(), h.dtype());
    let l = two_l / 2;
    assert_eq!(targets.elems(), m * CHUNK, "the tokens of each chunk");
    let mut z = Tensor::uninit(arena, [m, l], dtype);
    let mut kl = Tensor::uninit(arena, [m], dtype.accumulator());
    let boost = options.boost(noise.as_ref());
    if let Device::Gpu(gpu) = h.device() {
        let noise = noise.as_ref().map(|noise| noise.on_gpu(arena));
        by_dtype!(
            dtype,
            latent_fwd_sample_f32 | latent_fwd_sample_bf16,
            (
                gpu,
                Grid::over(m, BLOCK_ROWS),
                z.ptr_mut(),
                kl.ptr_mut(),
                h.ptr(),
                targets.ptr(),
                noise.as_ref().map_or(Ptr::none(), |noise| noise.ptr()),
                noise::threshold(options.rate),
                boost as f32,
                options.floor as f32,
                options.weight as f32,
                m,
                l
            )
        );
        return (z, kl);
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (seed, floor) = (noise.as_ref().map(|noise| noise.value() as u32), F::from_f64(options.floor));
        let rows = z.as_mut_slice::<E>().par_chunks_mut(l).zip(kl.as_mut_slice::<F>());
        let inputs = h.as_slice::<E>().par_chunks(two_l).zip(targets.as_slice::<u32>().par_chunks(CHUNK));
        rows.zip(inputs).enumerate().for_each(|(row, ((z, kl), (h, targets)))| {
            let mut sum = F::ZERO;
            for i in 0..l {
                let (mu, log_sigma) = (h[i].load(), h[l + i].load());
                let sigma = log_sigma.exp();
                let (eps, keep) = draw::<F>(seed, row * l + i, options.rate, boost);
                z[i] = E::store((mu + sigma * eps) * keep);
                let divergence = divergence(mu, log_sigma, sigma);
                sum += if divergence < floor { floor } else { divergence };
            }
            *kl = if targets[0] == IGNORE { F::ZERO } else { F::from_f64(options.weight) * sum };
        });
    });
    (z, kl)
}

/// The noise of latent number `i`, and what it is kept by.
fn draw<F: Float>(seed: Option<u32>, i: usize, rate: f64, boost: f64) -> (F, F) {
    let Some(seed) = seed else { return (F::ZERO, F::ONE) };
    let words = noise::words(seed, LATENT_STREAM, i as u32);
    let keep = if noise::is_kept(words[1], rate) { F::from_f64(boost) } else { F::ZERO };
    (noise::normal(words[0]), keep)
}

/// Of a normal distribution from the standard normal one.
fn divergence<F: Float>(mu: F, log_sigma: F, sigma: F) -> F {
    F::from_f64(0.5) * (mu * mu + sigma * sigma - F::ONE) - log_sigma
}

/// `dz [M, l]`, where there is one, -> `dh [M, 2 l]`; each divergence counts by `factor` in the total loss.
pub fn backward(arena: &Arena, dz: Option<&Tensor>, factor: &Scale, saved: &Saved) -> Tensor {
    let Saved { h, targets, noise, options } = saved;
    let ([m, two_l], dtype) = (h.shape().rows_cols(), h.dtype());
    let (l, boost) = (two_l / 2, options.boost(noise.as_ref()));
    let mut dh = Tensor::uninit(arena, [m, two_l], dtype);
    if let Device::Gpu(gpu) = h.device() {
        let (noise, factor) = (noise.as_ref().map(|noise| noise.on_gpu(arena)), factor.on_gpu(arena));
        by_dtype!(
            dtype,
            latent_bwd_sample_f32 | latent_bwd_sample_bf16,
            (
                gpu,
                Grid::over(m, BLOCK_ROWS),
                dh.ptr_mut(),
                dz.map_or(Ptr::none(), |dz| dz.ptr()),
                h.ptr(),
                targets.ptr(),
                noise.as_ref().map_or(Ptr::none(), |noise| noise.ptr()),
                factor.ptr(),
                noise::threshold(options.rate),
                boost as f32,
                options.floor as f32,
                options.weight as f32,
                m,
                l
            )
        );
        return dh;
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (seed, floor) = (noise.as_ref().map(|noise| noise.value() as u32), F::from_f64(options.floor));
        let toward = F::from_f64(factor.value() * options.weight);
        let dz = dz.map(|dz| dz.as_slice::<E>());
        let inputs = h.as_slice::<E>().par_chunks(two_l).zip(targets.as_slice::<u32>().par_chunks(CHUNK));
        let rows = dh.as_mut_slice::<E>().par_chunks_mut(two_l).zip(inputs);
        rows.enumerate().for_each(|(row, (dh, (h, targets)))| {
            for i in 0..l {
                let (mu, log_sigma) = (h[i].load(), h[l + i].load());
                let sigma = log_sigma.exp();
                let (eps, keep) = draw::<F>(seed, row * l + i, options.rate, boost);
                let dz = dz.map_or(F::ZERO, |dz| dz[row * l + i].load()) * keep;
                let counts = targets[0] != IGNORE && divergence(mu, log_sigma, sigma) > floor;
                let pull = if counts { toward } else { F::ZERO };
                dh[i] = E::store(dz + pull * mu);
                dh[l + i] = E::store(dz * sigma * eps + pull * (sigma * sigma - F::ONE));
            }
        });
    });
    dh
}

/// Latents and divergences in plain loops, with the noise of `seed`.
pub fn reference(h: &[f64], l: usize, has_chunk: &[bool], seed: Option<u32>, options: Options) -> [Vec<f64>; 2] {
    let (mut z, mut kl) = (vec![], vec![]);
    for (row, h) in h.chunks(2 * l).enumerate() {
        let mut sum = 0.0;
        for i in 0..l {
            let (mu, sigma) = (h[i], h[l + i].exp());
            z.push(match seed.map(|seed| noise::words(seed, LATENT_STREAM, (row * l + i) as u32)) {
                Some([_, word, ..]) if !noise::is_kept(word, options.rate) => 0.0,
                Some([word, ..]) => (mu + sigma * noise::normal::<f64>(word)) / (1.0 - options.rate),
                None => mu,
            });
            sum += (0.5 * (mu * mu + sigma * sigma - 1.0) - h[l + i]).max(options.floor);
        }
        kl.push(if has_chunk[row] { options.weight * sum } else { 0.0 });
    }
    [z, kl]
}
