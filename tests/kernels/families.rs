//! What `doctor --full` checks is every kernel.

use crate::ops::simulators;
use nanochat_gpu::device::modules::{self, KERNELS};
use nanochat_gpu::verify::Extent;
use nanochat_gpu::verify::families::FAMILIES;
use std::collections::BTreeSet;

/// Every kernel that the device has code of is launched, as the driver counts it; each family launches some.
#[test]
fn all_cases_together_launch_every_kernel() {
    let Some(&gpu) = simulators().first() else { return };
    let mut counted = BTreeSet::new();
    for family in FAMILIES {
        family.check(gpu, Extent::All).unwrap_or_else(|message| panic!("{}: {message}", family.name));
        let counts = gpu.take_counts();
        let launched = gpu.take_launched();
        assert!(!launched.is_empty(), "{} launches nothing", family.name);
        assert!(launched.iter().eq(counts.keys()), "{}: {launched:?}, counted {:?}", family.name, counts.keys());
        counted.extend(counts.into_keys());
    }
    let here = KERNELS.iter().filter(|kernel| modules::best(kernel.stem, gpu.driver().capability()).is_some());
    let missed: Vec<&str> = here.map(|kernel| kernel.name).filter(|name| !counted.contains(*name)).collect();
    assert!(missed.is_empty() && counted.len() > 60, "{missed:?} were not launched, {} were", counted.len());
}

/// The quick check, of one case of each kind, says something of every family, too.
#[test]
fn one_case_of_each_launches_every_family() {
    let Some(gpu) = simulators().pop() else { return };
    for family in FAMILIES {
        family.check(gpu, Extent::One).unwrap_or_else(|message| panic!("{}: {message}", family.name));
        assert!(!gpu.take_launched().is_empty(), "{} launches nothing", family.name);
    }
}
