//! Opens a checkpoint folder for inference.

use super::{hf, safetensors::Reader};
use crate::model::Gpt;
use crate::tensor::{DType, Params};
use crate::tokenizer::Tokenizer;
use crate::user_error;
use std::path::{Path, PathBuf};

/// A model opened for inference.
pub struct LoadedModel {
    pub model: Gpt,
    pub params: Params,
    pub tokenizer: Option<Tokenizer>,
    pub dir: PathBuf,
}

/// Reads `config.json`, `model.safetensors` and, where there is one, `tokenizer.json` in `dir`.
pub fn load_model(dir: &Path, dtype: DType) -> anyhow::Result<LoadedModel> {
    let config = dir.join("config.json");
    let file = config.display().to_string();
    let text = std::fs::read_to_string(&config).map_err(|error| user_error!("cannot open {file}: {error}"))?;
    let value = serde_json::from_str(&text).map_err(|error| user_error!("{file}: {error}"))?;
    let model = Gpt::new(hf::parse_config(&value, &file)?, dtype)?;
    let weights = dir.join("model.safetensors");
    let params = hf::read_params(&model, &Reader::open(&weights)?, dtype, &weights.display().to_string())?;
    let tokenizer = dir.join("tokenizer.json").exists().then(|| Tokenizer::load(dir)).transpose()?;
    Ok(LoadedModel { model, params, tokenizer, dir: dir.to_path_buf() })
}
