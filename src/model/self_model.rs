//! The self-model: from Ego's stream, what Superego will make of the token, how hard the token is, and whether the model is wrong.
//!
//! `s_t = W_2 relu^2(W_1 n(h~_E,t))`: 64 features, a loss and a score of error. Targets, none of which takes a gradient: (a)
//! `R n(h_S,t)`, `R` fixed and random; (b) the token's cross-entropy; (c) whether the likeliest token is another than the target,
//! `p = sigmoid(s_e)`. The loss is in [`crate::ops::self_loss`]. `W_2` begins at zero. The head reads Ego's stream after the additions
//! made at its cut, with its gradient scaled by rho; nothing reads the head, but what it says of a token is reported.

use super::ModelConfig;
use super::losses::{Loss, LossKind, LossScale};
use super::parts::{Held, PartConfig, Storage};
use crate::ops::self_loss::Truth;
use crate::ops::sigmoid_gate::sigmoid;
use crate::tape::{Tape, Var};
use crate::tensor::{Init, Layout, ParamId, Role, Tensor};
use serde::{Deserialize, Serialize};

/// `[self_model]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelfModelConfig {
    pub enabled: bool,
    /// Width of the hidden layer.
    pub width: usize,
}

impl Default for SelfModelConfig {
    fn default() -> SelfModelConfig {
        SelfModelConfig { enabled: false, width: 256 }
    }
}

/// Features of Superego's stream that are predicted.
pub const FEATURES: usize = 64;

/// Numbers that are said of a token: the features, the loss, the score of an error.
const SAID: usize = FEATURES + 2;

/// Widest hidden layer.
const WIDTH_MAX: usize = 1 << 16;

impl PartConfig for SelfModelConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn losses(&self) -> &'static [LossKind] {
        &[LossKind::SelfModel]
    }

    fn complaint(&self) -> Option<String> {
        let width = self.width;
        (!(1..=WIDTH_MAX).contains(&width))
            .then(|| format!("self_model.width = {width} is out of range; it must lie between 1 and {WIDTH_MAX}"))
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        // The true features are a product of their own, without a way back.
        (self.width * (model.width + SAID) + FEATURES * model.width / 3) as u64
    }

    fn held(&self, model: &ModelConfig, n: usize, _storage: Storage) -> Held {
        // The gradient of Ego's stream waits for Ego. Before, there are its norm, the hidden layer before and after, and the gradient of
        // that; what is said, or its gradient.
        Held {
            elems_per_token: model.width + 2,
            loss_words: n * (model.width + 3 * self.width + SAID),
            ..Held::default()
        }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct SelfModel {
    input: ParamId,
    output: ParamId,
    projection: ParamId,
    eps: f64,
}

/// What is true of the tokens of a pass.
pub struct Seen<'a> {
    /// Superego's stream, `[N, C]`.
    pub superego: &'a Var,
    /// `[N]`: cross-entropy of each token, and 1 where the likeliest token is wrong.
    pub losses: &'a Tensor,
    pub errors: &'a Tensor,
    /// `[N]` u32.
    pub targets: &'a Tensor,
}

impl SelfModel {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &SelfModelConfig, width: usize, eps: f64) -> SelfModel {
        let mut push = |name: &str, shape: [usize; 2], role: Role, init: Init| {
            layout.push_init(format!("nanochat.self_model.{name}.weight"), shape, role, init)
        };
        let input = push("input", [config.width, width], Role::Matrix, Init::fan_in(width));
        let output = push("output", [SAID, config.width], Role::Matrix, Init::ZERO);
        // Features of a stream at unit root mean square have unit variance.
        let deviation = 1.0 / (width as f64).sqrt();
        let projection = push("projection", [FEATURES, width], Role::Fixed, Init::Normal(deviation));
        SelfModel { input, output, projection, eps }
    }

    /// What it says of each token of Ego's stream, `[N, 66]`.
    pub fn forward(&self, tape: &mut Tape, ego: &Var) -> Var {
        let x = tape.rmsnorm(ego, None, self.eps);
        let hidden = tape.linear(&x, self.input);
        drop(x);
        let hidden = tape.relu_squared(hidden);
        tape.linear(&hidden, self.output)
    }

    /// The features of Superego's stream, `[N, 64]`; they take no gradient.
    fn features(&self, tape: &mut Tape, superego: &Var) -> Tensor {
        tape.detached(|tape| {
            let x = tape.rmsnorm(superego, None, self.eps);
            tape.linear(&x, self.projection).value().clone()
        })
    }

    /// What it says of each token, what it reads, and the features that it is about.
    pub fn introspect(&self, tape: &mut Tape, ego: &Var, superego: &Var) -> Introspected {
        let said = self.forward(tape, ego).value().clone();
        let input = tape.rmsnorm(ego, None, self.eps).value().clone();
        Introspected { said, input, features: self.features(tape, superego) }
    }

    /// The loss of what it says of Ego's stream.
    pub fn loss(&self, tape: &mut Tape, ego: &Var, seen: Seen, scale: &LossScale) -> Loss {
        let x = tape.scale_grad(ego, scale.rho.clone());
        let s = self.forward(tape, &x);
        let features = self.features(tape, seen.superego);
        let losses = tape.detached(|_| seen.losses.clone());
        let truth = Truth { features: &features, losses: &losses, errors: seen.errors, targets: seen.targets };
        let values = tape.self_loss(&s, truth, scale.weight.clone());
        Loss { kind: LossKind::SelfModel, values }
    }
}

/// What a self-model says of `N` tokens, what it reads, and what is true.
pub struct Introspected {
    /// `[N, 66]`: features, the loss, the score of an error ([`introspections`]).
    pub said: Tensor,
    /// `[N, C]`: the norm of Ego's stream.
    pub input: Tensor,
    /// `[N, 64]`: the features of Superego's stream.
    pub features: Tensor,
}

impl Introspected {
    /// The features that are said of each token, `[N, 64]` in rows.
    pub fn said_features(&self) -> Vec<f64> {
        self.said.to_f64().chunks(SAID).flat_map(|row| row[..FEATURES].to_vec()).collect()
    }
}

/// What a self-model says of a token, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Introspection {
    /// The cross-entropy it expects, in nats.
    pub loss: f64,
    /// The probability that the likeliest token is wrong.
    pub error: f64,
}

/// Of each row of `said [N, 66]`.
pub fn introspections(said: &Tensor) -> Vec<Introspection> {
    let of = |row: &[f64]| Introspection { loss: row[FEATURES], error: sigmoid(row[FEATURES + 1]) };
    said.to_f64().chunks(SAID).map(of).collect()
}
