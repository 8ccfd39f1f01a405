//! The model against recorded numbers, finite differences and its own other paths.

mod device;
mod gpt;
mod reference;
