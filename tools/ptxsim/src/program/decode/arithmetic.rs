//! Decodes arithmetic, logic, comparisons and selections.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::error::Result;
use crate::front::ast::{Operand, Type};
use crate::program::op::{
    AnySrc, Carry, CarryOp, Combine, Comparison, NONE, Op, PredOp, PredSrc, RareOp, Set, SetPredicate,
};
use crate::scalar::half::Shape;
use crate::scalar::lanes::Rare;
use crate::scalar::round::Rounding;
use crate::scalar::video::{Video, VideoOp};
use crate::scalar::{compare, float, half, integer};
use crate::units::approx::{Approximate, Function};

/// Opcodes that are `.approx` by nature.
const APPROXIMATE: [&str; 6] = ["ex2", "lg2", "sin", "cos", "tanh", "rsqrt"];

impl<'a> Decoder<'a> {
    pub(super) fn arithmetic(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        match form.opcode() {
            "setp" => return self.setp(form),
            "set" => return self.set(form),
            "selp" => return self.selp(form),
            "slct" => return self.slct(form),
            "testp" => return self.testp(form),
            "addc" | "subc" | "madc" => return self.carry(form),
            "dp4a" | "dp2a" => return self.dot(form),
            name if name.starts_with('v') => return self.video(form),
            _ => {}
        }
        if form.has("cc") {
            return self.carry(form);
        }
        let types = form.types();
        let Some(&ty) = types.last() else { return Ok(None) };
        match ty {
            Type::Pred => self.predicate(form),
            Type::F32 => self.f32(form),
            Type::F64 => self.f64(form),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 if types.len() == 1 => self.half(form, ty),
            _ if types.len() == 1 => self.integer(form, ty),
            _ => Ok(None),
        }
    }

    fn predicate(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let op = match form.opcode() {
            "not" => PredOp::Not,
            "and" => PredOp::And,
            "or" => PredOp::Or,
            "xor" => PredOp::Xor,
            _ => return Ok(None),
        };
        self.expect_operands(form, if op == PredOp::Not { 2..=2 } else { 3..=3 })?;
        let a = self.pred_src(form, self.operand(form, 1)?)?;
        let b = if op == PredOp::Not { PredSrc::Constant(false) } else { self.pred_src(form, self.operand(form, 2)?)? };
        let d = self.pred_dst(form, self.operand(form, 0)?)?;
        Ok(Some(Op::Predicate(op, d, a, b)))
    }

    /// Name under which the integer tables know the form.
    fn integer_name(form: &mut Form<'a>) -> String {
        let mut name = form.opcode().to_string();
        let parts = [
            "lo", "hi", "wide", "sat", "relu", "shiftamt", "clamp", "wrap", "l", "r", "f4e", "b4e", "rc8", "ecl",
            "ecr", "rc16",
        ];
        // `shf.l.wrap`: direction before mode, whatever the order written.
        for part in ["l", "r"].into_iter().chain(parts) {
            if form.take(part) {
                name.push('.');
                name.push_str(part);
            }
        }
        name
    }

    fn integer(&mut self, form: &mut Form<'a>, ty: Type) -> Decoded<Op> {
        let name = Self::integer_name(form);
        let name = name.as_str();
        let count = form.operands().len();
        let wide = ty.bytes() == 8;
        if let Some((f, sources)) = integer::rare(name, ty) {
            return self.rare(form, f, sources, ty);
        }
        match count {
            2 => self.integer_unary(form, name, ty, wide),
            3 => self.integer_binary(form, name, ty, wide),
            4 => self.integer_ternary(form, name, ty, wide),
            _ => Ok(None),
        }
    }

    fn integer_unary(&mut self, form: &mut Form<'a>, name: &str, ty: Type, wide: bool) -> Decoded<Op> {
        if let Some(f) = integer::narrow1(name, ty) {
            let a = self.src64(form, &form.operands()[1], ty)?;
            return Ok(Some(Op::Narrow1(f, self.dst32(form, &form.operands()[0])?, a)));
        }
        if wide {
            let Some(f) = integer::unary64(name, ty) else { return Ok(None) };
            let a = self.src64(form, &form.operands()[1], ty)?;
            return Ok(Some(Op::D1(f, self.dst64(form, &form.operands()[0])?, a)));
        }
        let Some(f) = integer::unary32(name, ty) else { return Ok(None) };
        let a = self.src32(form, &form.operands()[1], ty)?;
        Ok(Some(Op::A1(f, self.dst32(form, &form.operands()[0])?, a)))
    }

    fn integer_binary(&mut self, form: &mut Form<'a>, name: &str, ty: Type, wide: bool) -> Decoded<Op> {
        let [d, a, b] = form.operands() else { return Ok(None) };
        if let Some(f) = integer::widen2(name, ty) {
            let (a, b) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?);
            return Ok(Some(Op::Widen2(f, self.dst64(form, d)?, a, b)));
        }
        // The amount of a shift is 32 bits wide whatever the type.
        let amount = matches!(name, "shl" | "shr");
        if wide {
            if let Some(f) = integer::shift64(name, ty) {
                let (a, b) = (self.src64(form, a, ty)?, self.src32(form, b, Type::U32)?);
                return Ok(Some(Op::Shift64(f, self.dst64(form, d)?, a, b)));
            }
            let Some(f) = integer::binary64(name, ty) else { return Ok(None) };
            let (a, b) = (self.src64(form, a, ty)?, self.src64(form, b, ty)?);
            return Ok(Some(Op::D2(f, self.dst64(form, d)?, a, b)));
        }
        let Some(f) = integer::binary32(name, ty) else { return Ok(None) };
        let (a, b) = (self.src32(form, a, ty)?, self.src32(form, b, if amount { Type::U32 } else { ty })?);
        Ok(Some(Op::A2(f, self.dst32(form, d)?, a, b)))
    }

    fn integer_ternary(&mut self, form: &mut Form<'a>, name: &str, ty: Type, wide: bool) -> Decoded<Op> {
        let [d, a, b, c] = form.operands() else { return Ok(None) };
        if let Some(f) = integer::widen3(name, ty) {
            let (a, b, c) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?, self.src64(form, c, Type::B64)?);
            return Ok(Some(Op::Widen3(f, self.dst64(form, d)?, a, b, c)));
        }
        if wide {
            let Some(f) = integer::ternary64(name, ty) else { return Ok(None) };
            let (a, b, c) = (self.src64(form, a, ty)?, self.src64(form, b, ty)?, self.src64(form, c, ty)?);
            return Ok(Some(Op::D3(f, self.dst64(form, d)?, a, b, c)));
        }
        let Some(f) = integer::ternary32(name, ty) else { return Ok(None) };
        // The third source of `mad.wide.u16` has the width of the result.
        let last = if name == "mad.wide" { Type::B32 } else { ty };
        let (a, b, c) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?, self.src32(form, c, last)?);
        Ok(Some(Op::A3(f, self.dst32(form, d)?, a, b, c)))
    }

    /// A form of the rare tables; positions and lengths are 32 bits wide.
    fn rare(&mut self, form: &mut Form<'a>, f: Rare, sources: usize, ty: Type) -> Decoded<Op> {
        self.expect_operands(form, sources + 1..=sources + 1)?;
        let values = if form.opcode() == "bfi" { 2 } else { 1 };
        let mut list = Vec::new();
        for (index, operand) in form.operands()[1..].iter().enumerate() {
            let float = ty.float();
            list.push(self.any_src(form, operand, if index < values || float { ty } else { Type::U32 })?);
        }
        let d = self.any_dst(form, &form.operands()[0])?;
        Ok(Some(Op::Rare(Box::new(RareOp { f, d, sources: list }))))
    }

    fn f32(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let opcode = if form.opcode() == "mad" { "fma" } else { form.opcode() };
        let (ftz, sat, nan) = (form.take("ftz"), form.take("sat"), form.take("NaN"));
        let (approx, full, rounding) = (form.take("approx"), form.take("full"), form.rounding());
        if approx || full || APPROXIMATE.contains(&opcode) {
            let Some(function) = Approximate::parse(opcode, full) else { return Ok(None) };
            let two = opcode == "div";
            self.expect_operands(form, if two { 3..=3 } else { 2..=2 })?;
            let a = self.src32(form, &form.operands()[1], Type::F32)?;
            let b = if two { self.src32(form, &form.operands()[2], Type::F32)? } else { a };
            return Ok(Some(Op::Approximate(function, self.dst32(form, &form.operands()[0])?, a, b, ftz)));
        }
        let mode = rounding.unwrap_or_default();
        if mode != Rounding::Nearest {
            let Some((f, sources)) = float::directed32(opcode, mode, ftz, sat) else { return Ok(None) };
            return self.rare(form, f, sources, Type::F32);
        }
        let named = if nan { format!("{opcode}.NaN") } else { opcode.to_string() };
        match form.operands() {
            [d, a] => {
                let Some(f) = float::unary32(&named, ftz, sat) else { return Ok(None) };
                let a = self.src32(form, a, Type::F32)?;
                Ok(Some(Op::A1(f, self.dst32(form, d)?, a)))
            }
            [d, a, b] => {
                let Some(f) = float::binary32(&named, ftz, sat) else { return Ok(None) };
                let (a, b) = (self.src32(form, a, Type::F32)?, self.src32(form, b, Type::F32)?);
                Ok(Some(Op::A2(f, self.dst32(form, d)?, a, b)))
            }
            [d, a, b, c] => {
                let Some(f) = float::ternary32(&named, ftz, sat) else { return Ok(None) };
                let (a, b) = (self.src32(form, a, Type::F32)?, self.src32(form, b, Type::F32)?);
                let (c, d) = (self.src32(form, c, Type::F32)?, self.dst32(form, d)?);
                let is_plain = named == "fma" && !ftz && !sat;
                Ok(Some(if is_plain { Op::Fma(d, a, b, c) } else { Op::A3(f, d, a, b, c) }))
            }
            _ => Ok(None),
        }
    }

    fn f64(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let opcode = if form.opcode() == "mad" { "fma" } else { form.opcode() };
        let mode = form.rounding().unwrap_or_default();
        if form.has("approx") {
            return self.f64_approximate(form, opcode);
        }
        if mode != Rounding::Nearest {
            let Some((f, sources)) = float::directed_double(opcode, mode) else { return Ok(None) };
            return self.rare(form, f, sources, Type::F64);
        }
        match form.operands() {
            [d, a] => {
                let Some(f) = float::unary64(opcode) else { return Ok(None) };
                let a = self.src64(form, a, Type::F64)?;
                Ok(Some(Op::D1(f, self.dst64(form, d)?, a)))
            }
            [d, a, b] => {
                let Some(f) = float::binary64(opcode) else { return Ok(None) };
                let (a, b) = (self.src64(form, a, Type::F64)?, self.src64(form, b, Type::F64)?);
                Ok(Some(Op::D2(f, self.dst64(form, d)?, a, b)))
            }
            [d, a, b, c] => {
                let Some(f) = float::ternary64(opcode) else { return Ok(None) };
                let (a, b) = (self.src64(form, a, Type::F64)?, self.src64(form, b, Type::F64)?);
                let c = self.src64(form, c, Type::F64)?;
                Ok(Some(Op::D3(f, self.dst64(form, d)?, a, b, c)))
            }
            _ => Ok(None),
        }
    }

    /// `rcp.approx.ftz.f64`, `rsqrt.approx.ftz.f64`: 20 bits of the upper word, the lower one zero.
    fn f64_approximate(&mut self, form: &mut Form<'a>, opcode: &str) -> Decoded<Op> {
        form.take("approx");
        form.take("ftz");
        let f: Rare = match opcode {
            "rcp" => |[a, ..]| float::upper_word(1.0 / float::flush64(a)),
            "rsqrt" => |[a, ..]| float::upper_word(1.0 / float::flush64(a).sqrt()),
            _ => return Ok(None),
        };
        self.rare(form, f, 1, Type::F64)
    }

    fn half(&mut self, form: &mut Form<'a>, ty: Type) -> Decoded<Op> {
        let shape = Shape {
            bf: matches!(ty, Type::Bf16 | Type::Bf16x2),
            pair: matches!(ty, Type::F16x2 | Type::Bf16x2),
            ftz: form.take("ftz"),
            sat: form.take("sat"),
        };
        let mut name = form.opcode().to_string();
        for part in ["relu", "NaN"] {
            if form.take(part) {
                name.push('.');
                name.push_str(part);
            }
        }
        form.take("approx");
        if form.rounding().unwrap_or_default() != Rounding::Nearest {
            return Ok(None);
        }
        match form.operands() {
            [d, a] if matches!(name.as_str(), "ex2" | "tanh") && !shape.sat => {
                let function = if name == "ex2" { Function::Ex2 } else { Function::Tanh };
                let function = Approximate::Half { function, bf: shape.bf, pair: shape.pair };
                let a = self.src32(form, a, ty)?;
                Ok(Some(Op::Approximate(function, self.dst32(form, d)?, a, a, shape.ftz)))
            }
            [d, a] => {
                let Some(f) = half::unary(&name, shape) else { return Ok(None) };
                let a = self.src32(form, a, ty)?;
                Ok(Some(Op::A1(f, self.dst32(form, d)?, a)))
            }
            [d, a, b] => {
                let Some(f) = half::binary(&name, shape) else { return Ok(None) };
                let (a, b) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?);
                Ok(Some(Op::A2(f, self.dst32(form, d)?, a, b)))
            }
            [d, a, b, c] => {
                let Some(f) = half::ternary(&name, shape) else { return Ok(None) };
                let (a, b, c) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?, self.src32(form, c, ty)?);
                Ok(Some(Op::A3(f, self.dst32(form, d)?, a, b, c)))
            }
            _ => Ok(None),
        }
    }

    fn dot(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let [a, b] = types[..] else { return Ok(None) };
        let half = form.take_one(&["lo", "hi"]);
        let first = if a.signed() { "s32" } else { "u32" };
        let name = match half {
            Some(half) => format!("dp2a.{half}.{first}"),
            None => format!("dp4a.{first}"),
        };
        if half.is_some() {
            let Some((f, sources)) = integer::rare(&name, b) else { return Ok(None) };
            return self.rare(form, f, sources, Type::B32);
        }
        self.expect_operands(form, 4..=4)?;
        self.integer_ternary(form, &name, b, false)
    }

    /// SIMD video instructions; the scalar ones select parts of registers in a syntax that nvcc never writes.
    fn video(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let Some((name, bits)) = [("2", 16), ("4", 8)].iter().find_map(|(suffix, bits)| {
            let name = form.opcode().strip_suffix(suffix)?;
            Some((name, *bits))
        }) else {
            return Ok(None);
        };
        let (Some(op), [d, a, b]) = (VideoOp::parse(name), &form.types()[..]) else { return Ok(None) };
        let signed = [d, a, b].map(|ty| ty.signed());
        let video = Video { op, bits, signed, saturate: form.take("sat"), accumulate: form.take("add") };
        if [d, a, b].iter().any(|ty| !matches!(ty, Type::U32 | Type::S32)) || video.saturate && video.accumulate {
            return Ok(None);
        }
        self.expect_operands(form, 4..=4)?;
        let [d, a, b, c] = form.operands() else { return Ok(None) };
        let sources =
            [self.src32(form, a, Type::U32)?, self.src32(form, b, Type::U32)?, self.src32(form, c, Type::U32)?];
        Ok(Some(Op::Video(video, self.dst32(form, d)?, sources)))
    }

    fn carry(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        let carry_out = form.take("cc");
        let carry_in = form.opcode().ends_with('c');
        let (lo, hi) = (form.take("lo"), form.take("hi"));
        let signed = ty.signed();
        let (op, sources) = match (form.opcode(), lo, hi) {
            ("add" | "addc", false, false) => (CarryOp::Add, 2),
            ("sub" | "subc", false, false) => (CarryOp::Sub, 2),
            ("mad" | "madc", true, false) => (CarryOp::MadLow { signed }, 3),
            ("mad" | "madc", false, true) => (CarryOp::MadHigh { signed }, 3),
            _ => return Ok(None),
        };
        if !matches!(ty, Type::U32 | Type::S32 | Type::U64 | Type::S64) {
            return Ok(None);
        }
        self.expect_operands(form, sources + 1..=sources + 1)?;
        let mut list = Vec::new();
        for operand in &form.operands()[1..] {
            list.push(self.any_src(form, operand, ty)?);
        }
        let wide = ty.bytes() == 8;
        if list.iter().any(|source| matches!(source, AnySrc::Wide(_)) != wide) {
            return Err(self.fail(form.instruction, "operand has the wrong width"));
        }
        let d = self.any_dst(form, &form.operands()[0])?;
        Ok(Some(Op::Carry(Box::new(Carry { op, wide, carry_in, carry_out, d, sources: list }))))
    }

    /// Comparison operator and joined predicate of `setp` and `set`.
    fn operator(form: &mut Form<'a>) -> (Option<&'static str>, Option<PredOp>) {
        let operators = [
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
            "num", "nan",
        ];
        let operator = form.take_one(&operators);
        let joined = form.take_one(&["and", "or", "xor"]).map(|name| match name {
            "and" => PredOp::And,
            "or" => PredOp::Or,
            _ => PredOp::Xor,
        });
        (operator, joined)
    }

    fn comparison(
        &mut self,
        form: &Form<'a>,
        operator: &str,
        ty: Type,
        ftz: bool,
        first: usize,
    ) -> Decoded<Comparison> {
        let (a, b) = (self.operand(form, first)?, self.operand(form, first + 1)?);
        if ty.bytes() == 8 {
            let Some(f) = compare::compare64(operator, ty) else { return Ok(None) };
            return Ok(Some(Comparison::Wide(f, self.src64(form, a, ty)?, self.src64(form, b, ty)?)));
        }
        let (x, y) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?);
        if let (Some(lower), Some(upper)) = (compare::compare_lower(operator, ty), compare::compare_upper(operator, ty))
        {
            return Ok(Some(Comparison::Pair(lower, upper, x, y)));
        }
        let Some(f) = compare::compare32(operator, ty, ftz) else { return Ok(None) };
        Ok(Some(Comparison::Narrow(f, x, y)))
    }

    fn combine(&mut self, form: &Form<'a>, joined: Option<PredOp>, index: usize) -> Result<Option<Combine>> {
        let Some(op) = joined else { return Ok(None) };
        let with = self.pred_src(form, self.operand(form, index)?)?;
        Ok(Some(Combine { op, with }))
    }

    fn setp(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let ftz = form.take("ftz");
        let (operator, joined) = Self::operator(form);
        let (Some(operator), [ty]) = (operator, &types[..]) else { return Ok(None) };
        self.expect_operands(form, if joined.is_some() { 4..=4 } else { 3..=3 })?;
        let Some(comparison) = self.comparison(form, operator, *ty, ftz, 1)? else { return Ok(None) };
        let combine = self.combine(form, joined, 3)?;
        let (p, q) = match &form.operands()[0] {
            Operand::Pair(p, q) => (self.pred_dst(form, p)?, self.pred_dst(form, q)?),
            p => (self.pred_dst(form, p)?, NONE),
        };
        Ok(Some(Op::SetPredicate(Box::new(SetPredicate { comparison, p, q, combine }))))
    }

    fn set(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let ftz = form.take("ftz");
        let (operator, joined) = Self::operator(form);
        let (Some(operator), [to, ty]) = (operator, &types[..]) else { return Ok(None) };
        self.expect_operands(form, if joined.is_some() { 4..=4 } else { 3..=3 })?;
        let yes = match to {
            Type::F32 => 0x3f80_0000,
            Type::F16 => 0x3c00,
            Type::Bf16 => 0x3f80,
            Type::F16x2 => 0x3c00_3c00,
            Type::Bf16x2 => 0x3f80_3f80,
            Type::U16 | Type::S16 => 0xffff,
            Type::U32 | Type::S32 => u32::MAX,
            _ => return Ok(None),
        };
        let Some(comparison) = self.comparison(form, operator, *ty, ftz, 1)? else { return Ok(None) };
        let combine = self.combine(form, joined, 3)?;
        let d = self.dst32(form, &form.operands()[0])?;
        Ok(Some(Op::Set(Box::new(Set { comparison, d, yes, combine }))))
    }

    fn selp(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        self.expect_operands(form, 4..=4)?;
        let [d, a, b, p] = form.operands() else { return Ok(None) };
        let p = self.pred_src(form, p)?;
        if ty.bytes() == 8 {
            let (a, b) = (self.src64(form, a, ty)?, self.src64(form, b, ty)?);
            return Ok(Some(Op::Select64(self.dst64(form, d)?, a, b, p)));
        }
        let (a, b) = (self.src32(form, a, ty)?, self.src32(form, b, ty)?);
        Ok(Some(Op::Select32(self.dst32(form, d)?, a, b, p)))
    }

    fn slct(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        form.take("ftz");
        let [ty, by] = types[..] else { return Ok(None) };
        self.expect_operands(form, 4..=4)?;
        let f: Rare = match by {
            Type::S32 => |[a, b, c, _]| if c as i32 >= 0 { a } else { b },
            Type::F32 => |[a, b, c, _]| if f32::from_bits(c as u32) >= 0.0 { a } else { b },
            _ => return Ok(None),
        };
        let mut sources = Vec::new();
        for (operand, ty) in form.operands()[1..].iter().zip([ty, ty, by]) {
            sources.push(self.any_src(form, operand, ty)?);
        }
        let d = self.any_dst(form, &form.operands()[0])?;
        Ok(Some(Op::Rare(Box::new(RareOp { f, d, sources }))))
    }

    fn testp(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let kinds = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"];
        let (Some(kind), [ty]) = (form.take_one(&kinds), &types[..]) else { return Ok(None) };
        self.expect_operands(form, 2..=2)?;
        let comparison = match ty {
            Type::F32 => {
                let Some(f) = compare::test32(kind) else { return Ok(None) };
                let a = self.src32(form, &form.operands()[1], *ty)?;
                Comparison::Narrow(f, a, a)
            }
            Type::F64 => {
                let Some(f) = compare::test64(kind) else { return Ok(None) };
                let a = self.src64(form, &form.operands()[1], *ty)?;
                Comparison::Wide(f, a, a)
            }
            _ => return Ok(None),
        };
        let p = self.pred_dst(form, &form.operands()[0])?;
        Ok(Some(Op::SetPredicate(Box::new(SetPredicate { comparison, p, q: NONE, combine: None }))))
    }
}
