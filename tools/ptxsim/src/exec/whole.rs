//! Straight-line code of whole warps, with the loads of shared memory in it whose lanes follow a known pattern: most of what
//! most kernels execute, in one loop that does only what must be done anew for each operation. Instructions are counted by
//! stretches, and reads of shared memory noted and told together.

use super::Cluster;
use super::straight::simple;
use super::warp::{RegFile, Warp};
use crate::event::{Interest, Read, Reads, Site};
use crate::program::closed::{Closed, LoadShared};
use crate::program::op::Op;
use crate::scalar::float;
use crate::scalar::lanes::L32;

/// Reads that are noted at most before they are told.
pub(super) const NOTED_MAX: usize = 128;

impl<'a> Cluster<'a> {
    /// Executes at most `left` operations from `start` on, for all lanes of a warp; gives the first one that was not
    /// executed: any that is neither straight-line code nor a quick access nor `mma`.
    pub(super) fn run_whole(&mut self, warp: &mut Warp, start: u32, left: &mut u32) -> u32 {
        let most = *left;
        let pc = vector!('w, self.arch;
            cluster: &'w mut Cluster<'_> = self, warp: &'w mut Warp = warp, start: u32 = start, most: u32 = most
            => u32 { cluster.whole(warp, start, most) }
        );
        let executed = u64::from(pc - start);
        warp.executed += executed;
        self.executed += executed;
        *left -= pc - start;
        pc
    }

    #[inline(always)]
    fn whole(&mut self, warp: &mut Warp, start: u32, left: u32) -> u32 {
        let (arch, program) = (self.arch, self.launch.program);
        let tells = self.counters.on() || self.watch.wants(Interest::SHARED_READ);
        // Operations from `from` on are not counted yet.
        let (mut pc, mut from) = (start, start);
        for closed in program.closed[start as usize..].iter().take(left as usize) {
            match closed {
                Closed::Fma(d, sources) => fma(&mut warp.regs.narrow, *d, *sources),
                Closed::Load(load) => {
                    let read = self.load_shared(&mut warp.regs, warp.cta, (start, pc), load);
                    let Some(read) = read else { break };
                    if tells {
                        self.noted.push(read);
                        if self.noted.len() == NOTED_MAX {
                            self.tell_noted(warp);
                        }
                    }
                }
                Closed::Straight => simple(arch, program, &mut warp.regs, &program.code[pc as usize].op, u32::MAX),
                Closed::Guarded => {
                    let instr = &program.code[pc as usize];
                    let predicate = warp.regs.predicates[instr.guard as usize];
                    let active = if instr.negated { !predicate } else { predicate };
                    self.counters.span(from, pc);
                    self.counters.instruction(pc, active);
                    if active != 0 {
                        simple(arch, program, &mut warp.regs, &instr.op, active);
                    }
                    from = pc + 1;
                }
                Closed::Access => {
                    if !self.noted.is_empty() {
                        self.tell_noted(warp);
                    }
                    if !self.quick(warp, pc, u32::MAX, &program.code[pc as usize]) {
                        break;
                    }
                }
                Closed::Mma => {
                    let Op::Mma(mma) = &program.code[pc as usize].op else { break };
                    if !self.noted.is_empty() {
                        self.tell_noted(warp);
                    }
                    let site = Site { pc, cta: warp.cta, warp: warp.index, mask: u32::MAX, live: warp.live };
                    self.mma(warp, site, mma);
                }
                Closed::Stop => break,
            }
            pc += 1;
        }
        if !self.noted.is_empty() {
            self.tell_noted(warp);
        }
        self.counters.span(from, pc);
        pc
    }

    /// Loads a word of each lane from shared memory if their addresses follow the pattern of this access, or of its head if
    /// that was executed since `start`.
    #[inline(always)]
    fn load_shared(
        &mut self,
        regs: &mut RegFile,
        cta: u32,
        (start, pc): (u32, u32),
        load: &LoadShared,
    ) -> Option<Read> {
        let is_head = load.head == pc || load.head < start;
        let number = 2 * (if is_head { pc } else { load.head }) + 1;
        let pattern = self.patterns[number as usize].as_deref_mut()?;
        if is_head {
            if pattern.lanes() != u32::MAX {
                return None;
            }
            pattern.base = pattern.start32(&regs.narrow[load.base as usize])?;
        }
        let first = pattern.base.wrapping_add(load.offset);
        let at = pattern.inside_shared(first, cta, self.launch.info.shared_bytes)?;
        pattern.read(&self.ctas[cta as usize].shared, at, &mut regs.narrow[load.d as usize]);
        Some(Read { pc, first, pattern: number })
    }

    /// Tells checkers and counters of the reads that were noted.
    #[inline(never)]
    fn tell_noted(&mut self, warp: &Warp) {
        let mut noted = std::mem::take(&mut self.noted);
        if self.watch.wants(Interest::SHARED_READ) {
            let site = Site { pc: noted[0].pc, cta: warp.cta, warp: warp.index, mask: u32::MAX, live: warp.live };
            self.watch.emit_reads(&Reads { site, list: &noted, patterns: &self.patterns });
        }
        if self.counters.on() {
            for read in &noted {
                if let Some(pattern) = self.patterns[read.pattern as usize].as_deref_mut() {
                    self.counters.shared_read(read.pc, pattern.bytes(), pattern.banks());
                }
            }
        }
        noted.clear();
        self.noted = noted;
    }
}

/// `fma.rn.f32` of registers to one that is none of them.
#[inline(always)]
fn fma(rows: &mut [L32], d: u16, [a, b, c]: [u16; 3]) {
    let (first, count) = (rows.as_mut_ptr(), rows.len());
    assert!((d.max(a).max(b).max(c) as usize) < count && d != a && d != b && d != c);
    let row = |slot: u16| first.wrapping_add(slot as usize);
    // SAFETY: `rows` is borrowed exclusively; all four rows are inside, and the one that is written is none that is read.
    unsafe { float::fma(&*row(a), &*row(b), &*row(c), &mut *row(d)) }
}
