//! Every op whose kernels `doctor` launches, with its check on a device: all of them together launch every kernel.

use super::{
    Cases, Check, Extent, attention, banks, energy, heads, memory, packed, paged, parts, products, rowwise, sample,
    state,
};
use crate::device::gpu::Gpu;

/// How the kernels of an op are checked.
#[derive(Clone, Copy)]
enum How {
    /// Its cases, in f32 and bf16 against f64 on the CPU.
    Cases(fn(Extent, Check) -> Cases),
    /// In its own way.
    OnDevice(fn(&'static Gpu, Extent) -> Cases),
}

/// An op and its check.
#[derive(Clone, Copy)]
pub struct Family {
    pub name: &'static str,
    how: How,
}

const fn cases(name: &'static str, of: fn(Extent, Check) -> Cases) -> Family {
    Family { name, how: How::Cases(of) }
}

const fn on_device(name: &'static str, of: fn(&'static Gpu, Extent) -> Cases) -> Family {
    Family { name, how: How::OnDevice(of) }
}

/// All families.
pub const FAMILIES: &[Family] = &[
    cases("add", rowwise::add),
    cases("softcap", rowwise::softcap),
    cases("swiglu", rowwise::swiglu),
    cases("embedding", rowwise::embedding),
    cases("rmsnorm", rowwise::rmsnorm),
    cases("rope", rowwise::rope),
    cases("blend", parts::blend),
    cases("select_rows", parts::select_rows),
    cases("concept_loss", parts::concept_loss),
    cases("hypercube", parts::hypercube),
    cases("code_entropy", parts::code_entropy),
    on_device("concept_windows", parts::windows_on),
    on_device("scale_grad", rowwise::scale_grad),
    cases("relu_squared", heads::relu_squared),
    cases("self_loss", heads::self_loss),
    on_device("judged_loss", heads::judged_on),
    on_device("latent_chunks", heads::chunks_on),
    cases("latent", heads::latent),
    on_device("energy_draws", energy::draws_on),
    cases("energy_score", energy::score),
    cases("energy_contrast", energy::contrast),
    cases("energy_retrieve", energy::retrieve),
    cases("delta_rule", memory::delta_rule),
    on_device("delta_decode", memory::delta_decode_on),
    cases("short_conv", memory::short_conv),
    cases("unit_norm", memory::unit_norm),
    cases("decay_gate", memory::decay_gate),
    cases("sigmoid_gate", memory::sigmoid_gate),
    cases("top_k_softmax", banks::top_k_softmax),
    cases("bank_product", banks::bank_product),
    cases("segment_mean", banks::segment_mean),
    on_device("bank_write", banks::bank_write_on),
    on_device("top_k_statistics", banks::top_k_statistics_on),
    on_device("cast", state::cast_on),
    on_device("fill", state::fill_on),
    on_device("gemm", products::gemm_on),
    on_device("gemm_rows", products::gemm_rows_on),
    on_device("gemm_packed", packed::gemm_packed_on),
    on_device("embedding_packed", packed::embedding_packed_on),
    on_device("sample", sample::sample_on),
    cases("linear", products::linear),
    cases("mlp", products::mlp),
    cases("attention", attention::attention),
    on_device("attention_flash", attention::flash_on),
    on_device("paged_attention", paged::paged_on),
    on_device("cached_model", state::cached_model_on),
    cases("lm_loss", products::lm_loss),
    cases("lm_loss_low_rank", products::lm_loss_low_rank),
    on_device("grad_norm", state::grad_norm_on),
    on_device("clip", state::clip_on),
    on_device("adamw", state::adamw_on),
    on_device("muon", state::muon_on),
];

impl Family {
    /// Checks the kernels on a device.
    ///
    /// # Errors
    /// What disagreed, or what went wrong there.
    pub fn check(self, gpu: &'static Gpu, extent: Extent) -> Cases {
        match self.how {
            How::Cases(of) => of(extent, &|case| case.check_on(gpu)),
            How::OnDevice(of) => of(gpu, extent),
        }
    }
}
