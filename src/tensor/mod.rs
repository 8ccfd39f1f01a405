//! Tensors: element types, shapes, contiguous storage, blocks of quantised weights, the step arena and counter-based random numbers. Knows no op and no tape.

pub mod arena;
pub mod blocks;
pub mod dtype;
pub mod flat;
pub mod noise;
mod packed;
pub mod random;
pub mod scale;
pub mod shape;
mod storage;
#[allow(clippy::module_inception)] // `tensor::tensor` holds the type, as `shape::Shape` holds its own
mod tensor;

pub use arena::{Arena, ArenaStats};
pub use blocks::BlockType;
pub use dtype::{DType, Elem, Float, Scalar};
pub use flat::{Grads, Init, Layout, ParamId, Params, Role, Span};
pub use packed::Weight;
pub use scale::Scale;
pub use shape::Shape;
pub use tensor::{Alias, Tensor, TensorMut};
