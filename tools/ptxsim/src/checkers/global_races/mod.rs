//! Races in global memory between clusters of one launch: both reach a byte, one writes, and nothing orders them.
//!
//! Clusters run apart, so each keeps what it touched, with its own count of steps; they are compared when all have ended.
//! Two clusters are ordered by a location that one releases (a fence, then an atomic or other strong write) after its
//! access, and the other acquires (a strong read, then a fence) before its own. Whether the values read make the
//! acquiring cluster wait is not judged: a missing fence or a plain access in place of an atomic one is found, a wrong
//! comparison is not.

mod touches;

use std::any::Any;
use std::collections::HashMap;

use crate::address::Space;
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, AccessKind, Agent, AsyncKind, AsyncRange, Event, FenceKind, Interest, Semantics, Site};
use crate::scalar::lanes::each;
use touches::{Run, Touch, Touches};

const NAME: &str = "global_races";

/// Makes the checker and compares clusters.
pub struct GlobalRaces;

/// What is kept of a cluster.
struct Residue {
    runs: Vec<Run>,
    released: HashMap<u64, u32>,
    acquired: HashMap<u64, u32>,
}

struct Watcher {
    step: u32,
    fenced: u32,
    touches: Touches,
    /// Last step released at a location.
    released: HashMap<u64, u32>,
    /// First step after a location was acquired.
    acquired: HashMap<u64, u32>,
    /// Locations read strongly since the last fence.
    seen: Vec<u64>,
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
        let Watcher { touches, released, acquired, .. } = *self;
        let runs = touches.into_runs();
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
            for lane in each(access.lanes()) {
                let address = access.places.address(lane);
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
        for run in access.places.runs() {
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

    /// Notes that these bytes were read, written or both.
    fn touch(&mut self, site: Site, (start, bytes): (u64, u32), (reads, writes): (bool, bool), is_strong: bool) {
        let mut touch = Touch { first: self.step, last: self.step, is_strong, ..Touch::default() };
        if writes {
            (touch.write_pc, touch.write_cta) = (site.pc + 1, site.cta as u8);
        }
        if reads {
            (touch.read_pc, touch.read_cta) = (site.pc + 1, site.cta as u8);
        }
        self.touches.note(start, start + u64::from(bytes), touch);
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
            touches: Touches::default(),
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
