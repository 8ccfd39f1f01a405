//! Rounding of exact results to the small formats, in every mode of PTX.

/// Rounding modes of results that are floating-point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// To nearest, ties to even (`.rn`).
    #[default]
    Nearest,
    /// Toward zero (`.rz`).
    Zero,
    /// Toward minus infinity (`.rm`).
    Down,
    /// Toward plus infinity (`.rp`).
    Up,
    /// To nearest, ties away from zero (`.rna`).
    NearestAway,
}

/// A binary format: sign, exponent, fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the stored fraction.
    pub fraction: u32,
    /// Bits of the exponent.
    pub exponent: u32,
    /// The NaN that PTX writes.
    pub nan: u32,
}

/// IEEE binary32.
pub const F32: Format = Format { fraction: 23, exponent: 8, nan: 0x7fff_ffff };
/// IEEE binary16.
pub const F16: Format = Format { fraction: 10, exponent: 5, nan: 0x7fff };
/// bfloat16.
pub const BF16: Format = Format { fraction: 7, exponent: 8, nan: 0x7fff };

/// `high + low` as one `f64` rounded to odd, so that a second rounding to 51 bits or fewer is right.
/// `low` must be the exact error of `high`, or have its sign.
pub fn odd(high: f64, low: f64) -> f64 {
    let bits = high.to_bits();
    if low == 0.0 || !high.is_finite() || low.is_nan() || bits & 1 == 1 {
        return high;
    }
    if high == 0.0 {
        return low;
    }
    // The exact value lies beyond `high` (away from zero) or before it; the odd neighbour on that side represents it.
    let away = (low > 0.0) == (high > 0.0);
    f64::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// Sum of two values as (rounded, exact error) (Knuth).
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    if !sum.is_finite() {
        return (sum, 0.0);
    }
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// Rounds `x` to a format; subnormals are kept, overflow goes to infinity or the largest finite value by the mode.
pub fn narrow(x: f64, format: Format, mode: Rounding) -> u32 {
    let Format { fraction, exponent, nan } = format;
    if x.is_nan() {
        return nan;
    }
    let sign_bit = (x.is_sign_negative() as u32) << (fraction + exponent);
    let infinity = ((1u32 << exponent) - 1) << fraction;
    if x.is_infinite() {
        return sign_bit | infinity;
    }
    if x == 0.0 {
        return sign_bit;
    }
    let bias = (1i32 << (exponent - 1)) - 1;
    let bits = x.to_bits();
    let mut power = ((bits >> 52) & 0x7ff) as i32 - 1023;
    let mut significand = bits & ((1 << 52) - 1);
    if power == -1023 {
        power = -1022;
    } else {
        significand |= 1 << 52;
    }
    // Keep `fraction` bits below the leading one, fewer below the smallest normal power.
    let deficit = (1 - bias - power).max(0) as u32;
    let drop = 52 - fraction + deficit;
    let (kept, rest, half) = if drop >= 63 {
        (0, significand, u64::MAX)
    } else {
        (significand >> drop, significand & ((1 << drop) - 1), 1u64 << (drop - 1))
    };
    let negative = x.is_sign_negative();
    let up = match mode {
        Rounding::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Rounding::NearestAway => rest >= half,
        Rounding::Zero => false,
        Rounding::Down => negative && rest != 0,
        Rounding::Up => !negative && rest != 0,
    };
    let kept = kept + up as u64;
    // A normal value's leading one adds one to the exponent field; a carry out of the fraction adds another.
    let field = (power + bias - 1).max(0) as u64;
    let magnitude = (field << fraction) + kept;
    if magnitude >= infinity as u64 {
        let clamp = match mode {
            Rounding::Nearest | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        return sign_bit | if clamp { infinity - 1 } else { infinity };
    }
    sign_bit | magnitude as u32
}

/// Value of a binary16 number.
pub fn f16_value(bits: u32) -> f32 {
    half::f16::from_bits(bits as u16).to_f32()
}

/// Value of a bfloat16 number.
pub fn bf16_value(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// A subnormal `f32` becomes a zero of its sign (`.ftz`).
#[inline(always)]
pub fn flush(bits: u32) -> u32 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// A NaN becomes the one that PTX writes.
#[inline(always)]
pub fn canonical(value: f32) -> u32 {
    if value.is_nan() { F32.nan } else { value.to_bits() }
}

/// The same for `f64`.
#[inline(always)]
pub fn canonical64(value: f64) -> u64 {
    if value.is_nan() { 0x7fff_ffff_ffff_ffff } else { value.to_bits() }
}

/// `.sat`: clamps to [0, 1], NaN to 0.
#[inline(always)]
pub fn saturate(bits: u32) -> u32 {
    let value = f32::from_bits(bits);
    let clamped = if value > 1.0 { 1.0 } else { value };
    // `!(x > 0)` covers NaN, negative values and both zeros, which give +0.
    if clamped > 0.0 { clamped.to_bits() } else { 0 }
}
