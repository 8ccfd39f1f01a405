//! The commands, one file each.

pub mod data;
pub mod tokenizer;
