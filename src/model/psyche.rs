//! The PsycheController: weights of the stages Id, Ego and Superego for every token, and the blend that the head reads.
//!
//! `d_I = h_I`, `d_E = h_E - h_I`, `d_S = h_S - h_E`; `z = W_c n(s) + b_c`, `w = softmax(z)`,
//! `y = h_S + sum_k (3 w_k - 1) d_k`. `W_c` and `b_c` begin at zero, where `w = 1/3` and `y = h_S`: the plain GPT. The source `s` is
//! the Superego's stream, or Id's: then the weights are known before the deeper stages run, and a decode step may end after Id.
//! Token t alone decides for token t.

use super::ModelConfig;
use super::parts::{Held, PartConfig, Storage};
use crate::ops::blend::{Options, Source};
use crate::tape::{BlendParams, Tape, Var};
use crate::tensor::{Init, Layout, ParamId, Role, Tensor};
use serde::{Deserialize, Serialize};

/// `[psyche]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PsycheConfig {
    pub enabled: bool,
    pub source: PsycheSource,
    /// A decode step ends after Id where Id's weight is above this; 1 for never. The source must be Id.
    pub exit_threshold: f64,
}

impl Default for PsycheConfig {
    fn default() -> PsycheConfig {
        PsycheConfig { enabled: false, source: PsycheSource::Superego, exit_threshold: 1.0 }
    }
}

impl PartConfig for PsycheConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn controls(&self) -> &'static [(&'static str, &'static str)] {
        &[("static weights", "psyche.source=static")]
    }

    fn complaint(&self) -> Option<String> {
        let PsycheConfig { enabled, source, exit_threshold } = *self;
        if !(exit_threshold > 0.0 && exit_threshold <= 1.0) {
            return Some(format!(
                "psyche.exit_threshold = {exit_threshold} must be above 0 and at most 1 (1 never ends early)"
            ));
        }
        (enabled && exit_threshold < 1.0 && source != PsycheSource::Id).then(|| {
            "psyche.exit_threshold needs psyche.source = \"id\": only Id's stream is known so early".to_string()
        })
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        3 * model.width as u64
    }

    fn held(&self, model: &ModelConfig, _n: usize, _storage: Storage) -> Held {
        // Streams at the ends of Id and Ego, the blend, and in backward the gradients of three.
        Held { elems_per_token: 6 * model.width + 8, ..Held::default() }
    }
}

/// What the weights are computed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PsycheSource {
    Superego,
    Id,
    /// Nothing: three weights for all tokens, the control of an ablation.
    Static,
}

/// Names of the stages, in the order of the weights.
pub const STAGES: [&str; 3] = ["id", "ego", "superego"];

/// The controller's parameters.
#[derive(Clone, Debug)]
pub struct Psyche {
    controller: Option<ParamId>,
    bias: ParamId,
    options: Options,
    exit_threshold: f64,
}

/// What the head reads.
pub struct Blended {
    /// The integrated state.
    pub y: Var,
    /// Its norm, with the final gain.
    pub x: Var,
    /// `[N, 3]`.
    pub weights: Tensor,
}

impl Psyche {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &PsycheConfig, width: usize, eps: f64) -> Psyche {
        let source = match config.source {
            PsycheSource::Superego => Source::Third,
            PsycheSource::Id => Source::First,
            PsycheSource::Static => Source::Nothing,
        };
        let controller = (source != Source::Nothing)
            .then(|| layout.push_init("nanochat.psyche.controller.weight", [3, width], Role::Controller, Init::ZERO));
        let bias = layout.push_init("nanochat.psyche.controller.bias", [3], Role::Controller, Init::ZERO);
        let options = Options { source, lean: [0.0; 3], eps };
        Psyche { controller, bias, options, exit_threshold: config.exit_threshold }
    }

    /// The same with a constant added to the scores of Id, Ego and Superego.
    pub fn leaning(&self, lean: [f64; 3]) -> Psyche {
        Psyche { options: Options { lean, ..self.options }, ..self.clone() }
    }

    /// Blends the streams after Id, Ego and Superego; `gain` is that of the final norm.
    pub fn forward(&self, tape: &mut Tape, streams: [&Var; 3], gain: ParamId) -> Blended {
        let weights = BlendParams { controller: self.controller, bias: self.bias, gain };
        let (y, x, weights) = tape.blend(streams, weights, self.options);
        Blended { y, x, weights }
    }

    /// What the head reads if the step ends after Id, where it may end there.
    pub fn exit(&self, tape: &mut Tape, id: &Var, gain: ParamId) -> Option<Blended> {
        if self.exit_threshold >= 1.0 {
            return None;
        }
        let blended = self.forward(tape, [id; 3], gain);
        (blended.weights.to_f64()[0] > self.exit_threshold).then_some(blended)
    }
}
