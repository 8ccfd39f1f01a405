//! Every op on the cases of `verify`: reference, finite differences, rounding.

mod add;
mod attention;
mod attention_flash;
mod bank_product;
mod bank_write;
mod blend;
mod clip;
mod concept_loss;
mod decay_gate;
mod delta_rule;
mod embedding;
mod energy_contrast;
mod energy_score;
mod grad_norm;
mod hypercube;
mod latent;
mod linear;
mod lm_loss;
mod mlp;
mod paged_attention;
mod relu_squared;
mod rmsnorm;
mod rope;
mod sample;
mod scale_grad;
mod segment_mean;
mod select_rows;
mod self_loss;
mod short_conv;
mod sigmoid_gate;
mod softcap;
mod swiglu;
mod top_k_softmax;
mod unit_norm;

use nanochat_gpu::device::driver::Capability;
use nanochat_gpu::device::driver::sim::SimOptions;
use nanochat_gpu::device::gpu::Gpu;
use nanochat_gpu::device::modules::MODULES;
use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, ParamId, Role, Shape, Tensor};
use nanochat_gpu::verify::{self, Cases, Check, Extent, OpCase};
use ptxsim::options::{AsyncPolicy, Options, Schedule};
use std::sync::Arc;

/// Compute capability of an H100.
pub const HOPPER: Capability = Capability { major: 9, minor: 0 };

/// Orders of warps and moments of asynchronous work under which every case runs in the simulator.
const ORDERS: [(Schedule, AsyncPolicy, u64); 3] = [
    (Schedule::RoundRobin, AsyncPolicy::Late, 0),
    (Schedule::Reverse, AsyncPolicy::Early, 0),
    (Schedule::Random, AsyncPolicy::Random, 1),
];

/// Simulated GPUs with all checkers on, one for each of [`ORDERS`]; none where this build has no kernels.
pub fn simulators() -> Vec<&'static Gpu> {
    thread_local! {
        // Each test has a thread, and so GPUs of its own: what goes wrong is told to who did it.
        static OPENED: Vec<&'static Gpu> = opened("sm_80", Capability { major: 8, minor: 0 });
    }
    OPENED.with(Clone::clone)
}

fn opened(arch: &str, capability: Capability) -> Vec<&'static Gpu> {
    let has_kernels = MODULES.iter().any(|module| module.arch == arch);
    let orders = ORDERS.iter().filter(|_| has_kernels);
    let open = orders.map(|&(schedule, asynchrony, seed)| {
        let mut options = SimOptions { capability, ..SimOptions::checked() };
        options.run = Options { schedule, asynchrony, seed, threads: 1, ..options.run };
        Gpu::sim(options).unwrap()
    });
    open.collect()
}

/// As [`simulators`], of compute capability 9.0.
pub fn hoppers() -> Vec<&'static Gpu> {
    thread_local! {
        static OPENED: Vec<&'static Gpu> = opened("sm_90a", HOPPER);
    }
    OPENED.with(Clone::clone)
}

/// The first of [`hoppers`].
pub fn hopper() -> Option<&'static Gpu> {
    hoppers().into_iter().next()
}

/// Checks all cases of an op on the CPU and in the simulator and says what failed.
fn check(cases: fn(Extent, Check) -> Cases) {
    let everywhere = |case: &OpCase| {
        case.check()?;
        simulators().into_iter().try_for_each(|gpu| case.check_on(gpu))
    };
    cases(Extent::All, &everywhere).unwrap_or_else(|message| panic!("{message}"));
}

/// Checks all cases of an op on the CPU alone.
fn check_on_cpu(cases: fn(Extent, Check) -> Cases) {
    cases(Extent::All, &|case| case.check()).unwrap_or_else(|message| panic!("{message}"));
}

/// Runs a check of kernels in the simulator under every order.
pub fn check_on_all(check: fn(&'static Gpu, Extent) -> Cases) {
    for gpu in simulators() {
        check(gpu, Extent::All).unwrap_or_else(|message| panic!("{}: {message}", gpu.driver().name()));
    }
}

/// Zeroed gradients of parameters of these shapes, as ops add to them.
pub fn gradients(arena: &Arena, dtype: DType, shapes: &[Shape]) -> Grads {
    let mut layout = Layout::default();
    for (i, &shape) in shapes.iter().enumerate() {
        layout.push(format!("{i}"), shape.as_slice(), Role::Matrix);
    }
    Grads::zeros_on(arena.device(), Arc::new(layout), dtype)
}

/// The `i`-th gradient as f64.
fn gradient(grads: &Grads, i: u32) -> Vec<f64> {
    grads.view(ParamId(i)).to_f64()
}

/// A tensor of token ids.
pub fn ids(arena: &Arena, values: &[u32]) -> Tensor {
    Tensor::from_slice(arena, [values.len()], values)
}

/// A tensor of rounded values.
pub fn tensor(arena: &Arena, dtype: DType, shape: impl Into<Shape>, values: &[f64]) -> Tensor {
    Tensor::from_f64(arena, shape, dtype, values)
}
