//! Work that a GPU does again from a recording (a CUDA graph).

use super::driver::{GraphId, Result};
use super::gpu::Gpu;

/// Recorded work with the addresses it had; forgotten when this is dropped.
pub struct Graph {
    gpu: &'static Gpu,
    id: GraphId,
}

impl Graph {
    pub(super) fn new(gpu: &'static Gpu, id: GraphId) -> Graph {
        Graph { gpu, id }
    }

    /// Does the work again.
    pub fn replay(&self) {
        self.gpu.attempt(|driver| driver.replay(self.id));
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.attempt(|driver| driver.free_graph(self.id));
    }
}

/// Work that is done once as it is written, so that its kernels are loaded, then recorded, then replayed.
#[derive(Default)]
pub struct Recording {
    is_warm: bool,
    graph: Option<Graph>,
}

impl Recording {
    /// Does `work`, which is the same every time; true if from an earlier recording. Without `records` as it is written.
    ///
    /// # Errors
    /// When something in it cannot be recorded.
    pub fn run(&mut self, gpu: &'static Gpu, records: bool, work: impl FnOnce()) -> Result<bool> {
        match &self.graph {
            Some(graph) => {
                graph.replay();
                return Ok(true);
            }
            None if records && self.is_warm => self.graph.insert(gpu.capture(work)?).replay(),
            None => work(),
        }
        self.is_warm = true;
        Ok(false)
    }
}
