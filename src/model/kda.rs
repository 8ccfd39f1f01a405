//! Kimi Delta Attention: a layer that mixes tokens through a state of fixed size, in the place of attention (Kimi Linear).
//!
//! `q, k = L2(silu(conv4(W x)))`, `v = silu(conv4(W x))`, `log alpha = -exp(A) softplus(F_b F_a x + dt)`, `beta = sigmoid(W_b x)`;
//! the delta rule of [`delta_rule`] makes `o` of them; the layer gives `W_o (sigmoid(G_b G_a x) * RMSNorm_head(o))`.
//! As many heads as attention has queries, each as wide; the low ranks are the width of a head. `W_o` begins at zero, `A` too, `dt` so that
//! half-lives go from 7 tokens in the first head to 693 in the last.

use super::ModelConfig;
use crate::device::Device;
use crate::ops::delta_rule::{self, CHUNK, Dims};
use crate::ops::short_conv::{self, BEFORE, TAPS};
use crate::tape::{DecayParams, DeltaOperands, Tape, Var};
use crate::tensor::{DType, Init, Layout, ParamId, Role, Tensor};

/// Half-lives of the channels at the beginning, in tokens: rates of 0.1 to 0.001.
const HALF_LIVES: [f64; 2] = [7.0, 693.0];

/// Whether the kernels of the delta rule take heads of `d`.
pub fn fits(d: usize) -> bool {
    d.is_multiple_of(32) && d <= 256
}

/// Matrix elements of a layer's mixer.
pub fn matrix_params(config: &ModelConfig) -> u64 {
    let (c, d, h) = (config.width as u64, config.head_dim as u64, config.heads as u64);
    4 * c * h * d + c * h + 2 * (c * d + d * h * d)
}

/// Floating-point operations per token that a training step takes for the states of `h` heads, backward twice forward: into the state and
/// out of it three products of `dk x dv`, and with the other tokens of the chunk two of keys and two of values.
pub fn state_flops(h: usize, dk: usize, dv: usize) -> u64 {
    (3 * h * (6 * dk * dv + 4 * CHUNK * (dk + dv))) as u64
}

/// Elements of a layer's mixer for each token that backward needs, and of these in the accumulator type: the three products and their
/// convolutions, q and k at unit length, low ranks, decay before and after, beta, output, norm, gate, gated; what the state did not yet
/// say, a 64th of a state and the norm's scale.
pub fn held_elems(config: &ModelConfig) -> [usize; 2] {
    let (h, d) = (config.heads, config.head_dim);
    [14 * h * d + 2 * d + 2 * h, h * d + h * d * d / CHUNK + h]
}

/// Elements for each token that backward of the delta rule takes for a while, and of these in the accumulator type: the gradients of its
/// operands; those of the errors, 64ths of states, and pairs of tokens.
pub fn backward_elems(config: &ModelConfig) -> [usize; 2] {
    let (h, d) = (config.heads, config.head_dim);
    [5 * h * d + h, h * d + h * d * d / CHUNK + 4 * CHUNK * h]
}

/// The parameters of a layer.
#[derive(Clone, Debug)]
pub struct Kda {
    /// Of q, k and v: the product, then the taps of its channels.
    operands: [[ParamId; 2]; 3],
    decay: [ParamId; 2],
    rates: DecayParams,
    beta: ParamId,
    gate: [ParamId; 2],
    gain: ParamId,
    /// The last product, which the block makes.
    pub output: ParamId,
    dims: Dims,
    eps: f64,
}

/// What a layer keeps of a cached sequence.
pub struct KdaState {
    /// `[1, H, D, D]` in the accumulator type.
    state: Tensor,
    /// `[1, 3, H D]` of q, k and v: the last inputs of their convolutions.
    rows: [Tensor; 3],
}

impl KdaState {
    /// Of a sequence that has not begun.
    pub fn new(device: Device, config: &ModelConfig, dtype: DType) -> KdaState {
        let (h, d) = (config.heads, config.head_dim);
        let rows = [(); 3].map(|()| Tensor::owned_on(device, [1, BEFORE, h * d], dtype));
        KdaState { state: Tensor::owned_on(device, [1, h, d, d], dtype.accumulator()), rows }
    }
}

/// What the layer looks back on.
pub enum Past<'a> {
    /// Rows from their beginning: where documents start, `[B T]`, if they are kept apart.
    Rows(Option<&'a Tensor>),
    /// A sequence that goes on.
    Cached(&'a mut KdaState),
}

impl Kda {
    /// Adds the parameters of layer `layer`.
    pub fn new(layout: &mut Layout, config: &ModelConfig, layer: usize) -> Kda {
        let (c, h, d) = (config.width, config.heads, config.head_dim);
        let mut push = |name: &str, shape: &[usize], role: Role, init: Init| {
            layout.push_init(format!("model.layers.{layer}.self_attn.{name}"), shape, role, init)
        };
        let mut matrix = |name: &str, rows: usize, cols: usize| {
            push(&format!("{name}_proj.weight"), &[rows, cols], Role::Matrix, Init::fan_in(cols))
        };
        let products = ["q", "k", "v"].map(|name| matrix(name, h * d, c));
        let decay = [matrix("f_a", d, c), matrix("f_b", h * d, d)];
        let gate = [matrix("g_a", d, c), matrix("g_b", h * d, d)];
        let beta = matrix("b", h, c);
        let output = push("o_proj.weight", &[c, h * d], Role::Matrix, Init::ZERO);
        let taps = Init::Uniform(1.0 / (TAPS as f64).sqrt());
        let taps =
            ["q", "k", "v"].map(|name| push(&format!("{name}_conv1d.weight"), &[h * d, TAPS], Role::Table, taps));
        let [shortest, longest] = HALF_LIVES;
        let rates = DecayParams {
            a: push("A_log", &[h], Role::Gain, Init::ZERO),
            dt: push("dt_bias", &[h * d], Role::Gain, Init::HalfLives { shortest, longest }),
        };
        let gain = push("o_norm.weight", &[d], Role::Gain, Init::Constant(1.0));
        let operands = std::array::from_fn(|i| [products[i], taps[i]]);
        let dims = Dims { h, dk: d, dv: d };
        Kda { operands, decay, rates, beta, gate, gain, output, dims, eps: config.norm_eps }
    }

    /// Runs over `x [N, C]`, rows of `t` tokens or the next `t` of a sequence; -> `[N, H D]`, before the last product.
    pub fn forward(&self, tape: &mut Tape, x: &Var, t: usize, mut past: Past) -> Var {
        let Dims { dk: d, .. } = self.dims;
        let [q, k, v] = [0, 1, 2].map(|i| {
            let [product, taps] = self.operands[i];
            let y = tape.linear(x, product);
            match &mut past {
                Past::Rows(starts) => tape.short_conv(&y, taps, t, short_conv::Past { starts: *starts, rows: None }).0,
                Past::Cached(KdaState { rows, .. }) => {
                    let before = short_conv::Past { starts: None, rows: Some(&rows[i]) };
                    let (y, next) = tape.short_conv(&y, taps, t, before);
                    rows[i].copy_from(&next);
                    y
                }
            }
        });
        let (q, k) = (tape.unit_norm(&q, d), tape.unit_norm(&k, d));
        let log_alpha = low_rank(tape, x, self.decay);
        let log_alpha = tape.decay_gate(&log_alpha, self.rates);
        let beta = tape.linear(x, self.beta);
        let beta = tape.sigmoid_gate(None, &beta);
        let operands = DeltaOperands { q: &q, k: &k, v: &v, log_alpha: &log_alpha, beta: &beta };
        let o = match past {
            Past::Rows(starts) => tape.delta_rule(operands, self.dims, t, delta_rule::Past { starts, state: None }).0,
            Past::Cached(KdaState { state, .. }) => tape.delta_rule_next(operands, self.dims, t, state),
        };
        drop((q, k, v, log_alpha, beta));
        let o = tape.head_norm(&o, d, Some(self.gain), self.eps);
        let gate = low_rank(tape, x, self.gate);
        tape.sigmoid_gate(Some(&o), &gate)
    }
}

/// `B A x`.
fn low_rank(tape: &mut Tape, x: &Var, [a, b]: [ParamId; 2]) -> Var {
    let x = tape.linear(x, a);
    tape.linear(&x, b)
}
