//! Loads and stores: addresses, their spaces, the test of bounds and alignment, and the data itself.

use std::sync::Arc;

use super::Cluster;
use super::pattern::Pattern;
use super::warp::Warp;
use crate::address::{SHARED_STRIDE, Space, resolve_generic, shared_offset, shared_rank};
use crate::counters::Counted;
use crate::error::Result;
use crate::event::{Access, AccessKind, Agent, Event, Interest, Places, Proxy, Run, Scope, Semantics, Site};
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
    /// All lanes lie in one range, an allocation or the executing CTA's shared memory, and follow a known pattern.
    pub near: Option<Near>,
}

/// An access whose lanes lie in one range.
#[derive(Clone, Copy)]
pub(super) struct Near {
    /// First byte of the range.
    pub base: u64,
    /// Address of the first lane with a part.
    pub first: u64,
    /// Its pattern, among the cluster's.
    pub pattern: usize,
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

    /// An access of this kind without faults, as checkers see it.
    pub fn access(self, site: Site, space: Space, places: Places) -> Access {
        let Kind { kind, bytes, semantics, scope, agent, proxy, .. } = self;
        Access { site, agent, space, kind, proxy, semantics, scope, bytes, places, outside: 0, misaligned: 0 }
    }
}

impl<'a> Cluster<'a> {
    /// Addresses of all lanes, before generic ones are resolved.
    #[inline]
    pub(super) fn addresses(&self, warp: &Warp, address: Address) -> L64 {
        let mut addresses = L64::ZERO;
        let out = &mut addresses;
        match address.base {
            AddressBase::Register32(slot) => {
                let (base, offset) = (&warp.regs.narrow[slot as usize], address.offset as u32);
                vector!('w, self.arch; base: &'w L32 = base, offset: u32 = offset, out: &'w mut L64 = out => () {
                    (0..32).for_each(|lane| out.0[lane] = base.0[lane].wrapping_add(offset) as u64)
                });
            }
            AddressBase::Register64(slot) => {
                let (base, offset) = (&warp.regs.wide[slot as usize], address.offset as u64);
                vector!('w, self.arch; base: &'w L64 = base, offset: u64 = offset, out: &'w mut L64 = out => () {
                    (0..32).for_each(|lane| out.0[lane] = base.0[lane].wrapping_add(offset))
                });
            }
            _ => out.0.fill(self.variable_address(warp, address)),
        }
        addresses
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
        let number = 2 * site.pc as usize + usize::from(space == Space::Shared);
        let pattern = &mut self.patterns[number];
        let pattern = pattern.get_or_insert_with(|| Box::new(Pattern::new()));
        let first = pattern.learn(self.arch, addresses, site.mask, kind.bytes);
        if pattern.fits(first, (base, size), kind.align as u64) {
            if self.counters.on() || self.watch.wants(Interest::of(space, kind.kind)) {
                self.tell_pattern(site, space, kind, allocation, (number, first));
            }
            let near = Some(Near { base, first, pattern: number });
            return Ok(Tested { space, lanes: site.mask, allocation, near });
        }
        let (outside, misaligned) = self.test_lanes(site, space, addresses, kind, (base, size));
        let lanes = site.mask & !outside & !misaligned;
        let mut runs = std::mem::take(&mut self.runs);
        runs.clear();
        Run::append(&mut runs, &addresses.0, lanes, kind.bytes, steps_of(addresses, bytes));
        let places = Places { origin: 0, distances: &addresses.0, runs: &runs };
        self.tell(site, space, kind, (outside, misaligned), places)?;
        let wholly = |a: &&Arc<Allocation>| {
            let inside = |lane: usize| addresses.0[lane].wrapping_sub(a.base) <= a.bytes.wrapping_sub(bytes);
            a.bytes >= bytes && each(lanes).all(inside)
        };
        let allocation = allocation.filter(wholly);
        self.count(Site { mask: lanes, ..site }, space, kind, allocation, places, None);
        self.runs = runs;
        Ok(Tested { space, lanes, allocation, near: None })
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

    /// Counts an access of the lanes in `site.mask`; `banks` as in [`Counted`].
    pub(super) fn count(
        &mut self,
        site: Site,
        space: Space,
        kind: Kind,
        allocation: Option<&Arc<Allocation>>,
        places: Places,
        banks: Option<(u64, u64)>,
    ) {
        // The tensor copy engine and the tensor cores do not share the banks' rules with threads.
        if !self.counters.on() || space == Space::Shared && kind.proxy == Proxy::Async {
            return;
        }
        let counted = Counted { space, lanes: site.mask, places, kind, allocation: allocation.map(|a| &**a), banks };
        self.counters.access(site.pc, &counted, self.launch);
    }

    /// Tells the checkers of an access where some lanes may be at fault; an error where no checker reports that.
    fn tell(
        &mut self,
        site: Site,
        space: Space,
        kind: Kind,
        (outside, misaligned): (u32, u32),
        places: Places,
    ) -> Result<()> {
        let bad = outside | misaligned;
        let interest = Interest::of(space, kind.kind);
        let interest = if bad != 0 { interest.and(Interest::BAD_ACCESS) } else { interest };
        if self.watch.wants(interest) {
            let access = Access { outside, misaligned, ..kind.access(site, space, places) };
            self.watch.emit(&Event::Access(&access));
        }
        let checks = &self.launch.options.checks;
        let untold = (outside != 0 && !checks.bounds) || (misaligned != 0 && !checks.alignment);
        if untold {
            let lane = (if checks.bounds { misaligned } else { bad }).trailing_zeros();
            let address = places.address(lane as usize);
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

fn bit(all: u32, lane: usize) -> u32 {
    all | 1 << lane
}

/// Up to 8 bytes at an offset.
pub(super) fn little(from: &[u8], at: usize, bytes: u32) -> u64 {
    let mut out = [0; 8];
    out[..bytes as usize].copy_from_slice(&from[at..at + bytes as usize]);
    u64::from_le_bytes(out)
}
