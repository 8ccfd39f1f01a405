//! `cp.async` and the list of asynchronous operations in flight.
//!
//! An operation reads its source and writes its destination when it lands: at the wait that requires it (late), at once
//! (early), or at a seeded moment between.

use super::Cluster;
use super::access::Kind;
use super::bulk::Bulk;
use super::warp::Warp;
use super::wgmma::Product16;
use crate::address::{SHARED_WINDOW, Space, shared_rank};
use crate::error::Result;
use crate::event::{AccessKind, Agent, AsyncId, AsyncKind, AsyncRange, AsyncWait, Event, Interest, Site};
use crate::options::AsyncPolicy;
use crate::program::op::{CopyAsync, MemorySpace};
use crate::scalar::lanes::{L64, each};

/// An asynchronous operation that has been issued.
#[derive(Clone, Debug)]
pub struct Pending {
    /// Number.
    pub id: AsyncId,
    /// Who issued it.
    pub site: Site,
    /// It has read its source and written its destination; it stays listed until somebody has waited for it.
    pub landed: bool,
    /// What it does.
    pub work: Work,
}

/// What an asynchronous operation does when it lands.
#[derive(Clone, Debug)]
pub enum Work {
    /// One `cp.async` of a warp.
    Copy(Box<Copy>),
    /// The arrival at this mbarrier that follows a thread's `cp.async`.
    CopyArrive(u64),
    /// A bulk or tensor copy.
    Bulk(Box<Bulk>),
    /// A warp's part of a `wgmma`.
    Wgmma(Product16),
}

/// `cp.async` of a warp's lanes.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Shared destinations.
    pub to: L64,
    /// Global sources.
    pub from: L64,
    /// Bytes written by each lane.
    pub bytes: u32,
    /// Bytes read by each lane; zeros after them.
    pub source_bytes: [u8; 32],
    /// Lanes that have not waited for it.
    pub lanes: u32,
    /// Group of each lane: groups that it had committed before.
    pub group: [u32; 32],
}

impl<'a> Cluster<'a> {
    /// A number for an asynchronous operation.
    pub(super) fn new_async(&mut self) -> AsyncId {
        self.next_async += 1;
        AsyncId(self.next_async - 1)
    }

    /// `cp.async`.
    pub(super) fn copy_async(&mut self, warp: &mut Warp, site: Site, op: &CopyAsync) -> Result<()> {
        let program = &self.launch.program;
        let mut to = self.addresses(warp, op.to);
        let from = self.addresses(warp, op.from);
        if op.to_space == MemorySpace::Generic {
            to.0.iter_mut().for_each(|address| *address = address.wrapping_sub(SHARED_WINDOW));
        }
        let ignored = op.ignore.map_or(0, |ignore| program.predicate(&warp.regs, ignore));
        let mut source_bytes = [op.bytes as u8; 32];
        for lane in each(site.mask) {
            if let Some(source) = op.source_bytes {
                source_bytes[lane] = program.source32(&warp.regs, source).0[lane].min(op.bytes) as u8;
            }
            if ignored >> lane & 1 == 1 {
                source_bytes[lane] = 0;
            }
        }
        let copy = Copy { to, from, bytes: op.bytes, source_bytes, lanes: site.mask, group: warp.committed };
        let id = self.new_async();
        self.tell_copy_issue(site, id, &copy);
        self.pending.push(Pending { id, site, landed: false, work: Work::Copy(Box::new(copy)) });
        if self.launch.options.asynchrony == AsyncPolicy::Early {
            self.land(self.pending.len() - 1)?;
        }
        Ok(())
    }

    fn tell_copy_issue(&mut self, site: Site, id: AsyncId, copy: &Copy) {
        if !self.watch.wants(Interest::ASYNC) {
            return;
        }
        let range = |space: Space, address: u64, bytes: u32| AsyncRange { space, address, bytes };
        let reading = each(copy.lanes).filter(|&lane| copy.source_bytes[lane] > 0);
        let reads: Vec<_> =
            reading.map(|lane| range(Space::Global, copy.from.0[lane], copy.source_bytes[lane] as u32)).collect();
        let writes: Vec<_> = each(copy.lanes).map(|lane| range(Space::Shared, copy.to.0[lane], copy.bytes)).collect();
        self.watch.emit(&Event::AsyncIssue { site, id, kind: AsyncKind::CpAsync, reads: &reads, writes: &writes });
    }

    /// `cp.async.commit_group`.
    pub(super) fn copy_commit(&mut self, warp: &mut Warp, site: Site) {
        each(site.mask).for_each(|lane| warp.committed[lane] += 1);
        if self.watch.wants(Interest::ASYNC) {
            self.watch.emit(&Event::AsyncCommit { site, kind: AsyncKind::CpAsync });
        }
    }

    /// `cp.async.wait_group` (all but the newest groups of each lane) and `wait_all`.
    pub(super) fn copy_wait(&mut self, warp: &mut Warp, site: Site, newest: Option<u32>) -> Result<()> {
        for index in 0..self.pending.len() {
            let pending = &self.pending[index];
            let Work::Copy(copy) = &pending.work else { continue };
            if pending.site.cta != warp.cta || pending.site.warp != warp.index {
                continue;
            }
            let committed = &warp.committed;
            let due =
                |lane: &usize| newest.is_none_or(|n| copy.group[*lane] as u64 + (n as u64) < committed[*lane] as u64);
            let lanes = each(copy.lanes & site.mask).filter(due).fold(0u32, |all, lane| all | 1 << lane);
            if lanes != 0 {
                let id = pending.id;
                self.land(index)?;
                self.tell_step(Site { mask: lanes, ..site }, id, AsyncKind::CpAsync, AsyncWait::Waited);
                if let Work::Copy(copy) = &mut self.pending[index].work {
                    copy.lanes &= !lanes;
                }
            }
        }
        self.forget_landed();
        if newest.is_none() {
            each(site.mask).for_each(|lane| warp.committed[lane] += 1);
        }
        Ok(())
    }

    /// Lets a pending operation read its source and write its destination, unless it has.
    pub(super) fn land(&mut self, index: usize) -> Result<()> {
        if self.pending[index].landed {
            return Ok(());
        }
        if let Work::Wgmma(_) = self.pending[index].work {
            return self.land_wgmma(index);
        }
        self.pending[index].landed = true;
        let Pending { id, site, .. } = self.pending[index];
        match &self.pending[index].work {
            Work::Copy(copy) => {
                let copy = copy.clone();
                self.land_copy(site, id, &copy)
            }
            Work::CopyArrive(address) => self.land_copy_arrive(index, *address),
            Work::Bulk(_) => self.land_bulk(index),
            Work::Wgmma(_) => Ok(()),
        }
    }

    /// Drops the operations that have landed and that nobody will wait for.
    pub(super) fn forget_landed(&mut self) {
        self.pending.retain(|pending| match &pending.work {
            Work::Copy(copy) => copy.lanes != 0,
            Work::CopyArrive(_) | Work::Bulk(_) => !pending.landed,
            Work::Wgmma(_) => true,
        });
    }

    fn land_copy(&mut self, site: Site, id: AsyncId, copy: &Copy) -> Result<()> {
        self.tell_step(site, id, AsyncKind::CpAsync, AsyncWait::Landed);
        let kind = |kind: AccessKind, bytes: u32| Kind { agent: Agent::Async(id), ..Kind::plain(kind, bytes) };
        let mut data = [[0u8; 16]; 32];
        // Lanes that read fewer bytes than they write are tested by what they read.
        let mut left =
            each(copy.lanes).filter(|&lane| copy.source_bytes[lane] > 0).fold(0u32, |all, lane| all | 1 << lane);
        while left != 0 {
            let length = copy.source_bytes[left.trailing_zeros() as usize];
            let lanes = each(left).filter(|&lane| copy.source_bytes[lane] == length);
            let lanes = lanes.fold(0u32, |all, lane| all | 1 << lane);
            left &= !lanes;
            let length = length as u32;
            let aligned = Kind { align: copy.bytes, ..kind(AccessKind::Read, length) };
            let tested = self.test(0, Site { mask: lanes, ..site }, Space::Global, &copy.from, aligned)?;
            for lane in each(tested.lanes) {
                let data = &mut data[lane][..length as usize];
                match tested.allocation {
                    Some(a) => a.copy_out(copy.from.0[lane] - a.base, data),
                    None => self.read_bytes(Space::Global, copy.from.0[lane], data),
                }
            }
        }
        let site = Site { mask: copy.lanes, ..site };
        let tested = self.test(0, site, Space::Shared, &copy.to, kind(AccessKind::Write, copy.bytes))?;
        for lane in each(tested.lanes) {
            match (copy.bytes, tested.near) {
                (16, Some(near)) => {
                    let shared = &mut self.ctas[shared_rank(near.base) as usize].shared;
                    shared[(copy.to.0[lane] - near.base) as usize..][..16].copy_from_slice(&data[lane]);
                }
                _ => self.write_bytes(Space::Shared, copy.to.0[lane], &data[lane][..copy.bytes as usize]),
            }
        }
        Ok(())
    }

    pub(super) fn tell_step(&mut self, site: Site, id: AsyncId, kind: AsyncKind, step: AsyncWait) {
        if self.watch.wants(Interest::ASYNC) {
            self.watch.emit(&Event::AsyncStep { site, id, kind, step });
        }
    }
}
