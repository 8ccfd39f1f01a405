//! `cvt`: between all types, with every rounding and saturation; the frequent pairs as vectorised loops.

use super::lanes::{F1, F2, Narrow1, Widen1};
use super::round::{BF16, F16, F32, Rounding, bf16_value, canonical, f16_value, flush, narrow};
use crate::front::ast::Type;

/// How a `cvt` rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// No modifier: the conversion is exact, or integer to integer.
    None,
    /// To a floating-point result.
    Float(Rounding),
    /// To an integral value (`.rni`, `.rzi`, `.rmi`, `.rpi`).
    Integer(Rounding),
}

/// A conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convert {
    /// Result.
    pub to: Type,
    /// Source.
    pub from: Type,
    /// Rounding.
    pub round: Round,
    /// `.ftz`.
    pub ftz: bool,
    /// `.sat`.
    pub sat: bool,
    /// `.relu`.
    pub relu: bool,
}

fn integral(x: f64, mode: Rounding) -> f64 {
    match mode {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// Clamps to the range of an integer type. NaN is 0, or the top bit alone when source or destination has 64 bits.
fn to_integer(x: f64, from: Type, ty: Type) -> u64 {
    if x.is_nan() && (from == Type::F64 || ty.bytes() == 8) {
        return 1 << (8 * ty.bytes() - 1);
    }
    match ty {
        Type::S8 => x as i8 as u64,
        Type::S16 => x as i16 as u64,
        Type::S32 => x as i32 as u64,
        Type::S64 => x as i64 as u64,
        Type::U8 => x as u8 as u64,
        Type::U16 => x as u16 as u64,
        Type::U32 => x as u32 as u64,
        _ => x as u64,
    }
}

fn sign_extend(bits: u64, ty: Type) -> i128 {
    match ty {
        Type::S8 => bits as i8 as i128,
        Type::S16 => bits as i16 as i128,
        Type::S32 => bits as i32 as i128,
        Type::S64 => bits as i64 as i128,
        Type::U8 | Type::B8 => bits as u8 as i128,
        Type::U16 | Type::B16 => bits as u16 as i128,
        Type::U32 | Type::B32 => bits as u32 as i128,
        _ => bits as i128,
    }
}

fn range(ty: Type) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

/// Nearest `f64` with a sticky last bit: exact for what the small formats need.
fn sticky(x: i128) -> f64 {
    let magnitude = x.unsigned_abs();
    let length = 128 - magnitude.leading_zeros();
    if length <= 53 {
        return x as f64;
    }
    let drop = length - 53;
    let kept = magnitude >> drop | (magnitude & ((1 << drop) - 1) != 0) as u128;
    let value = kept as f64 * (2f64).powi(drop as i32);
    if x < 0 { -value } else { value }
}

impl Convert {
    fn source(&self, bits: u64) -> f64 {
        match self.from {
            Type::F32 => f32::from_bits(if self.ftz { flush(bits as u32) } else { bits as u32 }) as f64,
            Type::F64 => f64::from_bits(bits),
            Type::F16 => f16_value(bits as u32 & 0xffff) as f64,
            _ => bf16_value(bits as u32 & 0xffff) as f64,
        }
    }

    fn to_float(self, x: f64, mode: Rounding) -> u64 {
        let x = if self.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
        let x = if self.relu && x < 0.0 { 0.0 } else { x };
        match self.to {
            Type::F64 => {
                if x.is_nan() {
                    0x7fff_ffff_ffff_ffff
                } else {
                    x.to_bits()
                }
            }
            Type::F32 => {
                let bits = narrow(x, F32, mode);
                (if self.ftz { flush(bits) } else { bits }) as u64
            }
            Type::Tf32 => {
                let bits = narrow(x, super::round::Format { fraction: 10, exponent: 8, nan: 0x3_ffff }, mode);
                (bits as u64) << 13
            }
            Type::F16 => narrow(x, F16, mode) as u64,
            _ => narrow(x, BF16, mode) as u64,
        }
    }

    /// Converts one value; sources and results have zeros above their width, but a signed narrow result is extended to
    /// its register by the caller's class.
    pub fn apply(self, bits: u64) -> u64 {
        if self.from.float() {
            let x = self.source(bits);
            return match self.round {
                Round::Integer(mode) if !self.to.float() => to_integer(integral(x, mode), self.from, self.to),
                Round::Integer(mode) => self.to_float(integral(x, mode), Rounding::Nearest),
                Round::Float(mode) => self.to_float(x, mode),
                Round::None => self.to_float(x, Rounding::Nearest),
            };
        }
        let x = sign_extend(bits, self.from);
        if self.to.float() {
            let mode = if let Round::Float(mode) = self.round { mode } else { Rounding::Nearest };
            if self.to == Type::F64 {
                return integer_to_f64(x, mode).to_bits();
            }
            return self.to_float(sticky(x), mode);
        }
        if self.sat {
            let (low, high) = range(self.to);
            return x.clamp(low, high) as u64;
        }
        // Chopped to the result's width, then extended by the result's own sign.
        let (_, high) = range(self.to);
        if self.to.signed() { sign_extend(x as u64, self.to) as u64 } else { (x & high) as u64 }
    }
}

fn integer_to_f64(x: i128, mode: Rounding) -> f64 {
    let nearest = x as f64;
    let error = x - nearest as i128;
    match mode {
        Rounding::Up if error > 0 => nearest.next_up(),
        Rounding::Down if error < 0 => nearest.next_down(),
        Rounding::Zero if error > 0 && x < 0 => nearest.next_up(),
        Rounding::Zero if error < 0 && x > 0 => nearest.next_down(),
        _ => nearest,
    }
}

/// Rounds an `f32` to bfloat16, nearest even.
#[inline(always)]
pub fn to_bf16(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// Frequent 32-bit to 32-bit conversions.
pub fn fast32(c: Convert) -> Option<F1> {
    use Rounding::{Nearest, Zero};
    use Type::*;
    if c.sat || c.relu {
        return None;
    }
    Some(match (c.to, c.from, c.round) {
        (F32, S32, Round::Float(Nearest)) => lanes!(L32; a: L32 => (a as i32 as f32).to_bits()),
        (F32, U32, Round::Float(Nearest)) => lanes!(L32; a: L32 => (a as f32).to_bits()),
        (F32, Bf16, Round::None) => lanes!(L32; a: L32 => canonical(f32::from_bits(a << 16))),
        (F32, F16, Round::None) if !c.ftz => lanes!(L32; a: L32 => canonical(f16_value(a & 0xffff))),
        (Bf16, F32, Round::Float(Nearest)) => lanes!(L32; a: L32 => to_bf16(a)),
        (S32, F32, Round::Integer(Zero)) => lanes!(L32; a: L32 => f32::from_bits(a) as i32 as u32),
        (U32, F32, Round::Integer(Zero)) => lanes!(L32; a: L32 => f32::from_bits(a) as u32),
        (S32, F32, Round::Integer(Nearest)) => lanes!(L32; a: L32 => f32::from_bits(a).round_ties_even() as i32 as u32),
        (U16 | S16, U32 | S32, Round::None) => lanes!(L32; a: L32 => a & 0xffff),
        (U32 | S32, U16, Round::None) => lanes!(L32; a: L32 => a & 0xffff),
        (S32 | U32, S16, Round::None) => lanes!(L32; a: L32 => a as i16 as u32),
        (U32 | S32, U32 | S32, Round::None) => lanes!(L32; a: L32 => a),
        _ => return None,
    })
}

/// Frequent widenings.
pub fn fast_widen(c: Convert) -> Option<Widen1> {
    use Type::*;
    if c.sat {
        return None;
    }
    Some(match (c.to, c.from) {
        (U64 | S64, U32) => lanes!(L64; a: L32 => a as u64),
        (S64 | U64, S32) => lanes!(L64; a: L32 => a as i32 as u64),
        (U64 | S64, U16) => lanes!(L64; a: L32 => a as u64 & 0xffff),
        _ => return None,
    })
}

/// Frequent truncations.
pub fn fast_narrow(c: Convert) -> Option<Narrow1> {
    use Type::*;
    if c.sat {
        return None;
    }
    Some(match (c.to, c.from) {
        (U32 | S32, U64 | S64) => lanes!(L32; a: L64 => a as u32),
        (U16 | S16, U64 | S64) => lanes!(L32; a: L64 => a as u32 & 0xffff),
        _ => return None,
    })
}

fn pack(a: u32, b: u32, to: Type, mode: Rounding, relu: bool) -> u32 {
    let c = Convert { to, from: Type::F32, round: Round::Float(mode), ftz: false, sat: false, relu };
    (c.apply(a as u64) << 16 | c.apply(b as u64)) as u32
}

/// `cvt.*x2.f32 d, a, b`: `a` goes to the upper half.
pub fn pair(to: Type, mode: Rounding, relu: bool) -> Option<F2> {
    use Rounding::{Nearest, Zero};
    use Type::*;
    Some(match (to, mode, relu) {
        (Bf16x2, Nearest, false) => lanes!(L32; a: L32, b: L32 => to_bf16(a) << 16 | to_bf16(b)),
        (Bf16x2, Nearest, true) => lanes!(L32; a: L32, b: L32 => pack(a, b, Bf16, Nearest, true)),
        (Bf16x2, Zero, false) => lanes!(L32; a: L32, b: L32 => pack(a, b, Bf16, Zero, false)),
        (Bf16x2, Zero, true) => lanes!(L32; a: L32, b: L32 => pack(a, b, Bf16, Zero, true)),
        (F16x2, Nearest, false) => lanes!(L32; a: L32, b: L32 => pack(a, b, F16, Nearest, false)),
        (F16x2, Nearest, true) => lanes!(L32; a: L32, b: L32 => pack(a, b, F16, Nearest, true)),
        (F16x2, Zero, false) => lanes!(L32; a: L32, b: L32 => pack(a, b, F16, Zero, false)),
        (F16x2, Zero, true) => lanes!(L32; a: L32, b: L32 => pack(a, b, F16, Zero, true)),
        _ => return None,
    })
}
