//! Accesses outside allocations: red zones, freed memory, shared and local memory beyond their size, stores to constants.

use crate::address::{Space, shared_offset, shared_rank};
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, AccessKind, Event, Interest};

/// Makes the checkers.
pub struct Bounds;

struct Watcher;

impl CheckerKind for Bounds {
    fn start(&self, _context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher)
    }
}

/// Where the address lies, relative to what it could have meant.
fn place(context: &Context, access: &Access, address: u64) -> String {
    match access.space {
        Space::Global | Space::Const => context.memory.describe(address),
        Space::Shared => format!(
            "offset {} of CTA rank {}, whose shared memory has {} bytes in a cluster of {}",
            shared_offset(address),
            shared_rank(address),
            context.launch.shared_bytes,
            context.launch.cluster_ctas()
        ),
        Space::Local => format!("offset {address} of {} bytes of local memory", context.launch.local_bytes),
        Space::Param => "outside the parameters, or a store to them".to_string(),
    }
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::BAD_ACCESS
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        let Event::Access(access) = event else { return };
        if access.outside == 0 {
            return;
        }
        let lane = access.outside.trailing_zeros();
        let address = access.places.address(lane as usize);
        let rule = match access.kind {
            AccessKind::Read => "read_outside",
            AccessKind::Write => "write_outside",
            AccessKind::Atomic => "atomic_outside",
        };
        let count = access.outside.count_ones() as u64;
        findings.report(context, "bounds", rule, (access.site.pc, None), count, || Case {
            site: access.site,
            lane: Some(lane),
            address: Some(address),
            message: format!(
                "{} bytes at {address:#x} in {} memory: {}",
                access.bytes,
                access.space.name(),
                place(context, access, address)
            ),
            other: None,
        });
    }
}
