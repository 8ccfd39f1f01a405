//! The commands, one file each.

pub mod completions;
pub mod data;
pub mod eval;
pub mod logits;
mod output;
pub mod sample;
pub mod tokenizer;
