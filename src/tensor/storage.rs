//! What a tensor's bytes live in: a block of the step arena, or memory of its own that is shared by views.

use super::arena::Block;
use crate::device::Device;
use std::sync::Arc;

/// Bytes behind a tensor. Cloning shares them.
#[derive(Clone)]
pub(super) enum Storage {
    /// A block of the step arena.
    Arena(Arc<Block>),
    /// A long-lived allocation: parameters, gradients, optimiser moments, caches.
    Owned(Arc<OwnedBytes>),
}

/// A 64-byte aligned allocation that is zero at first.
pub(super) struct OwnedBytes {
    map: memmap2::MmapRaw,
}

impl Storage {
    /// # Panics
    /// When the system has no memory left.
    pub(super) fn owned(bytes: usize) -> Storage {
        let map = memmap2::MmapOptions::new().len(bytes.max(1)).map_anon().expect("the system grants memory");
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Storage::Owned(Arc::new(OwnedBytes { map: map.into() }))
    }

    /// Where the bytes lie.
    pub(super) fn device(&self) -> Device {
        match self {
            Storage::Arena(block) => block.arena.device(),
            Storage::Owned(_) => Device::Cpu,
        }
    }

    pub(super) fn ptr(&self) -> *mut u8 {
        match self {
            Storage::Arena(block) => block.ptr,
            Storage::Owned(owned) => owned.map.as_mut_ptr(),
        }
    }

    /// Whether this is the only handle to the bytes.
    pub(super) fn is_unique(&self) -> bool {
        match self {
            Storage::Arena(block) => Arc::strong_count(block) == 1,
            Storage::Owned(owned) => Arc::strong_count(owned) == 1,
        }
    }
}
