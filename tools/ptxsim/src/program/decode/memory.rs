//! Decodes loads, stores, atomics and address conversions.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::error::Result;
use crate::event::{Scope, Semantics};
use crate::front::ast::{Base, Operand, Type, VariableId};
use crate::program::op::{
    Address, AddressBase, AnyDst, AnySrc, Atomic, Atomic128, AtomicOp, Memory, MemorySpace, NONE, Op, Quick,
};

/// Names of state spaces in instructions.
pub(super) const SPACES: [&str; 11] = [
    "global",
    "const",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "param",
    "param::entry",
    "param::func",
    "generic",
    "none",
];

impl<'a> Decoder<'a> {
    pub(super) fn memory(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        match form.opcode() {
            "ld" | "ldu" => self.load_store(form, false),
            "st" => self.load_store(form, true),
            "atom" | "red" => self.atomic(form),
            "cvta" => self.cvta(form),
            "isspacep" => self.isspacep(form),
            "mapa" | "getctarank" => self.cluster_address(form),
            "createpolicy" => self.policy(form),
            _ => self.hint(form),
        }
    }

    /// Whether a variable is a parameter of the entry itself (not of a call it makes).
    pub(super) fn is_entry_param(&self, id: VariableId) -> bool {
        matches!(id, VariableId::Function(index) if self.function.entry && self.function.params.contains(&index))
    }

    /// The space that the modifiers name.
    pub(super) fn space(&self, form: &mut Form<'a>, base: Option<Base>) -> Option<MemorySpace> {
        Some(match form.take_one(&SPACES) {
            None => MemorySpace::Generic,
            Some("global") => MemorySpace::Named(Space::Global),
            Some("const") => MemorySpace::Named(Space::Const),
            Some("shared" | "shared::cta" | "shared::cluster") => MemorySpace::Named(Space::Shared),
            Some("local") => MemorySpace::Named(Space::Local),
            Some("param" | "param::entry" | "param::func") => match base {
                Some(Base::Variable(id)) if self.is_entry_param(id) => MemorySpace::EntryParam,
                Some(Base::Variable(_)) => MemorySpace::FrameParam,
                _ if self.function.entry => MemorySpace::EntryParam,
                _ => MemorySpace::FrameParam,
            },
            _ => return None,
        })
    }

    /// Space and address of a memory operand. A variable without a space in the modifiers is an error of ptxas too.
    pub(super) fn location(&mut self, form: &mut Form<'a>, operand: &Operand) -> Decoded<(MemorySpace, Address)> {
        let base = match operand {
            Operand::Address(base, _) => Some(*base),
            _ => None,
        };
        let Some(space) = self.space(form, base) else { return Ok(None) };
        let (of_variable, address) = self.address(form, operand)?;
        let expected = match space {
            MemorySpace::Generic => None,
            MemorySpace::Named(space) => Some(space),
            MemorySpace::EntryParam | MemorySpace::FrameParam => Some(Space::Param),
        };
        let generic_global = expected.is_none() && matches!(of_variable, Some(Space::Global | Space::Const));
        if of_variable.is_some() && of_variable != expected && !generic_global {
            return Err(self.fail(form.instruction, "the variable lies in another state space"));
        }
        Ok(Some((space, address)))
    }

    /// Elements of a vector operand, or the single one.
    pub(super) fn elements(form: &mut Form<'a>, operand: &'a Operand) -> Option<&'a [Operand]> {
        let count = match form.take_one(&["v2", "v4", "v8"]) {
            None => 1,
            Some("v2") => 2,
            Some("v4") => 4,
            _ => return None,
        };
        let elements = match operand {
            Operand::Vector(elements) => elements.as_slice(),
            single => std::slice::from_ref(single),
        };
        (elements.len() == count).then_some(elements)
    }

    /// The same; the two registers that one of 128 bits is made of are elements of 64.
    fn typed_elements(form: &mut Form<'a>, ty: Type, operand: &'a Operand) -> Option<(Type, &'a [Operand])> {
        match (ty, operand) {
            (Type::B128, Operand::Vector(halves)) if halves.len() == 2 => Some((Type::B64, halves)),
            (Type::B128, _) => None,
            _ => Self::elements(form, operand).map(|elements| (ty, elements)),
        }
    }

    fn load_store(&mut self, form: &mut Form<'a>, store: bool) -> Decoded<Op> {
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        // A cache policy may follow; it changes nothing here.
        self.expect_operands(form, if form.has("L2::cache_hint") { 3..=3 } else { 2..=2 })?;
        if let Some(policy) = form.operands().get(2) {
            self.src64(form, policy, Type::B64)?;
        }
        let semantics = form.semantics().unwrap_or_default();
        let scope = form.scope().unwrap_or(Scope::System);
        form.hints();
        let Some((space, address)) = self.location(form, &form.operands()[place])? else { return Ok(None) };
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        if matches!(ty, Type::Pred | Type::Tf32) {
            return Ok(None);
        }
        let Some((ty, elements)) = Self::typed_elements(form, ty, &form.operands()[value]) else { return Ok(None) };
        if ty.bytes() as usize * elements.len() > 16 {
            return Ok(None);
        }
        let mut registers = Vec::new();
        for element in elements {
            registers.push(if store { self.any_src(form, element, ty)? } else { self.loaded(form, element, ty)? });
        }
        let half = elements.iter().any(|element| self.holds_16_bits(element));
        let is_word = |register: &AnySrc| matches!(register, AnySrc::Narrow(slot) if *slot != NONE);
        let words = ty.bytes() == 4 && !half && semantics == Semantics::Weak && registers.iter().all(is_word);
        let quick = match (space, address.base) {
            (MemorySpace::Named(Space::Shared), AddressBase::Register32(slot)) if words => Some(Quick::Shared(slot)),
            (MemorySpace::Named(Space::Global), AddressBase::Register64(slot)) if words => Some(Quick::Global(slot)),
            _ => None,
        };
        let memory = Box::new(Memory { space, address, ty, registers, half, semantics, scope, quick });
        Ok(Some(if store { Op::Store(memory) } else { Op::Load(memory) }))
    }

    /// Destination of a load, at least as wide as the type.
    fn loaded(&mut self, form: &Form<'a>, operand: &Operand, ty: Type) -> Result<AnySrc> {
        match self.any_dst(form, operand)? {
            AnyDst::Narrow(slot) if ty.bytes() <= 4 => Ok(AnySrc::Narrow(slot)),
            AnyDst::Wide(slot) => Ok(AnySrc::Wide(slot)),
            AnyDst::Sink => Ok(AnySrc::Narrow(crate::program::op::NONE)),
            AnyDst::Narrow(_) => Err(self.fail(form.instruction, "destination is too narrow")),
        }
    }

    pub(super) fn atomic_op(form: &mut Form<'a>) -> Option<AtomicOp> {
        let names = ["add", "and", "or", "xor", "min", "max", "inc", "dec", "exch", "cas"];
        Some(match form.take_one(&names)? {
            "add" => AtomicOp::Add,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            "xor" => AtomicOp::Xor,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "inc" => AtomicOp::Inc,
            "dec" => AtomicOp::Dec,
            "exch" => AtomicOp::Exchange,
            _ => AtomicOp::CompareSwap,
        })
    }

    fn atomic(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let returns = form.opcode() == "atom";
        let semantics = form.semantics().unwrap_or(Semantics::Relaxed);
        let scope = form.scope().unwrap_or(Scope::Gpu);
        form.hints();
        form.take("noftz");
        form.take("ftz");
        let Some(op) = Self::atomic_op(form) else { return Ok(None) };
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        if ty == Type::B128 && returns {
            return self.atomic128(form, op, semantics, scope);
        }
        if !atomic_type(op, ty) {
            return Ok(None);
        }
        let operands = form.operands();
        let first = returns as usize;
        let cas = op == AtomicOp::CompareSwap;
        let count = first + 2 + cas as usize;
        self.expect_operands(form, count..=count + form.has("L2::cache_hint") as usize)?;
        let Some((space, address)) = self.location(form, &operands[first])? else { return Ok(None) };
        let Some(values) = Self::elements(form, &operands[first + 1]) else { return Ok(None) };
        let mut operand = Vec::new();
        for value in values {
            operand.push(self.any_src(form, value, ty)?);
        }
        let swap = if cas { Some(self.any_src(form, &operands[first + 2], ty)?) } else { None };
        let mut old = Vec::new();
        if returns {
            let list = match &operands[0] {
                Operand::Vector(list) => list.as_slice(),
                single => std::slice::from_ref(single),
            };
            for element in list {
                old.push(self.any_dst(form, element)?);
            }
        }
        let result_used = returns && !self.is_dead(&operands[0]);
        let atomic = Atomic { space, address, op, ty, old, operand, swap, semantics, scope, result_used };
        Ok(Some(Op::Atomic(Box::new(atomic))))
    }

    /// The halves of a 128-bit operand.
    fn halves(operand: &'a Operand) -> Option<&'a [Operand; 2]> {
        match operand {
            Operand::Vector(halves) => halves.as_slice().try_into().ok(),
            _ => None,
        }
    }

    fn atomic128(&mut self, form: &mut Form<'a>, op: AtomicOp, semantics: Semantics, scope: Scope) -> Decoded<Op> {
        let cas = match op {
            AtomicOp::CompareSwap => 1,
            AtomicOp::Exchange => 0,
            _ => return Ok(None),
        };
        let count = 3 + cas + form.has("L2::cache_hint") as usize;
        self.expect_operands(form, count..=count)?;
        let operands = form.operands();
        let Some((space, address)) = self.location(form, &operands[1])? else { return Ok(None) };
        let mut sources = Vec::new();
        for operand in &operands[2..3 + cas] {
            let Some([low, high]) = Self::halves(operand) else { return Ok(None) };
            sources.push([self.any_src(form, low, Type::B64)?, self.any_src(form, high, Type::B64)?]);
        }
        let old = match (&operands[0], Self::halves(&operands[0])) {
            (Operand::Sink, _) => [AnyDst::Sink; 2],
            (_, Some([low, high])) => [self.any_dst(form, low)?, self.any_dst(form, high)?],
            _ => return Ok(None),
        };
        let Some(new) = sources.pop() else { return Ok(None) };
        let atomic = Atomic128 { space, address, old, compare: sources.pop(), new, semantics, scope };
        Ok(Some(Op::Atomic128(Box::new(atomic))))
    }

    fn cvta(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let from_generic = form.take("to");
        let Some(space) = self.space(form, None) else { return Ok(None) };
        let space = match space {
            MemorySpace::Named(space) => space,
            MemorySpace::EntryParam => Space::Param,
            _ => return Ok(None),
        };
        if form.types() != [Type::U64] {
            return Ok(None);
        }
        self.expect_operands(form, 2..=2)?;
        let [d, a] = form.operands() else { return Ok(None) };
        let a = self.any_src(form, a, Type::U64)?;
        let d = self.any_dst(form, d)?;
        Ok(Some(if from_generic { Op::FromGeneric(space, d, a) } else { Op::ToGeneric(space, d, a) }))
    }

    fn isspacep(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let space = match self.space(form, None) {
            Some(MemorySpace::Named(space)) => space,
            Some(MemorySpace::EntryParam | MemorySpace::FrameParam) => Space::Param,
            _ => return Ok(None),
        };
        self.expect_operands(form, 2..=2)?;
        let [p, a] = form.operands() else { return Ok(None) };
        let a = self.any_src(form, a, Type::U64)?;
        Ok(Some(Op::IsSpace(space, self.pred_dst(form, p)?, a)))
    }

    fn cluster_address(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let generic = form.take_one(&["shared::cluster"]).is_none();
        let types = form.types();
        let [ty @ (Type::U32 | Type::U64)] = types[..] else { return Ok(None) };
        let [d, a, rest @ ..] = form.operands() else { return Ok(None) };
        let a = self.any_src(form, a, ty)?;
        match (form.opcode(), rest) {
            ("mapa", [rank]) => {
                let rank = self.src32(form, rank, Type::U32)?;
                Ok(Some(Op::Mapa(self.any_dst(form, d)?, a, rank, generic)))
            }
            ("getctarank", []) => Ok(Some(Op::GetCtaRank(self.dst32(form, d)?, a, generic))),
            _ => Ok(None),
        }
    }

    /// A cache policy is an opaque value; nothing reads it.
    fn policy(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        form.take_map(|_| Some(()));
        let Some(f) = crate::scalar::integer::unary64("mov", Type::B64) else { return Ok(None) };
        let zero = self.any_src(form, &Operand::Integer(0), Type::B64)?;
        let (AnySrc::Wide(zero), d) = (zero, self.operand(form, 0)?) else { return Ok(None) };
        Ok(Some(Op::D1(f, self.dst64(form, d)?, zero)))
    }

    fn hint(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        form.take_map(|modifier| {
            let known = ["L1", "L2", "tensormap", "global", "local", "const", "param"];
            (known.contains(&modifier) || modifier.starts_with("L2::")).then_some(())
        });
        let base = match self.operand(form, 0)? {
            Operand::Address(base, offset) => (*base, *offset),
            _ => return Ok(None),
        };
        self.based(form, base.0, base.1)?;
        Ok(Some(Op::Nop))
    }
}

/// Which types an atomic operation has.
fn atomic_type(op: AtomicOp, ty: Type) -> bool {
    use AtomicOp::*;
    use Type::*;
    match op {
        Add => matches!(ty, U32 | S32 | U64 | S64 | F32 | F64 | F16 | F16x2 | Bf16 | Bf16x2),
        Min | Max => matches!(ty, U32 | S32 | U64 | S64 | F16 | F16x2 | Bf16 | Bf16x2),
        And | Or | Xor => matches!(ty, B32 | B64),
        Inc | Dec => ty == U32,
        Exchange => matches!(ty, B32 | B64 | U32 | U64 | S32 | S64),
        CompareSwap => matches!(ty, B16 | B32 | B64 | U32 | U64 | S32 | S64),
    }
}
