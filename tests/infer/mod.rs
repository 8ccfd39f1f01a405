//! Tests of `infer`, and what they share: small models with random values, and checkpoints of them on disk.

mod answer;
mod calculator;
mod command;
mod engine;
mod generate;
mod memory_file;
mod pages;
mod rerank;
mod rules;
mod sampler;
mod smollm2;
mod text;

use nanochat_gpu::formats::hf::{SpecialIds, config_json};
use nanochat_gpu::formats::safetensors::{Named, write};
use nanochat_gpu::model::{Gpt, ModelConfig};
use nanochat_gpu::tensor::{DType, ParamId, Params};
use nanochat_gpu::tokenizer::Tokenizer;
use nanochat_gpu::verify::normals;
use std::path::Path;

/// A small model with grouped heads, a window and a soft-cap.
pub fn small_model(vocab_size: usize, max_seq_len: usize) -> Gpt {
    let config = ModelConfig {
        layers: 3,
        width: 24,
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        ffn_width: 40,
        window_pattern: "SL".into(),
        window: 5,
        softcap: 9.0,
        ..ModelConfig::from_depth(3, vocab_size, max_seq_len)
    };
    Gpt::new(config, DType::F32).unwrap()
}

/// Random values everywhere: at the real initialisation the outputs of the blocks are zero and tests would see nothing.
pub fn random_params(model: &Gpt, dtype: DType) -> Params {
    let mut params = Params::zeros(model.layout().clone(), dtype);
    let deviation = 1.5 / (model.config().width as f64).sqrt();
    let of = |rank: usize, x: f64| if rank == 1 { 1.0 + 0.2 * x } else { deviation * x };
    let entries = model.layout().entries().iter();
    let values = entries.flat_map(|e| normals(&e.name, e.shape.elems()).into_iter().map(|x| of(e.shape.rank(), x)));
    params.master_mut().copy_from_f64(&values.collect::<Vec<_>>());
    params.round();
    params
}

/// Writes the checkpoint of a model in `folder`.
pub fn save_checkpoint(folder: &Path, model: &Gpt, params: &Params, tokenizer: Option<&Tokenizer>) {
    let config = config_json(model.config(), &SpecialIds::default());
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let entries = model.layout().entries();
    let views: Vec<_> = (0..entries.len()).map(|i| params.view(ParamId(i as u32))).collect();
    let named: Vec<_> = entries.iter().zip(&views).map(|(entry, view)| Named::new(entry.name.as_str(), view)).collect();
    write(&folder.join("model.safetensors"), &named).unwrap();
    if let Some(tokenizer) = tokenizer {
        tokenizer.save(folder).unwrap();
    }
}
