//! Products of the tensor cores on other elements than floats of 16 bits and tf32: integers of 8, 4 and 1 bits, f64, 8-bit floats.
//!
//! Fragments of all of them, of `mma` and `wmma` alike, follow one rule. With `E` elements to a register, lane `l`, `g = l / 4`,
//! `t = l % 4`: a register of A holds row `g` of a block of 8 rows, elements `E t ..` of a block of `4 E` along `k`; blocks go down the
//! rows first. B is the same with columns for rows, blocks along `k` first. C: row `g`, columns `2 t` and the next, of blocks of 8 x 8,
//! down the rows first. [ISA 9.7.14.5]

use crate::scalar::exact;
use crate::scalar::fp8::Fp8;
use crate::scalar::half;
use crate::scalar::round::{F16, Format, Rounding, canonical, narrow};
use crate::units::fragment::WmmaShape;
use crate::units::tensor_core::{Accumulator, Arithmetic, Operand, Product, multiply_add};
use pulp::Arch;

/// Type of an element of A or B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Element {
    S8,
    U8,
    S4,
    U4,
    B1,
    F64,
    E4m3,
    E5m2,
}

impl Element {
    /// Bits in a fragment and in memory.
    pub fn bits(self) -> usize {
        match self {
            Element::S8 | Element::U8 | Element::E4m3 | Element::E5m2 => 8,
            Element::S4 | Element::U4 => 4,
            Element::B1 => 1,
            Element::F64 => 64,
        }
    }

    /// Elements of a register.
    pub fn per_register(self) -> usize {
        if self == Element::F64 { 1 } else { 32 / self.bits() }
    }

    fn integer(self, raw: u64) -> i64 {
        let signed = matches!(self, Element::S8 | Element::S4);
        let unused = 64 - self.bits();
        if signed { (raw << unused) as i64 >> unused } else { raw as i64 }
    }

    /// The format, of 8-bit floats.
    pub fn fp8(self) -> Option<Fp8> {
        match self {
            Element::E4m3 => Some(Fp8::E4m3),
            Element::E5m2 => Some(Fp8::E5m2),
            _ => None,
        }
    }
}

/// How products are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Integers; the sum wraps, or stops at the ends of s32 (`.satfinite`).
    Integer { saturate: bool },
    /// Ones of `a ^ b`.
    XorPopc,
    /// Ones of `a & b`.
    AndPopc,
    /// f64: fused multiply-adds along `k`.
    Double(Rounding),
    /// 8-bit floats.
    Float8(Accumulator),
}

/// A product: types of A and B, and the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileProduct {
    pub a: Element,
    pub b: Element,
    pub sum: Sum,
}

/// A register of a warp, of either width.
pub type Lanes = [u64; 32];

/// (row, k) of an element of a register of A.
pub fn a_place(m: usize, per_register: usize, register: usize, lane: usize, index: usize) -> (usize, usize) {
    let blocks = m / 8;
    (lane / 4 + 8 * (register % blocks), per_register * (lane % 4) + index + 4 * per_register * (register / blocks))
}

/// (k, column) of an element of a register of B.
pub fn b_place(k: usize, per_register: usize, register: usize, lane: usize, index: usize) -> (usize, usize) {
    let blocks = k / (4 * per_register);
    (per_register * (lane % 4) + index + 4 * per_register * (register % blocks), lane / 4 + 8 * (register / blocks))
}

/// (row, column) of a register of C with one element.
pub fn c_place(m: usize, register: usize, lane: usize) -> (usize, usize) {
    let (block, within) = (register / 2, register % 2);
    (8 * (block % (m / 8)) + lane / 4, 8 * (block / (m / 8)) + 2 * (lane % 4) + within)
}

impl TileProduct {
    /// D = A B + C: `d` holds C on entry. `arithmetic` is that of the 16-bit products which 8-bit floats are made of.
    pub fn multiply(self, arithmetic: Arithmetic, tile: WmmaShape, a: &[Lanes], b: &[Lanes], d: &mut [Lanes]) {
        let WmmaShape { m, n, k } = tile;
        let (mut a_tile, mut b_tile) = (vec![0; m * k], vec![0; k * n]);
        let mask = |element: Element| if element.bits() == 64 { u64::MAX } else { (1 << element.bits()) - 1 };
        for (list, element, is_a) in [(a, self.a, true), (b, self.b, false)] {
            let each = element.per_register();
            for (register, lanes) in list.iter().enumerate() {
                for (lane, word) in lanes.iter().enumerate() {
                    for index in 0..each {
                        let value = word >> (index * element.bits() % 64) & mask(element);
                        match is_a {
                            true => {
                                let (row, k_at) = a_place(m, each, register, lane, index);
                                a_tile[row * k + k_at] = value;
                            }
                            false => {
                                let (k_at, column) = b_place(k, each, register, lane, index);
                                b_tile[k_at * n + column] = value;
                            }
                        }
                    }
                }
            }
        }
        // Where each element of C lies: (register, lane, shift).
        let halves = self.sum == Sum::Float8(Accumulator::F16);
        let mut c_tile = vec![0u64; m * n];
        let places = |register: usize, lane: usize| -> [Option<(usize, u32)>; 2] {
            if halves {
                // Pairs: two columns of a row, rows 8 apart in the next register.
                let at = (lane / 4 + 8 * (register % (m / 8))) * n + 8 * (register / (m / 8)) + 2 * (lane % 4);
                return [Some((at, 0)), Some((at + 1, 16))];
            }
            let (row, column) = c_place(m, register, lane);
            [Some((row * n + column, 0)), None]
        };
        for (register, lanes) in d.iter().enumerate() {
            for (lane, word) in lanes.iter().enumerate() {
                for (at, shift) in places(register, lane).into_iter().flatten() {
                    c_tile[at] = if halves { word >> shift & 0xffff } else { *word };
                }
            }
        }
        match self.sum {
            Sum::Float8(accumulator) => self.float8(arithmetic, accumulator, tile, (&a_tile, &b_tile), &mut c_tile),
            _ => {
                for row in 0..m {
                    for column in 0..n {
                        let pairs = (0..k).map(|k_at| (a_tile[row * k + k_at], b_tile[k_at * n + column]));
                        let c = &mut c_tile[row * n + column];
                        *c = self.element(*c, pairs);
                    }
                }
            }
        }
        for (register, lanes) in d.iter_mut().enumerate() {
            for (lane, word) in lanes.iter_mut().enumerate() {
                let parts = places(register, lane).into_iter().flatten();
                *word = parts.fold(0, |all, (at, shift)| all | c_tile[at] << shift);
            }
        }
    }

    /// One element of D, of integers and f64.
    pub fn element(self, c: u64, pairs: impl Iterator<Item = (u64, u64)>) -> u64 {
        match self.sum {
            Sum::Double(mode) => {
                pairs.fold(c, |sum, (x, y)| exact::fma(f64::from_bits(x), f64::from_bits(y), f64::from_bits(sum), mode))
            }
            Sum::XorPopc => pairs.fold(c, |sum, (x, y)| sum + u64::from((x ^ y).count_ones())) & 0xffff_ffff,
            Sum::AndPopc => pairs.fold(c, |sum, (x, y)| sum + u64::from((x & y).count_ones())) & 0xffff_ffff,
            _ => {
                let sum = pairs.fold(i64::from(c as i32), |sum, (x, y)| sum + self.a.integer(x) * self.b.integer(y));
                let saturate = self.sum == Sum::Integer { saturate: true };
                let sum = if saturate { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { sum };
                u64::from(sum as u32)
            }
        }
    }

    /// `mma` of 8-bit floats on sm_90, which has no instruction for it: as ptxas builds it, elements 0 and 1 of every four along `k` as
    /// f16 in one product from zero, 2 and 3 in a second one on top, then an ordinary addition of C.
    fn float8(
        self,
        arithmetic: Arithmetic,
        accumulator: Accumulator,
        WmmaShape { m, n, k }: WmmaShape,
        (a, b): (&[u64], &[u64]),
        c: &mut [u64],
    ) {
        let half = |element: Element, code: u64| {
            element.fp8().map_or(0, |fp8| narrow(f64::from(fp8.value(code as u32)), F16, Rounding::Nearest))
        };
        let product = Product { operand: Operand::F16, accumulator, arithmetic, k: k / 2 };
        let mut d = vec![0u32; m * n];
        for step in 0..2 {
            let chosen: Vec<usize> = (0..k).filter(|at| at % 4 / 2 == step).collect();
            let a_step: Vec<u32> =
                (0..m).flat_map(|row| chosen.iter().map(move |at| half(self.a, a[row * k + at]))).collect();
            let b_step: Vec<u32> =
                chosen.iter().flat_map(|at| (0..n).map(move |column| half(self.b, b[at * n + column]))).collect();
            multiply_add(Arch::new(), product, &a_step, &b_step, &mut d, n);
        }
        for (c, sum) in c.iter_mut().zip(d) {
            *c = match accumulator {
                Accumulator::F32 => u64::from(canonical(f32::from_bits(*c as u32) + f32::from_bits(sum))),
                Accumulator::F16 => u64::from(half::add(false, false, *c as u32, sum)),
            };
        }
    }
}

/// A of a warp of `wgmma` in registers, bytes: `k / 8` registers to 16 rows of `k`.
pub fn a_8bit(registers: &[&[u32; 32]], k: usize, tile: &mut [u32]) {
    assert!(registers.len() == k / 8 && tile.len() == 16 * k);
    for (register, lanes) in registers.iter().enumerate() {
        for (lane, word) in lanes.iter().enumerate() {
            for (index, byte) in word.to_le_bytes().into_iter().enumerate() {
                let (row, k_at) = a_place(16, 4, register, lane, index);
                tile[row * k + k_at] = u32::from(byte);
            }
        }
    }
}

impl TileProduct {
    /// The product of a `wgmma` on tiles of bytes: rows of `k`, rows of `n`; `d` holds C on entry.
    pub fn wgmma(self, k: usize, (a, b): (&[u32], &[u32]), d: &mut [u32], n: usize) {
        let mut pairs = vec![(0, 0); k];
        for (a_row, d_row) in a.chunks_exact(k).zip(d.chunks_exact_mut(n)) {
            for (column, d) in d_row.iter_mut().enumerate() {
                for (at, pair) in pairs.iter_mut().enumerate() {
                    *pair = (a_row[at], b[at * n + column]);
                }
                *d = match (self.sum, self.a.fp8(), self.b.fp8()) {
                    (Sum::Float8(accumulator), Some(x), Some(y)) => wgmma_float8([x, y], accumulator, *d, &pairs),
                    _ => {
                        let wide = pairs.iter().map(|&(x, y)| (u64::from(x), u64::from(y)));
                        self.element(u64::from(*d), wide) as u32
                    }
                };
            }
        }
    }
}

/// Fraction bits that `wgmma` keeps of 8-bit floats, in its sums and in its f32 results.
const FP8_FRACTION: i32 = 13;
/// What `wgmma` gives in f32 registers: the upper 22 bits of an f32.
const E8M13: Format = Format { fraction: 13, exponent: 8, nan: 0x7fff_ffff >> 10 };

/// One element of a `wgmma` of 8-bit floats: all 32 products and C aligned to the largest exponent, cut at 13 fraction bits, added exactly;
/// the result is cut to 13 fraction bits (f16: rounded to nearest). (Hopper, by MMA-Sim, arXiv 2511.10909.)
pub fn wgmma_float8([a, b]: [Fp8; 2], accumulator: Accumulator, c: u32, pairs: &[(u32, u32)]) -> u32 {
    let c_value = match accumulator {
        Accumulator::F32 => f32::from_bits(c),
        Accumulator::F16 => crate::scalar::round::f16_value(c),
    };
    let special = pairs.iter().fold(0.0, |sum: f32, &(x, y)| {
        let (x, y) = (a.value(x), b.value(y));
        if x.is_finite() && y.is_finite() { sum } else { sum + x * y }
    });
    let special = if c_value.is_finite() { special } else { special + c_value };
    let finish = |x: f64| match accumulator {
        Accumulator::F32 if x.is_nan() => 0x7fff_ffff,
        Accumulator::F32 => narrow(x, E8M13, Rounding::Zero) << 10,
        Accumulator::F16 => narrow(x, F16, Rounding::Nearest),
    };
    if special != 0.0 {
        return finish(f64::from(special));
    }
    // (significand, exponent of its last bit, exponent of the leading place)
    let part = |kind: Fp8, code: u32| {
        let (fraction, smallest, _) = kind.format();
        let field = (code >> fraction & ((1 << (7 - fraction)) - 1)) as i32;
        let hidden = i64::from(field != 0) << fraction;
        let significand = i64::from(code & ((1 << fraction) - 1)) | hidden;
        let exponent = smallest + (field - 1).max(0);
        (if code & 0x80 != 0 { -significand } else { significand }, exponent, fraction as i32)
    };
    let c_part = {
        let (fraction, bias, ones) = match accumulator {
            Accumulator::F32 => (23, 127, 0xff),
            Accumulator::F16 => (10, 15, 0x1f),
        };
        let field = (c >> fraction & ones) as i32;
        let significand = i64::from(c & ((1 << fraction) - 1)) | i64::from(field != 0) << fraction;
        let negative = c_value.is_sign_negative();
        (if negative { -significand } else { significand }, field.max(1) - bias, fraction)
    };
    let products = pairs.iter().map(|&(x, y)| {
        let ((x, x_exponent, x_fraction), (y, y_exponent, y_fraction)) = (part(a, x), part(b, y));
        (x * y, x_exponent + y_exponent, x_fraction + y_fraction)
    });
    let terms: Vec<(i64, i32, i32)> = products.chain([c_part]).collect();
    let largest = terms.iter().map(|term| term.1).max().unwrap_or(0);
    let aligned = terms.iter().map(|&(significand, exponent, fraction)| {
        let shift = exponent - fraction - largest + FP8_FRACTION;
        let magnitude = significand.unsigned_abs();
        let cut = if shift >= 0 { magnitude << shift } else { magnitude.checked_shr(-shift as u32).unwrap_or(0) };
        significand.signum() * cut as i64
    });
    finish(aligned.sum::<i64>() as f64 * 2f64.powi(largest - FP8_FRACTION))
}
