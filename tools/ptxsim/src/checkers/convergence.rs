//! Where warps come together: partial warps at `.aligned` instructions, barriers used inconsistently, lanes that a
//! collective reads but that do not take part, and deadlock.

use std::collections::HashMap;

use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{BarrierId, Event, Interest, Site, Waiting};

const NAME: &str = "convergence";

/// Makes the checker.
pub struct Convergence;

impl CheckerKind for Convergence {
    fn start(&self, _context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher { uses: HashMap::new() })
    }
}

/// What the first arrival at a use of a barrier said, and who came since.
struct Use {
    generation: u64,
    first: Site,
    threads: u32,
    reduction: bool,
    arrived: u32,
    /// Warps and the lanes of them that have arrived.
    parts: Vec<(u32, u32)>,
}

struct Watcher {
    uses: HashMap<(u32, BarrierId), Use>,
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::BARRIER.and(Interest::WARP_SYNC).and(Interest::CONTROL)
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match *event {
            Event::PartialWarp(site) => {
                let absent = site.live & !site.mask;
                findings.report(context, NAME, "partial_warp", (site.pc, None), 1, || Case {
                    site,
                    lane: Some(absent.trailing_zeros() & 31),
                    address: None,
                    message: format!(
                        "an .aligned instruction is executed by lanes {:#010x} while lanes {absent:#010x} of the warp are elsewhere",
                        site.mask
                    ),
                    other: None,
                });
            }
            Event::WarpSync { site, reads_absent, .. } if reads_absent != 0 => {
                findings.report(context, NAME, "absent_lane_read", (site.pc, None), 1, || Case {
                    site,
                    lane: Some(reads_absent.trailing_zeros()),
                    address: None,
                    message: "the lane reads a value of a lane that does not take part".to_owned(),
                    other: None,
                });
            }
            Event::BarrierArrive {
                site,
                barrier: barrier @ BarrierId::Named(_),
                generation,
                threads,
                reduction,
                ..
            } => {
                self.arrive(context, site, (barrier, generation), (threads, reduction), findings);
            }
            Event::Deadlock(waiting) => deadlock(context, waiting, findings),
            _ => {}
        }
    }
}

impl Watcher {
    fn arrive(
        &mut self,
        context: &Context,
        site: Site,
        (barrier, generation): (BarrierId, u64),
        (threads, reduction): (u32, bool),
        findings: &mut Findings,
    ) {
        let fresh = || Use { generation, first: site, threads, reduction, arrived: 0, parts: Vec::new() };
        let uses = self.uses.entry((site.cta, barrier)).or_insert_with(fresh);
        if uses.generation != generation {
            *uses = fresh();
        }
        // Parts of a divided warp that arrive one after the other are one warp.
        match uses.parts.iter_mut().find(|(warp, lanes)| *warp == site.warp && lanes & site.mask == 0) {
            Some((_, lanes)) => *lanes |= site.mask,
            None => {
                uses.parts.push((site.warp, site.mask));
                uses.arrived += 32;
            }
        }
        let first = uses.first;
        let rule = if uses.threads != threads {
            Some((
                "barrier_count",
                format!("{threads} threads are expected here, {} by an earlier arrival", uses.threads),
            ))
        } else if uses.reduction != reduction {
            Some(("barrier_mixed", "bar.red and other arrivals meet at one use of a barrier".to_owned()))
        } else if uses.arrived > uses.threads.next_multiple_of(32) {
            Some(("barrier_crowded", format!("more than {threads} threads arrive at one use of the barrier")))
        } else {
            None
        };
        if let Some((rule, message)) = rule {
            findings.report(context, NAME, rule, (site.pc, Some(first.pc)), 1, || Case {
                site,
                lane: Some(site.mask.trailing_zeros() & 31),
                address: None,
                message,
                other: Some((first, None, "arrived first".to_owned())),
            });
        }
    }
}

/// One finding for the deadlock; every group that waits is in its sentence.
fn deadlock(context: &Context, waiting: &[Waiting], findings: &mut Findings) {
    let Some(first) = waiting.first() else { return };
    findings.report(context, NAME, "deadlock", (first.site.pc, None), 1, || {
        let each = waiting.iter().map(|group| {
            let Site { pc, cta, warp, mask, .. } = group.site;
            let line = context.line(pc);
            format!("CTA {cta} warp {warp} lanes {mask:#010x} at line {} ({}): {}", line.ptx, line.text, group.reason)
        });
        Case {
            site: first.site,
            lane: Some(first.site.mask.trailing_zeros() & 31),
            address: None,
            message: format!("nothing can go on: {}", each.collect::<Vec<_>>().join("; ")),
            other: None,
        }
    });
}
