//! Plain writes of shared memory in the race checker, where nothing can race with them: kept apart from the rest of the
//! shadow, in little memory, and brought into it when somebody asks for the word.

use super::{Stamp, Watcher};
use crate::address::{shared_offset, shared_rank};
use crate::checkers::order::{AgentId, Order};
use crate::event::{Run, Site};

/// The last plain write of 4 bytes. The word's mark has its era.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PlainWrite {
    /// The writer's time; 0 for none, or one that was brought in.
    clock: u32,
    pc: u32,
    agent: AgentId,
    lane: u8,
    /// The word remembers reads, or more, that a write must be held against.
    is_closed: bool,
}

/// A plain write of `bytes` a lane, in words: who, and at what time of its own.
pub(super) struct Written {
    pub site: Site,
    pub agent: AgentId,
    pub clock: u32,
    pub bytes: u32,
}

/// Words of a run.
fn words(run: &Run) -> std::ops::Range<usize> {
    let first = shared_offset(run.address) as usize / 4;
    first..first + run.bytes as usize / 4
}

/// The time up to which a writer, at this time of its own, knows of another warp's reads.
#[inline(always)]
fn known(order: &Order, reader: usize, (writer, clock): (AgentId, u32)) -> u32 {
    // Its own lanes' reads count when they are of the present time: nothing synchronised the lanes since.
    if reader == writer as usize { clock - 1 } else { order.clock(writer).of(reader as AgentId) }
}

impl Watcher {
    /// Notes a plain write when nothing can race with it: in this era nobody wrote the words, no asynchronous operation
    /// has to do with them, and every read of them is known to the writer.
    pub(super) fn write_runs(&mut self, written: &Written, runs: impl Iterator<Item = Run> + Clone) -> bool {
        let Written { site: Site { cta, pc, .. }, agent, clock, bytes } = *written;
        let rank = cta as usize;
        if self.words[rank].is_empty() {
            return false;
        }
        let readers = self.unknown_readers(cta, agent, clock);
        let era = self.era[rank];
        let (marks, writes) = (&mut self.marks[rank], &mut self.writes[rank]);
        for run in runs.clone() {
            let range = words(&run);
            let is_one_place = run.lanes > 1 && run.bytes == bytes;
            let (marks, writes) = (&marks[range.clone()], &writes[range]);
            let is_free = match (marks, writes) {
                // Lanes that lie alone come by the dozen.
                ([mark], [write]) => *mark < era && !write.is_closed,
                _ => marks.iter().all(|mark| *mark < era) && writes.iter().all(|write| !write.is_closed),
            };
            if shared_rank(run.address) != cta || is_one_place || !is_free {
                return false;
            }
        }
        for reader in readers {
            let known = known(&self.order, reader, (agent, clock));
            let is_unknown = |run: Run| {
                let reads = self.plain[reader].get(words(&run)).unwrap_or_default();
                reads.iter().any(|read| read.clock() > known)
            };
            if self.latest[reader] > known && runs.clone().any(is_unknown) {
                return false;
            }
        }
        for run in runs {
            let range = words(&run);
            let write = |lane: u8| PlainWrite { clock, pc, agent, lane, is_closed: false };
            if run.bytes == 4 {
                (marks[range.start], writes[range.start]) = (era, write(run.lane));
                continue;
            }
            marks[range.clone()].fill(era);
            match bytes {
                4 => writes[range].iter_mut().zip(run.lane..).for_each(|(to, lane)| *to = write(lane)),
                _ => {
                    for (writes, lane) in writes[range].chunks_mut(bytes as usize / 4).zip(run.lane..) {
                        writes.fill(write(lane));
                    }
                }
            }
        }
        self.written_in[rank] = self.written_in[rank].max(era);
        true
    }

    /// The warps of a CTA, as a range that holds all whose last plain read a writer does not know of: nearly always none.
    fn unknown_readers(&self, cta: u32, writer: AgentId, clock: u32) -> std::ops::Range<usize> {
        let warps = self.plain.len() / self.words.len();
        let first = cta as usize * warps;
        let is_unknown = |reader: &usize| self.latest[*reader] > known(&self.order, *reader, (writer, clock));
        match (first..first + warps).find(is_unknown) {
            Some(reader) => reader..first + warps,
            None => 0..0,
        }
    }

    /// Brings the last plain write of a word into the shadow.
    #[inline]
    pub(super) fn bring_in(&mut self, rank: u32, index: usize) {
        let write = &mut self.writes[rank as usize][index];
        if write.clock == 0 {
            return;
        }
        let PlainWrite { clock, pc, agent, lane, .. } = *write;
        write.clock = 0;
        let era = self.marks[rank as usize][index];
        let word = &mut self.words[rank as usize][index];
        word.write = Stamp { clock, pc, agent, lane, bytes: 0xf, is_write: true, is_strong: false };
        (word.read, word.era) = (Stamp::default(), era);
    }

    /// Whether the word may take a plain write without a closer look.
    pub(super) fn judge(&mut self, rank: u32, index: usize) {
        let word = &self.words[rank as usize][index];
        let is_crowded = word.more != 0 && !self.more[word.more as usize - 1].is_empty();
        self.writes[rank as usize][index].is_closed = is_crowded || word.readers != 0 || word.read.clock != 0;
    }
}
