//! `wgmma` of 8-bit floats against a second evaluation of the formula, in wide integers.

use super::Rng;
use ptxsim::scalar::fp8::Fp8;
use ptxsim::units::tensor_core::Accumulator;
use ptxsim::units::tile::wgmma_float8;

/// Everything in units of 2^-70.
const UNIT: i32 = 70;

/// (value in units, exponent of the leading place; the smallest of its type for zero and subnormals)
fn take_apart(code: u32, exponent_bits: u32, fraction_bits: u32) -> (i128, i32) {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let field = (code >> fraction_bits & ((1 << exponent_bits) - 1)) as i32;
    let fraction = i128::from(code & ((1 << fraction_bits) - 1));
    let significand = if field == 0 { fraction } else { fraction + (1 << fraction_bits) };
    let exponent = field.max(1) - bias;
    let sign = if code >> (exponent_bits + fraction_bits) & 1 == 1 { -1 } else { 1 };
    (sign * (significand << (UNIT + exponent - fraction_bits as i32)), exponent)
}

/// Cut to a multiple of 2^power, toward zero.
fn cut(units: i128, power: i32) -> i128 {
    units / (1 << (UNIT + power)) * (1 << (UNIT + power))
}

#[test]
fn products_of_8_bit_floats_keep_13_bits() {
    let mut rng = Rng(31);
    let mut cuts = 0;
    for case in 0..20_000u32 {
        let kinds = [Fp8::E4m3, Fp8::E5m2].map(|kind| if case % 3 == 0 { Fp8::E4m3 } else { kind });
        let shape = |kind: Fp8| if kind == Fp8::E4m3 { (4, 3) } else { (5, 2) };
        let [(a_exponent, a_fraction), (b_exponent, b_fraction)] = kinds.map(shape);
        // Finite codes: neither all ones nor, of e5m2, the last exponent.
        let mut code = |fraction: u32| {
            let code = rng.word() & 0xff;
            let limit = if fraction == 3 { 0x7e } else { 0x7b };
            if code & 0x7f > limit { code & 0x8f } else { code }
        };
        let pairs: Vec<(u32, u32)> = (0..32).map(|_| (code(a_fraction), code(b_fraction))).collect();
        // From far below the products to above them.
        let c = rng.word() & 0x807f_ffff | (127 - 40 + rng.word() % 60) << 23;
        let mut terms = vec![take_apart(c, 8, 23)];
        for &(x, y) in &pairs {
            let ((x, x_exponent), (y, y_exponent)) =
                (take_apart(x, a_exponent, a_fraction), take_apart(y, b_exponent, b_fraction));
            // Both are small multiples of a large power of two.
            let product = ((x >> (UNIT - 20)) * (y >> (UNIT - 20))) << (UNIT - 40);
            terms.push((product, x_exponent + y_exponent));
        }
        let largest = terms.iter().map(|term| term.1).max().expect("terms");
        let sum: i128 = terms.iter().map(|(units, _)| cut(*units, largest - 13)).sum();
        cuts += u32::from(terms.iter().any(|(units, _)| cut(*units, largest - 13) != *units));
        let length = 128 - sum.unsigned_abs().leading_zeros() as i32;
        let expected = cut(sum, (length - 1 - UNIT - 13).max(-UNIT));
        let got = f32::from_bits(wgmma_float8(kinds, Accumulator::F32, c, &pairs));
        let scaled = f64::from(got) * 2f64.powi(UNIT);
        assert_eq!(scaled as i128, expected, "case {case}: {got:e}");
        assert_eq!(got.to_bits() & 0x3ff, 0, "13 bits of fraction");
    }
    assert!(cuts > 10_000, "something is cut");
}

#[test]
fn infinities_and_nan_win() {
    let one = 0x38;
    let pairs =
        |first: (u32, u32)| -> Vec<(u32, u32)> { (0..32).map(|i| if i == 0 { first } else { (one, one) }).collect() };
    let of = |kinds: [Fp8; 2], c: f32, first| {
        f32::from_bits(wgmma_float8(kinds, Accumulator::F32, c.to_bits(), &pairs(first)))
    };
    assert!(of([Fp8::E4m3; 2], 0.0, (0x7f, one)).is_nan());
    assert_eq!(of([Fp8::E5m2; 2], 0.0, (0x7c, one)), f32::INFINITY);
    assert!(of([Fp8::E5m2; 2], 0.0, (0x7c, 0)).is_nan());
    assert!(of([Fp8::E5m2; 2], f32::NEG_INFINITY, (0x7c, one)).is_nan());
    assert_eq!(of([Fp8::E4m3; 2], f32::NEG_INFINITY, (one, one)), f32::NEG_INFINITY);
}
