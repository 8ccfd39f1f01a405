//! Counters in the terms of Nsight Compute, per operation and in sum.
//!
//! Global memory: a request is a warp's access; it touches 32-byte sectors. Shared memory: 32 banks of 4 bytes; an access of
//! 4, 8 or 16 bytes takes 1, 2 or 4 phases of all, half or a quarter of the lanes; a phase takes as many wavefronts as the
//! busiest bank has distinct words, and what exceeds one per phase is a bank conflict. Counters are sums, so that it does not
//! matter which thread counts.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use serde::Serialize;

use crate::address::Space;
use crate::event::{AccessKind, Places, Run};
use crate::exec::access::Kind;
use crate::launch::Launch;
use crate::memory::{Allocation, GlobalMemory, span};
use crate::program::Program;
use crate::program::op::Class;
use crate::scalar::lanes::{L64, each};

/// Counts of one operation, or of a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Warp instructions executed.
    pub warp_instructions: u64,
    /// Lane instructions: lanes whose guard held.
    pub lane_instructions: u64,
    /// Branches that split a group.
    pub divergent_branches: u64,
    /// Arrivals of warps at named barriers.
    pub barriers: u64,
    /// Accesses of warps to global and local memory.
    pub global_requests: u64,
    /// Sectors of 32 bytes that they touched.
    pub global_sectors: u64,
    /// Bytes that their lanes asked for.
    pub global_bytes_requested: u64,
    /// Accesses of warps to shared memory.
    pub shared_requests: u64,
    /// Phases that they need at best.
    pub shared_phases: u64,
    /// Wavefronts that they took.
    pub shared_wavefronts: u64,
    /// Bytes that their lanes asked for.
    pub shared_bytes: u64,
    /// Lanes of shared atomics that had to wait for another lane at the same word.
    pub shared_atomic_serialised: u64,
    /// Multiply-adds of tensor cores.
    pub tensor_macs: u64,
    /// Bytes of bulk and tensor copies.
    pub bulk_bytes: u64,
}

impl Counts {
    /// Adds another's.
    pub fn add(&mut self, other: &Counts) {
        self.warp_instructions += other.warp_instructions;
        self.lane_instructions += other.lane_instructions;
        self.divergent_branches += other.divergent_branches;
        self.barriers += other.barriers;
        self.global_requests += other.global_requests;
        self.global_sectors += other.global_sectors;
        self.global_bytes_requested += other.global_bytes_requested;
        self.shared_requests += other.shared_requests;
        self.shared_phases += other.shared_phases;
        self.shared_wavefronts += other.shared_wavefronts;
        self.shared_bytes += other.shared_bytes;
        self.shared_atomic_serialised += other.shared_atomic_serialised;
        self.tensor_macs += other.tensor_macs;
        self.bulk_bytes += other.bulk_bytes;
    }

    /// Wavefronts beyond the fewest possible.
    pub fn bank_conflicts(&self) -> u64 {
        self.shared_wavefronts - self.shared_phases
    }
}

/// An access as it is counted.
#[derive(Clone, Copy)]
pub(crate) struct Counted<'a> {
    /// Space.
    pub space: Space,
    /// Lanes that are fine.
    pub lanes: u32,
    /// Where they lie.
    pub places: Places<'a>,
    /// What it is.
    pub kind: Kind,
    /// Allocation that holds all lanes, if one does.
    pub allocation: Option<&'a Allocation>,
    /// Phases and wavefronts, where they are known.
    pub banks: Option<(u64, u64)>,
}

/// Counters of one thread of a launch.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    on: bool,
    by_pc: Vec<Counts>,
    /// Instructions executed, by warps and by lanes: apart from the rest, since every instruction adds to them.
    executed: Vec<[u64; 2]>,
    /// Instructions that whole warps executed one after the other: how many more such stretches start at an operation than
    /// end before it.
    spans: Vec<i64>,
    /// Reads of shared memory by whole warps: requests, bytes, phases, wavefronts.
    reads: Vec<[u64; 4]>,
}

/// Sectors that a launch touched, per allocation: a bit each.
#[derive(Debug, Default)]
pub struct Footprint {
    by_allocation: Vec<OnceLock<Box<[AtomicU32]>>>,
}

impl Footprint {
    /// Nothing touched yet.
    pub fn new(allocations: usize) -> Footprint {
        Footprint { by_allocation: (0..allocations).map(|_| OnceLock::new()).collect() }
    }

    /// Notes the sectors `first ..= last`, all of one allocation.
    fn touch(&self, allocation: &Allocation, first: u64, last: u64) {
        let Some(slot) = self.by_allocation.get(allocation.id as usize) else { return };
        let bits = slot.get_or_init(|| (0..allocation.bytes.div_ceil(1024) + 1).map(|_| AtomicU32::new(0)).collect());
        let start = allocation.base / 32;
        let (mut at, end) = (first - start, last - start + 1);
        while at < end {
            let upto = end.min((at / 32 + 1) * 32);
            let field = span(at % 32, upto - at);
            let word = &bits[(at / 32) as usize];
            if word.load(Relaxed) & field != field {
                word.fetch_or(field, Relaxed);
            }
            at = upto;
        }
    }

    /// The same where each sector may be of another allocation.
    fn find_and_touch(&self, memory: &GlobalMemory, first: u64, last: u64) {
        for sector in first..=last {
            let found = memory.find(sector * 32).or_else(|| memory.find(sector * 32 + 31));
            found.into_iter().for_each(|found| self.touch(found, sector, sector));
        }
    }

    /// Bytes of all sectors touched.
    pub fn bytes(&self) -> u64 {
        let touched = self.by_allocation.iter().filter_map(|slot| slot.get());
        touched.flat_map(|bits| bits.iter()).map(|word| word.load(Relaxed).count_ones() as u64 * 32).sum()
    }
}

impl Counters {
    /// Zero, for a program; nothing is counted when not `on`.
    pub fn new(program: &Program, on: bool) -> Counters {
        let operations = if on { program.code.len() } else { 0 };
        Counters {
            on,
            by_pc: vec![Counts::default(); operations],
            executed: vec![[0; 2]; operations],
            spans: vec![0; operations + 1],
            reads: vec![[0; 4]; operations],
        }
    }

    /// Whether anything is counted.
    #[inline(always)]
    pub fn on(&self) -> bool {
        self.on
    }

    /// One warp instruction.
    #[inline(always)]
    pub fn instruction(&mut self, pc: u32, active: u32) {
        if self.on {
            let [warps, lanes] = &mut self.executed[pc as usize];
            *warps += 1;
            *lanes += if active == u32::MAX { 32 } else { active.count_ones() as u64 };
        }
    }

    /// Instructions `start .. end`, each executed by 32 lanes.
    #[inline(always)]
    pub fn span(&mut self, start: u32, end: u32) {
        if self.on {
            self.spans[start as usize] += 1;
            self.spans[end as usize] -= 1;
        }
    }

    /// A read of shared memory by 32 lanes of `bytes` each; phases and wavefronts.
    #[inline(always)]
    pub fn shared_read(&mut self, pc: u32, bytes: u32, (phases, wavefronts): (u64, u64)) {
        let new = [1, 32 * u64::from(bytes), phases, wavefronts];
        self.reads[pc as usize].iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
    }

    /// A branch that split its group.
    pub fn divergent(&mut self, pc: u32) {
        if self.on {
            self.by_pc[pc as usize].divergent_branches += 1;
        }
    }

    /// A warp's arrival at a barrier.
    pub fn barrier(&mut self, pc: u32) {
        if self.on {
            self.by_pc[pc as usize].barriers += 1;
        }
    }

    /// Multiply-adds of a tensor-core instruction.
    pub fn tensor(&mut self, pc: u32, macs: u64) {
        if self.on {
            self.by_pc[pc as usize].tensor_macs += macs;
        }
    }

    /// Bytes of a bulk or tensor copy.
    pub fn bulk(&mut self, pc: u32, bytes: u64) {
        if self.on {
            self.by_pc[pc as usize].bulk_bytes += bytes;
        }
    }

    /// An access of a warp's threads.
    #[inline]
    pub(crate) fn access(&mut self, pc: u32, access: &Counted, launch: &Launch) {
        let Counted { space, lanes, places, kind, allocation, banks } = *access;
        if !self.on || lanes == 0 {
            return;
        }
        let counts = &mut self.by_pc[pc as usize];
        let bytes = kind.bytes as u64 * lanes.count_ones() as u64;
        match space {
            Space::Global | Space::Local => {
                counts.global_requests += 1;
                counts.global_bytes_requested += bytes;
                if space == Space::Local {
                    counts.global_sectors += local_sectors(&L64(places.addresses()), lanes, kind.bytes as u64);
                    return;
                }
                counts.global_sectors += each_sector(places, |first, last| match allocation {
                    Some(allocation) => launch.footprint.touch(allocation, first, last),
                    None => launch.footprint.find_and_touch(launch.memory, first, last),
                });
            }
            Space::Shared => {
                counts.shared_requests += 1;
                counts.shared_bytes += bytes;
                let (phases, wavefronts) =
                    banks.unwrap_or_else(|| wavefronts(&L64(places.addresses()), lanes, kind.bytes));
                counts.shared_phases += phases;
                counts.shared_wavefronts += wavefronts;
                if kind.kind == AccessKind::Atomic {
                    counts.shared_atomic_serialised += serialised(&L64(places.addresses()), lanes);
                }
            }
            Space::Const | Space::Param => {}
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Counters) {
        if self.by_pc.len() < other.by_pc.len() {
            self.by_pc.resize(other.by_pc.len(), Counts::default());
            self.executed.resize(other.by_pc.len(), [0; 2]);
            self.spans.resize(other.spans.len(), 0);
            self.reads.resize(other.by_pc.len(), [0; 4]);
        }
        self.on |= other.on;
        self.by_pc.iter_mut().zip(&other.by_pc).for_each(|(mine, theirs)| mine.add(theirs));
        for (mine, theirs) in self.executed.iter_mut().zip(&other.executed) {
            (0..2).for_each(|i| mine[i] += theirs[i]);
        }
        self.spans.iter_mut().zip(&other.spans).for_each(|(mine, theirs)| *mine += theirs);
        for (mine, theirs) in self.reads.iter_mut().zip(&other.reads) {
            (0..4).for_each(|i| mine[i] += theirs[i]);
        }
    }

    /// Counts of an operation that whole warps executed so often, apart from what is in `executed`.
    fn of(&self, pc: usize, whole: u64) -> Counts {
        let ([warps, lanes], [requests, bytes, phases, wavefronts]) = (self.executed[pc], self.reads[pc]);
        let mut counts = self.by_pc[pc];
        counts.add(&Counts {
            warp_instructions: warps + whole,
            lane_instructions: lanes + 32 * whole,
            shared_requests: requests,
            shared_bytes: bytes,
            shared_phases: phases,
            shared_wavefronts: wavefronts,
            ..Counts::default()
        });
        counts
    }

    /// Sums and ratios for a report; lines too when asked for.
    pub fn report(&self, program: &Program, footprint: &Footprint, per_line: bool) -> Report {
        let mut total = Counts::default();
        let mut mix = BTreeMap::new();
        let mut lines: BTreeMap<u32, LineCounts> = BTreeMap::new();
        let mut whole = 0;
        for pc in 0..self.by_pc.len() {
            whole += self.spans[pc];
            let counts = &self.of(pc, whole as u64);
            total.add(counts);
            *mix.entry(class_name(program.class[pc])).or_insert(0) += counts.warp_instructions;
            if per_line && counts.warp_instructions > 0 {
                let line = &program.lines[pc];
                let entry = lines.entry(line.ptx).or_insert_with(|| LineCounts {
                    ptx_line: line.ptx,
                    text: line.text.clone(),
                    cuda: line.cuda_file.as_ref().map(|file| format!("{file}:{}", line.cuda_line.unwrap_or(0))),
                    counts: Counts::default(),
                });
                entry.counts.add(counts);
            }
        }
        let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        Report {
            lane_efficiency: ratio(total.lane_instructions, 32 * total.warp_instructions),
            sectors_per_request: ratio(total.global_sectors, total.global_requests),
            global_bytes_moved: 32 * total.global_sectors,
            global_efficiency: ratio(total.global_bytes_requested, 32 * total.global_sectors),
            bank_conflicts: total.bank_conflicts(),
            unique_bytes: footprint.bytes(),
            instruction_mix: mix,
            total,
            lines: lines.into_values().collect(),
        }
    }
}

/// Counters of one PTX line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineCounts {
    /// Line.
    pub ptx_line: u32,
    /// Its instruction.
    pub text: String,
    /// CUDA source line.
    pub cuda: Option<String>,
    /// Counts.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Counters of a launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Sums.
    #[serde(flatten)]
    pub total: Counts,
    /// Active lanes of an instruction, of 32.
    pub lane_efficiency: f64,
    /// Sectors of a request, on average.
    pub sectors_per_request: f64,
    /// Bytes of all sectors.
    pub global_bytes_moved: u64,
    /// Bytes asked for, of the bytes moved.
    pub global_efficiency: f64,
    /// Wavefronts beyond the fewest possible.
    pub bank_conflicts: u64,
    /// Bytes of the distinct sectors that the launch touched: what DRAM must move at least.
    pub unique_bytes: u64,
    /// Warp instructions by class.
    pub instruction_mix: BTreeMap<&'static str, u64>,
    /// Per PTX line, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<LineCounts>,
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Fma => "fma",
        Class::Alu => "alu",
        Class::Fp64 => "fp64",
        Class::Sfu => "sfu",
        Class::Convert => "convert",
        Class::Load => "load",
        Class::Store => "store",
        Class::Atomic => "atomic",
        Class::Tensor => "tensor",
        Class::Control => "control",
        Class::Sync => "sync",
        Class::Async => "async",
        Class::Move => "move",
    }
}

/// Calls `then` with ranges `first ..= last` of sectors that hold all distinct sectors of some runs; gives their number.
#[inline]
fn each_sector(places: Places, mut then: impl FnMut(u64, u64)) -> u64 {
    let range = |run: Run| (run.address / 32, (run.address + run.bytes as u64 - 1) / 32);
    // Runs come in the order of lanes, which nearly always is that of addresses.
    if places.runs().is_sorted_by_key(|run| run.address) {
        let (mut count, mut next) = (0, 0);
        for run in places.runs() {
            let (first, last) = range(run);
            let first = first.max(next);
            if first <= last {
                then(first, last);
                count += last - first + 1;
                next = last + 1;
            }
        }
        return count;
    }
    let mut list: Vec<u64> = places.runs().map(range).flat_map(|(first, last)| first..=last).collect();
    list.sort_unstable();
    list.dedup();
    list.iter().for_each(|&sector| then(sector, sector));
    list.len() as u64
}

/// Sectors of an access to local memory, which is laid out word by word across the lanes of a warp.
fn local_sectors(addresses: &L64, lanes: u32, bytes: u64) -> u64 {
    let mut list = Vec::with_capacity(32);
    for lane in each(lanes) {
        let words = addresses.0[lane] / 4..=(addresses.0[lane] + bytes - 1) / 4;
        words.for_each(|word| list.push(word * 4 + lane as u64 / 8));
    }
    list.sort_unstable();
    list.dedup();
    list.len() as u64
}

/// (phases, wavefronts) of a shared access.
pub fn wavefronts(addresses: &L64, lanes: u32, bytes: u32) -> (u64, u64) {
    let per_phase = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let words = (bytes as u64).div_ceil(4);
    let (mut phases, mut total) = (0, 0);
    for start in (0..32).step_by(per_phase) {
        let field = if per_phase == 32 { u32::MAX } else { ((1u32 << per_phase) - 1) << start };
        let lanes = lanes & field;
        if lanes == 0 {
            continue;
        }
        phases += 1;
        total += phase(addresses, lanes, words);
    }
    (phases, total)
}

/// Wavefronts of one phase: distinct words of the busiest bank.
fn phase(addresses: &L64, lanes: u32, words: u64) -> u64 {
    // The last word seen in each bank, how many distinct ones, and a list for banks with several.
    let mut last = [u64::MAX; 32];
    let mut simple = true;
    'lanes: for lane in each(lanes) {
        let first = addresses.0[lane] / 4;
        for word in first..first + words {
            let seen = &mut last[(word % 32) as usize];
            if *seen != u64::MAX && *seen != word {
                simple = false;
                break 'lanes;
            }
            *seen = word;
        }
    }
    if simple {
        return 1;
    }
    let mut all: Vec<u64> = Vec::with_capacity(32);
    for lane in each(lanes) {
        let first = addresses.0[lane] / 4;
        all.extend(first..first + words);
    }
    all.sort_unstable();
    all.dedup();
    let mut count = [0u64; 32];
    all.iter().for_each(|word| count[(word % 32) as usize] += 1);
    count.into_iter().max().unwrap_or(1)
}

/// Lanes beyond the first at each word.
fn serialised(addresses: &L64, lanes: u32) -> u64 {
    let mut words: Vec<u64> = each(lanes).map(|lane| addresses.0[lane] / 4).collect();
    words.sort_unstable();
    let all = words.len();
    words.dedup();
    (all - words.len()) as u64
}
