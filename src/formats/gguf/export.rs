//! A model as a GGUF file that llama.cpp opens: what it is called there, its tokenizer, its weights in a type of choice.

use super::model::{ROPE_FACTORS, RowOrder, file_name, rope_factors};
use super::tokenizer::{PATTERN_KEY, WHOLE_PIECES_KEY, pattern_name, token_type};
use super::write::{Metadata, Planned, write};
use crate::device::Device;
use crate::formats::text_rules::TextRules;
use crate::formats::weights::Export;
use crate::model::ModelConfig;
use crate::tensor::{BlockType, ParamId, Tensor};
use crate::tokenizer::{Codec, Tokenizer, to_alphabet};
use crate::user_bail;
use rayon::prelude::*;
use std::path::Path;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub bytes: u64,
    /// What whoever uses the file should know.
    pub notes: Vec<String>,
}

/// Writes `path`, matrices in the type of `model`, vectors as F32 and rows that blocks do not divide as F16; the file appears complete or not at all.
///
/// # Errors
/// What GGUF has no word for, weights that the type cannot hold, and what the disk refuses.
pub fn export(path: &Path, model: Export) -> anyhow::Result<Exported> {
    let config = model.model.config();
    refuse_inexpressible(config)?;
    let (mut metadata, mut notes) = (Metadata::default(), Vec::new());
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    describe(&mut metadata, config, &name, model.kind);
    match model.tokenizer {
        Some(tokenizer) => describe_tokenizer(&mut metadata, tokenizer, model.text, config.vocab_size, &mut notes)?,
        None => {
            metadata.text("tokenizer.ggml.model", "none");
            notes.push("there is no tokenizer; programs can give the model ids only".to_owned());
        }
    }
    if let Some(template) = &model.text.template {
        metadata.text("tokenizer.chat_template", template);
    }
    let tensors = planned(&model, &mut notes);
    Ok(Exported { bytes: write(path, &metadata, &tensors)?, notes })
}

fn refuse_inexpressible(config: &ModelConfig) -> anyhow::Result<()> {
    let has =
        |what: &str, remedy: &str| Err(crate::user_error!("the model has {what}, for which GGUF has no word{remedy}"));
    if !config.parts.is_plain() {
        return has("parts beyond the backbone", "; --backbone-only leaves them out");
    }
    if config.has_kda() {
        return has("layers of Kimi Delta Attention", "");
    }
    if config.has_windows() {
        return has("sliding windows (model.window_pattern)", "");
    }
    if config.softcap().is_some() {
        return has("a soft-cap of the logits (model.softcap)", "");
    }
    if config.qk_norm && config.rope_scaling.is_some() {
        return has("QK-norm and Llama 3's rotary scaling together", "");
    }
    Ok(())
}

fn describe(metadata: &mut Metadata, config: &ModelConfig, name: &str, kind: BlockType) {
    let architecture = if config.qk_norm { "qwen3" } else { "llama" };
    metadata.text("general.architecture", architecture);
    metadata.text("general.type", "model");
    metadata.text("general.name", name);
    metadata.count("general.quantization_version", 2);
    let file_type = match kind {
        BlockType::F32 => 0,
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q8_0 => 7,
        BlockType::Q6K => 18,
        BlockType::Bf16 => 32,
    };
    metadata.count("general.file_type", file_type);
    for (key, value) in [
        ("block_count", config.layers),
        ("context_length", config.max_seq_len),
        ("embedding_length", config.width),
        ("feed_forward_length", config.ffn_width),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab_size),
    ] {
        metadata.count(&format!("{architecture}.{key}"), value);
    }
    metadata.number(&format!("{architecture}.rope.freq_base"), config.rope_theta);
    metadata.number(&format!("{architecture}.attention.layer_norm_rms_epsilon"), config.norm_eps);
}

/// As many tokens as the model has rows: holes and padding are unused ones.
fn describe_tokenizer(
    metadata: &mut Metadata,
    tokenizer: &Tokenizer,
    text: &TextRules,
    rows: usize,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    if tokenizer.vocab_size() > rows {
        user_bail!("the tokenizer has {} tokens and the model {rows}; use the model's own", tokenizer.vocab_size());
    }
    let pattern = tokenizer.pattern();
    let Some((name, difference)) = pattern_name(pattern) else {
        user_bail!("the tokenizer splits text by a pattern ({}), for which GGUF has no name", pattern.name())
    };
    if let Some(difference) = difference {
        notes.push(format!("llama.cpp splits text as {name:?}, which differs from {}: {difference}", pattern.name()));
    }
    metadata.text("tokenizer.ggml.model", "gpt2");
    metadata.text("tokenizer.ggml.pre", name);
    metadata.text(PATTERN_KEY, pattern.regex());
    metadata.flag(WHOLE_PIECES_KEY, tokenizer.whole_pieces());
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![token_type::UNUSED; rows];
    for (bytes, id) in tokenizer.ordinary_tokens() {
        (tokens[id as usize], types[id as usize]) = (to_alphabet(bytes), token_type::NORMAL);
    }
    for (text, id) in tokenizer.specials() {
        (tokens[*id as usize], types[*id as usize]) = (text.clone(), token_type::CONTROL);
    }
    metadata.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
    metadata.integers("tokenizer.ggml.token_type", &types);
    let spelled = |id: u32| tokens[id as usize].as_str();
    let merges: Vec<String> =
        tokenizer.merges().iter().map(|merge| format!("{} {}", spelled(merge.left), spelled(merge.right))).collect();
    metadata.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    let ends = ["eos", "eot", "eom"].into_iter().zip(text.eos.iter().map(|id| Some(*id)));
    for (key, id) in [("bos", text.bos), ("unknown", tokenizer.unknown())].into_iter().chain(ends) {
        if let Some(id) = id {
            metadata.count(&format!("tokenizer.ggml.{key}_token_id"), id as usize);
        }
    }
    metadata.flag("tokenizer.ggml.add_bos_token", text.add_bos);
    metadata.flag("tokenizer.ggml.add_space_prefix", false);
    Ok(())
}

fn planned<'a>(export: &Export<'a>, notes: &mut Vec<String>) -> Vec<Planned<'a>> {
    let Export { model, params, kind, .. } = *export;
    let config = model.config();
    let (mut tensors, mut fallen_back) = (Vec::new(), 0);
    for (i, entry) in model.layout().entries().iter().enumerate() {
        let shape = entry.shape.as_slice().to_vec();
        let kind = match shape.as_slice() {
            [_] => BlockType::F32,
            [_, cols] if kind.row_bytes(*cols).is_none() => {
                fallen_back += 1;
                BlockType::F16
            }
            _ => kind,
        };
        let order = RowOrder::of(&entry.name, config);
        let name = file_name(&entry.name).expect("a plain backbone has names for all");
        let bytes = move || encoded(&params.master_view(ParamId(i as u32)), &entry.name, order, kind);
        tensors.push(Planned { name, shape, kind, bytes: Box::new(bytes) });
    }
    if let Some(scaling) = config.rope_scaling {
        let factors = rope_factors(config, scaling);
        let shape = vec![factors.len()];
        let bytes = move || Ok(factors.iter().flat_map(|x| x.to_le_bytes()).collect());
        tensors.push(Planned { name: ROPE_FACTORS.into(), shape, kind: BlockType::F32, bytes: Box::new(bytes) });
    }
    if fallen_back > 0 {
        let elems = kind.block_elems();
        notes.push(format!(
            "{fallen_back} matrices are F16: their rows are no multiple of {elems}, a block of {}",
            kind.name()
        ));
    }
    tensors
}

/// The rows of a parameter in the order of the file, in blocks of `kind`.
fn encoded(values: &Tensor, name: &str, order: RowOrder, kind: BlockType) -> anyhow::Result<Vec<u8>> {
    let values = values.to(Device::Cpu);
    let cols = values.shape().as_slice().last().copied().unwrap_or(1);
    let values = values.as_slice::<f32>();
    // Scales are f16, and so are single values of that type.
    let most = if matches!(kind, BlockType::F32 | BlockType::Bf16) { f32::MAX } else { half::f16::MAX.to_f32() };
    if let Some(value) = values.iter().find(|x| x.is_nan() || x.abs() > most) {
        user_bail!(
            "{name} holds {value}, which {} cannot; export another --type, or an earlier checkpoint",
            kind.name()
        );
    }
    let row_bytes = kind.row_bytes(cols).expect("a type that divides the rows");
    let mut bytes = vec![0; values.len() / cols * row_bytes];
    bytes.par_chunks_exact_mut(row_bytes).enumerate().for_each(|(row, out)| {
        kind.quantise(&values[order.hf_row(row) * cols..][..cols], out);
    });
    Ok(bytes)
}
