//! `f32` and `f64` arithmetic: a table row per opcode, in every combination of `.ftz` and `.sat`.

use super::exact;
use super::lanes::{D1, D2, D3, F1, F2, F3, L32, Rare};
use super::round::{F32, Rounding, canonical, canonical64, flush, narrow, odd, saturate, two_sum};

#[inline(always)]
fn input<const FTZ: bool>(bits: u32) -> f32 {
    f32::from_bits(if FTZ { flush(bits) } else { bits })
}

#[inline(always)]
fn output<const FTZ: bool, const SAT: bool>(value: f32) -> u32 {
    let bits = canonical(value);
    let bits = if FTZ { flush(bits) } else { bits };
    if SAT { saturate(bits) } else { bits }
}

/// The four functions of one expression with and without `.ftz` and `.sat`.
macro_rules! f32_row {
    ($ftz:expr, $sat:expr; $($x:ident),+ => $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => lanes!(L32; $($x: L32),+ => { $(let $x = input::<false>($x);)+ output::<false, false>($e) }),
            (true, false) => lanes!(L32; $($x: L32),+ => { $(let $x = input::<true>($x);)+ output::<true, false>($e) }),
            (false, true) => lanes!(L32; $($x: L32),+ => { $(let $x = input::<false>($x);)+ output::<false, true>($e) }),
            (true, true) => lanes!(L32; $($x: L32),+ => { $(let $x = input::<true>($x);)+ output::<true, true>($e) }),
        }
    };
}

/// `min`/`max` of PTX: a NaN loses against a number; -0 is below +0.
#[inline(always)]
fn minimum(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

#[inline(always)]
fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || (a == b && b.is_sign_negative()) {
        a
    } else {
        b
    }
}

#[inline(always)]
fn or_nan(a: f32, b: f32, otherwise: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { otherwise }
}

/// One source.
pub fn unary32(opcode: &str, ftz: bool, sat: bool) -> Option<F1> {
    Some(match opcode {
        "sqrt" => f32_row!(ftz, sat; a => a.sqrt()),
        "rcp" => f32_row!(ftz, sat; a => 1.0 / a),
        // `neg` and `abs` of NaN: the ISA leaves the payload open; the sign bit is what hardware changes.
        "neg" => match ftz {
            false => lanes!(L32; a: L32 => a ^ 0x8000_0000),
            true => lanes!(L32; a: L32 => flush(a) ^ 0x8000_0000),
        },
        "abs" => match ftz {
            false => lanes!(L32; a: L32 => a & 0x7fff_ffff),
            true => lanes!(L32; a: L32 => flush(a) & 0x7fff_ffff),
        },
        _ => return None,
    })
}

/// Two sources, round to nearest.
pub fn binary32(opcode: &str, ftz: bool, sat: bool) -> Option<F2> {
    Some(match opcode {
        "add" => f32_row!(ftz, sat; a, b => a + b),
        "sub" => f32_row!(ftz, sat; a, b => a - b),
        "mul" => f32_row!(ftz, sat; a, b => a * b),
        "div" => f32_row!(ftz, sat; a, b => a / b),
        "min" => f32_row!(ftz, sat; a, b => minimum(a, b)),
        "max" => f32_row!(ftz, sat; a, b => maximum(a, b)),
        "min.NaN" => f32_row!(ftz, sat; a, b => or_nan(a, b, minimum(a, b))),
        "max.NaN" => f32_row!(ftz, sat; a, b => or_nan(a, b, maximum(a, b))),
        // The first source gives the sign, the second the magnitude.
        "copysign" => lanes!(L32; a: L32, b: L32 => (a & 0x8000_0000) | (b & 0x7fff_ffff)),
        _ => return None,
    })
}

/// Three sources, round to nearest.
pub fn ternary32(opcode: &str, ftz: bool, sat: bool) -> Option<F3> {
    Some(match opcode {
        "fma" => f32_row!(ftz, sat; a, b, c => a.mul_add(b, c)),
        _ => return None,
    })
}

/// `fma.rn.f32` of all lanes, for loops that are compiled for the machine's vectors.
#[inline(always)]
pub fn fma(a: &L32, b: &L32, c: &L32, out: &mut L32) {
    for lane in 0..32 {
        let [a, b, c] = [a, b, c].map(|row| input::<false>(row.0[lane]));
        out.0[lane] = output::<false, false>(a.mul_add(b, c));
    }
}

/// An exact result: the nearest `f64`, what is missing (or its sign), and whether it is a zero of unequal signs.
type Exactly = (f64, f64, bool);

/// An exact result, rounded by `mode`, then `.ftz` and `.sat`.
fn directed((high, low, cancelled): Exactly, mode: Rounding, ftz: bool, sat: bool) -> u64 {
    let mut bits = narrow(odd(high, low), F32, mode);
    if cancelled && mode == Rounding::Down {
        bits = 0x8000_0000;
    }
    let bits = if ftz { flush(bits) } else { bits };
    (if sat { saturate(bits) } else { bits }) as u64
}

fn sum(a: f64, b: f64) -> Exactly {
    let (high, low) = two_sum(a, b);
    (high, low, high == 0.0 && a.is_sign_negative() != b.is_sign_negative())
}

fn value(bits: u64, ftz: bool) -> f64 {
    f32::from_bits(if ftz { flush(bits as u32) } else { bits as u32 }) as f64
}

fn quotient(a: f64, b: f64) -> Exactly {
    let q = a / b;
    // The remainder's sign, against the divisor's, tells on which side of `q` the exact quotient lies.
    let rest = (-q).mul_add(b, a);
    (q, if b < 0.0 { -rest } else { rest }, false)
}

fn root(a: f64) -> Exactly {
    let r = a.sqrt();
    (r, (-r).mul_add(r, a), false)
}

/// One function per rounding mode, `.ftz` and `.sat`, as the rare loop needs plain functions.
macro_rules! directed_row {
    (@one $m:ident $f:literal $s:literal; $e:expr; $a:ident) => {
        |[a, ..]: [u64; 4]| {
            let $a = value(a, $f);
            directed($e, Rounding::$m, $f, $s)
        }
    };
    (@one $m:ident $f:literal $s:literal; $e:expr; $a:ident $b:ident) => {
        |[a, b, ..]: [u64; 4]| {
            let ($a, $b) = (value(a, $f), value(b, $f));
            directed($e, Rounding::$m, $f, $s)
        }
    };
    (@one $m:ident $f:literal $s:literal; $e:expr; $a:ident $b:ident $c:ident) => {
        |[a, b, c, _]: [u64; 4]| {
            let ($a, $b, $c) = (value(a, $f), value(b, $f), value(c, $f));
            directed($e, Rounding::$m, $f, $s)
        }
    };
    ($mode:expr, $ftz:expr, $sat:expr; |$($x:ident),+| $e:expr) => {
        match ($mode, $ftz, $sat) {
            (Rounding::Zero, false, false) => directed_row!(@one Zero false false; $e; $($x)+),
            (Rounding::Zero, false, true) => directed_row!(@one Zero false true; $e; $($x)+),
            (Rounding::Zero, true, false) => directed_row!(@one Zero true false; $e; $($x)+),
            (Rounding::Zero, true, true) => directed_row!(@one Zero true true; $e; $($x)+),
            (Rounding::Down, false, false) => directed_row!(@one Down false false; $e; $($x)+),
            (Rounding::Down, false, true) => directed_row!(@one Down false true; $e; $($x)+),
            (Rounding::Down, true, false) => directed_row!(@one Down true false; $e; $($x)+),
            (Rounding::Down, true, true) => directed_row!(@one Down true true; $e; $($x)+),
            (Rounding::Up, false, false) => directed_row!(@one Up false false; $e; $($x)+),
            (Rounding::Up, false, true) => directed_row!(@one Up false true; $e; $($x)+),
            (Rounding::Up, true, false) => directed_row!(@one Up true false; $e; $($x)+),
            (Rounding::Up, true, true) => directed_row!(@one Up true true; $e; $($x)+),
            _ => return None,
        }
    };
}

/// `f32` forms with `.rz`, `.rm` or `.rp`, with the number of sources.
pub fn directed32(opcode: &str, mode: Rounding, ftz: bool, sat: bool) -> Option<(Rare, usize)> {
    Some(match opcode {
        "add" => (directed_row!(mode, ftz, sat; |a, b| sum(a, b)), 2),
        "sub" => (directed_row!(mode, ftz, sat; |a, b| sum(a, -b)), 2),
        "mul" => (directed_row!(mode, ftz, sat; |a, b| (a * b, 0.0, false)), 2),
        "fma" => (directed_row!(mode, ftz, sat; |a, b, c| sum(a * b, c)), 3),
        "div" => (directed_row!(mode, ftz, sat; |a, b| quotient(a, b)), 2),
        "rcp" => (directed_row!(mode, ftz, sat; |a| quotient(1.0, a)), 1),
        "sqrt" => (directed_row!(mode, ftz, sat; |a| root(a)), 1),
        _ => return None,
    })
}

fn minimum64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

fn maximum64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || (a == b && b.is_sign_negative()) {
        a
    } else {
        b
    }
}

macro_rules! f64_row {
    ($($x:ident),+ => $e:expr) => {
        lanes!(L64; $($x: L64),+ => { $(let $x = f64::from_bits($x);)+ canonical64($e) })
    };
}

/// `f64`, one source.
pub fn unary64(opcode: &str) -> Option<D1> {
    Some(match opcode {
        "sqrt" => f64_row!(a => a.sqrt()),
        "rcp" => f64_row!(a => 1.0 / a),
        "neg" => lanes!(L64; a: L64 => a ^ (1 << 63)),
        "abs" => lanes!(L64; a: L64 => a & !(1 << 63)),
        _ => return None,
    })
}

/// `f64`, two sources, round to nearest.
pub fn binary64(opcode: &str) -> Option<D2> {
    Some(match opcode {
        "add" => f64_row!(a, b => a + b),
        "sub" => f64_row!(a, b => a - b),
        "mul" => f64_row!(a, b => a * b),
        "div" => f64_row!(a, b => a / b),
        "min" => f64_row!(a, b => minimum64(a, b)),
        "max" => f64_row!(a, b => maximum64(a, b)),
        "copysign" => lanes!(L64; a: L64, b: L64 => (a & (1 << 63)) | (b & !(1 << 63))),
        _ => return None,
    })
}

/// `f64`, three sources, round to nearest.
pub fn ternary64(opcode: &str) -> Option<D3> {
    Some(match opcode {
        "fma" => f64_row!(a, b, c => a.mul_add(b, c)),
        _ => return None,
    })
}

macro_rules! directed64_row {
    ($mode:expr; |$($x:ident),+| $f:ident($($arg:expr),+)) => {
        match $mode {
            Rounding::Zero => directed64_row!(@one Zero; $($x)+; $f($($arg),+)),
            Rounding::Down => directed64_row!(@one Down; $($x)+; $f($($arg),+)),
            Rounding::Up => directed64_row!(@one Up; $($x)+; $f($($arg),+)),
            _ => return None,
        }
    };
    (@one $m:ident; $a:ident; $f:ident($($arg:expr),+)) => {
        |[$a, ..]: [u64; 4]| {
            let $a = f64::from_bits($a);
            exact::$f($($arg,)+ Rounding::$m)
        }
    };
    (@one $m:ident; $a:ident $b:ident; $f:ident($($arg:expr),+)) => {
        |[$a, $b, ..]: [u64; 4]| {
            let ($a, $b) = (f64::from_bits($a), f64::from_bits($b));
            exact::$f($($arg,)+ Rounding::$m)
        }
    };
    (@one $m:ident; $a:ident $b:ident $c:ident; $f:ident($($arg:expr),+)) => {
        |[$a, $b, $c, _]: [u64; 4]| {
            let ($a, $b, $c) = (f64::from_bits($a), f64::from_bits($b), f64::from_bits($c));
            exact::$f($($arg,)+ Rounding::$m)
        }
    };
}

/// `f64` forms with `.rz`, `.rm` or `.rp`, with the number of sources.
pub fn directed_double(opcode: &str, mode: Rounding) -> Option<(Rare, usize)> {
    Some(match opcode {
        "add" => (directed64_row!(mode; |a, b| add(a, b)), 2),
        "sub" => (directed64_row!(mode; |a, b| add(a, -b)), 2),
        "mul" => (directed64_row!(mode; |a, b| mul(a, b)), 2),
        "fma" => (directed64_row!(mode; |a, b, c| fma(a, b, c)), 3),
        "div" => (directed64_row!(mode; |a, b| div(a, b)), 2),
        "rcp" => (directed64_row!(mode; |a| div(1.0, a)), 1),
        "sqrt" => (directed64_row!(mode; |a| sqrt(a)), 1),
        _ => return None,
    })
}

/// A subnormal `f64` becomes a zero of its sign.
pub fn flush64(bits: u64) -> f64 {
    let value = f64::from_bits(bits);
    if value.is_subnormal() { 0f64.copysign(value) } else { value }
}

/// An `f64` whose lower word is zero, as the `.approx.ftz.f64` forms give.
pub fn upper_word(value: f64) -> u64 {
    let bits = canonical64(value);
    let kept = bits & 0xffff_ffff_0000_0000;
    flush64(kept).to_bits()
}
