//! File formats: checkpoint folders, safetensors, and Hugging Face's `config.json` and parameter names.

pub mod checkpoint;
pub mod hf;
pub mod safetensors;
