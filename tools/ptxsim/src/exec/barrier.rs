//! Named barriers, the barrier of a warp and the barrier of the cluster.

use super::Cluster;
use super::step::After;
use super::straight::write_predicate;
use super::warp::{Wait, Warp};
use crate::error::Result;
use crate::event::{BarrierId, Event, Interest, Semantics, Site, WarpSync};
use crate::program::op::{Barrier, BarrierReduction, Op, PredSrc};
use crate::scalar::lanes::{L32, blend32, each};

/// Result of a `bar.red`.
#[derive(Clone, Copy, Debug, Default)]
struct Reduction {
    count: u32,
    all: bool,
    any: bool,
}

impl Reduction {
    const NEUTRAL: Reduction = Reduction { count: 0, all: true, any: false };
}

/// One of a CTA's 16 barriers.
#[derive(Clone, Debug, Default)]
pub struct NamedBarrier {
    /// Times that it completed.
    pub generation: u64,
    /// Threads that have arrived (32 per warp).
    pub arrived: u32,
    /// Threads that the first arrival of this use asked for; `None`: the whole CTA.
    pub expected: Option<u32>,
    /// Lanes of each warp that have arrived while others of it have not.
    partial: Vec<(u32, u32)>,
    /// Reduction under way.
    reducing: Option<Reduction>,
    /// Results of the last two uses.
    results: [Reduction; 2],
}

/// `barrier.cluster`.
#[derive(Clone, Debug, Default)]
pub struct ClusterBarrier {
    /// Times that it completed.
    pub generation: u64,
    /// Warps that have arrived.
    pub arrived: u32,
    /// Lanes of each (CTA, warp) that have arrived in this use.
    lanes: Vec<((u32, u32), u32)>,
    /// Use that each lane waits for next: (CTA, warp) and the number of arrivals per lane.
    arrivals: Vec<((u32, u32), [u64; 32])>,
}

impl<'a> Cluster<'a> {
    /// `bar` and `barrier`.
    pub(super) fn barrier(&mut self, warp: &mut Warp, site: Site, op: &Barrier) -> Result<After> {
        let program = &self.launch.program;
        let lane = site.mask.trailing_zeros() as usize;
        let id = program.source32(&warp.regs, op.id).0[lane];
        let threads = op.threads.map(|threads| program.source32(&warp.regs, threads).0[lane]);
        if id > 15 {
            return Err(self.error(site, &format!("barrier {id} does not exist")));
        }
        if threads.is_some_and(|threads| threads % 32 != 0 || threads == 0) {
            let message =
                format!("thread count {} of a barrier is not a positive multiple of 32", threads.unwrap_or(0));
            return Err(self.error(site, &message));
        }
        let source = op.reduction.as_ref().map(|reduction| match reduction {
            BarrierReduction::Popc(_, p) | BarrierReduction::And(_, p) | BarrierReduction::Or(_, p) => *p,
        });
        let held = source.map(|source: PredSrc| program.predicate(&warp.regs, source) & site.mask);
        let whole = self.launch.info.threads().next_multiple_of(32);
        let barrier = &mut self.ctas[warp.cta as usize].barriers[id as usize];
        let generation = barrier.generation;
        if barrier.arrived == 0 && barrier.partial.is_empty() {
            barrier.expected = threads;
        }
        if let Some(held) = held {
            let reducing = barrier.reducing.get_or_insert(Reduction::NEUTRAL);
            reducing.count += held.count_ones();
            reducing.all &= held == site.mask;
            reducing.any |= held != 0;
        }
        let lanes = match barrier.partial.iter_mut().find(|(index, _)| *index == warp.index) {
            Some((_, lanes)) => {
                *lanes |= site.mask;
                *lanes
            }
            None => {
                barrier.partial.push((warp.index, site.mask));
                site.mask
            }
        };
        self.counters.barrier(site.pc);
        if self.watch.wants(Interest::BARRIER) {
            self.watch.emit(&Event::BarrierArrive {
                site,
                barrier: BarrierId::Named(id as u8),
                generation,
                waits: op.waits,
                threads: threads.unwrap_or(whole),
                aligned: op.aligned,
                reduction: op.reduction.is_some(),
                semantics: Semantics::Release,
            });
        }
        if lanes & warp.live == warp.live {
            self.warp_arrived(warp, id as usize);
        }
        if !op.waits {
            return Ok(After::Next);
        }
        let wait = Wait::Barrier { id: id as u8, generation };
        if self.ctas[warp.cta as usize].barriers[id as usize].generation > generation {
            self.barrier_passed(warp, site, &wait);
            return Ok(After::Next);
        }
        Ok(After::Wait(wait))
    }

    /// All live lanes of a warp have arrived: it counts, and may complete the barrier.
    fn warp_arrived(&mut self, warp: &Warp, id: usize) {
        let cta = &mut self.ctas[warp.cta as usize];
        let barrier = &mut cta.barriers[id];
        barrier.partial.retain(|(index, _)| *index != warp.index);
        barrier.arrived += 32;
        complete(barrier, cta.live_warps);
    }

    /// Lanes exited: barriers that waited for them may be complete.
    pub(super) fn barriers_after_exit(&mut self, warp: &Warp) {
        for id in 0..16 {
            let cta = &mut self.ctas[warp.cta as usize];
            let partial = cta.barriers[id].partial.iter().find(|(index, _)| *index == warp.index).copied();
            match partial {
                Some((_, lanes)) if warp.live != 0 && lanes & warp.live == warp.live => self.warp_arrived(warp, id),
                Some(_) if warp.live == 0 => self.warp_arrived(warp, id),
                _ if warp.live == 0 && cta.barriers[id].arrived > 0 => complete(&mut cta.barriers[id], cta.live_warps),
                _ => {}
            }
        }
        let key = (warp.cta, warp.index);
        let lanes = self.cluster_barrier.lanes.iter().find(|(at, _)| *at == key).map(|(_, lanes)| *lanes);
        if let Some(lanes) = lanes
            && lanes & warp.live == warp.live
        {
            self.cluster_warp_arrived(key);
        } else if warp.live == 0 {
            self.complete_cluster();
        }
    }

    /// A group goes on after a barrier: its event and the result of a reduction.
    pub(super) fn barrier_passed(&mut self, warp: &mut Warp, site: Site, wait: &Wait) {
        let (barrier, generation) = match wait {
            Wait::Barrier { id, generation } => (BarrierId::Named(*id), *generation),
            Wait::ClusterBarrier { generation } => (BarrierId::Cluster, *generation),
            Wait::Gather | Wait::WarpBarrier(_) | Wait::Registers(_) | Wait::Grid => return,
        };
        if self.watch.wants(Interest::BARRIER) {
            self.watch.emit(&Event::BarrierPass { site, barrier, generation });
        }
        let op = match &self.launch.program.code[site.pc as usize].op {
            Op::Barrier(op) => op,
            _ => return,
        };
        let BarrierId::Named(id) = barrier else { return };
        let result = self.ctas[warp.cta as usize].barriers[id as usize].results[(generation & 1) as usize];
        let ones = |holds: bool| if holds { u32::MAX } else { 0 };
        match op.reduction {
            None => {}
            Some(BarrierReduction::Popc(d, _)) => {
                blend32(self.arch, &mut warp.regs.narrow[d as usize], &L32([result.count; 32]), site.mask);
            }
            Some(BarrierReduction::And(p, _)) => write_predicate(&mut warp.regs, p, ones(result.all), site.mask),
            Some(BarrierReduction::Or(p, _)) => write_predicate(&mut warp.regs, p, ones(result.any), site.mask),
        }
    }

    /// `bar.warp.sync`: lanes may be at different instructions of this kind with the same mask.
    pub(super) fn warp_barrier(&mut self, warp: &mut Warp, site: Site, members: u16) -> After {
        let members = self.launch.program.source32(&warp.regs, members);
        let members = members.0[site.mask.trailing_zeros() as usize];
        if members & warp.live & !site.mask == 0 {
            self.warp_sync(site, WarpSync::Barrier, members, 0);
            return After::Next;
        }
        After::Wait(Wait::WarpBarrier(members))
    }

    /// All groups that wait at `bar.warp.sync` with this mask go on.
    pub(super) fn warp_barrier_passed(&mut self, warp: &mut Warp, members: u32, lanes: u32) {
        let mut pc = 0;
        for group in warp.groups.iter_mut().filter(|group| group.wait == Some(Wait::WarpBarrier(members))) {
            pc = group.pc;
            group.pc += 1;
            group.wait = None;
        }
        let site = Site { pc, cta: warp.cta, warp: warp.index, mask: lanes, live: warp.live };
        self.warp_sync(site, WarpSync::Barrier, members, 0);
    }

    /// Tells the checkers that lanes of a warp synchronised.
    pub(super) fn warp_sync(&mut self, site: Site, kind: WarpSync, membermask: u32, reads_absent: u32) {
        if self.watch.wants(Interest::WARP_SYNC) {
            self.watch.emit(&Event::WarpSync { site, kind, membermask, reads_absent });
        }
    }

    /// `barrier.cluster.arrive`.
    pub(super) fn cluster_arrive(&mut self, warp: &mut Warp, site: Site, semantics: Semantics, aligned: bool) {
        let key = (warp.cta, warp.index);
        let generation = self.cluster_barrier.generation;
        let barrier = &mut self.cluster_barrier;
        let index = barrier.lanes.iter().position(|(at, _)| *at == key);
        let entry = match index {
            Some(index) => &mut barrier.lanes[index].1,
            None => {
                barrier.lanes.push((key, 0));
                let last = barrier.lanes.len() - 1;
                &mut barrier.lanes[last].1
            }
        };
        *entry |= site.mask;
        let lanes = *entry;
        if !barrier.arrivals.iter().any(|(at, _)| *at == key) {
            barrier.arrivals.push((key, [0; 32]));
        }
        for (at, uses) in &mut barrier.arrivals {
            if *at == key {
                each(site.mask).for_each(|lane| uses[lane] = generation + 1);
            }
        }
        if self.watch.wants(Interest::BARRIER) {
            self.watch.emit(&Event::BarrierArrive {
                site,
                barrier: BarrierId::Cluster,
                generation,
                waits: false,
                threads: self.launch.info.threads() * self.launch.info.cluster_ctas(),
                aligned,
                reduction: false,
                semantics,
            });
        }
        if lanes & warp.live == warp.live {
            self.cluster_warp_arrived(key);
        }
    }

    fn cluster_warp_arrived(&mut self, key: (u32, u32)) {
        self.cluster_barrier.lanes.retain(|(at, _)| *at != key);
        self.cluster_barrier.arrived += 1;
        self.complete_cluster();
    }

    fn complete_cluster(&mut self) {
        let live: u32 = self.ctas.iter().map(|cta| cta.live_warps).sum();
        let barrier = &mut self.cluster_barrier;
        if barrier.arrived > 0 && barrier.arrived >= live {
            barrier.arrived = 0;
            barrier.generation += 1;
        }
    }

    /// `barrier.cluster.wait`: for the use that this lane arrived at.
    pub(super) fn cluster_wait(&mut self, warp: &mut Warp, site: Site) -> After {
        let key = (warp.cta, warp.index);
        let lane = site.mask.trailing_zeros() as usize;
        let mut uses = 0;
        if let Some((_, arrivals)) = self.cluster_barrier.arrivals.iter_mut().find(|(at, _)| *at == key) {
            uses = arrivals[lane];
            // An arrival is waited for once.
            each(site.mask).for_each(|lane| arrivals[lane] = 0);
        }
        // A wait without an arrive can never end: the use after the present one never completes without this warp.
        let generation = if uses == 0 { u64::MAX } else { uses - 1 };
        let wait = Wait::ClusterBarrier { generation };
        if generation != u64::MAX && self.cluster_barrier.generation > generation {
            self.barrier_passed(warp, site, &wait);
            return After::Next;
        }
        After::Wait(wait)
    }
}

/// Ends a use of a barrier when enough threads have arrived.
fn complete(barrier: &mut NamedBarrier, live_warps: u32) {
    let expected = barrier.expected.unwrap_or(live_warps * 32);
    if barrier.arrived > 0 && barrier.arrived >= expected {
        barrier.results[(barrier.generation & 1) as usize] = barrier.reducing.take().unwrap_or(Reduction::NEUTRAL);
        barrier.generation += 1;
        barrier.arrived = 0;
        barrier.expected = None;
    }
}
