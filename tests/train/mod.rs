//! Training: the optimisers, the trainer, and what a run leaves behind.

mod device;
mod digits;
mod kda;
mod memetic;
mod abacus;
mod optim;
mod parts;
mod plot;
mod trainer;
