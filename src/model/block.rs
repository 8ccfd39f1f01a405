//! One block: attention, or Kimi Delta Attention, and SwiGLU, each behind a norm, each added to the stream.
//!
//! `a = h + Wo attention(rope(qn(Wq n(h))), rope(kn(Wk n(h))), Wv n(h))`, `h' = a + Wd (silu(Wg n(a)) * (Wu n(a)))`.
//! Where a product cannot add to the stream for fewer bytes, the addition is left pending, and the next norm does it.

use super::ModelConfig;
use super::cache::Cached;
use super::kda::{self, Kda};
use crate::ops::attention::Mask;
use crate::ops::rope::{QkNorm, Table};
use crate::ops::{linear, paged_attention};
use crate::tape::{MlpParams, QkNormParams, Tape, Var};
use crate::tensor::{Init, Layout, ParamId, Role, Span, Tensor};

/// The parameters of a block.
#[derive(Clone, Debug)]
pub struct Block {
    layer: usize,
    attention_gain: ParamId,
    mixer: Mixer,
    mlp_gain: ParamId,
    mlp: MlpParams,
}

/// What mixes tokens, without its last product.
#[derive(Clone, Debug)]
enum Mixer {
    Attention { qkv: Span, qk_norm: Option<QkNormParams>, output: ParamId },
    Kda(Kda),
}

impl Mixer {
    /// The last product.
    fn output(&self) -> ParamId {
        match self {
            Mixer::Attention { output, .. } => *output,
            Mixer::Kda(kda) => kda.output,
        }
    }
}

/// The residual stream: a value, and what is still to be added to it.
pub struct Stream {
    residual: Var,
    delta: Option<Var>,
}

impl Stream {
    /// A stream with nothing pending.
    pub fn new(h: Var) -> Stream {
        Stream { residual: h, delta: None }
    }

    /// The settled stream `h` and what `layer` adds to it: in its last product, given the residual, where that moves fewer
    /// bytes.
    fn plus(tape: &mut Tape, h: Var, layer: impl FnOnce(&mut Tape, Option<&Var>) -> Var) -> Stream {
        if linear::adds_in_place(h.value()) {
            return Stream::new(layer(tape, Some(&h)));
        }
        let delta = layer(tape, None);
        Stream { residual: h, delta: Some(delta) }
    }

    /// The stream as one value.
    pub fn settle(self, tape: &mut Tape) -> Var {
        match self.delta {
            Some(delta) => tape.add(delta, &self.residual),
            None => self.residual,
        }
    }

    /// The settled stream and its norm.
    pub fn norm(self, tape: &mut Tape, gain: ParamId, eps: f64) -> (Var, Var) {
        match self.delta {
            Some(delta) => tape.add_rmsnorm(&self.residual, delta, gain, eps),
            None => {
                let y = tape.rmsnorm(&self.residual, gain, eps);
                (self.residual, y)
            }
        }
    }
}

impl Block {
    /// Adds the parameters of block `layer` to `layout`, in Hugging Face's names. q, k, v and gate, up lie behind each
    /// other, so that one product serves them.
    pub fn new(layout: &mut Layout, config: &ModelConfig, layer: usize) -> Block {
        let (c, d, f) = (config.width, config.head_dim, config.ffn_width);
        let (q_rows, kv_rows) = (config.heads * d, config.kv_heads * d);
        let kda = config.is_kda(layer).then(|| Kda::new(layout, config, layer));
        let mut matrix = |name: &str, rows: usize, cols: usize, init: Init| {
            layout.push_init(format!("model.layers.{layer}.{name}.weight"), [rows, cols], Role::Matrix, init)
        };
        let input = Init::fan_in(c);
        let attention = kda.is_none().then(|| {
            let q = matrix("self_attn.q_proj", q_rows, c, input);
            matrix("self_attn.k_proj", kv_rows, c, input);
            matrix("self_attn.v_proj", kv_rows, c, input);
            (Span { first: q, count: 3 }, matrix("self_attn.o_proj", c, q_rows, Init::ZERO))
        });
        let gate = matrix("mlp.gate_proj", f, c, input);
        matrix("mlp.up_proj", f, c, input);
        let down = matrix("mlp.down_proj", c, f, Init::ZERO);
        let mut gain = |name: &str, elems: usize| {
            let name = format!("model.layers.{layer}.{name}.weight");
            layout.push_init(name, [elems], Role::Gain, Init::Constant(1.0))
        };
        let attention_gain = gain("input_layernorm", c);
        let mlp_gain = gain("post_attention_layernorm", c);
        let mut qk_norm = || QkNormParams {
            q_gain: gain("self_attn.q_norm", d),
            k_gain: gain("self_attn.k_norm", d),
            eps: config.norm_eps,
        };
        let of_attention = |(qkv, output)| Mixer::Attention { qkv, qk_norm: config.qk_norm.then(&mut qk_norm), output };
        let mixer = attention.map(of_attention).or(kda.map(Mixer::Kda)).expect("one of the two");
        let gate_up = Span { first: gate, count: 2 };
        Block { layer, attention_gain, mixer, mlp_gain, mlp: MlpParams { gate_up, down } }
    }

    /// Its number, from 0.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Appends the next tokens of cached sequences, of which nothing else is wanted: their keys and values, or what the state takes of them.
    pub fn remember(&self, tape: &mut Tape, config: &ModelConfig, table: &Table, h: &Var, cached: &mut Cached) {
        let x = tape.rmsnorm(h, self.attention_gain, config.norm_eps);
        match &self.mixer {
            Mixer::Attention { qkv, qk_norm, .. } => {
                let qkv = tape.linear(&x, *qkv);
                self.write(tape, config, table, &qkv, *qk_norm, cached);
            }
            Mixer::Kda(kda) => {
                let (t, state) = cached.only();
                kda.forward(tape, &x, t, kda::Past::Cached(state.kda(self.layer)));
            }
        }
    }

    /// Puts keys and values where they are cached, and returns the queries.
    fn write(
        &self,
        tape: &Tape,
        config: &ModelConfig,
        table: &Table,
        qkv: &Var,
        qk_norm: Option<QkNormParams>,
        cached: &mut Cached,
    ) -> Tensor {
        let gains = qk_norm.map(|norm| [norm.q_gain, norm.k_gain].map(|gain| tape.params().view(gain)));
        let norm = gains.as_ref().map(|[q_gain, k_gain]| QkNorm { q_gain, k_gain, eps: config.norm_eps });
        let pools = cached.pool.layer(self.layer).each_mut();
        let (arena, heads) = (tape.arena(), config.attention_heads());
        paged_attention::write(arena, qkv.value(), heads, &cached.placement, table, norm, pools)
    }

    /// Runs over rows of `t` tokens, or over the next tokens of cached sequences.
    pub fn forward(
        &self,
        tape: &mut Tape,
        config: &ModelConfig,
        table: &Table,
        stream: Stream,
        t: usize,
        context: Context,
    ) -> Stream {
        let (h, x) = stream.norm(tape, self.attention_gain, config.norm_eps);
        let mixed = self.mix(tape, config, table, x, t, context);
        let stream = Stream::plus(tape, h, |tape, residual| tape.linear_onto(&mixed, self.mixer.output(), residual));
        drop(mixed);
        let (h, x) = stream.norm(tape, self.mlp_gain, config.norm_eps);
        Stream::plus(tape, h, |tape, residual| tape.mlp(x, self.mlp, residual))
    }

    /// What tokens say to each other, before the last product: `x [N, C]` -> `[N, H D]`.
    fn mix(&self, tape: &mut Tape, config: &ModelConfig, table: &Table, x: Var, t: usize, context: Context) -> Var {
        let (qkv, qk_norm) = match &self.mixer {
            Mixer::Attention { qkv, qk_norm, .. } => (tape.linear(&x, *qkv), *qk_norm),
            Mixer::Kda(kda) => match context {
                Context::Rows { starts, .. } => return kda.forward(tape, &x, t, kda::Past::Rows(starts.as_ref())),
                Context::Cached(cached) => {
                    let (t, state) = cached.only();
                    return kda.forward(tape, &x, t, kda::Past::Cached(state.kda(self.layer)));
                }
            },
        };
        drop(x);
        let (heads, window) = (config.attention_heads(), config.window_of(self.layer));
        match context {
            Context::Rows { doc_start, .. } => {
                let qkv = tape.rope(qkv, heads, t, 0, table, qk_norm);
                tape.attention(qkv, heads, t, Mask { window, doc_start })
            }
            Context::Cached(cached) => {
                let q = self.write(tape, config, table, &qkv, qk_norm, cached);
                drop(qkv);
                let [k, v] = cached.pool.layer(self.layer).each_ref();
                let out = paged_attention::attend(tape.arena(), &q, [k, v], heads, &cached.placement, window);
                tape.input(out)
            }
        }
    }
}

/// What attention looks back on.
pub enum Context<'a, 'b> {
    /// Whole rows, from their beginning.
    Rows {
        /// `[B T]`: where in its row each token's document begins; none without a document mask.
        doc_start: Option<Tensor>,
        /// `[B T]` u32: 1 where a document begins; none without a document mask.
        starts: Option<Tensor>,
    },
    /// Sequences whose past is cached.
    Cached(&'a mut Cached<'b>),
}
