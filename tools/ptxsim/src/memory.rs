//! Global memory: allocations in a 64-bit space with red zones around them and a shadow of what was ever written.
//!
//! Words are atomics with relaxed order, which compile to plain moves; clusters on different threads share them. Addresses
//! are never reused, so a freed allocation stays known and its use is reported.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::address::{DEVICE_HEAP, HEAP_BASE, RED_ZONE_BYTES, SHARED_WINDOW};
use crate::error::{Error, Result};
use crate::heap::Heap;

/// Alignment of every allocation, as `cudaMalloc` gives.
const ALIGN: u64 = 512;
/// Largest allocation: a host would fail earlier.
const BYTES_MAX: u64 = 1 << 38;

/// One allocation or module variable.
#[derive(Debug)]
pub struct Allocation {
    /// Number, in order of allocation.
    pub id: u32,
    /// First byte.
    pub base: u64,
    /// Length.
    pub bytes: u64,
    /// What it is called: a variable's name, or nothing.
    pub name: String,
    /// Constant memory: kernels cannot write it.
    pub constant: bool,
    words: Box<[AtomicU32]>,
    /// A bit per byte: written since the allocation.
    written: Box<[AtomicU32]>,
    /// Bytes that were never written.
    unwritten: AtomicU64,
    /// Held while a value that is not one word changes.
    wide: Mutex<()>,
}

fn zeros(count: u64) -> Box<[AtomicU32]> {
    (0..count).map(|_| AtomicU32::new(0)).collect()
}

impl Allocation {
    /// Zeros that count as never written.
    pub fn new(id: u32, base: u64, bytes: u64, name: &str, constant: bool) -> Allocation {
        Allocation {
            id,
            base,
            bytes,
            name: name.to_string(),
            constant,
            words: zeros(bytes.div_ceil(8) * 2),
            written: zeros(bytes.div_ceil(32)),
            unwritten: AtomicU64::new(bytes),
            wide: Mutex::new(()),
        }
    }

    /// The word at a byte offset that is a multiple of 4.
    #[inline(always)]
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[(offset / 4) as usize]
    }

    /// The words from a byte offset on that is a multiple of 4.
    #[inline(always)]
    pub fn words_from(&self, offset: u64) -> &[AtomicU32] {
        &self.words[(offset / 4) as usize..]
    }

    /// `bytes` (1, 2, 4 or 8) at an offset that is a multiple of them.
    #[inline(always)]
    pub fn load(&self, offset: u64, bytes: u32) -> u64 {
        let word = self.word(offset).load(Relaxed);
        match bytes {
            4 => word as u64,
            8 => word as u64 | (self.word(offset + 4).load(Relaxed) as u64) << 32,
            2 => (word >> (8 * (offset & 2))) as u64 & 0xffff,
            _ => (word >> (8 * (offset & 3))) as u64 & 0xff,
        }
    }

    /// Stores the low `bytes` (1, 2, 4 or 8) of `value`.
    #[inline(always)]
    pub fn store(&self, offset: u64, bytes: u32, value: u64) {
        match bytes {
            4 => self.word(offset).store(value as u32, Relaxed),
            8 => {
                self.word(offset).store(value as u32, Relaxed);
                self.word(offset + 4).store((value >> 32) as u32, Relaxed);
            }
            _ => {
                let shift = 8 * (offset & 3) as u32;
                let field = if bytes == 2 { 0xffffu32 << shift } else { 0xffu32 << shift };
                let put = |old: u32| Some((old & !field) | ((value as u32) << shift & field));
                // Neighbours may be written by other clusters at the same time, so the word changes in one step.
                let _ = self.word(offset).fetch_update(Relaxed, Relaxed, put);
            }
        }
    }

    /// Keeps other threads from changing values that are not one word.
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        self.wide.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether every byte was written.
    #[inline(always)]
    pub fn complete(&self) -> bool {
        self.unwritten.load(Relaxed) == 0
    }

    /// Marks bytes as written.
    #[inline(always)]
    pub fn mark(&self, offset: u64, bytes: u64) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let upto = end.min((at / 32 + 1) * 32);
            let bits = span(at % 32, upto - at);
            let word = &self.written[(at / 32) as usize];
            if word.load(Relaxed) & bits != bits {
                let new = bits & !word.fetch_or(bits, Relaxed);
                self.unwritten.fetch_sub(new.count_ones() as u64, Relaxed);
            }
            at = upto;
        }
    }

    /// Marks bytes as never written.
    pub fn unmark(&self, offset: u64, bytes: u64) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let upto = end.min((at / 32 + 1) * 32);
            let bits = span(at % 32, upto - at);
            let old = self.written[(at / 32) as usize].fetch_and(!bits, Relaxed) & bits;
            self.unwritten.fetch_add(old.count_ones() as u64, Relaxed);
            at = upto;
        }
    }

    /// Whether all of these bytes were written.
    #[inline(always)]
    pub fn is_written(&self, offset: u64, bytes: u64) -> bool {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let upto = end.min((at / 32 + 1) * 32);
            let bits = span(at % 32, upto - at);
            if self.written[(at / 32) as usize].load(Relaxed) & bits != bits {
                return false;
            }
            at = upto;
        }
        true
    }

    /// Copies bytes out.
    #[inline]
    pub fn copy_out(&self, offset: u64, out: &mut [u8]) {
        if offset.is_multiple_of(4) && out.len().is_multiple_of(4) {
            let words = self.words_from(offset).iter();
            out.as_chunks_mut().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.load(Relaxed).to_le_bytes());
            return;
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let word = self.word(at & !3).load(Relaxed).to_le_bytes();
            let skip = (at & 3) as usize;
            let count = (4 - skip).min(out.len() - done);
            out[done..done + count].copy_from_slice(&word[skip..skip + count]);
            done += count;
        }
    }

    fn copy_in(&self, offset: u64, from: &[u8]) {
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let skip = (at & 3) as usize;
            let count = (4 - skip).min(from.len() - done);
            let word = self.word(at & !3);
            let mut bytes = word.load(Relaxed).to_le_bytes();
            bytes[skip..skip + count].copy_from_slice(&from[done..done + count]);
            word.store(u32::from_le_bytes(bytes), Relaxed);
            done += count;
        }
        self.mark(offset, from.len() as u64);
    }
}

/// `count` bits from bit `start`.
pub(crate) fn span(start: u64, count: u64) -> u32 {
    let ones = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
    ones << start
}

/// All allocations of a device, by address.
#[derive(Debug, Default)]
pub struct GlobalMemory {
    /// In order of addresses; freed ones keep their place without data.
    slots: Vec<Slot>,
    /// What kernels allocate.
    pub heap: Heap,
}

#[derive(Clone, Debug)]
struct Slot {
    base: u64,
    bytes: u64,
    id: u32,
    name: String,
    live: Option<Arc<Allocation>>,
}

impl GlobalMemory {
    /// Reserves `bytes` with red zones around them; contents are zero but count as never written.
    ///
    /// # Errors
    /// When the size is zero or beyond all reason.
    pub fn allocate(&mut self, bytes: u64, name: &str, constant: bool) -> Result<u64> {
        if bytes == 0 || bytes > BYTES_MAX {
            return Err(Error::Host(format!("cannot allocate {bytes} bytes")));
        }
        let end = self.slots.last().map_or(HEAP_BASE, |slot| slot.base + slot.bytes + RED_ZONE_BYTES);
        let base = (end + RED_ZONE_BYTES).next_multiple_of(ALIGN);
        let id = self.slots.len() as u32;
        let allocation = Allocation::new(id, base, bytes, name, constant);
        self.slots.push(Slot { base, bytes, id, name: name.to_string(), live: Some(Arc::new(allocation)) });
        Ok(base)
    }

    /// Frees an allocation by its first address; the addresses are not used again.
    ///
    /// # Errors
    /// When nothing live starts there.
    pub fn free(&mut self, address: u64) -> Result<()> {
        let slot = self.slots.binary_search_by_key(&address, |slot| slot.base).ok().map(|index| &mut self.slots[index]);
        match slot {
            Some(slot) if slot.live.is_some() => slot.live = None,
            Some(_) => return Err(Error::Host(format!("{address:#x} was freed before"))),
            None => return Err(Error::Host(format!("{address:#x} is not the start of an allocation"))),
        }
        Ok(())
    }

    fn slot(&self, address: u64) -> Option<&Slot> {
        let after = self.slots.partition_point(|slot| slot.base <= address);
        self.slots.get(after.checked_sub(1)?)
    }

    /// The live allocation that holds this byte.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        if (DEVICE_HEAP..SHARED_WINDOW).contains(&address) {
            return self.heap.find(address);
        }
        let allocation = self.slot(address)?.live.as_ref()?;
        (address - allocation.base < allocation.bytes).then_some(allocation)
    }

    /// Number of allocations so far, freed ones included; ids are below it.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Where an address lies, as words for a message: "4 bytes after the end of allocation 3 (64 bytes)".
    pub fn describe(&self, address: u64) -> String {
        if (DEVICE_HEAP..SHARED_WINDOW).contains(&address) {
            return self.heap.describe(address);
        }
        let label = |slot: &Slot| match slot.name.as_str() {
            "" => format!("allocation {} ({} bytes)", slot.id, slot.bytes),
            name => format!("{name} ({} bytes)", slot.bytes),
        };
        let after = self.slots.partition_point(|slot| slot.base <= address);
        let before = after.checked_sub(1).map(|index| &self.slots[index]);
        let next = self.slots.get(after);
        match (before, next) {
            (Some(slot), _) if address < slot.base + slot.bytes => {
                let freed = if slot.live.is_none() { "freed " } else { "" };
                format!("{} bytes into {freed}{}", address - slot.base, label(slot))
            }
            (before, Some(slot)) if before.is_none_or(|b| address - b.base - b.bytes > slot.base - address) => {
                format!("{} bytes before {}", slot.base - address, label(slot))
            }
            (Some(slot), _) => format!("{} bytes after the end of {}", address - slot.base - slot.bytes, label(slot)),
            _ => "no allocation is near".to_string(),
        }
    }

    fn range(&self, address: u64, bytes: u64) -> Result<&Arc<Allocation>> {
        let allocation = self.find(address);
        allocation.filter(|a| address - a.base + bytes <= a.bytes).ok_or_else(|| {
            Error::Host(format!("{bytes} bytes at {address:#x} are not in one allocation: {}", self.describe(address)))
        })
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        if !out.is_empty() {
            let allocation = self.range(address, out.len() as u64)?;
            allocation.copy_out(address - allocation.base, out);
        }
        Ok(())
    }

    /// From here on the bytes count as never written.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn forget(&self, address: u64, bytes: u64) -> Result<()> {
        if bytes > 0 {
            let allocation = self.range(address, bytes)?;
            allocation.unmark(address - allocation.base, bytes);
        }
        Ok(())
    }

    /// Copies from the host; the bytes count as written.
    ///
    /// # Errors
    /// When the range is not inside one live allocation.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<()> {
        if !from.is_empty() {
            let allocation = self.range(address, from.len() as u64)?;
            allocation.copy_in(address - allocation.base, from);
        }
        Ok(())
    }
}
