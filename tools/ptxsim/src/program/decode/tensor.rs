//! Decodes `mma`, `wmma` and `wgmma`.

use super::Decoder;
use super::form::{Decoded, Form};
use super::tiles::is_tile;
use crate::error::Result;
use crate::front::ast::{Operand as Written, Type};
use crate::program::matrix_op::{Mma, MmaRegisters, SparseMma, Wgmma, WgmmaA, WgmmaOperand, WmmaMove};
use crate::program::op::Op;
use crate::units::descriptor::Major;
use crate::units::fragment::{WmmaMatrix, WmmaShape, wmma_elements};
use crate::units::tensor_core::{Accumulator, Operand};

fn operand_type(ty: Type) -> Option<Operand> {
    Some(match ty {
        Type::Bf16 => Operand::Bf16,
        Type::F16 => Operand::F16,
        Type::Tf32 => Operand::Tf32,
        _ => return None,
    })
}

fn accumulator_type(ty: Type) -> Option<Accumulator> {
    Some(match ty {
        Type::F32 => Accumulator::F32,
        Type::F16 => Accumulator::F16,
        _ => return None,
    })
}

/// `m16n8k16` and its like.
pub(super) fn shape(modifier: &str) -> Option<WmmaShape> {
    let (m, rest) = modifier.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some(WmmaShape { m: m.parse().ok()?, n: n.parse().ok()?, k: k.parse().ok()? })
}

/// Bits of an operand's element in its fragment.
fn bits(operand: Operand) -> usize {
    if operand == Operand::Tf32 { 32 } else { 16 }
}

impl<'a> Decoder<'a> {
    pub(super) fn registers_read(&mut self, form: &Form<'a>, operand: &Written, count: usize) -> Result<Vec<u16>> {
        let list = self.vector(form, operand, count)?;
        list.iter().map(|register| self.src32(form, register, Type::B32)).collect()
    }

    pub(super) fn registers_written(&mut self, form: &Form<'a>, operand: &Written, count: usize) -> Result<Vec<u16>> {
        let list = self.vector(form, operand, count)?;
        list.iter().map(|register| self.dst32(form, register)).collect()
    }

    pub(super) fn vector<'b>(&self, form: &Form<'a>, operand: &'b Written, count: usize) -> Result<&'b [Written]> {
        match operand {
            Written::Vector(list) if list.len() == count => Ok(list),
            single if count == 1 && !matches!(single, Written::Vector(_)) => Ok(std::slice::from_ref(single)),
            _ => Err(self.fail(form.instruction, &format!("{count} registers expected"))),
        }
    }

    pub(super) fn mma(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if is_tile(form) {
            let fixed = form.take("sync") & form.take("aligned");
            return if fixed { self.tile_mma(form, false) } else { Ok(None) };
        }
        let sparse = form.take_one(&["sp", "sp::ordered_metadata"]).is_some();
        let fixed = form.take("sync") & form.take("aligned") & form.take("row") & form.take("col");
        let shapes = form.take_map(shape);
        let ([WmmaShape { m: 16, n: 8, k }], true) = (&shapes[..], fixed) else { return Ok(None) };
        let types = form.types();
        let [d_type, a_type, b_type, c_type] = types[..] else { return Ok(None) };
        let (Some(operand), Some(accumulator)) = (operand_type(a_type), accumulator_type(d_type)) else {
            return Ok(None);
        };
        let depths: &[usize] = match (operand, sparse) {
            (Operand::Tf32, false) => &[4, 8],
            (Operand::Tf32, true) => &[],
            (_, false) => &[8, 16],
            (_, true) => &[16, 32],
        };
        let mixed = accumulator == Accumulator::F16 && operand != Operand::F16;
        if a_type != b_type || c_type != d_type || !depths.contains(k) || mixed {
            return Ok(None);
        }
        if sparse {
            return self.sparse_mma(form, operand, accumulator, *k);
        }
        self.expect_operands(form, 4..=4)?;
        let accumulators = if accumulator == Accumulator::F32 { 4 } else { 2 };
        let operands = form.operands();
        let sources = [
            self.registers_read(form, &operands[1], 16 * k * bits(operand) / 1024)?,
            self.registers_read(form, &operands[2], 8 * k * bits(operand) / 1024)?,
            self.registers_read(form, &operands[3], accumulators)?,
        ];
        let d = self.registers_written(form, &operands[0], accumulators)?;
        let registers = MmaRegisters::new(&sources, &d).filter(|_| accumulator == Accumulator::F32);
        Ok(Some(Op::Mma(Box::new(Mma { operand, accumulator, k: *k, wmma: None, sources, d, registers }))))
    }

    /// `mma.sp` of 16-bit floats: half of A, metadata, and which lanes hold it.
    fn sparse_mma(&mut self, form: &Form<'a>, operand: Operand, accumulator: Accumulator, k: usize) -> Decoded<Op> {
        self.expect_operands(form, 6..=6)?;
        let accumulators = if accumulator == Accumulator::F32 { 4 } else { 2 };
        let operands = form.operands();
        let sources = [
            self.registers_read(form, &operands[1], k / 8)?,
            self.registers_read(form, &operands[2], k / 8)?,
            self.registers_read(form, &operands[3], accumulators)?,
        ];
        let metadata = self.src32(form, &operands[4], Type::B32)?;
        let selector = match operands[5] {
            Written::Integer(selector) if selector < 64 / k as u64 => selector as usize,
            _ => return Err(self.fail(form.instruction, "bad sparsity selector")),
        };
        let d = self.registers_written(form, &operands[0], accumulators)?;
        let mma = SparseMma { operand, accumulator, k, sources, metadata, selector, d };
        Ok(Some(Op::SparseMma(Box::new(mma))))
    }

    pub(super) fn wmma(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if !(form.take("sync") & form.take("aligned")) {
            return Ok(None);
        }
        match form.take_one(&["load", "store", "mma"]) {
            Some("mma") if is_tile(form) => self.tile_mma(form, true),
            Some("mma") => self.wmma_mma(form),
            Some(direction) if is_tile(form) => self.tile_move(form, direction == "store"),
            Some(direction) => self.wmma_move(form, direction == "store"),
            None => Ok(None),
        }
    }

    fn wmma_shape(form: &mut Form<'a>) -> Option<WmmaShape> {
        let shapes = form.take_map(shape);
        let [tile] = shapes[..] else { return None };
        let known = [(16, 16, 16), (8, 32, 16), (32, 8, 16), (16, 16, 8)];
        known.contains(&(tile.m, tile.n, tile.k)).then_some(tile)
    }

    /// Registers of a fragment.
    fn wmma_registers(matrix: WmmaMatrix, tile: WmmaShape, ty: Type) -> Option<usize> {
        let elements = wmma_elements(matrix, tile) / 32;
        match (matrix, ty) {
            (WmmaMatrix::Accumulator, Type::F32) => Some(elements),
            (WmmaMatrix::Accumulator, Type::F16) => Some(elements / 2),
            (WmmaMatrix::Accumulator, _) => None,
            (_, Type::F16) if tile.k == 16 => Some(8),
            (_, Type::Bf16) if tile.k == 16 => Some(elements / 2),
            (_, Type::Tf32) if tile.k == 8 => Some(elements),
            _ => None,
        }
    }

    fn wmma_mma(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        // The layouts say how the fragments were loaded; fragments here do not depend on it.
        let layouts = form.take_map(|modifier| ["row", "col"].contains(&modifier).then_some(())).len();
        let Some(tile) = Self::wmma_shape(form) else { return Ok(None) };
        let types = form.types();
        let (d_type, a_type, b_type, c_type) = match types[..] {
            [d, a, b, c] => (d, a, b, c),
            [d, c] => (d, Type::F16, Type::F16, c),
            _ => return Ok(None),
        };
        let (Some(operand), Some(accumulator)) = (operand_type(a_type), accumulator_type(d_type)) else {
            return Ok(None);
        };
        let registers = [(WmmaMatrix::A, a_type), (WmmaMatrix::B, b_type), (WmmaMatrix::Accumulator, c_type)]
            .map(|(matrix, ty)| Self::wmma_registers(matrix, tile, ty));
        let ([Some(a_count), Some(b_count), Some(c_count)], true, 2) = (registers, c_type == d_type, layouts) else {
            return Ok(None);
        };
        self.expect_operands(form, 4..=4)?;
        let operands = form.operands();
        let sources = [
            self.registers_read(form, &operands[1], a_count)?,
            self.registers_read(form, &operands[2], b_count)?,
            self.registers_read(form, &operands[3], c_count)?,
        ];
        let d = self.registers_written(form, &operands[0], c_count)?;
        Ok(Some(Op::Mma(Box::new(Mma {
            operand,
            accumulator,
            k: tile.k,
            wmma: Some(tile),
            sources,
            d,
            registers: None,
        }))))
    }

    fn wmma_move(&mut self, form: &mut Form<'a>, store: bool) -> Decoded<Op> {
        let matrix = match form.take_one(&["a", "b", "c", "d"]) {
            Some("a") if !store => WmmaMatrix::A,
            Some("b") if !store => WmmaMatrix::B,
            Some("c") if !store => WmmaMatrix::Accumulator,
            Some("d") if store => WmmaMatrix::Accumulator,
            _ => return Ok(None),
        };
        let Some(layout) = form.take_one(&["row", "col"]) else { return Ok(None) };
        let Some(tile) = Self::wmma_shape(form) else { return Ok(None) };
        self.expect_operands(form, 2..=3)?;
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        let Some((space, address)) = self.location(form, &form.operands()[place])? else { return Ok(None) };
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        let Some(count) = Self::wmma_registers(matrix, tile, ty) else { return Ok(None) };
        let stride = match form.operands().get(2) {
            Some(stride) => Some(self.src32(form, stride, Type::U32)?),
            None => None,
        };
        let value = &form.operands()[value];
        let registers = match store {
            true => self.registers_read(form, value, count)?,
            false => self.registers_written(form, value, count)?,
        };
        let bits = if matches!(ty, Type::F32 | Type::Tf32) { 32 } else { 16 };
        let row_major = layout == "row";
        let tile = WmmaMove { matrix, shape: tile, bits, row_major, space, address, stride, registers, store };
        Ok(Some(Op::WmmaMove(Box::new(tile))))
    }

    pub(super) fn wgmma(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if !(form.take("sync") & form.take("aligned")) {
            return Ok(None);
        }
        match form.take_one(&["fence", "commit_group", "wait_group", "mma_async"]) {
            Some("fence") => Ok(Some(Op::WgmmaFence)),
            Some("commit_group") => Ok(Some(Op::WgmmaCommit)),
            Some("wait_group") => {
                let [Written::Integer(newest @ 0..=7)] = form.operands() else { return Ok(None) };
                Ok(Some(Op::WgmmaWait(*newest as u32)))
            }
            Some(_) if is_tile(form) => self.wgmma_bytes(form),
            Some(_) => self.wgmma_product(form),
            None => Ok(None),
        }
    }

    fn wgmma_product(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let shapes = form.take_map(shape);
        let [WmmaShape { m: 64, n, k }] = shapes[..] else { return Ok(None) };
        let types = form.types();
        let [d_type, a_type, b_type] = types[..] else { return Ok(None) };
        let (Some(operand), Some(accumulator)) = (operand_type(a_type), accumulator_type(d_type)) else {
            return Ok(None);
        };
        let depth = if operand == Operand::Tf32 { 8 } else { 16 };
        let mixed = accumulator == Accumulator::F16 && operand != Operand::F16;
        if a_type != b_type || k != depth || !n.is_multiple_of(8) || !(8..=256).contains(&n) || mixed {
            return Ok(None);
        }
        let operands = form.operands();
        let from_registers = matches!(operands.get(1), Some(Written::Vector(_)));
        // 16-bit operands in shared memory have an immediate for their major.
        let majors = if operand == Operand::Tf32 { 0 } else { 2 - usize::from(from_registers) };
        self.expect_operands(form, 6 + majors..=6 + majors)?;
        let mut immediates = Vec::new();
        for operand in &operands[4..] {
            let Written::Integer(value) = operand else {
                return Err(self.fail(form.instruction, "immediate expected"));
            };
            immediates.push(*value as i32);
        }
        let [scale_a @ (1 | -1), scale_b @ (1 | -1), majors @ ..] = &immediates[..] else {
            return Err(self.fail(form.instruction, "scales must be 1 or -1"));
        };
        let major = |at: usize| match majors.get(at) {
            None | Some(0) => Ok(Major::K),
            Some(1) => Ok(Major::Mn),
            Some(_) => Err(self.fail(form.instruction, "a major must be 0 or 1")),
        };
        let (a_major, b_major) = if from_registers { (Major::K, major(0)?) } else { (major(0)?, major(1)?) };
        let a = match from_registers {
            true => WgmmaA::Registers(self.registers_read(form, &operands[1], 4)?),
            false => WgmmaA::Descriptor(self.src64(form, &operands[1], Type::B64)?, a_major),
        };
        let b = (self.src64(form, &operands[2], Type::B64)?, b_major);
        let accumulate = self.pred_src(form, &operands[3])?;
        let count = if accumulator == Accumulator::F32 { n / 2 } else { n / 4 };
        self.registers_read(form, &operands[0], count)?;
        let d = self.registers_written(form, &operands[0], count)?;
        let negate = [*scale_a == -1, *scale_b == -1];
        let operand = WgmmaOperand::Float(operand);
        Ok(Some(Op::Wgmma(Box::new(Wgmma { operand, accumulator, n, k, d, a, b, accumulate, negate }))))
    }
}
