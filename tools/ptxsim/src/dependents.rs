//! Two launches, the second of which may start before the first has ended (programmatic dependent launch), at the earliest moment
//! that is allowed: when every CTA of the first has executed `griddepcontrol.launch_dependents` or exited. What comes before the second
//! one's `griddepcontrol.wait` then runs at once, and the first goes on only after that.

use std::sync::{Mutex, MutexGuard};

use crate::checker::Findings;
use crate::checkers::dependents::{Recorder, Touched, compare};
use crate::counters::Counters;
use crate::error::Result;
use crate::exec::{Cluster, Hold, Kept, Status};
use crate::launch::{self, Ended, Geometry, Outcome};
use crate::memory::GlobalMemory;
use crate::options::Options;
use crate::program::Program;

/// One of the two.
pub struct Request<'a> {
    /// Kernel.
    pub program: &'a Program,
    /// Grid.
    pub geometry: &'a Geometry,
    /// Arguments as the kernel finds them.
    pub params: Vec<u8>,
}

/// Rounds of a cluster before the next one goes on.
const ROUNDS: u64 = 64;

/// The clusters of one grid, all of them resident.
struct Grid<'a> {
    running: Vec<Cluster<'a>>,
    ended: Vec<Ended>,
    counters: Counters,
}

impl<'a> Grid<'a> {
    fn new(launch: &'a launch::Launch<'a>, clusters: u32, hold: Hold) -> Grid<'a> {
        let start = |number| {
            let mut cluster =
                Cluster::new(launch, number, Kept::new(Counters::new(launch.program, launch.options.counters)));
            cluster.hold = hold;
            cluster
        };
        let counters = Counters::new(launch.program, launch.options.counters);
        Grid { running: (0..clusters).map(start).collect(), ended: Vec::new(), counters }
    }

    /// Runs all clusters until each has ended or waits for the other grid.
    fn run(&mut self) {
        let mut held = vec![false; self.running.len()];
        while held.contains(&false) {
            let mut index = 0;
            while index < self.running.len() {
                if held[index] {
                    index += 1;
                    continue;
                }
                let status = self.running[index].run(ROUNDS);
                match status {
                    Ok(Status::Paused) => index += 1,
                    Ok(Status::Held) => {
                        held[index] = true;
                        index += 1;
                    }
                    _ => {
                        held.remove(index);
                        let cluster = self.running.remove(index);
                        let mut part = Kept::default();
                        self.ended.push(launch::end(cluster, status, &mut part));
                        self.counters.merge(&part.counters);
                    }
                }
            }
        }
    }

    fn release(&mut self) {
        self.running.iter_mut().for_each(Cluster::release);
    }

    fn finish(mut self, launch: &launch::Launch, blocks_before: usize) -> Result<Outcome> {
        self.ended.sort_by_key(|end| end.number);
        launch::join(launch, self.ended, self.counters, blocks_before)
    }
}

/// Runs both; the outcome of the second has what it did too early among its findings.
///
/// # Errors
/// As [`launch::run`], for either of them.
pub fn run(first: Request, second: Request, memory: &GlobalMemory, options: &Options) -> Result<[Outcome; 2]> {
    // In turns on one thread: the moments at which the two grids meet are then the same in every run.
    let in_turns = |program: &Program| Program { cooperative: true, ..program.clone() };
    let programs = [in_turns(first.program), in_turns(second.program)];
    let (first_recorder, first_touched) = Recorder::new();
    let (second_recorder, second_touched) = Recorder::new();
    let (mut primary, clusters) = launch::prepare(&programs[0], memory, first.geometry, first.params, options, 0)?;
    let (mut dependent, followers) = launch::prepare(&programs[1], memory, second.geometry, second.params, options, 0)?;
    primary.kinds.push(Box::new(first_recorder));
    dependent.kinds.push(Box::new(second_recorder));
    let blocks_before = memory.heap.count();
    let mut one = Grid::new(&primary, clusters, Hold::AtTrigger);
    one.run();
    let mut two = Grid::new(&dependent, followers, Hold::AtWait);
    // A CTA that waits for one that is held back cannot come so far: then the second grid starts when the first has ended.
    if one.running.iter().all(Cluster::has_triggered) {
        two.run();
    }
    one.release();
    one.run();
    let first = one.finish(&primary, blocks_before)?;
    two.release();
    two.run();
    let mut second = two.finish(&dependent, memory.heap.count())?;
    let mut findings = Findings::default();
    let (first_touched, second_touched) = (lock(&first_touched), lock(&second_touched));
    compare((&primary.info, &first_touched), (&dependent.info, &second_touched), memory, &mut findings);
    second.findings.extend(findings.into_vec());
    Ok([first, second])
}

fn lock(touched: &Mutex<Touched>) -> MutexGuard<'_, Touched> {
    touched.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
