//! What execution tells its checkers: one event per warp-level access, synchronisation, asynchronous step or exit.
//!
//! Events of one cluster come in the order in which the simulator executed them, which is one legal order of the
//! program. An event is built only when some checker asked for its kind ([`Interest`]).

use crate::address::Space;
use crate::exec::access::Kind;
use crate::exec::pattern::Pattern;

/// Where and by whom: the common part of every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Index of the operation in the kernel; [`crate::checker::Context::line`] turns it into source lines.
    pub pc: u32,
    /// Rank of the CTA in its cluster.
    pub cta: u32,
    /// Warp in its CTA.
    pub warp: u32,
    /// Lanes that execute the instruction.
    pub mask: u32,
    /// Lanes of the warp that have not exited.
    pub live: u32,
}

/// Number of an asynchronous operation, unique in its cluster, in order of issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AsyncId(pub u64);

/// Who performs an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// The threads of the event's site themselves.
    Threads,
    /// An asynchronous operation that they issued.
    Async(AsyncId),
}

/// What an access does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic operation or reduction: read and write in one step.
    Atomic,
}

/// Proxy through which memory is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proxy {
    /// Ordinary loads and stores, `cp.async`, `ldmatrix`.
    Generic,
    /// Bulk and tensor copies, `wgmma` operands in shared memory.
    Async,
    /// Tensor maps.
    TensorMap,
}

/// Memory order of an access or fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Semantics {
    /// No order (also `.nc`).
    #[default]
    Weak,
    /// `.volatile`: relaxed at system scope.
    Volatile,
    /// `.relaxed`.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel`.
    AcqRel,
    /// `.sc`, and `membar`.
    SeqCst,
}

/// Scope of a synchronising access or fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The CTA.
    Cta,
    /// The cluster.
    Cluster,
    /// The device.
    #[default]
    Gpu,
    /// Everything.
    System,
}

/// One warp's access: up to 32 addresses at once. A lane's bytes are `address .. address + bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Lanes with a part in it: `site.mask`. For asynchronous work, the lanes (rows) that are used.
    pub site: Site,
    /// Threads or an asynchronous operation.
    pub agent: Agent,
    /// Resolved state space; one instruction with generic addresses gives an event per space.
    pub space: Space,
    /// Read, write or atomic.
    pub kind: AccessKind,
    /// Generic or async proxy.
    pub proxy: Proxy,
    /// Order.
    pub semantics: Semantics,
    /// Scope, for anything but weak accesses.
    pub scope: Scope,
    /// Bytes per lane, all elements of a vector together.
    pub bytes: u32,
    /// Where the lanes lie inside `space` (shared: `rank << 24 | offset`; local: the thread's own offset).
    pub places: Places<'a>,
    /// Lanes whose address lies outside what they may touch; the access did not happen for them.
    pub outside: u32,
    /// Lanes whose address is no multiple of the access size; the access did not happen for them.
    pub misaligned: u32,
}

impl Access<'_> {
    /// The lanes that did what they wanted.
    pub fn lanes(&self) -> u32 {
        self.site.mask & !(self.outside | self.misaligned)
    }
}

/// Where the lanes of an access lie. An instruction reaches the same pattern of places again and again, moved as a whole:
/// so all are given by their distance from one origin.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// What is added to each distance.
    pub origin: u64,
    /// Per lane.
    pub distances: &'a [u64; 32],
    /// The lanes that are fine, joined where neighbours lie side by side or at one place; in the order of the lanes. Their
    /// addresses are distances, too.
    pub runs: &'a [Run],
}

impl<'a> Places<'a> {
    /// Address of a lane.
    #[inline(always)]
    pub fn address(&self, lane: usize) -> u64 {
        self.origin.wrapping_add(self.distances[lane])
    }

    /// Addresses of all lanes.
    pub fn addresses(&self) -> [u64; 32] {
        self.distances.map(|distance| self.origin.wrapping_add(distance))
    }

    /// The runs, at their addresses.
    #[inline(always)]
    pub fn runs(&self) -> impl Iterator<Item = Run> + Clone + use<'a> {
        let origin = self.origin;
        self.runs.iter().map(move |run| Run { address: origin.wrapping_add(run.address), ..*run })
    }
}

/// Consecutive lanes that touch consecutive bytes, or all the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub address: u64,
    /// All bytes.
    pub bytes: u32,
    /// First lane.
    pub lane: u8,
    /// Lanes; each has its share of the bytes, or all of them when `bytes` is the size of one lane's access.
    pub lanes: u8,
}

impl Run {
    /// Appends the runs of some lanes. `dense` and `same` have a bit for each lane whose right neighbour comes directly
    /// after it, or shares its place.
    pub fn append(runs: &mut Vec<Run>, addresses: &[u64; 32], lanes: u32, bytes: u32, (dense, same): (u32, u32)) {
        // A lane joins its right neighbour only when both take part.
        let pairs = lanes & lanes >> 1;
        let (dense, same) = (dense & pairs, same & pairs);
        let mut rest = lanes;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            let (side, shared) = ((dense >> lane).trailing_ones(), (same >> lane).trailing_ones());
            let count = if side > 0 { side } else { shared } + 1;
            let run = Run {
                address: addresses[lane as usize],
                bytes: if side > 0 { bytes * count } else { bytes },
                lane: lane as u8,
                lanes: count as u8,
            };
            runs.push(run);
            rest &= if lane + count >= 32 { 0 } else { u32::MAX << (lane + count) };
        }
    }

    /// The lane that touches the byte at this distance from the start; `None` when several do.
    pub fn lane_at(&self, distance: u32, bytes: u32) -> Option<u8> {
        match (self.lanes, self.bytes) {
            (1, _) => Some(self.lane),
            (_, all) if all == bytes => None,
            _ => Some(self.lane + (distance / bytes) as u8),
        }
    }
}

/// Plain reads of shared memory by all lanes of a warp, of its own CTA's, one after the other with nothing between them that
/// a checker is told of.
#[derive(Clone, Copy)]
pub struct Reads<'a> {
    /// Who; the operation is that of each read.
    pub site: Site,
    pub(crate) list: &'a [Read],
    pub(crate) patterns: &'a [Option<Box<Pattern>>],
}

/// One of [`Reads`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// Operation.
    pub pc: u32,
    /// Address of the first lane.
    pub first: u32,
    /// Index of the pattern of its addresses.
    pub pattern: u32,
}

impl<'a> Reads<'a> {
    /// How many.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Each of them.
    #[inline(always)]
    pub fn accesses(&self) -> impl Iterator<Item = Access<'a>> {
        let (site, patterns) = (self.site, self.patterns);
        self.list.iter().filter_map(move |read| {
            let pattern = patterns[read.pattern as usize].as_deref()?;
            let site = Site { pc: read.pc, ..site };
            let kind = Kind::plain(AccessKind::Read, pattern.bytes());
            Some(kind.access(site, Space::Shared, pattern.places(u64::from(read.first))))
        })
    }
}

/// A named barrier of a CTA or the barrier of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarrierId {
    /// `bar`/`barrier` number 0..15 of the site's CTA.
    Named(u8),
    /// `barrier.cluster`.
    Cluster,
}

/// A part of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceKind {
    /// `fence` and `membar`.
    Memory,
    /// `fence.proxy.async`, with the space it names (none = all).
    ProxyAsync(Option<Space>),
    /// `fence.mbarrier_init`.
    MbarrierInit,
    /// `fence.proxy.alias`, `fence.proxy.tensormap`.
    ProxyOther,
}

/// What happened to an mbarrier object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MbarrierStep {
    /// `mbarrier.init` with this expected count.
    Init(u32),
    /// `mbarrier.inval`.
    Invalidate,
    /// Arrivals by threads; `count` together.
    Arrive {
        /// Arrivals.
        count: u32,
        /// `arrive_drop`.
        drop: bool,
    },
    /// Bytes added to the transaction count.
    ExpectTx(u32),
    /// Bytes completed.
    CompleteTx(u32),
    /// A wait or test that returned true.
    WaitDone,
    /// A test that returned false.
    WaitFalse,
}

/// State of an mbarrier object after the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MbarrierState {
    /// Phases completed since init.
    pub phase: u64,
    /// Arrivals expected per phase.
    pub expected: u32,
    /// Arrivals still missing in this phase.
    pub pending: u32,
    /// Bytes still missing in this phase; negative when they came before they were expected.
    pub tx: i64,
}

/// An operation on an mbarrier.
#[derive(Clone, Copy, Debug)]
pub struct MbarrierEvent {
    /// Who.
    pub site: Site,
    /// Threads, or the asynchronous operation that signals.
    pub agent: Agent,
    /// Shared address of the object (`rank << 24 | offset`).
    pub address: u64,
    /// What.
    pub step: MbarrierStep,
    /// Phase (counted from init) that the step concerns: the one arrived at, or the one waited for.
    pub phase: u64,
    /// State before, or `None` if no live object is there.
    pub before: Option<MbarrierState>,
    /// State after, or `None` if the step was refused.
    pub after: Option<MbarrierState>,
    /// Order and scope of the arrive or wait.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
}

/// Families of asynchronous work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncKind {
    /// `cp.async`.
    CpAsync,
    /// `cp.async.bulk` and `cp.async.bulk.tensor` into shared memory.
    BulkLoad,
    /// The same out of shared memory.
    BulkStore,
    /// `cp.reduce.async.bulk`, element by element a relaxed reduction.
    BulkReduce,
    /// `wgmma.mma_async`.
    Wgmma,
}

/// How an asynchronous operation is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncWait {
    /// Landed: its reads and writes happen now. The [`Access`] events of the operation follow.
    Landed,
    /// The issuing threads waited for it (`wait_group`, `wait_all`): its effects are visible to them.
    Waited,
    /// `cp.async.bulk.wait_group.read`: only its source may be reused.
    SourceRead,
    /// An mbarrier was told.
    Signalled,
}

/// Kind of a point that synchronises lanes of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WarpSync {
    /// `shfl.sync`, `vote.sync`, `match.sync`, `redux.sync`, `elect.sync`.
    Collective,
    /// `bar.warp.sync`.
    Barrier,
    /// `ldmatrix`, `mma.sync` and the other `.sync.aligned` instructions.
    Matrix,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Memory was reached.
    Access(&'a Access<'a>),
    /// A warp arrived at a barrier (`waits`: and waits there). `generation` counts the barrier's uses.
    BarrierArrive {
        /// Who.
        site: Site,
        /// Which barrier.
        barrier: BarrierId,
        /// Use of the barrier, from 0.
        generation: u64,
        /// `sync`/`red` (true) or `arrive` (false).
        waits: bool,
        /// Threads that the instruction says take part (all of the CTA if it does not say).
        threads: u32,
        /// The instruction is `.aligned`.
        aligned: bool,
        /// The instruction is a `red`.
        reduction: bool,
        /// Order: `barrier.cluster.arrive.relaxed` is `Relaxed`, everything else `Release`.
        semantics: Semantics,
    },
    /// A warp that waited at a barrier goes on.
    BarrierPass {
        /// Who.
        site: Site,
        /// Which barrier.
        barrier: BarrierId,
        /// Use of the barrier, from 0.
        generation: u64,
    },
    /// A fence.
    Fence {
        /// Who.
        site: Site,
        /// What is ordered.
        kind: FenceKind,
        /// How strongly.
        semantics: Semantics,
        /// How far.
        scope: Scope,
    },
    /// Lanes of one warp synchronised; `membermask` names them (those that exited are not in `site.live`).
    WarpSync {
        /// Who.
        site: Site,
        /// By which family.
        kind: WarpSync,
        /// The lanes named by the instruction.
        membermask: u32,
        /// Lanes that read a value of a lane that does not take part.
        reads_absent: u32,
    },
    /// An mbarrier changed or was asked.
    Mbarrier(&'a MbarrierEvent),
    /// An asynchronous operation was issued. Its accesses are told when it lands.
    AsyncIssue {
        /// Who.
        site: Site,
        /// Its number.
        id: AsyncId,
        /// Its family.
        kind: AsyncKind,
        /// Bytes that it will read: (space, address, bytes) rows in shared or global memory.
        reads: &'a [AsyncRange],
        /// Bytes that it will write.
        writes: &'a [AsyncRange],
    },
    /// The threads of `site` closed a group (`commit_group`) of this family.
    AsyncCommit {
        /// Who.
        site: Site,
        /// Family.
        kind: AsyncKind,
    },
    /// An operation landed, or somebody learnt that it had.
    AsyncStep {
        /// Who waited; for `Landed`, who issued.
        site: Site,
        /// Which operation.
        id: AsyncId,
        /// Its family.
        kind: AsyncKind,
        /// What.
        step: AsyncWait,
    },
    /// A warp issued its part of a `wgmma`, with these operands.
    WgmmaOperands(Site, WgmmaOperands),
    /// The grid before this one has ended, and is visible.
    GridReleased,
    /// `wgmma.fence`.
    WgmmaFence(Site),
    /// A warp reads and writes these registers while its warpgroup has `wgmma` in flight, or between them.
    Registers {
        /// Who.
        site: Site,
        /// Slots of 32-bit registers read.
        reads: &'a [u16],
        /// Slots of 32-bit registers written.
        writes: &'a [u16],
        /// The instruction is a `wgmma.mma_async` with this number (its accumulators are in both lists).
        wgmma: Option<AsyncId>,
        /// Accumulator shape of that `wgmma` (N).
        shape: u32,
    },
    /// An `.aligned` instruction was reached by only a part of the live lanes.
    PartialWarp(Site),
    /// Lanes exited.
    Exit(Site),
    /// All threads of a CTA (rank in the cluster) have exited.
    CtaExit(u32),
    /// Nothing can run and nothing is in flight, or the limit of instructions is reached: every group that waits.
    Deadlock(&'a [Waiting]),
}

/// Operands of a `wgmma` that its four warps must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgmmaOperands {
    /// Descriptor of A, unless it lies in registers.
    pub a: Option<u64>,
    /// Descriptor of B.
    pub b: u64,
    /// Adds to D.
    pub accumulate: bool,
}

/// Bytes that an asynchronous operation will touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncRange {
    /// Shared or global.
    pub space: Space,
    /// First byte.
    pub address: u64,
    /// Length.
    pub bytes: u32,
}

/// A group of lanes that cannot go on.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Who and where.
    pub site: Site,
    /// For what, as a sentence: barrier number and arrivals, mbarrier address with phase, pending and tx, ...
    pub reason: String,
}

/// A set of event kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest(pub u32);

impl Interest {
    /// Nothing.
    pub const NONE: Interest = Interest(0);
    /// [`Event::Access`] that reads shared memory.
    pub const SHARED_READ: Interest = Interest(1);
    /// [`Event::Access`] that writes shared memory.
    pub const SHARED_WRITE: Interest = Interest(1 << 11);
    /// [`Event::Access`] in shared memory.
    pub const SHARED: Interest = Interest::SHARED_READ.and(Interest::SHARED_WRITE);
    /// [`Event::Access`] in global, constant and parameter memory.
    pub const GLOBAL: Interest = Interest(1 << 1);
    /// [`Event::Access`] in local memory.
    pub const LOCAL: Interest = Interest(1 << 2);
    /// [`Event::Access`] with lanes outside or misaligned, in any space (told even without the three above).
    pub const BAD_ACCESS: Interest = Interest(1 << 3);
    /// [`Event::BarrierArrive`], [`Event::BarrierPass`].
    pub const BARRIER: Interest = Interest(1 << 4);
    /// [`Event::Fence`].
    pub const FENCE: Interest = Interest(1 << 5);
    /// [`Event::WarpSync`].
    pub const WARP_SYNC: Interest = Interest(1 << 6);
    /// [`Event::Mbarrier`].
    pub const MBARRIER: Interest = Interest(1 << 7);
    /// [`Event::AsyncIssue`], [`Event::AsyncCommit`], [`Event::AsyncStep`].
    pub const ASYNC: Interest = Interest(1 << 8);
    /// [`Event::WgmmaFence`], [`Event::WgmmaOperands`], [`Event::Registers`].
    pub const REGISTERS: Interest = Interest(1 << 9);
    /// [`Event::PartialWarp`], [`Event::Exit`], [`Event::CtaExit`], [`Event::Deadlock`].
    pub const CONTROL: Interest = Interest(1 << 10);

    /// Both sets together.
    pub const fn and(self, other: Interest) -> Interest {
        Interest(self.0 | other.0)
    }

    /// Of an access without faults.
    pub fn of(space: Space, kind: AccessKind) -> Interest {
        match (space, kind) {
            (Space::Shared, AccessKind::Read) => Interest::SHARED_READ,
            (Space::Shared, AccessKind::Write) => Interest::SHARED_WRITE,
            (Space::Shared, AccessKind::Atomic) => Interest::SHARED,
            (Space::Local, _) => Interest::LOCAL,
            (Space::Global | Space::Const | Space::Param, _) => Interest::GLOBAL,
        }
    }

    /// Whether the sets meet.
    pub const fn has(self, other: Interest) -> bool {
        self.0 & other.0 != 0
    }
}

impl Event<'_> {
    /// The kind of this event.
    pub fn interest(&self) -> Interest {
        match self {
            Event::Access(access) => {
                let space = Interest::of(access.space, access.kind);
                if access.outside | access.misaligned != 0 { space.and(Interest::BAD_ACCESS) } else { space }
            }
            Event::BarrierArrive { .. } | Event::BarrierPass { .. } => Interest::BARRIER,
            Event::Fence { .. } => Interest::FENCE,
            Event::WarpSync { .. } => Interest::WARP_SYNC,
            Event::Mbarrier(_) => Interest::MBARRIER,
            Event::AsyncIssue { .. } | Event::AsyncCommit { .. } | Event::AsyncStep { .. } => Interest::ASYNC,
            Event::WgmmaFence(_) | Event::Registers { .. } | Event::WgmmaOperands(..) => Interest::REGISTERS,
            Event::PartialWarp(_) | Event::Exit(_) | Event::CtaExit(_) | Event::Deadlock(_) => Interest::CONTROL,
            Event::GridReleased => Interest::CONTROL,
        }
    }
}
