//! What a launch may be told: seed, order of warps, moment of asynchronous work, arithmetic, checks, threads.

use serde::{Deserialize, Serialize};

/// Order in which the warps of a cluster take turns. Every order is legal on hardware; tests run under several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Warp 0, 1, 2, ... of CTA 0, then of CTA 1, and so on, each until it blocks or its quantum ends.
    #[default]
    RoundRobin,
    /// The same from the last warp to the first.
    Reverse,
    /// A fresh seeded permutation in every round, and seeded quanta; divergent groups of a warp run in random order too.
    Random,
}

/// When asynchronous work (`cp.async`, bulk and tensor copies, `wgmma`) takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsyncPolicy {
    /// At the wait that requires it, or when nothing else can run: a missing wait reads old data.
    #[default]
    Late,
    /// At once: a missing empty-barrier overwrites data still in use.
    Early,
    /// At a seeded moment between issue and the last legal one.
    Random,
}

/// Arithmetic of the tensor cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorMode {
    /// The truncated fused dot-add of the target's hardware, bit for bit.
    #[default]
    Exact,
    /// Plain `f32` multiply-add, about ten times as fast.
    Fast,
}

/// Results of the `.approx` instructions, whose bit patterns are not documented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approximation {
    /// Computed in `f64` and rounded once.
    #[default]
    Ideal,
    /// The ideal result plus a seeded error inside the documented bound.
    Perturbed,
}

/// Which checkers watch a launch; a field per file of `checkers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checks {
    /// Accesses outside allocations, in red zones and after free.
    pub bounds: bool,
    /// Addresses that are no multiple of the access size.
    pub alignment: bool,
    /// Reads of bytes that nobody wrote.
    pub uninitialised: bool,
    /// Conflicting accesses to shared memory that nothing orders.
    pub shared_races: bool,
    /// Conflicting accesses to global memory by different CTAs of one launch.
    pub global_races: bool,
    /// Generic-proxy writes read by the async proxy without `fence.proxy.async`.
    pub proxy_fences: bool,
    /// Misuse of mbarriers.
    pub mbarriers: bool,
    /// Registers of `wgmma` touched while it runs.
    pub wgmma_registers: bool,
    /// Partial warps at `.aligned` instructions, divergent barriers, deadlocks.
    pub convergence: bool,
    /// What is left in flight when a CTA exits.
    pub leaks: bool,
}

impl Checks {
    /// Every checker on.
    pub const ALL: Checks = Checks {
        bounds: true,
        alignment: true,
        uninitialised: true,
        shared_races: true,
        global_races: true,
        proxy_fences: true,
        mbarriers: true,
        wgmma_registers: true,
        convergence: true,
        leaks: true,
    };

    /// Every checker off: no event is built; an illegal access ends the launch with an error.
    pub const NONE: Checks = Checks {
        bounds: false,
        alignment: false,
        uninitialised: false,
        shared_races: false,
        global_races: false,
        proxy_fences: false,
        mbarriers: false,
        wgmma_registers: false,
        convergence: false,
        leaks: false,
    };
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}

/// Everything that may differ between two runs of one launch. The same options give the same memory, findings and
/// counters, whatever `threads` is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Source of every random choice of a run.
    pub seed: u64,
    /// Order of the warps.
    pub schedule: Schedule,
    /// Moment of asynchronous work.
    pub asynchrony: AsyncPolicy,
    /// One failed `mbarrier.try_wait` in this many comes without a reason, as the ISA allows; 0 = never.
    pub spurious_wait_one_in: u32,
    /// Tensor-core arithmetic.
    pub tensor: TensorMode,
    /// Approximate functions.
    pub approximation: Approximation,
    /// Checkers.
    pub checks: Checks,
    /// Count instructions, sectors, wavefronts and bytes.
    pub counters: bool,
    /// Keep the counters of every PTX line as well as their sums.
    pub counters_per_line: bool,
    /// Threads that run clusters.
    pub threads: usize,
    /// Warp instructions that one cluster may execute before the launch counts as hung.
    pub instructions_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            schedule: Schedule::RoundRobin,
            asynchrony: AsyncPolicy::Late,
            spurious_wait_one_in: 0,
            tensor: TensorMode::Exact,
            approximation: Approximation::Ideal,
            checks: Checks::ALL,
            counters: true,
            counters_per_line: false,
            threads: 1,
            instructions_max: 1 << 30,
        }
    }
}
