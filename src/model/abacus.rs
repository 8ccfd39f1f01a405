//! The abacus state memory: a matrix per head at the cut between Id and Ego that is read, and written by the gated delta rule, and goes on
//! from one segment of a document or conversation to the next.
//!
//! With `x = n(h_I)`: `q, k = L2(W x)`, `v = W_v x`, `log alpha = -exp(A) softplus(W_f x + dt)`, `beta = sigmoid(W_b x)`;
//! `S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T`, `o_t = S_t^T q_t`;
//! `h_I <- h_I + W_o (sigmoid(W_g x) * RMSNorm(o))`. `W_o` begins at zero; `A` and `W_f` too, and `dt` so that half-lives go from 69 tokens in the
//! first head to 6,931 in the last.

use super::ModelConfig;
use super::kda;
use super::parts::{Held, PartConfig, Storage};
use crate::device::Device;
use crate::ops::delta_rule::{self, CHUNK, Dims};
use crate::tape::{DecayParams, DeltaOperands, Tape, Var};
use crate::tensor::{DType, Init, Layout, ParamId, Role, Tensor};
use serde::{Deserialize, Serialize};

/// `[abacus]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AbacusConfig {
    pub enabled: bool,
    pub heads: usize,
    /// Width of a head's keys.
    pub key_dim: usize,
    /// Width of a head's values.
    pub value_dim: usize,
    /// Rows of a micro-batch that go on with each other: the gradient reaches as far back.
    pub segments: usize,
}

impl Default for AbacusConfig {
    fn default() -> AbacusConfig {
        AbacusConfig { enabled: false, heads: 4, key_dim: 64, value_dim: 64, segments: 2 }
    }
}

/// Half-lives of the channels at the beginning, in tokens: rates of 0.01 to 0.0001.
const HALF_LIVES: [f64; 2] = [69.3, 6931.5];
/// Most heads, and most segments of a stream in a micro-batch.
const HEADS_MAX: usize = 64;
const SEGMENTS_MAX: usize = 64;

impl AbacusConfig {
    fn dims(&self) -> Dims {
        Dims { h: self.heads, dk: self.key_dim, dv: self.value_dim }
    }

    /// The states of `streams` that have not begun, `[streams, H, dk, dv]` in the accumulator type of `dtype`.
    pub fn states(&self, device: Device, streams: usize, dtype: DType) -> Tensor {
        Tensor::owned_on(device, [streams, self.heads, self.key_dim, self.value_dim], dtype.accumulator())
    }
}

impl PartConfig for AbacusConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn complaint(&self) -> Option<String> {
        for (key, value, most) in [("heads", self.heads, HEADS_MAX), ("segments", self.segments, SEGMENTS_MAX)] {
            if !(1..=most).contains(&value) {
                return Some(format!("abacus.{key} = {value} is out of range; it must lie between 1 and {most}"));
            }
        }
        let widths = [("key_dim", self.key_dim), ("value_dim", self.value_dim)];
        let bad = widths.into_iter().find(|&(_, d)| d == 0 || !kda::fits(d));
        bad.map(|(key, d)| format!("abacus.{key} = {d} does not suit the kernels; they take multiples of 32 up to 256"))
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let Dims { h, dk, dv } = self.dims();
        (model.width * h * (3 * dk + 3 * dv + 1)) as u64 + kda::state_flops(h, dk, dv) / 6
    }

    fn held(&self, model: &ModelConfig, _n: usize, storage: Storage) -> Held {
        let Dims { h, dk, dv } = self.dims();
        // The stream and its norm; q and k before and after, decay likewise, v, beta, output, norm, gate, gated.
        let stored = 2 * model.width + h * (6 * dk + 5 * dv + 2);
        // Errors, states and the norm's scale, in the accumulator type.
        let wide = h * (dv + dk * dv / CHUNK + 1);
        // Narrow elements are reckoned with a copy of twice their size, which most of these never have.
        let elems_per_token = if storage.is_narrow { stored / 2 + wide } else { stored + wide };
        Held { elems_per_token, ..Held::default() }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Abacus {
    query: ParamId,
    key: ParamId,
    value: ParamId,
    decay: ParamId,
    rates: DecayParams,
    write: ParamId,
    gate: ParamId,
    output: ParamId,
    dims: Dims,
    eps: f64,
}

/// What the memory looks back on.
pub enum Past<'a> {
    /// Streams of `t` tokens, whose rows lie behind each other, and where documents start, `[N]`. `states` `[streams, H, dk, dv]` go on with
    /// them, without a gradient; zero where there are none.
    Streams { t: usize, starts: Option<&'a Tensor>, states: Option<&'a mut Tensor> },
    /// The next `t` tokens of one sequence, and its state.
    Cached { t: usize, state: &'a mut Tensor },
}

impl Abacus {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &AbacusConfig, width: usize, eps: f64) -> Abacus {
        let Dims { h, dk, dv } = config.dims();
        let mut push = |name: &str, shape: &[usize], role: Role, init: Init| {
            layout.push_init(format!("nanochat.abacus.{name}"), shape, role, init)
        };
        let mut input =
            |name: &str, rows: usize, init: Init| push(&format!("{name}.weight"), &[rows, width], Role::Matrix, init);
        let of_width = Init::fan_in(width);
        let (query, key, value) =
            (input("query", h * dk, of_width), input("key", h * dk, of_width), input("value", h * dv, of_width));
        let decay = input("decay", h * dk, Init::ZERO);
        let (write, gate) = (input("write", h, of_width), input("gate", h * dv, of_width));
        let output = push("output.weight", &[width, h * dv], Role::Matrix, Init::ZERO);
        let [shortest, longest] = HALF_LIVES;
        let rates = DecayParams {
            a: push("A_log", &[h], Role::Gain, Init::ZERO),
            dt: push("dt_bias", &[h * dk], Role::Gain, Init::HalfLives { shortest, longest }),
        };
        Abacus { query, key, value, decay, rates, write, gate, output, dims: config.dims(), eps }
    }

    /// The matrix that makes its keys.
    pub fn key(&self) -> ParamId {
        self.key
    }

    /// Adds what it reads to Id's stream `h [N, C]`.
    pub fn forward(&self, tape: &mut Tape, h: &Var, past: Past) -> Var {
        let Dims { dk, dv, .. } = self.dims;
        let x = tape.rmsnorm(h, None, self.eps);
        let [q, k] = [self.query, self.key].map(|weight| {
            let y = tape.linear(&x, weight);
            tape.unit_norm(&y, dk)
        });
        let v = tape.linear(&x, self.value);
        let decay = tape.linear(&x, self.decay);
        let log_alpha = tape.decay_gate(&decay, self.rates);
        let beta = tape.linear(&x, self.write);
        let beta = tape.sigmoid_gate(None, &beta);
        let operands = DeltaOperands { q: &q, k: &k, v: &v, log_alpha: &log_alpha, beta: &beta };
        let o = match past {
            Past::Streams { t, starts, mut states } => {
                let before = delta_rule::Past { starts, state: states.as_deref() };
                let (o, after) = tape.delta_rule(operands, self.dims, t, before);
                if let Some(states) = &mut states {
                    states.copy_from(&after);
                }
                o
            }
            Past::Cached { t, state } => tape.delta_rule_next(operands, self.dims, t, state),
        };
        drop((q, k, v, decay, log_alpha, beta));
        let o = tape.head_norm(&o, dv, None, self.eps);
        let gate = tape.linear(&x, self.gate);
        let read = tape.sigmoid_gate(Some(&o), &gate);
        tape.linear_onto(&read, self.output, Some(h))
    }
}
