//! Decodes stores that tell an mbarrier (`st.async`, `red.async`) and changes of tensor maps.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::event::Semantics;
use crate::front::ast::{Operand, Type};
use crate::program::hopper_op::{MapCopy, MapReplace, StoreAsync};
use crate::program::op::{AtomicOp, MemorySpace, Op};
use crate::units::tensor_map::MapField;

impl<'a> Decoder<'a> {
    pub(super) fn store_async(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let fixed = form.take("async") & form.take("mbarrier::complete_tx::bytes");
        let reduces = form.opcode() == "red";
        let semantics = form.semantics();
        form.scope();
        let shared = form.take_one(&["shared::cluster", "shared"]).is_some();
        let reduce = match reduces {
            true => Self::atomic_op(form).map(Some),
            false => Some(None),
        };
        let types = form.types();
        let (Some(reduce), [ty], true) = (reduce, &types[..], fixed && shared) else { return Ok(None) };
        let ty = *ty;
        let fits = match reduce {
            None => matches!(
                ty,
                Type::B32 | Type::B64 | Type::U32 | Type::S32 | Type::U64 | Type::S64 | Type::F32 | Type::F64
            ),
            Some(AtomicOp::Inc | AtomicOp::Dec) => ty == Type::U32,
            Some(AtomicOp::Min | AtomicOp::Max) => matches!(ty, Type::U32 | Type::S32),
            Some(AtomicOp::And | AtomicOp::Or | AtomicOp::Xor) => ty == Type::B32,
            Some(AtomicOp::Add) => matches!(ty, Type::U32 | Type::S32 | Type::U64),
            Some(_) => false,
        };
        let order = if reduces { Semantics::Relaxed } else { Semantics::Weak };
        if !fits || semantics.is_some_and(|given| given != order) {
            return Ok(None);
        }
        self.expect_operands(form, 3..=3)?;
        let operands = form.operands();
        let Some(elements) = Self::elements(form, &operands[1]) else { return Ok(None) };
        if elements.len() * ty.bytes() as usize > 16 || reduces && elements.len() > 1 {
            return Ok(None);
        }
        let mut values = Vec::new();
        for element in elements {
            values.push(self.any_src(form, element, ty)?);
        }
        let (_, to) = self.address(form, &operands[0])?;
        let (_, barrier) = self.address(form, &operands[2])?;
        Ok(Some(Op::StoreAsync(Box::new(StoreAsync { to, values, ty, barrier, reduce }))))
    }

    pub(super) fn tensor_map(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if form.take("cp_fenceproxy") {
            return self.map_copy(form);
        }
        if !(form.take("replace") & form.take("tile") & form.take("b1024")) {
            return Ok(None);
        }
        let names = [
            "global_address",
            "rank",
            "box_dim",
            "global_dim",
            "global_stride",
            "element_stride",
            "elemtype",
            "interleave_layout",
            "swizzle_mode",
            "fill_mode",
        ];
        let Some(name) = form.take_one(&names) else { return Ok(None) };
        let operands = form.operands();
        let Some((space, address)) = self.location(form, self.operand(form, 0)?)? else { return Ok(None) };
        let types = form.types();
        let [ty @ (Type::B32 | Type::B64)] = types[..] else { return Ok(None) };
        if !matches!(space, MemorySpace::Generic | MemorySpace::Named(Space::Global | Space::Shared)) {
            return Ok(None);
        }
        let by_dimension = matches!(name, "box_dim" | "global_dim" | "global_stride" | "element_stride");
        let (dimension, value) = match (by_dimension, operands) {
            (true, [_, Operand::Integer(dimension), value]) => (*dimension as usize, value),
            (false, [_, value]) => (0, value),
            _ => return Err(self.fail(form.instruction, "wrong number of operands")),
        };
        let field = match name {
            "global_address" => MapField::Address,
            "rank" => MapField::Rank,
            "box_dim" => MapField::BoxDim(dimension),
            "global_dim" => MapField::Dim(dimension),
            "global_stride" => MapField::Stride(dimension),
            "element_stride" => MapField::ElementStride(dimension),
            "elemtype" => MapField::Type,
            "interleave_layout" => MapField::Interleave,
            "swizzle_mode" => MapField::Swizzle,
            _ => MapField::Fill,
        };
        let value = self.any_src(form, value, ty)?;
        Ok(Some(Op::MapReplace(Box::new(MapReplace { space, address, field, value }))))
    }

    fn map_copy(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let spaces = form.take("global") & form.take("shared::cta") & form.take("tensormap::generic");
        let order = form.take("release") & form.take("sync") & form.take("aligned");
        let (Some(scope), true, true) = (form.scope(), spaces, order) else { return Ok(None) };
        let [to, from, Operand::Integer(bytes)] = form.operands() else { return Ok(None) };
        if *bytes != 128 {
            return Err(self.fail(form.instruction, "a tensor map has 128 bytes"));
        }
        let (_, to) = self.address(form, to)?;
        let (_, from) = self.address(form, from)?;
        Ok(Some(Op::MapCopy(Box::new(MapCopy { to, from, scope }))))
    }
}
