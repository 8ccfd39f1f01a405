//! Registers of `wgmma`: touched while it runs, or handed to it without the `wgmma.fence` that it needs.
//!
//! Between issue and `wgmma.wait_group` nothing may touch the accumulators, and nothing may write the registers of A. A
//! `wgmma.fence` comes before the first `wgmma` and again after anything else touched these registers; only accumulators
//! that the previous `wgmma` of the same shape left are exempt (PTX ISA, wgmma.fence).

use std::collections::HashMap;

use super::wgmma_operands::Operands;
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{AsyncId, AsyncKind, AsyncWait, Event, Interest, Site};

const NAME: &str = "wgmma_registers";

/// Makes the checker.
pub struct WgmmaRegisters;

impl CheckerKind for WgmmaRegisters {
    fn start(&self, _context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher { warps: HashMap::new(), operands: Operands::default() })
    }
}

/// What is known of one register of a warp.
#[derive(Clone, Copy)]
enum Use {
    /// Touched by an ordinary instruction, after the warp's latest fence or before.
    Ordinary { site: Site, fences: u64 },
    /// Read by a `wgmma` that runs.
    Operand { id: AsyncId, site: Site },
    /// Accumulated into by a `wgmma`, the last one; N of its shape.
    Accumulator { id: AsyncId, site: Site, shape: u32 },
}

#[derive(Default)]
struct Warp {
    fences: u64,
    registers: HashMap<u16, Use>,
    running: Vec<AsyncId>,
}

struct Watcher {
    warps: HashMap<(u32, u32), Warp>,
    operands: Operands,
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::REGISTERS.and(Interest::ASYNC)
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match *event {
            Event::WgmmaOperands(site, operands) => self.operands.issue(context, NAME, site, operands, findings),
            Event::WgmmaFence(site) => self.warps.entry((site.cta, site.warp)).or_default().fences += 1,
            Event::AsyncStep { site, id, kind: AsyncKind::Wgmma, step: AsyncWait::Waited } => {
                let warp = self.warps.entry((site.cta, site.warp)).or_default();
                warp.running.retain(|&running| running != id);
                warp.registers.retain(|_, used| !matches!(used, Use::Operand { id: by, .. } if *by == id));
            }
            Event::Registers { site, reads, writes, wgmma: None, .. } => {
                self.ordinary(context, site, reads, writes, findings);
            }
            Event::Registers { site, reads, writes, wgmma: Some(id), shape } => {
                self.issue(context, (site, id, shape), reads, writes, findings);
            }
            _ => {}
        }
    }
}

impl Watcher {
    fn ordinary(&mut self, context: &Context, site: Site, reads: &[u16], writes: &[u16], findings: &mut Findings) {
        let warp = self.warps.entry((site.cta, site.warp)).or_default();
        for (list, is_write) in [(reads, false), (writes, true)] {
            for &register in list {
                let found = match warp.registers.get(&register) {
                    Some(&Use::Accumulator { id, site, .. }) if warp.running.contains(&id) => Some(site),
                    Some(&Use::Operand { id, site }) if is_write && warp.running.contains(&id) => Some(site),
                    _ => None,
                };
                if let Some(issuer) = found {
                    findings.report(context, NAME, "in_flight", (site.pc, Some(issuer.pc)), 1, || Case {
                        site,
                        lane: Some(site.mask.trailing_zeros() & 31),
                        address: None,
                        message: format!(
                            "a register of a running wgmma is {} before wgmma.wait_group",
                            if is_write { "written" } else { "read" }
                        ),
                        other: Some((issuer, None, "issued the wgmma".to_owned())),
                    });
                }
                // Reading an accumulator that is complete also asks for a fence before it is used again only if it is
                // written; operands and fresh registers ask for one once they are.
                if is_write {
                    warp.registers.insert(register, Use::Ordinary { site, fences: warp.fences });
                }
            }
        }
    }

    fn issue(
        &mut self,
        context: &Context,
        (site, id, shape): (Site, AsyncId, u32),
        reads: &[u16],
        writes: &[u16],
        findings: &mut Findings,
    ) {
        let warp = self.warps.entry((site.cta, site.warp)).or_default();
        let mut lacking = None;
        if warp.fences == 0 {
            lacking = Some((site, "no wgmma.fence comes before the warp's first wgmma"));
        }
        for &register in reads.iter().chain(writes) {
            match warp.registers.get(&register) {
                Some(&Use::Ordinary { site: by, fences }) if fences == warp.fences => {
                    lacking = Some((by, "a register was written and no wgmma.fence is in between"));
                }
                Some(&Use::Accumulator { id, site: by, shape: other })
                    if warp.running.contains(&id) && (other != shape || !writes.contains(&register)) =>
                {
                    lacking = Some((by, "accumulators of a running wgmma are used in another shape or as an operand"));
                }
                _ => {}
            }
        }
        if let Some((by, message)) = lacking {
            findings.report(context, NAME, "missing_fence", (site.pc, Some(by.pc)), 1, || Case {
                site,
                lane: None,
                address: None,
                message: message.to_owned(),
                other: (by != site).then(|| (by, None, "touched it".to_owned())),
            });
        }
        for &register in reads {
            warp.registers.insert(register, Use::Operand { id, site });
        }
        for &register in writes {
            warp.registers.insert(register, Use::Accumulator { id, site, shape });
        }
        warp.running.push(id);
    }
}
