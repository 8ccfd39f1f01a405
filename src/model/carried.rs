//! What goes from one segment of a stream to the next beside the parameters: the memory's states, and the banks of the long-term memory.
//!
//! A stream is a text that goes on from batch to batch, some rows of each at a time. Gradients do not go back over the edge of a batch.

use super::ModelConfig;
use super::memory::Bank;
use crate::device::Device;
use crate::tensor::{DType, Tensor};

/// Of every stream of a batch, in their order. The default carries nothing: rows begin from nothing, and what comes of them is lost.
#[derive(Default)]
pub struct Carried {
    /// `[streams, H, dk, dv]` in the accumulator type, at an address that stays.
    abacus: Option<Tensor>,
    bank: Option<Bank>,
}

impl Carried {
    /// Of `streams` that have not begun, of each of which a batch has `segments` rows, of a model that computes in `dtype` on `device`; nothing
    /// where the model carries nothing.
    pub fn new(device: Device, config: &ModelConfig, [streams, segments]: [usize; 2], dtype: DType) -> Carried {
        let (abacus, memory) = (&config.parts.abacus, &config.parts.memory);
        Carried {
            abacus: abacus.enabled.then(|| abacus.states(device, streams, dtype)),
            bank: memory.enabled.then(|| Bank::new(device, config, [streams, segments], dtype)),
        }
    }

    /// The memory's states.
    pub(super) fn abacus(&mut self) -> Option<&mut Tensor> {
        self.abacus.as_mut()
    }

    /// The banks of the long-term memory.
    pub(super) fn bank(&mut self) -> Option<&mut Bank> {
        self.bank.as_mut()
    }

    /// All of it by name: what a checkpoint keeps.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let abacus = self.abacus.iter().map(|abacus| ("abacus", abacus));
        abacus.chain(self.bank.iter().flat_map(Bank::tensors)).collect()
    }

    /// The same, to overwrite.
    pub fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let abacus = self.abacus.iter_mut().map(|abacus| ("abacus", abacus));
        abacus.chain(self.bank.iter_mut().flat_map(Bank::tensors_mut)).collect()
    }
}
