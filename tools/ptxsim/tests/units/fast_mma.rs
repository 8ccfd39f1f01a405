//! `m16n8k16` in fast mode against a chain of fused multiply-adds, bit for bit, on registers laid out by the manual's formulas.

use super::Rng;
use ptxsim::units::fragment::Register;
use ptxsim::units::mma::mma_m16n8;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Operand, Product};
use pulp::Arch;

/// Bits of an operand; with `special`, now and then an infinity, a NaN or a subnormal number.
fn operand(rng: &mut Rng, operand: Operand, special: bool) -> u32 {
    let word = rng.word() & 0xffff;
    let (exponent, ordinary) = match operand {
        Operand::F16 => (0x7c00, word & 0x83ff | (11 + (word >> 10 & 7)) << 10),
        _ => (0x7f80, word & 0x807f | (124 + (word >> 7 & 7)) << 7),
    };
    match rng.word() % 24 {
        0 if special => word | exponent,
        1 if special => word & 0x8000 | exponent,
        2..5 => word & !exponent,
        _ => ordinary,
    }
}

#[test]
fn fast_mma_is_a_chain_of_fused_multiply_adds() {
    let mut rng = Rng(29);
    for case in 0..400 {
        let kind = if case % 2 == 0 { Operand::Bf16 } else { Operand::F16 };
        let special = case % 4 >= 2;
        let a: Vec<u32> = (0..16 * 16).map(|_| operand(&mut rng, kind, special)).collect();
        let b: Vec<u32> = (0..16 * 8).map(|_| operand(&mut rng, kind, special)).collect();
        let c: Vec<f32> = (0..16 * 8).map(|_| f32::from_bits(rng.word() & 0x807f_ffff | 0x3f80_0000)).collect();
        let (mut ra, mut rb, mut d): ([Register; 4], [Register; 2], [Register; 4]) =
            ([[0; 32]; 4], [[0; 32]; 2], [[0; 32]; 4]);
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..8 {
                let (row, column) = (g + 8 * (i / 2 % 2), 2 * t + i % 2 + 8 * (i / 4));
                ra[i / 2][lane] |= a[row * 16 + column] << (16 * (i % 2));
            }
            for i in 0..4 {
                rb[i / 2][lane] |= b[(2 * t + i % 2 + 8 * (i / 2)) * 8 + g] << (16 * (i % 2));
                d[i][lane] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2].to_bits();
            }
        }
        let product = Product { operand: kind, accumulator: Accumulator::F32, arithmetic: Arithmetic::Fast, k: 16 };
        let (ra, rb): (Vec<&Register>, Vec<&Register>) = (ra.iter().collect(), rb.iter().collect());
        mma_m16n8(Arch::new(), product, &ra, &rb, &mut d);
        for lane in 0..32 {
            for (i, register) in d.iter().enumerate() {
                let (row, column) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                // Of eight elements along k the even ones come first.
                let order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];
                let value = |bits: u32| kind.value(bits);
                let sum = order
                    .iter()
                    .fold(c[row * 8 + column], |sum, &k| value(a[row * 16 + k]).mul_add(value(b[k * 8 + column]), sum));
                let expected = if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() };
                assert_eq!(register[lane], expected, "case {case}, row {row}, column {column}");
            }
        }
    }
}
