//! All tests but the repository's own checks, as modules that mirror `src/`.

mod bench;
mod cli;
mod data;
mod device;
mod eval;
mod formats;
mod gpu_check;
mod infer;
mod kernels;
mod model;
mod ops;
mod tensor;
mod tokenizer;
mod train;
