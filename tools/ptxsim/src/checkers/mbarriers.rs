//! Misuse of mbarriers: operations on what is not one, init over a live one, ordinary access to its bytes, arrivals or
//! transactions beyond their limits, and phases that nobody waited for.

use std::collections::HashMap;

use crate::address::Space;
use crate::checker::{Case, Checker, CheckerKind, Context, Findings};
use crate::event::{Access, Agent, Event, Interest, MbarrierEvent, MbarrierStep, Site};
use crate::scalar::lanes::each;

const NAME: &str = "mbarriers";

/// Makes the checker.
pub struct Mbarriers;

impl CheckerKind for Mbarriers {
    fn start(&self, context: &Context) -> Box<dyn Checker> {
        Box::new(Watcher { live: HashMap::new(), are_used: context.launch.features.mbarriers })
    }
}

/// A live object.
struct Live {
    init: Site,
    /// Phases up to this one (exclusive) were waited for by somebody.
    waited: u64,
}

struct Watcher {
    live: HashMap<u64, Live>,
    /// The kernel has operations on mbarriers.
    are_used: bool,
}

impl Checker for Watcher {
    fn interests(&self) -> Interest {
        if self.are_used { Interest::MBARRIER.and(Interest::SHARED) } else { Interest::NONE }
    }

    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings) {
        match event {
            Event::Mbarrier(event) => self.step(context, event, findings),
            Event::Access(access) if !self.live.is_empty() => self.access(context, access, findings),
            _ => {}
        }
    }
}

impl Watcher {
    fn step(&mut self, context: &Context, event: &MbarrierEvent, findings: &mut Findings) {
        let MbarrierEvent { site, address, step, phase, before, after, .. } = *event;
        let mut say = |rule, message: String, other: Option<(Site, Option<u32>, String)>| {
            let by = other.as_ref().map(|(site, _, _)| site.pc);
            findings.report(context, NAME, rule, (site.pc, by), 1, || Case {
                site,
                lane: Some(site.mask.trailing_zeros() & 31),
                address: Some(address),
                message,
                other,
            });
        };
        match (step, before, after) {
            (MbarrierStep::Init(_), Some(_), _) => {
                let other = self.live.get(&address).map(|live| (live.init, None, "initialised it".to_owned()));
                say("init_over_live", "mbarrier.init over a live mbarrier; invalidate it first".to_owned(), other);
            }
            (MbarrierStep::Init(_), None, _) | (MbarrierStep::Invalidate, Some(_), _) => {}
            (_, None, _) => say("not_an_mbarrier", "there is no initialised mbarrier at this address".to_owned(), None),
            (_, Some(state), None) => say(
                "beyond_limits",
                format!(
                    "{step:?} is beyond what the phase allows: {} of {} arrivals are missing, {} bytes pending",
                    state.pending, state.expected, state.tx
                ),
                None,
            ),
            _ => {}
        }
        match step {
            MbarrierStep::Init(_) => {
                self.live.insert(address, Live { init: site, waited: 0 });
            }
            MbarrierStep::Invalidate => {
                self.live.remove(&address);
            }
            MbarrierStep::WaitDone => {
                if let Some(live) = self.live.get_mut(&address) {
                    // The phase before the first one is -1.
                    live.waited = live.waited.max(phase.wrapping_add(1));
                }
            }
            MbarrierStep::Arrive { .. } if event.agent == Agent::Threads => {
                if let Some(live) = self.live.get(&address)
                    && phase > live.waited
                {
                    let message =
                        format!("this arrives in phase {phase}, but nobody has waited for phase {}", phase - 1);
                    say("phase_not_waited", message, None);
                }
            }
            _ => {}
        }
    }

    fn access(&self, context: &Context, access: &Access, findings: &mut Findings) {
        if access.space != Space::Shared {
            return;
        }
        let site = access.site;
        for lane in each(access.lanes()) {
            let (start, end) = (access.places.address(lane), access.places.address(lane) + access.bytes as u64);
            let hit =
                (start & !7..end).step_by(8).find_map(|address| self.live.get(&address).map(|live| (address, live)));
            if let Some((address, live)) = hit {
                findings.report(context, NAME, "ordinary_access", (site.pc, Some(live.init.pc)), 1, || Case {
                    site,
                    lane: Some(lane as u32),
                    address: Some(address),
                    message: "a live mbarrier is reached by something that is no mbarrier operation".to_owned(),
                    other: Some((live.init, None, "initialised it".to_owned())),
                });
            }
        }
    }
}
