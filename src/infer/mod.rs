//! Inference: drawing tokens from logits, generating sequences, and putting their bytes together as text.
//! Knows models, tapes and the tokenizer's interface; nothing of data sources or the command line.

pub mod answer;
pub mod calculator;
pub mod dialogue;
pub mod engine;
pub mod generate;
pub mod memory_file;
pub mod pages;
pub mod rerank;
pub mod rules;
pub mod sampler;
pub mod text;

pub use answer::{Answer, Said};
pub use dialogue::ChatFormat;
pub use engine::{Engine, EngineOptions, Event, Held, LogProbs, RequestId, Submission};
pub use generate::{Drawn, Finish, Generation, Request, check_prompt, generate};
pub use rerank::Rerank;
pub use rules::{Banned, GrammarSpec, Grammars, Rules};
pub use sampler::{Sampler, SamplerOptions};
pub use text::{StopStream, Utf8Stream};

use crate::device::Device;
use crate::device::gemm::PARTS_BYTES_MAX;
use crate::model::parts::Storage;
use crate::model::{ModelConfig, kda};
use crate::ops::lm_loss::chunk_rows;
use crate::tensor::{Arena, Params};
use crate::tokenizer::Codec;
use crate::user_bail;
use anyhow::Context;

/// Parameters as an [`Engine`] multiplies by them: on the processor packed, where the model reads all its matrices as products do, which it
/// does without parts.
pub fn for_engine(config: &ModelConfig, params: Params) -> Params {
    match params.device() == Device::Cpu && !params.has_packed() && config.is_plain() {
        true => params.packed(),
        false => params,
    }
}

/// Rows of an embedding beyond the tokenizer's vocabulary that are taken for padding (Qwen2.5 has 399).
const PADDING_ROWS_MAX: usize = 1024;

/// What is held while tokens pass through a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Tokens in one pass.
    pub tokens: usize,
    /// Of these, tokens whose logits exist at the same time.
    pub logit_rows: usize,
    /// Layers whose activations exist at the same time: 1 without a recording tape.
    pub layers: usize,
}

impl Footprint {
    /// A pass over `tokens` that makes losses and no gradients.
    pub fn of_loss(device: Device, config: &ModelConfig, tokens: usize) -> Footprint {
        Footprint { tokens, logit_rows: chunk_rows(config.vocab_size, device.is_gpu()).min(tokens), layers: 1 }
    }
}

/// An arena on `device` with room for `footprint`: on the CPU an upper bound with everything at its widest and twice over, for
/// address space that is reserved and not written costs nothing; on a GPU everything in f32.
///
/// # Errors
/// The device refuses so much.
pub fn reserve_arena(device: Device, config: &ModelConfig, footprint: Footprint) -> anyhow::Result<Arena> {
    let Footprint { tokens, logit_rows, layers } = footprint;
    let (c, f, v) = (config.width, config.ffn_width, config.vocab_size);
    let qkv = (config.heads + 2 * config.kv_heads) * config.head_dim;
    let states =
        if config.has_kda() { [kda::held_elems(config), kda::backward_elems(config)].concat() } else { vec![] };
    let parts =
        config.parts.held(config, tokens, Storage { is_narrow: false, on_gpu: device.is_gpu() }).elems_per_token;
    let activations = tokens * (layers.max(1) * (8 * c + 4 * qkv + 6 * f + states.iter().sum::<usize>()) + parts);
    // A weight that is stored narrow is widened to be used: at most the head and the matrices of a block at once.
    let widened = 2 * v * c + 2 * c * (f + qkv);
    let elems = activations + 4 * logit_rows * v + widened;
    let bytes = match device {
        Device::Cpu => (elems * 2 * size_of::<f64>()).max(1 << 30),
        Device::Gpu(_) => elems * size_of::<f32>() + PARTS_BYTES_MAX + (2 << 20),
    };
    Arena::on(device, bytes).with_context(|| format!("reserving {bytes} bytes for activations"))
}

/// Refuses a tokenizer that cannot be the one of a model with this configuration.
///
/// # Errors
/// A user error that names both sizes.
pub fn check_vocabulary(codec: &dyn Codec, config: &ModelConfig) -> anyhow::Result<()> {
    let (ours, theirs) = (codec.vocab_size(), config.vocab_size);
    if ours > theirs || theirs - ours > PADDING_ROWS_MAX {
        user_bail!(
            "the tokenizer has {ours} tokens and the model {theirs}; use the tokenizer the model was trained with"
        );
    }
    Ok(())
}
