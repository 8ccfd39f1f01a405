//! Races in shared memory: two accesses to a byte, one of them a write, by agents that nothing orders.
//!
//! FastTrack (Flanagan and Freund, PLDI 2009) at warp granularity: every word remembers its last write and the reads that
//! are not known to everybody; an access races with a remembered one that its own vector clock does not cover. A barrier of
//! a whole CTA starts a new era, before which nothing of that CTA's warps can race. Bytes of asynchronous operations are
//! marked from issue until somebody learns of their completion. Lanes of one warp count as ordered only at points that
//! synchronise them.

mod asynchronous;
mod plain_writes;
mod read_log;

use std::collections::HashMap;

use crate::address::{Space, shared_offset, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::checkers::family;
use crate::checkers::order::{AgentId, Order};
use crate::event::{
    Access, AccessKind, Agent, AsyncId, AsyncKind, AsyncRange, Event, FenceKind, Interest, MbarrierStep, Reads, Run,
    Semantics, Site,
};
use crate::scalar::lanes::each;
use plain_writes::{PlainWrite, Written};
use read_log::{Logged, ReadLog};

const NAME: &str = "shared_races";
/// Mark of a word whose writers are not all warps of its CTA.
const ALWAYS: u32 = u32::MAX;
/// Lane of a stamp that stands for all lanes of its warp.
const WHOLE_WARP: u8 = 32;

/// Makes the checker.
pub struct SharedRaces;

impl CheckerKind for SharedRaces {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        let launch = context.launch;
        let ctas = launch.cluster_ctas();
        let warps = (ctas * launch.warps()) as usize;
        Box::new(Watcher {
            order: Order::new(ctas, launch.warps()),
            words: vec![Vec::new(); ctas as usize],
            writes: vec![Vec::new(); ctas as usize],
            words_per_cta: (launch.shared_bytes as usize).div_ceil(4),
            era: vec![1; ctas as usize],
            more: Vec::new(),
            read_now: vec![ReadNow::default(); warps],
            marks: vec![Vec::new(); ctas as usize],
            plain: vec![Vec::new(); warps],
            latest: vec![0; warps],
            logs: vec![ReadLog::default(); warps],
            logged: vec![false; ctas as usize],
            written_in: vec![0; ctas as usize],
            operations: HashMap::new(),
            slots: Vec::new(),
        })
    }
}

/// One remembered access of a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    /// The agent's time; 0 for no access.
    clock: u32,
    pc: u32,
    agent: AgentId,
    lane: u8,
    /// Bytes of the word, a bit each.
    bytes: u8,
    is_write: bool,
    /// Atomic, volatile or relaxed: never races with another strong one.
    is_strong: bool,
}

/// What is known of 4 bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    era: u32,
    /// Slot + 1 of an asynchronous operation that will write it.
    written_by: u32,
    /// Slot + 1 of an asynchronous operation that will read it, the last of `readers`.
    read_by: u32,
    readers: u32,
    write: Stamp,
    read: Stamp,
    /// Index + 1 in `more` of the stamps that found no place here.
    more: u32,
}

/// Words that a warp has read at its present time, so that reading them again needs no work.
#[derive(Clone, Debug, Default)]
struct ReadNow {
    clock: u32,
    seen: Vec<u64>,
}

/// The last plain read of a word by one warp: clock, pc and lane in one number, so that a run of words is noted in one
/// loop; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PlainRead(u64);

/// Lane of a word that several lanes read at once.
const SEVERAL_LANES: u8 = 33;

impl PlainRead {
    #[inline(always)]
    fn new(clock: u32, pc: u32, lane: u8) -> PlainRead {
        PlainRead((clock as u64) << 32 | (lane as u64) << 24 | (pc & 0xff_ffff) as u64)
    }

    #[inline(always)]
    fn clock(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same as a stamp of its warp.
    fn stamp(self, agent: AgentId) -> Stamp {
        Stamp {
            clock: self.clock(),
            pc: self.0 as u32 & 0xff_ffff,
            agent,
            lane: (self.0 >> 24) as u8,
            bytes: 0xf,
            is_write: false,
            is_strong: false,
        }
    }
}

/// An asynchronous operation on its way.
struct Operation {
    site: Site,
    kind: AsyncKind,
    slot: u32,
    reads: Vec<AsyncRange>,
    writes: Vec<AsyncRange>,
    source_is_read: bool,
}

struct Watcher {
    order: Order,
    /// Per CTA; empty until its shared memory is used.
    words: Vec<Vec<Word>>,
    /// Per CTA and word: the last write where nothing could race with it, not yet in `words`.
    writes: Vec<Vec<PlainWrite>>,
    words_per_cta: usize,
    era: Vec<u32>,
    more: Vec<Vec<Stamp>>,
    read_now: Vec<ReadNow>,
    /// Per CTA and word: the era in which it was last written, so that a plain read in a later one is certainly ordered;
    /// [`ALWAYS`] while that cannot be told by the era.
    marks: Vec<Vec<u32>>,
    /// Per warp and word of its CTA: plain reads that were certainly ordered; empty until there are some.
    plain: Vec<Vec<PlainRead>>,
    /// Per warp: its time at its last plain read.
    latest: Vec<u32>,
    /// Per warp: plain reads that are not in `plain` yet.
    logs: Vec<ReadLog>,
    /// Per CTA: some log of its warps is not empty.
    logged: Vec<bool>,
    /// Per CTA: the last era in which something was written; [`ALWAYS`] once that could not be told by the era.
    written_in: Vec<u32>,
    operations: HashMap<AsyncId, Operation>,
    /// Issuing site and family of every slot.
    slots: Vec<(Site, AsyncKind)>,
}

/// An access on its way through the shadow: who, and what to call it.
struct Toucher<'a> {
    site: Site,
    agent: AgentId,
    what: &'a str,
}

impl Watcher {
    /// The word, without stamps of its CTA's warps from before the era.
    fn word(&mut self, rank: u32, index: usize) -> &mut Word {
        self.open(rank);
        self.bring_in(rank, index);
        let era = self.era[rank as usize];
        let word = &mut self.words[rank as usize][index];
        if word.era != era {
            word.era = era;
            let order = &self.order;
            for stamp in [&mut word.write, &mut word.read] {
                if order.belongs(stamp.agent, rank) {
                    *stamp = Stamp::default();
                }
            }
            if word.more != 0 {
                let more = &mut self.more[word.more as usize - 1];
                more.retain(|stamp| !order.belongs(stamp.agent, rank));
            }
        }
        word
    }

    /// Makes the shadow of a CTA's shared memory when it is first used.
    fn open(&mut self, rank: u32) {
        let rank = rank as usize;
        if self.words[rank].is_empty() {
            self.words[rank].resize(self.words_per_cta, Word::default());
            self.writes[rank].resize(self.words_per_cta, PlainWrite::default());
            self.marks[rank].resize(self.words_per_cta, 0);
        }
    }

    fn access(&mut self, context: &Context, access: &Access, findings: &mut Findings) {
        if access.agent != Agent::Threads || access.space != Space::Shared {
            return;
        }
        let site = access.site;
        let agent = self.order.agent(site);
        let clock = self.order.now(agent);
        let is_write = access.kind != AccessKind::Read;
        let is_strong = access.kind == AccessKind::Atomic || access.semantics != Semantics::Weak;
        let is_plain = !is_strong && access.bytes >= 4;
        if is_plain && !is_write && self.log_reads(access, agent, clock) {
            return;
        }
        let lanes = access.lanes();
        if is_strong {
            for lane in each(lanes) {
                let reads = access.kind != AccessKind::Write;
                self.order.strong(agent, access.places.address(lane), access.semantics, reads, is_write);
            }
        }
        let what = match access.kind {
            AccessKind::Read => "read",
            AccessKind::Write => "written",
            AccessKind::Atomic => "updated",
        };
        let toucher = Toucher { site, agent, what };
        self.settle();
        if is_plain {
            let written = Written { site, agent, clock, bytes: access.bytes };
            if is_write && self.write_runs(&written, access.places.runs()) {
                return;
            }
            for run in access.places.runs() {
                let noted = match is_write {
                    true => self.write_runs(&written, std::iter::once(run)),
                    false => self.read_run(&run, &toucher, clock, access.bytes),
                };
                if !noted {
                    let lanes = (u32::MAX >> (32 - run.lanes)) << run.lane;
                    self.by_lane(context, access, lanes, &toucher, findings);
                }
            }
            return;
        }
        self.by_lane(context, access, lanes, &toucher, findings);
    }

    /// Notes the plain read of consecutive words when nothing can race with it: nobody wrote them in this era.
    fn read_run(&mut self, run: &Run, toucher: &Toucher, clock: u32, bytes: u32) -> bool {
        let rank = shared_rank(run.address);
        let first = shared_offset(run.address) as usize / 4;
        let words = first..first + run.bytes as usize / 4;
        if rank != toucher.site.cta {
            return false;
        }
        let (marks, era) = (&self.marks[rank as usize], self.era[rank as usize]);
        if !marks.is_empty() && marks[words.clone()].iter().any(|mark| *mark >= era) {
            return false;
        }
        let read = Logged::new(run, words.start, clock, toucher.site.pc, bytes);
        self.note_read(toucher.agent, &read);
        true
    }

    /// The first plain read of a word that races with `stamp`, as a stamp.
    fn plain_race(&self, (rank, index): (u32, usize), agent: AgentId, races: impl Fn(&Stamp) -> bool) -> Option<Stamp> {
        let warps = self.plain.len() / self.words.len();
        let first = rank as usize * warps;
        let reads = self.plain[first..first + warps].iter().enumerate();
        let stamps = reads.filter_map(|(warp, reads)| Some(reads.get(index)?.stamp((first + warp) as AgentId)));
        stamps.filter(|old| old.clock != 0 && (agent != old.agent || old.lane != WHOLE_WARP)).find(races)
    }

    /// An access lane by lane.
    fn by_lane(&mut self, context: &Context, access: &Access, lanes: u32, toucher: &Toucher, findings: &mut Findings) {
        let Toucher { site, agent, .. } = *toucher;
        let clock = self.order.now(agent);
        let is_write = access.kind != AccessKind::Read;
        let is_strong = access.kind == AccessKind::Atomic || access.semantics != Semantics::Weak;
        let mut last = u64::MAX;
        for lane in each(lanes) {
            let address = access.places.address(lane);
            if address == last && !is_write {
                continue;
            }
            last = address;
            let (rank, offset) = (shared_rank(address), shared_offset(address) as usize);
            let first = offset / 4;
            let count = if access.bytes <= 4 { 1 } else { access.bytes as usize / 4 };
            let bytes = if access.bytes >= 4 { 0xf } else { ((1u8 << access.bytes) - 1) << (offset & 3) };
            for index in first..first + count {
                if !is_write && !is_strong && rank == site.cta && bytes == 0xf && self.has_read(agent, clock, index) {
                    continue;
                }
                let stamp = Stamp { clock, pc: site.pc, agent, lane: lane as u8, bytes, is_write, is_strong };
                self.touch(context, toucher, (rank, index), stamp, findings);
            }
        }
    }

    /// Whether the warp has read this word of its own CTA at this time already; from now on it has.
    #[inline(always)]
    fn has_read(&mut self, agent: AgentId, clock: u32, index: usize) -> bool {
        let now = &mut self.read_now[agent as usize];
        if now.clock != clock {
            now.clock = clock;
            now.seen.clear();
            now.seen.resize(self.words_per_cta.div_ceil(64), 0);
        }
        let bit = 1u64 << (index % 64);
        let seen = &mut now.seen[index / 64];
        let before = *seen & bit != 0;
        *seen |= bit;
        before
    }

    /// Checks an access against what the word remembers, and remembers it.
    fn touch(
        &mut self,
        context: &Context,
        toucher: &Toucher,
        (rank, index): (u32, usize),
        stamp: Stamp,
        findings: &mut Findings,
    ) {
        let word = *self.word(rank, index);
        let address = (rank as u64) << 24 | (index as u64 * 4);
        if word.written_by != 0 {
            self.in_flight(context, toucher, word.written_by, address, stamp.lane, "writes", findings);
        }
        if word.readers != 0 && stamp.is_write {
            self.in_flight(context, toucher, word.read_by, address, stamp.lane, "reads", findings);
        }
        let clock = self.order.clock(toucher.agent);
        let races = |old: &Stamp| {
            old.clock != 0
                && (old.is_write || stamp.is_write)
                && !(old.is_strong && stamp.is_strong)
                && old.bytes & stamp.bytes != 0
                && if old.agent == toucher.agent {
                    old.lane != stamp.lane && old.lane != WHOLE_WARP && old.clock == stamp.clock && old.pc != stamp.pc
                } else {
                    old.clock > clock.of(old.agent)
                }
        };
        let more = if word.more == 0 { &[][..] } else { &self.more[word.more as usize - 1] };
        let old = [word.write, word.read].iter().chain(more).find(|old| races(old)).copied();
        let plain = || if stamp.is_write { self.plain_race((rank, index), toucher.agent, races) } else { None };
        if let Some(old) = old.or_else(plain) {
            report(context, toucher, &old, stamp.lane, address, findings);
        }
        self.remember(rank, index, stamp);
    }

    /// The word was written in this era, or [`ALWAYS`].
    fn mark(&mut self, rank: u32, index: usize, era: u32) {
        self.marks[rank as usize][index] = era;
        self.written_in[rank as usize] = self.written_in[rank as usize].max(era);
    }

    fn remember(&mut self, rank: u32, index: usize, stamp: Stamp) {
        let word = &mut self.words[rank as usize][index];
        let clock = self.order.clock(stamp.agent);
        // A remembered access may go when whoever races with it would race with the new one, too.
        let covered = |old: &Stamp| {
            old.clock == 0
                || (old.bytes & !stamp.bytes == 0
                    && (stamp.is_write
                        || (!old.is_write
                            && old.is_strong == stamp.is_strong
                            && (old.agent == stamp.agent || old.clock <= clock.of(old.agent)))))
        };
        let place = if stamp.is_write { &mut word.write } else { &mut word.read };
        let displaced = std::mem::replace(place, stamp);
        if stamp.is_write && covered(&word.read) {
            word.read = Stamp::default();
        }
        let keep = !covered(&displaced);
        if word.more != 0 {
            let more = &mut self.more[word.more as usize - 1];
            more.retain(|old| !covered(old));
            if keep {
                more.push(displaced);
            }
        } else if keep {
            self.more.push(vec![displaced]);
            word.more = self.more.len() as u32;
        }
        if stamp.is_write {
            let crowded = word.more != 0 && !self.more[word.more as usize - 1].is_empty();
            let by_era = self.order.belongs(stamp.agent, rank) && word.written_by == 0 && !crowded;
            self.mark(rank, index, if by_era { self.era[rank as usize] } else { ALWAYS });
        }
        self.judge(rank, index);
    }

    #[allow(clippy::too_many_arguments)] // who, what, where, and where to report
    fn in_flight(
        &self,
        context: &Context,
        toucher: &Toucher,
        slot: u32,
        address: u64,
        lane: u8,
        does: &str,
        findings: &mut Findings,
    ) {
        let (issuer, kind) = self.slots[slot as usize - 1];
        let site = toucher.site;
        findings.report(context, NAME, "in_flight", (site.pc, Some(issuer.pc)), 1, || Case {
            site,
            lane: Some(lane as u32),
            address: Some(address),
            message: format!("shared memory is {} while a {} {does} it", toucher.what, family(kind)),
            other: Some((issuer, None, format!("issued a {} that was not waited for", family(kind)))),
        });
    }

    /// Every word of these ranges that lies in shared memory.
    fn words_of(ranges: &[AsyncRange]) -> impl Iterator<Item = (u32, usize)> + '_ {
        ranges.iter().filter(|range| range.space == Space::Shared).flat_map(|range| {
            let (rank, offset) = (shared_rank(range.address), shared_offset(range.address));
            (offset as usize / 4..(offset + range.bytes).div_ceil(4) as usize).map(move |index| (rank, index))
        })
    }
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::SHARED
            .and(Interest::BARRIER)
            .and(Interest::FENCE)
            .and(Interest::WARP_SYNC)
            .and(Interest::MBARRIER)
            .and(Interest::ASYNC)
            .and(Interest::CONTROL)
    }

    fn reads(&mut self, context: &Context, reads: &Reads, findings: &mut Findings) {
        if !self.log_all(reads) {
            reads.accesses().for_each(|access| self.access(context, &access, findings));
        }
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match *event {
            Event::Access(access) => self.access(context, access, findings),
            Event::BarrierArrive { site, barrier, generation, semantics, waits, .. } => {
                let whole = self.order.arrive(site, barrier, generation, semantics, waits);
                self.era[site.cta as usize] += u32::from(whole);
            }
            Event::BarrierPass { site, barrier, generation } => self.order.pass(site, barrier, generation),
            Event::Fence { site, kind: FenceKind::Memory, .. } => self.order.fence(self.order.agent(site)),
            Event::WarpSync { site, .. } => self.order.advance(self.order.agent(site)),
            Event::Mbarrier(event) => {
                if let (Agent::Async(id), MbarrierStep::CompleteTx(_) | MbarrierStep::Arrive { .. }) =
                    (event.agent, event.step)
                {
                    let agent = self.order.mbarrier_agent(event.address);
                    self.complete(id, agent, event.phase as u32 + 1, Some(shared_rank(event.address)));
                }
                self.order.mbarrier_step(event);
            }
            Event::AsyncIssue { site, id, kind, reads, writes } => {
                self.issue(context, (site, id, kind), reads, writes, findings);
            }
            Event::AsyncStep { site, id, step, .. } => self.step(site, id, step),
            Event::Exit(site) if site.live == 0 => self.order.exit(self.order.agent(site)),
            _ => {}
        }
    }
}

fn report(context: &Context, toucher: &Toucher, old: &Stamp, lane: u8, address: u64, findings: &mut Findings) {
    let site = toucher.site;
    let is_same_warp = old.agent == toucher.agent;
    let rule = if is_same_warp { "warp_synchronous" } else { "race" };
    findings.report(context, NAME, rule, (site.pc, Some(old.pc)), 1, || {
        let did = if old.is_write { "wrote it" } else { "read it" };
        let warps = context.launch.warps();
        let (cta, warp) = (old.agent as u32 / warps, old.agent as u32 % warps);
        let is_warp = cta < context.launch.cluster_ctas();
        let (cta, warp) = if is_warp { (cta, warp) } else { (site.cta, site.warp) };
        let other = Site { pc: old.pc, cta, warp, mask: 0, live: 0 };
        let message = match is_same_warp {
            true => format!(
                "shared memory is {} where another lane of the warp {did} and no __syncwarp is between",
                toucher.what
            ),
            false => format!("shared memory is {}, and nothing orders that after another warp {did}", toucher.what),
        };
        Case {
            site,
            lane: Some(lane as u32),
            address: Some(address),
            message,
            other: Some((other, (is_warp && old.lane < WHOLE_WARP).then_some(old.lane as u32), did.to_owned())),
        }
    });
}
