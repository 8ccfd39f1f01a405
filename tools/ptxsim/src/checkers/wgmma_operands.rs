//! What the four warps of a warpgroup hand to one `wgmma`: the same instruction, the same matrix descriptors, the same `scale-d`.
//! (Every warp gives its own copy; PTX leaves open what happens when they differ.)

use std::collections::{BTreeMap, HashMap};

use crate::checker::{Case, Context, Findings};
use crate::event::{Site, WgmmaOperands};

/// Operands of the warps of all warpgroups.
#[derive(Default)]
pub(super) struct Operands {
    groups: HashMap<(u32, u32), Group>,
}

#[derive(Default)]
struct Group {
    /// Products that each warp has issued.
    issued: [u64; 4],
    /// By number: who issued it first, with what, and how many warps have.
    open: BTreeMap<u64, (Site, WgmmaOperands, u32)>,
}

impl Operands {
    /// A warp issued a product.
    pub fn issue(
        &mut self,
        context: &Context,
        name: &'static str,
        site: Site,
        operands: WgmmaOperands,
        findings: &mut Findings,
    ) {
        let group = self.groups.entry((site.cta, site.warp / 4)).or_default();
        let issued = &mut group.issued[site.warp as usize % 4];
        let number = *issued;
        *issued += 1;
        let (first, given, warps) = group.open.entry(number).or_insert((site, operands, 0));
        *warps += 1;
        let (first, given, complete) = (*first, *given, *warps == 4);
        if complete {
            group.open.remove(&number);
        }
        let (rule, message) = match () {
            () if first.pc != site.pc => {
                ("warps_differ", "the warps of a warpgroup execute different wgmma".to_owned())
            }
            () if given.b != operands.b => (
                "descriptors_differ",
                format!("descriptor {:#x} of B, but another warp gives {:#x}", operands.b, given.b),
            ),
            () if given.a != operands.a => {
                let bits = |a: Option<u64>| a.unwrap_or(0);
                let (here, there) = (bits(operands.a), bits(given.a));
                ("descriptors_differ", format!("descriptor {here:#x} of A, but another warp gives {there:#x}"))
            }
            () if given.accumulate != operands.accumulate => {
                ("scales_differ", "scale-d differs between the warps of a warpgroup".to_owned())
            }
            () => return,
        };
        findings.report(context, name, rule, (site.pc, Some(first.pc)), 1, || Case {
            site,
            lane: None,
            address: None,
            message,
            other: Some((first, None, "issued its part of the wgmma".to_owned())),
        });
    }
}
