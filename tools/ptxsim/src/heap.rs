//! The heap of device-side `malloc` and `free`: allocations that kernels make while they run, with red zones, never reused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::address::{DEVICE_HEAP, RED_ZONE_BYTES};
use crate::event::Site;
use crate::memory::Allocation;

/// Bytes that may be live at once, as `cudaLimitMallocHeapSize` says by default.
const LIVE_BYTES_MAX: u64 = 8 << 20;
/// Allocations of a device's life; addresses are not used again.
const COUNT_MAX: usize = 1 << 16;
/// Alignment of every block.
const ALIGN: u64 = 16;

/// One block.
#[derive(Debug)]
pub struct Block {
    /// Its memory.
    pub allocation: Arc<Allocation>,
    /// Cluster and place of the `malloc`.
    pub by: (u32, Site),
    freed: AtomicBool,
}

impl Block {
    /// Whether nobody has freed it.
    pub fn is_live(&self) -> bool {
        !self.freed.load(Ordering::Acquire)
    }
}

/// All blocks, in order of addresses.
#[derive(Debug, Default)]
pub struct Heap {
    blocks: OnceLock<Box<[OnceLock<Block>]>>,
    count: AtomicUsize,
    /// (next free address, live bytes)
    top: Mutex<(u64, u64)>,
}

impl Heap {
    /// Reserves bytes; 0 when there are none left, as CUDA has it.
    pub fn allocate(&self, bytes: u64, by: (u32, Site)) -> u64 {
        let mut top = self.top.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let index = self.count.load(Ordering::Acquire);
        let (next, live) = *top;
        if bytes == 0 || bytes > LIVE_BYTES_MAX - live || index == COUNT_MAX {
            return 0;
        }
        let blocks = self.blocks.get_or_init(|| (0..COUNT_MAX).map(|_| OnceLock::new()).collect());
        let base = (next.max(DEVICE_HEAP) + RED_ZONE_BYTES).next_multiple_of(ALIGN);
        let allocation = Allocation::new(u32::MAX - index as u32, base, bytes, "a block of malloc", false);
        let block = Block { allocation: Arc::new(allocation), by, freed: AtomicBool::new(false) };
        if blocks[index].set(block).is_err() {
            return 0;
        }
        *top = (base + bytes + RED_ZONE_BYTES, live + bytes);
        self.count.store(index + 1, Ordering::Release);
        base
    }

    /// Frees a block.
    ///
    /// # Errors
    /// One sentence, when no live block starts there.
    pub fn free(&self, address: u64) -> Result<(), String> {
        let mut top = self.top.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let block = self.block(address).filter(|block| block.allocation.base == address);
        match block {
            Some(block) if block.is_live() => {
                block.freed.store(true, Ordering::Release);
                top.1 -= block.allocation.bytes;
                Ok(())
            }
            Some(_) => Err(format!("{address:#x} was freed before")),
            None => Err(format!("{address:#x} is not what malloc gave")),
        }
    }

    /// Blocks so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Blocks from number `first` on that nobody has freed.
    pub fn live_from(&self, first: usize) -> impl Iterator<Item = &Block> {
        self.all().iter().skip(first).filter_map(OnceLock::get).filter(|block| block.is_live())
    }

    fn all(&self) -> &[OnceLock<Block>] {
        self.blocks.get().map_or(&[], |blocks| &blocks[..self.count()])
    }

    /// The last block that starts at or before this address.
    fn block(&self, address: u64) -> Option<&Block> {
        let blocks = self.all();
        let starts_before = |slot: &OnceLock<Block>| slot.get().is_some_and(|block| block.allocation.base <= address);
        blocks.get(blocks.partition_point(starts_before).checked_sub(1)?)?.get()
    }

    /// The live block that holds this byte.
    pub fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        let block = self.block(address).filter(|block| block.is_live())?;
        let allocation = &block.allocation;
        (address - allocation.base < allocation.bytes).then_some(allocation)
    }

    /// Where an address lies, for a message.
    pub fn describe(&self, address: u64) -> String {
        let Some(block) = self.block(address) else { return "no block of malloc is near".into() };
        let (base, bytes) = (block.allocation.base, block.allocation.bytes);
        let freed = if block.is_live() { "" } else { "freed " };
        match address - base {
            inside if inside < bytes => format!("{inside} bytes into a {freed}block of malloc ({bytes} bytes)"),
            after => format!("{} bytes after the end of a {freed}block of malloc ({bytes} bytes)", after - bytes),
        }
    }
}
