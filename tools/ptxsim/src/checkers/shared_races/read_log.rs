//! Plain reads of shared memory in the race checker: most kernels read far more than they write, and between two barriers
//! read what nobody writes. Such reads are only listed; they reach the shadow when something that could race with them
//! comes, and are dropped at the next barrier of the whole CTA.

use super::{PlainRead, SEVERAL_LANES, Watcher};
use crate::address::{shared_offset, shared_rank};
use crate::checkers::order::AgentId;
use crate::event::{Access, Reads, Run};

/// Reads of a warp that are listed at most.
const ENTRIES_MAX: usize = 1024;

/// Reads by one warp in one era.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadLog {
    era: u32,
    entries: Vec<Logged>,
}

/// A plain read of consecutive words by lanes of one warp.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logged {
    clock: u32,
    pc: u32,
    first: u32,
    words: u16,
    lane: u8,
    lanes: u8,
    /// Bytes of a lane.
    bytes: u8,
}

impl ReadLog {
    #[inline(always)]
    fn note(&mut self, access: &Access, clock: u32) {
        for run in access.places.runs() {
            let first = shared_offset(run.address) as usize / 4;
            self.entries.push(Logged::new(&run, first, clock, access.site.pc, access.bytes));
        }
    }
}

impl Logged {
    /// A run of an access of `bytes` a lane, whose first word has this index.
    #[inline(always)]
    pub(super) fn new(run: &Run, first: usize, clock: u32, pc: u32, bytes: u32) -> Logged {
        let words = (run.bytes / 4) as u16;
        Logged { clock, pc, first: first as u32, words, lane: run.lane, lanes: run.lanes, bytes: bytes as u8 }
    }
}

impl Watcher {
    /// Lists the runs of a plain read where nobody has written to the CTA's shared memory in this era; else false.
    #[inline]
    pub(super) fn log_reads(&mut self, access: &Access, agent: AgentId, clock: u32) -> bool {
        let cta = access.site.cta;
        if access.places.runs().any(|run| shared_rank(run.address) != cta) {
            return false;
        }
        let Some(log) = self.open_log(cta, agent, clock) else { return false };
        log.note(access, clock);
        if log.entries.len() > ENTRIES_MAX {
            self.settle();
        }
        true
    }

    /// The same of several reads.
    pub(super) fn log_all(&mut self, reads: &Reads) -> bool {
        let agent = self.order.agent(reads.site);
        let clock = self.order.now(agent);
        let Some(log) = self.open_log(reads.site.cta, agent, clock) else { return false };
        log.entries.reserve(2 * reads.count());
        reads.accesses().for_each(|access| log.note(&access, clock));
        if log.entries.len() > ENTRIES_MAX {
            self.settle();
        }
        true
    }

    /// The list of a warp that reads now, unless somebody has written to the CTA's shared memory in this era.
    #[inline]
    fn open_log(&mut self, cta: u32, agent: AgentId, clock: u32) -> Option<&mut ReadLog> {
        let era = self.era[cta as usize];
        if self.written_in[cta as usize] >= era {
            return None;
        }
        let log = &mut self.logs[agent as usize];
        if log.era != era && self.logged.len() == 1 {
            // A barrier of all that could race with them has passed. In a cluster, other CTAs did not wait there.
            log.entries.clear();
        }
        log.era = era;
        self.latest[agent as usize] = clock;
        self.logged[cta as usize] = true;
        Some(log)
    }

    /// Brings the listed reads into the shadow.
    #[inline]
    pub(super) fn settle(&mut self) {
        for cta in 0..self.logged.len() {
            if self.logged[cta] {
                self.settle_cta(cta);
            }
        }
    }

    #[inline(never)]
    fn settle_cta(&mut self, cta: usize) {
        self.logged[cta] = false;
        let warps = self.plain.len() / self.logged.len();
        for agent in cta * warps..(cta + 1) * warps {
            let mut entries = std::mem::take(&mut self.logs[agent].entries);
            if self.logs[agent].era == self.era[cta] || self.logged.len() > 1 {
                entries.iter().for_each(|read| self.note_read(agent as AgentId, read));
            }
            entries.clear();
            self.logs[agent].entries = entries;
        }
    }

    /// Notes a plain read in the shadow.
    pub(super) fn note_read(&mut self, agent: AgentId, read: &Logged) {
        let reads = &mut self.plain[agent as usize];
        if reads.is_empty() {
            reads.resize(self.words_per_cta, PlainRead::default());
        }
        let Logged { clock, pc, lane, bytes, .. } = *read;
        self.latest[agent as usize] = self.latest[agent as usize].max(clock);
        let words = &mut reads[read.first as usize..][..read.words as usize];
        let per_lane = bytes as usize / 4;
        if read.lanes > 1 && words.len() == per_lane {
            words.fill(PlainRead::new(clock, pc, SEVERAL_LANES));
            return;
        }
        for (words, lane) in words.chunks_mut(per_lane).zip(lane..) {
            words.fill(PlainRead::new(clock, pc, lane));
        }
    }
}
