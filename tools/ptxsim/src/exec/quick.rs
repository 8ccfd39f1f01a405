//! Loads and stores of words whose lanes follow the pattern that their instruction learnt before: the frequent case, done
//! run by run, without a look at each lane. Everything else takes the general way.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Cluster;
use super::access::Kind;
use super::pattern::Pattern;
use super::warp::Warp;
use crate::address::{SHARED_STRIDE, Space};
use crate::event::{AccessKind, Event, Interest, Site};
use crate::memory::Allocation;
use crate::program::Program;
use crate::program::op::{AnySrc, Instr, Memory, Op, Quick};

impl<'a> Cluster<'a> {
    /// Does a load or store if this is the frequent case.
    #[inline]
    pub(super) fn quick(&mut self, warp: &mut Warp, pc: u32, active: u32, instr: &Instr) -> bool {
        let (Op::Load(memory) | Op::Store(memory)) = &instr.op else { return false };
        let Some(quick) = memory.quick else { return false };
        if active == 0 {
            return true;
        }
        let site = Site { pc, cta: warp.cta, warp: warp.index, mask: active, live: warp.live };
        let is_load = matches!(&instr.op, Op::Load(_));
        let (space, number, kind) = match (quick, is_load) {
            (Quick::Shared(_), true) => (Space::Shared, 2 * pc as usize + 1, AccessKind::Read),
            (Quick::Shared(_), false) => (Space::Shared, 2 * pc as usize + 1, AccessKind::Write),
            (Quick::Global(_), true) => (Space::Global, 2 * pc as usize, AccessKind::Read),
            (Quick::Global(_), false) => (Space::Global, 2 * pc as usize, AccessKind::Write),
        };
        match (is_load, self.counters.on() || self.watch.wants(Interest::of(space, kind))) {
            (true, false) => self.quick_load(warp, site, memory, quick, number).is_some(),
            (false, false) => self.quick_store(warp, site, memory, quick, number).is_some(),
            (_, true) => {
                let done = match is_load {
                    true => self.quick_load(warp, site, memory, quick, number),
                    false => self.quick_store(warp, site, memory, quick, number),
                };
                let Some((first, allocation)) = done else { return false };
                let kind = Kind::plain(kind, memory.bytes());
                self.tell_pattern(site, space, kind, allocation, (number, first));
                true
            }
        }
    }

    /// Gives the first address, and for global memory the allocation, when the load was done.
    #[inline(always)]
    fn quick_load(
        &mut self,
        warp: &mut Warp,
        site: Site,
        memory: &Memory,
        quick: Quick,
        number: usize,
    ) -> Option<(u64, Option<&'a Arc<Allocation>>)> {
        let pattern = self.patterns[number].as_deref_mut().filter(|pattern| pattern.lanes() == site.mask)?;
        let offset = memory.address.offset as u64;
        let regs = &mut warp.regs;
        match quick {
            Quick::Shared(slot) => {
                let range = (warp.cta as u64 * SHARED_STRIDE, self.launch.info.shared_bytes as u64);
                let shared = self.ctas[warp.cta as usize].shared.as_slice();
                let first = vector!('w, self.arch;
                    pattern: &'w Pattern = pattern, regs: &'w mut super::warp::RegFile = regs, memory: &'w Memory = memory,
                    slot: u16 = slot, offset: u64 = offset, range: (u64, u64) = range, shared: &'w [u8] = shared
                    => Option<u64> {
                        let base = pattern.start32(&regs.narrow[slot as usize])?;
                        let first = pattern.inside(base.wrapping_add(offset as u32) as u64, range)?;
                        for (index, register) in memory.registers.iter().enumerate() {
                            let AnySrc::Narrow(slot) = *register else { continue };
                            let start = first - range.0 + 4 * index as u64;
                            for run in &pattern.runs {
                                let at = start.wrapping_add(run.address) as usize;
                                let out = &mut regs.narrow[slot as usize].0[run.lane as usize..][..run.lanes as usize];
                                read_run(shared, at, pattern.stride(run), out);
                            }
                        }
                        Some(first)
                    }
                );
                first.map(|first| (first, None))
            }
            Quick::Global(slot) => {
                let first = pattern.start64(self.arch, &regs.wide[slot as usize])?.wrapping_add(offset);
                let allocation = self.launch.memory.find(first)?;
                let range = (allocation.base, allocation.bytes);
                pattern.inside(first, range).filter(|_| self.deferred.is_empty())?;
                let number = warp.cta * self.launch.info.warps() + warp.index;
                let next = pattern.next_read(number as usize, first);
                if let Some(next) = pattern.inside(next, range).filter(|next| *next != first) {
                    fetch_ahead(allocation, next - range.0, pattern);
                }
                for (index, register) in memory.registers.iter().enumerate() {
                    let AnySrc::Narrow(slot) = *register else { continue };
                    let start = first - range.0 + 4 * index as u64;
                    for run in &pattern.runs {
                        let out = &mut regs.narrow[slot as usize].0[run.lane as usize..][..run.lanes as usize];
                        let at = start.wrapping_add(run.address);
                        read_global(allocation, at, pattern.stride(run) as u64, out);
                    }
                }
                Some((first, Some(allocation)))
            }
        }
    }

    /// The same for a store.
    #[inline(always)]
    fn quick_store(
        &mut self,
        warp: &mut Warp,
        site: Site,
        memory: &Memory,
        quick: Quick,
        number: usize,
    ) -> Option<(u64, Option<&'a Arc<Allocation>>)> {
        let pattern = self.patterns[number].as_deref().filter(|pattern| pattern.lanes() == site.mask)?;
        let (program, regs, offset) = (self.launch.program, &warp.regs, memory.address.offset as u64);
        match quick {
            Quick::Shared(slot) => {
                let range = (warp.cta as u64 * SHARED_STRIDE, self.launch.info.shared_bytes as u64);
                let shared = self.ctas[warp.cta as usize].shared.as_mut_slice();
                let first = vector!('w, self.arch;
                    pattern: &'w Pattern = pattern, regs: &'w super::warp::RegFile = regs, memory: &'w Memory = memory,
                    program: &'w Program = program, slot: u16 = slot, offset: u64 = offset, range: (u64, u64) = range,
                    shared: &'w mut [u8] = shared
                    => Option<u64> {
                        let base = pattern.start32(&regs.narrow[slot as usize])?;
                        let first = pattern.inside(base.wrapping_add(offset as u32) as u64, range)?;
                        for (index, register) in memory.registers.iter().enumerate() {
                            let AnySrc::Narrow(source) = *register else { continue };
                            let start = first - range.0 + 4 * index as u64;
                            for run in &pattern.runs {
                                let at = start.wrapping_add(run.address) as usize;
                                let values = &program.source32(regs, source).0[run.lane as usize..][..run.lanes as usize];
                                write_run(shared, at, pattern.stride(run), values);
                            }
                        }
                        Some(first)
                    }
                );
                first.map(|first| (first, None))
            }
            Quick::Global(slot) => {
                let first = pattern.start64(self.arch, &regs.wide[slot as usize])?.wrapping_add(offset);
                let allocation = self.launch.memory.find(first).filter(|a| !a.constant)?;
                let range = (allocation.base, allocation.bytes);
                pattern.inside(first, range).filter(|_| self.deferred.is_empty())?;
                for (index, register) in memory.registers.iter().enumerate() {
                    let AnySrc::Narrow(source) = *register else { continue };
                    let start = first - range.0 + 4 * index as u64;
                    for run in &pattern.runs {
                        let values = &program.source32(regs, source).0[run.lane as usize..][..run.lanes as usize];
                        let at = start.wrapping_add(run.address);
                        write_global(allocation, at, pattern.stride(run) as u64, values);
                    }
                }
                Some((first, Some(allocation)))
            }
        }
    }

    /// Tells checkers and counters of an access without faults that follows a pattern from `first` on.
    #[inline]
    pub(super) fn tell_pattern(
        &mut self,
        site: Site,
        space: Space,
        kind: Kind,
        allocation: Option<&Arc<Allocation>>,
        (number, first): (usize, u64),
    ) {
        let Some(mut pattern) = self.patterns[number].take() else { return };
        let banks = (space == Space::Shared).then(|| pattern.banks());
        let places = pattern.places(first);
        let interest = Interest::of(space, kind.kind);
        if self.watch.wants(interest) {
            self.watch.emit_as(interest, &Event::Access(&kind.access(site, space, places)));
        }
        self.count(site, space, kind, allocation, places, banks);
        self.patterns[number] = Some(pattern);
    }
}

/// Words of shared memory, one for each lane of a run, `stride` bytes apart.
#[inline(always)]
pub(super) fn read_run(shared: &[u8], at: usize, stride: usize, out: &mut [u32]) {
    /// Words side by side; a copy of a known length needs no call.
    #[inline(always)]
    fn side_by_side<const N: usize>(from: &[u8], out: &mut [u32]) {
        let words = from.as_chunks::<4>().0[..N].iter();
        out[..N].iter_mut().zip(words).for_each(|(out, word)| *out = u32::from_le_bytes(*word));
    }
    let from = &shared[at..];
    let word = |at: usize| from[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    match (stride, out.len()) {
        (0, 32) => out[..32].fill(word(0)),
        (0, 16) => out[..16].fill(word(0)),
        (0, 1) => out[0] = word(0),
        (0, _) => out.fill(word(0)),
        (4, 32) => side_by_side::<32>(from, out),
        (4, 16) => side_by_side::<16>(from, out),
        (4, 8) => side_by_side::<8>(from, out),
        _ => out.iter_mut().enumerate().for_each(|(i, out)| *out = word(i * stride)),
    }
}

/// The opposite; of lanes at one place the last one wins.
#[inline(always)]
fn write_run(shared: &mut [u8], at: usize, stride: usize, values: &[u32]) {
    #[inline(always)]
    fn side_by_side<const N: usize>(to: &mut [u8], values: &[u32]) {
        let words = to.as_chunks_mut::<4>().0[..N].iter_mut();
        words.zip(&values[..N]).for_each(|(word, value)| *word = value.to_le_bytes());
    }
    let to = &mut shared[at..];
    match (stride, values.len()) {
        (4, 32) => side_by_side::<32>(to, values),
        (4, 16) => side_by_side::<16>(to, values),
        (4, 8) => side_by_side::<8>(to, values),
        _ => {
            for (i, value) in values.iter().enumerate() {
                to[i * stride..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// Fetches what a warp will mostly read when it comes to this instruction again. The processor cannot know, and would wait
/// for it: a tenth of a matrix product's time.
#[inline(always)]
fn fetch_ahead(a: &Allocation, at: u64, pattern: &Pattern) {
    #[cfg(target_arch = "x86_64")]
    for run in &pattern.runs {
        // A word of each line of 64 bytes.
        for word in a.words_from(at.wrapping_add(run.address))[..run.bytes as usize / 4].iter().step_by(16) {
            // SAFETY: a hint, which touches nothing as far as the program can tell.
            unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>((&raw const *word).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (a, at, pattern);
}

/// Words of an allocation, one for each lane of a run, `stride` bytes apart.
#[inline(always)]
fn read_global(a: &Allocation, at: u64, stride: u64, out: &mut [u32]) {
    match stride {
        0 => out.fill(a.word(at).load(Relaxed)),
        4 => out.iter_mut().zip(a.words_from(at)).for_each(|(out, word)| *out = word.load(Relaxed)),
        _ => out.iter_mut().zip(0..).for_each(|(out, i)| *out = a.word(at + i * stride).load(Relaxed)),
    }
}

/// The opposite; of lanes at one place the last one wins.
#[inline(always)]
fn write_global(a: &Allocation, at: u64, stride: u64, values: &[u32]) {
    match stride {
        4 => values.iter().zip(a.words_from(at)).for_each(|(value, word)| word.store(*value, Relaxed)),
        _ => values.iter().zip(0..).for_each(|(value, i)| a.word(at + i * stride).store(*value, Relaxed)),
    }
}
