//! Draws a token from logits: repetition penalty, temperature, then the `k` most probable, then the smallest set of probability `p`,
//! then those that are not far less probable than the first.
//!
//! Counter-based: a draw is a function of (seed, sequence, position, logits) alone, so a sequence comes out the same
//! whatever is generated beside it, in whatever order.

use crate::error::UserError;
use crate::tensor::random::Philox;
use anyhow::bail;
use std::cmp::Ordering;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by it; 0 always takes the most probable token, the lowest id of several.
    pub temperature: f64,
    /// Only the `k` most probable tokens, the lower ids first among equals; at least 1.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together first reach this probability, out of what `top_k` left; in `(0, 1]`.
    pub top_p: Option<f64>,
    /// Only tokens at least so many times as probable as the most probable one, out of what is left; from 0 to 1.
    pub min_p: Option<f64>,
    /// Logits of tokens that are there already are divided by it where positive, else multiplied (Keskar et al. 2019, "CTRL"); 1 changes
    /// nothing, more makes repetitions rarer.
    pub repetition_penalty: f64,
    /// Another seed draws other tokens.
    pub seed: u64,
}

impl SamplerOptions {
    /// Always the most probable token.
    pub const GREEDY: SamplerOptions =
        SamplerOptions { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0, seed: 0 };

    /// Refuses values out of range, in one line that names the value and the range.
    pub fn validate(&self) -> Result<(), UserError> {
        let fail = |message: String| Err(UserError(message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail(format!("temperature is {}; it must be 0 (greedy) or a positive number", self.temperature));
        }
        if self.top_k == Some(0) {
            return fail("top-k is 0; it must be at least 1 (leave it out to draw from all tokens)".to_owned());
        }
        if let Some(p) = self.top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return fail(format!("top-p is {p}; it must be above 0 and at most 1"));
        }
        if let Some(p) = self.min_p
            && !(0.0..=1.0).contains(&p)
        {
            return fail(format!("min-p is {p}; it must lie between 0 and 1"));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let penalty = self.repetition_penalty;
            return fail(format!("repetition-penalty is {penalty}; it must be a positive number (1 changes nothing)"));
        }
        Ok(())
    }
}

/// Draws tokens. Holds no state: any thread may ask for any sequence and position.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    options: SamplerOptions,
}

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// `exp((logit - largest) / temperature)`: its probability up to a common factor.
    weight: f64,
}

impl Sampler {
    /// A sampler. Errors: what [`SamplerOptions::validate`] refuses.
    pub fn new(options: SamplerOptions) -> Result<Sampler, UserError> {
        options.validate()?;
        Ok(Sampler { options })
    }

    /// The options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Applies the repetition penalty to `logits [V]` for each token of `past`, once.
    pub fn penalise(&self, logits: &mut [f32], past: &[u32]) {
        let penalty = self.options.repetition_penalty as f32;
        if penalty == 1.0 {
            return;
        }
        let mut seen = past.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// The token at `position` of sequence number `sequence`, given its `logits [V]`. One of minus infinity is never
    /// drawn.
    ///
    /// # Errors
    /// Logits that make no distribution: none at all, a NaN, plus infinity, or minus infinity everywhere.
    pub fn pick(&self, logits: &[f32], sequence: u64, position: u64) -> anyhow::Result<u32> {
        let best = most_probable(logits)?;
        let SamplerOptions { temperature, top_k, top_p, min_p, seed, .. } = self.options;
        if temperature == 0.0 {
            return Ok(best);
        }
        let largest = f64::from(logits[best as usize]);
        let candidate = |(id, &logit): (usize, &f32)| {
            let weight = ((f64::from(logit) - largest) / temperature).exp();
            Candidate { id: id as u32, logit, weight }
        };
        let mut candidates: Vec<Candidate> = logits.iter().enumerate().map(candidate).collect();
        if let Some(k) = top_k {
            keep_most_probable(&mut candidates, k);
        }
        if let Some(p) = top_p {
            keep_nucleus(&mut candidates, p);
        }
        if let Some(p) = min_p {
            candidates.retain(|candidate| candidate.weight >= p);
        }
        let uniform = Philox::new(seed, &format!("sequence {sequence}")).uniform(position);
        Ok(draw(&candidates, uniform))
    }
}

/// The id of the largest logit, the lowest of several.
fn most_probable(logits: &[f32]) -> anyhow::Result<u32> {
    let (mut best, mut largest) = (None, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            bail!("the logit of token {id} is {logit}: the model computes no probabilities any more");
        }
        if logit > largest {
            (best, largest) = (Some(id as u32), logit);
        }
    }
    match best {
        Some(best) => Ok(best),
        None => bail!("no token can be drawn: all of {} logits are minus infinity", logits.len()),
    }
}

/// Falling logits, equal ones by rising id: a total order, so that what is kept does not depend on the algorithm.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Moves the `k` first by rank to the front, in no order.
fn partition(candidates: &mut [Candidate], k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_rank);
    }
}

/// Leaves the `k` first by rank, in the order of their ids.
fn keep_most_probable(candidates: &mut Vec<Candidate>, k: usize) {
    partition(candidates, k);
    candidates.truncate(k);
    candidates.sort_unstable_by_key(|candidate| candidate.id);
}

/// Leaves the first by rank whose weights together first reach `p` of the whole; always one at least.
fn keep_nucleus(candidates: &mut Vec<Candidate>, p: f64) {
    let enough = p * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    // The nucleus is mostly small beside the vocabulary: only as much is sorted as holds it.
    let mut sorted = 64;
    loop {
        partition(candidates, sorted);
        let len = candidates.len();
        let head = &mut candidates[..sorted.min(len)];
        head.sort_unstable_by(by_rank);
        let mut reached = 0.0;
        let last = head.iter().position(|candidate| {
            reached += candidate.weight;
            reached >= enough
        });
        match last {
            Some(last) => return candidates.truncate(last + 1),
            // The sum in another order may fall short of `enough` by rounding: then all of them are the nucleus.
            None if sorted >= len => return,
            None => sorted *= 8,
        }
    }
}

/// The candidate at `uniform` (in `[0, 1)`) of the summed weights.
fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let target = uniform * candidates.iter().map(|candidate| candidate.weight).sum::<f64>();
    let mut sum = 0.0;
    let mut chosen = None;
    for candidate in candidates.iter().filter(|candidate| candidate.weight > 0.0) {
        chosen = Some(candidate.id);
        sum += candidate.weight;
        if sum > target {
            break;
        }
    }
    chosen.expect("the most probable token has weight 1")
}
