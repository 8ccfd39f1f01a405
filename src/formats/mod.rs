//! File formats: checkpoint folders, safetensors, GGUF, and Hugging Face's `config.json` and parameter names.

pub mod weights;
pub mod text_rules;
pub mod safetensors;
pub mod hf;
pub mod gguf;
pub mod checkpoint;
