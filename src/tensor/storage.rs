//! What a tensor's bytes live in: a block of the step arena, or memory of its own that is shared by views.

use super::arena::Block;
use crate::device::Device;
use crate::device::driver::Address;
use crate::device::gpu::Gpu;
use std::sync::Arc;

/// Bytes behind a tensor. Cloning shares them.
#[derive(Clone)]
pub(super) enum Storage {
    /// A block of the step arena.
    Arena(Arc<Block>),
    /// A long-lived allocation: parameters, gradients, optimiser moments, caches.
    Owned(Arc<Owned>),
}

/// Where bytes begin.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Host(*mut u8),
    Gpu(&'static Gpu, Address),
}

impl Place {
    /// `bytes` further on.
    pub(super) fn offset(self, bytes: usize) -> Place {
        match self {
            // Wrapping: whether the result may be used is for who uses it to say.
            Place::Host(ptr) => Place::Host(ptr.wrapping_add(bytes)),
            Place::Gpu(gpu, address) => Place::Gpu(gpu, address.offset(bytes)),
        }
    }

    pub(super) fn device(self) -> Device {
        match self {
            Place::Host(_) => Device::Cpu,
            Place::Gpu(gpu, _) => Device::Gpu(gpu),
        }
    }

    /// # Panics
    /// If the bytes lie on a GPU.
    pub(super) fn host(self) -> *mut u8 {
        match self {
            Place::Host(ptr) => ptr,
            Place::Gpu(gpu, _) => panic!("the elements lie on {gpu}; `to(Device::Cpu)` brings them here"),
        }
    }

    /// # Panics
    /// If the bytes lie on the host.
    pub(super) fn gpu(self) -> Address {
        match self {
            Place::Gpu(_, address) => address,
            Place::Host(_) => panic!("the elements lie on the host; `to(device)` brings them to a GPU"),
        }
    }
}

/// An allocation that is zero at first, aligned to 64 bytes or more.
pub(super) enum Owned {
    Host(memmap2::MmapRaw),
    Gpu(&'static Gpu, Address),
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Owned::Gpu(gpu, address) = self {
            gpu.free(*address);
        }
    }
}

impl Storage {
    /// Memory of the processor that is `sparse` is taken in small pages as they are written: of what is large and mostly never written.
    ///
    /// # Panics
    /// When the system has no memory left. A GPU tells it at its next synchronisation.
    pub(super) fn owned(device: Device, bytes: usize, sparse: bool) -> Storage {
        let owned = match device {
            Device::Cpu => {
                let map = memmap2::MmapOptions::new().len(bytes.max(1)).map_anon().expect("the system grants memory");
                #[cfg(target_os = "linux")]
                let _ = map.advise(if sparse { memmap2::Advice::NoHugePage } else { memmap2::Advice::HugePage });
                Owned::Host(map.into())
            }
            Device::Gpu(gpu) => {
                let address = gpu.allocate(bytes);
                gpu.set(address, 0, bytes);
                Owned::Gpu(gpu, address)
            }
        };
        Storage::Owned(Arc::new(owned))
    }

    pub(super) fn place(&self) -> Place {
        match self {
            Storage::Arena(block) => block.place,
            Storage::Owned(owned) => match **owned {
                Owned::Host(ref map) => Place::Host(map.as_mut_ptr()),
                Owned::Gpu(gpu, address) => Place::Gpu(gpu, address),
            },
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
