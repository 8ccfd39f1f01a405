//! The checkers, a file each: they watch events, report findings, and never change what the program does.

pub mod alignment;
pub mod bounds;
pub mod convergence;
pub mod dependents;
pub mod global_races;
pub mod leaks;
pub mod mbarriers;
mod order;
pub mod proxy_fences;
pub mod shared_races;
pub mod uninitialised;
mod wgmma_operands;
pub mod wgmma_registers;

use crate::checker::CheckerKind;
use crate::event::AsyncKind;
use crate::options::Checks;

/// The kinds that the options ask for, in a fixed order.
pub fn kinds(checks: &Checks) -> Vec<Box<dyn CheckerKind>> {
    let all: [(bool, Box<dyn CheckerKind>); 10] = [
        (checks.bounds, Box::new(bounds::Bounds)),
        (checks.alignment, Box::new(alignment::Alignment)),
        (checks.uninitialised, Box::new(uninitialised::Uninitialised)),
        (checks.shared_races, Box::new(shared_races::SharedRaces)),
        (checks.global_races, Box::new(global_races::GlobalRaces)),
        (checks.proxy_fences, Box::new(proxy_fences::ProxyFences)),
        (checks.mbarriers, Box::new(mbarriers::Mbarriers)),
        (checks.wgmma_registers, Box::new(wgmma_registers::WgmmaRegisters)),
        (checks.convergence, Box::new(convergence::Convergence)),
        (checks.leaks, Box::new(leaks::Leaks)),
    ];
    all.into_iter().filter_map(|(on, kind)| on.then_some(kind)).collect()
}

/// What the asynchronous family is called in messages.
fn family(kind: AsyncKind) -> &'static str {
    match kind {
        AsyncKind::CpAsync => "cp.async",
        AsyncKind::BulkLoad => "bulk copy into shared memory",
        AsyncKind::BulkStore => "bulk copy out of shared memory",
        AsyncKind::BulkReduce => "bulk reduction",
        AsyncKind::Wgmma => "wgmma",
    }
}
