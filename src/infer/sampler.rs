//! Draws a token from logits: repetition penalty, temperature, then the `k` most probable, then the smallest set of probability `p`,
//! then those that are not far less probable than the first.
//!
//! Counter-based: a draw is a function of (seed, sequence, position, logits) alone, so a sequence comes out the same
//! whatever is generated beside it, in whatever order, and on whatever device ([`sample`]).

use crate::error::UserError;
use crate::ops::sample::{self, Draw};
use crate::tensor::random::Philox;

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
        let first = sample::most_probable(logits)?;
        Ok(self.draw(sequence, position).pick(logits, first))
    }

    /// How the token at `position` of sequence number `sequence` is drawn.
    pub fn draw(&self, sequence: u64, position: u64) -> Draw {
        let SamplerOptions { temperature, top_k, top_p, min_p, seed, .. } = self.options;
        let [high, low, ..] = Philox::new(seed, &format!("sequence {sequence}")).block(position);
        let scale = (std::f64::consts::LOG2_E / temperature).min(f64::from(f32::MAX)) as f32;
        let top_k = if temperature == 0.0 { 1 } else { top_k.map_or(u32::MAX, |k| k.min(u32::MAX as usize) as u32) };
        // In fractions of 2^64, as far as an f64 knows them; all of it is no limit.
        let top_p = top_p.filter(|&p| p < 1.0).map_or(0, |p| ((p * 2f64.powi(64)) as u64).max(1));
        let least_weight = (min_p.unwrap_or(0.0) * sample::WEIGHT_OF_FIRST as f64).ceil() as u64;
        Draw { uniform: u64::from(high) << 32 | u64::from(low), scale, top_k, top_p, least_weight }
    }
}
