//! Generates one sequence: prefill of the prompt, then a token at a time over a cache of its own. What [`Engine`](super::Engine) does for
//! many, without its pages, pieces and recordings.

use super::{Footprint, Sampler, reserve_arena};
use crate::device::Device;
use crate::model::{Gpt, KvCache, ModelConfig};
use crate::tape::Tape;
use crate::tensor::{Arena, DType, Params};
use crate::user_bail;
use anyhow::Context;
use std::ops::ControlFlow;

/// Tokens of a prompt that pass through the model at once. The logits of all of them exist at the same time, 32 MiB of
/// f32 for a vocabulary of 32,768.
const PREFILL_TOKENS: usize = 256;

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the sequence begins with; at least one id.
    pub prompt: &'a [u32],
    /// Most tokens generated.
    pub tokens_max: usize,
    /// Number of the sequence: others of the same seed draw other tokens.
    pub sequence: u64,
    /// Ids that end the sequence; they are not part of it.
    pub stop_ids: &'a [u32],
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// By one of the stop ids, or because the caller wanted no more.
    Stopped,
    /// After as many tokens as were asked for.
    MaxTokens,
    /// Prompt and generated tokens fill the model's context.
    ContextFull,
}

/// A generated sequence, without its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The ids.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// A token as it is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    pub id: u32,
    /// Weights of Id, Ego and Superego where it was decided, of a model that has them.
    pub psyche: Option<[f32; 3]>,
}

/// Generates a sequence; `on_token` sees every token as soon as it is drawn, and ends the sequence by breaking. Prompt
/// and generated tokens together are at most `max_seq_len`. `params` are those of `model`.
///
/// # Errors
/// What [`check_prompt`] refuses; logits that are not numbers.
pub fn generate(
    model: &Gpt,
    params: &Params,
    sampler: &Sampler,
    request: &Request,
    on_token: &mut dyn FnMut(Drawn) -> ControlFlow<()>,
) -> anyhow::Result<Generation> {
    let (config, prompt) = (model.config(), request.prompt);
    check_prompt(config, prompt)?;
    let room = config.max_seq_len - prompt.len();
    let (limit, finish) = match request.tokens_max <= room {
        true => (request.tokens_max, Finish::MaxTokens),
        false => (room, Finish::ContextFull),
    };
    let passed = prompt.len().min(PREFILL_TOKENS);
    let device = params.device();
    let mut cache = KvCache::on(device, config, prompt.len() + limit, params.dtype());
    let arena = reserve_arena(device, config, Footprint { tokens: passed, logit_rows: 1, layers: 1 })?;
    let mut tokens = Vec::new();
    let mut pending = prompt.to_vec();
    while tokens.len() < limit {
        let (logits, psyche) = match device {
            // From a thread of the pool its small tasks begin at once; from another each would wait until a thread woke.
            Device::Cpu => rayon::scope(|_| next(model, params, &arena, &pending, &mut cache)),
            Device::Gpu(_) => next(model, params, &arena, &pending, &mut cache),
        };
        device.synchronise()?;
        let position = prompt.len() + tokens.len();
        let next = sampler
            .pick(&logits, request.sequence, position as u64)
            .with_context(|| format!("drawing the token at position {position}"))?;
        if request.stop_ids.contains(&next) {
            return Ok(Generation { tokens, finish: Finish::Stopped });
        }
        tokens.push(next);
        if on_token(Drawn { id: next, psyche }).is_break() {
            return Ok(Generation { tokens, finish: Finish::Stopped });
        }
        pending.clear();
        pending.push(next);
    }
    Ok(Generation { tokens, finish })
}

/// Refuses a prompt from which nothing can be generated.
///
/// # Errors
/// A user error for an empty prompt, one with unknown ids, or one longer than the context.
pub fn check_prompt(config: &ModelConfig, prompt: &[u32]) -> anyhow::Result<()> {
    if prompt.is_empty() {
        user_bail!("the prompt has no token; give a text, or a tokenizer with a token that begins documents");
    }
    if prompt.len() > config.max_seq_len {
        let (given, context) = (prompt.len(), config.max_seq_len);
        user_bail!("the prompt has {given} tokens and the model's context {context}; shorten the prompt");
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= config.vocab_size) {
        user_bail!("the prompt has token {id}, the model's vocabulary {} tokens", config.vocab_size);
    }
    Ok(())
}

/// Appends `pending` to the cached sequence; the logits `[V]` of what follows, and the weights of the stages.
fn next(
    model: &Gpt,
    params: &Params,
    arena: &Arena,
    pending: &[u32],
    cache: &mut KvCache,
) -> (Vec<f32>, Option<[f32; 3]>) {
    let mut last = (Vec::new(), None);
    for piece in pending.chunks(PREFILL_TOKENS) {
        let output = model.next(&mut Tape::inference(arena, params), piece, cache);
        let logits = output.logits.cast(arena, DType::F32).to(Device::Cpu).as_slice::<f32>().to_vec();
        let weights = output.psyche.map(|weights| weights.to_f64());
        last = (logits, weights.map(|w| [w[0] as f32, w[1] as f32, w[2] as f32]));
    }
    arena.reset();
    last
}
