//! Changes of tensor maps in memory.

use super::Cluster;
use super::access::Kind;
use super::warp::Warp;
use crate::address::{SHARED_WINDOW, Space};
use crate::error::Result;
use crate::event::{AccessKind, FenceKind, Semantics, Site, WarpSync};
use crate::program::hopper_op::{MapCopy, MapReplace};
use crate::scalar::lanes::{L64, each};
use crate::units::tensor_map::{self, MAP_BYTES};

/// Maps lie on multiples of this.
const MAP_ALIGN: u32 = 64;

impl<'a> Cluster<'a> {
    /// `tensormap.replace`, lane after lane.
    pub(super) fn map_replace(&mut self, warp: &mut Warp, site: Site, op: &MapReplace) -> Result<()> {
        let mut addresses = self.addresses(warp, op.address);
        let kind = Kind { align: MAP_ALIGN, ..Kind::plain(AccessKind::Atomic, MAP_BYTES as u32) };
        self.by_space(op.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
            let site = Site { mask: lanes, ..site };
            let tested = cluster.test(warp.local_bytes, site, space, addresses, kind)?;
            for lane in each(tested.lanes) {
                let value = cluster.launch.program.lane(&warp.regs, op.value, lane);
                let mut bytes = [0; MAP_BYTES];
                cluster.read_bytes(space, addresses.0[lane], &mut bytes);
                tensor_map::replace(&mut bytes, op.field, value).map_err(|why| cluster.error(site, &why))?;
                cluster.write_bytes(space, addresses.0[lane], &bytes);
            }
            Ok(())
        })
    }

    /// `tensormap.cp_fenceproxy`: the warp copies one map and releases it.
    pub(super) fn map_copy(&mut self, warp: &mut Warp, site: Site, op: &MapCopy) -> Result<()> {
        let lane = site.mask.trailing_zeros() as usize & 31;
        let one = Site { mask: 1 << lane, ..site };
        let kind = |kind| Kind { align: MAP_ALIGN, ..Kind::plain(kind, MAP_BYTES as u32) };
        let from = self.addresses(warp, op.from).0[lane];
        let from = if from >= SHARED_WINDOW { from - SHARED_WINDOW } else { from };
        let to = self.addresses(warp, op.to);
        let readable = self.test(0, one, Space::Shared, &L64([from; 32]), kind(AccessKind::Read))?;
        let writable = self.test(0, one, Space::Global, &to, kind(AccessKind::Write))?;
        if readable.lanes & writable.lanes != 0 {
            let mut bytes = [0; MAP_BYTES];
            self.read_bytes(Space::Shared, from, &mut bytes);
            self.write_bytes(Space::Global, to.0[lane], &bytes);
        }
        self.fence(site, FenceKind::ProxyOther, Semantics::Release, op.scope);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }
}
