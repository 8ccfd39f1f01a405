//! What a real H100 computed (`benches/results/*/truth`), bit for bit: the card is the truth.

use super::Rng;
use ptxsim::scalar::round::{BF16, Rounding, narrow};
use ptxsim::units::approx::{Approximation, Bound, Function, approx_f32};
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product, multiply_add};
use pulp::Arch;
use std::path::Path;

fn bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/results/h100-80gb-hbm3-2026-11-22/truth");
    let file = std::fs::File::open(folder.join(format!("{name}.xz"))).expect("the recorded file");
    let mut out = Vec::new();
    lzma_rs::xz_decompress(&mut std::io::BufReader::new(file), &mut out).expect("an xz file");
    out
}

fn words(name: &str) -> Vec<u32> {
    bytes(name).chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()
}

/// 16-bit operand patterns by class, as the recording program made them.
fn pattern(rng: &mut Rng, class: usize, bf16: bool) -> u32 {
    let x = rng.word();
    let (exponent_bits, fraction_bits) = if bf16 { (8, 7) } else { (5, 10) };
    let bias = (1 << (exponent_bits - 1)) - 1;
    let any = || (x % (2 * bias as u32)) as i32;
    let exponent = match class {
        0 => bias + (x % 3) as i32 - 1,
        1 => bias + (x % 17) as i32 - 8,
        2 => any(),
        _ if x.is_multiple_of(37) => 2 * bias + 1,
        _ => any(),
    };
    let exponent = exponent.clamp(0, 2 * bias + 1) as u32;
    let high = x >> 16;
    high & 0x8000 | exponent << fraction_bits | high & ((1 << fraction_bits) - 1)
}

fn accumulator_pattern(rng: &mut Rng, class: usize) -> u32 {
    let x = rng.word();
    let exponent = match class {
        0 => 127 + x % 3 - 1,
        1 => 127 + x % 33 - 16,
        _ => x % 255,
    };
    x & 0x807f_ffff | exponent << 23
}

fn many(count: usize, mut one: impl FnMut() -> u32) -> Vec<u32> {
    (0..count).map(|_| one()).collect()
}

/// `b` given as columns of 16, as rows of `n`.
fn as_rows(columns: &[u32], n: usize) -> Vec<u32> {
    (0..16 * n).map(|i| columns[i % n * 16 + i / n]).collect()
}

fn hopper(operand: Operand) -> Product {
    Product { operand, accumulator: Accumulator::F32, arithmetic: Arithmetic::Exact(Generation::Hopper), k: 16 }
}

#[test]
fn mma_m16n8k16_is_the_cards() {
    for (bf16, operand, seed, name) in
        [(true, Operand::Bf16, 11, "mma_m16n8k16_bf16.f32"), (false, Operand::F16, 12, "mma_m16n8k16_f16.f32")]
    {
        let truth = words(name);
        let mut rng = Rng(seed);
        assert_eq!(truth.len(), 1024 * 128);
        for (case, truth) in truth.chunks_exact(128).enumerate() {
            let class = case / 256;
            let a = many(256, || pattern(&mut rng, class, bf16));
            let b = many(128, || pattern(&mut rng, class, bf16));
            let mut d = many(128, || accumulator_pattern(&mut rng, class));
            multiply_add(Arch::new(), hopper(operand), &a, &as_rows(&b, 8), &mut d, 8);
            assert_eq!(d, truth, "{name}, case {case}");
        }
    }
}

#[test]
fn wgmma_m64n64k16_is_the_cards() {
    let truth = words("wgmma_m64n64k16_kk.f32");
    let mut rng = Rng(13);
    assert_eq!(truth.len(), 64 * 4096);
    for (case, truth) in truth.chunks_exact(4096).enumerate() {
        let a = many(1024, || pattern(&mut rng, case / 16, true));
        let b = many(1024, || pattern(&mut rng, case / 16, true));
        let mut d = vec![0; 4096];
        multiply_add(Arch::new(), hopper(Operand::Bf16), &a, &as_rows(&b, 64), &mut d, 64);
        assert_eq!(d, truth, "case {case}");
    }
}

const FUNCTIONS: [(&str, Function, bool); 9] = [
    ("ex2.approx.u32", Function::Ex2, false),
    ("ex2.approx.ftz.u32", Function::Ex2, true),
    ("lg2.approx.u32", Function::Lg2, false),
    ("rsqrt.approx.u32", Function::Rsqrt, false),
    ("rcp.approx.ftz.u32", Function::Rcp, true),
    ("sqrt.approx.u32", Function::Sqrt, false),
    ("tanh.approx.u32", Function::Tanh, false),
    ("sin.approx.u32", Function::Sin, false),
    ("cos.approx.u32", Function::Cos, false),
];

/// The arguments of the recorded functions: 64 special ones, then any bits.
fn arguments() -> Vec<u32> {
    const SPECIAL: [u32; 8] = [0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 1, 0x007f_ffff, 0x0080_0000];
    let mut rng = Rng(17);
    let special = (0..64).map(|i| SPECIAL[i % 8] + if i % 8 > 3 { i as u32 / 8 } else { 0 });
    special.chain((64..1 << 16).map(|_| rng.word())).collect()
}

/// Whether `y`, a result for `x`, is inside the documented bound, or is the infinity or NaN that it must be.
fn is_permitted(function: Function, x: f32, y: f32, slack: f64) -> bool {
    let exact = function.exact(f64::from(x));
    let bound = function.bound_f32(f64::from(x));
    match () {
        () if exact.is_nan() => y.to_bits() == 0x7fff_ffff,
        () if !y.is_finite() || (exact as f32).is_infinite() => y == exact as f32,
        () if bound == Bound::Unspecified => y.abs() <= 1.0,
        () => (f64::from(y) - exact).abs() <= bound.absolute(exact) + slack,
    }
}

/// The card lies inside the documented bounds, and so do both of our modes; what is not finite has the same bits.
#[test]
fn approximations_and_the_card_are_inside_the_documented_bounds() {
    let arguments = arguments();
    for (name, function, ftz) in FUNCTIONS {
        let card = words(name);
        assert_eq!(card.len(), arguments.len());
        // A flushed result may be off by the smallest normal number.
        let slack = if ftz { f64::from(f32::MIN_POSITIVE) } else { 0.0 };
        for (bits, card) in arguments.iter().zip(card) {
            let (x, card) = (f32::from_bits(*bits), f32::from_bits(card));
            let seen = if ftz && x.is_subnormal() { 0f32.copysign(x) } else { x };
            assert!(is_permitted(function, seen, card, slack), "{name}({x:e} = {bits:#x}) on the card is {card:e}");
            for approximation in [Approximation::Ideal, Approximation::Perturbed(1), Approximation::Perturbed(2)] {
                let ours = approx_f32(function, x, ftz, approximation);
                assert!(is_permitted(function, seen, ours, slack), "{name}({x:e} = {bits:#x}) is {ours:e}");
                assert!(card.is_finite() || ours.to_bits() == card.to_bits(), "{name}({x:e}): {ours:e}, not {card:e}");
            }
        }
    }
}

/// Recorded distances in ulps to the correctly rounded result, over all mantissas of one binade.
#[test]
fn whole_binades_of_the_card_are_inside_the_documented_bounds() {
    for (name, function, base) in [
        ("ulp_ex2_1_2.i8", Function::Ex2, 0x3f80_0000u32),
        ("ulp_rsqrt_1_2.i8", Function::Rsqrt, 0x3f80_0000),
        ("ulp_rsqrt_2_4.i8", Function::Rsqrt, 0x4000_0000),
        ("ulp_rcp_1_2.i8", Function::Rcp, 0x3f80_0000),
        ("ulp_lg2_2_4.i8", Function::Lg2, 0x4000_0000),
    ] {
        let distances = bytes(name);
        assert_eq!(distances.len(), 1 << 23);
        for (i, distance) in distances.iter().enumerate().step_by(17) {
            let x = f32::from_bits(base + i as u32);
            let exact = function.exact(f64::from(x));
            let card = f32::from_bits(((exact as f32).to_bits() as i32 + i32::from(*distance as i8)) as u32);
            let bound: Bound = function.bound_f32(f64::from(x));
            assert!((f64::from(card) - exact).abs() <= bound.absolute(exact), "{name}: {x:e} gives {card:e}");
        }
    }
}

/// `facts.u32`, rows of 32 lanes.
#[test]
fn small_facts_of_the_card() {
    let facts = words("facts.u32");
    let row = |at: usize| &facts[at..at + 32];
    for lane in 0..32 {
        // elect.sync: lane * 2 + predicate. The leader is the lowest lane of the mask.
        assert_eq!(row(0)[lane], u32::from(lane == 0));
        if lane >= 5 {
            assert_eq!(row(32)[lane], 5 * 2 + u32::from(lane == 5));
        }
    }
    // Subnormals survive without .ftz; with it they vanish. NaN results are 0x7fffffff in f32, 0x7fff in bf16.
    for lane in 0..32u32 {
        let subnormal = f32::from_bits(1 + lane);
        assert_eq!(row(256)[lane as usize], 0);
        assert_eq!(row(288)[lane as usize], (subnormal * 3.0).to_bits());
        assert_eq!(row(320)[lane as usize], 0x7fff_ffff);
        let nan = f32::from_bits(0x7fc0_0000 + lane);
        let bf16 = |x: f32| narrow(f64::from(x), BF16, Rounding::Nearest);
        let pair = bf16(nan) << 16 | bf16(3.389_531_4e38);
        assert_eq!(row(416)[lane as usize], pair);
    }
}
