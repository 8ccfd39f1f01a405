//! Loads and stores: addresses, their spaces, the test of bounds and alignment, and the data itself.

use std::sync::Arc;

use super::Cluster;
use super::warp::Warp;
use crate::address::{SHARED_STRIDE, Space, resolve_generic, shared_offset, shared_rank};
use crate::error::Result;
use crate::event::{Access, AccessKind, Agent, Event, Interest, Proxy, Run, Scope, Semantics, Site};
use crate::memory::Allocation;
use crate::program::op::{Address, AddressBase, MemorySpace};
use crate::scalar::lanes::{L32, L64, each};

/// One instruction's access to one space, tested.
pub(super) struct Tested<'a> {
    /// Space.
    pub space: Space,
    /// Lanes that may go on.
    pub lanes: u32,
    /// For global memory: the allocation that holds all of them, if one does.
    pub allocation: Option<&'a Arc<Allocation>>,
    /// First byte of the range that holds all of them: an allocation, or the executing CTA's shared memory.
    pub near: Option<u64>,
    /// How the lanes lie to each other.
    pub shape: Shape,
}

/// How the addresses of a full warp lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One after the other, without gaps, in the order of the lanes.
    Dense,
    /// All at one place.
    Same,
    /// Each eight lanes by themselves.
    Quarters([Quarter; 4]),
    /// Not all lanes.
    Other,
}

impl Shape {
    /// From the lanes whose right neighbour comes directly after them, and those that share its place.
    fn of(dense: u32, same: u32) -> Shape {
        let all = |mask: u32, field: u32| mask & field == field;
        if all(dense, u32::MAX >> 1) {
            return Shape::Dense;
        }
        if all(same, u32::MAX >> 1) {
            return Shape::Same;
        }
        Shape::Quarters(std::array::from_fn(|quarter| {
            let field = 0x7f << (8 * quarter);
            if all(dense, field) {
                Quarter::Dense
            } else if all(same, field) {
                Quarter::Same
            } else {
                Quarter::Other
            }
        }))
    }
}

/// How the addresses of eight lanes lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quarter {
    /// One after the other.
    Dense,
    /// All at one place.
    Same,
    /// Anything else.
    Other,
}

/// What a look at all lanes tells.
struct Survey {
    /// All lie in the range, and are aligned.
    fits: bool,
    shape: Shape,
    /// Lanes whose right neighbour comes directly after them, and those that share its place.
    steps: (u32, u32),
}

/// What an access is, apart from its addresses.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub kind: AccessKind,
    pub bytes: u32,
    /// The address must be a multiple of this power of two.
    pub align: u32,
    pub semantics: Semantics,
    pub scope: Scope,
    pub agent: Agent,
    pub proxy: Proxy,
}

impl Kind {
    /// A weak access by the threads themselves.
    pub fn plain(kind: AccessKind, bytes: u32) -> Kind {
        let (semantics, scope) = (Semantics::Weak, Scope::Gpu);
        Kind { kind, bytes, align: bytes, semantics, scope, agent: Agent::Threads, proxy: Proxy::Generic }
    }
}

impl<'a> Cluster<'a> {
    /// Addresses of all lanes, before generic ones are resolved.
    #[inline]
    pub(super) fn addresses(&self, warp: &Warp, address: Address) -> L64 {
        let mut out = L64::ZERO;
        match address.base {
            AddressBase::Register32(slot) => {
                let (base, offset) = (&warp.regs.narrow[slot as usize], address.offset as u32);
                vector!('w, self.arch; base: &'w L32 = base, offset: u32 = offset, out: &'w mut L64 = &mut out => () {
                    (0..32).for_each(|lane| out.0[lane] = base.0[lane].wrapping_add(offset) as u64)
                });
            }
            AddressBase::Register64(slot) => {
                let (base, offset) = (&warp.regs.wide[slot as usize], address.offset as u64);
                vector!('w, self.arch; base: &'w L64 = base, offset: u64 = offset, out: &'w mut L64 = &mut out => () {
                    (0..32).for_each(|lane| out.0[lane] = base.0[lane].wrapping_add(offset))
                });
            }
            _ => out = L64([self.variable_address(warp, address); 32]),
        }
        out
    }

    /// Resolves generic addresses in place and calls `then` for each space with its lanes.
    pub(super) fn by_space(
        &mut self,
        space: MemorySpace,
        addresses: &mut L64,
        active: u32,
        mut then: impl FnMut(&mut Self, Space, u32, &L64) -> Result<()>,
    ) -> Result<()> {
        match space {
            MemorySpace::Named(space) => then(self, space, active, addresses),
            MemorySpace::EntryParam | MemorySpace::FrameParam => then(self, Space::Param, active, addresses),
            MemorySpace::Generic => {
                let mut lanes = [0u32; 5];
                for lane in each(active) {
                    let (space, inside) = resolve_generic(addresses.0[lane]);
                    addresses.0[lane] = inside;
                    lanes[space as usize] |= 1 << lane;
                }
                for space in [Space::Global, Space::Const, Space::Shared, Space::Local, Space::Param] {
                    if lanes[space as usize] != 0 {
                        then(self, space, lanes[space as usize], addresses)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Tests bounds and alignment, tells the checkers and the counters.
    pub(super) fn test(
        &mut self,
        local_bytes: u32,
        site: Site,
        space: Space,
        addresses: &L64,
        kind: Kind,
    ) -> Result<Tested<'a>> {
        let bytes = kind.bytes as u64;
        let mut allocation = None;
        // The range that holds all lanes of nearly every access, and the test of all lanes against it.
        let (base, size) = match space {
            Space::Shared => (site.cta as u64 * SHARED_STRIDE, self.launch.info.shared_bytes as u64),
            Space::Global | Space::Const => {
                let first = addresses.0[site.mask.trailing_zeros() as usize & 31];
                let found = self.launch.memory.find(first);
                allocation = found.filter(|a| kind.kind == AccessKind::Read || !a.constant);
                allocation.map_or((0, 0), |a| (a.base, a.bytes))
            }
            Space::Local => (0, local_bytes as u64),
            Space::Param if kind.kind != AccessKind::Read => (0, 0),
            Space::Param => (0, self.launch.params.len() as u64),
        };
        let survey = self.survey(addresses, site.mask, base, size, kind);
        if survey.fits {
            let runs = self.runs_of(addresses, site.mask, kind, survey.steps);
            self.tell(site, space, addresses, kind, (0, 0), &runs)?;
            self.count(site.pc, space, site.mask, addresses, kind, allocation, &runs);
            self.runs = runs;
            let near = Some(base);
            return Ok(Tested { space, lanes: site.mask, allocation, near, shape: survey.shape });
        }
        let (outside, misaligned) = self.test_lanes(site, space, addresses, kind, (base, size));
        let lanes = site.mask & !outside & !misaligned;
        let runs = self.runs_of(addresses, lanes, kind, steps_of(addresses, kind.bytes as u64));
        self.tell(site, space, addresses, kind, (outside, misaligned), &runs)?;
        let wholly = |a: &&Arc<Allocation>| {
            let inside = |lane: usize| addresses.0[lane].wrapping_sub(a.base) <= a.bytes.wrapping_sub(bytes);
            a.bytes >= bytes && each(lanes).all(inside)
        };
        let allocation = allocation.filter(wholly);
        self.count(site.pc, space, lanes, addresses, kind, allocation, &runs);
        self.runs = runs;
        Ok(Tested { space, lanes, allocation, near: None, shape: Shape::Other })
    }

    /// Lane by lane: (outside, misaligned).
    fn test_lanes(
        &self,
        site: Site,
        space: Space,
        addresses: &L64,
        kind: Kind,
        (base, size): (u64, u64),
    ) -> (u32, u32) {
        let bytes = kind.bytes as u64;
        let write = kind.kind != AccessKind::Read;
        let memory = self.launch.memory;
        let inside = |address: u64| match space {
            Space::Shared => self.in_cluster(address, bytes),
            Space::Global | Space::Const => {
                let found = memory.find(address).filter(|a| !(write && a.constant));
                found.is_some_and(|a| address - a.base + bytes <= a.bytes)
            }
            Space::Local | Space::Param => size >= bytes && address.wrapping_sub(base) <= size - bytes,
        };
        let outside = each(site.mask).filter(|&lane| !inside(addresses.0[lane])).fold(0, bit);
        let crooked = |lane: &usize| !addresses.0[*lane].is_multiple_of(kind.align as u64);
        let misaligned = each(site.mask & !outside).filter(crooked).fold(0, bit);
        (outside, misaligned)
    }

    /// Looks at all lanes at once: whether they lie in `base .. base + size` and are aligned, and what shape they have.
    #[inline]
    fn survey(&self, addresses: &L64, active: u32, base: u64, size: u64, kind: Kind) -> Survey {
        let bytes = kind.bytes as u64;
        if size < bytes {
            return Survey { fits: false, shape: Shape::Other, steps: (0, 0) };
        }
        let last = size - bytes;
        let align = kind.align as u64 - 1;
        if active != u32::MAX {
            let fits = |lane: usize| {
                let address = addresses.0[lane];
                address.wrapping_sub(base) <= last && address & align == 0
            };
            let steps = steps_of(addresses, bytes);
            return Survey { fits: each(active).all(fits), shape: Shape::Other, steps };
        }
        // The compiler unrolls loops of a known length, and then finds no vectors in sums over lanes.
        let lanes = std::hint::black_box(32).min(32);
        let (low, far, dense, same) = vector!('w, self.arch;
            addresses: &'w [u64] = &addresses.0[..lanes], base: u64 = base, last: u64 = last, bytes: u64 = bytes
            => (u64, u64, u64, u64) {
                let (mut low, mut far) = (0, 0);
                for &address in addresses {
                    let distance = address.wrapping_sub(base);
                    low |= address;
                    // The top bit is set when the distance is negative or beyond `last`.
                    far |= distance | last.wrapping_sub(distance);
                }
                let (mut dense, mut same) = (0, 0);
                for (lane, (left, right)) in addresses.iter().zip(&addresses[1..]).enumerate() {
                    let step = right.wrapping_sub(*left);
                    dense |= ((step == bytes) as u64) << lane;
                    same |= ((step == 0) as u64) << lane;
                }
                (low, far, dense, same)
            }
        );
        let fits = far >> 63 == 0 && low & align == 0;
        let steps = (dense as u32, same as u32);
        Survey { fits, shape: Shape::of(steps.0, steps.1), steps }
    }

    #[allow(clippy::too_many_arguments)]
    fn count(
        &mut self,
        pc: u32,
        space: Space,
        lanes: u32,
        addresses: &L64,
        kind: Kind,
        allocation: Option<&Arc<Allocation>>,
        runs: &[Run],
    ) {
        // The tensor copy engine and the tensor cores do not share the banks' rules with threads.
        if !(space == Space::Shared && kind.proxy == Proxy::Async) {
            self.counters.access(pc, space, lanes, addresses, kind, allocation.map(|a| &**a), (runs, self.launch));
        }
    }

    /// The runs of an access, in a list that is used again; empty when nobody looks at them.
    fn runs_of(&mut self, addresses: &L64, lanes: u32, kind: Kind, steps: (u32, u32)) -> Vec<Run> {
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        if self.counters.on() || self.watch.wants(Interest::SHARED.and(Interest::GLOBAL).and(Interest::LOCAL)) {
            Run::append(&mut runs, &addresses.0, lanes, kind.bytes, steps);
        }
        runs
    }

    fn tell(
        &mut self,
        site: Site,
        space: Space,
        addresses: &L64,
        kind: Kind,
        (outside, misaligned): (u32, u32),
        runs: &[Run],
    ) -> Result<()> {
        let bad = outside | misaligned;
        let interest = match space {
            Space::Shared => Interest::SHARED,
            Space::Local => Interest::LOCAL,
            _ => Interest::GLOBAL,
        };
        let interest = if bad != 0 { interest.and(Interest::BAD_ACCESS) } else { interest };
        if self.watch.wants(interest) {
            let Kind { kind, bytes, semantics, scope, agent, proxy, .. } = kind;
            let addresses = &addresses.0;
            let access = Access {
                site,
                agent,
                space,
                kind,
                proxy,
                semantics,
                scope,
                bytes,
                addresses,
                runs,
                outside,
                misaligned,
            };
            self.watch.emit(&Event::Access(&access));
        }
        let checks = &self.launch.options.checks;
        let untold = (outside != 0 && !checks.bounds) || (misaligned != 0 && !checks.alignment);
        if untold {
            let lane = (if checks.bounds { misaligned } else { bad }).trailing_zeros();
            let address = addresses.0[lane as usize];
            let what = if outside >> lane & 1 == 1 { "illegal address" } else { "misaligned address" };
            let message = format!("{what} {address:#x} in {} memory by lane {lane}", space.name());
            return Err(self.error(site, &message));
        }
        Ok(())
    }

    /// Whether bytes lie in the shared memory of a CTA of the cluster.
    pub(super) fn in_cluster(&self, address: u64, bytes: u64) -> bool {
        (shared_rank(address) as usize) < self.ctas.len()
            && address < SHARED_STRIDE * crate::address::CLUSTER_MAX
            && shared_offset(address) as u64 + bytes <= self.launch.info.shared_bytes as u64
    }

    /// Reads bytes of shared or global memory; the place was tested.
    pub(super) fn read_bytes(&self, space: Space, address: u64, out: &mut [u8]) {
        if space == Space::Shared {
            let at = shared_offset(address) as usize;
            out.copy_from_slice(&self.ctas[shared_rank(address) as usize].shared[at..at + out.len()]);
        } else if let Some(a) = self.launch.memory.find(address) {
            a.copy_out(address - a.base, out);
        }
    }

    /// Writes bytes of shared or global memory; the place was tested.
    pub(super) fn write_bytes(&mut self, space: Space, address: u64, from: &[u8]) {
        if space == Space::Shared {
            let at = shared_offset(address) as usize;
            self.ctas[shared_rank(address) as usize].shared[at..at + from.len()].copy_from_slice(from);
        } else if let Some(a) = self.launch.memory.find(address) {
            let start = address - a.base;
            if start.is_multiple_of(4) && from.len().is_multiple_of(4) {
                for (index, word) in from.as_chunks::<4>().0.iter().enumerate() {
                    a.store(start + 4 * index as u64, 4, u64::from(u32::from_le_bytes(*word)));
                }
                return;
            }
            for (index, byte) in from.iter().enumerate() {
                a.store(start + index as u64, 1, *byte as u64);
            }
        }
    }

    /// Reads an element of up to 8 bytes; the place was tested.
    pub(super) fn peek(&self, warp: &Warp, tested: &Tested<'a>, lane: usize, address: u64, bytes: u32) -> u64 {
        match tested.space {
            Space::Global | Space::Const => {
                let allocation = tested.allocation.or_else(|| self.launch.memory.find(address));
                allocation.map_or(0, |a| a.load(address - a.base, bytes))
            }
            Space::Shared => {
                let shared = &self.ctas[shared_rank(address) as usize].shared;
                little(shared, shared_offset(address) as usize, bytes)
            }
            Space::Local => little(&warp.local, lane * warp.local_bytes as usize + address as usize, bytes),
            Space::Param => little(&self.launch.params, address as usize, bytes),
        }
    }

    /// Writes an element of up to 8 bytes; the place was tested.
    pub(super) fn poke(
        &mut self,
        warp: &mut Warp,
        tested: &Tested<'a>,
        lane: usize,
        address: u64,
        bytes: u32,
        value: u64,
    ) {
        let little = &value.to_le_bytes()[..bytes as usize];
        match tested.space {
            Space::Global | Space::Const => {
                let allocation = tested.allocation.or_else(|| self.launch.memory.find(address));
                if let Some(a) = allocation {
                    a.store(address - a.base, bytes, value);
                }
            }
            Space::Shared => {
                let at = shared_offset(address) as usize;
                self.ctas[shared_rank(address) as usize].shared[at..at + bytes as usize].copy_from_slice(little);
            }
            Space::Local => {
                let at = lane * warp.local_bytes as usize + address as usize;
                warp.local[at..at + bytes as usize].copy_from_slice(little);
            }
            Space::Param => {}
        }
    }
}

/// Lanes whose right neighbour comes directly after them, and those that share its place.
fn steps_of(addresses: &L64, bytes: u64) -> (u32, u32) {
    let step = |lane: usize| addresses.0[lane + 1].wrapping_sub(addresses.0[lane]);
    let lanes_with = |by: u64| (0..31).filter(|&lane| step(lane) == by).fold(0, bit);
    (lanes_with(bytes), lanes_with(0))
}

/// Consecutive little-endian words.
#[inline(always)]
pub(super) fn run_of_words(from: &[u8], out: &mut [u32]) {
    let words = from.as_chunks().0;
    out.iter_mut().zip(words).for_each(|(out, word)| *out = u32::from_le_bytes(*word));
}

fn bit(all: u32, lane: usize) -> u32 {
    all | 1 << lane
}

/// Up to 8 bytes at an offset.
pub(super) fn little(from: &[u8], at: usize, bytes: u32) -> u64 {
    let mut out = [0; 8];
    out[..bytes as usize].copy_from_slice(&from[at..at + bytes as usize]);
    u64::from_le_bytes(out)
}
