//! Which of several continuations is best: by what the energy head says of their chunks, or by their probability.

use super::{Footprint, reserve_arena};
use crate::model::gpt::Rows;
use crate::model::{Carried, Gpt, ModelConfig};
use crate::ops::latent::CHUNK;
use crate::tape::Tape;
use crate::tensor::Params;
use crate::user_bail;

/// What continuations are ranked by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rerank {
    /// The energy of the chunks that lie whole in the continuation, on average; the lowest is best.
    Energy,
    /// The log-probability of a token, on average; the highest is best.
    Logprob,
}

impl Rerank {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Rerank::Energy => "energy",
            Rerank::Logprob => "logprob",
        }
    }

    /// Refuses what a model cannot be asked.
    ///
    /// # Errors
    /// A user error where there is no energy head.
    pub fn check(self, config: &ModelConfig) -> anyhow::Result<()> {
        if self == Rerank::Energy && !config.parts.energy.enabled {
            user_bail!(
                "the model has no energy head; use --rerank logprob, or train with --set latent.enabled=true --set energy.enabled=true"
            );
        }
        Ok(())
    }

    /// Whether `score` is better than `other`; any is better than none.
    pub fn is_better(self, score: Option<f64>, other: Option<f64>) -> bool {
        match (score, other) {
            (Some(score), Some(other)) if self == Rerank::Energy => score < other,
            (Some(score), Some(other)) => score > other,
            (score, other) => score.is_some() && other.is_none(),
        }
    }

    /// The score of `tokens` after `prompt`, together at most the model's context, read as one text; none where there is nothing to judge: no
    /// token, or no whole chunk.
    ///
    /// # Errors
    /// What the device refuses; a user error as [`Rerank::check`].
    pub fn score(self, model: &Gpt, params: &Params, prompt: &[u32], tokens: &[u32]) -> anyhow::Result<Option<f64>> {
        self.check(model.config())?;
        let (text, begin) = ([prompt, tokens].concat(), prompt.len());
        // Chunks count from the beginning of the text.
        let chunks = (begin.next_multiple_of(CHUNK)..text.len()).step_by(CHUNK).filter(|at| at + CHUNK <= text.len());
        let judged: Vec<u32> = match self {
            Rerank::Energy => chunks.map(|at| at as u32 - 1).collect(),
            Rerank::Logprob => (begin as u32 - 1..text.len() as u32 - 1).collect(),
        };
        if judged.is_empty() {
            return Ok(None);
        }
        let device = params.device();
        let arena = reserve_arena(device, model.config(), Footprint::of_loss(device, model.config(), text.len()))?;
        let mut tape = Tape::inference(&arena, params);
        let rows = Rows::new(&arena, &text, text.len(), Some(&vec![0; text.len()]));
        let look = model.look(&mut tape, &rows, &mut Carried::default());
        let scores = match self {
            Rerank::Energy => {
                let chunks = judged.iter().flat_map(|&at| text[at as usize + 1..][..CHUNK].to_vec());
                model.energies(&mut tape, &look, &judged, &chunks.collect::<Vec<u32>>()).expect("checked before")
            }
            Rerank::Logprob => model.logprobs(&mut tape, &look, &judged, tokens),
        };
        device.synchronise()?;
        Ok(Some(scores.iter().sum::<f64>() / scores.len() as f64))
    }
}
