//! The kernels themselves, in the simulator: matrix products at awkward sizes, rows too wide for a warp, optimisers, memory
//! traffic, and what the checkers say when a barrier is missing; and what ptxas made of them. Every op's own cases run in the
//! simulator, too: see `tests/ops/`.

mod families;
mod gemm;
mod mutation;
mod optim;
mod resources;
mod rows;
mod sass;
mod traffic;
