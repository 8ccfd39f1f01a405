//! The step arena: one reserved address range out of which every activation of a step is cut.
//!
//! A first-fit free list over offsets. The same sequence of requests gives the same addresses, so after the first step
//! nothing is allocated from the system and addresses are stable. On the CPU the range is an anonymous mapping that is
//! reserved, not committed: only pages that were written take memory. On a GPU it is one allocation.

use super::storage::Place;
use crate::device::Device;
use crate::device::driver::{Address, DeviceError};
use crate::device::gpu::Gpu;
use std::sync::{Arc, Mutex};

/// Every block starts at a multiple of this many bytes: a cache line, and the widest vector load.
pub const ALIGN_BYTES: usize = 64;

/// The same on a GPU: a line of its L2 cache.
const ALIGN_GPU_BYTES: usize = 128;

/// Where activations live; cheap to clone, all clones share one range.
#[derive(Clone)]
pub struct Arena {
    inner: Arc<Inner>,
}

struct Inner {
    range: Range,
    capacity_bytes: usize,
    align_bytes: usize,
    state: Mutex<FreeList>,
}

/// What blocks are cut from.
enum Range {
    Host {
        base: *mut u8,
        _map: memmap2::MmapMut,
    },
    Gpu {
        gpu: &'static Gpu,
        base: Address,
    },
    /// Every block is an allocation of its own.
    Scattered {
        gpu: &'static Gpu,
    },
}

// SAFETY: `base` points into `_map`, which lives as long as `Inner`; blocks handed out never overlap (FreeList), so
// threads that hold different blocks touch different bytes.
unsafe impl Send for Inner {}
// SAFETY: as above; the free list itself is behind a mutex.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Range::Gpu { gpu, base } = self.range {
            gpu.free(base);
        }
    }
}

/// What the arena holds and has held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes in live blocks now.
    pub live_bytes: usize,
    /// Most bytes ever in live blocks.
    pub peak_live_bytes: usize,
    /// End of the highest block ever cut: what the arena needs, fragmentation included.
    pub high_water_bytes: usize,
    /// Live blocks now.
    pub live_blocks: usize,
    /// Blocks cut so far.
    pub allocations: usize,
}

impl Arena {
    /// Reserves `capacity_bytes` of address space (rounded up to [`ALIGN_BYTES`]).
    ///
    /// # Errors
    /// When the system refuses the reservation.
    pub fn new(capacity_bytes: usize) -> std::io::Result<Arena> {
        let capacity_bytes = capacity_bytes.next_multiple_of(ALIGN_BYTES).max(ALIGN_BYTES);
        let mut map = memmap2::MmapOptions::new().len(capacity_bytes).no_reserve_swap().map_anon()?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage); // a hint: fewer page faults and TLB misses in large blocks
        let range = Range::Host { base: map.as_mut_ptr(), _map: map };
        Ok(Arena::over(range, capacity_bytes, ALIGN_BYTES))
    }

    /// An arena on `device`: on a GPU `capacity_bytes` are allocated at once.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn on(device: Device, capacity_bytes: usize) -> Result<Arena, DeviceError> {
        let Device::Gpu(gpu) = device else {
            let call = "reserve address space";
            return Arena::new(capacity_bytes).map_err(|e| DeviceError::Call { call, message: e.to_string() });
        };
        let capacity_bytes = capacity_bytes.next_multiple_of(ALIGN_GPU_BYTES).max(ALIGN_GPU_BYTES);
        let base = gpu.driver().allocate(capacity_bytes)?;
        Ok(Arena::over(Range::Gpu { gpu, base }, capacity_bytes, ALIGN_GPU_BYTES))
    }

    /// An arena whose blocks are allocations of their own. Slow, but a driver that checks bounds then checks those of every
    /// block: for tests.
    pub fn scattered(gpu: &'static Gpu) -> Arena {
        Arena::over(Range::Scattered { gpu }, usize::MAX / 2, ALIGN_GPU_BYTES)
    }

    fn over(range: Range, capacity_bytes: usize, align_bytes: usize) -> Arena {
        let state = Mutex::new(FreeList::new(capacity_bytes));
        Arena { inner: Arc::new(Inner { range, capacity_bytes, align_bytes, state }) }
    }

    /// Cuts a block of at least `bytes` bytes; its content is whatever was there before.
    ///
    /// # Panics
    /// When the arena is full: its capacity comes from the memory estimate, which is checked before training starts.
    pub(super) fn alloc(&self, bytes: usize) -> Block {
        let asked_bytes = bytes;
        let bytes = bytes.next_multiple_of(self.inner.align_bytes).max(self.inner.align_bytes);
        let mut state = self.inner.state.lock().expect("arena lock");
        let offset = state.take(bytes).unwrap_or_else(|| {
            panic!(
                "step arena of {} bytes is full: {bytes} more asked for with {} live; use fewer rows or train.recompute",
                self.inner.capacity_bytes, state.stats.live_bytes
            )
        });
        drop(state);
        let place = match self.inner.range {
            Range::Host { base, .. } => Place::Host(base).offset(offset),
            Range::Gpu { gpu, base } => Place::Gpu(gpu, base.offset(offset)),
            Range::Scattered { gpu } => Place::Gpu(gpu, gpu.allocate(asked_bytes)),
        };
        Block { arena: self.clone(), place, offset, bytes }
    }

    /// Where its blocks lie.
    pub fn device(&self) -> Device {
        match self.inner.range {
            Range::Host { .. } => Device::Cpu,
            Range::Gpu { gpu, .. } | Range::Scattered { gpu } => Device::Gpu(gpu),
        }
    }

    /// What the arena holds and has held.
    pub fn stats(&self) -> ArenaStats {
        self.inner.state.lock().expect("arena lock").stats
    }

    /// Ends a step.
    ///
    /// # Panics
    /// If a block is still alive: a step must not leak activations into the next.
    pub fn reset(&self) {
        let state = self.inner.state.lock().expect("arena lock");
        assert_eq!(state.stats.live_blocks, 0, "blocks outlive the step: {:?}", state.stats);
        assert_eq!(state.free.len(), 1, "the free list of an empty arena is one range");
    }
}

/// A block of the arena; returned when dropped.
pub(super) struct Block {
    arena: Arena,
    pub(super) place: Place,
    offset: usize,
    bytes: usize,
}

// SAFETY: a block is exclusive to its holder (FreeList); see Inner.
unsafe impl Send for Block {}
// SAFETY: shared access goes through Tensor, which hands out `&mut` only to a sole owner.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        match (&self.arena.inner.range, self.place) {
            (Range::Scattered { gpu }, place) => gpu.free(place.gpu()),
            (Range::Gpu { gpu, .. }, place) => gpu.forget(place.gpu(), self.bytes),
            (Range::Host { .. }, _) => {}
        }
        // A poisoned lock means that another thread panicked; the list is still whole, since it is only changed in one go.
        let mut state = self.arena.inner.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.give_back(self.offset, self.bytes);
    }
}

/// Free ranges `(offset, bytes)` in ascending order, never adjacent.
struct FreeList {
    free: Vec<(usize, usize)>,
    stats: ArenaStats,
}

impl FreeList {
    fn new(capacity_bytes: usize) -> FreeList {
        FreeList { free: vec![(0, capacity_bytes)], stats: ArenaStats::default() }
    }

    fn take(&mut self, bytes: usize) -> Option<usize> {
        let i = self.free.iter().position(|&(_, free_bytes)| free_bytes >= bytes)?;
        let (offset, free_bytes) = self.free[i];
        if free_bytes == bytes {
            self.free.remove(i);
        } else {
            self.free[i] = (offset + bytes, free_bytes - bytes);
        }
        let stats = &mut self.stats;
        stats.live_bytes += bytes;
        stats.live_blocks += 1;
        stats.allocations += 1;
        stats.peak_live_bytes = stats.peak_live_bytes.max(stats.live_bytes);
        stats.high_water_bytes = stats.high_water_bytes.max(offset + bytes);
        Some(offset)
    }

    fn give_back(&mut self, offset: usize, bytes: usize) {
        self.stats.live_bytes -= bytes;
        self.stats.live_blocks -= 1;
        let i = self.free.partition_point(|&(o, _)| o < offset);
        let joins_next = self.free.get(i).is_some_and(|&(o, _)| offset + bytes == o);
        let joins_previous = i > 0 && self.free[i - 1].0 + self.free[i - 1].1 == offset;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.free[i - 1].1 += bytes + self.free[i].1;
                self.free.remove(i);
            }
            (true, false) => self.free[i - 1].1 += bytes,
            (false, true) => self.free[i] = (offset, bytes + self.free[i].1),
            (false, false) => self.free.insert(i, (offset, bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_requests_give_the_same_addresses_and_ranges_merge() {
        let arena = Arena::new(1 << 20).unwrap();
        let step = || {
            let a = arena.alloc(100);
            let b = arena.alloc(5000);
            drop(a);
            let c = arena.alloc(64);
            let offsets = [b.offset, c.offset];
            drop(b);
            drop(c);
            arena.reset();
            offsets
        };
        assert_eq!(step(), step());
        let stats = arena.stats();
        assert_eq!((stats.live_bytes, stats.live_blocks), (0, 0));
        assert_eq!(stats.peak_live_bytes, 128 + 5056);
        assert_eq!(stats.allocations, 6);
    }

    #[test]
    #[should_panic(expected = "is full")]
    fn a_full_arena_says_so() {
        let arena = Arena::new(256).unwrap();
        let _a = arena.alloc(200);
        let _b = arena.alloc(200);
    }
}
