//! The approximate functions of the special-function unit (`ex2.approx`, `tanh.approx`, ...): PTX bounds their error and leaves the bits open.
//!
//! Two answers, both inside the documented bound: the correctly rounded one (computed in f64), and that plus a seeded error, which is a
//! function of the argument as on hardware. A kernel must pass its tests with both. [ISA 9.7.3, 9.7.4]

use crate::scalar::round::{BF16, F16, Rounding, bf16_value, f16_value, flush, narrow};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Lg2,
    Ex2,
    Tanh,
}

/// Which of the results inside the bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Approximation {
    /// The correctly rounded one.
    #[default]
    Ideal,
    /// With an error that this seed decides.
    Perturbed(u64),
}

/// What the documentation promises about a result y' for the true value y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// |y' - y| <= this.
    Absolute(f64),
    /// |y' - y| <= this |y|.
    Relative(f64),
    /// Units in the last place of f32.
    Ulps(f64),
    /// Nothing (sine and cosine of large arguments); taken as an absolute 2^-14.
    Unspecified,
}

impl Bound {
    /// The largest permitted |y' - y|.
    pub fn absolute(self, y: f64) -> f64 {
        match self {
            Bound::Absolute(error) => error,
            Bound::Relative(error) => error * y.abs(),
            Bound::Ulps(ulps) => ulps * ulp_f32(y),
            Bound::Unspecified => 2f64.powi(-14),
        }
    }
}

/// The distance of neighbouring f32 values at `y`.
fn ulp_f32(y: f64) -> f64 {
    let exponent = (y.abs().to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent.clamp(-126, 127) - 23)
}

impl Function {
    /// The value in f64.
    pub fn exact(self, x: f64) -> f64 {
        match self {
            Function::Rcp => 1.0 / x,
            Function::Sqrt => x.sqrt(),
            // -0 has the reciprocal square root -inf.
            Function::Rsqrt if x == 0.0 => 1.0 / x,
            Function::Rsqrt => 1.0 / x.sqrt(),
            Function::Sin => x.sin(),
            Function::Cos => x.cos(),
            Function::Lg2 => x.log2(),
            Function::Ex2 => x.exp2(),
            Function::Tanh => x.tanh(),
        }
    }

    /// The documented error of the `.approx` form for f32.
    pub fn bound_f32(self, x: f64) -> Bound {
        use std::f64::consts::PI;
        match self {
            Function::Rcp => Bound::Ulps(1.0),
            Function::Sqrt => Bound::Relative(2f64.powi(-23)),
            Function::Rsqrt => Bound::Relative(2f64.powf(-22.9)),
            Function::Sin | Function::Cos if x.abs() <= 2.0 * PI => Bound::Absolute(2f64.powf(-20.5)),
            Function::Sin | Function::Cos if x.abs() <= 100.0 * PI => Bound::Absolute(2f64.powf(-14.7)),
            Function::Sin | Function::Cos => Bound::Unspecified,
            Function::Lg2 if 0.5 < x && x < 2.0 => Bound::Absolute(2f64.powi(-22)),
            Function::Lg2 => Bound::Relative(2f64.powi(-22)),
            Function::Ex2 => Bound::Ulps(2.0),
            Function::Tanh => Bound::Relative(2f64.powi(-11)),
        }
    }

    /// Values that a perturbed result must not leave.
    fn range(self) -> (f64, f64) {
        match self {
            Function::Sin | Function::Cos | Function::Tanh => (-1.0, 1.0),
            Function::Ex2 | Function::Sqrt => (0.0, f64::INFINITY),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }

    /// `y` plus the seed's error for this argument, at most `most` away.
    fn perturb(self, seed: u64, x_bits: u32, y: f64, most: f64) -> f64 {
        let mixed = mix(seed ^ mix(u64::from(x_bits) << 8 | self as u64));
        let unit = (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
        let (low, high) = self.range();
        (y + unit * most).clamp(low, high)
    }
}

/// SplitMix64's mixing.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// `FUNCTION.approx{.ftz}.f32`.
pub fn approx_f32(function: Function, x: f32, ftz: bool, approximation: Approximation) -> f32 {
    let x = if ftz { f32::from_bits(flush(x.to_bits())) } else { x };
    let exact = function.exact(f64::from(x));
    let bound = function.bound_f32(f64::from(x));
    near(exact, bound, ftz, approximation, |seed, most| function.perturb(seed, x.to_bits(), exact, most))
}

/// `div.full{.ftz}.f32`, and `div.approx` unless `is_full`: that is 0 (NaN for an infinite dividend) for divisors beyond 2^126.
pub fn div_f32(a: f32, b: f32, is_full: bool, ftz: bool, approximation: Approximation) -> f32 {
    let [a, b] = if ftz { [a, b].map(|x| f32::from_bits(flush(x.to_bits()))) } else { [a, b] };
    if !is_full && b.abs() > 2f32.powi(126) && b.is_finite() {
        // The reciprocal underflows: 0 with the quotient's sign, and infinity times 0 is NaN.
        return if a.is_finite() { 0f32.copysign(a) * 1f32.copysign(b) } else { NAN };
    }
    let exact = f64::from(a) / f64::from(b);
    let bits = a.to_bits() ^ b.to_bits().rotate_left(7);
    near(exact, Bound::Ulps(2.0), ftz, approximation, |seed, most| Function::Rcp.perturb(seed, bits, exact, most))
}

/// The correctly rounded result, or what `perturb` makes of a seed and the permitted error.
fn near(exact: f64, bound: Bound, ftz: bool, approximation: Approximation, perturb: impl Fn(u64, f64) -> f64) -> f32 {
    if exact.is_nan() {
        return NAN;
    }
    let ideal = exact as f32;
    let result = match approximation {
        Approximation::Perturbed(seed) if exact.is_finite() && f64::from(ideal) != exact => {
            let most = bound.absolute(exact);
            let shifted = perturb(seed, most) as f32;
            // Rounding may have led past the bound.
            if (f64::from(shifted) - exact).abs() <= most { shifted } else { ideal }
        }
        _ => ideal,
    };
    if ftz { f32::from_bits(flush(result.to_bits())) } else { result }
}

/// The documented error of `ex2` and `tanh` in 16 bits.
fn bound_half(function: Function, bf: bool) -> Bound {
    match (function, bf) {
        (Function::Ex2, false) => Bound::Relative(2f64.powf(-9.9)),
        (Function::Ex2, true) => Bound::Relative(2f64.powi(-7)),
        (_, false) => Bound::Absolute(2f64.powf(-10.987)),
        (_, true) => Bound::Relative(2f64.powi(-8)),
    }
}

/// `ex2.approx`, `tanh.approx` of one f16 or bf16.
pub fn approx_half(function: Function, bits: u32, bf: bool, ftz: bool, approximation: Approximation) -> u32 {
    let (format, exponent) = if bf { (BF16, 0x7f80) } else { (F16, 0x7c00) };
    let flushed = |bits: u32| if ftz && bits & exponent == 0 { bits & 0x8000 } else { bits };
    let value = |bits: u32| f64::from(if bf { bf16_value(bits) } else { f16_value(bits) });
    let bits = flushed(bits);
    let exact = function.exact(value(bits));
    let ideal = narrow(exact, format, Rounding::Nearest);
    let result = match approximation {
        Approximation::Perturbed(seed) if exact.is_finite() && value(ideal) != exact => {
            let most = bound_half(function, bf).absolute(exact);
            let shifted = narrow(function.perturb(seed, bits, exact, most), format, Rounding::Nearest);
            // Rounding may have led past the bound.
            if (value(shifted) - exact).abs() <= most { shifted } else { ideal }
        }
        _ => ideal,
    };
    flushed(result)
}

/// An instruction that is an approximation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Approximate {
    Of(Function),
    /// `div.approx`
    Div,
    /// `div.full`
    DivFull,
    /// One element of 16 bits, or a pair.
    Half {
        /// `ex2` or `tanh`.
        function: Function,
        /// bf16, else f16.
        bf: bool,
        /// Two elements.
        pair: bool,
    },
}

impl Approximate {
    /// By its opcode (`div.full` is `full`).
    pub fn parse(opcode: &str, full: bool) -> Option<Approximate> {
        let function = match (opcode, full) {
            ("div", false) => return Some(Approximate::Div),
            ("div", true) => return Some(Approximate::DivFull),
            ("rcp", false) => Function::Rcp,
            ("rsqrt", false) => Function::Rsqrt,
            ("sqrt", false) => Function::Sqrt,
            ("ex2", false) => Function::Ex2,
            ("lg2", false) => Function::Lg2,
            ("sin", false) => Function::Sin,
            ("cos", false) => Function::Cos,
            ("tanh", false) => Function::Tanh,
            _ => return None,
        };
        Some(Approximate::Of(function))
    }

    /// The result's bits for the bits of `x` (and of the divisor `y`).
    pub fn apply(self, x: u32, y: u32, ftz: bool, approximation: Approximation) -> u32 {
        if let Approximate::Half { function, bf, pair } = self {
            let one = |bits: u32| approx_half(function, bits & 0xffff, bf, ftz, approximation);
            return if pair { one(x) | one(x >> 16) << 16 } else { one(x) };
        }
        let (x, y) = (f32::from_bits(x), f32::from_bits(y));
        match self {
            Approximate::Half { .. } => NAN,
            Approximate::Of(function) => approx_f32(function, x, ftz, approximation),
            Approximate::Div => div_f32(x, y, false, ftz, approximation),
            Approximate::DivFull => div_f32(x, y, true, ftz, approximation),
        }
        .to_bits()
    }
}
