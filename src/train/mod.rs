//! Training: optimisers, schedule, the trainer and what it writes.

pub mod optim;
pub mod plot;
