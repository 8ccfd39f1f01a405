//! The parts beyond the backbone: their configuration, in one place. Each is neutral when it begins: switched on or off, a new
//! model gives the same logits.

use super::concept::ConceptConfig;
use super::config::ModelConfig;
use super::hypercube::HypercubeConfig;
use super::psyche::{PsycheConfig, PsycheSource};
use crate::error::UserError;
use crate::ops::lm_loss::chunk_rows;
use serde::{Deserialize, Serialize};

/// A table for each part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parts {
    pub psyche: PsycheConfig,
    pub concept: ConceptConfig,
    pub hypercube: HypercubeConfig,
}

/// The names of the tables, which stand at the top level of a run's configuration.
pub const TABLES: &[&str] = &["psyche", "concept", "hypercube"];

impl Parts {
    /// Whether the model is the backbone alone.
    pub fn is_plain(&self) -> bool {
        !(self.psyche.enabled || self.concept.enabled || self.hypercube.enabled)
    }

    /// The table of a part that `before` has and these do not have as it was.
    pub fn lacks(&self, before: &Parts) -> Option<&'static str> {
        let table = |parts: &Parts, name: &str| serde_json::to_value(parts).expect("plain values")[name].clone();
        TABLES.iter().copied().find(|name| {
            let (now, then) = (table(self, name), table(before, name));
            then["enabled"] == true && now != then
        })
    }

    /// Whether any part reads or changes the streams between the stages.
    pub fn needs_stages(&self) -> bool {
        self.psyche.enabled || self.hypercube.enabled
    }

    /// Floating-point operations per token that the parts add to a training step: six per matrix element that a token meets.
    pub fn train_flops_per_token(&self, model: &ModelConfig) -> u64 {
        let c = model.width as u64;
        let mut elems = 0;
        if self.psyche.enabled {
            elems += 3 * c;
        }
        if self.hypercube.enabled {
            // Into the code twice, since the loss has a way of its own.
            elems += 3 * c * self.hypercube.bits as u64;
        }
        if self.concept.enabled {
            let (ConceptConfig { count, every, .. }, rank) = (&self.concept, self.concept.code_width());
            elems += (rank as u64 * (c + *count as u64)).div_ceil(*every as u64);
        }
        6 * elems
    }

    /// Elements per token that the parts hold while a step runs, beyond the trunk's, and the 4-byte words that the concept loss takes
    /// for a micro-batch of `n` tokens; with `is_narrow`, elements are stored in less than they are computed in.
    pub fn activation_elems(&self, model: &ModelConfig, n: usize, is_narrow: bool) -> [usize; 2] {
        let c = model.width;
        let (mut elems, mut words) = (0, 0);
        if self.psyche.enabled {
            // Streams at the ends of Id and Ego, the blend, and in backward the gradients of three.
            elems += 6 * c + 8;
        }
        if self.hypercube.enabled {
            elems += 3 * c + 4 * self.hypercube.bits;
        }
        if self.concept.enabled {
            let (ConceptConfig { count, window, every, .. }, rank) = (self.concept.clone(), self.concept.code_width());
            let m = n.div_ceil(every);
            elems += (3 * c + 3 * rank).div_ceil(every);
            // Narrow: the codes widened, and gradients of logits beside the logits.
            let logits = chunk_rows(count).min(m) * count;
            words += m * (window + 2) + if is_narrow { logits + logits / 2 + count * rank } else { logits };
        }
        [elems, words]
    }

    /// Refuses values that are out of range, or that the backbone cannot carry.
    ///
    /// # Errors
    /// The first such value, with the remedy.
    pub fn validate(&self, model: &ModelConfig) -> Result<(), UserError> {
        if self.needs_stages() && model.stages().is_none() {
            return Err(UserError(format!(
                "a model of {} layers has no three stages, which psyche and hypercube need; use 3 layers or more, or switch them off",
                model.layers
            )));
        }
        let PsycheConfig { enabled, source, exit_threshold } = self.psyche;
        if !(exit_threshold > 0.0 && exit_threshold <= 1.0) {
            return Err(UserError(format!(
                "psyche.exit_threshold = {exit_threshold} must be above 0 and at most 1 (1 never ends early)"
            )));
        }
        if enabled && exit_threshold < 1.0 && source != PsycheSource::Id {
            return Err(UserError(
                "psyche.exit_threshold needs psyche.source = \"id\": only Id's stream is known so early".into(),
            ));
        }
        let complaints = [self.concept.complaint(), self.hypercube.complaint()];
        if let Some(complaint) = complaints.into_iter().flatten().next() {
            return Err(UserError(complaint));
        }
        Ok(())
    }
}
