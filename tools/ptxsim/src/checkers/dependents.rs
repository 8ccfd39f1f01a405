//! A dependent launch that touches, before `griddepcontrol.wait`, what the launch before it still writes or reads.
//!
//! A recorder keeps what each of the two does to global memory; the dependent one only until the first grid has ended.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::address::Space;
use crate::checker::{Case, Checker, CheckerKind, Context, Findings, LaunchInfo};
use crate::event::{Access, AccessKind, AsyncKind, Event, Interest, Site};
use crate::memory::GlobalMemory;

const NAME: &str = "dependents";
const PAGE_WORDS: u64 = 64;

/// The first access of a kind to a word: who, and which bytes all of them together.
#[derive(Clone, Copy)]
struct First {
    cluster: u32,
    site: Site,
    bytes: u8,
}

/// Read and written words of a page.
type Page = [[Option<First>; 2]; PAGE_WORDS as usize];

/// What a grid did.
#[derive(Default)]
pub struct Touched {
    pages: BTreeMap<u64, Box<Page>>,
}

/// Makes recorders, and collects what they kept.
#[derive(Default)]
pub struct Recorder {
    all: Arc<Mutex<Touched>>,
}

impl Recorder {
    /// A maker, and where its recorders leave what they kept.
    pub fn new() -> (Recorder, Arc<Mutex<Touched>>) {
        let recorder = Recorder::default();
        let all = Arc::clone(&recorder.all);
        (recorder, all)
    }
}

struct Watcher {
    cluster: u32,
    pages: HashMap<u64, Box<Page>>,
    is_over: bool,
}

impl CheckerKind for Recorder {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher { cluster: context.cluster, pages: HashMap::new(), is_over: false })
    }

    fn merge(&self, _context: &Context, residues: Vec<(u32, Box<dyn Any + Send>)>, _findings: &mut Findings) {
        let mut all = self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (_, residue) in residues {
            let Ok(pages) = residue.downcast::<HashMap<u64, Box<Page>>>() else { continue };
            for (page, words) in *pages {
                let known = all.pages.entry(page).or_insert_with(|| Box::new([[None; 2]; PAGE_WORDS as usize]));
                for (known, new) in known.iter_mut().flatten().zip(words.iter().flatten()) {
                    join(known, *new);
                }
            }
        }
    }
}

fn join(known: &mut Option<First>, new: Option<First>) {
    match (known, new) {
        (Some(known), Some(new)) => known.bytes |= new.bytes,
        (known @ None, new) => *known = new,
        (Some(_), None) => {}
    }
}

impl Watcher {
    fn touch(&mut self, site: Site, (start, bytes): (u64, u32), [reads, writes]: [bool; 2]) {
        let end = start + u64::from(bytes);
        for word in start / 4..end.div_ceil(4) {
            let page =
                self.pages.entry(word / PAGE_WORDS).or_insert_with(|| Box::new([[None; 2]; PAGE_WORDS as usize]));
            let before = start.saturating_sub(4 * word).min(4);
            let after = (4 * word + 4).saturating_sub(end).min(4);
            let first = First { cluster: self.cluster, site, bytes: (0xf << before) & (0xf >> after) };
            for (place, is) in page[(word % PAGE_WORDS) as usize].iter_mut().zip([reads, writes]) {
                join(place, is.then_some(first));
            }
        }
    }

    fn access(&mut self, access: &Access) {
        let kinds = [access.kind != AccessKind::Write, access.kind != AccessKind::Read];
        for run in access.places.runs() {
            self.touch(access.site, (run.address, run.bytes), kinds);
        }
    }
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::GLOBAL.and(Interest::ASYNC).and(Interest::CONTROL)
    }

    fn event(&mut self, _context: &Context, event: &Event, _findings: &mut Findings) {
        match *event {
            Event::GridReleased => self.is_over = true,
            _ if self.is_over => {}
            Event::Access(access) if access.space == Space::Global => self.access(access),
            Event::AsyncIssue { site, kind, reads, writes, .. } => {
                let both = [kind == AsyncKind::BulkReduce, true];
                for (ranges, kinds) in [(reads, [true, false]), (writes, both)] {
                    for range in ranges.iter().filter(|range| range.space == Space::Global) {
                        self.touch(site, (range.address, range.bytes), kinds);
                    }
                }
            }
            _ => {}
        }
    }

    fn into_residue(self: Box<Self>) -> Option<Box<dyn Any + Send>> {
        Some(Box::new(self.pages))
    }
}

/// Compares what the first grid did with what the second one did before its wait.
pub fn compare(
    (first, primary): (&LaunchInfo, &Touched),
    (second, dependent): (&LaunchInfo, &Touched),
    memory: &GlobalMemory,
    findings: &mut Findings,
) {
    for (page, words) in &dependent.pages {
        let Some(others) = primary.pages.get(page) else { continue };
        for (index, ([reads, writes], [their_reads, their_writes])) in words.iter().zip(others.iter()).enumerate() {
            let pairs = [
                ("read_before_wait", "reads", reads, "writes", their_writes),
                ("write_before_wait", "writes", writes, "writes", their_writes),
                ("write_before_wait", "writes", writes, "reads", their_reads),
            ];
            for (rule, does, ours, did, theirs) in pairs {
                let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
                if ours.bytes & theirs.bytes == 0 {
                    continue;
                }
                let (site, address) = (ours.site, 4 * (page * PAGE_WORDS + index as u64));
                let context = Context { launch: second, cluster: ours.cluster, memory };
                findings.report(&context, NAME, rule, (site.pc, Some(theirs.site.pc)), 1, || {
                    let line = &first.lines[theirs.site.pc as usize];
                    let cuda = line.cuda_line.map_or(String::new(), |line| format!(", CUDA line {line}"));
                    let message = format!(
                        "it {does} before griddepcontrol.wait what {} {did} in PTX line {}{cuda} ({}): {}",
                        first.kernel,
                        line.ptx,
                        line.text,
                        memory.describe(address)
                    );
                    Case {
                        site,
                        lane: Some(site.mask.trailing_zeros() & 31),
                        address: Some(address),
                        message,
                        other: None,
                    }
                });
            }
        }
    }
}
