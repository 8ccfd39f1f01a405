//! Addresses that are no multiple of the size of the access.

use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Event, Interest};

/// Makes the checkers.
pub struct Alignment;

struct Watcher;

impl CheckerKind for Alignment {
    fn start(&self, _context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher)
    }
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        Interest::BAD_ACCESS
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        let Event::Access(access) = event else { return };
        if access.misaligned == 0 {
            return;
        }
        let lane = access.misaligned.trailing_zeros();
        let address = access.places.address(lane as usize);
        let count = access.misaligned.count_ones() as u64;
        findings.report(context, "alignment", "misaligned", (access.site.pc, None), count, || Case {
            site: access.site,
            lane: Some(lane),
            address: Some(address),
            message: format!(
                "{address:#x} in {} memory is no multiple of the {} bytes of the access",
                access.space.name(),
                access.bytes
            ),
            other: None,
        });
    }
}
