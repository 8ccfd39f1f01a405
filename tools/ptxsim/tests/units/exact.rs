//! `f64` in every direction: nearest against the processor, the others against nearest and its neighbours.

use super::Rng;
use ptxsim::scalar::exact::{add, div, fma, mul, sqrt};
use ptxsim::scalar::round::Rounding;

type Function = fn(f64, f64, f64, Rounding) -> u64;
type Processor = fn(f64, f64, f64) -> f64;

#[test]
fn nearest_is_the_processors_and_the_others_enclose_it() {
    let functions: [(&str, Function, Processor); 5] = [
        ("add", |a, b, _, mode| add(a, b, mode), |a, b, _| a + b),
        ("mul", |a, b, _, mode| mul(a, b, mode), |a, b, _| a * b),
        ("div", |a, b, _, mode| div(a, b, mode), |a, b, _| a / b),
        ("sqrt", |a, _, _, mode| sqrt(a, mode), |a, _, _| a.sqrt()),
        ("fma", fma, f64::mul_add),
    ];
    let mut rng = Rng(7);
    let special = [0.0, -0.0, 1.0, -1.0, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::INFINITY, f64::NAN, -1.5e-300];
    let mut inexact = 0;
    for i in 0..200_000u32 {
        let mut value = |spread: u64, edge: usize| {
            let bits = u64::from(rng.word()) << 32 | u64::from(rng.word());
            if i < 1000 {
                return special[edge];
            }
            // All exponents, or near ones, or the smallest.
            let exponent = match i % 3 {
                0 => bits >> 52 & 0x7ff,
                1 => 1023 - spread / 2 + (bits >> 52) % spread,
                _ => (bits >> 52) % spread + if i % 2 == 0 { 0 } else { 470 },
            };
            f64::from_bits(bits & !(0x7ff << 52) | exponent << 52)
        };
        let (a, b, c) = (value(60, i as usize % 10), value(60, i as usize / 10 % 10), value(110, i as usize / 100));
        for (name, exact, processor) in functions {
            let expected = processor(a, b, c);
            let nearest = f64::from_bits(exact(a, b, c, Rounding::Nearest));
            let what = || format!("{name} of {a:e}, {b:e}, {c:e}");
            if expected.is_nan() {
                assert!(nearest.is_nan(), "{}", what());
                continue;
            }
            assert_eq!(nearest.to_bits(), expected.to_bits(), "{}: {nearest:e}, not {expected:e}", what());
            let [down, up, zero] =
                [Rounding::Down, Rounding::Up, Rounding::Zero].map(|mode| f64::from_bits(exact(a, b, c, mode)));
            assert!(down <= nearest && nearest <= up, "{}", what());
            assert!(down == up || down.next_up() == up, "{}: {down:e} and {up:e}", what());
            let toward_zero = if nearest.is_sign_negative() { up } else { down };
            assert!(zero == toward_zero, "{}", what());
            inexact += u32::from(down != up);
        }
    }
    assert!(inexact > 100_000, "the inputs round");
}

#[test]
fn a_zero_of_unequal_signs_is_negative_only_when_rounding_down() {
    let zero = |x: f64, y: f64, mode| f64::from_bits(add(x, y, mode)).is_sign_negative();
    for (mode, cancelled) in [(Rounding::Down, true), (Rounding::Up, false), (Rounding::Zero, false)] {
        assert_eq!(zero(1.5, -1.5, mode), cancelled, "{mode:?}");
        assert_eq!(zero(0.0, -0.0, mode), cancelled, "{mode:?}");
        assert!(!zero(0.0, 0.0, mode) && zero(-0.0, -0.0, mode), "{mode:?}");
        assert_eq!(f64::from_bits(fma(3.0, 0.5, -1.5, mode)).is_sign_negative(), cancelled, "{mode:?}");
        assert!(!f64::from_bits(mul(0.0, 3.0, mode)).is_sign_negative(), "{mode:?}");
    }
}
