//! One launch: its geometry tested, its clusters spread over threads, their findings and counters joined in order.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::checker::{CheckerKind, Context, Finding, Findings, LaunchInfo};
use crate::checkers::{self, leaks};
use crate::counters::{Counters, Footprint, Report};
use crate::error::{Error, Result};
use crate::exec::{Cluster, Kept, Status};
use crate::memory::GlobalMemory;
use crate::options::Options;
use crate::program::Program;

/// Clusters that a device holds at once when they may wait for each other.
const RESIDENT: usize = 132;
/// Rounds of a cluster before the next one on the same thread goes on.
const ROUNDS: u64 = 64;

/// Geometry of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// CTAs in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub block: [u32; 3],
    /// CTAs of a cluster; `None`: what the kernel requires, or 1.
    pub cluster: Option<[u32; 3]>,
    /// Dynamic shared memory of a CTA.
    pub dynamic_bytes: u32,
}

impl Geometry {
    /// One-dimensional, without dynamic shared memory.
    pub fn linear(grid: u32, block: u32) -> Geometry {
        Geometry { grid: [grid, 1, 1], block: [block, 1, 1], cluster: None, dynamic_bytes: 0 }
    }
}

/// What all clusters of a launch share.
pub struct Launch<'a> {
    /// For checkers.
    pub info: LaunchInfo,
    /// Code.
    pub program: &'a Program,
    /// Global memory.
    pub memory: &'a GlobalMemory,
    /// Options.
    pub options: &'a Options,
    /// Parameter bank.
    pub params: Vec<u8>,
    /// Dynamic shared memory.
    pub dynamic_bytes: u32,
    /// Launched with a cluster size.
    pub explicit_cluster: bool,
    /// Makers of checkers.
    pub kinds: Vec<Box<dyn CheckerKind>>,
    /// Sectors touched.
    pub footprint: Footprint,
    /// Which clusters have ended.
    pub turns: Turns,
    /// Workspace of a cooperative launch, else 0.
    pub workspace: u64,
}

/// What a launch gives.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Faults that were found.
    pub findings: Vec<Finding>,
    /// Counters.
    pub counters: Report,
    /// Text of `printf`, CTA by CTA.
    pub printed: String,
}

/// The order of clusters, for what depends on it.
#[derive(Debug, Default)]
pub struct Turns {
    /// First cluster that has not ended.
    first: AtomicU32,
    ended: Mutex<BTreeSet<u32>>,
    changed: Condvar,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.ended.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether all earlier clusters have ended.
    pub fn is_first(&self, number: u32) -> bool {
        self.first.load(Ordering::Acquire) == number
    }

    /// Waits until all earlier clusters have ended.
    pub fn wait(&self, number: u32) {
        let mut guard = self.lock();
        while !self.is_first(number) {
            guard = self.changed.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// A cluster has ended.
    fn end(&self, number: u32) {
        let mut ended = self.lock();
        ended.insert(number);
        let mut first = self.first.load(Ordering::Acquire);
        while ended.remove(&first) {
            first += 1;
        }
        self.first.store(first, Ordering::Release);
        self.changed.notify_all();
    }
}

/// Most shared memory of a CTA on a target.
fn shared_bytes_max(target: u32) -> u32 {
    match target {
        70..=74 => 96 << 10,
        75..=79 => 64 << 10,
        80 | 87 => 163 << 10,
        81..=89 => 99 << 10,
        120..=129 => 99 << 10,
        _ => 227 << 10,
    }
}

fn refuse(program: &Program, message: String) -> Error {
    Error::Launch { kernel: program.name.clone(), message }
}

fn test_geometry(program: &Program, geometry: &Geometry, cluster: [u32; 3]) -> Result<()> {
    let fail = |message: String| Err(refuse(program, message));
    let Geometry { grid, block, dynamic_bytes, .. } = *geometry;
    let threads = block.iter().map(|&n| n as u64).product::<u64>();
    if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return fail(format!("grid {grid:?} is outside 1..=2147483647 x 1..=65535 x 1..=65535"));
    }
    if grid.iter().map(|&n| n as u64).product::<u64>() > u32::MAX as u64 {
        return fail(format!("grid {grid:?} has more than 2^32 CTAs"));
    }
    if block.contains(&0) || threads > 1024 || block[2] > 64 {
        return fail(format!("block {block:?} is not between 1 and 1024 threads, with at most 64 in z"));
    }
    if program.bounds.threads_required.is_some_and(|required| required != block) {
        return fail(format!(
            "block {block:?} differs from .reqntid {:?}",
            program.bounds.threads_required.unwrap_or(block)
        ));
    }
    if program.bounds.threads_max.is_some_and(|most| threads > most as u64) {
        return fail(format!("{threads} threads exceed .maxntid {}", program.bounds.threads_max.unwrap_or(0)));
    }
    let ctas = cluster.iter().map(|&n| n as u64).product::<u64>();
    if ctas == 0 || ctas > crate::address::CLUSTER_MAX {
        return fail(format!("cluster {cluster:?} is not between 1 and 16 CTAs"));
    }
    if ctas > 1 && program.target < 90 {
        return fail(format!("clusters need sm_90, the kernel is for sm_{}", program.target));
    }
    if (0..3).any(|axis| !grid[axis].is_multiple_of(cluster[axis])) {
        return fail(format!("grid {grid:?} is no multiple of the cluster {cluster:?}"));
    }
    let (shared, most) = (program.shared_bytes as u64 + dynamic_bytes as u64, shared_bytes_max(program.target));
    if shared > most as u64 {
        return fail(format!("{shared} bytes of shared memory exceed the {most} of sm_{}", program.target));
    }
    Ok(())
}

/// CTAs that a device of 132 multiprocessors holds at once: by threads, shared memory, and 32 each.
fn resident_ctas(info: &LaunchInfo) -> u64 {
    let by_threads = 2048 / info.threads().next_multiple_of(32);
    let by_shared = (228 << 10) / (info.shared_bytes + 1024);
    RESIDENT as u64 * u64::from(by_threads.min(by_shared).clamp(1, 32))
}

/// Runs a kernel. `workspace`: where the CTAs of a cooperative launch meet, else 0.
///
/// # Errors
/// [`Error::Launch`] for a geometry the target does not have, or a cooperative grid that is too large; [`Error::Execution`] when the kernel traps, or breaks a rule
/// whose checker is off.
pub fn run(
    program: &Program,
    memory: &GlobalMemory,
    geometry: &Geometry,
    params: Vec<u8>,
    options: &Options,
    workspace: u64,
) -> Result<Outcome> {
    let (launch, clusters) = prepare(program, memory, geometry, params, options, workspace)?;
    let blocks_before = memory.heap.count();
    let (mut ended, counters) = match program.cooperative {
        true => in_turns(&launch, clusters, if workspace == 0 { RESIDENT } else { usize::MAX }),
        false => in_parallel(&launch, clusters),
    };
    ended.sort_by_key(|end| end.number);
    join(&launch, ended, counters, blocks_before)
}

/// A launch before its first cluster, and the number of them.
pub(crate) fn prepare<'a>(
    program: &'a Program,
    memory: &'a GlobalMemory,
    geometry: &Geometry,
    params: Vec<u8>,
    options: &'a Options,
    workspace: u64,
) -> Result<(Launch<'a>, u32)> {
    let cluster = match (geometry.cluster, program.bounds.cluster_required) {
        (Some(given), Some(required)) if given != required => {
            return Err(refuse(program, format!("cluster {given:?} differs from .reqnctapercluster {required:?}")));
        }
        (Some(given), _) => given,
        (None, required) => required.unwrap_or([1; 3]),
    };
    test_geometry(program, geometry, cluster)?;
    let info = LaunchInfo {
        kernel: program.name.clone(),
        grid: geometry.grid,
        block: geometry.block,
        cluster,
        shared_bytes: program.shared_bytes + geometry.dynamic_bytes,
        local_bytes: program.functions[0].local_bytes,
        lines: program.lines.clone(),
        seed: options.seed,
        features: program.features,
        in_turns: program.cooperative,
    };
    let launch = Launch {
        info,
        program,
        memory,
        options,
        params,
        dynamic_bytes: geometry.dynamic_bytes,
        explicit_cluster: geometry.cluster.is_some() || program.bounds.cluster_required.is_some(),
        kinds: checkers::kinds(&options.checks),
        footprint: Footprint::new(memory.count()),
        turns: Turns::default(),
        workspace,
    };
    let clusters = geometry.grid.iter().product::<u32>() / launch.info.cluster_ctas();
    let ctas = u64::from(clusters) * u64::from(launch.info.cluster_ctas());
    if workspace != 0 && ctas > resident_ctas(&launch.info) {
        let most = resident_ctas(&launch.info);
        return Err(refuse(program, format!("a cooperative launch of {ctas} CTAs; the device holds {most} at once")));
    }
    Ok((launch, clusters))
}

/// A cluster that has ended.
pub(crate) struct Ended {
    pub number: u32,
    findings: Findings,
    residues: Vec<Option<Box<dyn Any + Send>>>,
    printed: Vec<u8>,
    error: Option<Error>,
}

pub(crate) fn end(mut cluster: Cluster, status: Result<Status>, kept: &mut Kept) -> Ended {
    if !cluster.deferred.is_empty() {
        cluster.take_turn();
    }
    let number = cluster.number;
    cluster.launch.turns.end(number);
    *kept = cluster.take_kept();
    let printed = std::mem::take(&mut cluster.printed);
    let (findings, residues) = cluster.watch.finish();
    Ended { number, findings, residues, printed, error: status.err() }
}

/// Every cluster from start to end, several at a time.
fn in_parallel(launch: &Launch, clusters: u32) -> (Vec<Ended>, Counters) {
    let next = AtomicU32::new(0);
    // Clusters after the first one that failed need not start.
    let last = AtomicU32::new(u32::MAX);
    let work = || {
        let mut kept = Kept::new(Counters::new(launch.program, launch.options.counters));
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= clusters || number > last.load(Ordering::Relaxed) {
                return (done, kept.counters);
            }
            let mut cluster = Cluster::new(launch, number, std::mem::take(&mut kept));
            let status = cluster.run(u64::MAX);
            if status.is_err() {
                last.fetch_min(number, Ordering::Relaxed);
            }
            done.push(end(cluster, status, &mut kept));
        }
    };
    let threads = launch.options.threads.clamp(1, 256).min(clusters as usize);
    if threads == 1 {
        return work();
    }
    let mut all = Vec::new();
    let mut counters = Counters::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok((done, part)) => {
                    all.extend(done);
                    counters.merge(&part);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    (all, counters)
}

/// Clusters that may wait for each other: all that a device holds take turns on one thread.
fn in_turns(launch: &Launch, clusters: u32, most: usize) -> (Vec<Ended>, Counters) {
    let mut counters = Counters::new(launch.program, launch.options.counters);
    let mut resident: Vec<Cluster> = Vec::new();
    let (mut started, mut done) = (0, Vec::new());
    while started < clusters || !resident.is_empty() {
        while started < clusters && resident.len() < most {
            let counters = Counters::new(launch.program, launch.options.counters);
            resident.push(Cluster::new(launch, started, Kept::new(counters)));
            started += 1;
        }
        let mut index = 0;
        while index < resident.len() {
            let status = resident[index].run(ROUNDS);
            if status == Ok(Status::Paused) {
                index += 1;
                continue;
            }
            let failed = status.is_err();
            let mut part = Kept::default();
            done.push(end(resident.remove(index), status, &mut part));
            counters.merge(&part.counters);
            if failed {
                return (done, counters);
            }
        }
    }
    (done, counters)
}

pub(crate) fn join(launch: &Launch, ended: Vec<Ended>, counters: Counters, blocks_before: usize) -> Result<Outcome> {
    let mut findings = Findings::default();
    let mut residues: Vec<Vec<(u32, Box<dyn Any + Send>)>> = launch.kinds.iter().map(|_| Vec::new()).collect();
    let mut printed = Vec::new();
    for end in ended {
        if let Some(error) = end.error {
            return Err(error);
        }
        findings.merge(end.findings);
        printed.extend(end.printed);
        for (list, residue) in residues.iter_mut().zip(end.residues) {
            list.extend(residue.map(|residue| (end.number, residue)));
        }
    }
    let context = Context { launch: &launch.info, cluster: 0, memory: launch.memory };
    for (kind, residues) in launch.kinds.iter().zip(residues) {
        kind.merge(&context, residues, &mut findings);
    }
    if launch.options.checks.leaks {
        leaks::blocks(&launch.info, launch.memory, blocks_before, &mut findings);
    }
    let per_line = launch.options.counters_per_line;
    Ok(Outcome {
        findings: findings.into_vec(),
        counters: counters.report(launch.program, &launch.footprint, per_line),
        printed: String::from_utf8_lossy(&printed).into_owned(),
    })
}
