//! A GPT trainer and runtime written from scratch: tensors, tape, ops, model, tokenizer, data, training and inference.
//!
//! The modules are declared in reading order: each may use those above it, never those below.

pub mod error;
pub mod tensor;
pub mod device;
pub mod ops;
pub mod tape;
pub mod model;
pub mod tokenizer;
pub mod data;
pub mod formats;
pub mod dist;
pub mod infer;
pub mod eval;
pub mod train;
pub mod verify;
pub mod bench;
pub mod cli;
