//! The hypercube: Id's stream passes near a vertex of `{-1, +1}^K`, which is the token's code.
//!
//! `u = W_u n(h_I)`, `v = u / |u|`, `b = sign(v) / sqrt(K)` straight through, `h_I <- h_I + W_b b`; `W_b` begins at zero. A loss makes each
//! token near one vertex and all of them near many: `L_ent = mean_t sum_i h2(p_ti) - H(mean_t p)`, `p = sigmoid(2 tau v / sqrt(K))`,
//! with `tau` rising over training. The vertex of each token is reported.

pub mod geometry;

use super::ModelConfig;
use super::losses::{Loss, LossKind, LossScales};
use super::parts::{Held, PartConfig, Storage};
use crate::ops::hypercube::BITS_MAX;
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Init, Layout, ParamId, Role, Tensor};
use geometry::Vertex;
use serde::{Deserialize, Serialize};

/// `[hypercube]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HypercubeConfig {
    pub enabled: bool,
    /// Bits of a code, `K`.
    pub bits: usize,
    /// Sharpness in the entropy loss when training begins, and when it ends.
    pub tau_start: f64,
    pub tau_end: f64,
}

impl Default for HypercubeConfig {
    fn default() -> HypercubeConfig {
        HypercubeConfig { enabled: false, bits: BITS_MAX, tau_start: 10.0, tau_end: 100.0 }
    }
}

impl PartConfig for HypercubeConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn losses(&self) -> &'static [LossKind] {
        &[LossKind::Entropy]
    }

    fn complaint(&self) -> Option<String> {
        let HypercubeConfig { bits, tau_start, tau_end, .. } = *self;
        if !(1..=BITS_MAX).contains(&bits) {
            return Some(format!("hypercube.bits = {bits} is out of range; it must lie between 1 and {BITS_MAX}"));
        }
        let taus = [("tau_start", tau_start), ("tau_end", tau_end)];
        let bad = taus.into_iter().find(|(_, tau)| !(1e-3..=1e4).contains(tau));
        bad.map(|(key, tau)| format!("hypercube.{key} = {tau} is out of range; it must lie between 0.001 and 10000"))
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        // Into the code twice, since the loss has a way of its own.
        (3 * model.width * self.bits) as u64
    }

    fn held(&self, model: &ModelConfig, _n: usize, _storage: Storage) -> Held {
        Held { elems_per_token: 3 * model.width + 4 * self.bits, ..Held::default() }
    }
}

impl HypercubeConfig {
    /// The sharpness after this share of the training: equal ratios in equal times.
    pub fn tau(&self, share: f64) -> f64 {
        self.tau_start * (self.tau_end / self.tau_start).powf(share)
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Hypercube {
    input: ParamId,
    output: ParamId,
    eps: f64,
}

/// What the loss and the report want of a pass.
pub struct Coded {
    /// The norm of Id's stream before the code was added.
    x: Var,
    /// `[N, K]`: the vertices.
    pub code: Tensor,
}

impl Hypercube {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &HypercubeConfig, width: usize, eps: f64) -> Hypercube {
        let mut push = |name: &str, shape: [usize; 2], init: Init| {
            layout.push_init(format!("nanochat.hypercube.{name}.weight"), shape, Role::Matrix, init)
        };
        let input = push("input", [config.bits, width], Init::fan_in(width));
        let output = push("output", [width, config.bits], Init::ZERO);
        Hypercube { input, output, eps }
    }

    /// Adds its code to Id's stream.
    pub fn forward(&self, tape: &mut Tape, h: &Var) -> (Var, Coded) {
        let x = tape.rmsnorm(h, None, self.eps);
        let u = tape.linear(&x, self.input);
        let b = tape.hypercube_code(u);
        let code = b.value().clone();
        let h = tape.linear_onto(&b, self.output, Some(h));
        (h, Coded { x, code })
    }

    /// The entropy loss of a pass.
    pub fn loss(&self, tape: &mut Tape, coded: &Coded, scales: &LossScales) -> Loss {
        let scale = scales.of(LossKind::Entropy);
        let x = tape.scale_grad(&coded.x, scale.rho.clone());
        let u = tape.linear(&x, self.input);
        let values = tape.code_entropy(&u, scales.tau.clone(), scale.weight.clone());
        Loss { kind: LossKind::Entropy, values }
    }
}

/// The vertex of each row of `code [N, K]`.
pub fn vertices(code: &Tensor) -> Vec<Vertex> {
    let [_, bits] = code.shape().rows_cols();
    debug_assert_ne!(code.dtype(), DType::U32);
    let values: Vec<f32> = code.to_f64().into_iter().map(|x| x as f32).collect();
    values.chunks(bits).map(Vertex::nearest).collect()
}
