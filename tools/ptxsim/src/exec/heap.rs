//! Device-side `malloc` and `free`, and `alloca` on a frame's stack.

use super::Cluster;
use super::access::little;
use super::warp::Warp;
use crate::error::Result;
use crate::event::Site;
use crate::program::LOCAL_BYTES_MAX;
use crate::program::op::{AnyDst, AnySrc, Call};
use crate::scalar::lanes::each;

impl<'a> Cluster<'a> {
    /// `malloc`: a block per lane; null where the heap is exhausted.
    pub(super) fn malloc(&mut self, warp: &mut Warp, site: Site, call: &Call) {
        for lane in each(site.mask) {
            let bytes = argument(warp, call, lane);
            let site = Site { mask: 1 << lane, ..site };
            let address = self.launch.memory.heap.allocate(bytes, (self.number, site));
            if let Some(&(start, _, 8)) = call.results.first() {
                let frame = &mut warp.frames[warp.frame as usize];
                let at = lane * frame.param_bytes as usize + start as usize;
                frame.params[at..at + 8].copy_from_slice(&address.to_le_bytes());
            }
        }
    }

    /// `free`: null is nothing.
    pub(super) fn free(&mut self, warp: &Warp, site: Site, call: &Call) -> Result<()> {
        for lane in each(site.mask) {
            let address = argument(warp, call, lane);
            if address != 0
                && let Err(why) = self.launch.memory.heap.free(address)
            {
                return Err(self.error(site, &format!("free of what cannot be freed by lane {lane}: {why}")));
            }
        }
        Ok(())
    }

    /// `alloca`: every lane gets the same place in its local memory, as large as the largest wish.
    pub(super) fn alloca(&mut self, warp: &mut Warp, site: Site, d: AnyDst, size: AnySrc, align: u32) -> Result<()> {
        let program = &self.launch.program;
        let wish = each(site.mask).map(|lane| program.lane(&warp.regs, size, lane)).max().unwrap_or(0);
        let frame = &warp.frames[warp.frame as usize];
        let own = frame.local_base + program.functions[frame.function as usize].local_bytes;
        let start = (own + frame.stack_bytes).next_multiple_of(align);
        let top = u64::from(start).saturating_add(wish).next_multiple_of(8);
        if top > u64::from(LOCAL_BYTES_MAX) {
            return Err(self.error(site, "the stack is exhausted"));
        }
        warp.frames[warp.frame as usize].stack_bytes = top as u32 - own;
        warp.reserve_local(top as u32);
        each(site.mask).for_each(|lane| self.write(warp, d, lane, u64::from(start)));
        Ok(())
    }

    /// `stackrestore`, with what `stacksave` gave; where lanes of the frame are elsewhere, the memory stays taken until it returns.
    pub(super) fn stack_restore(&mut self, warp: &mut Warp, site: Site, saved: AnySrc) {
        let lane = site.mask.trailing_zeros() as usize & 31;
        let saved = self.launch.program.lane(&warp.regs, saved, lane) as u32;
        let frame = &mut warp.frames[warp.frame as usize];
        if frame.lanes & warp.live & !site.mask == 0 {
            frame.stack_bytes = saved.min(frame.stack_bytes);
        }
    }
}

/// The first argument of a call, from the caller's frame.
fn argument(warp: &Warp, call: &Call, lane: usize) -> u64 {
    let frame = &warp.frames[warp.frame as usize];
    let Some(&(start, _, bytes)) = call.arguments.first() else { return 0 };
    little(&frame.params, lane * frame.param_bytes as usize + start as usize, bytes.min(8))
}
