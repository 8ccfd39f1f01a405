//! Reads of bytes that nobody wrote, in global, shared and local memory: a shadow bit per byte.

use std::collections::HashMap;
use std::sync::Arc;

use crate::address::{Space, shared_offset, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, AccessKind, Event, Interest, Run};
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

    /// (word, bits) of bytes that lie in one word, as those of every access by threads do: it is aligned to its size.
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
        for (word, bits) in Shadow::fields(at, bytes) {
            let new = bits & !self.words[word];
            self.words[word] |= new;
            self.missing -= new.count_ones() as u64;
        }
    }

    #[inline]
    fn written(&self, at: u32, bytes: u32) -> bool {
        let has = |(word, bits): (usize, u64)| self.words[word] & bits == bits;
        let first = (64 - at % 64).min(bytes);
        if !has(Shadow::field(at, first)) {
            return false;
        }
        let rest = bytes - first;
        match rest {
            0 => true,
            1..=64 => has(Shadow::field(at + first, rest)),
            _ => Shadow::fields(at + first, rest).all(has),
        }
    }
}

struct Watcher {
    shared: Vec<Shadow>,
    /// Local memory of a thread, by (CTA, warp, lane).
    local: HashMap<(u32, u32, u32), Shadow>,
}

impl CheckerKind for Uninitialised {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        let ctas = context.launch.cluster_ctas() as usize;
        let shared = vec![Shadow::new(context.launch.shared_bytes); ctas];
        Box::new(Watcher { shared, local: HashMap::new() })
    }
}

impl Watcher {
    /// Lanes that read something that was never written; writes leave their mark.
    fn global(context: &Context, access: &Access) -> u32 {
        let mut bad = 0;
        let mut known = None;
        for run in access.runs {
            let bytes = run.bytes as u64;
            let holds = |a: &&Arc<Allocation>| run.address.wrapping_sub(a.base).saturating_add(bytes) <= a.bytes;
            let allocation = known.filter(holds).or_else(|| context.memory.find(run.address));
            known = allocation;
            let Some(a) = allocation.filter(|a| !a.complete()) else { continue };
            let at = run.address - a.base;
            if access.kind != AccessKind::Write && !a.is_written(at, bytes) {
                bad |= lanes_of(access, run, |address, bytes| a.is_written(address - a.base, bytes as u64));
            }
            if access.kind != AccessKind::Read {
                a.mark(at, bytes);
            }
        }
        bad
    }

    fn shared(&mut self, access: &Access) -> u32 {
        let mut bad = 0;
        for run in access.runs {
            let shadow = &mut self.shared[shared_rank(run.address) as usize];
            let at = shared_offset(run.address);
            if shadow.missing == 0 {
                continue;
            }
            if access.kind != AccessKind::Write && !shadow.written(at, run.bytes) {
                bad |= lanes_of(access, run, |address, bytes| shadow.written(shared_offset(address), bytes));
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
            let end = access.addresses[lane] as u32 + access.bytes;
            let shadow = self.local.entry(key).or_insert_with(|| Shadow::new(context.launch.local_bytes));
            // Calls take local memory beyond the entry's own frame.
            let words = end.div_ceil(64) as usize + 1;
            if shadow.words.len() < words {
                shadow.missing += 64 * (words - shadow.words.len()) as u64;
                shadow.words.resize(words, 0);
            }
            bad |= step(shadow, access, access.addresses[lane] as u32) << lane;
        }
        bad
    }
}

/// The lanes of a run for which `written` does not hold.
fn lanes_of(access: &Access, run: &Run, written: impl Fn(u64, u32) -> bool) -> u32 {
    let lanes = run.lane as usize..(run.lane + run.lanes) as usize;
    lanes.filter(|&lane| !written(access.addresses[lane], access.bytes)).fold(0, |all, lane| all | 1 << lane)
}

/// 1 when a read finds unwritten bytes.
fn step(shadow: &mut Shadow, access: &Access, at: u32) -> u32 {
    let bad = access.kind != AccessKind::Write && !shadow.written(at, access.bytes);
    if access.kind != AccessKind::Read {
        shadow.mark(at, access.bytes);
    }
    bad as u32
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::SHARED.and(Interest::GLOBAL).and(Interest::LOCAL)
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        let Event::Access(access) = event else { return };
        let lanes = access.site.mask & !access.outside & !access.misaligned;
        if lanes == 0 {
            return;
        }
        let bad = match access.space {
            Space::Global => Watcher::global(context, access),
            Space::Shared => self.shared(access),
            Space::Local => self.local(context, access, lanes),
            Space::Const | Space::Param => 0,
        };
        if bad == 0 {
            return;
        }
        let lane = bad.trailing_zeros();
        let address = access.addresses[lane as usize];
        findings.report(context, "uninitialised", "read", (access.site.pc, None), bad.count_ones() as u64, || Case {
            site: access.site,
            lane: Some(lane),
            address: Some(address),
            message: format!(
                "{} bytes at {address:#x} in {} memory were never written",
                access.bytes,
                access.space.name()
            ),
            other: None,
        });
    }
}
