//! The frequent operations once more, each in 16 bytes with all that it needs and nothing to be asked of it: the loop over
//! whole warps reads these, one after the other, and the full operation only of what is not among them.

use super::op::{AnySrc, CONSTANT, Instr, NONE, Op, Quick};

/// An operation as the loop over whole warps sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Closed {
    /// `fma.rn.f32` of registers: the result, which is none of the sources, then these.
    Fma(u16, [u16; 3]),
    /// A word of shared memory to a register.
    Load(LoadShared),
    /// Straight-line code.
    Straight,
    /// Straight-line code that has a guard.
    Guarded,
    /// Another load or store of words in shared or global memory.
    Access,
    /// `mma`.
    Mma,
    /// Anything else.
    Stop,
}

/// A load of one word from shared memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadShared {
    /// Register that is loaded.
    pub d: u16,
    /// Register of the address.
    pub base: u16,
    /// What is added to it.
    pub offset: u32,
    /// A load before it, whose base register has the same value if both are executed in one go; else its own operation.
    pub head: u32,
}

impl Closed {
    /// Of an operation, and the head of its load.
    pub fn new(instr: &Instr, head: u32) -> Closed {
        if let Some(load) = LoadShared::new(instr, head) {
            return Closed::Load(load);
        }
        match &instr.op {
            _ if instr.guard != NONE => {
                if instr.straight {
                    Closed::Guarded
                } else {
                    Closed::Stop
                }
            }
            Op::Fma(d, a, b, c) => {
                let sources = [*a, *b, *c];
                let is_plain = sources.iter().all(|source| source & CONSTANT == 0 && source != d);
                if is_plain { Closed::Fma(*d, sources) } else { Closed::Straight }
            }
            Op::Load(memory) | Op::Store(memory) if memory.quick.is_some() => Closed::Access,
            Op::Mma(_) => Closed::Mma,
            _ if instr.straight => Closed::Straight,
            _ => Closed::Stop,
        }
    }
}

impl LoadShared {
    /// Of an operation that is such a load, without a guard.
    pub fn new(instr: &Instr, head: u32) -> Option<LoadShared> {
        let Op::Load(memory) = &instr.op else { return None };
        match (memory.quick, &memory.registers[..]) {
            (Some(Quick::Shared(base)), [AnySrc::Narrow(d)]) if instr.guard == NONE => {
                Some(LoadShared { d: *d, base, offset: memory.address.offset as u32, head })
            }
            _ => None,
        }
    }
}
