//! The model against recorded numbers, finite differences and its own other paths.

pub mod device;
mod digits;
pub mod gpt;
mod hypercube;
mod kda;
mod memory;
mod packed;
mod abacus;
pub mod parts;
pub mod reference;
