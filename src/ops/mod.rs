//! The ops, one file each: equations, what forward saves, forward, backward, and a plain f64 `reference`.
//!
//! An op takes and returns tensors and knows no model and no tape. Row-wise ops compute while loading from the storage
//! type; ops built on matrix products widen bf16 first on the CPU. Each direction asks its tensors for the device and computes here,
//! or launches the kernels of `kernels/OP.cu` (matrix products those of `device::gemm`). `N` is rows (batch x length), other letters as in `kernels/README.md`.

pub mod add;
pub mod attention;
pub mod bank_product;
pub mod bank_write;
pub mod blend;
pub mod clip;
pub mod concept_loss;
pub mod decay_gate;
pub mod delta_rule;
pub mod embedding;
pub mod energy_contrast;
pub mod energy_score;
pub mod grad_norm;
pub mod hypercube;
pub mod latent;
pub mod linear;
pub mod lm_loss;
pub mod mlp;
pub mod paged_attention;
pub mod relu_squared;
pub mod rmsnorm;
pub mod rope;
pub mod sample;
pub mod scale_grad;
pub mod segment_mean;
pub mod select_rows;
pub mod self_loss;
pub mod short_conv;
pub mod sigmoid_gate;
pub mod softcap;
pub mod swiglu;
pub mod top_k_softmax;
pub mod unit_norm;
