//! Operands of decoded operations: register slots, constants, addresses.

use crate::address::Space;
use crate::event::{Scope, Semantics};
use crate::front::ast::Type;

/// Bit of a source that says "row of the constant table".
pub const CONSTANT: u16 = 1 << 15;
/// A register or predicate that is not there (`_`, no guard).
pub const NONE: u16 = u16::MAX;

/// Slot of a 32-bit register (also 16- and 8-bit ones), or a constant.
pub type Src = u16;
/// Slot of a 64-bit register, or a constant.
pub type Src64 = u16;
/// Slot of a register that is written.
pub type Dst = u16;

/// A predicate that is read: slot, maybe negated, or a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredSrc {
    /// Slot and whether it is negated.
    Slot(u16, bool),
    /// Same in all lanes.
    Constant(bool),
}

/// A source of either class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnySrc {
    /// 32-bit class.
    Narrow(Src),
    /// 64-bit class.
    Wide(Src64),
}

/// A destination of either class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyDst {
    /// 32-bit class.
    Narrow(Dst),
    /// 64-bit class.
    Wide(Dst),
    /// `_`.
    Sink,
}

/// State space that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySpace {
    /// None named: the address decides.
    Generic,
    /// Named.
    Named(Space),
    /// Parameters of the entry: a constant bank.
    EntryParam,
    /// Parameters of a device function, or of a call: memory of the frame.
    FrameParam,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressBase {
    /// The offset is the address.
    Zero,
    /// 32-bit register.
    Register32(u16),
    /// 64-bit register.
    Register64(u16),
    /// Static shared memory of the executing CTA.
    SharedStatic,
    /// Dynamic shared memory of the executing CTA.
    SharedDynamic,
    /// Local memory of the executing function's frame.
    LocalFrame,
}

/// An address of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Start.
    pub base: AddressBase,
    /// Bytes after it.
    pub offset: i64,
}

/// A load or store of 32-bit elements that nothing but its addresses makes special.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quick {
    /// In shared memory, from a 32-bit register on.
    Shared(u16),
    /// In global memory, from a 64-bit register on.
    Global(u16),
}

/// A load or store.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Space.
    pub space: MemorySpace,
    /// Address.
    pub address: Address,
    /// Type of an element.
    pub ty: Type,
    /// Registers, one per element; stores may have constants.
    pub registers: Vec<AnySrc>,
    /// The registers of a load hold 16 bits.
    pub half: bool,
    /// Order.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
    /// The frequent form, if it is that.
    pub quick: Option<Quick>,
}

impl Memory {
    /// Bytes of a lane, all elements together.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        self.ty.bytes() * self.registers.len() as u32
    }
}

/// `atom.exch.b128` and `atom.cas.b128`; halves from low to high.
#[derive(Clone, Debug, PartialEq)]
pub struct Atomic128 {
    /// Space.
    pub space: MemorySpace,
    /// Address.
    pub address: Address,
    /// Old value.
    pub old: [AnyDst; 2],
    /// Only where this was there.
    pub compare: Option<[AnySrc; 2]>,
    /// New value.
    pub new: [AnySrc; 2],
    /// Order.
    pub semantics: Semantics,
    /// Scope.
    pub scope: Scope,
}
