//! Element types: how a number is stored ([`DType`], [`Elem`]) and in what it is computed ([`Float`]).
//!
//! Storage is `f32` or `bf16` (and `f64` when a test checks gradients); computing is in `f32` (or `f64`). Every CPU op is
//! generic over [`Elem`], so one text serves training, bf16 storage and the finite-difference tests.

use half::bf16;
use std::fmt;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    Bf16,
    F64,
    /// Token ids, targets, document starts: never computed with.
    #[serde(skip)]
    U32,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 => 2,
            DType::F64 => 8,
        }
    }

    /// The type that sums, norms, softmaxes and gradients of parameters are kept in.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F32 | DType::Bf16 => DType::F32,
            DType::F64 => DType::F64,
            DType::U32 => DType::U32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F64 => "f64",
            DType::U32 => "u32",
        })
    }
}

/// A type that is computed in: `f32`, or `f64` in reference checks.
pub trait Float:
    Elem<Acc = Self>
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + std::iter::Sum
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
    fn abs(self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of two; `self` where `other` is NaN.
    fn max(self, other: Self) -> Self;
    fn is_finite(self) -> bool;
    /// `e^x`. For `f32` a branch-free polynomial that compilers vectorise: within 2 units in the last place from
    /// -87.3 to 88.7, 0 below and infinity above, NaN for NaN.
    fn exp(self) -> Self;
}

/// A type that elements are stored in.
pub trait Scalar: Send + Sync + Default + PartialEq + fmt::Debug + bytemuck::Pod + 'static {
    const DTYPE: DType;
}

impl Scalar for f32 {
    const DTYPE: DType = DType::F32;
}

impl Scalar for f64 {
    const DTYPE: DType = DType::F64;
}

impl Scalar for bf16 {
    const DTYPE: DType = DType::Bf16;
}

impl Scalar for u32 {
    const DTYPE: DType = DType::U32;
}

/// A stored type that is computed with.
pub trait Elem: Scalar {
    type Acc: Float;
    fn load(self) -> Self::Acc;
    /// Rounds to nearest, ties to even.
    fn store(x: Self::Acc) -> Self;
}

impl Elem for f32 {
    type Acc = f32;
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
    #[inline(always)]
    fn store(x: f32) -> f32 {
        x
    }
}

impl Elem for f64 {
    type Acc = f64;
    #[inline(always)]
    fn load(self) -> f64 {
        self
    }
    #[inline(always)]
    fn store(x: f64) -> f64 {
        x
    }
}

impl Elem for bf16 {
    type Acc = f32;
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn store(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        bf16::from_bits(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded })
    }
}

impl Float for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        // Odd polynomial (Cephes' coefficients) below 0.625, where 1 - 2 / (e^2x + 1) would lose the leading digits.
        let z = self * self;
        let mut p = -5.704_988_7e-3;
        p = f32::mul_add(p, z, 2.063_909e-2);
        p = f32::mul_add(p, z, -5.373_971_6e-2);
        p = f32::mul_add(p, z, 1.333_144_2e-1);
        p = f32::mul_add(p, z, -0.333_332_8);
        let small = f32::mul_add(p * z, self, self);
        let large = 1.0 - 2.0 / (Float::exp(2.0 * self) + 1.0);
        if z < 0.625 * 0.625 { small } else { large }
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn mul_add(self, b: f32, c: f32) -> f32 {
        f32::mul_add(self, b, c)
    }
    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if other > self { other } else { self }
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        // e^x = 2^n * e^r, |r| <= ln2 / 2; adding 1.5 * 2^23 rounds x / ln2 to the integer n in the low mantissa bits.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HI: f32 = 0.693_359_4;
        const LN2_LO: f32 = -2.121_944_4e-4;
        let x = self;
        // NaN fails both comparisons and passes through the polynomial.
        let clamped = if x < -104.0 { -104.0 } else { x };
        let clamped = if clamped > 89.0 { 89.0 } else { clamped };
        let shifted = f32::mul_add(clamped, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = f32::mul_add(-n, LN2_HI, clamped);
        let r = f32::mul_add(-n, LN2_LO, r);
        // e^r = 1 + r + r^2 P(r), P of degree 5 with Cephes' coefficients.
        let mut p = 1.987_569_2e-4;
        p = f32::mul_add(p, r, 1.398_199_9e-3);
        p = f32::mul_add(p, r, 8.333_452e-3);
        p = f32::mul_add(p, r, 4.166_579_6e-2);
        p = f32::mul_add(p, r, 1.666_666_5e-1);
        p = f32::mul_add(p, r, 0.5);
        p = f32::mul_add(p, r * r, r) + 1.0;
        // 2^n in two halves, so that n = 128 and n = -126 are reached without overflow of the exponent field.
        let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let half = n >> 1;
        let scale_a = f32::from_bits(((half + 127) << 23) as u32);
        let scale_b = f32::from_bits(((n - half + 127) << 23) as u32);
        let y = p * scale_a * scale_b;
        if x > 88.722_84 {
            f32::INFINITY
        } else if x < -87.336_55 {
            0.0
        } else {
            y
        }
    }
}

impl Float for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    #[inline(always)]
    fn from_f64(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    #[inline(always)]
    fn mul_add(self, b: f64, c: f64) -> f64 {
        f64::mul_add(self, b, c)
    }
    #[inline(always)]
    fn max(self, other: f64) -> f64 {
        if other > self { other } else { self }
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
}

/// Runs `$body` with the type `$E` bound to the storage type of `$dtype`: the one place where a run-time type becomes a
/// compile-time one.
#[macro_export]
macro_rules! for_dtype {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::tensor::DType::Bf16 => {
                type $E = half::bf16;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $E = f64;
                $body
            }
            $crate::tensor::DType::U32 => unreachable!("integers are not computed with"),
        }
    };
}

/// [`for_dtype!`](crate::for_dtype) over the two types that are computed in; bf16 tensors are widened before.
#[macro_export]
macro_rules! for_float {
    ($dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $F = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $F = f64;
                $body
            }
            other => unreachable!("{other} is not computed in"),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest distance in units in the last place to the correctly rounded result, over evenly spaced points.
    fn worst_ulps(range: std::ops::Range<f64>, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let points = 200_000;
        let ulps = |i: usize| {
            let x = (range.start + (range.end - range.start) * i as f64 / points as f64) as f32;
            let want = exact(x as f64);
            let unit = f32::from_bits((want.abs() as f32).to_bits() + 1) as f64 - (want.abs() as f32) as f64;
            (f(x) as f64 - want).abs() / unit
        };
        (0..points).map(ulps).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_units_and_has_the_right_edges() {
        let worst = worst_ulps(-87.3..88.7, Float::exp, f64::exp);
        assert!(worst <= 2.0, "{worst}");
        let edges = [-1e30f32, -104.0, f32::NEG_INFINITY, 0.0, 89.0, f32::INFINITY].map(Float::exp);
        assert_eq!(edges, [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(Float::exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_four_units_and_saturates() {
        let worst = worst_ulps(-12.0..12.0, Float::tanh, f64::tanh);
        assert!(worst <= 4.0, "{worst}");
        assert_eq!([-1e30f32, 0.0, 1e30].map(Float::tanh), [-1.0, 0.0, 1.0]);
        assert!(Float::tanh(f32::NAN).is_nan());
    }

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_nan() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Elem>::store(x), bf16::from_f32(x));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{bits:x}");
        }
    }
}
