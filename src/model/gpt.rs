//! The GPT: embedding, blocks in three stages, final norm, LM head; its parameter layout and initial values.
//!
//! `h_0 = E[x]`, `h_{l+1} = block_l(h_l)`, `logits = cap(W_lm n(h_L))`. Tied models use `E` as `W_lm`.

use super::block::{Block, Context, Stream};
use super::{KvCache, ModelConfig};
use crate::device::Device;
use crate::error::UserError;
use crate::ops::lm_loss::Scale;
use crate::ops::rope::{Table, frequencies};
use crate::tape::{Segment, Tape, Var};
use crate::tensor::random::Philox;
use crate::tensor::{Arena, DType, Layout, ParamId, Params, Role, Tensor};
use std::sync::Arc;

/// A model: what its parameters are and how they are used. The values are in [`Params`].
#[derive(Clone)]
pub struct Gpt {
    config: Arc<ModelConfig>,
    layout: Arc<Layout>,
    embedding: ParamId,
    blocks: Vec<Block>,
    final_gain: ParamId,
    head: ParamId,
    table: Table,
}

/// Tokens of a forward pass over whole rows.
#[derive(Clone, Debug)]
pub struct Rows {
    /// `[B T]`.
    pub tokens: Tensor,
    /// `T`.
    pub t: usize,
    /// `[B T]`: where in its row each token's document begins; used where the model masks documents.
    pub doc_start: Option<Tensor>,
}

impl Rows {
    /// Rows of `t` tokens each, brought to the device of `arena`.
    pub fn new(arena: &Arena, tokens: &[u32], t: usize, doc_start: Option<&[u32]>) -> Rows {
        let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
        Rows { tokens: ids(tokens), t, doc_start: doc_start.map(ids) }
    }
}

/// Whether backward recomputes each block instead of having its activations saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Recompute {
    #[default]
    Nothing,
    Blocks,
}

impl Gpt {
    /// The model of `config`, to be computed in `dtype`.
    ///
    /// # Errors
    /// What [`ModelConfig::validate`] refuses.
    pub fn new(config: ModelConfig, dtype: DType) -> Result<Gpt, UserError> {
        config.validate()?;
        let mut layout = Layout::default();
        let (c, v) = (config.width, config.vocab_size);
        let embedding = layout.push("model.embed_tokens.weight", [v, c], Role::Embedding);
        let blocks = (0..config.layers).map(|layer| Block::new(&mut layout, &config, layer)).collect();
        let final_gain = layout.push("model.norm.weight", [c], Role::Gain);
        let head = match config.tie_embeddings {
            true => embedding,
            false => layout.push("lm_head.weight", [v, c], Role::Head),
        };
        let frequencies = frequencies(config.head_dim, config.rope_theta, config.rope_scaling);
        let table = Table::new(config.max_seq_len, &frequencies, dtype.accumulator());
        Ok(Gpt { config: Arc::new(config), layout: Arc::new(layout), embedding, blocks, final_gain, head, table })
    }

    /// This model on `device`: its position table moves, its parameters are apart.
    pub fn to(&self, device: Device) -> Gpt {
        Gpt { table: self.table.to(device), ..self.clone() }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The parameter that makes logits.
    pub fn head(&self) -> ParamId {
        self.head
    }

    /// Initial values: embeddings `N(0, 1)` untied, `N(0, 1/C)` tied; `U(+-sqrt(3/C))` for q, k, v, gate and up; zero for
    /// the two output matrices of a block; head `N(0, 0.001)`; gains 1. Each parameter draws from a stream of its own
    /// name, so adding one changes no other.
    pub fn init(&self, dtype: DType, seed: u64) -> Params {
        let mut params = Params::zeros(self.layout.clone(), dtype);
        let inverse_width = 1.0 / self.config.width as f64;
        for (i, entry) in self.layout.entries().iter().enumerate() {
            let stream = Philox::new(seed, &entry.name);
            let is_output = entry.name.ends_with("o_proj.weight") || entry.name.ends_with("down_proj.weight");
            let normal = |deviation: f64| move |i: u64| stream.normal(i) * deviation;
            let value: Box<dyn Fn(u64) -> f64> = match entry.role {
                Role::Gain => Box::new(|_| 1.0),
                Role::Embedding if self.config.tie_embeddings => Box::new(normal(inverse_width)),
                Role::Embedding => Box::new(normal(1.0)),
                Role::Head => Box::new(normal(0.001)),
                Role::Matrix if is_output => continue,
                Role::Matrix => {
                    let bound = (3.0 * inverse_width).sqrt();
                    Box::new(move |i| (2.0 * stream.uniform(i) - 1.0) * bound)
                }
            };
            let mut target = params.master_entry_mut(ParamId(i as u32));
            crate::for_float!(dtype.accumulator(), F => {
                use crate::tensor::Float as _;
                for (i, x) in target.as_mut_slice::<F>().iter_mut().enumerate() {
                    *x = F::from_f64(value(i as u64));
                }
            });
        }
        params.round();
        params
    }

    /// Runs the blocks over whole rows: the stream before the final norm, `[B T, C]`.
    ///
    /// # Panics
    /// If `t` is above `max_seq_len`.
    fn stream(&self, tape: &mut Tape, rows: &Rows, recompute: Recompute) -> Stream {
        let (config, t) = (&self.config, rows.t);
        let doc_start = config.document_mask.then(|| rows.doc_start.clone()).flatten();
        let mut stream = Stream::new(tape.embedding(self.embedding, &rows.tokens));
        for (layer, block) in self.blocks.iter().enumerate() {
            let context = |doc_start: &Option<Tensor>| Context::Rows { doc_start: doc_start.clone() };
            stream = match recompute {
                Recompute::Nothing => block.forward(tape, config, &self.table, stream, t, context(&doc_start)),
                Recompute::Blocks => {
                    let (block, config, table) = (block.clone(), config.clone(), self.table.clone());
                    let doc_start = doc_start.clone();
                    let run = move |tape: &mut Tape, h: Var| {
                        let context = Context::Rows { doc_start: doc_start.clone() };
                        block.forward(tape, &config, &table, Stream::new(h), t, context).settle(tape)
                    };
                    let segment = Segment { label: format!("block {layer}"), run: Arc::new(run) };
                    let h = stream.settle(tape);
                    Stream::new(tape.checkpoint(h, segment))
                }
            };
        }
        stream
    }

    /// Cross-entropy of every token, `[B T]` in nats (0 where the target is ignored); each counts by `grad_scale` in the
    /// total loss when the tape records.
    pub fn loss(
        &self,
        tape: &mut Tape,
        rows: &Rows,
        targets: &Tensor,
        grad_scale: impl Into<Scale>,
        recompute: Recompute,
    ) -> Tensor {
        let stream = self.stream(tape, rows, recompute);
        let (_, y) = stream.norm(tape, self.final_gain, self.config.norm_eps);
        tape.lm_loss(&y, self.head, targets, self.config.softcap(), grad_scale)
    }

    /// Logits of every token of whole rows, `[B T, V]`: for small inputs, since all of them are in memory.
    pub fn logits(&self, tape: &mut Tape, rows: &Rows) -> Tensor {
        let stream = self.stream(tape, rows, Recompute::Nothing);
        self.head_logits(tape, stream)
    }

    /// Appends tokens to a cached sequence; the logits `[V]` of what follows the last of them.
    ///
    /// # Panics
    /// If there is no token, or the cache or the position table is too short.
    pub fn next_logits(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Tensor {
        let c = self.config.width;
        let h = self.stream_cached(tape, tokens, cache).settle(tape);
        let last = tape.input(h.value().view((tokens.len() - 1) * c, [1, c]));
        drop(h);
        let logits = self.head_logits(tape, Stream::new(last));
        logits.view(0, [self.config.vocab_size])
    }

    /// Logits `[t, V]` of the next tokens of a cached sequence.
    ///
    /// # Panics
    /// If the cache or the position table is too short.
    pub fn logits_cached(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Tensor {
        let stream = self.stream_cached(tape, tokens, cache);
        self.head_logits(tape, stream)
    }

    fn stream_cached(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Stream {
        let t = tokens.len();
        let ids = Tensor::from_slice(tape.arena(), [t], tokens);
        let mut stream = Stream::new(tape.embedding(self.embedding, &ids));
        for block in &self.blocks {
            stream = block.forward(tape, &self.config, &self.table, stream, t, Context::Cached(cache));
        }
        cache.advance(t);
        stream
    }

    fn head_logits(&self, tape: &mut Tape, stream: Stream) -> Tensor {
        let (_, y) = stream.norm(tape, self.final_gain, self.config.norm_eps);
        let logits = tape.linear(&y, self.head);
        match self.config.softcap() {
            Some(cap) => tape.softcap(logits, cap).value().clone(),
            None => logits.value().clone(),
        }
    }
}

/// Sum of losses `[N]` in f64.
pub fn sum_losses(losses: &Tensor) -> f64 {
    losses.to_f64().iter().sum()
}
