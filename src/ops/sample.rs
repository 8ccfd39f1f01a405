//! Draws tokens from rows of logits, the same on every device: of the `k` most probable the smallest set that reaches a share, of these the ones
//! that are not far less probable than the first.
//!
//! All sums are of whole numbers, so they have one result in any order: a token weighs `2^40 2^((logit - largest) scale)`, cut. Rank is falling
//! logits, equal ones by rising id. Drawn is the first id at which the sum of weights, in the order of ids, exceeds a fraction of the whole.
//! Weights below 2^-40 of the first are nothing.

use crate::device::Device;
use crate::device::cpu::simd;
use crate::device::launch::{Grid, by_dtype};
use crate::tensor::{Arena, DType, Tensor};

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// A random fraction of 2^64.
    pub uniform: u64,
    /// `log2(e) / temperature`, finite.
    pub scale: f32,
    /// Only so many first by rank; at least 1. 1 always takes the most probable.
    pub top_k: u32,
    /// Of these only the first that together reach so much of the whole, a fraction of 2^64; 0 is no limit.
    pub top_p: u64,
    /// Only tokens of at least this weight; the first has [`WEIGHT_OF_FIRST`].
    pub least_weight: u64,
}

/// The weight of the most probable token.
pub const WEIGHT_OF_FIRST: u64 = 1 << 40;

/// Logits that say nothing: what a kernel gives instead of a token.
const NOT_A_NUMBER: u32 = u32::MAX - 1;
const NOTHING: u32 = u32::MAX;
/// Most tokens, so that no sum overflows.
const VOCABULARY_MAX: usize = 1 << 23;

/// A token of each row of `logits [N, V]`, on a GPU; none where logits make no distribution, for the reason ask [`most_probable`].
///
/// # Panics
/// If there are not as many draws as rows, a draw from none, or too many tokens.
pub fn forward(arena: &Arena, logits: &Tensor, draws: &[Draw]) -> Vec<Option<u32>> {
    let n = draws.len();
    assert!(draws.iter().all(|draw| draw.top_k > 0), "a draw from no token");
    let how: Vec<u32> = draws.iter().flat_map(Draw::words).collect();
    let (how, mut tokens) = (Tensor::from_slice(arena, [n, Draw::WORDS], &how), Tensor::uninit(arena, [n], DType::U32));
    draw_into(&mut tokens, logits, &how);
    read(&tokens)
}

/// Draws into `tokens [N]`, from `logits [N, V]` on a GPU, as the words of `how [N, 8]` say; for [`read`].
///
/// # Panics
/// If shapes do not fit.
pub fn draw_into(tokens: &mut Tensor, logits: &Tensor, how: &Tensor) {
    let ([n, v], Device::Gpu(gpu)) = (logits.shape().rows_cols(), logits.device()) else {
        panic!("rows of logits on the processor are drawn from one by one")
    };
    assert!(tokens.elems() == n && how.dims() == [n, Draw::WORDS] && v < VOCABULARY_MAX, "draws from {n} rows of {v}");
    by_dtype!(
        logits.dtype(),
        sample_fwd_block_per_row_f32 | sample_fwd_block_per_row_bf16,
        (gpu, Grid::linear(n), tokens.ptr_mut(), logits.ptr(), how.ptr(), v)
    );
}

/// What was drawn.
pub fn read(tokens: &Tensor) -> Vec<Option<u32>> {
    let tokens = tokens.to(Device::Cpu);
    tokens.as_slice::<u32>().iter().map(|&token| (token != NOTHING && token != NOT_A_NUMBER).then_some(token)).collect()
}

impl Draw {
    /// The most probable token.
    pub const FIRST: Draw = Draw { uniform: 0, scale: 1.0, top_k: 1, top_p: 0, least_weight: 0 };

    /// Words of a draw.
    pub const WORDS: usize = 8;

    /// As the kernel takes it.
    pub fn words(&self) -> [u32; Draw::WORDS] {
        let [u, p, w] = [self.uniform, self.top_p, self.least_weight].map(|word| [word as u32, (word >> 32) as u32]);
        [u[0], u[1], p[0], p[1], w[0], w[1], self.top_k, self.scale.to_bits()]
    }

    /// The token that is drawn from `logits [V]`, of which `first` is the most probable.
    pub fn pick(&self, logits: &[f32], first: u32) -> u32 {
        if self.top_k == 1 {
            return first;
        }
        let mut weights = vec![0; logits.len()];
        weigh(&mut weights, logits, logits[first as usize], self.scale);
        let mut least = 0;
        if (self.top_k as usize) < logits.len() {
            let mut ranks: Vec<u64> = (0..).zip(logits).map(|(id, &logit)| rank(logit, id)).collect();
            least = *ranks.select_nth_unstable_by(self.top_k as usize - 1, |a, b| b.cmp(a)).1;
        }
        let kept = |least: u64| {
            let of = (0..).zip(logits).zip(&weights);
            of.filter(move |((id, logit), weight)| **weight > 0 && rank(**logit, *id) >= least)
        };
        if self.top_p != 0 {
            let candidates = kept(least).map(|((id, &logit), &weight)| (rank(logit, id), weight)).collect();
            least = end_of_nucleus(candidates, self.top_p);
        }
        let candidates = || kept(least).filter(|(_, weight)| **weight >= self.least_weight);
        let mut left = fraction(self.uniform, candidates().map(|(_, weight)| weight).sum());
        for ((id, _), &weight) in candidates() {
            if weight > left {
                return id;
            }
            left -= weight;
        }
        unreachable!("a fraction of the whole is less than it")
    }
}

/// `share / 2^64` of the whole, cut.
fn fraction(share: u64, whole: u64) -> u64 {
    ((u128::from(share) * u128::from(whole)) >> 64) as u64
}

/// The rank at which the weights of `(rank, weight)` from the first on reach `share` of all.
fn end_of_nucleus(mut candidates: Vec<(u64, u64)>, share: u64) -> u64 {
    let left = fraction(share, candidates.iter().map(|(_, weight)| weight).sum()).saturating_sub(1);
    // The nucleus is mostly small beside the vocabulary: only as much is sorted as holds it.
    let mut sorted = 64;
    loop {
        let len = candidates.len();
        if sorted < len {
            candidates.select_nth_unstable_by(sorted, |a, b| b.cmp(a));
        }
        let head = &mut candidates[..sorted.min(len)];
        head.sort_unstable_by(|a, b| b.cmp(a));
        let mut sum = 0;
        let end = head.iter().find(|(_, weight)| {
            sum += weight;
            sum > left
        });
        match end {
            Some((rank, _)) => return *rank,
            None => sorted *= 8,
        }
    }
}

/// Ordered as the logits are, with the lower ids first among equals.
fn rank(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits(); // no minus zero
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(u32::MAX - id)
}

/// The weights of all tokens: as in `kernels/sample.cu`, operation by operation.
fn weigh(weights: &mut [u64], logits: &[f32], largest: f32, scale: f32) {
    simd(
        #[inline(always)]
        || {
            for (weight, &logit) in weights.iter_mut().zip(logits) {
                let e = (logit - largest) * scale;
                if e > -64.0 {
                    let whole = e.round_ties_even();
                    let f = e - whole;
                    let mut p = 1.540_353e-4f32; // 2^f = sum of (f ln 2)^i / i!
                    for c in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0] {
                        p = p.mul_add(f, c);
                    }
                    *weight = (p * f32::from_bits(((whole as i32 + 167) as u32) << 23)) as u64;
                }
            }
        },
    );
}

/// The id of the largest logit, the lowest of several.
///
/// # Errors
/// Logits that make no distribution: none at all, a NaN, plus infinity, or minus infinity everywhere.
pub fn most_probable(logits: &[f32]) -> anyhow::Result<u32> {
    let (mut best, mut largest) = (None, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            anyhow::bail!("the logit of token {id} is {logit}: the model computes no probabilities any more");
        }
        if logit > largest {
            (best, largest) = (Some(id as u32), logit);
        }
    }
    match best {
        Some(best) => Ok(best),
        None => anyhow::bail!("no token can be drawn: all of {} logits are minus infinity", logits.len()),
    }
}
