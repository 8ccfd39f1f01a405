//! Comparisons of `setp` and `set`: a mask of lanes per operator and type.

use super::lanes::{Compare32, Compare64};
use super::round::{bf16_value, f16_value, flush};
use crate::front::ast::Type;

#[inline(always)]
fn f<const FTZ: bool>(bits: u32) -> f32 {
    f32::from_bits(if FTZ { flush(bits) } else { bits })
}

/// The float operators over any two converted sources; `equ` and its like hold for NaN too.
macro_rules! float_row {
    ($operator:expr, $t:ident; $a:ident, $b:ident; $x:expr, $y:expr) => {
        match $operator {
            "eq" => compare!($t; $a, $b => $x == $y),
            "ne" => compare!($t; $a, $b => $x < $y || $x > $y),
            "lt" => compare!($t; $a, $b => $x < $y),
            "le" => compare!($t; $a, $b => $x <= $y),
            "gt" => compare!($t; $a, $b => $x > $y),
            "ge" => compare!($t; $a, $b => $x >= $y),
            "equ" => compare!($t; $a, $b => !($x < $y || $x > $y)),
            "neu" => compare!($t; $a, $b => $x != $y),
            "ltu" => compare!($t; $a, $b => $x < $y || $x.is_nan() || $y.is_nan()),
            "leu" => compare!($t; $a, $b => $x <= $y || $x.is_nan() || $y.is_nan()),
            "gtu" => compare!($t; $a, $b => $x > $y || $x.is_nan() || $y.is_nan()),
            "geu" => compare!($t; $a, $b => $x >= $y || $x.is_nan() || $y.is_nan()),
            "num" => compare!($t; $a, $b => !$x.is_nan() && !$y.is_nan()),
            "nan" => compare!($t; $a, $b => $x.is_nan() || $y.is_nan()),
            _ => return None,
        }
    };
}

/// The integer operators; unsigned ones have second names.
macro_rules! integer_row {
    ($operator:expr, $t:ident; $a:ident, $b:ident; $x:expr, $y:expr) => {
        match $operator {
            "eq" => compare!($t; $a, $b => $x == $y),
            "ne" => compare!($t; $a, $b => $x != $y),
            "lt" | "lo" => compare!($t; $a, $b => $x < $y),
            "le" | "ls" => compare!($t; $a, $b => $x <= $y),
            "gt" | "hi" => compare!($t; $a, $b => $x > $y),
            "ge" | "hs" => compare!($t; $a, $b => $x >= $y),
            _ => return None,
        }
    };
}

/// Comparison of 16- and 32-bit values.
pub fn compare32(operator: &str, ty: Type, ftz: bool) -> Option<Compare32> {
    use Type::*;
    Some(match ty {
        B32 | B16 if !matches!(operator, "eq" | "ne") => return None,
        U32 | B32 | U16 | B16 => integer_row!(operator, L32; a, b; a, b),
        S32 => integer_row!(operator, L32; a, b; a as i32, b as i32),
        S16 => integer_row!(operator, L32; a, b; a as i16, b as i16),
        F32 if ftz => float_row!(operator, L32; a, b; f::<true>(a), f::<true>(b)),
        F32 => float_row!(operator, L32; a, b; f::<false>(a), f::<false>(b)),
        F16 => float_row!(operator, L32; a, b; f16_value(a), f16_value(b)),
        Bf16 => float_row!(operator, L32; a, b; bf16_value(a), bf16_value(b)),
        _ => return None,
    })
}

/// The same of the upper halves of pairs, for the second predicate of `setp.f16x2`.
pub fn compare_upper(operator: &str, ty: Type) -> Option<Compare32> {
    Some(match ty {
        Type::F16x2 => float_row!(operator, L32; a, b; f16_value(a >> 16), f16_value(b >> 16)),
        Type::Bf16x2 => float_row!(operator, L32; a, b; bf16_value(a >> 16), bf16_value(b >> 16)),
        _ => return None,
    })
}

/// The lower halves.
pub fn compare_lower(operator: &str, ty: Type) -> Option<Compare32> {
    Some(match ty {
        Type::F16x2 => float_row!(operator, L32; a, b; f16_value(a & 0xffff), f16_value(b & 0xffff)),
        Type::Bf16x2 => float_row!(operator, L32; a, b; bf16_value(a & 0xffff), bf16_value(b & 0xffff)),
        _ => return None,
    })
}

/// Comparison of 64-bit values.
pub fn compare64(operator: &str, ty: Type) -> Option<Compare64> {
    use Type::*;
    Some(match ty {
        B64 if !matches!(operator, "eq" | "ne") => return None,
        U64 | B64 => integer_row!(operator, L64; a, b; a, b),
        S64 => integer_row!(operator, L64; a, b; a as i64, b as i64),
        F64 => float_row!(operator, L64; a, b; f64::from_bits(a), f64::from_bits(b)),
        _ => return None,
    })
}

/// `testp.f32`; the second source is not looked at.
pub fn test32(kind: &str) -> Option<Compare32> {
    Some(match kind {
        "finite" => compare!(L32; a, _b => f32::from_bits(a).is_finite()),
        "infinite" => compare!(L32; a, _b => f32::from_bits(a).is_infinite()),
        "number" => compare!(L32; a, _b => !f32::from_bits(a).is_nan()),
        "notanumber" => compare!(L32; a, _b => f32::from_bits(a).is_nan()),
        "normal" => compare!(L32; a, _b => f32::from_bits(a).is_normal()),
        "subnormal" => compare!(L32; a, _b => f32::from_bits(a).is_subnormal()),
        _ => return None,
    })
}

/// `testp.f64`.
pub fn test64(kind: &str) -> Option<Compare64> {
    Some(match kind {
        "finite" => compare!(L64; a, _b => f64::from_bits(a).is_finite()),
        "infinite" => compare!(L64; a, _b => f64::from_bits(a).is_infinite()),
        "number" => compare!(L64; a, _b => !f64::from_bits(a).is_nan()),
        "notanumber" => compare!(L64; a, _b => f64::from_bits(a).is_nan()),
        "normal" => compare!(L64; a, _b => f64::from_bits(a).is_normal()),
        "subnormal" => compare!(L64; a, _b => f64::from_bits(a).is_subnormal()),
        _ => return None,
    })
}
