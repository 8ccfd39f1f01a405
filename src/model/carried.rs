//! What goes from one segment of a stream to the next beside the parameters: the memory's states, and the banks of the long-term memory.
//!
//! A stream is a text that goes on from batch to batch, some rows of each at a time. Gradients do not go back over the edge of a batch.

use super::ModelConfig;
use super::long_term::Bank;
use crate::device::Device;
use crate::tensor::{DType, Tensor};

/// Of every stream of a batch, in their order. The default carries nothing: rows begin from nothing, and what comes of them is lost.
#[derive(Default)]
pub struct Carried {
    /// `[streams, H, dk, dv]` in the accumulator type, at an address that stays.
    memory: Option<Tensor>,
    bank: Option<Bank>,
}

impl Carried {
    /// Of `streams` that have not begun, of each of which a batch has `segments` rows, of a model that computes in `dtype` on `device`; nothing
    /// where the model carries nothing.
    pub fn new(device: Device, config: &ModelConfig, [streams, segments]: [usize; 2], dtype: DType) -> Carried {
        let (memory, long_term) = (&config.parts.memory, &config.parts.long_term);
        Carried {
            memory: memory.enabled.then(|| memory.states(device, streams, dtype)),
            bank: long_term.enabled.then(|| Bank::new(device, config, [streams, segments], dtype)),
        }
    }

    /// The memory's states.
    pub(super) fn memory(&mut self) -> Option<&mut Tensor> {
        self.memory.as_mut()
    }

    /// The banks of the long-term memory.
    pub(super) fn bank(&mut self) -> Option<&mut Bank> {
        self.bank.as_mut()
    }

    /// All of it by name: what a checkpoint keeps.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let memory = self.memory.iter().map(|memory| ("memory", memory));
        memory.chain(self.bank.iter().flat_map(Bank::tensors)).collect()
    }

    /// The same, to overwrite.
    pub fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let memory = self.memory.iter_mut().map(|memory| ("memory", memory));
        memory.chain(self.bank.iter_mut().flat_map(Bank::tensors_mut)).collect()
    }
}
