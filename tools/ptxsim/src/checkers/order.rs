//! Happens-before between the warps of a cluster: vector clocks, fed by the events that synchronise.
//!
//! An *agent* is a warp, or an mbarrier on behalf of the asynchronous copies that signal it: its clock counts completed
//! phases, so that a copy's bytes carry the stamp (mbarrier, phase + 1) and whoever waited for that phase knows them.
//! Warps' clocks advance whenever they release (arrive, fence) and at every point that synchronises their lanes.

use std::collections::HashMap;

use crate::event::{BarrierId, MbarrierEvent, MbarrierStep, Semantics, Site};

/// Number of a warp or mbarrier in the cluster.
pub type AgentId = u16;

/// How far each agent is known to have come; missing entries are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VectorClock(Vec<u32>);

impl VectorClock {
    /// What is known of `agent`.
    #[inline(always)]
    pub fn of(&self, agent: AgentId) -> u32 {
        self.0.get(agent as usize).copied().unwrap_or(0)
    }

    /// Learns that `agent` has come to `clock`.
    pub fn learn(&mut self, agent: AgentId, clock: u32) {
        if self.0.len() <= agent as usize {
            self.0.resize(agent as usize + 1, 0);
        }
        let known = &mut self.0[agent as usize];
        *known = clock.max(*known);
    }

    /// Learns all that `other` knows.
    pub fn join(&mut self, other: &VectorClock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (known, &clock) in self.0.iter_mut().zip(&other.0) {
            *known = clock.max(*known);
        }
    }
}

/// One use of a barrier.
#[derive(Default)]
struct BarrierUse {
    released: VectorClock,
    arrived: Vec<AgentId>,
    /// Somebody arrived without waiting.
    is_open: bool,
}

/// An mbarrier object.
struct Mbarrier {
    agent: AgentId,
    /// Arrivals of the running phase and all before.
    released: VectorClock,
    /// The same at the end of the last two phases, with the number of the phase.
    ended: [Option<(u64, VectorClock)>; 2],
}

/// Who knows of whom in one cluster.
pub struct Order {
    warps_per_cta: u32,
    clocks: Vec<VectorClock>,
    live: Vec<bool>,
    barriers: HashMap<(u32, BarrierId, u64), BarrierUse>,
    mbarriers: HashMap<u64, Mbarrier>,
    agents: u16,
    /// What was released at locations of strong writes.
    locations: HashMap<u64, VectorClock>,
    /// Per warp: what it knew at its last fence, and what strong reads since then have seen.
    fenced: Vec<VectorClock>,
    seen: Vec<VectorClock>,
    nothing: VectorClock,
}

impl Order {
    /// Of a cluster with this many CTAs of this many warps, nothing happened yet.
    pub fn new(ctas: u32, warps_per_cta: u32) -> Order {
        let warps = (ctas * warps_per_cta) as usize;
        let clock = |agent: usize| {
            let mut clock = VectorClock::default();
            clock.learn(agent as AgentId, 1);
            clock
        };
        Order {
            warps_per_cta,
            clocks: (0..warps).map(clock).collect(),
            live: vec![true; warps],
            barriers: HashMap::new(),
            mbarriers: HashMap::new(),
            agents: warps as u16,
            locations: HashMap::new(),
            fenced: vec![VectorClock::default(); warps],
            seen: vec![VectorClock::default(); warps],
            nothing: VectorClock::default(),
        }
    }

    /// The warp of a site.
    #[inline(always)]
    pub fn agent(&self, site: Site) -> AgentId {
        (site.cta * self.warps_per_cta + site.warp) as AgentId
    }

    /// Whether the agent is a warp of this CTA.
    #[inline(always)]
    pub fn belongs(&self, agent: AgentId, cta: u32) -> bool {
        (agent as u32).wrapping_sub(cta * self.warps_per_cta) < self.warps_per_cta
    }

    /// What the warp knows; an mbarrier knows nothing of its own.
    #[inline(always)]
    pub fn clock(&self, agent: AgentId) -> &VectorClock {
        self.clocks.get(agent as usize).unwrap_or(&self.nothing)
    }

    /// The warp's own time.
    #[inline(always)]
    pub fn now(&self, agent: AgentId) -> u32 {
        self.clocks[agent as usize].of(agent)
    }

    /// What the warp does from now on is not covered by what it released before.
    pub fn advance(&mut self, agent: AgentId) {
        let now = self.now(agent);
        self.clocks[agent as usize].learn(agent, now + 1);
    }

    /// All lanes of the warp have exited: barriers no longer expect it.
    pub fn exit(&mut self, agent: AgentId) {
        self.live[agent as usize] = false;
    }

    fn barrier_key(site: Site, barrier: BarrierId, generation: u64) -> (u32, BarrierId, u64) {
        (if barrier == BarrierId::Cluster { u32::MAX } else { site.cta }, barrier, generation)
    }

    /// A warp arrives at a barrier and, if it `waits`, goes on only with [`Order::pass`]. True when with it all live warps
    /// of its CTA wait there: what they did before is then before whatever any of them will do.
    pub fn arrive(
        &mut self,
        site: Site,
        barrier: BarrierId,
        generation: u64,
        semantics: Semantics,
        waits: bool,
    ) -> bool {
        let agent = self.agent(site);
        let uses = self.barriers.entry(Order::barrier_key(site, barrier, generation)).or_default();
        if semantics != Semantics::Relaxed {
            uses.released.join(&self.clocks[agent as usize]);
        }
        if !uses.arrived.contains(&agent) {
            uses.arrived.push(agent);
        }
        uses.is_open |= !waits;
        let is_closed = !uses.is_open && barrier != BarrierId::Cluster;
        let first = site.cta * self.warps_per_cta;
        let whole = is_closed
            && (first..first + self.warps_per_cta)
                .all(|warp| !self.live[warp as usize] || uses.arrived.contains(&(warp as AgentId)));
        if generation >= 2 {
            self.barriers.remove(&Order::barrier_key(site, barrier, generation - 2));
        }
        self.advance(agent);
        whole
    }

    /// A warp goes on from a barrier.
    pub fn pass(&mut self, site: Site, barrier: BarrierId, generation: u64) {
        let agent = self.agent(site);
        if let Some(uses) = self.barriers.get(&Order::barrier_key(site, barrier, generation)) {
            self.clocks[agent as usize].join(&uses.released);
        }
    }

    /// A fence: what the warp knows may be released by its next strong write; what strong reads saw is acquired.
    pub fn fence(&mut self, agent: AgentId) {
        let seen = std::mem::take(&mut self.seen[agent as usize]);
        self.clocks[agent as usize].join(&seen);
        self.fenced[agent as usize] = self.clocks[agent as usize].clone();
        self.advance(agent);
    }

    /// A strong access (atomic, volatile, relaxed or more) of the word at `address`.
    pub fn strong(&mut self, agent: AgentId, address: u64, semantics: Semantics, reads: bool, writes: bool) {
        let acquires = matches!(semantics, Semantics::Acquire | Semantics::AcqRel | Semantics::SeqCst);
        let releases = matches!(semantics, Semantics::Release | Semantics::AcqRel | Semantics::SeqCst);
        if reads && let Some(released) = self.locations.get(&address) {
            self.seen[agent as usize].join(released);
            if acquires {
                self.clocks[agent as usize].join(released);
            }
        }
        if writes {
            let released = self.locations.entry(address).or_default();
            released.join(&self.fenced[agent as usize]);
            if releases {
                released.join(&self.clocks[agent as usize]);
                self.advance(agent);
            }
        }
    }

    /// The agent of the mbarrier at this address.
    pub fn mbarrier_agent(&mut self, address: u64) -> AgentId {
        self.mbarrier(address).agent
    }

    fn mbarrier(&mut self, address: u64) -> &mut Mbarrier {
        let agents = &mut self.agents;
        self.mbarriers.entry(address).or_insert_with(|| {
            *agents += 1;
            Mbarrier { agent: *agents - 1, released: VectorClock::default(), ended: [None, None] }
        })
    }

    /// Threads arrive at an mbarrier, or wait for it with success.
    pub fn mbarrier_step(&mut self, event: &MbarrierEvent) {
        let warp = self.agent(event.site);
        match event.step {
            MbarrierStep::Arrive { .. } if event.semantics != Semantics::Relaxed => {
                let known = self.clocks[warp as usize].clone();
                self.mbarrier(event.address).released.join(&known);
                self.advance(warp);
            }
            MbarrierStep::WaitDone if event.semantics != Semantics::Relaxed => {
                let mbarrier = self.mbarrier(event.address);
                let agent = mbarrier.agent;
                let ended = mbarrier.ended.iter().flatten().filter(|(phase, _)| *phase <= event.phase);
                let ended: Vec<VectorClock> = ended.map(|(_, clock)| clock.clone()).collect();
                let clock = &mut self.clocks[warp as usize];
                ended.iter().for_each(|ended| clock.join(ended));
                clock.learn(agent, (event.phase as u32).wrapping_add(1));
            }
            _ => {}
        }
        if let (Some(before), Some(after)) = (event.before, event.after)
            && before.phase < after.phase
        {
            let mbarrier = self.mbarrier(event.address);
            mbarrier.ended.swap(0, 1);
            mbarrier.ended[1] = Some((before.phase, mbarrier.released.clone()));
        }
    }
}
