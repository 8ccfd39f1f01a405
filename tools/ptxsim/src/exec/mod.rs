//! Execution of one cluster: its CTAs, their warps, and the order in which they take turns.

pub mod warp;
pub mod watch;
mod step;
mod straight;
mod whole;
pub(crate) mod pattern;
mod quick;
mod alu;
pub(crate) mod access;
mod load_store;
mod atomic;
mod atomic128;
mod heap;
mod barrier;
mod call;
mod collective;
mod matrix;
pub(crate) mod copy;
mod mma;
mod mbarrier;
mod bulk;
mod maps;
mod tile;
mod wgmma;
mod registers;
mod print;
mod format;

use std::collections::BTreeMap;

use pulp::Arch;

use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::event::{Event, Interest, MbarrierState, Read, Run, Site, Waiting};
use crate::launch::Launch;
use crate::options::{AsyncPolicy, Schedule};
use crate::units::approx::mix;
use barrier::{ClusterBarrier, NamedBarrier};
use copy::Pending;
use pattern::Pattern;
use warp::{Wait, Warp};
use watch::Watch;

/// Instructions that a warp runs before another gets its turn.
const QUANTUM: u32 = 4096;
/// Rounds without anything but spinning after which asynchronous work lands although warps could run.
const SPIN_ROUNDS: u32 = 16;
/// Rounds in which every warp only asked for mbarriers, with nothing in flight, after which they would ask for ever:
/// far more than the waits that fail without a reason in a row.
const HUNG_ROUNDS: u32 = 256;

/// A seeded generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(mix(seed))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound.max(1)
    }
}

/// One CTA.
pub struct Cta {
    /// Rank in the cluster.
    pub rank: u32,
    /// Index in the grid.
    pub index: [u32; 3],
    /// Shared memory.
    pub shared: Vec<u8>,
    /// Barriers 0..15.
    pub barriers: Vec<NamedBarrier>,
    /// Warps; `None` while one runs.
    pub warps: Vec<Option<Box<Warp>>>,
    /// Warps with live lanes.
    pub live_warps: u32,
    /// Live mbarriers, by shared offset.
    pub mbarriers: BTreeMap<u32, MbarrierState>,
    /// Registers that `setmaxnreg` has given back and nobody has taken.
    pub free_registers: u32,
}

/// Patterns of the accesses that a program's operations made.
type Patterns = Vec<Option<Box<Pattern>>>;

/// What a thread hands from one cluster to the next.
#[derive(Default)]
pub struct Kept {
    /// Counters.
    pub counters: Counters,
    patterns: Patterns,
}

impl Kept {
    /// Before the first cluster.
    pub fn new(counters: Counters) -> Kept {
        Kept { counters, patterns: Vec::new() }
    }
}

/// A cluster that runs.
pub struct Cluster<'a> {
    /// What is the same for all clusters.
    pub launch: &'a Launch<'a>,
    /// Number in the launch.
    pub number: u32,
    /// CTAs by rank.
    pub ctas: Vec<Cta>,
    /// Vector unit.
    pub arch: Arch,
    /// Checkers.
    pub watch: Watch<'a>,
    /// Counters of the thread that runs it.
    pub counters: Counters,
    /// Patterns of accesses, two per operation: anywhere else, and in shared memory.
    patterns: Patterns,
    /// Random choices of this cluster.
    pub random: Random,
    /// Warp instructions executed.
    pub executed: u64,
    /// Text of `printf`.
    pub printed: Vec<u8>,
    /// Asynchronous operations that have not landed.
    pub pending: Vec<Pending>,
    /// Number of the next one.
    pub next_async: u64,
    /// `barrier.cluster`.
    pub cluster_barrier: ClusterBarrier,
    /// Where it waits for another grid.
    pub hold: Hold,
    /// CTAs that have executed `griddepcontrol.launch_dependents`.
    triggered: Vec<bool>,
    /// Float reductions that wait for the cluster's turn.
    pub deferred: Vec<atomic::Deferred<'a>>,
    /// Somebody wants to know which registers instructions touch: the kernel has `wgmma`.
    tells_registers: bool,
    /// Waits for mbarriers that failed in this round.
    polls: u32,
    idle_rounds: u32,
    /// Rounds in a row in which every warp only asked for mbarriers.
    quiet_rounds: u32,
    /// Runs of the last access, to use the list again.
    runs: Vec<Run>,
    /// Reads of shared memory by the running warp that nobody was told of yet.
    noted: Vec<Read>,
}

/// At which `griddepcontrol` a cluster waits until it is released.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// At none.
    #[default]
    Nowhere,
    /// `launch_dependents`: it goes on as late as it may.
    AtTrigger,
    /// `wait`: the grid before it has not ended.
    AtWait,
}

/// How far a cluster came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All threads have exited.
    Done,
    /// It can go on, but its rounds are used up.
    Paused,
    /// Nothing can run before it is released.
    Held,
    /// Nothing can run any more.
    Stuck,
}

/// How a warp's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It did something that may let others go on, or simply used its time.
    Worked,
    /// It only looked for something that has not happened.
    Spun,
    /// It had nothing to run.
    Blocked,
}

impl<'a> Cluster<'a> {
    /// A cluster before its first instruction.
    pub fn new(launch: &'a Launch<'a>, number: u32, Kept { counters, mut patterns }: Kept) -> Cluster<'a> {
        patterns.resize_with(2 * launch.program.code.len(), || None);
        let count = launch.info.cluster_ctas();
        let ctas = (0..count).map(|rank| Cta {
            rank,
            index: launch.info.cta_index(number, rank),
            shared: vec![0; launch.info.shared_bytes as usize],
            barriers: vec![NamedBarrier::default(); 16],
            warps: (0..launch.info.warps()).map(|index| Some(Box::new(Warp::new(launch, rank, index)))).collect(),
            live_warps: launch.info.warps(),
            mbarriers: BTreeMap::new(),
            free_registers: 0,
        });
        let watch = Watch::new(launch, number);
        let has_wgmma = launch.program.touched.iter().any(|(reads, writes)| !reads.is_empty() || !writes.is_empty());
        Cluster {
            launch,
            number,
            ctas: ctas.collect(),
            arch: Arch::new(),
            tells_registers: has_wgmma && watch.wants(Interest::REGISTERS),
            watch,
            counters,
            patterns,
            random: Random::new(launch.options.seed ^ mix(number as u64)),
            executed: 0,
            printed: Vec::new(),
            pending: Vec::new(),
            next_async: 0,
            cluster_barrier: ClusterBarrier::default(),
            hold: Hold::Nowhere,
            triggered: vec![false; count as usize],
            deferred: Vec::new(),
            polls: 0,
            idle_rounds: 0,
            quiet_rounds: 0,
            runs: Vec::with_capacity(32),
            noted: Vec::with_capacity(whole::NOTED_MAX),
        }
    }

    /// What the next cluster on this thread goes on with.
    pub fn take_kept(&mut self) -> Kept {
        Kept { counters: std::mem::take(&mut self.counters), patterns: std::mem::take(&mut self.patterns) }
    }

    /// Runs at most `rounds` rounds, in each of which every warp gets a turn.
    ///
    /// # Errors
    /// [`Error::Execution`] on `trap`, and on an illegal access or a hang whose checker is off.
    pub fn run(&mut self, rounds: u64) -> Result<Status> {
        for _ in 0..rounds {
            let (mut worked, mut ran) = (false, 0);
            let before = self.executed;
            self.polls = 0;
            for (cta, index) in self.order() {
                let Some(mut warp) = self.ctas[cta].warps[index].take() else { continue };
                let quantum = self.quantum();
                let turn = if warp.live == 0 { Ok(Turn::Blocked) } else { self.run_warp(&mut warp, quantum) };
                self.ctas[cta].warps[index] = Some(warp);
                let turn = turn?;
                worked |= turn == Turn::Worked;
                ran += u32::from(turn != Turn::Blocked);
            }
            if self.ctas.iter().all(|cta| cta.live_warps == 0) {
                self.finish()?;
                return Ok(Status::Done);
            }
            if self.executed > self.launch.options.instructions_max {
                return self.stuck("the limit of instructions is reached");
            }
            let asked_only = !worked && self.executed - before <= u64::from(step::ASK * self.polls);
            let is_quiet = ran > 0 && asked_only && self.pending.iter().all(|pending| pending.landed);
            self.quiet_rounds = if is_quiet { self.quiet_rounds + 1 } else { 0 };
            if self.quiet_rounds > HUNG_ROUNDS && self.is_held() {
                return Ok(Status::Held);
            }
            if self.quiet_rounds > HUNG_ROUNDS {
                return self.stuck("all warps wait for mbarriers and nothing is in flight");
            }
            self.land_some(worked, ran)?;
            if ran > 0 || self.idle_rounds == 0 {
                continue;
            }
            if self.is_held() {
                return Ok(Status::Held);
            }
            if !self.force_partial() {
                return self.stuck("no warp can go on and nothing is in flight");
            }
        }
        Ok(Status::Paused)
    }

    /// Whether some lanes wait to be released.
    fn is_held(&self) -> bool {
        let warps = self.ctas.iter().flat_map(|cta| cta.warps.iter().flatten());
        self.hold != Hold::Nowhere && warps.flat_map(|warp| &warp.groups).any(|group| group.wait == Some(Wait::Grid))
    }

    /// Whether all CTAs let dependents start, or have exited.
    pub fn has_triggered(&self) -> bool {
        self.ctas.iter().zip(&self.triggered).all(|(cta, triggered)| *triggered || cta.live_warps == 0)
    }

    /// The other grid has come so far.
    pub fn release(&mut self) {
        let before_has_ended = std::mem::take(&mut self.hold) == Hold::AtWait;
        (self.quiet_rounds, self.idle_rounds) = (0, 0);
        if before_has_ended && self.watch.wants(Interest::CONTROL) {
            self.watch.emit(&Event::GridReleased);
        }
    }

    /// `griddepcontrol`.
    fn grid_dependency(&mut self, warp: &Warp, waits: bool) -> step::After {
        if !waits {
            self.triggered[warp.cta as usize] = true;
        }
        let holds = if waits { Hold::AtWait } else { Hold::AtTrigger };
        if self.hold == holds { step::After::Wait(Wait::Grid) } else { step::After::Next }
    }

    fn quantum(&mut self) -> u32 {
        match self.launch.options.schedule {
            Schedule::Random => 1 + self.random.below(QUANTUM as u64) as u32,
            _ => QUANTUM,
        }
    }

    /// (CTA, warp) in the order of this round.
    fn order(&mut self) -> Vec<(usize, usize)> {
        let warps = self.launch.info.warps() as usize;
        let mut order: Vec<(usize, usize)> = (0..self.ctas.len() * warps).map(|i| (i / warps, i % warps)).collect();
        match self.launch.options.schedule {
            Schedule::RoundRobin => {}
            Schedule::Reverse => order.reverse(),
            Schedule::Random => {
                for i in (1..order.len()).rev() {
                    order.swap(i, self.random.below(i as u64 + 1) as usize);
                }
            }
        }
        order
    }

    /// Lets asynchronous work land at the end of a round, by the policy. Sets `idle_rounds` to 0 when something landed.
    fn land_some(&mut self, worked: bool, ran: u32) -> Result<()> {
        self.idle_rounds = if worked { 0 } else { self.idle_rounds + 1 };
        let now = match self.launch.options.asynchrony {
            AsyncPolicy::Random => self.random.below(2) == 0,
            AsyncPolicy::Late | AsyncPolicy::Early => false,
        };
        // Warps that only ask for mbarriers go on when something lands; others may spin on memory, and get some time.
        let needed = !worked && self.polls >= ran || self.idle_rounds > SPIN_ROUNDS;
        if (now || needed) && self.land_one()? {
            self.idle_rounds = 0;
        } else if ran == 0 {
            self.idle_rounds = self.idle_rounds.max(1);
        }
        Ok(())
    }

    /// Lets one pending operation land: the oldest, or a random one. False if there is none.
    fn land_one(&mut self) -> Result<bool> {
        let flying: Vec<usize> = (0..self.pending.len()).filter(|&index| !self.pending[index].landed).collect();
        let chosen = match self.launch.options.asynchrony {
            AsyncPolicy::Random => self.random.below(flying.len() as u64) as usize,
            _ => 0,
        };
        let Some(&index) = flying.get(chosen) else { return Ok(false) };
        self.land(index)?;
        self.forget_landed();
        Ok(true)
    }

    /// Lets one group that waits at an `.aligned` instruction go on without the rest of its warp. False if none waits so.
    fn force_partial(&mut self) -> bool {
        let code = &self.launch.program.code;
        for cta in &mut self.ctas {
            for warp in cta.warps.iter_mut().flatten() {
                let waits = |group: &&mut warp::Group| {
                    matches!(group.wait, Some(Wait::Gather)) && code[group.pc as usize].op.aligned()
                };
                if let Some(group) = warp.groups.iter_mut().find(waits) {
                    group.wait = None;
                    group.forced = true;
                    return true;
                }
            }
        }
        false
    }

    /// Reports a deadlock or a hang.
    fn stuck(&mut self, why: &str) -> Result<Status> {
        let mut waiting = Vec::new();
        for cta in &self.ctas {
            for warp in cta.warps.iter().flatten() {
                for group in &warp.groups {
                    let site =
                        Site { pc: group.pc, cta: warp.cta, warp: warp.index, mask: group.mask, live: warp.live };
                    waiting.push(Waiting { site, reason: self.reason(cta, group) });
                }
            }
        }
        if self.launch.options.checks.convergence {
            self.watch.emit(&Event::Deadlock(&waiting));
            return Ok(Status::Stuck);
        }
        let first = waiting.first().map(|waiting| (waiting.site, waiting.reason.clone()));
        let Some((site, reason)) = first else { return Ok(Status::Stuck) };
        Err(self.error(site, &format!("{why}; this warp {reason}")))
    }

    fn reason(&self, cta: &Cta, group: &warp::Group) -> String {
        match &group.wait {
            None => "could run".to_string(),
            Some(Wait::Gather) => "waits for other lanes of its warp at this instruction".to_string(),
            Some(Wait::WarpBarrier(mask)) => format!("waits at bar.warp.sync for the lanes of {mask:#010x}"),
            Some(Wait::Barrier { id, .. }) => {
                let barrier = &cta.barriers[*id as usize];
                let expected = barrier.expected.map_or_else(|| "all".to_string(), |threads| threads.to_string());
                format!("waits at barrier {id}: {} of {expected} threads have arrived", barrier.arrived)
            }
            Some(Wait::Grid) => "waits for another grid".to_string(),
            Some(Wait::Registers(count)) => {
                format!("waits for {count} registers per thread: the CTA has {} to give", cta.free_registers)
            }
            Some(Wait::ClusterBarrier { .. }) => {
                format!("waits at the cluster barrier: {} warps have arrived", self.cluster_barrier.arrived)
            }
        }
    }

    /// An execution error at a site.
    pub fn error(&self, site: Site, message: &str) -> Error {
        let program = &self.launch.program;
        Error::Execution {
            kernel: program.name.clone(),
            block: self.launch.info.cta_index(self.number, site.cta),
            warp: site.warp,
            file: program.file.clone(),
            line: program.lines[site.pc as usize].ptx,
            message: format!("{message}: {}", program.lines[site.pc as usize].text),
        }
    }

    /// After the last thread: what is in flight still lands, so that memory is complete.
    fn finish(&mut self) -> Result<()> {
        while self.land_one()? {}
        Ok(())
    }
}
