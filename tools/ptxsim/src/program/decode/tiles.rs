//! Decodes `mma`, `wmma` and `wgmma` of integers, bits, f64 and 8-bit floats.

use super::Decoder;
use super::form::{Decoded, Form};
use super::tensor::shape;
use crate::error::Result;
use crate::front::ast::{Operand as Written, Type};
use crate::program::matrix_op::{TileMma, TileMove, Wgmma, WgmmaA, WgmmaOperand};
use crate::program::op::{AnyDst, AnySrc, Op};
use crate::program::target;
use crate::scalar::round::Rounding;
use crate::units::descriptor::Major;
use crate::units::fragment::{WmmaMatrix, WmmaShape};
use crate::units::tensor_core::Accumulator;
use crate::units::tile::{Element, Sum, TileProduct};

/// A type in these instructions: of A and B, or of C and D.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TileType {
    Of(Element),
    S32,
    F32,
    F16,
}

fn tile_type(name: &str) -> Option<TileType> {
    Some(match name {
        "s8" => TileType::Of(Element::S8),
        "u8" => TileType::Of(Element::U8),
        "s4" => TileType::Of(Element::S4),
        "u4" => TileType::Of(Element::U4),
        "b1" => TileType::Of(Element::B1),
        "f64" => TileType::Of(Element::F64),
        "e4m3" => TileType::Of(Element::E4m3),
        "e5m2" => TileType::Of(Element::E5m2),
        "s32" => TileType::S32,
        "f32" => TileType::F32,
        "f16" => TileType::F16,
        _ => return None,
    })
}

/// Whether an instruction is one of these.
pub(super) fn is_tile(form: &Form) -> bool {
    let names = ["s8", "u8", "s4", "u4", "b1", "f64", "e4m3", "e5m2", "s32"];
    names.iter().any(|name| form.has(name))
}

impl<'a> Decoder<'a> {
    fn any_sources(&mut self, form: &Form<'a>, operand: &Written, count: usize, ty: Type) -> Result<Vec<AnySrc>> {
        let list = self.vector(form, operand, count)?;
        let mut out = Vec::new();
        for register in list {
            let source = self.any_src(form, register, ty)?;
            if matches!(source, AnySrc::Wide(_)) != (ty.bytes() == 8) {
                return Err(self.fail(form.instruction, "a register has the wrong width"));
            }
            out.push(source);
        }
        Ok(out)
    }

    fn any_destinations(&mut self, form: &Form<'a>, operand: &Written, count: usize, ty: Type) -> Result<Vec<AnyDst>> {
        let list = self.vector(form, operand, count)?;
        let mut out = Vec::new();
        for register in list {
            let to = self.any_dst(form, register)?;
            if matches!(to, AnyDst::Wide(_)) != (ty.bytes() == 8) {
                return Err(self.fail(form.instruction, "a register has the wrong width"));
            }
            out.push(to);
        }
        Ok(out)
    }

    /// The sum that the types and modifiers of a product name.
    fn tile_product(&self, form: &mut Form<'a>, d: TileType, [a, b]: [Element; 2]) -> Option<TileProduct> {
        use Element::{B1, E4m3, E5m2, F64, S4, S8, U4, U8};
        let sum = match (d, a, b) {
            (TileType::S32, S8 | U8, S8 | U8) | (TileType::S32, S4 | U4, S4 | U4) => {
                Sum::Integer { saturate: form.take("satfinite") }
            }
            (TileType::S32, B1, B1) if form.take("popc") => match form.take_one(&["xor", "and"])? {
                "xor" => Sum::XorPopc,
                _ => Sum::AndPopc,
            },
            (TileType::Of(F64), F64, F64) => Sum::Double(form.rounding().unwrap_or(Rounding::Nearest)),
            (TileType::F32, E4m3 | E5m2, E4m3 | E5m2) => Sum::Float8(Accumulator::F32),
            (TileType::F16, E4m3 | E5m2, E4m3 | E5m2) => Sum::Float8(Accumulator::F16),
            _ => return None,
        };
        Some(TileProduct { a, b, sum })
    }

    /// `mma.sync`, `wmma.mma`.
    pub(super) fn tile_mma(&mut self, form: &mut Form<'a>, wmma: bool) -> Decoded<Op> {
        let layouts = form.take_map(|name| ["row", "col"].contains(&name).then_some(name));
        let shapes = form.take_map(shape);
        let types = form.take_map(tile_type);
        let ([row, column], [tile], [d, TileType::Of(a), TileType::Of(b), c]) = (&layouts[..], &shapes[..], &types[..])
        else {
            return Ok(None);
        };
        let target = target(self.module)?;
        let sizes = (tile.m, tile.n, tile.k);
        let fits = match (a.bits(), wmma) {
            (8, false) if a.fp8().is_some() => target >= 89 && [(16, 8, 16), (16, 8, 32)].contains(&sizes),
            (8, false) => [(8, 8, 16), (16, 8, 16), (16, 8, 32)].contains(&sizes),
            (8, true) => [(16, 16, 16), (32, 8, 16), (8, 32, 16)].contains(&sizes) && a.fp8().is_none(),
            (4, false) => [(8, 8, 32), (16, 8, 32), (16, 8, 64)].contains(&sizes),
            (4, true) => sizes == (8, 8, 32),
            (1, false) => [(8, 8, 128), (16, 8, 128), (16, 8, 256)].contains(&sizes),
            (1, true) => sizes == (8, 8, 128),
            (_, false) => {
                sizes == (8, 8, 4) || target >= 90 && tile.m == 16 && tile.n == 8 && [4, 8, 16].contains(&tile.k)
            }
            (_, true) => sizes == (8, 8, 4),
        };
        // Only fragments of bytes and f64 may have been loaded the other way round, by `wmma`.
        let natural = *row == "row" && *column == "col";
        let free = wmma && (a.bits() == 64 || a.bits() == 8);
        if !fits || c != d || !(natural || free) {
            return Ok(None);
        }
        let Some(product) = self.tile_product(form, *d, [*a, *b]) else { return Ok(None) };
        self.expect_operands(form, 4..=4)?;
        let operands = form.operands();
        let (ty, c_ty) = match a.bits() {
            64 => (Type::B64, Type::B64),
            _ => (Type::B32, Type::B32),
        };
        let c_count = tile.m * tile.n / if product.sum == Sum::Float8(Accumulator::F16) { 64 } else { 32 };
        let count = |elements: usize| elements / 32 / a.per_register();
        let sources = [
            self.any_sources(form, &operands[1], count(tile.m * tile.k), ty)?,
            self.any_sources(form, &operands[2], count(tile.k * tile.n), ty)?,
            self.any_sources(form, &operands[3], c_count, c_ty)?,
        ];
        let d = self.any_destinations(form, &operands[0], c_count, c_ty)?;
        Ok(Some(Op::TileMma(Box::new(TileMma { product, shape: *tile, sources, d }))))
    }

    /// `wmma.load`, `wmma.store`.
    pub(super) fn tile_move(&mut self, form: &mut Form<'a>, store: bool) -> Decoded<Op> {
        let matrix = match form.take_one(&["a", "b", "c", "d"]) {
            Some("a") if !store => WmmaMatrix::A,
            Some("b") if !store => WmmaMatrix::B,
            Some("c") if !store => WmmaMatrix::Accumulator,
            Some("d") if store => WmmaMatrix::Accumulator,
            _ => return Ok(None),
        };
        let Some(layout) = form.take_one(&["row", "col"]) else { return Ok(None) };
        let shapes = form.take_map(shape);
        let types = form.take_map(tile_type);
        let ([tile], [ty]) = (&shapes[..], &types[..]) else { return Ok(None) };
        self.expect_operands(form, 2..=3)?;
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        let Some((space, address)) = self.location(form, &form.operands()[place])? else { return Ok(None) };
        let WmmaShape { m, n, k } = *tile;
        let (bits, elements) = match (matrix, ty) {
            (WmmaMatrix::Accumulator, TileType::S32) => (32, m * n),
            (WmmaMatrix::Accumulator, TileType::Of(Element::F64)) => (64, m * n),
            (WmmaMatrix::A, TileType::Of(element)) => (element.bits(), m * k),
            (WmmaMatrix::B, TileType::Of(element)) => (element.bits(), k * n),
            _ => return Ok(None),
        };
        // Elements smaller than a byte lie along `k`.
        let row_major = layout == "row";
        if bits < 8 && row_major != (matrix == WmmaMatrix::A) {
            return Ok(None);
        }
        let stride = match form.operands().get(2) {
            Some(stride) => Some(self.src32(form, stride, Type::U32)?),
            None => None,
        };
        let ty = if bits == 64 { Type::B64 } else { Type::B32 };
        let count = elements / 32 * bits / (8 * ty.bytes() as usize);
        let value = &form.operands()[value];
        let registers = match store {
            true => self.any_sources(form, value, count, ty)?,
            false => {
                let to = self.any_destinations(form, value, count, ty)?;
                let slot = |to: &AnyDst| match to {
                    AnyDst::Narrow(slot) => Some(AnySrc::Narrow(*slot)),
                    AnyDst::Wide(slot) => Some(AnySrc::Wide(*slot)),
                    AnyDst::Sink => None,
                };
                let Some(slots) = to.iter().map(slot).collect() else { return Ok(None) };
                slots
            }
        };
        let tile = TileMove { matrix, shape: *tile, bits, row_major, space, address, stride, registers, store };
        Ok(Some(Op::TileMove(Box::new(tile))))
    }

    /// `wgmma.mma_async` of bytes: integers or 8-bit floats; both operands K-major.
    pub(super) fn wgmma_bytes(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let shapes = form.take_map(shape);
        let types = form.take_map(tile_type);
        let ([WmmaShape { m: 64, n, k: 32 }], [d, TileType::Of(a), TileType::Of(b)]) = (&shapes[..], &types[..]) else {
            return Ok(None);
        };
        let Some(product) = self.tile_product(form, *d, [*a, *b]) else { return Ok(None) };
        let float = a.fp8().is_some();
        let columns = n.is_multiple_of(8) && (8..=256).contains(n) && (float || *n <= 24 || n.is_multiple_of(16));
        if a.bits() != 8 || !columns {
            return Ok(None);
        }
        let operands = form.operands();
        let count = if float { 6 } else { 4 };
        self.expect_operands(form, count..=count)?;
        let mut negate = [false; 2];
        for (negate, operand) in negate.iter_mut().zip(&operands[4..]) {
            *negate = match operand {
                Written::Integer(value) if matches!(*value as i32, 1 | -1) => *value as i32 == -1,
                _ => return Err(self.fail(form.instruction, "scales must be 1 or -1")),
            };
        }
        let a = match &operands[1] {
            list @ Written::Vector(_) => WgmmaA::Registers(self.registers_read(form, list, 4)?),
            descriptor => WgmmaA::Descriptor(self.src64(form, descriptor, Type::B64)?, Major::K),
        };
        let b = (self.src64(form, &operands[2], Type::B64)?, Major::K);
        let accumulate = self.pred_src(form, &operands[3])?;
        let halves = product.sum == Sum::Float8(Accumulator::F16);
        let (accumulator, registers) = if halves { (Accumulator::F16, n / 4) } else { (Accumulator::F32, n / 2) };
        self.registers_read(form, &operands[0], registers)?;
        let d = self.registers_written(form, &operands[0], registers)?;
        let operand = WgmmaOperand::Bytes(product);
        Ok(Some(Op::Wgmma(Box::new(Wgmma { operand, accumulator, n: *n, k: 32, d, a, b, accumulate, negate }))))
    }
}
