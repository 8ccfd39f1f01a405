//! `atom.exch.b128` and `atom.cas.b128`: lanes in order, each in one step.

use super::Cluster;
use super::access::Kind;
use super::warp::Warp;
use crate::error::Result;
use crate::event::{AccessKind, Site};
use crate::program::op::Atomic128;
use crate::scalar::lanes::each;

impl<'a> Cluster<'a> {
    pub(super) fn atomic128(&mut self, warp: &mut Warp, site: Site, op: &Atomic128) -> Result<()> {
        let mut addresses = self.addresses(warp, op.address);
        let kind = Kind { semantics: op.semantics, scope: op.scope, ..Kind::plain(AccessKind::Atomic, 16) };
        self.by_space(op.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
            let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
            for lane in each(tested.lanes) {
                let program = &cluster.launch.program;
                let address = addresses.0[lane];
                let old = [0, 8].map(|at| cluster.peek(warp, &tested, lane, address + at, 8));
                let read = |halves: [_; 2]| halves.map(|half| program.lane(&warp.regs, half, lane));
                let (new, wanted) = (read(op.new), op.compare.map(read));
                if wanted.is_none_or(|wanted| wanted == old) {
                    cluster.poke(warp, &tested, lane, address, 8, new[0]);
                    cluster.poke(warp, &tested, lane, address + 8, 8, new[1]);
                }
                op.old.iter().zip(old).for_each(|(d, value)| cluster.write(warp, *d, lane, value));
            }
            Ok(())
        })
    }
}
