//! Approximations: the perturbed mode stays inside the bound, differs from the ideal one, and depends on the seed alone.

use super::Rng;
use ptxsim::scalar::round::{BF16, F16, Rounding, bf16_value, f16_value, narrow};
use ptxsim::units::approx::{Approximation, Bound, Function, approx_f32, approx_half, div_f32};

const FUNCTIONS: [Function; 8] = [
    Function::Rcp,
    Function::Sqrt,
    Function::Rsqrt,
    Function::Sin,
    Function::Cos,
    Function::Lg2,
    Function::Ex2,
    Function::Tanh,
];

#[test]
fn perturbed_results_differ_and_stay_inside_the_bound() {
    for function in FUNCTIONS {
        let mut rng = Rng(5);
        let mut differs = 0;
        for _ in 0..20_000 {
            let x = f32::from_bits(0x3a00_0000 + rng.word() % 0x0700_0000)
                * if rng.word().is_multiple_of(2) { 1.0 } else { -1.0 };
            let exact = function.exact(f64::from(x));
            let ideal = approx_f32(function, x, false, Approximation::Ideal);
            let perturbed = approx_f32(function, x, false, Approximation::Perturbed(11));
            assert_eq!(
                perturbed.to_bits(),
                approx_f32(function, x, false, Approximation::Perturbed(11)).to_bits(),
                "the same seed gives the same bits"
            );
            if exact.is_nan() {
                assert_eq!(perturbed.to_bits(), 0x7fff_ffff);
                continue;
            }
            let bound = function.bound_f32(f64::from(x)).absolute(exact);
            assert!((f64::from(perturbed) - exact).abs() <= bound, "{function:?}({x:e})");
            differs += usize::from(perturbed != ideal);
        }
        assert!(differs > 2000, "{function:?}: {differs} of 20000 differ");
    }
}

#[test]
fn documented_special_cases() {
    let ideal = |function, x| approx_f32(function, x, false, Approximation::Ideal);
    assert_eq!(ideal(Function::Rcp, -0.0), f32::NEG_INFINITY);
    assert_eq!(ideal(Function::Rsqrt, -0.0), f32::NEG_INFINITY);
    assert_eq!(ideal(Function::Rsqrt, -1.0).to_bits(), 0x7fff_ffff);
    assert_eq!(ideal(Function::Sqrt, -0.0).to_bits(), (-0f32).to_bits());
    assert_eq!(ideal(Function::Lg2, 0.0), f32::NEG_INFINITY);
    assert_eq!(ideal(Function::Ex2, f32::NEG_INFINITY), 0.0);
    assert_eq!(ideal(Function::Ex2, -140.0), 2f32.powi(-140));
    assert_eq!(approx_f32(Function::Ex2, -140.0, true, Approximation::Ideal), 0.0);
    assert_eq!(ideal(Function::Tanh, 1e-40), 1e-40);
    // Exact values are not perturbed: 0 stays 0, powers of two stay.
    for seed in 0..8 {
        let perturbed = |function, x| approx_f32(function, x, false, Approximation::Perturbed(seed));
        assert_eq!(perturbed(Function::Ex2, 3.0), 8.0);
        assert_eq!(perturbed(Function::Tanh, 0.0), 0.0);
        assert!(perturbed(Function::Tanh, 20.0) <= 1.0);
        assert!(perturbed(Function::Cos, 1e-4) <= 1.0);
    }
}

#[test]
fn division() {
    let mut rng = Rng(6);
    for seed in 0..20_000u64 {
        let [a, b] = [(); 2].map(|()| f32::from_bits(0x3000_0000 + rng.word() % 0x2000_0000));
        let exact = f64::from(a) / f64::from(b);
        let quotient = div_f32(a, b, false, false, Approximation::Perturbed(seed));
        assert!((f64::from(quotient) - exact).abs() <= Bound::Ulps(2.0).absolute(exact), "{a:e} / {b:e}");
        assert_eq!(div_f32(a, b, false, false, Approximation::Ideal), a / b);
    }
    let huge = 2f32.powi(127);
    assert_eq!(div_f32(huge, huge, false, false, Approximation::Ideal), 0.0);
    assert_eq!(div_f32(huge, huge, true, false, Approximation::Ideal), 1.0);
    assert!(div_f32(f32::INFINITY, huge, false, false, Approximation::Ideal).is_nan());
    assert_eq!(div_f32(1.0, 0.0, false, false, Approximation::Ideal), f32::INFINITY);
}

/// The manual's bounds: ex2 2^-9.9 (f16) and 2^-7 (bf16) of the value; tanh 2^-10.987 (f16), 2^-8 of the value (bf16).
#[test]
fn halves_stay_inside_their_bounds() {
    for (function, bf, bound, relative) in [
        (Function::Ex2, false, 2f64.powf(-9.9), true),
        (Function::Ex2, true, 2f64.powi(-7), true),
        (Function::Tanh, false, 2f64.powf(-10.987), false),
        (Function::Tanh, true, 2f64.powi(-8), true),
    ] {
        let value = |bits: u32| f64::from(if bf { bf16_value(bits) } else { f16_value(bits) });
        let format = if bf { BF16 } else { F16 };
        let mut differs = 0;
        for bits in 0..0x10000u32 {
            let exact = function.exact(value(bits));
            let ideal = approx_half(function, bits, bf, false, Approximation::Ideal);
            assert_eq!(ideal, narrow(exact, format, Rounding::Nearest), "{function:?} of {bits:#x}");
            let perturbed = approx_half(function, bits, bf, false, Approximation::Perturbed(3));
            assert_eq!(perturbed, approx_half(function, bits, bf, false, Approximation::Perturbed(3)));
            differs += u32::from(perturbed != ideal);
            if perturbed != ideal {
                let most = if relative { bound * exact.abs() } else { bound };
                assert!((value(perturbed) - exact).abs() <= most, "{function:?} of {bits:#x}");
            }
        }
        assert!(differs > 500, "{function:?}, bf16 {bf}: {differs} differ");
    }
    // Subnormal results vanish with .ftz, their sign stays.
    assert_eq!(approx_half(Function::Ex2, 0xcc00, false, true, Approximation::Ideal), 0);
    assert_ne!(approx_half(Function::Ex2, 0xcc00, false, false, Approximation::Ideal), 0);
}
