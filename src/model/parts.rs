//! The parts beyond the backbone: their configuration, in one place. Each is neutral when it begins: switched on or off, a new
//! model gives the same logits.

use super::abacus::AbacusConfig;
use super::concept::ConceptConfig;
use super::config::ModelConfig;
use super::digits::DigitsConfig;
use super::energy::EnergyConfig;
use super::hypercube::HypercubeConfig;
use super::latent::LatentConfig;
use super::losses::LossKind;
use super::memetic::MemeticConfig;
use super::memory::MemoryConfig;
use super::psyche::PsycheConfig;
use super::self_model::SelfModelConfig;
use crate::error::UserError;
use serde::{Deserialize, Serialize};

/// A table for each part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parts {
    pub psyche: PsycheConfig,
    pub concept: ConceptConfig,
    pub hypercube: HypercubeConfig,
    pub memetic: MemeticConfig,
    pub self_model: SelfModelConfig,
    pub latent: LatentConfig,
    pub abacus: AbacusConfig,
    pub memory: MemoryConfig,
    pub energy: EnergyConfig,
    pub digits: DigitsConfig,
}

/// The names of the tables, which stand at the top level of a run's configuration.
pub const TABLES: &[&str] =
    &["psyche", "concept", "hypercube", "memetic", "self_model", "latent", "abacus", "memory", "energy", "digits"];

/// The configuration of a part: what is wrong with it, and what the part costs when it is on.
pub trait PartConfig {
    /// Whether the model has the part.
    fn is_enabled(&self) -> bool;

    /// Whether the part reads or changes the streams between the stages.
    fn needs_stages(&self) -> bool {
        false
    }

    /// Its losses.
    fn losses(&self) -> &'static [LossKind] {
        &[]
    }

    /// Parts that it cannot do without.
    fn requires(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it is held against in an ablation beside its absence: a name, and the key that makes it so.
    fn controls(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// The first value that is out of range, with the remedy.
    fn complaint(&self) -> Option<String>;

    /// Matrix elements that a token meets in it.
    fn elems_per_token(&self, model: &ModelConfig) -> u64;

    /// What it holds while a training step runs, for a micro-batch of `n` tokens.
    fn held(&self, model: &ModelConfig, n: usize, storage: Storage) -> Held;
}

/// Where a model's numbers lie.
#[derive(Clone, Copy)]
pub struct Storage {
    /// They are stored in less than they are computed in.
    pub is_narrow: bool,
    pub on_gpu: bool,
}

/// What a part holds while a training step runs.
#[derive(Clone, Copy, Default)]
pub struct Held {
    /// Elements for each token of the micro-batch.
    pub elems_per_token: usize,
    /// Elements for each token that come and go inside the part, in forward or backward.
    pub passing_elems_per_token: usize,
    /// 4-byte words that its loss takes, once.
    pub loss_words: usize,
}

impl Parts {
    fn all(&self) -> [&dyn PartConfig; TABLES.len()] {
        [
            &self.psyche,
            &self.concept,
            &self.hypercube,
            &self.memetic,
            &self.self_model,
            &self.latent,
            &self.abacus,
            &self.memory,
            &self.energy,
            &self.digits,
        ]
    }

    /// A part by the name of its table.
    pub fn part(&self, name: &str) -> Option<&dyn PartConfig> {
        TABLES.iter().position(|table| *table == name).map(|i| self.all()[i])
    }

    fn enabled(&self) -> impl Iterator<Item = (&'static str, &dyn PartConfig)> {
        TABLES.iter().copied().zip(self.all()).filter(|(_, part)| part.is_enabled())
    }

    /// Whether the model is the backbone alone.
    pub fn is_plain(&self) -> bool {
        self.enabled().next().is_none()
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
        self.enabled().any(|(_, part)| part.needs_stages())
    }

    /// Whether any part goes on from segment to segment of a text.
    pub fn read_on(&self) -> bool {
        self.abacus.enabled || self.memory.enabled
    }

    /// Floating-point operations per token that the parts add to a training step: six per matrix element that a token meets.
    pub fn train_flops_per_token(&self, model: &ModelConfig) -> u64 {
        6 * self.enabled().map(|(_, part)| part.elems_per_token(model)).sum::<u64>()
    }

    /// What the parts hold while a training step of a micro-batch of `n` tokens runs, beyond what the trunk does. Losses come one
    /// after the other.
    pub fn held(&self, model: &ModelConfig, n: usize, storage: Storage) -> Held {
        self.enabled().map(|(_, part)| part.held(model, n, storage)).fold(Held::default(), |all, part| Held {
            elems_per_token: all.elems_per_token + part.elems_per_token,
            passing_elems_per_token: all.passing_elems_per_token.max(part.passing_elems_per_token),
            loss_words: all.loss_words.max(part.loss_words),
        })
    }

    /// Refuses values that are out of range, or that the backbone cannot carry.
    ///
    /// # Errors
    /// The first such value, with the remedy.
    pub fn validate(&self, model: &ModelConfig) -> Result<(), UserError> {
        if model.stages().is_none()
            && let Some((name, _)) = self.enabled().find(|(_, part)| part.needs_stages())
        {
            return Err(UserError(format!(
                "a model of {} layers has no three stages, which {name} needs; use 3 layers or more, or set {name}.enabled=false",
                model.layers
            )));
        }
        let is_on = |name: &str| self.part(name).is_some_and(PartConfig::is_enabled);
        let missing = |(name, part): (&'static str, &dyn PartConfig)| {
            part.requires().iter().find(|other| !is_on(other)).map(|other| (name, *other))
        };
        if let Some((name, other)) = self.enabled().find_map(missing) {
            return Err(UserError(format!(
                "{name}.enabled = true needs {other}; set {other}.enabled=true or {name}.enabled=false"
            )));
        }
        let concept = &self.concept;
        if concept.enabled && concept.feedback && concept.count < model.vocab_size {
            return Err(UserError(format!(
                "concept.feedback needs a concept for each token: concept.count = {} is below model.vocab_size = {}; raise it or set concept.feedback=false",
                concept.count, model.vocab_size
            )));
        }
        self.all().into_iter().find_map(PartConfig::complaint).map_or(Ok(()), |complaint| Err(UserError(complaint)))
    }
}
