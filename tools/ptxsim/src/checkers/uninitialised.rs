//! Reads of bytes that nobody wrote, in global, shared and local memory: a shadow bit per byte.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::address::{Space, shared_offset, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, AccessKind, Event, Interest, Reads, Run, Site};
use crate::memory::Allocation;
use crate::scalar::lanes::each;

/// Makes the checkers.
pub struct Uninitialised;

/// A bit per byte: written.
#[derive(Clone, Debug)]
struct Shadow {
    words: Vec<u64>,
    missing: u64,
}

impl Shadow {
    fn new(bytes: u32) -> Shadow {
        Shadow { words: vec![0; bytes.div_ceil(64) as usize + 1], missing: bytes as u64 }
    }

    /// (word, bits) of bytes that lie in one word.
    fn field(at: u32, bytes: u32) -> (usize, u64) {
        let ones = if bytes >= 64 { u64::MAX } else { (1 << bytes) - 1 };
        ((at / 64) as usize, ones << (at % 64))
    }

    /// The same of any bytes, word after word.
    fn fields(at: u32, bytes: u32) -> impl Iterator<Item = (usize, u64)> {
        let end = at + bytes;
        let starts = std::iter::successors(Some(at), |start| Some((start / 64 + 1) * 64));
        starts
            .take_while(move |start| *start < end)
            .map(move |start| Shadow::field(start, (end - start).min(64 - start % 64)))
    }

    fn mark(&mut self, at: u32, bytes: u32) {
        if at % 64 + bytes <= 64 {
            let (word, bits) = Shadow::field(at, bytes);
            let new = bits & !self.words[word];
            self.words[word] |= new;
            self.missing -= u64::from(new.count_ones());
            return;
        }
        if self.written(at, bytes) {
            return;
        }
        for (word, bits) in Shadow::fields(at, bytes) {
            let new = bits & !self.words[word];
            self.words[word] |= new;
            self.missing -= new.count_ones() as u64;
        }
    }

    #[inline(always)]
    fn written(&self, at: u32, bytes: u32) -> bool {
        if at % 64 + bytes <= 64 {
            let (word, bits) = Shadow::field(at, bytes);
            return self.words[word] & bits == bits;
        }
        let whole = (0..bytes / 64).all(|i| self.window(at + 64 * i) == u64::MAX);
        let rest = bytes % 64;
        let ones = (1 << rest) - 1;
        whole && (rest == 0 || self.window(at + bytes - rest) & ones == ones)
    }

    /// The marks of 64 bytes, those behind the end taken as not written.
    #[inline(always)]
    fn window(&self, at: u32) -> u64 {
        let (word, shift) = ((at / 64) as usize, at % 64);
        let next = self.words.get(word + 1).copied().unwrap_or(0);
        ((u128::from(self.words[word]) | u128::from(next) << 64) >> shift) as u64
    }
}

/// Bytes of a page of a cluster's own writes.
const PAGE_BYTES: u64 = 4096;

/// A read of bytes that neither the host nor the cluster itself had written: a fault unless an earlier cluster wrote them.
struct Doubt {
    site: Site,
    lane: u32,
    address: u64,
    bytes: u32,
}

/// What a cluster did to global memory, while others may run at the same time. Which of them comes first in time depends on
/// the threads of the host; so each keeps its own marks, and all are joined in their order, as if one ran after the other.
#[derive(Default)]
struct Own {
    written: HashMap<u64, [u64; PAGE_BYTES as usize / 64]>,
    doubts: Vec<Doubt>,
}

impl Own {
    /// Words of the marks that some bytes have: (page, word, bits).
    fn fields(address: u64, bytes: u64) -> impl Iterator<Item = (u64, usize, u64)> {
        let end = address + bytes;
        let starts = std::iter::successors(Some(address), |start| Some((start / 64 + 1) * 64));
        starts.take_while(move |start| *start < end).map(move |start| {
            let count = (end - start).min(64 - start % 64);
            let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
            (start / PAGE_BYTES, (start % PAGE_BYTES / 64) as usize, ones << (start % 64))
        })
    }

    fn mark(&mut self, address: u64, bytes: u64) {
        for (page, word, bits) in Own::fields(address, bytes) {
            self.written.entry(page).or_insert([0; PAGE_BYTES as usize / 64])[word] |= bits;
        }
    }

    fn wrote(&self, address: u64, bytes: u64) -> bool {
        Own::fields(address, bytes)
            .all(|(page, word, bits)| self.written.get(&page).is_some_and(|marks| marks[word] & bits == bits))
    }

    /// Whether the host or this cluster wrote each of these bytes.
    fn known(&self, a: &Allocation, address: u64, bytes: u64) -> bool {
        let at = address - a.base;
        let both = || (0..bytes).all(|i| a.is_written(at + i, 1) || self.wrote(address + i, 1));
        a.is_written(at, bytes) || self.wrote(address, bytes) || both()
    }

    fn access(&mut self, context: &Context, access: &Access) {
        for run in access.places.runs() {
            let (at, bytes) = (run.address, run.bytes as u64);
            let Some(a) = context.memory.find(at).filter(|a| !a.complete()) else { continue };
            if access.kind != AccessKind::Write && !self.known(a, at, bytes) {
                let bad = lanes_of(access, &run, |address, bytes| self.known(a, address, bytes as u64));
                for lane in each(bad) {
                    let (site, address, bytes) = (access.site, access.places.address(lane), access.bytes);
                    self.doubts.push(Doubt { site, lane: lane as u32, address, bytes });
                }
            }
            if access.kind != AccessKind::Read {
                self.mark(at, bytes);
            }
        }
    }
}

struct Watcher {
    /// Global memory, where clusters run at the same time; else its own marks tell.
    own: Option<Own>,
    shared: Vec<Shadow>,
    /// Local memory of a thread, by (CTA, warp, lane).
    local: HashMap<(u32, u32, u32), Shadow>,
}

impl CheckerKind for Uninitialised {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        let ctas = context.launch.cluster_ctas() as usize;
        let shared = vec![Shadow::new(context.launch.shared_bytes); ctas];
        let own = (!context.launch.in_turns).then(Own::default);
        Box::new(Watcher { own, shared, local: HashMap::new() })
    }

    fn merge(&self, context: &Context, residues: Vec<(u32, Box<dyn Any + Send>)>, findings: &mut Findings) {
        for (cluster, residue) in residues {
            let Ok(own) = residue.downcast::<Own>() else { continue };
            let context = Context { cluster, ..*context };
            for Doubt { site, lane, address, bytes } in own.doubts {
                let holds = context.memory.find(address);
                if !holds.is_some_and(|a| a.is_written(address - a.base, bytes as u64)) {
                    report(&context, (site, lane, address), (bytes, Space::Global), 1, findings);
                }
            }
            for (page, marks) in own.written {
                for (word, bits) in marks.iter().enumerate() {
                    each_run(*bits, |start, count| {
                        let address = page * PAGE_BYTES + 64 * word as u64 + start;
                        if let Some(a) = context.memory.find(address) {
                            a.mark(address - a.base, count);
                        }
                    });
                }
            }
        }
    }
}

impl Watcher {
    /// Lanes that read something that was never written; writes leave their mark.
    fn global(context: &Context, access: &Access) -> u32 {
        let mut bad = 0;
        let mut known = None;
        for run in access.places.runs() {
            let bytes = run.bytes as u64;
            let holds = |a: &&Arc<Allocation>| run.address.wrapping_sub(a.base).saturating_add(bytes) <= a.bytes;
            let allocation = known.filter(holds).or_else(|| context.memory.find(run.address));
            known = allocation;
            let Some(a) = allocation.filter(|a| !a.complete()) else { continue };
            let at = run.address - a.base;
            if access.kind != AccessKind::Write && !a.is_written(at, bytes) {
                bad |= lanes_of(access, &run, |address, bytes| a.is_written(address - a.base, bytes as u64));
            }
            if access.kind != AccessKind::Read {
                a.mark(at, bytes);
            }
        }
        bad
    }

    #[inline]
    fn shared(&mut self, access: &Access) -> u32 {
        let mut bad = 0;
        for run in access.places.runs() {
            let shadow = &mut self.shared[shared_rank(run.address) as usize];
            let at = shared_offset(run.address);
            if shadow.missing == 0 {
                continue;
            }
            if access.kind != AccessKind::Write && !shadow.written(at, run.bytes) {
                bad |= lanes_of(access, &run, |address, bytes| shadow.written(shared_offset(address), bytes));
            }
            if access.kind != AccessKind::Read {
                shadow.mark(at, run.bytes);
            }
        }
        bad
    }

    fn local(&mut self, context: &Context, access: &Access, lanes: u32) -> u32 {
        let mut bad = 0;
        for lane in each(lanes) {
            let key = (access.site.cta, access.site.warp, lane as u32);
            let end = access.places.address(lane) as u32 + access.bytes;
            let shadow = self.local.entry(key).or_insert_with(|| Shadow::new(context.launch.local_bytes));
            // Calls take local memory beyond the entry's own frame.
            let words = end.div_ceil(64) as usize + 1;
            if shadow.words.len() < words {
                shadow.missing += 64 * (words - shadow.words.len()) as u64;
                shadow.words.resize(words, 0);
            }
            bad |= step(shadow, access, access.places.address(lane) as u32) << lane;
        }
        bad
    }
}

/// The lanes of a run for which `written` does not hold.
fn lanes_of(access: &Access, run: &Run, written: impl Fn(u64, u32) -> bool) -> u32 {
    let lanes = run.lane as usize..(run.lane + run.lanes) as usize;
    lanes.filter(|&lane| !written(access.places.address(lane), access.bytes)).fold(0, |all, lane| all | 1 << lane)
}

/// 1 when a read finds unwritten bytes.
fn step(shadow: &mut Shadow, access: &Access, at: u32) -> u32 {
    let bad = access.kind != AccessKind::Write && !shadow.written(at, access.bytes);
    if access.kind != AccessKind::Read {
        shadow.mark(at, access.bytes);
    }
    bad as u32
}

/// Runs of ones: (first, how many).
fn each_run(mut bits: u64, mut then: impl FnMut(u64, u64)) {
    while bits != 0 {
        let start = bits.trailing_zeros();
        let count = (bits >> start).trailing_ones();
        then(start as u64, count as u64);
        bits &= if start + count == 64 { 0 } else { u64::MAX << (start + count) };
    }
}

fn report(
    context: &Context,
    (site, lane, address): (Site, u32, u64),
    (bytes, space): (u32, Space),
    count: u64,
    findings: &mut Findings,
) {
    findings.report(context, "uninitialised", "read", (site.pc, None), count, || Case {
        site,
        lane: Some(lane),
        address: Some(address),
        message: format!("{bytes} bytes at {address:#x} in {} memory were never written", space.name()),
        other: None,
    });
}

/// Reports the lanes of an access that read what nobody wrote.
#[cold]
fn told(context: &Context, access: &Access, bad: u32, findings: &mut Findings) {
    let lane = bad.trailing_zeros();
    let at = (access.site, lane, access.places.address(lane as usize));
    report(context, at, (access.bytes, access.space), bad.count_ones() as u64, findings);
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::SHARED.and(Interest::GLOBAL).and(Interest::LOCAL)
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        let Event::Access(access) = event else { return };
        let lanes = access.lanes();
        if lanes == 0 {
            return;
        }
        let bad = match (access.space, &mut self.own) {
            (Space::Global, None) => Watcher::global(context, access),
            (Space::Global, Some(own)) => {
                own.access(context, access);
                0
            }
            (Space::Shared, _) => self.shared(access),
            (Space::Local, _) => self.local(context, access, lanes),
            (Space::Const | Space::Param, _) => 0,
        };
        if bad != 0 {
            told(context, access, bad, findings);
        }
    }

    fn reads(&mut self, context: &Context, reads: &Reads, findings: &mut Findings) {
        if self.shared[reads.site.cta as usize].missing != 0 {
            for access in reads.accesses() {
                let bad = self.shared(&access);
                if bad != 0 {
                    told(context, &access, bad, findings);
                }
            }
        }
    }

    fn into_residue(self: Box<Self>) -> Option<Box<dyn Any + Send>> {
        self.own.map(|own| Box::new(own) as Box<dyn Any + Send>)
    }
}
