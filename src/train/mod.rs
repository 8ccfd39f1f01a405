//! Training: configuration, optimisers, schedule, guard, the trainer and what it writes.

pub mod ablation;
pub mod keys;
mod losses;
pub mod config;
pub mod control;
pub mod estimate;
pub mod evolution;
pub mod guard;
pub mod metrics;
pub mod optim;
pub mod plot;
pub mod run_folder;
pub mod schedule;
pub mod state;
pub mod step;
mod begin;
pub mod trainer;
