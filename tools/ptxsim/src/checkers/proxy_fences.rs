//! Missing proxy fences: bytes of shared memory written by ordinary stores and read by the async proxy (`wgmma` operands,
//! bulk copies out of shared memory), or an mbarrier signalled by it, without a `fence.proxy.async` of the writing warp.
//!
//! The fence belongs to the writer: after its stores, before the barrier that lets the asynchronous work start (PTX ISA,
//! memory consistency model, proxies). Whether that barrier is there is the race checker's question.

use std::collections::HashMap;

use super::family;
use crate::address::{Space, shared_offset, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{
    Access, AccessKind, Agent, AsyncKind, AsyncRange, Event, FenceKind, Interest, MbarrierStep, Proxy, Site,
};

const NAME: &str = "proxy_fences";

/// Makes the checker.
pub struct ProxyFences;

impl CheckerKind for ProxyFences {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        let launch = context.launch;
        let (ctas, warps) = (launch.cluster_ctas() as usize, launch.warps());
        Box::new(Watcher {
            warps,
            fences: vec![1; ctas * warps as usize],
            words: vec![Vec::new(); ctas],
            words_per_cta: (launch.shared_bytes as usize).div_ceil(4),
            is_used: launch.features.async_proxy,
            inits: HashMap::new(),
            init_fences: vec![1; ctas * warps as usize],
        })
    }
}

/// The last ordinary store to 4 bytes.
#[derive(Clone, Copy, Default)]
struct Stored {
    /// The warp's count of fences then; 0 for no store.
    fences: u32,
    warp: u16,
    lane: u8,
    pc: u32,
}

struct Watcher {
    warps: u32,
    /// `fence.proxy.async` that each warp has executed, plus 1.
    fences: Vec<u32>,
    words: Vec<Vec<Stored>>,
    words_per_cta: usize,
    /// The kernel has operations of the async proxy.
    is_used: bool,
    /// Who initialised the mbarrier at an address, and its count of fences then.
    inits: HashMap<u64, (Site, u32)>,
    /// Fences of either kind that order an init.
    init_fences: Vec<u32>,
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        match self.is_used {
            true => Interest::SHARED_WRITE.and(Interest::FENCE).and(Interest::ASYNC).and(Interest::MBARRIER),
            false => Interest::NONE,
        }
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match *event {
            Event::Access(access) => {
                let is_store = access.kind != AccessKind::Read && access.proxy == Proxy::Generic;
                // What cp.async writes is generic, too.
                if is_store && access.space == Space::Shared {
                    self.stored(access);
                }
            }
            Event::Fence { site, kind, .. } => {
                let warp = (site.cta * self.warps + site.warp) as usize;
                match kind {
                    FenceKind::ProxyAsync(space) if space.is_none_or(|space| space == Space::Shared) => {
                        self.fences[warp] += 1;
                        self.init_fences[warp] += 1;
                    }
                    FenceKind::MbarrierInit => self.init_fences[warp] += 1,
                    _ => {}
                }
            }
            Event::AsyncIssue {
                site,
                kind: kind @ (AsyncKind::Wgmma | AsyncKind::BulkStore | AsyncKind::BulkReduce),
                reads,
                ..
            } => {
                self.read(context, site, kind, reads, findings);
            }
            Event::AsyncIssue { site, kind: AsyncKind::BulkLoad, writes, .. } => self.written(site, writes),
            Event::Mbarrier(event) => match (event.step, event.agent) {
                (MbarrierStep::Init(_), _) => {
                    let warp = (event.site.cta * self.warps + event.site.warp) as usize;
                    self.inits.insert(event.address, (event.site, self.init_fences[warp]));
                }
                // No bytes: a cp.async, which is of the generic proxy.
                (MbarrierStep::CompleteTx(1..), Agent::Async(_)) => {
                    let Some(&(init, fences)) = self.inits.get(&event.address) else { return };
                    let warp = (init.cta * self.warps + init.warp) as usize;
                    if self.init_fences[warp] == fences {
                        findings.report(context, NAME, "mbarrier_init", (init.pc, Some(event.site.pc)), 1, || Case {
                            site: init,
                            lane: Some(init.mask.trailing_zeros() & 31),
                            address: Some(event.address),
                            message: "the async proxy signals an mbarrier whose init no fence.mbarrier_init or fence.proxy.async made visible to it".to_owned(),
                            other: Some((event.site, None, "issued the copy".to_owned())),
                        });
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

impl Watcher {
    /// Remembers an ordinary store.
    fn stored(&mut self, access: &Access) {
        let Site { cta, warp, pc, .. } = access.site;
        let warp = cta * self.warps + warp;
        let fences = self.fences[warp as usize];
        for run in access.places.runs() {
            let words = &mut self.words[shared_rank(run.address) as usize];
            if words.is_empty() {
                words.resize(self.words_per_cta, Stored::default());
            }
            let (first, end) = (shared_offset(run.address), shared_offset(run.address) + run.bytes);
            let stored = Stored { fences, warp: warp as u16, lane: run.lane, pc };
            for (word, at) in words[first as usize / 4..end.div_ceil(4) as usize].iter_mut().zip((first..).step_by(4)) {
                let lane = run.lane_at(at - first, access.bytes).unwrap_or(run.lane);
                *word = Stored { lane, ..stored };
            }
        }
    }

    /// The async proxy will overwrite these bytes: what was stored there before no longer matters.
    fn written(&mut self, site: Site, writes: &[AsyncRange]) {
        debug_assert!(site.mask != 0);
        for range in writes.iter().filter(|range| range.space == Space::Shared) {
            let words = &mut self.words[shared_rank(range.address) as usize];
            let first = shared_offset(range.address) as usize / 4;
            let end = (first + range.bytes.div_ceil(4) as usize).min(words.len());
            words[first.min(end)..end].fill(Stored::default());
        }
    }

    fn read(&self, context: &Context, site: Site, kind: AsyncKind, reads: &[AsyncRange], findings: &mut Findings) {
        for range in reads.iter().filter(|range| range.space == Space::Shared) {
            let words = &self.words[shared_rank(range.address) as usize];
            let first = shared_offset(range.address) as usize / 4;
            let end = (first + range.bytes.div_ceil(4) as usize).min(words.len());
            for (i, stored) in words[first.min(end)..end].iter().enumerate() {
                if stored.fences == 0 || self.fences[stored.warp as usize] > stored.fences {
                    continue;
                }
                findings.report(context, NAME, "missing_fence", (stored.pc, Some(site.pc)), 1, || Case {
                    site: Site {
                        pc: stored.pc,
                        cta: stored.warp as u32 / self.warps,
                        warp: stored.warp as u32 % self.warps,
                        mask: 1 << stored.lane,
                        live: 0,
                    },
                    lane: Some(stored.lane as u32),
                    address: Some(range.address + 4 * i as u64),
                    message: format!(
                        "a {} reads what this warp stored, without a fence.proxy.async by the warp in between",
                        family(kind)
                    ),
                    other: Some((site, None, format!("issued the {}", family(kind)))),
                });
            }
        }
    }
}
