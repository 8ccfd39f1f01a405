//! What judges of the heads look at: the streams of whole rows, and what each head says where it is asked. Nothing is recorded.

use super::trunk::Trunk;
use super::{Gpt, Integrated, Recompute, Rows};
use crate::model::Carried;
use crate::model::latent::LATENT;
use crate::model::self_model::Introspected;
use crate::ops::latent::CHUNK;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::tensor::random::Philox;

/// Rows of logits that are worth having at once.
pub const LOGIT_ROWS: usize = 16;

/// The logarithm of the sum of exponentials.
pub fn log_sum(logits: &[f64]) -> f64 {
    let peak = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    peak + logits.iter().map(|l| (l - peak).exp()).sum::<f64>().ln()
}

/// What comes of every token of some rows.
pub struct Look {
    /// The integrated state, `[N, C]`, and its norm, which the LM head reads.
    y: Var,
    x: Var,
    /// After Ego and Superego, where there are such.
    deeper: Option<[Var; 2]>,
}

impl Gpt {
    /// Runs the trunk over whole rows. They go on from what is carried, and what is carried goes on from them.
    pub fn look(&self, tape: &mut Tape, rows: &Rows, carried: &mut Carried) -> Look {
        let Trunk { end, .. } = self.trunk_of_rows(tape, rows, Recompute::Nothing, carried);
        let deeper = end.deeper_stages();
        let Integrated { y, x, .. } = self.integrate(tape, end);
        Look { y, x, deeper }
    }

    /// Logits `[R, V]` of the tokens numbered `at`.
    pub fn logits_at(&self, tape: &mut Tape, look: &Look, at: &[u32]) -> Tensor {
        let [y, x] = [&look.y, &look.x].map(|rows| rows_at(tape, rows, at));
        self.head_logits(tape, &y, &x)
    }

    /// The log-probability of each token of `ids [R]` after the token numbered the same in `at [R]`.
    pub fn logprobs(&self, tape: &mut Tape, look: &Look, at: &[u32], ids: &[u32]) -> Vec<f64> {
        let mut nats = Vec::with_capacity(at.len());
        for (at, ids) in at.chunks(LOGIT_ROWS).zip(ids.chunks(LOGIT_ROWS)) {
            let logits = self.logits_at(tape, look, at).to_f64();
            nats.extend(
                logits.chunks(self.config.vocab_size).zip(ids).map(|(row, &id)| row[id as usize] - log_sum(row)),
            );
        }
        nats
    }

    /// What the self-model says of every token, beside what it is about; none without a self-model.
    pub fn introspect(&self, tape: &mut Tape, look: &Look) -> Option<Introspected> {
        let (self_model, [ego, superego]) = self.self_model.as_ref().zip(look.deeper.as_ref())?;
        Some(self_model.introspect(tape, ego, superego))
    }

    /// The energy of each chunk of `chunks [R, 4]` after the token numbered the same in `at [R]`; low where it belongs. None without an energy
    /// head.
    pub fn energies(&self, tape: &mut Tape, look: &Look, at: &[u32], chunks: &[u32]) -> Option<Vec<f64>> {
        let (energy, latent) = self.energy.as_ref().zip(self.latent.as_ref())?;
        let y = rows_at(tape, &look.y, at);
        let z = latent.means(tape, chunks);
        Some(energy.energies(tape, &y, &z))
    }

    /// The chunk that the generator says comes after each token numbered in `at`, `[R, 4]`; others of another seed. None without an energy
    /// head.
    pub fn generated(&self, tape: &mut Tape, look: &Look, at: &[u32], seed: u64) -> Option<Vec<u32>> {
        let (energy, latent) = self.energy.as_ref().zip(self.latent.as_ref())?;
        let y = rows_at(tape, &look.y, at);
        let stream = Philox::new(seed, "generated chunks");
        let eps: Vec<f64> = (0..(at.len() * LATENT) as u64).map(|i| stream.uniform(i) - 0.5).collect();
        let eps = Tensor::from_f64(tape.arena(), [at.len(), LATENT], y.value().dtype(), &eps);
        let z = energy.sample(tape, &y, eps);
        let logits = latent.logits(tape, &z).to_f64();
        let likeliest = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0) as u32;
        let tokens: Vec<u32> = logits.chunks(self.config.vocab_size).map(likeliest).collect();
        debug_assert_eq!(tokens.len(), at.len() * CHUNK);
        Some(tokens)
    }
}

fn rows_at(tape: &mut Tape, x: &Var, at: &[u32]) -> Var {
    let at = Tensor::from_slice(tape.arena(), [at.len()], at);
    tape.gather_rows(x, &at)
}
