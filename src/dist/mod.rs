//! Ranks that train together: the interface, the one for a single rank, and threads of one process.

pub mod local;

use crate::tensor::Tensor;

/// How ranks exchange gradients. Every rank calls the same methods in the same order.
pub trait Communicator: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world(&self) -> usize;
    /// Replaces `values` by their sum over all ranks, the same bits on every rank.
    fn all_reduce_sum(&self, values: &mut Tensor);
}

/// One rank alone.
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }
    fn world(&self) -> usize {
        1
    }
    fn all_reduce_sum(&self, _values: &mut Tensor) {}
}
