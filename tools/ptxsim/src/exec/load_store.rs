//! Loads and stores of registers, once their addresses are tested: whole runs of words at a time where lanes lie side by side.

use std::sync::atomic::Ordering::Relaxed;

use super::Cluster;
use super::access::{Kind, Tested, little};
use super::quick::read_run;
use super::warp::Warp;
use crate::address::{Space, shared_rank};
use crate::error::Result;
use crate::event::{AccessKind, Site};
use crate::program::op::{AddressBase, AnySrc, Memory, MemorySpace, NONE};
use crate::scalar::lanes::{L32, L64, blend32, blend64, each};

impl<'a> Cluster<'a> {
    /// `ld`.
    #[inline(never)]
    pub(super) fn load(&mut self, warp: &mut Warp, site: Site, memory: &Memory) -> Result<()> {
        if memory.space == MemorySpace::FrameParam {
            self.load_frame_param(warp, site, memory);
            return Ok(());
        }
        let size = memory.ty.bytes();
        let total = size * memory.registers.len() as u32;
        let mut addresses = self.addresses(warp, memory.address);
        if memory.space == MemorySpace::EntryParam && memory.address.base == AddressBase::Zero {
            return self.load_param(warp, site, memory);
        }
        let kind = Kind { semantics: memory.semantics, scope: memory.scope, ..Kind::plain(AccessKind::Read, total) };
        self.by_space(memory.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
            let site = Site { mask: lanes, ..site };
            let tested = cluster.test(warp.local_bytes, site, space, addresses, kind)?;
            cluster.turn_before_access(&tested);
            for (index, register) in memory.registers.iter().enumerate() {
                cluster.load_element(warp, lanes, &tested, addresses, (index as u32 * size) as u64, memory, *register);
            }
            Ok(())
        })
    }

    /// One element of every lane into a register. Lanes that failed the test get zero.
    #[allow(clippy::too_many_arguments)]
    fn load_element(
        &mut self,
        warp: &mut Warp,
        lanes: u32,
        tested: &Tested<'a>,
        addresses: &L64,
        offset: u64,
        memory: &Memory,
        register: AnySrc,
    ) {
        let bytes = memory.ty.bytes();
        let signed = memory.ty.signed();
        match register {
            AnySrc::Narrow(NONE) => {}
            AnySrc::Narrow(slot) => {
                let mut out = L32::ZERO;
                if bytes == 4 {
                    self.peek_words(warp, tested, addresses, offset, &mut out);
                } else {
                    for lane in each(tested.lanes) {
                        let value = self.peek(warp, tested, lane, addresses.0[lane] + offset, bytes);
                        // A signed byte or half is extended to the width of its register.
                        let value = if signed { extend(value, bytes) as u32 } else { value as u32 };
                        out.0[lane] = if memory.half { value & 0xffff } else { value };
                    }
                }
                blend32(self.arch, &mut warp.regs.narrow[slot as usize], &out, lanes);
            }
            AnySrc::Wide(slot) => {
                let mut out = L64::ZERO;
                for lane in each(tested.lanes) {
                    let value = self.peek(warp, tested, lane, addresses.0[lane] + offset, bytes);
                    out.0[lane] = if signed { extend(value, bytes) } else { value };
                }
                blend64(self.arch, &mut warp.regs.wide[slot as usize], &out, lanes);
            }
        }
    }

    /// 32-bit elements: the frequent case.
    #[inline]
    fn peek_words(&self, warp: &Warp, tested: &Tested<'a>, addresses: &L64, offset: u64, out: &mut L32) {
        match (tested.space, tested.near) {
            (Space::Global | Space::Const, Some(near)) => {
                let Some(a) = tested.allocation else { return };
                let start = offset.wrapping_sub(near.base);
                let word = |lane: usize| a.word(addresses.0[lane].wrapping_add(start)).load(Relaxed);
                match tested.lanes {
                    u32::MAX => (0..32).for_each(|lane| out.0[lane] = word(lane)),
                    lanes => each(lanes).for_each(|lane| out.0[lane] = word(lane)),
                }
            }
            (Space::Shared, Some(near)) => {
                let shared = &self.ctas[shared_rank(near.base) as usize].shared;
                let Some(pattern) = self.patterns[near.pattern].as_deref() else { return };
                let start = (near.first - near.base).wrapping_add(offset);
                for run in &pattern.runs {
                    let at = start.wrapping_add(run.address) as usize;
                    let out = &mut out.0[run.lane as usize..][..run.lanes as usize];
                    read_run(shared, at, pattern.stride(run), out);
                }
            }
            _ => {
                for lane in each(tested.lanes) {
                    out.0[lane] = self.peek(warp, tested, lane, addresses.0[lane] + offset, 4) as u32;
                }
            }
        }
    }

    /// A parameter of the entry: the same for every lane.
    fn load_param(&mut self, warp: &mut Warp, site: Site, memory: &Memory) -> Result<()> {
        let size = memory.ty.bytes();
        let total = size as u64 * memory.registers.len() as u64;
        let start = memory.address.offset as u64;
        if start.saturating_add(total) > self.launch.params.len() as u64 || !start.is_multiple_of(total) {
            let addresses = L64([start; 32]);
            let kind = Kind::plain(AccessKind::Read, total as u32);
            self.test(0, site, Space::Param, &addresses, kind)?;
            return Ok(());
        }
        for (index, register) in memory.registers.iter().enumerate() {
            let value = little(&self.launch.params, start as usize + index * size as usize, size);
            let value = if memory.ty.signed() { extend(value, size) } else { value };
            match *register {
                AnySrc::Narrow(NONE) => {}
                AnySrc::Narrow(slot) => {
                    blend32(self.arch, &mut warp.regs.narrow[slot as usize], &L32([value as u32; 32]), site.mask)
                }
                AnySrc::Wide(slot) => {
                    blend64(self.arch, &mut warp.regs.wide[slot as usize], &L64([value; 32]), site.mask)
                }
            }
        }
        Ok(())
    }

    fn load_frame_param(&mut self, warp: &mut Warp, site: Site, memory: &Memory) {
        let size = memory.ty.bytes();
        let addresses = self.addresses(warp, memory.address);
        let frame = warp.frame as usize;
        for (index, register) in memory.registers.iter().enumerate() {
            for lane in each(site.mask) {
                let stride = warp.frames[frame].param_bytes as usize;
                let inside = addresses.0[lane] as usize + index * size as usize;
                let at = lane * stride + inside;
                let fits = inside + size as usize <= stride;
                let value = if fits { little(&warp.frames[frame].params, at, size) } else { 0 };
                let value = if memory.ty.signed() { extend(value, size) } else { value };
                match *register {
                    AnySrc::Narrow(NONE) => {}
                    AnySrc::Narrow(slot) => warp.regs.narrow[slot as usize].0[lane] = value as u32,
                    AnySrc::Wide(slot) => warp.regs.wide[slot as usize].0[lane] = value,
                }
            }
        }
    }

    /// `st`.
    #[inline(never)]
    pub(super) fn store(&mut self, warp: &mut Warp, site: Site, memory: &Memory) -> Result<()> {
        let size = memory.ty.bytes();
        if memory.space == MemorySpace::FrameParam {
            self.store_frame_param(warp, site, memory);
            return Ok(());
        }
        let total = size * memory.registers.len() as u32;
        let mut addresses = self.addresses(warp, memory.address);
        let kind = Kind { semantics: memory.semantics, scope: memory.scope, ..Kind::plain(AccessKind::Write, total) };
        self.by_space(memory.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
            let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
            cluster.turn_before_access(&tested);
            for (index, register) in memory.registers.iter().enumerate() {
                let offset = (index as u32 * size) as u64;
                if size == 4
                    && let AnySrc::Narrow(slot) = register
                {
                    let values = *cluster.launch.program.source32(&warp.regs, *slot);
                    cluster.poke_words(warp, &tested, addresses, offset, &values);
                    continue;
                }
                for lane in each(tested.lanes) {
                    let value = cluster.launch.program.lane(&warp.regs, *register, lane);
                    cluster.poke(warp, &tested, lane, addresses.0[lane] + offset, size, value);
                }
            }
            Ok(())
        })
    }

    #[inline]
    fn poke_words(&mut self, warp: &mut Warp, tested: &Tested<'a>, addresses: &L64, offset: u64, values: &L32) {
        match (tested.space, tested.near) {
            (Space::Global | Space::Const, Some(near)) => {
                let Some(a) = tested.allocation else { return };
                let start = offset.wrapping_sub(near.base);
                for lane in each(tested.lanes) {
                    a.word(addresses.0[lane].wrapping_add(start)).store(values.0[lane], Relaxed);
                }
            }
            (Space::Shared, Some(near)) => {
                let start = offset.wrapping_sub(near.base);
                let shared = &mut self.ctas[shared_rank(near.base) as usize].shared;
                for lane in each(tested.lanes) {
                    let at = addresses.0[lane].wrapping_add(start) as usize;
                    shared[at..at + 4].copy_from_slice(&values.0[lane].to_le_bytes());
                }
            }
            _ => {
                for lane in each(tested.lanes) {
                    self.poke(warp, tested, lane, addresses.0[lane] + offset, 4, values.0[lane] as u64);
                }
            }
        }
    }

    fn store_frame_param(&mut self, warp: &mut Warp, site: Site, memory: &Memory) {
        let size = memory.ty.bytes() as usize;
        let addresses = self.addresses(warp, memory.address);
        let frame = warp.frame as usize;
        for (index, register) in memory.registers.iter().enumerate() {
            for lane in each(site.mask) {
                let value = self.launch.program.lane(&warp.regs, *register, lane);
                let stride = warp.frames[frame].param_bytes as usize;
                let inside = addresses.0[lane] as usize + index * size;
                if inside + size <= stride {
                    let at = lane * stride + inside;
                    warp.frames[frame].params[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
            }
        }
    }
}

fn extend(value: u64, bytes: u32) -> u64 {
    match bytes {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}
