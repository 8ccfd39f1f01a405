//! Training: the optimisers, and what a run leaves behind.

mod optim;
mod plot;
