//! Tensor-core products against a second evaluation of the formula, in wide integers, one output at a time.

use super::Rng;
use ptxsim::units::fragment::Register;
use ptxsim::units::mma::mma_m16n8;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product, multiply_add};
use pulp::Arch;

/// A finite value as ±significand · 2^exponent, where a zero keeps the type's smallest exponent.
fn parts(bits: u64, exponent_bits: u32, fraction_bits: u32) -> (i128, i32, i32) {
    let field = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    let fraction = (bits & ((1 << fraction_bits) - 1)) as i128;
    let significand = if field == 0 { fraction } else { fraction + (1 << fraction_bits) };
    let exponent = (field.max(1) as i32) - ((1 << (exponent_bits - 1)) - 1);
    let sign = if bits >> (exponent_bits + fraction_bits) & 1 == 1 { -1 } else { 1 };
    (sign * significand, exponent, fraction_bits as i32)
}

fn operand_parts(operand: Operand, raw: u32) -> (i128, i32, i32) {
    match operand {
        Operand::Bf16 => parts(u64::from(raw), 8, 7),
        Operand::F16 => parts(u64::from(raw), 5, 10),
        Operand::Tf32 => parts(u64::from(raw >> 13), 8, 10),
    }
}

/// `sum` · 2^`exponent`, cut to f32; or rounded to nearest even f16.
fn round(accumulator: Accumulator, sum: i128, exponent: i32) -> u64 {
    let (exponent_bits, fraction_bits) = if accumulator == Accumulator::F32 { (8, 23) } else { (5, 10) };
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = u64::from(sum < 0) << (exponent_bits + fraction_bits);
    let magnitude = sum.unsigned_abs();
    if magnitude == 0 {
        return 0;
    }
    // The candidate just below, by counting down from the largest.
    let value = |code: u64| -> (u128, i32) {
        let field = code >> fraction_bits;
        let fraction = u128::from(code & ((1 << fraction_bits) - 1));
        let significand = if field == 0 { fraction } else { fraction + (1 << fraction_bits) };
        (significand, field.max(1) as i32 - bias - fraction_bits)
    };
    // Compares magnitude * 2^exponent with significand * 2^e, exactly.
    let at_least = |(significand, e): (u128, i32)| match exponent - e {
        _ if significand == 0 => true,
        shift if shift >= 0 => shift >= 64 || magnitude << shift >= significand,
        shift => shift > -64 && magnitude >= significand << -shift,
    };
    let infinity = ((1u64 << exponent_bits) - 1) << fraction_bits;
    let (mut low, mut high) = (0, infinity);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if at_least(value(middle)) { low = middle } else { high = middle }
    }
    if accumulator == Accumulator::F32 {
        let overflows = at_least((1, 128));
        return sign | if overflows { infinity } else { low };
    }
    // Halfway to the next code.
    let (significand, e) = value(low);
    let halfway = (2 * significand + 1, e - 1);
    let tie = equal(magnitude, exponent, halfway);
    let above = at_least(halfway) && !tie;
    sign | (low + u64::from(above || tie && low & 1 == 1))
}

fn equal(magnitude: u128, exponent: i32, (significand, e): (u128, i32)) -> bool {
    match exponent - e {
        shift if shift >= 0 => shift < 64 && magnitude << shift == significand,
        shift => shift > -64 && significand << -shift == magnitude,
    }
}

/// D of one output, by the formula, for finite operands.
fn evaluate(product: Product, a: &[u32], b: &[u32], c: u32) -> u32 {
    let (step, kept) = match (product.arithmetic, product.operand) {
        (Arithmetic::Exact(Generation::Hopper), _) => (product.k, 25),
        (_, Operand::Tf32) => (4, 24),
        _ => (8, 24),
    };
    let mut d = c;
    let infinity = if product.accumulator == Accumulator::F32 { 0x7f80_0000 } else { 0x7c00 };
    for (a, b) in a.chunks(step).zip(b.chunks(step)) {
        if d & infinity == infinity {
            return d; // an earlier step overflowed
        }
        let c = if product.accumulator == Accumulator::F32 {
            parts(u64::from(d), 8, 23)
        } else {
            parts(u64::from(d), 5, 10)
        };
        let mut terms = vec![c];
        for (x, y) in a.iter().zip(b) {
            let (x, y) = (operand_parts(product.operand, *x), operand_parts(product.operand, *y));
            terms.push((x.0 * y.0, x.1 + y.1, x.2 + y.2));
        }
        let largest = terms.iter().map(|term| term.1).max().expect("terms");
        let aligned = terms.iter().map(|(significand, exponent, fraction)| {
            // In units of 2^(largest - kept): significand * 2^(exponent - fraction - largest + kept), cut toward zero.
            let shift = exponent - fraction - largest + kept;
            let magnitude = significand.unsigned_abs();
            let cut = if shift >= 0 { magnitude << shift } else { magnitude.checked_shr(-shift as u32).unwrap_or(0) };
            cut as i128 * significand.signum()
        });
        d = round(product.accumulator, aligned.sum(), largest - kept) as u32;
    }
    d
}

fn random_operand(rng: &mut Rng, operand: Operand, spread: u32) -> u32 {
    let x = rng.word();
    let y = rng.word();
    match operand {
        Operand::Bf16 => x >> 31 << 15 | (127 + y % (2 * spread + 1) - spread) << 7 | x & 0x7f,
        Operand::F16 => x >> 31 << 15 | (15 + (y % (2 * spread + 1)).min(14) - spread.min(14)) << 10 | x & 0x3ff,
        // The low 13 bits are noise that must not matter.
        Operand::Tf32 => x >> 31 << 31 | (127 + y % (2 * spread + 1) - spread) << 23 | x & 0x7f_ffff,
    }
}

fn products() -> Vec<Product> {
    let mut products = Vec::new();
    for generation in [Generation::Ampere, Generation::Hopper] {
        let arithmetic = Arithmetic::Exact(generation);
        for operand in [Operand::Bf16, Operand::F16, Operand::Tf32] {
            let depths: &[usize] = if operand == Operand::Tf32 { &[4, 8] } else { &[8, 16] };
            for k in depths {
                products.push(Product { operand, accumulator: Accumulator::F32, arithmetic, k: *k });
                if operand == Operand::F16 {
                    products.push(Product { operand, accumulator: Accumulator::F16, arithmetic, k: *k });
                }
            }
        }
    }
    products
}

#[test]
fn every_form_is_the_formula() {
    let mut rng = Rng(99);
    for product in products() {
        for spread in [1, 8, 14, 120] {
            let spread = if product.operand == Operand::F16 { spread.min(14) } else { spread };
            for _ in 0..20 {
                let k = product.k;
                let a: Vec<u32> = (0..16 * k).map(|_| random_operand(&mut rng, product.operand, spread)).collect();
                let b: Vec<u32> = (0..8 * k).map(|_| random_operand(&mut rng, product.operand, spread)).collect();
                let c: Vec<u32> = (0..128)
                    .map(|_| match product.accumulator {
                        Accumulator::F32 => random_operand(&mut rng, Operand::Tf32, spread),
                        Accumulator::F16 => random_operand(&mut rng, Operand::F16, spread),
                    })
                    .collect();
                let mut d = c.clone();
                multiply_add(Arch::new(), product, &a, &b, &mut d, 8);
                for (i, d) in d.iter().enumerate() {
                    let column: Vec<u32> = (0..k).map(|row| b[row * 8 + i % 8]).collect();
                    let expected = evaluate(product, &a[i / 8 * k..][..k], &column, c[i]);
                    assert_eq!(*d, expected, "{product:?}, spread {spread}, output {i}");
                }
            }
        }
    }
}

/// Operands that are zero, subnormal, infinite and NaN.
#[test]
fn special_operands() {
    let product = products()[1];
    assert_eq!((product.operand, product.k), (Operand::Bf16, 16));
    let one = |first: u32, c: u32| {
        let mut a = vec![0x3f80; 256];
        a[0] = first;
        let mut d = vec![c; 128];
        multiply_add(Arch::new(), product, &a, &[0x3f80; 128], &mut d, 8);
        (d[0], d[8])
    };
    assert_eq!(one(0x3f80, 0), (16f32.to_bits(), 16f32.to_bits()));
    assert_eq!(one(0x7f80, 0), (f32::INFINITY.to_bits(), 16f32.to_bits()));
    assert_eq!(one(0xff80, f32::INFINITY.to_bits()), (0x7fff_ffff, f32::INFINITY.to_bits()));
    assert_eq!(one(0x7fc0, 0).0, 0x7fff_ffff);
    assert_eq!(one(0, f32::NAN.to_bits()), (0x7fff_ffff, 0x7fff_ffff));
    // A subnormal times 2^126 is not flushed.
    let mut d = vec![0; 128];
    let mut a = vec![0; 256];
    a[0] = 0x0001;
    multiply_add(Arch::new(), product, &a, &[0x7e80; 128], &mut d, 8);
    assert_eq!(d[0], (2f32.powi(-133) * 2f32.powi(126)).to_bits());
}

#[test]
fn the_fast_mode_is_close_and_keeps_specials() {
    let mut rng = Rng(7);
    for mut product in products() {
        let k = product.k;
        let a: Vec<u32> = (0..16 * k).map(|_| random_operand(&mut rng, product.operand, 4)).collect();
        let b: Vec<u32> = (0..8 * k).map(|_| random_operand(&mut rng, product.operand, 4)).collect();
        let (mut exact, mut fast) = (vec![0; 128], vec![0; 128]);
        multiply_add(Arch::new(), product, &a, &b, &mut exact, 8);
        product.arithmetic = Arithmetic::Fast;
        multiply_add(Arch::new(), product, &a, &b, &mut fast, 8);
        for i in 0..128 {
            let value = |bits: u32| match product.accumulator {
                Accumulator::F32 => f32::from_bits(bits),
                Accumulator::F16 => Operand::F16.value(bits),
            };
            let scale: f32 = (0..k)
                .map(|j| (product.operand.value(a[i / 8 * k + j]) * product.operand.value(b[j * 8 + i % 8])).abs())
                .sum();
            let unit = if product.accumulator == Accumulator::F32 { 2f32.powi(-20) } else { 2f32.powi(-10) };
            assert!((value(exact[i]) - value(fast[i])).abs() <= unit * scale, "{product:?} output {i}");
        }
    }
}

/// `mma_m16n8` on registers laid out by the formulas of the manual, written anew here.
#[test]
fn fragments_of_mma() {
    let mut rng = Rng(3);
    for product in products() {
        let k = product.k;
        let (a_tile, b_tile): (Vec<u32>, Vec<u32>) = (
            (0..16 * k).map(|_| random_operand(&mut rng, product.operand, 3)).collect(),
            (0..8 * k).map(|_| random_operand(&mut rng, product.operand, 3)).collect(),
        );
        let half = product.operand != Operand::Tf32;
        let (per_a, per_b) = if half { (k / 4, k / 8) } else { (k / 2, k / 4) };
        let mut a: Vec<Register> = vec![[0; 32]; per_a];
        let mut b: Vec<Register> = vec![[0; 32]; per_b];
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            if half {
                for i in 0..2 * per_a {
                    let row = if i / 2 % 2 == 0 { g } else { g + 8 };
                    let column = 2 * t + i % 2 + if i >= 4 { 8 } else { 0 };
                    a[i / 2][lane] |= a_tile[row * k + column] << (16 * (i % 2));
                }
                for i in 0..2 * per_b {
                    let row = 2 * t + i % 2 + if i >= 2 { 8 } else { 0 };
                    b[i / 2][lane] |= b_tile[row * 8 + g] << (16 * (i % 2));
                }
            } else {
                for (i, register) in a.iter_mut().enumerate() {
                    register[lane] = a_tile[(g + 8 * (i % 2)) * k + t + 4 * (i / 2)];
                }
                for (i, register) in b.iter_mut().enumerate() {
                    register[lane] = b_tile[(t + 4 * i) * 8 + g];
                }
            }
        }
        let mut expected = vec![0; 128];
        multiply_add(Arch::new(), product, &a_tile, &b_tile, &mut expected, 8);
        let f32_out = product.accumulator == Accumulator::F32;
        let mut d: Vec<Register> = vec![[0; 32]; if f32_out { 4 } else { 2 }];
        let (a, b): (Vec<&Register>, Vec<&Register>) = (a.iter().collect(), b.iter().collect());
        mma_m16n8(Arch::new(), product, &a, &b, &mut d);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..4 {
                let (row, column) = (if i < 2 { g } else { g + 8 }, 2 * t + i % 2);
                let got = if f32_out { d[i][lane] } else { d[i / 2][lane] >> (16 * (i % 2)) & 0xffff };
                assert_eq!(got, expected[row * 8 + column], "{product:?} lane {lane} element {i}");
            }
        }
    }
}
