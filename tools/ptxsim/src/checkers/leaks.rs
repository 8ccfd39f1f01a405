//! What is left when a CTA exits: asynchronous work that nobody waited for, mbarriers with bytes pending; and accesses to
//! the shared memory of a CTA of the cluster that has exited.

use std::collections::{BTreeMap, HashMap};

use super::family;
use crate::address::{Space, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings, LaunchInfo};
use crate::event::{Agent, AsyncId, AsyncKind, AsyncWait, Event, Interest, MbarrierState, MbarrierStep, Site};
use crate::memory::GlobalMemory;
use crate::scalar::lanes::each;

const NAME: &str = "leaks";

/// Makes the checker.
pub struct Leaks;

impl CheckerKind for Leaks {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        let exited = vec![false; context.launch.cluster_ctas() as usize];
        Box::new(Watcher { open: BTreeMap::new(), mbarriers: HashMap::new(), exited })
    }
}

/// Blocks that the launch took by `malloc` (those from number `first` on) and did not free.
pub fn blocks(launch: &LaunchInfo, memory: &GlobalMemory, first: usize, findings: &mut Findings) {
    for block in memory.heap.live_from(first) {
        let (cluster, site) = block.by;
        let context = Context { launch, cluster, memory };
        findings.report(&context, NAME, "malloc_without_free", (site.pc, None), 1, || Case {
            site,
            lane: Some(site.mask.trailing_zeros() & 31),
            address: Some(block.allocation.base),
            message: format!("a block of {} bytes was not freed by the end of the launch", block.allocation.bytes),
            other: None,
        });
    }
}

struct Watcher {
    /// Issued, and not known to have ended.
    open: BTreeMap<AsyncId, (Site, AsyncKind)>,
    /// Last state of every live mbarrier, and who touched it last.
    mbarriers: HashMap<u64, (Site, MbarrierState)>,
    exited: Vec<bool>,
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        let alone = Interest::ASYNC.and(Interest::MBARRIER).and(Interest::CONTROL);
        // Only in a cluster can there be accesses to a CTA that has exited.
        if self.exited.len() > 1 { alone.and(Interest::SHARED) } else { alone }
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match *event {
            Event::AsyncIssue { site, id, kind, .. } => {
                self.open.insert(id, (site, kind));
            }
            Event::AsyncStep { id, step, .. } if step != AsyncWait::Landed => {
                // A source that was read is enough to exit: the rest of a store needs no shared memory.
                self.open.remove(&id);
            }
            Event::Mbarrier(event) => {
                if let Agent::Async(id) = event.agent {
                    self.open.remove(&id);
                }
                if event.agent == Agent::Threads {
                    self.reach(context, event.site, event.site.mask.trailing_zeros() as usize, event.address, findings);
                }
                match (event.step, event.after) {
                    (MbarrierStep::Invalidate, _) => drop(self.mbarriers.remove(&event.address)),
                    (_, Some(state)) => drop(self.mbarriers.insert(event.address, (event.site, state))),
                    (_, None) => {}
                }
            }
            Event::CtaExit(rank) => {
                self.exited[rank as usize] = true;
                self.exit(context, rank, findings);
            }
            Event::Access(access) if access.space == Space::Shared && self.exited.contains(&true) => {
                let site = access.site;
                for lane in each(site.mask & !access.outside) {
                    self.reach(context, site, lane, access.places.address(lane), findings);
                }
            }
            _ => {}
        }
    }
}

impl Watcher {
    /// A lane reaches shared memory, maybe of a CTA that is no more.
    fn reach(&self, context: &Context, site: Site, lane: usize, address: u64, findings: &mut Findings) {
        let rank = shared_rank(address);
        if rank != site.cta && self.exited.get(rank as usize) == Some(&true) {
            findings.report(context, NAME, "peer_exited", (site.pc, None), 1, || Case {
                site,
                lane: Some(lane as u32),
                address: Some(address),
                message: format!("CTA {rank} of the cluster has exited; its shared memory is gone"),
                other: None,
            });
        }
    }

    fn exit(&mut self, context: &Context, rank: u32, findings: &mut Findings) {
        let left: Vec<AsyncId> =
            self.open.iter().filter(|(_, (site, _))| site.cta == rank).map(|(&id, _)| id).collect();
        for id in left {
            let Some((site, kind)) = self.open.remove(&id) else { continue };
            findings.report(context, NAME, "in_flight_at_exit", (site.pc, None), 1, || Case {
                site,
                lane: Some(site.mask.trailing_zeros() & 31),
                address: None,
                message: format!("the CTA exits without having waited for this {}", family(kind)),
                other: None,
            });
        }
        let mut pending: Vec<_> = self
            .mbarriers
            .iter()
            .filter(|(address, (_, state))| shared_rank(**address) == rank && state.tx != 0)
            .map(|(&address, &(site, state))| (address, site, state.tx))
            .collect();
        pending.sort_unstable_by_key(|&(address, ..)| address);
        for (address, site, tx) in pending {
            findings.report(context, NAME, "bytes_pending_at_exit", (site.pc, None), 1, || Case {
                site,
                lane: None,
                address: Some(address),
                message: format!("the CTA exits while {tx} bytes of this mbarrier's phase are pending"),
                other: None,
            });
        }
    }
}
