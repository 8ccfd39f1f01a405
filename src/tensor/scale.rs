//! A factor that changes from step to step.

use super::{Arena, DType, Tensor};
use crate::device::Device;

/// A number that work is done with.
#[derive(Clone, Debug)]
pub enum Scale {
    /// This one.
    Value(f64),
    /// `[1]` f32 on a GPU, read when the work is done: recorded work can be done again with another one.
    At(Tensor),
}

impl From<f64> for Scale {
    fn from(value: f64) -> Scale {
        Scale::Value(value)
    }
}

impl Scale {
    /// In the memory of a GPU, `[1]` f32.
    pub fn on_gpu(&self, arena: &Arena) -> Tensor {
        match self {
            Scale::Value(value) => Tensor::from_slice(arena, [1], &[*value as f32]),
            Scale::At(tensor) => tensor.clone(),
        }
    }

    /// The number, brought to the host where it lies elsewhere.
    pub fn value(&self) -> f64 {
        match self {
            Scale::Value(value) => *value,
            Scale::At(tensor) => tensor.to_f64()[0],
        }
    }

    /// Values of `elems` numbers as factors: the `i`-th of `tensor`.
    pub fn at(tensor: &Tensor, i: usize) -> Scale {
        debug_assert!(tensor.dtype() == DType::F32 && matches!(tensor.device(), Device::Gpu(_)));
        Scale::At(tensor.view(i, [1]))
    }
}
