//! Asynchronous operations in the race checker: checked and marked when issued, unmarked when somebody learns of their end.

use super::{ALWAYS, Operation, Stamp, Toucher, WHOLE_WARP, Watcher, report};
use crate::address::{Space, shared_rank};
use crate::checker::{Context, Findings};
use crate::checkers::order::AgentId;
use crate::event::{AsyncId, AsyncKind, AsyncRange, AsyncWait, Site};
use crate::scalar::lanes::each;

impl Watcher {
    pub(super) fn issue(
        &mut self,
        context: &Context,
        (site, id, kind): (Site, AsyncId, AsyncKind),
        reads: &[AsyncRange],
        writes: &[AsyncRange],
        findings: &mut Findings,
    ) {
        self.settle();
        let agent = self.order.agent(site);
        let clock = self.order.clock(agent).clone();
        let slot = self.slots.len() as u32 + 1;
        self.slots.push((site, kind));
        for (ranges, is_write) in [(reads, false), (writes, true)] {
            let what = if is_write { "written by an asynchronous copy" } else { "read by asynchronous work" };
            let toucher = Toucher { site, agent, what };
            for (rank, index) in Watcher::words_of(ranges) {
                if index >= self.words_per_cta {
                    continue; // outside: the bounds checker's finding
                }
                let word = *self.word(rank, index);
                let address = (rank as u64) << 24 | (index as u64 * 4);
                if word.written_by != 0 {
                    self.in_flight(context, &toucher, word.written_by, address, 0, "writes", findings);
                }
                if is_write && word.readers != 0 {
                    self.in_flight(context, &toucher, word.read_by, address, 0, "reads", findings);
                }
                let more = if word.more == 0 { &[][..] } else { &self.more[word.more as usize - 1] };
                // What lanes of the issuing warp did is before the issue, if their warp was synchronised since.
                let races = |old: &&Stamp| {
                    old.clock != 0
                        && (old.is_write || is_write)
                        && old.agent != agent
                        && old.clock > clock.of(old.agent)
                };
                let old = [word.write, word.read].iter().chain(more).find(races).copied();
                let plain = || if is_write { self.plain_race((rank, index), agent, |old| races(&old)) } else { None };
                if let Some(old) = old.or_else(plain) {
                    report(context, &toucher, &old, 0, address, findings);
                }
                if is_write {
                    self.mark(rank, index, ALWAYS);
                }
                let word = &mut self.words[rank as usize][index];
                if is_write {
                    word.written_by = slot;
                } else {
                    word.readers += 1;
                    word.read_by = slot;
                }
                self.judge(rank, index);
            }
        }
        let operation =
            Operation { site, kind, slot, reads: reads.to_vec(), writes: writes.to_vec(), source_is_read: false };
        self.operations.insert(id, operation);
    }

    /// From now on the operation's accesses count as those of `agent` at `clock`. A multicast tells an mbarrier in every CTA
    /// that it writes to: `in_cta` only what it wrote there.
    pub(super) fn complete(&mut self, id: AsyncId, agent: AgentId, clock: u32, in_cta: Option<u32>) {
        if let Some(mut operation) = self.operations.remove(&id) {
            let Operation { site, kind, slot, .. } = operation;
            self.source_read(&operation, agent, clock);
            operation.source_is_read = true;
            // A cp.async has a range per lane, and only that lane has waited for it.
            let mut lanes = each(site.mask);
            let here = |range: &AsyncRange| {
                in_cta.is_none_or(|rank| range.space != Space::Shared || shared_rank(range.address) == rank)
            };
            let (done, left): (Vec<_>, Vec<_>) = operation.writes.iter().copied().partition(here);
            for range in &done {
                let lane =
                    if kind == AsyncKind::CpAsync { lanes.next().map_or(0, |lane| lane as u8) } else { WHOLE_WARP };
                self.written(site.pc, range, slot, (agent, lane), clock);
            }
            if !left.is_empty() {
                self.operations.insert(id, Operation { writes: left, ..operation });
            }
        }
    }

    fn written(&mut self, pc: u32, range: &AsyncRange, slot: u32, (agent, lane): (AgentId, u8), clock: u32) {
        for (rank, index) in Watcher::words_of(std::slice::from_ref(range)) {
            if index >= self.words_per_cta {
                continue; // outside: the bounds checker's finding
            }
            let word = self.word(rank, index);
            if word.written_by == slot {
                word.written_by = 0;
            }
            let stamp = Stamp { clock, pc, agent, lane, bytes: 0xf, is_write: true, is_strong: false };
            self.remember(rank, index, stamp);
        }
    }

    fn source_read(&mut self, operation: &Operation, agent: AgentId, clock: u32) {
        if operation.source_is_read {
            return;
        }
        for (rank, index) in Watcher::words_of(&operation.reads) {
            if index < self.words_per_cta {
                let word = self.word(rank, index);
                word.readers -= 1;
                let stamp = Stamp {
                    clock,
                    pc: operation.site.pc,
                    agent,
                    lane: WHOLE_WARP,
                    bytes: 0xf,
                    is_write: false,
                    is_strong: false,
                };
                self.remember(rank, index, stamp);
            }
        }
    }

    pub(super) fn step(&mut self, site: Site, id: AsyncId, step: AsyncWait) {
        let agent = self.order.agent(site);
        let now = self.order.now(agent);
        match step {
            AsyncWait::Waited => self.complete(id, agent, now, None),
            AsyncWait::SourceRead => {
                if let Some(mut operation) = self.operations.remove(&id) {
                    self.source_read(&operation, agent, now);
                    operation.source_is_read = true;
                    self.operations.insert(id, operation);
                }
            }
            // Landing tells nobody, and an mbarrier that was told has an event of its own.
            AsyncWait::Landed | AsyncWait::Signalled => {}
        }
    }
}
