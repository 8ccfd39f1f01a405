//! Decodes `cvt` and `mov`.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::front::ast::{Operand, Type};
use crate::program::function_address;
use crate::program::op::{AddressBase, AnyDst, AnySrc, Op, PredOp, PredSrc, Special};
use crate::scalar::convert::{self, Convert, Round};
use crate::scalar::fp8::{self, Fp8};
use crate::scalar::integer;
use crate::scalar::round::Rounding;

/// Special registers of 32 bits by name (components by `component`).
fn special(name: &str) -> Option<Special> {
    let component = |name: &str| ["x", "y", "z"].iter().position(|c| *c == name).map(|index| index as u8);
    if let Some((base, part)) = name.split_once('.') {
        let part = component(part)?;
        return Some(match base {
            "tid" => Special::Tid(part),
            "ntid" => Special::Ntid(part),
            "ctaid" => Special::Ctaid(part),
            "nctaid" => Special::Nctaid(part),
            "clusterid" => Special::Clusterid(part),
            "nclusterid" => Special::Nclusterid(part),
            "cluster_ctaid" => Special::ClusterCtaid(part),
            "cluster_nctaid" => Special::ClusterNctaid(part),
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::Laneid,
        "warpid" => Special::Warpid,
        "nwarpid" => Special::Nwarpid,
        "smid" => Special::Smid,
        "nsmid" => Special::Nsmid,
        "gridid" => Special::Gridid,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_gt" => Special::LanemaskGt,
        "lanemask_ge" => Special::LanemaskGe,
        "clock" | "clock64" => Special::Clock,
        "clock_hi" => Special::ClockHigh,
        "globaltimer" | "globaltimer_lo" => Special::GlobaltimerLow,
        "globaltimer_hi" => Special::GlobaltimerHigh,
        "dynamic_smem_size" => Special::DynamicSharedBytes,
        "total_smem_size" => Special::TotalSharedBytes,
        "aggr_smem_size" => Special::AggregateSharedBytes,
        "cluster_ctarank" => Special::ClusterCtarank,
        "cluster_nctarank" => Special::ClusterNctarank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        "current_graph_exec" => Special::Zero,
        "envreg1" => Special::WorkspaceHigh,
        "envreg2" => Special::WorkspaceLow,
        _ if numbered(name, "pm", 8) || numbered(name, "envreg", 32) => Special::Zero,
        _ => return None,
    })
}

/// `%pm3`, `%envreg12`: a name, a number below `count`, and for counters `_64`.
fn numbered(name: &str, base: &str, count: u32) -> bool {
    let number = name.strip_prefix(base).map(|rest| rest.strip_suffix("_64").unwrap_or(rest));
    number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number < count)
}

fn fp8(ty: Type) -> Option<Fp8> {
    match ty {
        Type::E4m3x2 => Some(Fp8::E4m3),
        Type::E5m2x2 => Some(Fp8::E5m2),
        _ => None,
    }
}

impl<'a> Decoder<'a> {
    pub(super) fn conversion(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let integer = form.take_one(&["rni", "rzi", "rmi", "rpi"]).map(|name| match name {
            "rni" => Rounding::Nearest,
            "rzi" => Rounding::Zero,
            "rmi" => Rounding::Down,
            _ => Rounding::Up,
        });
        let float = form.rounding();
        let (ftz, sat, relu) = (form.take("ftz"), form.take("sat"), form.take("relu"));
        let types = form.types();
        let [to, from] = types[..] else { return Ok(None) };
        if let (Some(_), _) | (_, Some(_)) = (fp8(to), fp8(from)) {
            let rounds = float == Some(Rounding::Nearest) && !ftz && !sat;
            return if rounds { self.fp8_conversion(form, (to, from), relu) } else { Ok(None) };
        }
        if let [d, a, b] = form.operands() {
            let Some(f) = convert::pair(to, float.unwrap_or_default(), relu) else { return Ok(None) };
            if from != Type::F32 || float.is_none() || ftz || sat {
                return Ok(None);
            }
            let (a, b) = (self.src32(form, a, from)?, self.src32(form, b, from)?);
            return Ok(Some(Op::A2(f, self.dst32(form, d)?, a, b)));
        }
        self.expect_operands(form, 2..=2)?;
        let supported = |ty| !matches!(ty, Type::Pred | Type::F16x2 | Type::Bf16x2 | Type::B128);
        if !supported(to) || !supported(from) || from == Type::Tf32 || (to == Type::Tf32 && from != Type::F32) {
            return Ok(None);
        }
        let round = match (integer, float) {
            (Some(mode), None) if from.float() => Round::Integer(mode),
            (None, Some(mode)) if to.float() => Round::Float(mode),
            (None, None) => Round::None,
            _ => return Ok(None),
        };
        // A conversion that must round says how.
        let widens = to.float() && from.float() && to.bytes() > from.bytes();
        let same = to == from;
        if (to.float() || from.float()) && round == Round::None && !widens && !same {
            return Ok(None);
        }
        let c = Convert { to, from, round, ftz, sat, relu };
        let a = self.any_src(form, &form.operands()[1], from)?;
        let d = self.any_dst(form, &form.operands()[0])?;
        if let (AnyDst::Narrow(d), AnySrc::Narrow(a)) = (d, a)
            && let Some(f) = convert::fast32(c)
        {
            return Ok(Some(Op::A1(f, d, a)));
        }
        if let (AnyDst::Wide(d), AnySrc::Narrow(a)) = (d, a)
            && let Some(f) = convert::fast_widen(c)
        {
            return Ok(Some(Op::Widen1(f, d, a)));
        }
        if let (AnyDst::Narrow(d), AnySrc::Wide(a)) = (d, a)
            && let Some(f) = convert::fast_narrow(c)
        {
            return Ok(Some(Op::Narrow1(f, d, a)));
        }
        Ok(Some(Op::Convert(c, d, a, self.holds_16_bits(&form.operands()[0]))))
    }

    /// Conversions of pairs of 8-bit floats.
    fn fp8_conversion(&mut self, form: &mut Form<'a>, (to, from): (Type, Type), relu: bool) -> Decoded<Op> {
        let saturates = form.take("satfinite");
        match (fp8(to), fp8(from), form.operands()) {
            (Some(to), None, [d, a, b]) if from == Type::F32 && saturates => {
                let (a, b) = (self.src32(form, a, from)?, self.src32(form, b, from)?);
                Ok(Some(Op::A2(fp8::pair_from_f32(to, relu), self.dst32(form, d)?, a, b)))
            }
            (Some(to), None, [d, a]) if from == Type::F16x2 && saturates => {
                let a = self.src32(form, a, from)?;
                Ok(Some(Op::A1(fp8::pair_from_f16(to, relu), self.dst32(form, d)?, a)))
            }
            (None, Some(from), [d, a]) if to == Type::F16x2 && !saturates => {
                let a = self.src32(form, a, Type::B16)?;
                Ok(Some(Op::A1(fp8::pair_to_f16(from, relu), self.dst32(form, d)?, a)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn mov(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        self.expect_operands(form, 2..=2)?;
        let [d, a] = form.operands() else { return Ok(None) };
        match (d, a) {
            (Operand::Vector(d), Operand::Vector(a)) => self.move_pair(form, d, a, ty),
            (Operand::Vector(parts), a) => self.unpack(form, parts, a, ty),
            (d, Operand::Vector(parts)) => self.pack(form, d, parts, ty),
            (d, Operand::Special(name)) => self.special(form, d, name),
            (d, Operand::Function(name)) if ty.bytes() == 8 => {
                let (Some(f), Some(address)) = (integer::unary64("mov", ty), function_address(self.module, name))
                else {
                    return Ok(None);
                };
                let a = self.src64(form, &Operand::Integer(address), Type::B64)?;
                Ok(Some(Op::D1(f, self.dst64(form, d)?, a)))
            }
            (d, Operand::Variable(id, offset)) => {
                let (space, address) = self.variable_address(form, *id, *offset)?;
                if space == Space::Param && address.base == AddressBase::Zero && !self.is_entry_param(*id) {
                    return Ok(None);
                }
                Ok(Some(Op::AddressOf(self.any_dst(form, d)?, address)))
            }
            (d, a) if ty == Type::Pred => {
                let a = self.pred_src(form, a)?;
                Ok(Some(Op::Predicate(PredOp::Mov, self.pred_dst(form, d)?, a, PredSrc::Constant(false))))
            }
            (d, a) if ty.bytes() == 8 => {
                let Some(f) = integer::unary64("mov", ty) else { return Ok(None) };
                let a = self.src64(form, a, ty)?;
                Ok(Some(Op::D1(f, self.dst64(form, d)?, a)))
            }
            (d, a) if matches!(ty.bytes(), 2 | 4) => {
                let Some(f) = integer::unary32("mov", ty) else { return Ok(None) };
                let a = self.src32(form, a, ty)?;
                Ok(Some(Op::A1(f, self.dst32(form, d)?, a)))
            }
            _ => Ok(None),
        }
    }

    fn special(&mut self, form: &mut Form<'a>, d: &'a Operand, name: &str) -> Decoded<Op> {
        if let Operand::Register { register, .. } = d
            && self.function.registers[register.0 as usize].ty == Type::Pred
        {
            let fits = special(name) == Some(Special::IsExplicitCluster);
            let p = self.pred_dst(form, d)?;
            return Ok(fits.then_some(Op::SpecialPredicate(Special::IsExplicitCluster, p)));
        }
        let Some(special) = special(name) else {
            return Err(self.fail(form.instruction, &format!("unknown name %{name}")));
        };
        match self.any_dst(form, d)? {
            AnyDst::Narrow(d) => Ok(Some(Op::Special(special, d))),
            AnyDst::Wide(d) => Ok(Some(Op::Special64(special, d))),
            AnyDst::Sink => Ok(None),
        }
    }

    /// Parts must be equal and fill the whole: 2 x 16 in 32 bits, 2 x 32 or 4 x 16 in 64.
    fn parts_fit(ty: Type, count: usize) -> Option<Type> {
        match (ty.bytes(), count) {
            (4, 2) => Some(Type::B16),
            (2, 2) => Some(Type::B8),
            (8, 2) => Some(Type::B32),
            (8, 4) => Some(Type::B16),
            (4, 4) => Some(Type::B8),
            _ => None,
        }
    }

    /// `mov.b128`: a register of 128 bits is two of 64 since it was parsed.
    fn move_pair(&mut self, form: &Form<'a>, d: &'a [Operand], a: &'a [Operand], ty: Type) -> Decoded<Op> {
        let ([d_low, d_high], [a_low, a_high], Type::B128) = (d, a, ty) else { return Ok(None) };
        let from = [self.any_src(form, a_low, Type::B64)?, self.any_src(form, a_high, Type::B64)?];
        let to = [self.any_dst(form, d_low)?, self.any_dst(form, d_high)?];
        if from.iter().any(|a| matches!(a, AnySrc::Narrow(_))) || to.iter().any(|d| matches!(d, AnyDst::Narrow(_))) {
            return Ok(None);
        }
        Ok(Some(Op::MovePair(to, from)))
    }

    fn pack(&mut self, form: &mut Form<'a>, d: &'a Operand, parts: &'a [Operand], ty: Type) -> Decoded<Op> {
        let Some(part) = Self::parts_fit(ty, parts.len()) else { return Ok(None) };
        let mut sources = Vec::new();
        for operand in parts {
            sources.push(AnySrc::Narrow(self.src32(form, operand, part)?));
        }
        Ok(Some(Op::Pack(self.any_dst(form, d)?, sources, 8 * part.bytes())))
    }

    fn unpack(&mut self, form: &mut Form<'a>, parts: &'a [Operand], a: &'a Operand, ty: Type) -> Decoded<Op> {
        let Some(part) = Self::parts_fit(ty, parts.len()) else { return Ok(None) };
        let a = self.any_src(form, a, ty)?;
        let mut destinations = Vec::new();
        for operand in parts {
            destinations.push(self.any_dst(form, operand)?);
        }
        Ok(Some(Op::Unpack(destinations, a, 8 * part.bytes())))
    }
}
