//! Decoded operations of the tensor cores: `mma`, `wmma`, `wgmma`.

use super::op::{Address, AnyDst, AnySrc, MemorySpace, PredSrc, Src, Src64};
use crate::units::descriptor::Major;
use crate::units::fragment::{WmmaMatrix, WmmaShape};
use crate::units::tensor_core::{Accumulator, Operand};
use crate::units::tile::TileProduct;

/// `mma.sync` (16 rows, 8 columns) and `wmma.mma` (`wmma` has its shape).
#[derive(Clone, Debug, PartialEq)]
pub struct Mma {
    /// Type of A and B.
    pub operand: Operand,
    /// Type of C and D.
    pub accumulator: Accumulator,
    /// Depth.
    pub k: usize,
    /// Tile of `wmma`; `mma` has 16 x 8.
    pub wmma: Option<WmmaShape>,
    /// A, B, C.
    pub sources: [Vec<Src>; 3],
    /// D.
    pub d: Vec<u16>,
    /// The same where it is done from registers to registers.
    pub registers: Option<MmaRegisters>,
}

/// Four registers of A, two of B, and four of C and D that hold `f32`; none of D is one of A or B, or of C at another place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MmaRegisters {
    pub a: [Src; 4],
    pub b: [Src; 2],
    pub c: [Src; 4],
    pub d: [u16; 4],
}

impl MmaRegisters {
    /// Of these operands, if they are so.
    pub fn new([a, b, c]: &[Vec<Src>; 3], d: &[u16]) -> Option<MmaRegisters> {
        let (a, b) = (<[Src; 4]>::try_from(&a[..]).ok()?, <[Src; 2]>::try_from(&b[..]).ok()?);
        let (c, d) = (<[Src; 4]>::try_from(&c[..]).ok()?, <[u16; 4]>::try_from(d).ok()?);
        let is_free = |(place, slot): (usize, &u16)| {
            let elsewhere = |row: &[u16; 4]| (0..4).all(|other| other == place || row[other] != *slot);
            elsewhere(&c) && elsewhere(&d) && !a.contains(slot) && !b.contains(slot)
        };
        d.iter().enumerate().all(is_free).then_some(MmaRegisters { a, b, c, d })
    }
}

/// `wmma.load`, `wmma.store`.
#[derive(Clone, Debug, PartialEq)]
pub struct WmmaMove {
    /// Which matrix.
    pub matrix: WmmaMatrix,
    /// Tile.
    pub shape: WmmaShape,
    /// Bits of an element.
    pub bits: u32,
    /// Rows are contiguous, else columns.
    pub row_major: bool,
    /// Named or generic.
    pub space: MemorySpace,
    /// Of element (0, 0).
    pub address: Address,
    /// Elements between rows (columns); the tile's width if missing.
    pub stride: Option<Src>,
    /// Fragment; written by loads.
    pub registers: Vec<u16>,
    /// Store, else load.
    pub store: bool,
}

/// `mma.sp.sync` (16 rows, 8 columns).
#[derive(Clone, Debug, PartialEq)]
pub struct SparseMma {
    /// Type of A and B.
    pub operand: Operand,
    /// Type of C and D.
    pub accumulator: Accumulator,
    /// Depth, with the zeros that are not stored.
    pub k: usize,
    /// A, B, C.
    pub sources: [Vec<Src>; 3],
    /// Places of the stored elements.
    pub metadata: Src,
    /// Which lanes hold them.
    pub selector: usize,
    /// D.
    pub d: Vec<u16>,
}

/// `mma.sync` and `wmma.mma` of integers, bits, f64 and 8-bit floats.
#[derive(Clone, Debug, PartialEq)]
pub struct TileMma {
    /// Types and sum.
    pub product: TileProduct,
    /// Tile.
    pub shape: WmmaShape,
    /// A, B, C.
    pub sources: [Vec<AnySrc>; 3],
    /// D.
    pub d: Vec<AnyDst>,
}

/// `wmma.load`, `wmma.store` of these.
#[derive(Clone, Debug, PartialEq)]
pub struct TileMove {
    /// Which matrix.
    pub matrix: WmmaMatrix,
    /// Tile.
    pub shape: WmmaShape,
    /// Bits of an element.
    pub bits: usize,
    /// Rows are contiguous, else columns.
    pub row_major: bool,
    /// Named or generic.
    pub space: MemorySpace,
    /// Of element (0, 0).
    pub address: Address,
    /// Elements between rows (columns); the tile's width if missing.
    pub stride: Option<Src>,
    /// Fragment; written by loads.
    pub registers: Vec<AnySrc>,
    /// Store, else load.
    pub store: bool,
}

/// Types of A and B of a `wgmma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WgmmaOperand {
    /// 16-bit floats, tf32.
    Float(Operand),
    /// Bytes: integers, 8-bit floats.
    Bytes(TileProduct),
}

impl WgmmaOperand {
    /// Bytes of an element.
    pub fn element_bytes(self) -> usize {
        match self {
            WgmmaOperand::Float(Operand::Tf32) => 4,
            WgmmaOperand::Float(_) => 2,
            WgmmaOperand::Bytes(_) => 1,
        }
    }
}

/// A of a `wgmma`.
#[derive(Clone, Debug, PartialEq)]
pub enum WgmmaA {
    /// In shared memory.
    Descriptor(Src64, Major),
    /// A fragment of 16-bit pairs (tf32: words).
    Registers(Vec<Src>),
}

/// `wgmma.mma_async` (64 rows).
#[derive(Clone, Debug, PartialEq)]
pub struct Wgmma {
    /// Type of A and B.
    pub operand: WgmmaOperand,
    /// Type of D; s32 lies as f32 does.
    pub accumulator: Accumulator,
    /// Columns, 8 to 256.
    pub n: usize,
    /// Depth: 32 bytes of elements.
    pub k: usize,
    /// Accumulators, read and written.
    pub d: Vec<u16>,
    /// First operand.
    pub a: WgmmaA,
    /// Second operand's descriptor and major.
    pub b: (Src64, Major),
    /// Adds to D; else overwrites it.
    pub accumulate: PredSrc,
    /// Signs of A and B are turned.
    pub negate: [bool; 2],
}
