//! Training: the optimisers, the trainer, and what a run leaves behind.

mod device;
mod optim;
mod plot;
mod trainer;
