//! Races in global memory between clusters of one launch: both reach a byte, one writes, and nothing orders them.
//!
//! Clusters run apart, so each keeps what it touched, with its own count of steps; they are compared when all have ended.
//! Two clusters are ordered by a location that one releases (a fence, then an atomic or other strong write) after its
//! access, and the other acquires (a strong read, then a fence) before its own. Whether the values read make the
//! acquiring cluster wait is not judged: a missing fence or a plain access in place of an atomic one is found, a wrong
//! comparison is not.

use std::any::Any;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::address::Space;
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, AccessKind, Agent, AsyncKind, AsyncRange, Event, FenceKind, Interest, Semantics, Site};
use crate::scalar::lanes::each;

const NAME: &str = "global_races";
/// A tile of a matrix touches a few words of many rows: small pages hold little that is not touched.
const PAGE_WORDS: usize = 64;

/// Makes the checker and compares clusters.
pub struct GlobalRaces;

/// What a cluster did to 4 bytes. The first and last step count reads and writes alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Touch {
    first: u32,
    last: u32,
    /// Operation + 1 of the last write and read.
    write_pc: u32,
    read_pc: u32,
    write_cta: u8,
    read_cta: u8,
    write_bytes: u8,
    read_bytes: u8,
    /// Only atomics and other strong accesses.
    is_strong: bool,
}

/// Words side by side that were touched alike.
#[derive(Clone, Debug)]
struct Run {
    start: u64,
    end: u64,
    touch: Touch,
}

/// What is kept of a cluster.
struct Residue {
    runs: Vec<Run>,
    released: HashMap<u64, u32>,
    acquired: HashMap<u64, u32>,
}

struct Watcher {
    step: u32,
    fenced: u32,
    /// Page -> place in `touches`.
    pages: HashMap<u64, u32, BuildHasherDefault<PageHasher>>,
    touches: Vec<[Touch; PAGE_WORDS]>,
    /// Last step released at a location.
    released: HashMap<u64, u32>,
    /// First step after a location was acquired.
    acquired: HashMap<u64, u32>,
    /// Locations read strongly since the last fence.
    seen: Vec<u64>,
}

/// Spreads page numbers: a product with an odd constant, as of Knuth's multiplicative hashing.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, page: u64) {
        self.0 = (self.0 ^ page).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::GLOBAL.and(Interest::FENCE).and(Interest::ASYNC)
    }

    fn event(&mut self, _context: &Context, event: &Event, _findings: &mut Findings) {
        match *event {
            Event::Access(access) if access.space == Space::Global && access.agent == Agent::Threads => {
                self.access(access);
            }
            Event::Fence { kind: FenceKind::Memory, .. } => self.fence(),
            Event::AsyncIssue { site, kind, reads, writes, .. } => {
                self.ranges(site, reads, (true, false), false);
                let reduces = kind == AsyncKind::BulkReduce;
                self.ranges(site, writes, (reduces, true), reduces);
            }
            _ => {}
        }
    }

    fn into_residue(self: Box<Self>) -> Option<Box<dyn Any + Send>> {
        let Watcher { pages, touches, released, acquired, .. } = *self;
        let mut pages: Vec<_> = pages.into_iter().collect();
        pages.sort_unstable_by_key(|&(page, _)| page);
        let mut runs: Vec<Run> = Vec::new();
        for (page, place) in pages {
            for (i, touch) in touches[place as usize].iter().enumerate().filter(|(_, touch)| touch.first != 0) {
                let start = (page * PAGE_WORDS as u64 + i as u64) * 4;
                match runs.last_mut() {
                    Some(run) if run.end == start && run.touch == *touch => run.end += 4,
                    _ => runs.push(Run { start, end: start + 4, touch: *touch }),
                }
            }
        }
        Some(Box::new(Residue { runs, released, acquired }))
    }
}

impl Watcher {
    fn access(&mut self, access: &Access) {
        let is_strong = access.kind == AccessKind::Atomic || access.semantics != Semantics::Weak;
        let (reads, writes) = (access.kind != AccessKind::Write, access.kind != AccessKind::Read);
        let acquires = matches!(access.semantics, Semantics::Acquire | Semantics::AcqRel | Semantics::SeqCst);
        let releases = matches!(access.semantics, Semantics::Release | Semantics::AcqRel | Semantics::SeqCst);
        if is_strong {
            for lane in each(access.site.mask & !(access.outside | access.misaligned)) {
                let address = access.addresses[lane];
                if writes {
                    let step = if releases { self.step } else { self.fenced };
                    let last = self.released.entry(address).or_default();
                    *last = step.max(*last);
                }
                if reads {
                    self.seen.push(address);
                }
            }
        }
        for run in access.runs {
            self.touch(access.site, (run.address, run.bytes), (reads, writes), is_strong);
        }
        if is_strong && (acquires || releases) {
            self.fence();
        }
    }

    /// What was done may be released from now on, and what strong reads saw is acquired.
    fn fence(&mut self) {
        self.fenced = self.step;
        self.step += 1;
        for address in self.seen.drain(..) {
            self.acquired.entry(address).or_insert(self.step);
        }
    }

    /// Notes that these bytes were read, written or both, page by page.
    fn touch(&mut self, site: Site, (start, bytes): (u64, u32), (reads, writes): (bool, bool), is_strong: bool) {
        let end = start + bytes as u64;
        let (mut word, last) = (start / 4, end.div_ceil(4));
        while word < last {
            let page = word / PAGE_WORDS as u64;
            let stop = last.min((page + 1) * PAGE_WORDS as u64);
            let place = *self.pages.entry(page).or_insert_with(|| {
                self.touches.push([Touch::default(); PAGE_WORDS]);
                self.touches.len() as u32 - 1
            });
            let touches = &mut self.touches[place as usize];
            let first = word as usize % PAGE_WORDS;
            for (touch, word) in touches[first..].iter_mut().zip(word..stop) {
                // Bytes of the word that lie in the range.
                let before = start.saturating_sub(4 * word).min(4);
                let after = (4 * word + 4).saturating_sub(end).min(4);
                let field = (0xfu8 << before) & (0xf >> after);
                if touch.first == 0 {
                    (touch.first, touch.is_strong) = (self.step, true);
                }
                touch.last = self.step;
                touch.is_strong &= is_strong;
                if writes {
                    (touch.write_pc, touch.write_cta) = (site.pc + 1, site.cta as u8);
                    touch.write_bytes |= field;
                }
                if reads {
                    (touch.read_pc, touch.read_cta) = (site.pc + 1, site.cta as u8);
                    touch.read_bytes |= field;
                }
            }
            word = stop;
        }
    }

    fn ranges(&mut self, site: Site, ranges: &[AsyncRange], kinds: (bool, bool), is_strong: bool) {
        for range in ranges.iter().filter(|range| range.space == Space::Global) {
            self.touch(site, (range.address, range.bytes), kinds, is_strong);
        }
    }
}

impl CheckerKind for GlobalRaces {
    fn start(&self, _context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher {
            step: 1,
            fenced: 0,
            pages: HashMap::default(),
            touches: Vec::new(),
            released: HashMap::new(),
            acquired: HashMap::new(),
            seen: Vec::new(),
        })
    }

    /// Sweeps over the runs of all clusters by address.
    fn merge(&self, context: &Context, residues: Vec<(u32, Box<dyn Any + Send>)>, findings: &mut Findings) {
        let residues: Vec<(u32, Box<Residue>)> = residues
            .into_iter()
            .filter_map(|(cluster, residue)| residue.downcast().ok().map(|residue| (cluster, residue)))
            .collect();
        let mut runs: Vec<(usize, &Run)> = residues
            .iter()
            .enumerate()
            .flat_map(|(i, (_, residue))| residue.runs.iter().map(move |run| (i, run)))
            .collect();
        runs.sort_by_key(|&(i, run)| (run.start, i));
        let (mut writers, mut readers) = (Vec::<(usize, &Run)>::new(), Vec::<(usize, &Run)>::new());
        for &(i, run) in &runs {
            let is_write = run.touch.write_pc != 0;
            writers.retain(|(_, other)| other.end > run.start);
            if is_write {
                readers.retain(|(_, other)| other.end > run.start);
            }
            let others = writers.iter().chain(if is_write { readers.as_slice() } else { &[] });
            for &(j, other) in others.filter(|(j, _)| *j != i) {
                if conflict(&run.touch, &other.touch) && !ordered(&residues, (i, run), (j, other)) {
                    report(context, (residues[j].0, other), (residues[i].0, run), findings);
                }
            }
            if is_write { writers.push((i, run)) } else { readers.push((i, run)) }
        }
    }
}

/// Whether two clusters touch a byte of the word, one of them writing, not both strongly.
fn conflict(a: &Touch, b: &Touch) -> bool {
    let meet = a.write_bytes & (b.write_bytes | b.read_bytes) | b.write_bytes & a.read_bytes;
    meet != 0 && !(a.is_strong && b.is_strong)
}

/// Whether some location orders all that one cluster did there before all that the other did.
fn ordered(residues: &[(u32, Box<Residue>)], (i, a): (usize, &Run), (j, b): (usize, &Run)) -> bool {
    let before = |x: &Residue, x_last: u32, y: &Residue, y_first: u32| {
        let mut locations = x.released.iter().filter(|(_, step)| **step >= x_last);
        locations.any(|(address, _)| y.acquired.get(address).is_some_and(|step| *step <= y_first))
    };
    let (x, y) = (&residues[i].1, &residues[j].1);
    before(x, a.touch.last, y, b.touch.first) || before(y, b.touch.last, x, a.touch.first)
}

fn report(context: &Context, (j, other): (u32, &Run), (i, run): (u32, &Run), findings: &mut Findings) {
    // The writing side is named as the fault; of two writers the later cluster.
    let ((i, run), (j, other)) = if run.touch.write_pc != 0 { ((i, run), (j, other)) } else { ((j, other), (i, run)) };
    let site = |pc: u32, cta: u8| Site { pc: pc - 1, cta: cta as u32, warp: 0, mask: 0, live: 0 };
    let writer = site(run.touch.write_pc, run.touch.write_cta);
    let (party, did) = match other.touch.write_pc {
        0 => (site(other.touch.read_pc, other.touch.read_cta), "reads it"),
        pc => (site(pc, other.touch.write_cta), "writes it, too"),
    };
    let (start, end) = (run.start.max(other.start), run.end.min(other.end));
    let at = context.launch.cta_index(j, party.cta);
    let context = Context { cluster: i, ..*context };
    findings.report(&context, NAME, "race", (writer.pc, Some(party.pc)), (end - start) / 4, || Case {
        site: writer,
        lane: None,
        address: Some(start),
        message: format!(
            "CTA {at:?} {did}, and no fence with an atomic orders the two ({})",
            context.memory.describe(start)
        ),
        other: Some((party, None, did.to_owned())),
    });
}
