//! CUDA C++ kernels, compiled by the real nvcc, against plain Rust computations, under several schedules and moments of asynchronous work.
//! `STEM.rs` tests the kernels of `STEM.cu`.

mod nvcc;
mod fuzz;
mod gpu;
mod forms;
mod integer;
mod intrinsics;
mod rounded;
mod elementwise;
mod rowwise;
mod blockwise;
mod control;
mod functions;
mod library;
mod dependents;
mod facts;
mod matrix;
mod tiles;
mod sparse;
mod bulk;
mod tensor_copies;
mod tensor_maps;
mod remote_stores;
mod wgmma_forms;
mod wgmma_bytes;
mod cluster;
mod gemm_wgmma_tma;
mod faults;
mod sgemm;
mod mutation;
