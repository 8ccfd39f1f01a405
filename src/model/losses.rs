//! The losses of a model: which there are, how each enters the total, and what a pass gives back of it.

use super::hypercube::HypercubeConfig;
use crate::tensor::{Scale, Tensor};

/// Which loss.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LossKind {
    /// Cross-entropy of the next token.
    Lm,
    /// Cross-entropy of the bag of concepts that come soon.
    Concept,
    /// Entropy of the hypercube's codes.
    Entropy,
    /// The self-model's: features of the deeper state, loss and error of the token.
    SelfModel,
    /// Of chunks of tokens that go through a latent, and of the latent's divergence.
    Reconstruction,
    /// The energy score of generated latents.
    Score,
    /// The contrast of true latents with generated ones, and with those of other documents.
    Energy,
}

/// Number of losses.
pub const LOSSES: usize = LossKind::ALL.len();

impl LossKind {
    /// All, in the order of their index.
    pub const ALL: [LossKind; 7] = [
        LossKind::Lm,
        LossKind::Concept,
        LossKind::Entropy,
        LossKind::SelfModel,
        LossKind::Reconstruction,
        LossKind::Score,
        LossKind::Energy,
    ];

    /// As in `loss.NAME` of configuration and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            LossKind::Lm => "lm",
            LossKind::Concept => "concept",
            LossKind::Entropy => "entropy",
            LossKind::SelfModel => "self_model",
            LossKind::Reconstruction => "reconstruction",
            LossKind::Score => "score",
            LossKind::Energy => "energy",
        }
    }

    /// Its place in arrays of [`LOSSES`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How a loss enters the total.
#[derive(Clone, Debug)]
pub struct LossScale {
    /// Factor of each of its values: its weight over their number.
    pub weight: Scale,
    /// Factor of its gradient into the trunk; 0 makes its head a probe.
    pub rho: Scale,
}

/// How each loss enters the total.
#[derive(Clone, Debug)]
pub struct LossScales {
    pub each: [LossScale; LOSSES],
    /// Sharpness of the hypercube's codes in their entropy.
    pub tau: Scale,
    /// The seed of what is dropped and drawn: a whole number below [`SEEDS`](crate::tensor::noise::SEEDS). Without one nothing is dropped.
    pub noise: Option<Scale>,
}

impl LossScales {
    /// The language-model loss alone, each value by `factor`; without noise.
    pub fn lm(factor: impl Into<Scale>) -> LossScales {
        let mut scales = LossScales { noise: None, ..LossScales::all(0.0, 0.0) };
        scales.each[LossKind::Lm.index()].weight = factor.into();
        scales
    }

    /// Every loss by the same, with the noise of seed 1.
    pub fn all(weight: f64, rho: f64) -> LossScales {
        let each = std::array::from_fn(|_| LossScale { weight: weight.into(), rho: rho.into() });
        LossScales { each, tau: HypercubeConfig::default().tau_end.into(), noise: Some(1.0.into()) }
    }

    /// Of one loss.
    pub fn of(&self, kind: LossKind) -> &LossScale {
        &self.each[kind.index()]
    }
}

/// A loss of a pass.
pub struct Loss {
    pub kind: LossKind,
    /// Its values, not weighted: to be added up and divided by their number ([`Gpt::counts`](super::Gpt::counts)).
    pub values: Tensor,
}
