//! Arithmetic, conversions, comparisons.

use super::{map, words};

fn unary(body: &str, expected: impl Fn(u32) -> u32) {
    let input = words(1024, 7);
    let output = map(body, &input);
    for (input, output) in input.iter().zip(output) {
        assert_eq!(output, expected(*input), "{body} of {input:#x}");
    }
}

#[test]
fn integer_forms_agree_with_rust() {
    unary("popc.b32 %r1, %r0;", u32::count_ones);
    unary("brev.b32 %r1, %r0;", u32::reverse_bits);
    unary("clz.b32 %r1, %r0;", u32::leading_zeros);
    unary("bfind.u32 %r1, %r0;", |x| 31u32.wrapping_sub(x.leading_zeros()));
    unary("shr.s32 %r1, %r0, 3;", |x| (x as i32 >> 3) as u32);
    unary("shl.b32 %r1, %r0, 40;", |_| 0);
    unary("shr.s32 %r1, %r0, 99;", |x| (x as i32 >> 31) as u32);
    unary("mul.hi.s32 %r1, %r0, -123456789;", |x| ((x as i32 as i64 * -123456789) >> 32) as u32);
    unary("bfe.u32 %r1, %r0, 5, 11;", |x| x >> 5 & 0x7ff);
    unary("bfe.s32 %r1, %r0, 5, 11;", |x| ((x << 16) as i32 >> 21) as u32);
    unary("bfi.b32 %r1, %r0, 0xffff0000, 4, 8;", |x| 0xffff_0000 | (x & 0xff) << 4);
    unary("prmt.b32 %r1, %r0, 0x11223344, 0x3710;", |x| (x & 0xff) | (x & 0xff00) | 0x11 << 16 | (x & 0xff00_0000));
    unary("shf.l.wrap.b32 %r1, %r0, 0x80000001, 35;", |x| (0x80000001u32 << 3) | x >> 29);
    unary("lop3.b32 %r1, %r0, 0xf0f0f0f0, 0x12345678, 0x96;", |x| x ^ 0xf0f0f0f0 ^ 0x12345678);
    unary("rem.s32 %r1, %r0, -7;", |x| (x as i32 % -7) as u32);
    unary("div.u32 %r1, %r0, 13;", |x| x / 13);
    unary("min.s32 %r1, %r0, -5;", |x| (x as i32).min(-5) as u32);
    unary("sad.u32 %r1, %r0, 1000, 7;", |x| x.abs_diff(1000).wrapping_add(7));
    unary("dp4a.s32.s32 %r1, %r0, 0x01ff7f80, 5;", |x| {
        let bytes = x.to_le_bytes().map(|b| b as i8 as i32);
        (5 + bytes[0] * -128 + bytes[1] * 127 - bytes[2] + bytes[3]) as u32
    });
    unary("add.s32 %r1, %r0, %r0; not.b32 %r1, %r1; neg.s32 %r1, %r1;", |x| (x.wrapping_mul(2)).wrapping_add(1));
}

#[test]
fn wide_forms_agree_with_rust() {
    unary("mul.wide.s32 %rd5, %r0, -77; shr.u64 %rd5, %rd5, 17; cvt.u32.u64 %r1, %rd5;", |x| {
        ((x as i32 as i64 * -77) as u64 >> 17) as u32
    });
    unary("cvt.u64.u32 %rd5, %r0; mul.hi.u64 %rd6, %rd5, 0xffffffffffffff9d; cvt.u32.u64 %r1, %rd6;", |x| {
        ((x as u128 * 0xffff_ffff_ffff_ff9d) >> 64) as u32
    });
    unary("mov.b64 %rd5, {%r0, %r0}; popc.b64 %r1, %rd5;", |x| 2 * x.count_ones());
    unary("cvt.s64.s32 %rd5, %r0; rem.s64 %rd5, %rd5, 1000; cvt.u32.u64 %r1, %rd5;", |x| (x as i32 % 1000) as u32);
    unary("mov.b64 %rd5, {%r0, 7}; bfe.u64 %rd5, %rd5, 28, 8; cvt.u32.u64 %r1, %rd5;", |x| x >> 28 | 7 << 4);
    unary("add.cc.u32 %r2, %r0, %r0; addc.u32 %r1, 0, 0;", |x| x >> 31);
    unary("sub.cc.u32 %r2, 5, %r0; subc.u32 %r1, 10, 0;", |x| 10 - (x > 5) as u32);
}

#[test]
fn sixteen_bit_registers_keep_sixteen_bits() {
    unary("cvt.u16.u32 %rs0, %r0; add.s16 %rs1, %rs0, %rs0; cvt.u32.u16 %r1, %rs1;", |x| {
        (x as u16).wrapping_mul(2) as u32
    });
    unary("cvt.u16.u32 %rs0, %r0; shr.s16 %rs1, %rs0, 3; cvt.u32.u16 %r1, %rs1;", |x| (x as i16 >> 3) as u16 as u32);
    unary("cvt.u16.u32 %rs0, %r0; cvt.s32.s16 %r1, %rs0;", |x| x as i16 as u32);
    unary("mov.b32 {%rs0, %rs1}, %r0; mov.b32 %r1, {%rs1, %rs0};", |x| x.rotate_left(16));
    unary("cvt.s8.s32 %rs0, %r0; cvt.u32.u16 %r1, %rs0;", |x| x as i8 as u16 as u32);
    unary("cvt.sat.s8.s32 %rs0, %r0; cvt.s32.s16 %r1, %rs0;", |x| (x as i32).clamp(-128, 127) as u32);
}

#[test]
fn float_forms_agree_with_rust() {
    let f = f32::from_bits;
    let canonical = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    unary("mov.b32 %f0, %r0; add.f32 %f1, %f0, 0f3F800000; mov.b32 %r1, %f1;", |x| canonical(f(x) + 1.0));
    unary("mov.b32 %f0, %r0; fma.rn.f32 %f1, %f0, %f0, 0fC2280000; mov.b32 %r1, %f1;", |x| {
        canonical(f(x).mul_add(f(x), -42.0))
    });
    unary("mov.b32 %f0, %r0; div.rn.f32 %f1, 0f40490FDB, %f0; mov.b32 %r1, %f1;", |x| {
        canonical(std::f32::consts::PI / f(x))
    });
    unary("mov.b32 %f0, %r0; abs.f32 %f0, %f0; sqrt.rn.f32 %f1, %f0; mov.b32 %r1, %f1;", |x| {
        canonical(f(x).abs().sqrt())
    });
    unary("mov.b32 %f0, %r0; max.f32 %f1, %f0, 0f3F800000; mov.b32 %r1, %f1;", |x| canonical(f(x).max(1.0)));
    unary("mov.b32 %f0, %r0; cvt.rzi.s32.f32 %r1, %f0;", |x| f(x) as i32 as u32);
    unary("cvt.rn.f32.s32 %f0, %r0; mov.b32 %r1, %f0;", |x| (x as i32 as f32).to_bits());
    unary("mov.b32 %f0, %r0; cvt.sat.f32.f32 %f1, %f0; mov.b32 %r1, %f1;", |x| {
        if f(x) > 0.0 { f(x).min(1.0).to_bits() } else { 0 }
    });
    unary("mov.b32 %f0, %r0; setp.ltu.f32 %p0, %f0, 0f00000000; selp.b32 %r1, 1, 0, %p0;", |x| {
        (f(x) < 0.0 || f(x).is_nan()) as u32
    });
    unary(
        "mov.b32 %f0, %r0; cvt.f64.f32 %fd0, %f0; mul.f64 %fd1, %fd0, %fd0; cvt.rn.f32.f64 %f1, %fd1; mov.b32 %r1, %f1;",
        |x| canonical((f(x) as f64 * f(x) as f64) as f32),
    );
}

#[test]
fn flushing_forms_flush() {
    let input = [1u32, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x3f80_0000];
    let mut all = input.to_vec();
    all.resize(32, 0);
    let output = map("mov.b32 %f0, %r0; mul.ftz.f32 %f1, %f0, 0f3F800000; mov.b32 %r1, %f1;", &all);
    assert_eq!(output[..5], [0, 0x8000_0000, 0, 0x0080_0000, 0x3f80_0000]);
    let output = map("mov.b32 %f0, %r0; mul.f32 %f1, %f0, 0f3F800000; mov.b32 %r1, %f1;", &all);
    assert_eq!(output[..5], input);
}

/// Directed rounding against exact integers: the sum of two `f32` of moderate size is a multiple of 2^-60.
#[test]
fn directed_sums_bracket_the_exact_sum() {
    let input: Vec<u32> = words(1024, 3).iter().map(|x| x & 0x83ff_ffff | 0x3c00_0000).collect();
    let run =
        |mode: &str| map(&format!("mov.b32 %f0, %r0; add.{mode}.f32 %f1, %f0, 0f3EAAAAAB; mov.b32 %r1, %f1;"), &input);
    let (down, up, zero) = (run("rm"), run("rp"), run("rz"));
    for (index, x) in input.iter().enumerate() {
        let exact = f32::from_bits(*x) as f64 + f32::from_bits(0x3EAAAAAB) as f64;
        let (low, high) = (f32::from_bits(down[index]), f32::from_bits(up[index]));
        assert!(low as f64 <= exact && exact <= high as f64, "{low} {exact} {high}");
        assert!(low == high || low.next_up() == high, "{low} and {high} are not neighbours");
        assert_eq!(f32::from_bits(zero[index]), if exact > 0.0 { low } else { high });
    }
}

#[test]
fn bf16_conversions_round_to_even() {
    unary("mov.b32 %f0, %r0; cvt.rn.bf16.f32 %rs0, %f0; cvt.u32.u16 %r1, %rs0;", |x| {
        if f32::from_bits(x).is_nan() { 0x7fff } else { half::bf16::from_f32(f32::from_bits(x)).to_bits() as u32 }
    });
    unary("mov.b32 %f0, %r0; cvt.rn.bf16x2.f32 %r1, %f0, 0f3F800000;", |x| {
        let upper = if f32::from_bits(x).is_nan() { 0x7fff } else { half::bf16::from_f32(f32::from_bits(x)).to_bits() };
        (upper as u32) << 16 | 0x3f80
    });
    unary("mov.b32 %f0, %r0; cvt.rn.f16.f32 %rs0, %f0; cvt.u32.u16 %r1, %rs0;", |x| {
        if f32::from_bits(x).is_nan() { 0x7fff } else { half::f16::from_f32(f32::from_bits(x)).to_bits() as u32 }
    });
}

#[test]
fn half_products_are_rounded_once() {
    // The product of two bf16 is exact in f32; the sum with a third is exact in f64 for these exponents.
    let input: Vec<u32> = words(1024, 11).iter().map(|x| x & 0x87ff_87ff | 0x3800_3800).collect();
    let output = map("fma.rn.bf16x2 %r1, %r0, %r0, 0x3f803f80;", &input);
    for (x, y) in input.iter().zip(output) {
        for shift in [0, 16] {
            let a = f32::from_bits(x >> shift << 16) as f64;
            let expected = half::bf16::from_f64(a * a + 1.0).to_bits() as u32;
            assert_eq!(y >> shift & 0xffff, expected);
        }
    }
}

#[test]
fn approximations_are_ideal_or_inside_their_bound() {
    use ptxsim::launch::Geometry;
    use ptxsim::options::{Approximation, Options};
    let input: Vec<u32> = words(1024, 5).iter().map(|x| (x >> 9 | 0x3f80_0000) & 0x3fff_ffff).collect();
    for (opcode, exact, bound) in [
        ("ex2.approx.ftz.f32", f64::exp2 as fn(f64) -> f64, 2.0 * 2f64.powi(-23)),
        ("rcp.approx.ftz.f32", |x| 1.0 / x, 2f64.powi(-23)),
        ("tanh.approx.f32", f64::tanh, 2f64.powi(-11)),
        ("rsqrt.approx.f32", |x| 1.0 / x.sqrt(), 2f64.powf(-22.9)),
    ] {
        let text = super::per_thread(&format!("mov.b32 %f0, %r0; {opcode} %f1, %f0; mov.b32 %r1, %f1;"));
        let run = |approximation, seed| {
            let options = Options { approximation, seed, ..Options::default() };
            super::run_words(&text, &input, &Geometry::linear(4, 256), &options).0
        };
        let (ideal, moved) = (run(Approximation::Ideal, 0), run(Approximation::Perturbed, 1));
        assert_eq!(run(Approximation::Perturbed, 1), moved, "{opcode} differs between two runs of one seed");
        assert_ne!(run(Approximation::Perturbed, 2), moved, "{opcode} does not depend on the seed");
        for index in 0..input.len() {
            let exact = exact(f32::from_bits(input[index]) as f64);
            assert_eq!(f32::from_bits(ideal[index]), exact as f32, "{opcode}");
            let error = (f32::from_bits(moved[index]) as f64 - exact).abs() / exact.abs();
            assert!(error <= bound * 2.0, "{opcode}: {error:e} of {bound:e}");
        }
    }
}

#[test]
fn a_zero_is_negative_only_where_signs_cancel_downward() {
    // Words of both signs, and zeros.
    let input: Vec<u32> = (0..256u32)
        .map(|i| if i % 4 == 0 { (i % 8 / 4) << 31 } else { (i * 0x0101_0101) & 0x807f_ffff | 0x3f80_0000 })
        .collect();
    for (form, expected) in [
        ("add.rm.f32 %f1, %f0, %f2;", 0x8000_0000),
        ("add.rp.f32 %f1, %f0, %f2;", 0),
        ("fma.rm.f32 %f1, %f0, 0f3F800000, %f2;", 0x8000_0000),
    ] {
        let output = map(&format!("mov.b32 %f0, %r0; neg.f32 %f2, %f0; {form} mov.b32 %r1, %f1;"), &input);
        assert!(output.iter().all(|word| *word == expected), "{form}: {output:x?}");
    }
    // No sum, no cancellation.
    for (form, expected) in [("mul.rm.f32 %f1, %f0, 0f00000000;", 0), ("add.rm.f32 %f1, 0f00000000, 0f00000000;", 0)] {
        let output = map(&format!("mov.b32 %f0, %r0; abs.f32 %f0, %f0; {form} mov.b32 %r1, %f1;"), &input);
        assert!(output.iter().all(|word| *word == expected), "{form}: {output:x?}");
    }
}
