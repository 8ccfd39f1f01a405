//! How the addresses of one access lie to each other. An instruction executes with the same pattern again and again, moved
//! as a whole, so what follows from the pattern alone (extent, runs of neighbours, bank conflicts) is kept per instruction.

use pulp::Arch;

use super::quick::read_run;
use crate::address::SHARED_STRIDE;
use crate::counters::wavefronts;
use crate::event::{Places, Run};
use crate::scalar::lanes::{L32, L64, each};

/// Distances beyond this are not a pattern: sums with them could wrap.
const FAR: u64 = 1 << 40;

/// The lanes' addresses, relative to that of the first lane with a part.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    /// Lanes with a part; 0 until something was learnt.
    lanes: u32,
    /// Bytes of a lane.
    bytes: u32,
    /// Last two bits of the first address, where lanes have less than a word.
    phase: u64,
    distance: L64,
    /// Their low halves.
    distance32: L32,
    /// Neighbours joined; their addresses are distances.
    pub runs: Vec<Run>,
    /// All distances joined by "or".
    pub low: u64,
    /// Least and greatest distance.
    pub extent: (i64, i64),
    /// Phases and wavefronts in shared memory, once somebody asked.
    banks: Option<(u64, u64)>,
    /// How the lanes lie, eight by eight, where all have a part.
    shape: Shape,
    /// Distance of the first of each eight.
    eighths: [u32; 4],
    /// What the register of the address held in the first lane when it was last looked at.
    pub base: u32,
    /// Addresses in global memory that the first lane of each warp of the cluster last read.
    last: Vec<u64>,
}

/// What all groups of eight lanes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All eight at one place.
    OnePlace,
    /// Side by side.
    SideBySide,
    /// Neither.
    Other,
}

impl Pattern {
    /// Nothing learnt yet.
    pub fn new() -> Pattern {
        Pattern {
            lanes: 0,
            bytes: 0,
            phase: 0,
            distance: L64::ZERO,
            distance32: L32::ZERO,
            runs: Vec::new(),
            low: 0,
            extent: (0, 0),
            banks: None,
            shape: Shape::Other,
            eighths: [0; 4],
            base: 0,
            last: Vec::new(),
        }
    }

    /// Makes this the pattern of an access of at least one lane; gives its first address.
    #[inline]
    pub fn learn(&mut self, arch: Arch, addresses: &L64, lanes: u32, bytes: u32) -> u64 {
        let first = addresses.0[lanes.trailing_zeros() as usize & 31];
        let phase = if bytes < 4 { first & 3 } else { 0 };
        let is_same = self.lanes == lanes
            && self.bytes == bytes
            && self.phase == phase
            && differ(arch, addresses, &self.distance, first) & lanes == 0;
        if !is_same {
            self.replace(addresses, lanes, bytes, first);
            self.phase = phase;
        }
        first
    }

    #[inline(never)]
    fn replace(&mut self, addresses: &L64, lanes: u32, bytes: u32, first: u64) {
        (self.lanes, self.bytes, self.banks) = (lanes, bytes, None);
        (self.low, self.extent) = (0, (0, 0));
        for lane in each(lanes) {
            let distance = addresses.0[lane].wrapping_sub(first);
            self.distance.0[lane] = distance;
            self.distance32.0[lane] = distance as u32;
            self.low |= distance;
            let (least, most) = self.extent;
            self.extent = (least.min(distance as i64), most.max(distance as i64));
        }
        let step = |lane: usize| addresses.0[lane + 1].wrapping_sub(addresses.0[lane]);
        let (mut dense, mut same) = (0u32, 0u32);
        for lane in 0..31 {
            dense |= u32::from(step(lane) == u64::from(bytes)) << lane;
            same |= u32::from(step(lane) == 0) << lane;
        }
        let eighths = |lanes: u32| [0, 8, 16, 24].iter().all(|eighth| lanes >> eighth & 0x7f == 0x7f);
        self.shape = match lanes == u32::MAX && bytes >= 4 {
            true if eighths(same) => Shape::OnePlace,
            true if eighths(dense) => Shape::SideBySide,
            _ => Shape::Other,
        };
        self.eighths = [0, 8, 16, 24].map(|lane| self.distance32.0[lane]);
        self.runs.clear();
        Run::append(&mut self.runs, &self.distance.0, lanes, bytes, (dense, same));
    }

    /// Where the lanes lie when the first one with a part lies at this address.
    #[inline(always)]
    pub fn places(&self, first: u64) -> Places<'_> {
        Places { origin: first, distances: &self.distance.0, runs: &self.runs }
    }

    /// Lanes with a part.
    #[inline(always)]
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Bytes of a lane.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Reads a word of each lane from shared memory; the first lane's lies at `at`.
    #[inline(always)]
    pub fn read(&self, shared: &[u8], at: usize, out: &mut L32) {
        let eighths = out.0.as_chunks_mut::<8>().0.iter_mut().zip(self.eighths);
        let place = |distance: u32| at.wrapping_add(distance as i32 as usize);
        let word = |at: usize| shared[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        match (self.shape, self.bytes) {
            (Shape::OnePlace, _) => eighths.for_each(|(out, distance)| *out = [word(place(distance)); 8]),
            (Shape::SideBySide, 4) => {
                for (out, distance) in eighths {
                    let words = shared[place(distance)..][..32].as_chunks::<4>().0;
                    (0..8).for_each(|i| out[i] = u32::from_le_bytes(words[i]));
                }
            }
            (Shape::SideBySide, stride) => {
                for (out, distance) in eighths {
                    let from = &shared[place(distance)..][..7 * stride as usize + 4];
                    let word = |at: usize| from[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
                    (0..8).for_each(|i| out[i] = word(i * stride as usize));
                }
            }
            (Shape::Other, _) => {
                for run in &self.runs {
                    let out = &mut out.0[run.lane as usize..][..run.lanes as usize];
                    read_run(shared, place(run.address as u32), self.stride(run), out);
                }
            }
        }
    }

    /// Where the first lane lies from the start of a CTA's shared memory of `size` bytes, if all lanes lie inside and at
    /// multiples of their bytes.
    #[inline(always)]
    pub fn inside_shared(&self, first: u32, cta: u32, size: u32) -> Option<usize> {
        let at = i64::from(first) - ((cta as u64 * SHARED_STRIDE) as i64);
        let inside = at + self.extent.0 >= 0 && at + self.extent.1 + i64::from(self.bytes) <= i64::from(size);
        (inside && (u64::from(first) | self.low) & u64::from(self.bytes - 1) == 0).then_some(at as usize)
    }

    /// Bytes from one lane of a run to the next.
    #[inline(always)]
    pub fn stride(&self, run: &Run) -> usize {
        if run.bytes == self.bytes { 0 } else { self.bytes as usize }
    }

    /// The value of the first lane with a part, if those of all lanes lie to it as the pattern says.
    #[inline(always)]
    pub fn start32(&self, values: &L32) -> Option<u32> {
        let first = values.0[self.lanes.trailing_zeros() as usize & 31];
        let mut any = [0; 8];
        for (values, distance) in values.0.as_chunks::<8>().0.iter().zip(self.distance32.0.as_chunks::<8>().0) {
            for lane in 0..8 {
                any[lane] |= values[lane].wrapping_sub(first) ^ distance[lane];
            }
        }
        if any.iter().all(|&any| any == 0) {
            return Some(first);
        }
        let strays = |lane: usize| values.0[lane].wrapping_sub(first) != self.distance32.0[lane];
        (self.lanes != u32::MAX && !each(self.lanes).any(strays)).then_some(first)
    }

    /// The same of 64-bit values.
    #[inline(always)]
    pub fn start64(&self, arch: Arch, values: &L64) -> Option<u64> {
        let first = values.0[self.lanes.trailing_zeros() as usize & 31];
        (differ(arch, values, &self.distance, first) & self.lanes == 0).then_some(first)
    }

    /// Whether all bytes lie in `base .. base + size` and all addresses are multiples of `align`.
    #[inline(always)]
    pub fn fits(&self, first: u64, (base, size): (u64, u64), align: u64) -> bool {
        let (least, most) = (self.extent.0, self.extent.1 as u64);
        let below = least.unsigned_abs();
        let bytes = u64::from(self.bytes);
        let inside = below < FAR && most < FAR && first >= base && first - base >= below && size >= bytes;
        inside && first - base <= size && first - base + most <= size - bytes && (first | self.low) & (align - 1) == 0
    }

    /// The first address, if all bytes lie in `base .. base + size` and all addresses are multiples of a lane's bytes.
    #[inline(always)]
    pub fn inside(&self, first: u64, range: (u64, u64)) -> Option<u64> {
        self.fits(first, range, u64::from(self.bytes)).then_some(first)
    }

    /// Where a warp will read next if it goes on from its last read to this one's address as it came.
    #[inline(always)]
    pub fn next_read(&mut self, warp: usize, first: u64) -> u64 {
        if self.last.len() <= warp {
            self.last.resize(warp + 1, first);
        }
        first.wrapping_add(first.wrapping_sub(std::mem::replace(&mut self.last[warp], first)))
    }

    /// Phases and wavefronts of an access of this pattern in shared memory: they do not change when all addresses move by
    /// whole words.
    #[inline(always)]
    pub fn banks(&mut self) -> (u64, u64) {
        match self.banks {
            Some(banks) => banks,
            None => self.count_banks(),
        }
    }

    #[inline(never)]
    fn count_banks(&mut self) -> (u64, u64) {
        // Far enough from 0 for negative distances; a multiple of all banks.
        let mut addresses = self.distance;
        addresses.0.iter_mut().for_each(|address| *address = address.wrapping_add((FAR << 1) + self.phase));
        let banks = wavefronts(&addresses, self.lanes, self.bytes);
        self.banks = Some(banks);
        banks
    }
}

/// Lanes whose address is not `first` plus their distance.
#[inline(always)]
fn differ(arch: Arch, addresses: &L64, distance: &L64, first: u64) -> u32 {
    // Nearly always none: one look at all lanes, then at each.
    let any = vector!('w, arch; addresses: &'w L64 = addresses, distance: &'w L64 = distance, first: u64 = first => u64 {
        let mut any = [0; 4];
        for (addresses, distance) in addresses.0.as_chunks::<4>().0.iter().zip(distance.0.as_chunks::<4>().0) {
            for lane in 0..4 {
                any[lane] |= addresses[lane].wrapping_sub(first) ^ distance[lane];
            }
        }
        any[0] | any[1] | any[2] | any[3]
    });
    if any == 0 {
        return 0;
    }
    let differs = |lane: &usize| addresses.0[*lane].wrapping_sub(first) != distance.0[*lane];
    (0..32).filter(differs).fold(0, |all, lane| all | 1 << lane)
}
