//! What ops are built from on the processor.

mod matmul;
mod packed;
