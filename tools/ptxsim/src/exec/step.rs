//! The interpreter: picks a group of a warp, runs its instructions, splits and merges groups.

use super::straight::{self, Run};
use super::warp::{Group, Wait, Warp};
use super::{Cluster, Turn};
use crate::error::Result;
use crate::event::{Event, Interest, Site};
use crate::options::Schedule;
use crate::program::op::{Instr, NONE, Op};

/// Basic blocks that one group may run while others of its warp wait for a turn.
const STARVATION: u32 = 4096;
/// A block that asks memory by an atomic counts as this many: it may wait for another group of its warp.
const ASKING: u32 = 256;

/// Groups that give up their turn after so few instructions each only asked for something that has not happened.
pub(super) const ASK: u32 = 16;

/// What becomes of a group after an instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum After {
    /// The next instruction.
    Next,
    /// Another instruction, for all its lanes.
    Jump(u32),
    /// It waits, at this instruction.
    Wait(Wait),
    /// The next instruction, after others had a turn.
    Yield,
    /// The group was replaced in the warp's list (calls, returns, exits, divergent branches).
    Regroup,
}

impl<'a> Cluster<'a> {
    /// Runs a warp until it blocks or has executed `quantum` instructions.
    pub(super) fn run_warp(&mut self, warp: &mut Warp, quantum: u32) -> Result<Turn> {
        let mut left = quantum;
        let mut asked = 0;
        while left > 0 && warp.live != 0 {
            let Some(index) = self.pick(warp) else { break };
            let yielded = self.run_group(warp, index, &mut left)?;
            asked += u32::from(yielded);
            if yielded && warp.groups.iter().all(|group| group.yielded || group.wait.is_some()) {
                break;
            }
        }
        Ok(match quantum - left {
            0 => Turn::Blocked,
            executed if executed <= ASK * asked || left == 0 && warp.live != 0 => Turn::Spun,
            _ => Turn::Worked,
        })
    }

    /// The group to run: the first in the order of the program (deepest call first), or a random one. Groups whose wait is
    /// over are resumed on the way.
    fn pick(&mut self, warp: &mut Warp) -> Option<usize> {
        // A group that goes on may take others in, which leave the list.
        let mut index = 0;
        while index < warp.groups.len() {
            if warp.groups[index].wait.is_some() {
                self.resume(warp, index);
            }
            index += 1;
        }
        let program = &self.launch.program;
        let free = |group: &Group| group.wait.is_none();
        if warp.groups.iter().all(|group| group.yielded || !free(group)) {
            warp.groups.iter_mut().for_each(|group| group.yielded = false);
        }
        let mut candidates = warp.groups.iter().enumerate().filter(|(_, group)| free(group) && !group.yielded);
        if self.launch.options.schedule == Schedule::Random {
            let count = candidates.clone().count() as u64;
            let chosen = if count <= 1 { 0 } else { self.random.below(count) as usize };
            return candidates.nth(chosen).map(|(index, _)| index);
        }
        let key = |group: &Group| {
            (std::cmp::Reverse(warp.frames[group.frame as usize].depth), program.rank[group.pc as usize], group.pc)
        };
        candidates.min_by_key(|(_, group)| key(group)).map(|(index, _)| index)
    }

    /// Takes a group whose wait is over past its instruction.
    fn resume(&mut self, warp: &mut Warp, index: usize) {
        let over = match &warp.groups[index].wait {
            Some(Wait::Barrier { id, generation }) => {
                self.ctas[warp.cta as usize].barriers[*id as usize].generation > *generation
            }
            Some(Wait::Grid) => self.hold == super::Hold::Nowhere,
            Some(Wait::ClusterBarrier { generation }) => self.cluster_barrier.generation > *generation,
            Some(Wait::Registers(count)) => {
                // The instruction runs again, and takes them.
                let needed = 32 * (*count - warp.registers);
                if self.ctas[warp.cta as usize].free_registers >= needed {
                    warp.groups[index].wait = None;
                }
                return;
            }
            Some(Wait::WarpBarrier(mask)) => {
                let mask = *mask;
                let there = warp.groups.iter().filter(|group| group.wait == Some(Wait::WarpBarrier(mask)));
                let there = there.fold(0, |all, group| all | group.mask);
                if there & mask & warp.live == mask & warp.live {
                    self.warp_barrier_passed(warp, mask, there);
                }
                return;
            }
            Some(Wait::Gather) => {
                // Lanes that it waited for may have exited since.
                let group = &warp.groups[index];
                if self.gathered(warp, group.pc, group.mask, group.frame) {
                    warp.groups[index].wait = None;
                }
                return;
            }
            None => return,
        };
        if over && let Some(wait) = warp.groups[index].wait.take() {
            warp.enter(warp.groups[index].frame);
            let group = &warp.groups[index];
            let site = Site { pc: group.pc, cta: warp.cta, warp: warp.index, mask: group.mask, live: warp.live };
            self.barrier_passed(warp, site, &wait);
            warp.groups[index].pc += 1;
            self.merge(warp, index);
        }
    }

    /// Merges other groups at the same instruction into this one.
    fn merge(&self, warp: &mut Warp, index: usize) {
        let (pc, frame) = (warp.groups[index].pc, warp.groups[index].frame);
        let mut extra = 0;
        let same = |group: &Group| group.pc == pc && group.frame == frame && group.wait.is_none();
        for (other, group) in warp.groups.iter_mut().enumerate() {
            if other != index && same(group) {
                extra |= group.mask;
                group.mask = 0;
            }
        }
        if extra != 0 {
            warp.groups[index].mask |= extra;
            warp.groups.retain(|group| group.mask != 0);
        }
    }

    /// Runs one group until it waits, is replaced, or another should run. True if it gave up its turn by itself.
    fn run_group(&mut self, warp: &mut Warp, index: usize, left: &mut u32) -> Result<bool> {
        let launch = self.launch;
        let program = &launch.program;
        warp.enter(warp.groups[index].frame);
        let Group { mut pc, mut mask, .. } = warp.groups[index];
        let alone = warp.groups.len() == 1;
        let mut asks = false;
        loop {
            if *left == 0 {
                warp.groups[index].pc = pc;
                return Ok(false);
            }
            if alone && mask == u32::MAX && !self.tells_registers {
                pc = self.run_whole(warp, pc, left);
                if *left == 0 {
                    continue;
                }
            }
            let mut instr = &program.code[pc as usize];
            if instr.straight && !self.tells_registers {
                let mut run = Run { pc, mask, left: *left, in_block: !alone };
                straight::run(self.arch, program, &mut warp.regs, &mut self.counters, &mut run);
                let executed = (*left - run.left) as u64;
                warp.executed += executed;
                self.executed += executed;
                (pc, *left) = (run.pc, run.left);
                if !alone && program.leader[pc as usize] {
                    if self.leave(warp, index, pc, false) {
                        return Ok(false);
                    }
                    continue;
                }
                if *left == 0 {
                    continue;
                }
                instr = &program.code[pc as usize];
            }
            let mut active = mask;
            if instr.guard != NONE {
                let predicate = warp.regs.predicates[instr.guard as usize];
                active &= if instr.negated { !predicate } else { predicate };
            }
            if !self.tells_registers && self.quick(warp, pc, active, instr) {
                *left -= 1;
                warp.executed += 1;
                self.executed += 1;
                self.counters.instruction(pc, active);
                pc += 1;
                if !alone && program.leader[pc as usize] && self.leave(warp, index, pc, std::mem::take(&mut asks)) {
                    return Ok(false);
                }
                continue;
            }
            if instr.gathers && active != 0 {
                let Some(gathered) = self.gather(warp, index, pc, mask, active) else { return Ok(false) };
                if gathered != mask {
                    // Groups merged or split; the list has changed.
                    return Ok(false);
                }
                (mask, active) = (gathered, gathered);
            }
            *left -= 1;
            warp.executed += 1;
            self.executed += 1;
            self.counters.instruction(pc, active);
            if active == 0 {
                pc += 1;
            } else {
                asks |= matches!(&instr.op, Op::Atomic(atomic) if atomic.result_used);
                let site = Site { pc, cta: warp.cta, warp: warp.index, mask: active, live: warp.live };
                if self.tells_registers {
                    self.tell_registers(site, instr);
                }
                match self.execute(warp, site, mask, index, instr)? {
                    After::Next => pc += 1,
                    After::Jump(to) => pc = to,
                    After::Wait(wait) => {
                        let group = &mut warp.groups[index];
                        (group.pc, group.wait) = (pc, Some(wait));
                        return Ok(false);
                    }
                    After::Yield => {
                        let group = &mut warp.groups[index];
                        (group.pc, group.yielded) = (pc + 1, true);
                        return Ok(true);
                    }
                    After::Regroup => return Ok(false),
                }
            }
            if !alone && program.leader[pc as usize] {
                if self.leave(warp, index, pc, asks) {
                    return Ok(false);
                }
                asks = false;
            }
        }
    }

    /// At the start of a block: whether another group of the warp should run before this one, or joins it.
    fn leave(&self, warp: &mut Warp, index: usize, pc: u32, asks: bool) -> bool {
        let program = &self.launch.program;
        let group = &mut warp.groups[index];
        group.age += if asks { ASKING } else { 1 };
        if group.age >= STARVATION {
            (group.pc, group.yielded, group.age) = (pc, true, 0);
            return true;
        }
        let frame = group.frame;
        let order = (std::cmp::Reverse(warp.frames[frame as usize].depth), program.rank[pc as usize]);
        let meets = |group: &Group| {
            let depth = warp.frames[group.frame as usize].depth;
            group.wait.is_none() && (std::cmp::Reverse(depth), program.rank[group.pc as usize]) <= order
        };
        if !warp.groups.iter().enumerate().any(|(other, group)| other != index && meets(group)) {
            return false;
        }
        warp.groups[index].pc = pc;
        if self.launch.options.schedule != Schedule::Random {
            self.merge(warp, index);
        }
        true
    }

    /// Whether all lanes that must execute the instruction together are in `mask`.
    fn gathered(&self, warp: &Warp, pc: u32, mask: u32, frame: u32) -> bool {
        self.needed(warp, pc, mask, frame) & !mask == 0
    }

    fn needed(&self, warp: &Warp, pc: u32, mask: u32, frame: u32) -> u32 {
        let instr = &self.launch.program.code[pc as usize];
        match &instr.op {
            op if op.aligned() => warp.live,
            Op::Collective(_, members) => {
                let regs = if warp.frame == frame { &warp.regs } else { &warp.frames[frame as usize].regs };
                let members = self.launch.program.source32(regs, *members);
                let all = crate::scalar::lanes::each(mask).fold(0, |all, lane| all | members.0[lane]);
                all & warp.live
            }
            _ => 0,
        }
    }

    /// Before an instruction that lanes execute together: lanes that skip it go on alone, groups that wait at it join.
    /// Gives the group's mask when all are there; `None` when it waits.
    fn gather(&mut self, warp: &mut Warp, index: usize, pc: u32, mask: u32, active: u32) -> Option<u32> {
        let frame = warp.groups[index].frame;
        warp.groups[index].pc = pc;
        let mut together = active;
        if active != mask {
            let skip = Group::new(pc + 1, mask & !active, frame);
            warp.groups[index].mask = active;
            warp.groups.push(skip);
        }
        for other in 0..warp.groups.len() {
            let group = &warp.groups[other];
            if other != index && group.pc == pc && group.frame == frame && group.wait == Some(Wait::Gather) {
                together |= group.mask;
                warp.groups[other].mask = 0;
            }
        }
        let forced = warp.groups[index].forced;
        warp.groups[index].mask = together;
        if !forced && !self.gathered(warp, pc, together, frame) {
            warp.groups[index].wait = Some(Wait::Gather);
            warp.groups.retain(|group| group.mask != 0);
            return None;
        }
        if together != mask {
            // Run it from the pick on, with the new lanes.
            warp.groups.retain(|group| group.mask != 0);
            return Some(together);
        }
        if forced {
            warp.groups[index].forced = false;
            if self.watch.wants(Interest::CONTROL) {
                let site = Site { pc, cta: warp.cta, warp: warp.index, mask: together, live: warp.live };
                self.watch.emit(&Event::PartialWarp(site));
            }
        }
        Some(together)
    }

    /// A conditional branch: all lanes go, none does, or the group splits.
    pub(super) fn branch(&mut self, warp: &mut Warp, site: Site, mask: u32, index: usize, target: u32) -> After {
        if site.mask == mask {
            return After::Jump(target);
        }
        self.counters.divergent(site.pc);
        let frame = warp.groups[index].frame;
        let group = &mut warp.groups[index];
        (group.pc, group.mask) = (site.pc + 1, mask & !site.mask);
        warp.groups.push(Group::new(target, site.mask, frame));
        After::Regroup
    }

    /// `brx.idx`: every lane by its index; lanes whose index is beyond the list exit with an error.
    pub(super) fn branch_indexed(
        &mut self,
        warp: &mut Warp,
        site: Site,
        mask: u32,
        index: usize,
        instr: &Instr,
    ) -> Result<After> {
        let Op::BranchIndexed(source, targets) = &instr.op else { return Ok(After::Next) };
        let values = *self.launch.program.source32(&warp.regs, *source);
        let frame = warp.groups[index].frame;
        let mut rest = site.mask;
        if mask == site.mask {
            warp.groups[index].mask = 0;
        } else {
            let group = &mut warp.groups[index];
            (group.pc, group.mask) = (site.pc + 1, mask & !site.mask);
        }
        while rest != 0 {
            let value = values.0[rest.trailing_zeros() as usize];
            let lanes = crate::scalar::lanes::each(rest).filter(|&lane| values.0[lane] == value);
            let lanes = lanes.fold(0u32, |all, lane| all | 1 << lane);
            let Some(&target) = targets.get(value as usize) else {
                return Err(self.error(site, &format!("index {value} is beyond the {} targets", targets.len())));
            };
            warp.groups.push(Group::new(target, lanes, frame));
            rest &= !lanes;
        }
        warp.groups.retain(|group| group.mask != 0);
        Ok(After::Regroup)
    }

    /// `exit`, or the entry's `ret`.
    pub(super) fn exit(&mut self, warp: &mut Warp, site: Site, mask: u32, index: usize) -> After {
        warp.live &= !site.mask;
        if site.mask == mask {
            warp.groups.swap_remove(index);
        } else {
            let group = &mut warp.groups[index];
            (group.pc, group.mask) = (site.pc + 1, mask & !site.mask);
        }
        if self.watch.wants(Interest::CONTROL) {
            self.watch.emit(&Event::Exit(Site { live: warp.live, ..site }));
        }
        if warp.live == 0 {
            let cta = &mut self.ctas[warp.cta as usize];
            cta.live_warps -= 1;
            if cta.live_warps == 0 && self.watch.wants(Interest::CONTROL) {
                self.watch.emit(&Event::CtaExit(warp.cta));
            }
        }
        self.barriers_after_exit(warp);
        After::Regroup
    }
}
