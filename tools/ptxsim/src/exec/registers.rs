//! `setmaxnreg`: a CTA's registers are a pool from which warps take and to which they give.
//!
//! PTX does not say how many registers a thread starts with; ptxas chooses. Here it is `.maxnreg`, or what the register file leaves a
//! thread of the CTA (65,536 registers, in steps of 8), but no more than the largest count that any `setmaxnreg` of the kernel names.

use super::Cluster;
use super::step::After;
use super::warp::{Wait, Warp};
use crate::error::Result;
use crate::event::Site;
use crate::launch::Launch;
use crate::program::op::Op;

/// Registers of one multiprocessor.
const FILE: u32 = 65536;

/// Registers that every thread starts with.
pub(super) fn at_launch(launch: &Launch) -> u32 {
    let named = launch.program.code.iter().filter_map(|instr| match instr.op {
        Op::SetMaxRegisters { count, .. } => Some(count),
        _ => None,
    });
    let share = FILE / launch.info.threads().next_multiple_of(32) / 8 * 8;
    let most = launch.program.bounds.registers_max.unwrap_or(share.min(256));
    named.max().map_or(most, |named| most.min(named))
}

impl<'a> Cluster<'a> {
    pub(super) fn set_max_registers(&mut self, warp: &mut Warp, site: Site, count: u32, more: bool) -> Result<After> {
        let current = warp.registers;
        if more && count < current || !more && count > current {
            let direction = if more { "inc" } else { "dec" };
            return Err(self.error(site, &format!("setmaxnreg.{direction} to {count} registers from {current}")));
        }
        let pool = &mut self.ctas[warp.cta as usize].free_registers;
        if !more {
            *pool += 32 * (current - count);
        } else if *pool >= 32 * (count - current) {
            *pool -= 32 * (count - current);
        } else {
            return Ok(After::Wait(Wait::Registers(count)));
        }
        warp.registers = count;
        Ok(After::Next)
    }
}
