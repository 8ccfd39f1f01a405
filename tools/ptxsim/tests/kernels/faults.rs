//! Every checker on faulty kernels that it must report, and on their correct twins, under every schedule and asynchronous
//! policy: the fault is found, its finding names the kernel's line, and the twin is clean.

use crate::nvcc::{self, Arch};
use ptxsim::checker::Finding;
use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::options::{AsyncPolicy, Options, Schedule};

/// Kernel, CTAs, threads, checker, rule; empty where the order of events decides which of several it is.
type Case = (&'static str, u32, u32, &'static str, &'static str);

const SM80: &[Case] = &[
    ("outside", 1, 1024, "bounds", "write_outside"),
    ("outside_shared", 1, 64, "bounds", "write_outside"),
    ("misaligned", 1, 64, "alignment", ""),
    ("uninitialised_global", 1, 64, "uninitialised", ""),
    ("uninitialised_shared", 1, 64, "uninitialised", ""),
    ("no_barrier", 1, 64, "shared_races", "race"),
    ("no_second_barrier", 1, 64, "shared_races", "race"),
    ("halves", 1, 64, "shared_races", "race"),
    ("named_barrier", 1, 64, "shared_races", "race"),
    ("no_syncwarp", 1, 32, "shared_races", "warp_synchronous"),
    ("plain_sum", 4, 32, "global_races", "race"),
    ("last_block", 4, 32, "global_races", "race"),
    ("copy_not_waited", 1, 32, "shared_races", "in_flight"),
    ("copy_without_barrier", 1, 64, "shared_races", ""),
    ("copy_left", 1, 32, "leaks", "in_flight_at_exit"),
    ("partial_warp", 1, 64, "convergence", "partial_warp"),
    ("barrier_count", 1, 64, "convergence", "barrier_count"),
    ("nobody_else", 1, 64, "convergence", "deadlock"),
    ("absent_lane", 1, 32, "convergence", "absent_lane_read"),
];

const SM90A: &[Case] = &[
    ("no_proxy_fence", 1, 64, "proxy_fences", "missing_fence"),
    ("source_reused", 1, 64, "shared_races", "in_flight"),
    ("store_left", 1, 64, "leaks", "in_flight_at_exit"),
    ("load_not_waited", 1, 64, "shared_races", ""),
    ("no_expect", 1, 64, "shared_races", ""),
    // Overwritten early, or a phase that the consumer never sees.
    ("stage_not_free", 1, 64, "", ""),
    ("init_twice", 1, 64, "mbarriers", "init_over_live"),
    ("never_initialised", 1, 64, "mbarriers", "not_an_mbarrier"),
    ("peeked", 1, 64, "mbarriers", "ordinary_access"),
    ("init_not_fenced", 1, 64, "proxy_fences", "mbarrier_init"),
    ("waits_for_ever", 1, 64, "convergence", "deadlock"),
    ("wgmma_no_fence", 1, 128, "wgmma_registers", "missing_fence"),
    ("wgmma_read_early", 1, 128, "wgmma_registers", "in_flight"),
    ("wgmma_no_proxy_fence", 1, 128, "proxy_fences", "missing_fence"),
    ("wgmma_descriptors_differ", 1, 128, "wgmma_registers", "descriptors_differ"),
    ("peer_not_ready", 2, 64, "shared_races", "race"),
    ("peer_gone", 2, 64, "leaks", "peer_exited"),
];

/// Every order of warps with every moment of asynchronous work.
fn runs() -> impl Iterator<Item = Options> {
    let schedules = [Schedule::RoundRobin, Schedule::Reverse, Schedule::Random];
    let policies = [AsyncPolicy::Late, AsyncPolicy::Early, AsyncPolicy::Random];
    schedules.into_iter().flat_map(move |schedule| {
        let with = move |asynchrony| Options {
            schedule,
            asynchrony,
            seed: 7,
            instructions_max: 1 << 17,
            ..Options::default()
        };
        policies.into_iter().map(with)
    })
}

fn findings(stem: &str, arch: Arch, kernel: &str, ctas: u32, threads: u32, options: &Options) -> Vec<Finding> {
    let mut device = Device::new();
    let module = device.load(&format!("{stem}.ptx"), &nvcc::ptx(stem, arch)).unwrap();
    let input = device.upload(&(0..1024).map(|i| i as f32).collect::<Vec<_>>(), f32::to_le_bytes).unwrap();
    let output = device.alloc(4096).unwrap();
    let flag = device.upload(&[0u32; 64], u32::to_le_bytes).unwrap();
    let args = [input, output, flag].map(Arg::Pointer);
    let geometry = Geometry { dynamic_bytes: 256, ..Geometry::linear(ctas, threads) };
    device.launch(&module.function(kernel).unwrap(), &geometry, &args, options).unwrap().findings
}

fn check(stem: &str, arch: Arch, cases: &[Case]) {
    let mut wrong = Vec::new();
    for &(kernel, ctas, threads, checker, rule) in cases {
        for options in runs() {
            let how = format!("{:?} {:?}", options.schedule, options.asynchrony);
            let bad = findings(stem, arch, &format!("{kernel}_bad"), ctas, threads, &options);
            let fits = |finding: &&Finding| {
                (checker.is_empty() || finding.checker == checker)
                    && (rule.is_empty() || finding.rule == rule)
                    && finding.line.cuda_line.is_some()
            };
            if bad.iter().find(fits).is_none() {
                let said: Vec<_> = bad.iter().map(|f| format!("{}/{}: {}", f.checker, f.rule, f.message)).collect();
                wrong.push(format!("{kernel}_bad, {how}: no {checker}/{rule} in {said:?}"));
            }
            for finding in findings(stem, arch, &format!("{kernel}_good"), ctas, threads, &options) {
                wrong.push(format!("{kernel}_good, {how}: {finding:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn faults_of_sm_80_are_found_and_their_twins_are_clean() {
    check("faults", Arch::Sm80, SM80);
}

#[test]
fn faults_of_sm_90a_are_found_and_their_twins_are_clean() {
    check("faults_hopper", Arch::Sm90a, SM90A);
}

#[test]
fn freed_memory_is_known() {
    let mut device = Device::new();
    let module = device.load("faults.ptx", &nvcc::ptx("faults", Arch::Sm80)).unwrap();
    let input = device.upload(&[1f32; 1024], f32::to_le_bytes).unwrap();
    let (output, flag) = (device.alloc(4096).unwrap(), device.alloc(256).unwrap());
    device.free(input).unwrap();
    let args = [input, output, flag].map(Arg::Pointer);
    let function = module.function("misaligned_good").unwrap();
    let found = device.launch(&function, &Geometry::linear(1, 64), &args, &Options::default()).unwrap().findings;
    let case = found.iter().find(|finding| finding.checker == "bounds").expect("a finding");
    assert!(case.message.contains("freed") && case.count == 64 && case.address == Some(input), "{case:?}");
}

/// Clusters that race: each CTA reads what the next one writes. Which of them comes first in time is the host's affair; what is
/// found must not be.
#[test]
fn unwritten_bytes_do_not_depend_on_the_threads() {
    let all = |threads: usize| {
        let mut found = Vec::new();
        for _ in 0..4 {
            let options = Options { threads, ..Options::default() };
            let findings = findings("faults", Arch::Sm80, "reads_next_block", 16, 64, &options);
            found.push(
                findings.into_iter().map(|f| (f.checker, f.rule, f.block, f.thread, f.count)).collect::<Vec<_>>(),
            );
        }
        found
    };
    let one = all(1);
    let unwritten = one[0].iter().find(|finding| finding.0 == "uninitialised").expect("bytes of later CTAs");
    // In the order of the clusters, every CTA but the last reads what is not there.
    assert_eq!(unwritten.4, 15 * 64);
    assert!(one[0].iter().any(|finding| finding.0 == "global_races"));
    for threads in [1, 2, 4] {
        assert!(all(threads).iter().all(|found| *found == one[0]), "{threads} threads");
    }
}
