//! Atomics and reductions.
//!
//! Clusters run in parallel, and sums of floats depend on their order. So reductions of floats whose result nobody uses are
//! kept until all earlier clusters have ended, and then applied in order: memory is the same whatever the thread count.
//! Kernels whose clusters can see each other's atomics run on one thread (see `program::Program::cooperative`).

use std::sync::Arc;

use super::Cluster;
use super::access::{Kind, Tested};
use super::warp::Warp;
use crate::address::Space;
use crate::error::Result;
use crate::event::{AccessKind, Site};
use crate::front::ast::Type;
use crate::memory::Allocation;
use crate::program::op::{AnySrc, Atomic, AtomicOp};
use crate::scalar::half;
use crate::scalar::lanes::each;
use crate::scalar::round::canonical;

/// A float reduction in global memory that waits for its cluster's turn.
pub struct Deferred<'a> {
    allocation: &'a Arc<Allocation>,
    offset: u64,
    op: AtomicOp,
    ty: Type,
    value: u64,
}

/// The new value of an atomic operation.
pub(super) fn combine(op: AtomicOp, ty: Type, old: u64, value: u64, swap: u64) -> u64 {
    use AtomicOp::*;
    let f32s = |x: u64| f32::from_bits(x as u32);
    match (op, ty) {
        (Add, Type::F32) => canonical(f32s(old) + f32s(value)) as u64,
        (Add, Type::F64) => crate::scalar::round::canonical64(f64::from_bits(old) + f64::from_bits(value)),
        (Add | Min | Max, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2) => {
            let bf = matches!(ty, Type::Bf16 | Type::Bf16x2);
            let pair = matches!(ty, Type::F16x2 | Type::Bf16x2);
            match op {
                Add => half::add(bf, pair, old as u32, value as u32) as u64,
                _ => half::extreme(bf, pair, op == Max, old as u32, value as u32) as u64,
            }
        }
        (Add, _) => old.wrapping_add(value),
        (And, _) => old & value,
        (Or, _) => old | value,
        (Xor, _) => old ^ value,
        (Min, Type::S32) => (old as i32).min(value as i32) as u32 as u64,
        (Max, Type::S32) => (old as i32).max(value as i32) as u32 as u64,
        (Min, Type::S64) => (old as i64).min(value as i64) as u64,
        (Max, Type::S64) => (old as i64).max(value as i64) as u64,
        (Min, _) => old.min(value),
        (Max, _) => old.max(value),
        (Inc, _) => {
            if old >= value {
                0
            } else {
                old + 1
            }
        }
        (Dec, _) => {
            if old == 0 || old > value {
                value
            } else {
                old - 1
            }
        }
        (Exchange, _) => value,
        (CompareSwap, _) => {
            if old == value {
                swap
            } else {
                old
            }
        }
    }
}

fn float(ty: Type) -> bool {
    ty.float()
}

impl<'a> Cluster<'a> {
    pub(super) fn atomic(&mut self, warp: &mut Warp, site: Site, atomic: &Atomic) -> Result<()> {
        let size = atomic.ty.bytes();
        let total = size * atomic.operand.len() as u32;
        let mut addresses = self.addresses(warp, atomic.address);
        let kind = Kind { semantics: atomic.semantics, scope: atomic.scope, ..Kind::plain(AccessKind::Atomic, total) };
        self.by_space(atomic.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
            let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
            // Lanes go in order, as one legal order of the hardware's.
            for lane in each(tested.lanes) {
                for element in 0..atomic.operand.len() {
                    let address = addresses.0[lane] + element as u64 * size as u64;
                    cluster.atomic_lane(warp, &tested, atomic, lane, element, address);
                }
            }
            Ok(())
        })
    }

    fn atomic_lane(
        &mut self,
        warp: &mut Warp,
        tested: &Tested<'a>,
        atomic: &Atomic,
        lane: usize,
        element: usize,
        address: u64,
    ) {
        let size = atomic.ty.bytes();
        let source = |source: AnySrc| self.launch.program.lane(&warp.regs, source, lane);
        let mask = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
        let value = source(atomic.operand[element]) & mask;
        let swap = atomic.swap.map_or(0, source) & mask;
        if tested.space == Space::Global && !self.launch.program.cooperative {
            self.reduce_global(tested, atomic.op, atomic.ty, address, value);
            return;
        }
        let old = self.peek(warp, tested, lane, address, size);
        let new = combine(atomic.op, atomic.ty, old, value, swap) & mask;
        self.poke(warp, tested, lane, address, size, new);
        if let Some(d) = atomic.old.get(element) {
            self.write(warp, *d, lane, old);
        }
    }

    /// A reduction in global memory whose result is not used, while other clusters may run.
    pub(super) fn reduce_global(&mut self, tested: &Tested<'a>, op: AtomicOp, ty: Type, address: u64, value: u64) {
        let allocation = tested.allocation.or_else(|| self.launch.memory.find(address));
        let Some(allocation) = allocation else { return };
        let one = Deferred { allocation, offset: address - allocation.base, op, ty, value };
        // Exchanges and float sums depend on the order of clusters; the rest does not.
        let ordered =
            float(ty) || matches!(op, AtomicOp::Exchange | AtomicOp::CompareSwap | AtomicOp::Inc | AtomicOp::Dec);
        if ordered && !self.launch.turns.is_first(self.number) {
            self.deferred.push(one);
            return;
        }
        if ordered {
            self.deferred.drain(..).for_each(|deferred| deferred.apply());
        }
        one.apply();
    }

    /// A reduction of an asynchronous copy; the place was tested.
    pub(super) fn reduce_at(&mut self, space: Space, op: AtomicOp, ty: Type, address: u64, value: u64) {
        let tested = Tested { space, lanes: 1, allocation: None, near: None };
        if space == Space::Global && !self.launch.program.cooperative {
            self.reduce_global(&tested, op, ty, address, value);
            return;
        }
        let mut old = [0; 8];
        let size = ty.bytes() as usize;
        self.read_bytes(space, address, &mut old[..size]);
        let new = combine(op, ty, u64::from_le_bytes(old), value, 0);
        self.write_bytes(space, address, &new.to_le_bytes()[..size]);
    }

    /// A load or store in an allocation with deferred reductions of this cluster waits until they can be applied.
    #[inline]
    pub(super) fn turn_before_access(&mut self, tested: &Tested<'a>) {
        if !self.deferred.is_empty() && tested.space == Space::Global {
            let hit = match tested.allocation {
                Some(read) => self.deferred.iter().any(|deferred| deferred.allocation.id == read.id),
                None => true,
            };
            if hit {
                self.take_turn();
            }
        }
    }

    /// Waits for all earlier clusters to end, then applies what was deferred.
    pub fn take_turn(&mut self) {
        self.launch.turns.wait(self.number);
        self.deferred.drain(..).for_each(|deferred| deferred.apply());
    }
}

impl Deferred<'_> {
    fn apply(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let size = self.ty.bytes();
        let a = self.allocation;
        if size == 4 {
            let new = |old: u32| Some(combine(self.op, self.ty, old as u64, self.value, 0) as u32);
            let _ = a.word(self.offset).fetch_update(Relaxed, Relaxed, new);
            return;
        }
        // Wider and narrower values change under a lock: no single word holds them.
        let _guard = a.lock();
        let old = a.load(self.offset, size);
        a.store(self.offset, size, combine(self.op, self.ty, old, self.value, 0));
    }
}
