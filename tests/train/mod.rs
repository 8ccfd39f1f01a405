//! Training: the optimisers, the trainer, and what a run leaves behind.

mod optim;
mod plot;
mod trainer;
