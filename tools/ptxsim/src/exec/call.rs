//! Calls and returns: a frame per call, shared by the lanes that make it together.

use super::Cluster;
use super::step::After;
use super::warp::{Group, Warp};
use crate::error::Result;
use crate::event::Site;
use crate::program::LOCAL_BYTES_MAX;
use crate::program::op::{Call, CallTarget, Op};
use crate::scalar::lanes::each;

/// Calls may be nested this deep: a recursion without an end stops here rather than in memory.
const DEPTH_MAX: u32 = 4096;

impl<'a> Cluster<'a> {
    pub(super) fn call(&mut self, warp: &mut Warp, site: Site, mask: u32, index: usize, call: &Call) -> Result<After> {
        let number = match call.target {
            CallTarget::Function(number) => number,
            CallTarget::Indirect(source) => return self.call_indirect(warp, site, mask, index, call, source),
            CallTarget::Vprintf => {
                self.vprintf(warp, site, call)?;
                return Ok(After::Next);
            }
            CallTarget::AssertFail => return Err(self.assert_fail(warp, site, call)),
            CallTarget::Malloc => {
                self.malloc(warp, site, call);
                return Ok(After::Next);
            }
            CallTarget::Free => {
                self.free(warp, site, call)?;
                return Ok(After::Next);
            }
        };
        let group = self.enter(warp, site, number, &call.arguments)?;
        if site.mask == mask {
            warp.groups[index] = group;
        } else {
            (warp.groups[index].pc, warp.groups[index].mask) = (site.pc + 1, mask & !site.mask);
            warp.groups.push(group);
        }
        Ok(After::Regroup)
    }

    /// A frame of a function for the lanes of `site.mask`; gives the group that runs it.
    fn enter(&self, warp: &mut Warp, site: Site, number: u16, arguments: &[(u32, u32, u32)]) -> Result<Group> {
        let function = &self.launch.program.functions[number as usize];
        let caller = warp.frame;
        let above = &warp.frames[caller as usize];
        let taken = self.launch.program.functions[above.function as usize].local_bytes + above.stack_bytes;
        let callee = warp.push_frame(function, number, site.pc, site.mask);
        let frame = &mut warp.frames[callee as usize];
        frame.local_base = (frame.local_base + taken).next_multiple_of(16);
        let top = frame.local_base + function.local_bytes;
        if frame.depth > DEPTH_MAX || top > LOCAL_BYTES_MAX {
            return Err(self.error(site, "the stack is exhausted"));
        }
        warp.reserve_local(top);
        copy_params(warp, site.mask, caller, callee, arguments);
        Ok(Group::new(function.start, site.mask, callee))
    }

    /// A call through a pointer: the lanes of every function that it names go there together.
    fn call_indirect(
        &mut self,
        warp: &mut Warp,
        site: Site,
        mask: u32,
        index: usize,
        call: &Call,
        source: u16,
    ) -> Result<After> {
        let program = &self.launch.program;
        let targets = *program.source64(&warp.regs, source);
        (warp.groups[index].pc, warp.groups[index].mask) = (site.pc + 1, mask & !site.mask);
        let mut rest = site.mask;
        while rest != 0 {
            let first = rest.trailing_zeros() as usize;
            let target = targets.0[first];
            let lanes = each(rest).filter(|&lane| targets.0[lane] == target).fold(0u32, |all, lane| all | 1 << lane);
            rest &= !lanes;
            let Some(&number) = program.by_address.get(&target) else {
                return Err(self.error(site, &format!("lane {first} calls {target:#x}, which is no function")));
            };
            let function = &program.functions[number as usize];
            let fits = |list: &[(u32, u32, u32)], formals: &[(u32, u32)]| {
                list.iter().map(|&(.., bytes)| bytes).eq(formals.iter().map(|&(_, bytes)| bytes))
            };
            if !fits(&call.arguments, &function.params) || !fits(&call.results, &function.results) {
                return Err(self.error(site, &format!("{} has other parameters than this call", function.name)));
            }
            let places = call.arguments.iter().zip(&function.params);
            let arguments: Vec<_> = places.map(|(&(from, _, bytes), &(to, _))| (from, to, bytes)).collect();
            let group = self.enter(warp, Site { mask: lanes, ..site }, number, &arguments)?;
            warp.groups.push(group);
        }
        warp.groups.retain(|group| group.mask != 0);
        Ok(After::Regroup)
    }

    /// `ret`: back to the caller, or out of the kernel.
    pub(super) fn ret(&mut self, warp: &mut Warp, site: Site, mask: u32, index: usize) -> After {
        let number = warp.frame;
        let frame = &warp.frames[number as usize];
        if frame.depth == 0 {
            return self.exit(warp, site, mask, index);
        }
        let (parent, call_pc) = (frame.parent, frame.call_pc);
        if let Op::Call(call) = &self.launch.program.code[call_pc as usize].op {
            // Where they lie in the callee is the same for a direct call and for one through a pointer.
            let there = &self.launch.program.functions[warp.frames[number as usize].function as usize].results;
            let places = call.results.iter().zip(there);
            let results: Vec<_> = places.map(|(&(caller, _, bytes), &(callee, _))| (callee, caller, bytes)).collect();
            copy_params(warp, site.mask, number, parent, &results);
        }
        let back = Group::new(call_pc + 1, site.mask, parent);
        if site.mask == mask {
            warp.groups[index] = back;
        } else {
            (warp.groups[index].pc, warp.groups[index].mask) = (site.pc + 1, mask & !site.mask);
            warp.groups.push(back);
        }
        let frame = &mut warp.frames[number as usize];
        frame.lanes &= !site.mask;
        if frame.lanes & warp.live == 0 {
            warp.enter(parent);
            warp.free_frames.push(number);
        }
        After::Regroup
    }
}

/// Copies (from, to, bytes) of the `.param` variables of one frame to another, for some lanes.
fn copy_params(warp: &mut Warp, lanes: u32, from: u32, to: u32, list: &[(u32, u32, u32)]) {
    for &(source, target, bytes) in list {
        for lane in each(lanes) {
            let there = &warp.frames[from as usize];
            let start = lane * there.param_bytes as usize + source as usize;
            let value = there.params[start..start + bytes as usize].to_vec();
            let here = &mut warp.frames[to as usize];
            let start = lane * here.param_bytes as usize + target as usize;
            here.params[start..start + bytes as usize].copy_from_slice(&value);
        }
    }
}
