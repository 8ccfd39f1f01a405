//! mbarriers in shared memory: every object's state lies beside the memory, by address, and what threads and asynchronous copies do
//! to it happens lane after lane.

use std::collections::BTreeMap;

use super::Cluster;
use super::access::Kind;
use super::step::After;
use super::straight::write_predicate;
use super::warp::Warp;
use crate::address::{SHARED_WINDOW, Space, shared_offset, shared_rank};
use crate::error::Result;
use crate::event::{
    AccessKind, Agent, Event, Interest, MbarrierEvent, MbarrierState, MbarrierStep, Scope, Semantics, Site,
};
use crate::program::hopper_op::{Mbarrier, MbarrierAction, WaitPhase};
use crate::program::op::{AnyDst, MemorySpace};
use crate::scalar::lanes::each;
use crate::units::mbarrier::{self, Misuse};

/// Who tells an mbarrier something.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub site: Site,
    pub agent: Agent,
    pub semantics: Semantics,
    pub scope: Scope,
}

impl Told {
    /// An asynchronous operation.
    pub fn by(site: Site, agent: Agent) -> Told {
        Told { site, agent, semantics: Semantics::Release, scope: Scope::Cluster }
    }
}

/// What a test asks for.
#[derive(Clone, Copy)]
enum WaitFor {
    Parity(u32),
    Phase(u64),
}

const DEAD: &str = "no mbarrier was initialised here";

impl<'a> Cluster<'a> {
    pub(super) fn mbarrier(&mut self, warp: &mut Warp, site: Site, op: &Mbarrier) -> Result<After> {
        let mut addresses = self.addresses(warp, op.address);
        if op.space == MemorySpace::Generic {
            addresses.0.iter_mut().for_each(|address| *address = address.wrapping_sub(SHARED_WINDOW));
        }
        let remote = matches!(
            op.action,
            MbarrierAction::Arrive { state: AnyDst::Sink, .. }
                | MbarrierAction::ExpectTx(_)
                | MbarrierAction::CompleteTx(_)
        );
        let mut passed = 0u32;
        for lane in each(site.mask) {
            let address = addresses.0[lane];
            let site = Site { mask: 1 << lane, ..site };
            // Bounds and alignment are told as an access only where they are violated: the object is no data.
            if !self.in_cluster(address, 8) || !address.is_multiple_of(8) {
                self.test(0, site, Space::Shared, &addresses, Kind::plain(AccessKind::Atomic, 8))?;
                passed |= 1 << lane;
                continue;
            }
            if !remote && shared_rank(address) != site.cta {
                return Err(self.error(site, "this is not possible with an mbarrier of another CTA"));
            }
            let told = Told { site, agent: Agent::Threads, semantics: op.semantics, scope: op.scope };
            if self.mbarrier_lane(warp, told, op, lane, address)? {
                passed |= 1 << lane;
            }
        }
        let MbarrierAction::Test { p, .. } = op.action else { return Ok(After::Next) };
        write_predicate(&mut warp.regs, p, passed, site.mask);
        if passed == site.mask {
            return Ok(After::Next);
        }
        // Nobody waits in a `test_wait`, but who asks in a loop lets others go on.
        self.polls += 1;
        Ok(After::Yield)
    }

    /// One lane's operation; whether a test passed.
    fn mbarrier_lane(&mut self, warp: &mut Warp, told: Told, op: &Mbarrier, lane: usize, address: u64) -> Result<bool> {
        let program = &self.launch.program;
        let source = |source: u16| program.source32(&warp.regs, source).0[lane];
        match op.action {
            MbarrierAction::Init(count) => {
                let count = source(count);
                let before = self.mbarrier_at(address);
                self.settle(told, address, MbarrierStep::Init(count), before, mbarrier::init(count))?;
            }
            MbarrierAction::Invalidate => {
                let before = self.mbarriers_of(address).remove(&shared_offset(address));
                self.tell_mbarrier(told, address, MbarrierStep::Invalidate, before, None);
                if before.is_none() {
                    self.misused(told.site, DEAD)?;
                }
            }
            MbarrierAction::Arrive { count, drop, expect_tx, state } => {
                let (count, bytes) = (count.map_or(1, source), expect_tx.map(source));
                if let Some(bytes) = bytes {
                    self.mbarrier_change(told, address, MbarrierStep::ExpectTx(bytes))?;
                }
                let before = self.mbarrier_change(told, address, MbarrierStep::Arrive { count, drop })?;
                if state != AnyDst::Sink {
                    self.write(warp, state, lane, before.map_or(0, |before| before.token()));
                }
            }
            MbarrierAction::ExpectTx(bytes) => {
                let bytes = source(bytes);
                self.mbarrier_change(told, address, MbarrierStep::ExpectTx(bytes))?;
            }
            MbarrierAction::CompleteTx(bytes) => {
                let bytes = source(bytes);
                self.mbarrier_change(told, address, MbarrierStep::CompleteTx(bytes))?;
            }
            MbarrierAction::Test { phase, potentially_blocking, .. } => {
                let wanted = match phase {
                    WaitPhase::Parity(parity) => WaitFor::Parity(source(parity) & 1),
                    WaitPhase::Token(token) => {
                        WaitFor::Phase(MbarrierState::token_phase(program.source64(&warp.regs, token).0[lane]))
                    }
                };
                return self.mbarrier_test(told, address, wanted, potentially_blocking);
            }
        }
        Ok(false)
    }

    fn mbarrier_test(&mut self, told: Told, address: u64, wanted: WaitFor, may_fail: bool) -> Result<bool> {
        let Some(state) = self.mbarrier_at(address) else {
            self.tell_mbarrier(told, address, MbarrierStep::WaitDone, None, None);
            self.misused(told.site, DEAD)?;
            return Ok(true);
        };
        // The phase that is asked about: the present one, or the one before it.
        let (mut done, phase) = match wanted {
            WaitFor::Parity(parity) => {
                let current = state.phase & 1 == u64::from(parity);
                (state.parity_is_complete(parity), if current { state.phase } else { state.phase.wrapping_sub(1) })
            }
            WaitFor::Phase(phase) => (state.phase_is_complete(phase), phase),
        };
        let one_in = u64::from(self.launch.options.spurious_wait_one_in);
        if done && may_fail && one_in > 0 && self.random.below(one_in) == 0 {
            done = false;
        }
        let step = if done { MbarrierStep::WaitDone } else { MbarrierStep::WaitFalse };
        self.emit_mbarrier(told, address, step, phase, (Some(state), Some(state)));
        Ok(done)
    }

    fn mbarriers_of(&mut self, address: u64) -> &mut BTreeMap<u32, MbarrierState> {
        &mut self.ctas[shared_rank(address) as usize].mbarriers
    }

    /// The live object at a shared address.
    pub(super) fn mbarrier_at(&self, address: u64) -> Option<MbarrierState> {
        self.ctas.get(shared_rank(address) as usize)?.mbarriers.get(&shared_offset(address)).copied()
    }

    /// Changes a live object; gives its state before.
    pub(super) fn mbarrier_change(
        &mut self,
        told: Told,
        address: u64,
        step: MbarrierStep,
    ) -> Result<Option<MbarrierState>> {
        let Some(before) = self.mbarrier_at(address) else {
            self.tell_mbarrier(told, address, step, None, None);
            self.misused(told.site, DEAD)?;
            return Ok(None);
        };
        let mut state = before;
        let changed = match step {
            MbarrierStep::Arrive { count, drop } => state.arrive(count, drop),
            MbarrierStep::ExpectTx(bytes) => state.expect_tx(bytes),
            MbarrierStep::CompleteTx(bytes) => state.complete_tx(bytes),
            _ => Ok(()),
        };
        self.settle(told, address, step, Some(before), changed.map(|()| state))?;
        Ok(Some(before))
    }

    fn settle(
        &mut self,
        told: Told,
        address: u64,
        step: MbarrierStep,
        before: Option<MbarrierState>,
        made: std::result::Result<MbarrierState, Misuse>,
    ) -> Result<()> {
        self.tell_mbarrier(told, address, step, before, made.ok());
        let state = match made {
            Ok(state) => state,
            Err(misuse) => return self.misused(told.site, &misuse.to_string()),
        };
        self.mbarriers_of(address).insert(shared_offset(address), state);
        self.write_bytes(Space::Shared, address, &state.token().to_le_bytes());
        Ok(())
    }

    fn tell_mbarrier(
        &mut self,
        told: Told,
        address: u64,
        step: MbarrierStep,
        before: Option<MbarrierState>,
        after: Option<MbarrierState>,
    ) {
        let phase = before.map_or(0, |before| before.phase);
        self.emit_mbarrier(told, address, step, phase, (before, after));
    }

    fn emit_mbarrier(
        &mut self,
        told: Told,
        address: u64,
        step: MbarrierStep,
        phase: u64,
        (before, after): (Option<MbarrierState>, Option<MbarrierState>),
    ) {
        if self.watch.wants(Interest::MBARRIER) {
            let Told { site, agent, semantics, scope } = told;
            let event = MbarrierEvent { site, agent, address, step, phase, before, after, semantics, scope };
            self.watch.emit(&Event::Mbarrier(&event));
        }
    }

    /// Misuse is a finding of the checker; without it the launch ends.
    fn misused(&mut self, site: Site, message: &str) -> Result<()> {
        if self.launch.options.checks.mbarriers { Ok(()) } else { Err(self.error(site, message)) }
    }
}
