//! `f64` arithmetic rounded in any direction: the exact result as an integer times a power of two, rounded once.

use super::round::{Rounding, canonical64};

/// Bits of a significand after its leading one.
const FRACTION: i32 = 52;
/// Power of two of the smallest subnormal.
const POWER_MIN: i32 = -1074;
/// Bits of infinity.
const INFINITY: u64 = 0x7ff << FRACTION;

/// ±significand · 2^exponent. The lowest bit may stand for "and something more": then the significand is so long that
/// no rounding looks at that bit alone.
#[derive(Clone, Copy, Debug)]
struct Exact {
    negative: bool,
    significand: u128,
    exponent: i32,
}

impl Exact {
    /// A finite value.
    fn of(x: f64) -> Exact {
        let bits = x.to_bits();
        let field = (bits >> FRACTION & 0x7ff) as i32;
        let hidden = ((field != 0) as u64) << FRACTION;
        let significand = bits & ((1 << FRACTION) - 1) | hidden;
        Exact { negative: x.is_sign_negative(), significand: significand as u128, exponent: field.max(1) - 1 - 1074 }
    }

    /// The same value with its leading one at bit `at`; the caller knows that no bit leaves.
    fn with_leading_at(self, at: u32) -> Exact {
        let shift = at as i32 - (127 - self.significand.leading_zeros() as i32);
        let significand = if shift >= 0 { self.significand << shift } else { self.significand >> -shift };
        Exact { significand, exponent: self.exponent - shift, ..self }
    }

    fn round(self, mode: Rounding) -> u64 {
        let Exact { negative, significand, exponent } = self;
        let sign = (negative as u64) << 63;
        if significand == 0 {
            return sign;
        }
        let power = exponent + 127 - significand.leading_zeros() as i32;
        // Power of the last bit that is kept.
        let unit = (power - FRACTION).max(POWER_MIN);
        let drop = unit - exponent;
        let (kept, rest, half) = match drop {
            ..=0 => (significand << -drop, 0, 1),
            1..=127 => (significand >> drop, significand & ((1 << drop) - 1), 1 << (drop - 1)),
            _ => (0, significand, u128::MAX),
        };
        let up = match mode {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
        };
        // The leading one of a normal value adds one to the exponent field.
        let magnitude = ((unit - POWER_MIN) as u64) << FRACTION;
        let magnitude = magnitude + kept as u64 + up as u64;
        if magnitude < INFINITY {
            return sign | magnitude;
        }
        let stays_finite = match mode {
            Rounding::Nearest | Rounding::NearestAway => false,
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
        };
        sign | if stays_finite { INFINITY - 1 } else { INFINITY }
    }
}

/// `a + b`, rounded.
fn sum(a: Exact, b: Exact, mode: Rounding) -> u64 {
    // A zero of unequal signs is -0 when rounding down, else +0.
    let zero = Exact { negative: mode == Rounding::Down, significand: 0, exponent: 0 };
    match (a.significand, b.significand) {
        (0, 0) => return if a.negative == b.negative { a.round(mode) } else { zero.round(mode) },
        (0, _) => return b.round(mode),
        (_, 0) => return a.round(mode),
        _ => {}
    }
    // Both have at most 106 bits, so that 18 zeros follow them here. Where a shift by more cuts bits off, the sum is at
    // least half the larger one, and the last bit only says that there was something.
    let (a, b) = (a.with_leading_at(124), b.with_leading_at(124));
    let (large, small) = if (a.exponent, a.significand) >= (b.exponent, b.significand) { (a, b) } else { (b, a) };
    let distance = (large.exponent - small.exponent) as u32;
    let shifted = small.significand.checked_shr(distance).unwrap_or(0);
    let lost = distance > 0 && (distance > 127 || small.significand & ((1 << distance) - 1) != 0);
    let shifted = shifted | lost as u128;
    let significand =
        if large.negative == small.negative { large.significand + shifted } else { large.significand - shifted };
    if significand == 0 {
        return zero.round(mode);
    }
    Exact { significand, ..large }.round(mode)
}

fn product(a: f64, b: f64) -> Exact {
    let (a, b) = (Exact::of(a), Exact::of(b));
    Exact {
        negative: a.negative != b.negative,
        significand: a.significand * b.significand,
        exponent: a.exponent + b.exponent,
    }
}

/// `a + b`.
pub fn add(a: f64, b: f64, mode: Rounding) -> u64 {
    if !(a.is_finite() && b.is_finite()) {
        return canonical64(a + b);
    }
    sum(Exact::of(a), Exact::of(b), mode)
}

/// `a b`.
pub fn mul(a: f64, b: f64, mode: Rounding) -> u64 {
    if !(a.is_finite() && b.is_finite()) {
        return canonical64(a * b);
    }
    product(a, b).round(mode)
}

/// `a b + c`.
pub fn fma(a: f64, b: f64, c: f64, mode: Rounding) -> u64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return canonical64(a.mul_add(b, c));
    }
    sum(product(a, b), Exact::of(c), mode)
}

/// `a / b`.
pub fn div(a: f64, b: f64, mode: Rounding) -> u64 {
    if !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return canonical64(a / b);
    }
    let (a, b) = (Exact::of(a).with_leading_at(126), Exact::of(b).with_leading_at(52));
    let quotient = a.significand / b.significand;
    let rest = a.significand % b.significand != 0;
    Exact {
        negative: a.negative != b.negative,
        significand: quotient << 1 | rest as u128,
        exponent: a.exponent - b.exponent - 1,
    }
    .round(mode)
}

/// The square root of `a`.
pub fn sqrt(a: f64, mode: Rounding) -> u64 {
    if !a.is_finite() || a <= 0.0 {
        return canonical64(a.sqrt());
    }
    let a = Exact::of(a).with_leading_at(125);
    // An even exponent has an exact half.
    let a = if a.exponent % 2 == 0 { a } else { a.with_leading_at(124) };
    let root = a.significand.isqrt();
    let rest = root * root != a.significand;
    Exact { negative: false, significand: root << 1 | rest as u128, exponent: a.exponent / 2 - 1 }.round(mode)
}
