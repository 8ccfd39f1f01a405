//! What goes from one segment of a stream to the next beside the parameters: the memory's states.
//!
//! A stream is a text that goes on from batch to batch, some rows of each at a time. Gradients do not go back over the edge of a batch.

use super::ModelConfig;
use crate::device::Device;
use crate::tensor::{DType, Tensor};

/// Of every stream of a batch, in their order. The default carries nothing: rows begin from nothing, and what comes of them is lost.
#[derive(Default)]
pub struct Carried {
    /// `[streams, H, dk, dv]` in the accumulator type, at an address that stays.
    memory: Option<Tensor>,
}

impl Carried {
    /// Of `streams` that have not begun, of a model that computes in `dtype` on `device`; nothing where the model carries nothing.
    pub fn new(device: Device, config: &ModelConfig, streams: usize, dtype: DType) -> Carried {
        let memory = &config.parts.memory;
        Carried { memory: memory.enabled.then(|| memory.states(device, streams, dtype)) }
    }

    /// The memory's states.
    pub(super) fn memory(&mut self) -> Option<&mut Tensor> {
        self.memory.as_mut()
    }

    /// All of it by name: what a checkpoint keeps.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        self.memory.iter().map(|memory| ("memory", memory)).collect()
    }

    /// The same, to overwrite.
    pub fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        self.memory.iter_mut().map(|memory| ("memory", memory)).collect()
    }
}
