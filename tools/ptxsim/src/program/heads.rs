//! Loads of words of shared memory that start from the same value of the same register: their lanes lie to each other as those
//! of the first one do, so that it alone need look at them.

use super::closed::{Closed, LoadShared};
use super::op::Instr;

/// While a function is decoded: (register of the address, first load from it) with nothing written to the register since.
#[derive(Default)]
pub(super) struct Heads {
    list: Vec<(u16, u32)>,
}

impl Heads {
    /// The next operation, which writes some registers of 32 bits, as the loop over whole warps sees it.
    pub(super) fn close(&mut self, instr: &Instr, pc: u32, written: &[u16]) -> Closed {
        let mut head = pc;
        if let Some(load) = LoadShared::new(instr, pc) {
            match self.list.iter().find(|(base, _)| *base == load.base) {
                Some((_, first)) => head = *first,
                None => self.list.push((load.base, pc)),
            }
        }
        self.list.retain(|(base, _)| !written.contains(base));
        Closed::new(instr, head)
    }
}
