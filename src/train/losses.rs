//! `[loss]`: how each loss enters the total, and how much of its gradient reaches the trunk.

use super::step::LossOrder;
use crate::model::losses::LossKind;
use serde::{Deserialize, Serialize};

/// `[loss]`; see [`KEYS`](super::keys::KEYS).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    pub lm: LmLoss,
    pub concept: HeadLoss,
    pub entropy: HeadLoss,
    pub self_model: HeadLoss,
    pub reconstruction: OwnLoss,
    pub score: HeadLoss,
    pub energy: HeadLoss,
}

/// The language-model loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmLoss {
    pub weight: f64,
}

/// The loss of a head on the trunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadLoss {
    pub weight: f64,
    /// Factor of its gradient into the trunk.
    pub rho: f64,
}

/// The loss of a part that gives the trunk no gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnLoss {
    pub weight: f64,
}

impl Default for LossConfig {
    fn default() -> LossConfig {
        let head = |weight, rho| HeadLoss { weight, rho };
        LossConfig {
            lm: LmLoss { weight: 1.0 },
            concept: head(0.1, 0.3),
            entropy: head(0.02, 0.1),
            self_model: head(0.02, 0.1),
            reconstruction: OwnLoss { weight: 1.0 },
            score: head(0.05, 0.1),
            energy: head(0.05, 0.1),
        }
    }
}

impl LossConfig {
    /// Weight and rho of a loss.
    pub fn of(&self, kind: LossKind) -> LossOrder {
        let head = |loss: &HeadLoss| LossOrder { weight: loss.weight, rho: loss.rho };
        match kind {
            LossKind::Lm => LossOrder { weight: self.lm.weight, rho: 1.0 },
            LossKind::Concept => head(&self.concept),
            LossKind::Entropy => head(&self.entropy),
            LossKind::SelfModel => head(&self.self_model),
            LossKind::Reconstruction => LossOrder { weight: self.reconstruction.weight, rho: 0.0 },
            LossKind::Score => head(&self.score),
            LossKind::Energy => head(&self.energy),
        }
    }

    /// What is out of range.
    pub fn complaint(&self) -> Option<String> {
        LossKind::ALL.into_iter().find_map(|kind| {
            let (LossOrder { weight, rho }, name) = (self.of(kind), kind.name());
            let bad = |key: &str, value: f64, most: f64| {
                (!(0.0..=most).contains(&value))
                    .then(|| format!("loss.{name}.{key} = {value} is out of range; it must lie between 0 and {most}"))
            };
            bad("weight", weight, 1e6).or_else(|| bad("rho", rho, 1.0))
        })
    }
}
