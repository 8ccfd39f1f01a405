//! Decoded operations of sm_90: mbarriers, bulk and tensor copies.

use super::op::{Address, AnyDst, AnySrc, AtomicOp, MemorySpace, Src, Src64};
use crate::event::{Scope, Semantics};
use crate::front::ast::Type;
use crate::units::tensor_map::MapField;

/// Phase that a wait asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitPhase {
    /// By its parity.
    Parity(Src),
    /// By the token of an arrival.
    Token(Src64),
}

/// What is done to an mbarrier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MbarrierAction {
    /// `init` with this count.
    Init(Src),
    /// `inval`.
    Invalidate,
    /// `arrive`, `arrive_drop`, with or without `expect_tx`.
    Arrive {
        /// Arrivals; 1 if missing.
        count: Option<Src>,
        /// Later phases expect as many fewer.
        drop: bool,
        /// Bytes expected before the arrival.
        expect_tx: Option<Src>,
        /// Token.
        state: AnyDst,
    },
    /// `expect_tx`.
    ExpectTx(Src),
    /// `complete_tx`.
    CompleteTx(Src),
    /// `test_wait`, `try_wait`.
    Test {
        /// Predicate of the result.
        p: u16,
        /// Which phase.
        phase: WaitPhase,
        /// May suspend, and may fail without a reason.
        potentially_blocking: bool,
    },
}

/// `mbarrier.*`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mbarrier {
    /// What.
    pub action: MbarrierAction,
    /// Named or generic.
    pub space: MemorySpace,
    /// The object.
    pub address: Address,
    /// Order.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
}

/// One end of a bulk copy.
#[derive(Clone, Debug, PartialEq)]
pub enum BulkPlace {
    /// Shared memory, of any CTA of the cluster.
    Shared(Address),
    /// Global memory.
    Global(Address),
    /// A box of a tensor: generic address of its map, and coordinates.
    Tensor(Address, Vec<Src>),
}

/// `cp.async.bulk`, `cp.reduce.async.bulk`, and their tensor forms.
#[derive(Clone, Debug, PartialEq)]
pub struct BulkCopy {
    /// Destination.
    pub to: BulkPlace,
    /// Source.
    pub from: BulkPlace,
    /// Bytes; tensor copies know them by the map.
    pub bytes: Option<Src>,
    /// The mbarrier that is told; else the copy belongs to a bulk group.
    pub barrier: Option<Address>,
    /// CTAs of the cluster that get the data.
    pub multicast: Option<Src>,
    /// Tensor copies of pixels: offsets of each, or none.
    pub im2col: Option<Vec<Src>>,
    /// Adds to the destination instead of overwriting it: operation, and type where no map says it.
    pub reduce: Option<(AtomicOp, Option<Type>)>,
}

/// `st.async` and `red.async`: a store to the shared memory of a CTA of the cluster that tells an mbarrier there.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreAsync {
    /// Destination.
    pub to: Address,
    /// Values, one after the other.
    pub values: Vec<AnySrc>,
    /// Type of each.
    pub ty: Type,
    /// The mbarrier.
    pub barrier: Address,
    /// Combines instead of overwriting.
    pub reduce: Option<AtomicOp>,
}

/// `tensormap.replace`: a field of a map in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct MapReplace {
    /// Named or generic.
    pub space: MemorySpace,
    /// The map.
    pub address: Address,
    /// Which field.
    pub field: MapField,
    /// New value.
    pub value: AnySrc,
}

/// `tensormap.cp_fenceproxy`: a map from shared to global memory.
#[derive(Clone, Debug, PartialEq)]
pub struct MapCopy {
    /// Global destination.
    pub to: Address,
    /// Shared source.
    pub from: Address,
    /// Scope of the release.
    pub scope: Scope,
}
