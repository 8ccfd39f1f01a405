//! Decoded operations: what the executor runs. Operands are register slots; constants are rows of a table.

use super::hopper_op::{BulkCopy, MapCopy, MapReplace, Mbarrier, StoreAsync};
use super::matrix_op::{Mma, SparseMma, TileMma, TileMove, Wgmma, WmmaMove};
use crate::address::Space;
use crate::event::{FenceKind, Scope, Semantics};
use crate::front::ast::Type;
use crate::scalar::convert::Convert;
use crate::scalar::lanes::{
    Compare32, Compare64, D1, D2, D3, F1, F2, F3, Narrow1, Rare, Shift64, Widen1, Widen2, Widen3,
};
use crate::scalar::video::Video;
use crate::units::approx::Approximate;

pub use super::operand::*;

/// Operation of an atomic or reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Min,
    Max,
    Inc,
    Dec,
    Exchange,
    CompareSwap,
}

/// `atom` and `red`.
#[derive(Clone, Debug, PartialEq)]
pub struct Atomic {
    /// Space.
    pub space: MemorySpace,
    /// Address.
    pub address: Address,
    /// What is done.
    pub op: AtomicOp,
    /// On what.
    pub ty: Type,
    /// Old values, one per element of a vector form.
    pub old: Vec<AnyDst>,
    /// First operand, one per element.
    pub operand: Vec<AnySrc>,
    /// New value of `cas`.
    pub swap: Option<AnySrc>,
    /// Order.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
    /// The old value is used.
    pub result_used: bool,
}

/// Special registers of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    /// Instructions executed by the warp.
    Clock,
    ClockHigh,
    DynamicSharedBytes,
    TotalSharedBytes,
    AggregateSharedBytes,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    IsExplicitCluster,
    GlobaltimerLow,
    GlobaltimerHigh,
    /// Counters, environment and graph handles that nobody has set.
    Zero,
    /// Address of the workspace of a cooperative launch.
    WorkspaceLow,
    WorkspaceHigh,
}

/// Operations on predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PredOp {
    Mov,
    Not,
    And,
    Or,
    Xor,
}

/// How `setp` and `set` join their comparison with a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combine {
    /// `and`, `or` or `xor`.
    pub op: PredOp,
    /// The predicate.
    pub with: PredSrc,
}

/// Sources of a comparison and its function.
#[derive(Clone, Copy, Debug)]
pub enum Comparison {
    /// 32-bit class.
    Narrow(Compare32, Src, Src),
    /// 64-bit class.
    Wide(Compare64, Src64, Src64),
    /// Lower and upper halves of pairs.
    Pair(Compare32, Compare32, Src, Src),
}

/// `setp`.
#[derive(Clone, Copy, Debug)]
pub struct SetPredicate {
    /// Comparison.
    pub comparison: Comparison,
    /// First destination.
    pub p: u16,
    /// Second: the opposite (pairs: the upper half).
    pub q: u16,
    /// Joined predicate.
    pub combine: Option<Combine>,
}

/// `set`.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    /// Comparison.
    pub comparison: Comparison,
    /// Destination.
    pub d: Dst,
    /// Value where it holds: ones, or 1.0 of the type.
    pub yes: u32,
    /// Joined predicate.
    pub combine: Option<Combine>,
}

/// `shfl.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `vote.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `redux.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReduxOp {
    Add,
    MinS,
    MaxS,
    MinU,
    MaxU,
    And,
    Or,
    Xor,
}

/// Instructions in which lanes of a warp exchange values: all lanes of a member mask execute them together.
#[derive(Clone, Debug, PartialEq)]
pub enum Collective {
    /// `shfl.sync`.
    Shuffle {
        /// Direction.
        mode: ShuffleMode,
        /// Result.
        d: Dst,
        /// In range.
        p: u16,
        /// Value.
        a: Src,
        /// Lane or distance.
        b: Src,
        /// Clamp and segment mask.
        c: Src,
    },
    /// `vote.sync`: predicate result, or ballot.
    Vote {
        /// Kind.
        mode: VoteMode,
        /// Predicate result.
        p: u16,
        /// Ballot result.
        d: Dst,
        /// Predicate read.
        a: PredSrc,
    },
    /// `match.sync`: `all` (with predicate) or `any`.
    Match {
        /// All lanes must agree.
        all: bool,
        /// Mask.
        d: Dst,
        /// They do.
        p: u16,
        /// Value.
        a: AnySrc,
    },
    /// `redux.sync`.
    Redux {
        /// Operation.
        op: ReduxOp,
        /// Result.
        d: Dst,
        /// Value.
        a: Src,
    },
    /// `elect.sync`.
    Elect {
        /// Leader's lane.
        d: Dst,
        /// This lane leads.
        p: u16,
    },
}

/// `bar`, `barrier`.
#[derive(Clone, Debug, PartialEq)]
pub struct Barrier {
    /// Number.
    pub id: Src,
    /// Threads, or the whole CTA.
    pub threads: Option<Src>,
    /// Does it wait.
    pub waits: bool,
    /// Is it `.aligned` (`bar` always is).
    pub aligned: bool,
    /// Reduction.
    pub reduction: Option<BarrierReduction>,
}

/// `bar.red`.
#[derive(Clone, Debug, PartialEq)]
pub enum BarrierReduction {
    /// Counts lanes for which the predicate holds.
    Popc(Dst, PredSrc),
    /// Holds for all.
    And(u16, PredSrc),
    /// Holds for any.
    Or(u16, PredSrc),
}

/// `ldmatrix`, `stmatrix`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixMove {
    /// Address of a row, per lane.
    pub address: Address,
    /// Named or generic.
    pub space: MemorySpace,
    /// A register per matrix.
    pub registers: Vec<u16>,
    /// Transposed.
    pub transposed: bool,
    /// Store, else load.
    pub store: bool,
}

/// `cp.async`.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyAsync {
    /// Shared destination.
    pub to: Address,
    /// Whether `to` is a generic or shared address.
    pub to_space: MemorySpace,
    /// Global source.
    pub from: Address,
    /// 4, 8 or 16.
    pub bytes: u32,
    /// Bytes that are read; zeros after them.
    pub source_bytes: Option<Src>,
    /// Reads nothing where it holds.
    pub ignore: Option<PredSrc>,
}

/// Any function of up to four sources.
#[derive(Clone, Debug)]
pub struct RareOp {
    /// The function of a lane.
    pub f: Rare,
    /// Result.
    pub d: AnyDst,
    /// Sources.
    pub sources: Vec<AnySrc>,
}

/// Extended-precision addition: `.cc`.
#[derive(Clone, Debug, PartialEq)]
pub struct Carry {
    /// What.
    pub op: CarryOp,
    /// 64-bit form.
    pub wide: bool,
    /// Reads the carry.
    pub carry_in: bool,
    /// Writes the carry.
    pub carry_out: bool,
    /// Result.
    pub d: AnyDst,
    /// Sources.
    pub sources: Vec<AnySrc>,
}

/// Operation of a [`Carry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CarryOp {
    Add,
    Sub,
    MadLow { signed: bool },
    MadHigh { signed: bool },
}

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What is called.
    pub target: CallTarget,
    /// (offset in the caller's frame, offset in the callee's, bytes) of arguments.
    pub arguments: Vec<(u32, u32, u32)>,
    /// The same of results.
    pub results: Vec<(u32, u32, u32)>,
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallTarget {
    /// Function of the program, by index.
    Function(u16),
    /// Prints.
    Vprintf,
    /// `__assertfail`: prints and traps.
    AssertFail,
    /// `malloc`.
    Malloc,
    /// `free`.
    Free,
    /// The function whose address a register holds; offsets in it are not known here.
    Indirect(Src64),
}

/// One operation without its guard.
#[derive(Clone, Debug)]
pub enum Op {
    /// Nothing: hints (`prefetch`, `discard`).
    Nop,
    /// 32-bit, one source.
    A1(F1, Dst, Src),
    /// 32-bit, two sources.
    A2(F2, Dst, Src, Src),
    /// 32-bit, three sources.
    A3(F3, Dst, Src, Src, Src),
    /// `fma.rn.f32`, most of a matrix product: no jump to a function.
    Fma(Dst, Src, Src, Src),
    /// 64-bit, one source.
    D1(D1, Dst, Src64),
    /// 64-bit, two sources.
    D2(D2, Dst, Src64, Src64),
    /// 64-bit, three sources.
    D3(D3, Dst, Src64, Src64, Src64),
    /// Shift of a 64-bit value.
    Shift64(Shift64, Dst, Src64, Src),
    /// 32 to 64 bits.
    Widen1(Widen1, Dst, Src),
    /// Two 32-bit sources to 64.
    Widen2(Widen2, Dst, Src, Src),
    /// Two 32-bit and a 64-bit source to 64.
    Widen3(Widen3, Dst, Src, Src, Src64),
    /// 64 to 32 bits.
    Narrow1(Narrow1, Dst, Src64),
    /// Any rare arithmetic.
    Rare(Box<RareOp>),
    /// SIMD video instruction: result, sources.
    Video(Video, Dst, [Src; 3]),
    /// Addition with carry.
    Carry(Box<Carry>),
    /// Approximate function: result, sources, `.ftz`.
    Approximate(Approximate, Dst, Src, Src, bool),
    /// Conversion; last: the destination holds 16 bits.
    Convert(Convert, AnyDst, AnySrc, bool),
    /// `setp`.
    SetPredicate(Box<SetPredicate>),
    /// `set`.
    Set(Box<Set>),
    /// `selp` of 32 bits.
    Select32(Dst, Src, Src, PredSrc),
    /// `selp` of 64 bits.
    Select64(Dst, Src64, Src64, PredSrc),
    /// Logic of predicates.
    Predicate(PredOp, u16, PredSrc, PredSrc),
    /// `mov` of several registers to a wider one; last: bits of each.
    Pack(AnyDst, Vec<AnySrc>, u32),
    /// The opposite.
    Unpack(Vec<AnyDst>, AnySrc, u32),
    /// `mov.b128`: both halves.
    MovePair([AnyDst; 2], [AnySrc; 2]),
    /// Special register of 32 bits.
    Special(Special, Dst),
    /// Special register that is a predicate: `%is_explicit_cluster`.
    SpecialPredicate(Special, u16),
    /// Special register of 64 bits, or a 32-bit one into a 64-bit register.
    Special64(Special, Dst),
    /// Address of a variable of the CTA or the frame.
    AddressOf(AnyDst, Address),
    /// `cvta` to generic.
    ToGeneric(Space, AnyDst, AnySrc),
    /// `cvta.to`.
    FromGeneric(Space, AnyDst, AnySrc),
    /// `isspacep`.
    IsSpace(Space, u16, AnySrc),
    /// `ld`.
    Load(Box<Memory>),
    /// `st`.
    Store(Box<Memory>),
    /// `atom`, `red`.
    Atomic(Box<Atomic>),
    /// `atom` of 128 bits.
    Atomic128(Box<Atomic128>),
    /// `ldmatrix`, `stmatrix`.
    Matrix(Box<MatrixMove>),
    /// `movmatrix.trans`.
    MoveMatrix(Dst, Src),
    /// `shfl` and its like; second: member mask (`None`: the executing lanes, `activemask` needs none).
    Collective(Box<Collective>, Src),
    /// `activemask`.
    ActiveMask(Dst),
    /// `bar.warp.sync`.
    WarpBarrier(Src),
    /// `bar`, `barrier`.
    Barrier(Box<Barrier>),
    /// `barrier.cluster.arrive`: order, aligned.
    ClusterArrive(Semantics, bool),
    /// `barrier.cluster.wait`: aligned.
    ClusterWait(bool),
    /// `fence`, `membar`.
    Fence(FenceKind, Semantics, Scope),
    /// `cp.async`.
    CopyAsync(Box<CopyAsync>),
    /// `cp.async.commit_group`.
    CopyCommit,
    /// `cp.async.wait_group`; `None` is `wait_all`.
    CopyWait(Option<u32>),
    /// `bra`, to a pc.
    Branch(u32),
    /// `brx.idx`: index and targets.
    BranchIndexed(Src, Box<[u32]>),
    /// `call`.
    Call(Box<Call>),
    /// `alloca`: local address, size, alignment.
    Alloca(AnyDst, AnySrc, u32),
    /// `stacksave`.
    StackSave(AnyDst),
    /// `stackrestore`.
    StackRestore(AnySrc),
    /// `ret`.
    Return,
    /// `exit`.
    Exit,
    /// `trap`.
    Trap,
    /// `brkpt`.
    Breakpoint,
    /// `nanosleep`.
    Nanosleep,
    /// `mapa`: result, address, rank, generic form.
    Mapa(AnyDst, AnySrc, Src, bool),
    /// `getctarank`: result, address, generic form.
    GetCtaRank(Dst, AnySrc, bool),
    /// `mma.sync`, `wmma.mma`.
    Mma(Box<Mma>),
    /// `wmma.load`, `wmma.store`.
    WmmaMove(Box<WmmaMove>),
    /// `mma.sp`.
    SparseMma(Box<SparseMma>),
    /// `mma.sync`, `wmma.mma` of integers, bits, f64, 8-bit floats.
    TileMma(Box<TileMma>),
    /// `wmma.load`, `wmma.store` of them.
    TileMove(Box<TileMove>),
    /// `wgmma.mma_async`.
    Wgmma(Box<Wgmma>),
    /// `wgmma.fence`.
    WgmmaFence,
    /// `wgmma.commit_group`.
    WgmmaCommit,
    /// `wgmma.wait_group`: groups that may still be pending.
    WgmmaWait(u32),
    /// `mbarrier.*` on an object.
    Mbarrier(Box<Mbarrier>),
    /// `mbarrier.pending_count` of a token.
    MbarrierPending(Dst, Src64),
    /// `cp.async.mbarrier.arrive`; `counted` (`.noinc`): the arrival is among those that the object expects.
    CopyArrive {
        /// Named or generic.
        space: MemorySpace,
        /// The object.
        address: Address,
        /// `.noinc`.
        counted: bool,
    },
    /// Bulk and tensor copies.
    Bulk(Box<BulkCopy>),
    /// `st.async`, `red.async`.
    StoreAsync(Box<StoreAsync>),
    /// `tensormap.replace`.
    MapReplace(Box<MapReplace>),
    /// `tensormap.cp_fenceproxy`.
    MapCopy(Box<MapCopy>),
    /// `cp.async.bulk.commit_group`.
    BulkCommit,
    /// `cp.async.bulk.wait_group`.
    BulkWait {
        /// Groups that may still be pending.
        newest: u32,
        /// Only the sources must have been read.
        read: bool,
    },
    /// `setmaxnreg`.
    SetMaxRegisters {
        /// Registers per thread.
        count: u32,
        /// `inc`, else `dec`.
        more: bool,
    },
    /// `griddepcontrol`.
    GridDependency {
        /// `wait`, else `launch_dependents`.
        waits: bool,
    },
}

/// An operation with its guard.
#[derive(Clone, Debug)]
pub struct Instr {
    /// Predicate slot, or [`NONE`].
    pub guard: u16,
    /// Runs where the predicate does not hold.
    pub negated: bool,
    /// The lanes that skip it and those that do not must part before it: it may block or moves the program counter.
    pub gathers: bool,
    /// Straight-line code: touches nothing but registers.
    pub straight: bool,
    /// What.
    pub op: Op,
}

/// Classes of the instruction mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Class {
    Fma,
    Alu,
    Fp64,
    Sfu,
    Convert,
    Load,
    Store,
    Atomic,
    Tensor,
    Control,
    Sync,
    Async,
    Move,
}
