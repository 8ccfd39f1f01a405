//! `m16n8k16` in exact mode from registers to registers against the product of tiles, bit for bit: operands at and beyond the
//! bounds of what is done in `f32`, zeros and subnormal numbers among them, and every kind of C.

use super::Rng;
use ptxsim::units::fragment::Register;
use ptxsim::units::mma::mma_m16n8;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product, multiply_add};
use pulp::Arch;

/// Bits of an operand with an exponent of at most `spread`; now and then a zero, and, with `special`, what is not ordinary.
fn operand(rng: &mut Rng, operand: Operand, spread: u32, special: bool) -> u32 {
    let (word, exponent) = (rng.word(), rng.word() % (2 * spread + 1));
    let (fraction_bits, bias, infinity) = if operand == Operand::F16 { (10, 15, 0x7c00) } else { (7, 127, 0x7f80) };
    let (sign, fraction) = (word & 0x8000, word & ((1 << fraction_bits) - 1));
    let exponent = if operand == Operand::F16 { exponent % 30 + 1 } else { bias + exponent - spread };
    match rng.word() % 32 {
        0..4 => sign,
        4 if special => sign | infinity | fraction,
        5 if special => sign | infinity,
        6 if operand == Operand::F16 || special => sign | fraction,
        _ => sign | exponent << fraction_bits | fraction,
    }
}

/// Bits of C.
fn accumulator(rng: &mut Rng, kind: usize) -> u32 {
    let word = rng.word();
    match (kind, rng.word() % 8) {
        (0, _) => 0,
        // About as large as sums of products near one.
        (1, _) => word & 0x807f_ffff | (120 + word % 12) << 23,
        // Any finite number, the subnormal ones and those near overflow among them.
        (_, 0) => word & 0x807f_ffff,
        (_, 1) => word & 0x807f_ffff | 254 << 23,
        (_, 2) if kind == 3 => word & 0x8000_0000 | 0x7f80_0000,
        _ => word & 0x807f_ffff | (1 + word % 254) << 23,
    }
}

fn registers(a: &[u32], b: &[u32], c: &[u32]) -> ([Register; 4], [Register; 2], [Register; 4]) {
    let (mut ra, mut rb, mut d) = ([[0; 32]; 4], [[0; 32]; 2], [[0; 32]; 4]);
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..8 {
            let (row, column) = (g + 8 * (i / 2 % 2), 2 * t + i % 2 + 8 * (i / 4));
            ra[i / 2][lane] |= a[row * 16 + column] << (16 * (i % 2));
        }
        for i in 0..4 {
            rb[i / 2][lane] |= b[(2 * t + i % 2 + 8 * (i / 2)) * 8 + g] << (16 * (i % 2));
            d[i][lane] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
        }
    }
    (ra, rb, d)
}

#[test]
fn exact_mma_is_the_product_of_tiles() {
    let mut rng = Rng(41);
    for case in 0..3000 {
        let kind = if case % 2 == 0 { Operand::Bf16 } else { Operand::F16 };
        let generation = if case % 4 < 2 { Generation::Hopper } else { Generation::Ampere };
        // 45 and 46 are the bounds.
        let spread = [3, 20, 45, 46, 60, 126][case / 4 % 6];
        let special = case % 5 == 0;
        let a: Vec<u32> = (0..16 * 16).map(|_| operand(&mut rng, kind, spread, special)).collect();
        let b: Vec<u32> = (0..16 * 8).map(|_| operand(&mut rng, kind, spread, special && case % 10 == 0)).collect();
        let c: Vec<u32> = (0..16 * 8).map(|_| accumulator(&mut rng, case / 24 % 4)).collect();
        let arithmetic = Arithmetic::Exact(generation);
        let product = Product { operand: kind, accumulator: Accumulator::F32, arithmetic, k: 16 };
        let mut expected = c.clone();
        multiply_add(Arch::new(), product, &a, &b, &mut expected, 8);
        let (ra, rb, mut d) = registers(&a, &b, &c);
        let (ra, rb): (Vec<&Register>, Vec<&Register>) = (ra.iter().collect(), rb.iter().collect());
        mma_m16n8(Arch::new(), product, &ra, &rb, &mut d);
        for lane in 0..32 {
            for (i, register) in d.iter().enumerate() {
                let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let expected = expected[row * 8 + column];
                assert_eq!(
                    register[lane], expected,
                    "case {case}, {kind:?}, {generation:?}, row {row}, column {column}"
                );
            }
        }
    }
}
