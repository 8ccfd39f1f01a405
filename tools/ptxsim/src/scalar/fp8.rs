//! The 8-bit floating-point formats: their values, and the conversions of pairs of them. [ISA 5.2.3, `cvt`]

use super::lanes::{F1, F2};
use super::round::{F16, Rounding, f16_value, narrow};

/// A format of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8 {
    /// 4 exponent bits, 3 of fraction; no infinity, NaN is all ones; largest 448.
    E4m3,
    /// 5 exponent bits, 2 of fraction, as IEEE has them; largest 57344.
    E5m2,
}

/// What every NaN becomes.
const NAN: u32 = 0x7f;

impl Fp8 {
    /// (bits of the fraction, exponent of the smallest normal, largest finite code)
    pub const fn format(self) -> (u32, i32, u32) {
        match self {
            Fp8::E4m3 => (3, -6, 0x7e),
            Fp8::E5m2 => (2, -14, 0x7b),
        }
    }

    /// The value of a code; exact.
    pub fn value(self, code: u32) -> f32 {
        let (fraction, smallest, largest) = self.format();
        let magnitude = code & 0x7f;
        let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
        if magnitude > largest {
            let infinite = self == Fp8::E5m2 && magnitude == 0x7c;
            return if infinite { sign * f32::INFINITY } else { f32::NAN };
        }
        let field = (magnitude >> fraction) as i32;
        let hidden = if field == 0 { 0 } else { 1 << fraction };
        let significand = (magnitude & ((1 << fraction) - 1) | hidden) as f32;
        sign * significand * 2f32.powi(smallest + (field - 1).max(0) - fraction as i32)
    }

    /// The code nearest to `x` (ties to even); what is too large, infinity too, becomes the largest finite one
    /// (`.satfinite`).
    pub fn narrow(self, x: f32, relu: bool) -> u32 {
        let (fraction, smallest, largest) = self.format();
        if x.is_nan() {
            return NAN;
        }
        if relu && x < 0.0 {
            return 0;
        }
        let sign = (x.is_sign_negative() as u32) << 7;
        let magnitude = f64::from(x.abs()).min(1e6);
        let power = ((magnitude.to_bits() >> 52) as i32 - 1023).max(smallest);
        // In units of the last place; the leading one adds one to the exponent field.
        let units = (magnitude * 2f64.powi(fraction as i32 - power)).round_ties_even() as u32;
        let code = (((power - smallest) as u32) << fraction) + units;
        sign | code.min(largest)
    }
}

fn from_f32(kind: Fp8, relu: bool, upper: u32, lower: u32) -> u32 {
    kind.narrow(f32::from_bits(upper), relu) << 8 | kind.narrow(f32::from_bits(lower), relu)
}

fn from_f16(kind: Fp8, relu: bool, pair: u32) -> u32 {
    kind.narrow(f16_value(pair >> 16), relu) << 8 | kind.narrow(f16_value(pair & 0xffff), relu)
}

fn to_f16(kind: Fp8, relu: bool, pair: u32) -> u32 {
    let one = |code: u32| {
        let value = kind.value(code & 0xff);
        let value = if relu && value < 0.0 { 0.0 } else { value };
        narrow(f64::from(value), F16, Rounding::Nearest)
    };
    one(pair >> 8) << 16 | one(pair)
}

/// `cvt.rn.satfinite.*x2.f32 d, a, b`: `a` goes to the upper byte.
pub fn pair_from_f32(kind: Fp8, relu: bool) -> F2 {
    match (kind, relu) {
        (Fp8::E4m3, false) => lanes!(L32; a: L32, b: L32 => from_f32(Fp8::E4m3, false, a, b)),
        (Fp8::E4m3, true) => lanes!(L32; a: L32, b: L32 => from_f32(Fp8::E4m3, true, a, b)),
        (Fp8::E5m2, false) => lanes!(L32; a: L32, b: L32 => from_f32(Fp8::E5m2, false, a, b)),
        (Fp8::E5m2, true) => lanes!(L32; a: L32, b: L32 => from_f32(Fp8::E5m2, true, a, b)),
    }
}

/// `cvt.rn.satfinite.*x2.f16x2`.
pub fn pair_from_f16(kind: Fp8, relu: bool) -> F1 {
    match (kind, relu) {
        (Fp8::E4m3, false) => lanes!(L32; a: L32 => from_f16(Fp8::E4m3, false, a)),
        (Fp8::E4m3, true) => lanes!(L32; a: L32 => from_f16(Fp8::E4m3, true, a)),
        (Fp8::E5m2, false) => lanes!(L32; a: L32 => from_f16(Fp8::E5m2, false, a)),
        (Fp8::E5m2, true) => lanes!(L32; a: L32 => from_f16(Fp8::E5m2, true, a)),
    }
}

/// `cvt.rn.f16x2.*x2`: exact.
pub fn pair_to_f16(kind: Fp8, relu: bool) -> F1 {
    match (kind, relu) {
        (Fp8::E4m3, false) => lanes!(L32; a: L32 => to_f16(Fp8::E4m3, false, a)),
        (Fp8::E4m3, true) => lanes!(L32; a: L32 => to_f16(Fp8::E4m3, true, a)),
        (Fp8::E5m2, false) => lanes!(L32; a: L32 => to_f16(Fp8::E5m2, false, a)),
        (Fp8::E5m2, true) => lanes!(L32; a: L32 => to_f16(Fp8::E5m2, true, a)),
    }
}
