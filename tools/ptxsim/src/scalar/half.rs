//! `f16` and `bf16` arithmetic, single and in pairs: exact in `f64`, rounded once.

use super::lanes::{F1, F2, F3};
use super::round::{BF16, F16, Format, Rounding, bf16_value, f16_value, narrow, odd, two_sum};

/// Operations on one element: up to three sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Add,
    Sub,
    Mul,
    Fma,
    FmaRelu,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
}

#[inline(always)]
fn value<const BF: bool>(bits: u32) -> f32 {
    if BF { bf16_value(bits & 0xffff) } else { f16_value(bits & 0xffff) }
}

#[inline(always)]
fn format<const BF: bool>() -> Format {
    if BF { BF16 } else { F16 }
}

fn flush16(bits: u32) -> u32 {
    if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

fn select<const BF: bool>(a: u32, b: u32, want_max: bool, nan_wins: bool) -> u32 {
    let (x, y) = (value::<BF>(a), value::<BF>(b));
    if x.is_nan() || y.is_nan() {
        if nan_wins || (x.is_nan() && y.is_nan()) {
            return 0x7fff;
        }
        return if x.is_nan() { b } else { a };
    }
    let a_below = x < y || (x == y && x.is_sign_negative());
    if a_below != want_max { a } else { b }
}

fn element<const BF: bool>(op: Element, a: u32, b: u32, c: u32) -> u32 {
    let round = |exact: f64| narrow(exact, format::<BF>(), Rounding::Nearest);
    let (x, y, z) = (value::<BF>(a) as f64, value::<BF>(b) as f64, value::<BF>(c) as f64);
    match op {
        Element::Add => {
            let (high, low) = two_sum(x, y);
            round(odd(high, low))
        }
        Element::Sub => {
            let (high, low) = two_sum(x, -y);
            round(odd(high, low))
        }
        Element::Mul => round(x * y),
        Element::Fma | Element::FmaRelu => {
            let (high, low) = two_sum(x * y, z);
            let sum = odd(high, low);
            let negative = op == Element::FmaRelu && sum.is_sign_negative() && !sum.is_nan();
            if negative { 0 } else { round(sum) }
        }
        Element::Min => select::<BF>(a, b, false, false),
        Element::Max => select::<BF>(a, b, true, false),
        Element::MinNan => select::<BF>(a, b, false, true),
        Element::MaxNan => select::<BF>(a, b, true, true),
        Element::Neg => a ^ 0x8000,
        Element::Abs => a & 0x7fff,
    }
}

/// One element or a pair, with `.ftz` and `.sat` where the form has them.
fn word<const BF: bool, const PAIR: bool, const FTZ: bool, const SAT: bool>(
    op: Element,
    a: u32,
    b: u32,
    c: u32,
) -> u32 {
    let one = |a: u32, b: u32, c: u32| {
        let inputs = if FTZ { [flush16(a), flush16(b), flush16(c)] } else { [a, b, c] };
        let bits = element::<BF>(op, inputs[0], inputs[1], inputs[2]);
        let bits = if FTZ { flush16(bits) } else { bits };
        if !SAT {
            return bits;
        }
        let value = value::<BF>(bits);
        let clamped = if value > 0.0 { value.min(1.0) } else { 0.0 };
        narrow(clamped as f64, format::<BF>(), Rounding::Nearest)
    };
    let low = one(a & 0xffff, b & 0xffff, c & 0xffff);
    if PAIR { low | one(a >> 16, b >> 16, c >> 16) << 16 } else { low }
}

/// Which 16-bit format, and whether a register holds two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// bfloat16, else binary16.
    pub bf: bool,
    /// `x2`.
    pub pair: bool,
    /// `.ftz` (binary16 only).
    pub ftz: bool,
    /// `.sat` (binary16 only).
    pub sat: bool,
}

/// Instantiates one operation for every [`Shape`] that PTX has.
macro_rules! half_row {
    ($shape:expr; $($x:ident),+ => $call:ident($($arg:tt)+)) => {
        match ($shape.bf, $shape.pair, $shape.ftz, $shape.sat) {
            (false, false, false, false) => lanes!(L32; $($x: L32),+ => $call::<false, false, false, false>($($arg)+)),
            (false, true, false, false) => lanes!(L32; $($x: L32),+ => $call::<false, true, false, false>($($arg)+)),
            (false, false, true, false) => lanes!(L32; $($x: L32),+ => $call::<false, false, true, false>($($arg)+)),
            (false, true, true, false) => lanes!(L32; $($x: L32),+ => $call::<false, true, true, false>($($arg)+)),
            (false, false, false, true) => lanes!(L32; $($x: L32),+ => $call::<false, false, false, true>($($arg)+)),
            (false, true, false, true) => lanes!(L32; $($x: L32),+ => $call::<false, true, false, true>($($arg)+)),
            (false, false, true, true) => lanes!(L32; $($x: L32),+ => $call::<false, false, true, true>($($arg)+)),
            (false, true, true, true) => lanes!(L32; $($x: L32),+ => $call::<false, true, true, true>($($arg)+)),
            (true, false, _, false) => lanes!(L32; $($x: L32),+ => $call::<true, false, false, false>($($arg)+)),
            (true, true, _, false) => lanes!(L32; $($x: L32),+ => $call::<true, true, false, false>($($arg)+)),
            (true, _, _, true) => return None,
        }
    };
}

/// One source.
pub fn unary(opcode: &str, shape: Shape) -> Option<F1> {
    Some(match opcode {
        "neg" => half_row!(shape; a => word(Element::Neg, a, 0, 0)),
        "abs" => half_row!(shape; a => word(Element::Abs, a, 0, 0)),
        _ => return None,
    })
}

/// Two sources.
pub fn binary(opcode: &str, shape: Shape) -> Option<F2> {
    Some(match opcode {
        "add" => half_row!(shape; a, b => word(Element::Add, a, b, 0)),
        "sub" => half_row!(shape; a, b => word(Element::Sub, a, b, 0)),
        "mul" => half_row!(shape; a, b => word(Element::Mul, a, b, 0)),
        "min" => half_row!(shape; a, b => word(Element::Min, a, b, 0)),
        "max" => half_row!(shape; a, b => word(Element::Max, a, b, 0)),
        "min.NaN" => half_row!(shape; a, b => word(Element::MinNan, a, b, 0)),
        "max.NaN" => half_row!(shape; a, b => word(Element::MaxNan, a, b, 0)),
        _ => return None,
    })
}

/// Three sources.
pub fn ternary(opcode: &str, shape: Shape) -> Option<F3> {
    Some(match opcode {
        "fma" => half_row!(shape; a, b, c => word(Element::Fma, a, b, c)),
        "fma.relu" => half_row!(shape; a, b, c => word(Element::FmaRelu, a, b, c)),
        _ => return None,
    })
}

/// Sum of one pair or element, for atomics.
pub fn add(bf: bool, pair: bool, a: u32, b: u32) -> u32 {
    match (bf, pair) {
        (false, false) => word::<false, false, false, false>(Element::Add, a, b, 0),
        (false, true) => word::<false, true, false, false>(Element::Add, a, b, 0),
        (true, false) => word::<true, false, false, false>(Element::Add, a, b, 0),
        (true, true) => word::<true, true, false, false>(Element::Add, a, b, 0),
    }
}

/// Minimum or maximum of one pair or element, for reductions.
pub fn extreme(bf: bool, pair: bool, maximum: bool, a: u32, b: u32) -> u32 {
    let one = |a, b| if bf { select::<true>(a, b, maximum, false) } else { select::<false>(a, b, maximum, false) };
    let low = one(a & 0xffff, b & 0xffff);
    if pair { low | one(a >> 16, b >> 16) << 16 } else { low }
}
