//! The seam between execution and checkers: a checker watches the events of one cluster and reports findings.
//!
//! A [`CheckerKind`] makes one [`Checker`] per cluster, so that clusters run on any thread; after the launch the kind gets
//! them back in the order of the clusters, which is where accesses of different clusters are compared. Findings of one
//! rule at one operation are one [`Finding`] with a count, so that the result is short and independent of threads.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::event::{Event, Interest, Reads, Site};
use crate::memory::GlobalMemory;

/// Where an operation comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Line of the PTX file, from 1.
    pub ptx: u32,
    /// File of the CUDA source, where the PTX was made with `-lineinfo`.
    pub cuda_file: Option<String>,
    /// Line of that file.
    pub cuda_line: Option<u32>,
    /// The instruction's text.
    pub text: String,
}

/// What is the same for every cluster of a launch.
#[derive(Clone, Debug)]
pub struct LaunchInfo {
    /// Entry that was launched.
    pub kernel: String,
    /// CTAs in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA in x, y, z.
    pub block: [u32; 3],
    /// CTAs of a cluster in x, y, z.
    pub cluster: [u32; 3],
    /// Static and dynamic shared memory of a CTA.
    pub shared_bytes: u32,
    /// Local memory of a thread.
    pub local_bytes: u32,
    /// Source line of every operation.
    pub lines: Arc<[Line]>,
    /// Seed of the run.
    pub seed: u64,
    /// What the kernel has.
    pub features: Features,
    /// Clusters take turns on one thread, in an order that no option of the host changes.
    pub in_turns: bool,
}

/// What a kernel has operations of, so that checkers of what it lacks need not listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Bulk and tensor copies, asynchronous stores, `wgmma`.
    pub async_proxy: bool,
    /// Operations on mbarriers.
    pub mbarriers: bool,
}

impl LaunchInfo {
    /// Threads of a CTA.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Warps of a CTA.
    pub fn warps(&self) -> u32 {
        self.threads().div_ceil(32)
    }

    /// CTAs of a cluster.
    pub fn cluster_ctas(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// Index of the CTA with this rank in that cluster.
    pub fn cta_index(&self, cluster: u32, rank: u32) -> [u32; 3] {
        let [cx, cy, cz] = self.cluster;
        let clusters = [self.grid[0] / cx, self.grid[1] / cy];
        let (x, y, z) =
            (cluster % clusters[0], cluster / clusters[0] % clusters[1], cluster / clusters[0] / clusters[1]);
        [x * cx + rank % cx, y * cy + rank / cx % cy, z * cz + rank / cx / cy]
    }

    /// Index in its CTA of a lane of a warp.
    pub fn thread_index(&self, warp: u32, lane: u32) -> [u32; 3] {
        let thread = warp * 32 + lane;
        let [x, y, _] = self.block;
        [thread % x, thread / x % y, thread / x / y]
    }
}

/// What a checker may look at while it handles an event.
pub struct Context<'a> {
    /// The launch.
    pub launch: &'a LaunchInfo,
    /// Number of the cluster in the launch.
    pub cluster: u32,
    /// Global memory, with its shadow of what was written.
    pub memory: &'a GlobalMemory,
}

impl Context<'_> {
    /// Source line of an operation.
    pub fn line(&self, pc: u32) -> &Line {
        &self.launch.lines[pc as usize]
    }
}

/// The other side of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// CTA index in the grid.
    pub block: [u32; 3],
    /// Thread index in the CTA, where one thread is meant.
    pub thread: Option<[u32; 3]>,
    /// Where.
    pub line: Line,
    /// What it did: "wrote 4 bytes", "tensor copy in flight", ...
    pub what: String,
}

/// A fault of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Checker, as in [`crate::options::Checks`].
    pub checker: &'static str,
    /// Rule of that checker, in snake case.
    pub rule: &'static str,
    /// Kernel.
    pub kernel: String,
    /// CTA index in the grid of the first case.
    pub block: [u32; 3],
    /// Thread index in the CTA of the first case, where one thread is meant.
    pub thread: Option<[u32; 3]>,
    /// Where.
    pub line: Line,
    /// Address of the first case, as the program sees it.
    pub address: Option<u64>,
    /// One sentence on the first case.
    pub message: String,
    /// The other party of the first case.
    pub other: Option<Party>,
    /// Cases of this rule at this operation (and the other party's).
    pub count: u64,
}

/// One case, as a checker reports it.
pub struct Case {
    /// Who and where.
    pub site: Site,
    /// The lane that is at fault, where one is.
    pub lane: Option<u32>,
    /// Address as the program sees it.
    pub address: Option<u64>,
    /// One sentence.
    pub message: String,
    /// The other side: its site, its lane, what it did.
    pub other: Option<(Site, Option<u32>, String)>,
}

/// Findings of one cluster, or of the merge after the launch. One entry per (checker, rule, operation, other operation).
#[derive(Default)]
pub struct Findings {
    by_key: BTreeMap<(&'static str, &'static str, u32, Option<u32>), Finding>,
}

impl Findings {
    /// Counts `count` cases of `rule` at operation `pc` (against operation `other` of another party); `case` is asked only
    /// for the first of them.
    pub fn report(
        &mut self,
        context: &Context,
        checker: &'static str,
        rule: &'static str,
        (pc, other): (u32, Option<u32>),
        count: u64,
        case: impl FnOnce() -> Case,
    ) {
        if let Some(finding) = self.by_key.get_mut(&(checker, rule, pc, other)) {
            finding.count += count;
            return;
        }
        let Case { site, lane, address, message, other: party } = case();
        let launch = context.launch;
        let finding = Finding {
            checker,
            rule,
            kernel: launch.kernel.clone(),
            block: launch.cta_index(context.cluster, site.cta),
            thread: lane.map(|lane| launch.thread_index(site.warp, lane)),
            line: context.line(pc).clone(),
            address,
            message,
            other: party.map(|(site, lane, what)| Party {
                block: launch.cta_index(context.cluster, site.cta),
                thread: lane.map(|lane| launch.thread_index(site.warp, lane)),
                line: context.line(site.pc).clone(),
                what,
            }),
            count,
        };
        self.by_key.insert((checker, rule, pc, other), finding);
    }

    /// Adds the findings of a later cluster: counts add up, the first case stays.
    pub fn merge(&mut self, later: Findings) {
        for (key, finding) in later.by_key {
            match self.by_key.entry(key) {
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().count += finding.count,
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(finding);
                }
            }
        }
    }

    /// All findings, by checker, rule and place.
    pub fn into_vec(self) -> Vec<Finding> {
        self.by_key.into_values().collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// Watches one cluster.
pub trait Checker: Send {
    /// Kinds of events that it wants.
    fn interests(&self) -> Interest;

    /// Handles one event.
    fn event(&mut self, context: &Context, event: &Event, findings: &mut Findings);

    /// Handles several reads at once, each of which is an event of its own if the checker does not know better.
    fn reads(&mut self, context: &Context, reads: &Reads, findings: &mut Findings) {
        reads.accesses().for_each(|access| self.event(context, &Event::Access(&access), findings));
    }

    /// The cluster has ended: all its threads exited, or it is stuck.
    fn finish(&mut self, _context: &Context, _findings: &mut Findings) {}

    /// What the kind needs of this cluster to compare clusters with each other.
    fn into_residue(self: Box<Self>) -> Option<Box<dyn Any + Send>> {
        None
    }
}

/// Makes the checkers of a launch, and compares clusters after it.
pub trait CheckerKind: Send + Sync {
    /// A checker for one cluster.
    fn start(&self, context: &Context) -> Box<dyn Checker>;

    /// Called once after the launch with every cluster's residue, in the order of the clusters.
    fn merge(&self, _context: &Context, _residues: Vec<(u32, Box<dyn Any + Send>)>, _findings: &mut Findings) {}
}
