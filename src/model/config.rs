//! What a model is made of: the extents and options of the backbone, the depth dial, and what they cost.

use super::kda;
use super::parts::Parts;
use crate::error::UserError;
use crate::ops::rope::{Heads, Llama3Scaling};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The backbone, fully resolved. Letters: `L` layers, `C` width, `H` heads, `G` key/value heads, `D` head width, `F`
/// feed-forward width, `V` vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn_width: usize,
    pub vocab_size: usize,
    pub max_seq_len: usize,
    pub rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Llama3Scaling>,
    pub norm_eps: f64,
    pub qk_norm: bool,
    pub tie_embeddings: bool,
    /// `A` (attention) or `K` (Kimi Delta Attention) per layer, repeated.
    #[serde(default = "attention_only")]
    pub layer_pattern: String,
    /// `S` (sliding window) or `L` (all of the past) per layer, repeated; the last layer is always `L`.
    pub window_pattern: String,
    /// Keys that a layer marked `S` sees.
    pub window: usize,
    /// Logits are `cap * tanh(logits / cap)`; 0 for none.
    pub softcap: f64,
    /// Tokens attend inside their own document only.
    pub document_mask: bool,
    /// What there is beyond the backbone.
    #[serde(default)]
    pub parts: Parts,
}

fn attention_only() -> String {
    "A".into()
}

/// Largest width of anything in a model: a bound that keeps every product of extents in range.
pub const EXTENT_MAX: usize = 1 << 20;
/// Most layers of a model.
pub const LAYERS_MAX: usize = 1000;
/// Longest context any model here has.
pub const SEQ_LEN_MAX: usize = 16_384;

/// Where the three stages end, in blocks: Id, Ego, Superego.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    pub id: Range<usize>,
    pub ego: Range<usize>,
    pub superego: Range<usize>,
}

impl ModelConfig {
    /// The model of `depth`: `L = d`, `C = 64 d`, `D = 128` (64 when `C < 512` or `d` is odd, 32 below `C = 256`).
    pub fn from_depth(depth: usize, vocab_size: usize, max_seq_len: usize) -> ModelConfig {
        let width = 64 * depth;
        let head_dim = if width < 256 {
            32
        } else if width < 512 || depth % 2 == 1 {
            64
        } else {
            128
        };
        let heads = (width / head_dim).max(1);
        ModelConfig {
            layers: depth,
            width,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_width: Self::default_ffn_width(width),
            vocab_size,
            max_seq_len,
            rope_theta: 500_000.0,
            rope_scaling: None,
            norm_eps: 1e-5,
            qk_norm: true,
            tie_embeddings: false,
            layer_pattern: attention_only(),
            window_pattern: "L".into(),
            window: (max_seq_len / 2).max(1),
            softcap: 0.0,
            document_mask: false,
            parts: Parts::default(),
        }
    }

    /// `8 C / 3` rounded up to a multiple of 64.
    pub fn default_ffn_width(width: usize) -> usize {
        (8 * width / 3).next_multiple_of(64)
    }

    /// How heads lie in a packed row.
    pub fn attention_heads(&self) -> Heads {
        Heads { h: self.heads, g: self.kv_heads, d: self.head_dim }
    }

    /// Whether layer `layer` is Kimi Delta Attention.
    pub fn is_kda(&self, layer: usize) -> bool {
        let pattern = self.layer_pattern.as_bytes();
        pattern[layer % pattern.len()] == b'K'
    }

    /// Whether any layer is. Then attention has no rotary positions: the others know the order.
    pub fn has_kda(&self) -> bool {
        (0..self.layers).any(|layer| self.is_kda(layer))
    }

    /// Whether it is the plain GPT: without parts, every layer attention.
    pub fn is_plain(&self) -> bool {
        self.parts == Parts::default() && !self.has_kda()
    }

    /// Whether cached sequences may pass through the model side by side: not where one has a state of its own, or may end a step early.
    pub fn sequences_mix(&self) -> bool {
        let Parts { abacus, memory, psyche, .. } = &self.parts;
        let ends_early = psyche.enabled && psyche.exit_threshold < 1.0;
        !(self.has_kda() || abacus.enabled || memory.enabled || ends_early)
    }

    /// Whether a pass over one token of each of several sequences is the same work every time, whatever the tokens: the host says nothing of
    /// them that is not in [`StepInputs`](super::StepInputs).
    pub fn steps_are_alike(&self) -> bool {
        self.sequences_mix() && !self.parts.digits.enabled
    }

    /// The window of layer `layer`, none for all of the past.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let pattern = self.window_pattern.as_bytes();
        let is_short = pattern[layer % pattern.len()] == b'S' && layer + 1 < self.layers;
        (is_short && !self.is_kda(layer)).then_some(self.window)
    }

    /// Whether any layer has a window.
    pub fn has_windows(&self) -> bool {
        (0..self.layers).any(|layer| self.window_of(layer).is_some())
    }

    /// The soft-cap, none for 0.
    pub fn softcap(&self) -> Option<f64> {
        (self.softcap > 0.0).then_some(self.softcap)
    }

    /// Cuts after `ceil(L/3)` and `ceil(2L/3)` blocks; none below three blocks, where the plain GPT runs.
    pub fn stages(&self) -> Option<Stages> {
        let l = self.layers;
        let (id, ego) = (l.div_ceil(3), (2 * l).div_ceil(3));
        (l >= 3).then_some(Stages { id: 0..id, ego: id..ego, superego: ego..l })
    }

    /// Refuses extents that do not divide or are out of range: one line with the remedy.
    pub fn validate(&self) -> Result<(), UserError> {
        let fail = |message: String| Err(UserError(message));
        for (key, value) in [
            ("layers", self.layers),
            ("width", self.width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn_width", self.ffn_width),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
            ("window", self.window),
        ] {
            if value == 0 {
                return fail(format!("model.{key} is 0; it must be at least 1"));
            }
        }
        for (key, value, most) in [
            ("layers", self.layers, LAYERS_MAX),
            ("width", self.width, EXTENT_MAX),
            ("heads", self.heads, EXTENT_MAX),
            ("head_dim", self.head_dim, 1024),
            ("heads x head_dim", self.heads.saturating_mul(self.head_dim), EXTENT_MAX),
            ("ffn_width", self.ffn_width, EXTENT_MAX),
        ] {
            if value > most {
                return fail(format!("model.{key} = {value} is above {most}; lower it"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return fail(format!(
                "model.kv_heads = {} does not divide model.heads = {}; choose a divisor",
                self.kv_heads, self.heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!("model.head_dim = {} is odd; rotary positions need an even width", self.head_dim));
        }
        if self.max_seq_len > SEQ_LEN_MAX {
            return fail(format!("model.max_seq_len = {} is above {SEQ_LEN_MAX}; lower it", self.max_seq_len));
        }
        if self.layer_pattern.is_empty() || self.layer_pattern.bytes().any(|b| b != b'A' && b != b'K') {
            return fail(format!(
                "model.layer_pattern = {:?} may hold only A (attention) and K (Kimi Delta Attention), such as \"KKKA\"",
                self.layer_pattern
            ));
        }
        if self.has_kda() && !kda::fits(self.head_dim) {
            return fail(format!(
                "model.head_dim = {} does not suit the K layers of model.layer_pattern; they take multiples of 32 up to 256",
                self.head_dim
            ));
        }
        if self.window_pattern.is_empty() || self.window_pattern.bytes().any(|b| b != b'S' && b != b'L') {
            return fail(format!(
                "model.window_pattern = {:?} may hold only S (sliding window) and L (all of the past), such as \"SSSL\"",
                self.window_pattern
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return fail(format!("model.rope_theta = {} must be a number above 1", self.rope_theta));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return fail(format!("model.norm_eps = {} must be 0 or positive", self.norm_eps));
        }
        if let Some(scaling) = self.rope_scaling.filter(|scaling| !scaling.is_valid()) {
            return fail(format!("the rotary scaling {scaling:?} makes no ramp; take it out or mend it"));
        }
        if !(self.softcap.is_finite() && self.softcap >= 0.0) {
            return fail(format!("model.softcap = {} must be 0 (none) or positive", self.softcap));
        }
        self.parts.validate(self)?;
        if self.vocab_size > (u32::MAX - 1) as usize {
            return fail(format!("model.vocab_size = {} is too large; lower it", self.vocab_size));
        }
        Ok(())
    }

    /// Parameters in weight matrices that every token passes through (blocks and head), for FLOP counts.
    pub fn matmul_params(&self) -> u64 {
        self.matrix_params() + (self.vocab_size * self.width) as u64
    }

    fn block_matrix_params(&self, layer: usize) -> u64 {
        let (c, d) = (self.width as u64, self.head_dim as u64);
        let (h, g, f) = (self.heads as u64, self.kv_heads as u64, self.ffn_width as u64);
        let mixer = if self.is_kda(layer) { kda::matrix_params(self) } else { c * d * (2 * h + 2 * g) };
        mixer + 3 * c * f
    }

    /// Weight-matrix parameters of the blocks: what the token budget counts.
    pub fn matrix_params(&self) -> u64 {
        (0..self.layers).map(|layer| self.block_matrix_params(layer)).sum()
    }

    /// Floating-point operations per token of a training step (forward and backward) at length `t`: six per matrix
    /// parameter, and `12 H D` per visible key, of which a causal token sees half its row on average; a layer of Kimi Delta
    /// Attention what its state takes instead.
    pub fn train_flops_per_token(&self, t: usize) -> u64 {
        let per_layer = |layer: usize| {
            if self.is_kda(layer) {
                return kda::state_flops(self.heads, self.head_dim, self.head_dim);
            }
            let seen = match self.window_of(layer) {
                Some(w) if w < t => w as f64 - (w * w) as f64 / (2.0 * t as f64),
                _ => t as f64 / 2.0,
            };
            (12.0 * (self.heads * self.head_dim) as f64 * seen) as u64
        };
        let trunk = 6 * self.matmul_params() + (0..self.layers).map(per_layer).sum::<u64>();
        trunk + self.parts.train_flops_per_token(self)
    }
}
