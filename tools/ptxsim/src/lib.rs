//! Runs the PTX that nvcc 13.0 emits for sm_80 and sm_90a on a CPU: checks it like compute-sanitizer, counts it like Nsight
//! Compute, deterministically. Knows nothing of tensors or models.
//!
//! Modules in reading order: the contract first (what a run may be told, how memory is addressed, what execution tells its
//! checkers), then the front end, execution, checkers, counters and the host's side.

pub mod error;
pub mod options;
pub mod address;
pub mod event;
pub mod checker;
pub mod front;
#[macro_use]
pub mod scalar;
pub mod units;
pub mod memory;
pub mod heap;
pub mod program;
pub mod exec;
pub mod checkers;
pub mod counters;
pub mod launch;
pub mod dependents;
pub mod host;
pub mod mutation;
