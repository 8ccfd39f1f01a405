//! The model: configuration, blocks, the GPT, its parameters' names and initial values. Knows no optimiser, no tokenizer
//! and no device kind. The equations are in each file's head.

pub mod config;
pub mod parts;
pub mod losses;
pub mod kda;
pub mod block;
pub mod cache;
pub mod psyche;
pub mod concept;
pub mod hypercube;
pub mod memetic;
pub mod self_model;
pub mod latent;
pub mod abacus;
pub mod memory;
pub mod digits;
pub mod carried;
pub mod energy;
pub mod gpt;

pub use cache::{Cached, KvCache, KvPool, Piece, SequenceState, StepInputs, StepRow};
pub use carried::Carried;
pub use config::{ModelConfig, Stages};
pub use gpt::Gpt;
pub use parts::Parts;
