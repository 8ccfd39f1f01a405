//! What a tensor core computes: `D = A B + C` on tiles, bit for bit as the card does, or fast in plain f32. Knows numbers only.
//!
//! A tensor core adds a few products and the accumulator in one step, without rounding in between: every term is aligned to the
//! largest exponent among them, truncated toward zero there, and the integers are added; the sum is rounded toward zero to f32 (to
//! nearest even for an f16 accumulator). How many products a step takes and how many fraction bits it keeps depends on the generation
//! ([`Generation`]). A zero operand has the smallest exponent of its type and takes part in the alignment; subnormal operands are
//! exact. The method is that of Fasi et al. (PeerJ CS 330) and MMA-Sim (arXiv 2511.10909); Hopper's numbers are checked against a card
//! by `tests/units/conformance.rs`.

use crate::scalar::round::{F16, F32, Rounding, narrow};
use pulp::{Arch, Simd, WithSimd};

/// Columns that are computed side by side.
const LANES: usize = 8;
/// The deepest tile of one instruction, in elements along `k`.
pub const K_MAX: usize = 16;
/// Rows of the tallest tile of one instruction.
const M_MAX: usize = 64;

/// The type of the elements of `A` and `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Bf16,
    F16,
    /// f32 whose low 13 bits are ignored.
    Tf32,
}

/// The type of `C` and `D`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulator {
    F32,
    F16,
}

/// Whose arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// 8 products a step for 16-bit operands, 4 for tf32; 24 fraction bits.
    Ampere,
    /// All products of the instruction in one step (at most 16 of 16 bits, 8 of tf32); 25 fraction bits.
    Hopper,
}

/// How products are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    Exact(Generation),
    /// Fused multiply-adds in f32, along `k` in order: some ten times as fast; differs in the last bits.
    Fast,
}

/// What an instruction multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub operand: Operand,
    pub accumulator: Accumulator,
    pub arithmetic: Arithmetic,
    /// Elements along `k`: 4, 8 or 16.
    pub k: usize,
}

impl Operand {
    /// (fraction bits of the type, exponent of 1 as stored, largest stored exponent)
    const fn format(self) -> (u32, i32, u32) {
        match self {
            Operand::Bf16 => (7, 127, 255),
            Operand::F16 => (10, 15, 31),
            Operand::Tf32 => (10, 127, 255),
        }
    }

    /// The stored bits without the parts that the type does not have, right aligned.
    #[inline(always)]
    const fn stored(self, raw: u32) -> u32 {
        match self {
            Operand::Bf16 | Operand::F16 => raw & 0xffff,
            Operand::Tf32 => raw >> 13,
        }
    }

    /// Value of an element; exact.
    #[inline(always)]
    pub fn value(self, raw: u32) -> f32 {
        match self {
            Operand::Bf16 => f32::from_bits(raw << 16),
            Operand::F16 => f16_to_f32(raw as u16),
            Operand::Tf32 => f32::from_bits(raw & !0x1fff),
        }
    }
}

/// Exact; a NaN keeps its payload. Branch-free, so that loops over it become vector code.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    // As if the exponent field were f32's, then scaled by the difference of the biases: exact, subnormals included.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits((bits & 0x8000) << 16 | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

/// `N` operands, taken apart: value = ±significand · 2^(exponent - fraction bits). Not finite ones count as zero here.
struct Parts<const N: usize> {
    significand: [u32; N],
    exponent: [i32; N],
    /// All ones for a negative one.
    sign: [i32; N],
}

impl<const N: usize> Parts<N> {
    const ZERO: Self = Parts { significand: [0; N], exponent: [0; N], sign: [0; N] };

    /// Takes `raw` apart, significands shifted left; true if all are finite.
    #[inline(always)]
    fn fill(&mut self, operand: Operand, raw: &[u32], shift: u32) -> bool {
        let (fraction_bits, bias, special) = operand.format();
        let sign_bit = fraction_bits + special.trailing_ones();
        let parts = self.significand.iter_mut().zip(&mut self.exponent).zip(&mut self.sign);
        let mut specials = 0u32;
        for (((significand, exponent), sign), raw) in parts.zip(raw) {
            let stored = operand.stored(*raw);
            let field = (stored >> fraction_bits) & special;
            let hidden = u32::from(field != 0) << fraction_bits;
            let is_special = u32::from(field == special);
            specials |= is_special;
            *significand = (((stored & ((1 << fraction_bits) - 1)) | hidden) << shift) & is_special.wrapping_sub(1);
            *exponent = field.max(1) as i32 - bias;
            *sign = -(((stored >> sign_bit) & 1) as i32);
        }
        specials == 0
    }

    #[inline(always)]
    fn at<const STEP: usize>(&self, at: usize) -> Step<'_, STEP> {
        let steps = "STEP elements";
        (
            self.significand[at..at + STEP].try_into().expect(steps),
            self.exponent[at..at + STEP].try_into().expect(steps),
            self.sign[at..at + STEP].try_into().expect(steps),
        )
    }
}

/// `d = a b + d` for a tile: `a` holds rows of `k` elements, `b` rows of `n` (so `b[k][n]`), `d` rows of `n`; one element per word, in
/// the low bits. `d` holds C on entry, D on return, as f32 bits or f16 bits. At most 64 rows, a multiple of 8; `k` is 4, 8 or 16; `n` a multiple of 8.
pub fn multiply_add(arch: Arch, product: Product, a: &[u32], b: &[u32], d: &mut [u32], n: usize) {
    let k = product.k;
    assert!([4, 8, 16].contains(&k) && n.is_multiple_of(LANES) && b.len() == k * n, "b is k rows of n");
    let rows = a.len() / k;
    assert!(
        rows <= M_MAX && rows.is_multiple_of(8) && a.len() == rows * k && d.len() == rows * n,
        "a is rows of k, d rows of n"
    );
    arch.dispatch(Multiply { product, a, b, d, n });
}

/// The work of [`multiply_add`], inlined whole into code for the widest vectors of this machine.
struct Multiply<'a> {
    product: Product,
    a: &'a [u32],
    b: &'a [u32],
    d: &'a mut [u32],
    n: usize,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.product.operand {
            Operand::Bf16 => self.of_operand(simd, Operand::Bf16),
            Operand::F16 => self.of_operand(simd, Operand::F16),
            Operand::Tf32 => self.of_operand(simd, Operand::Tf32),
        }
    }
}

impl Multiply<'_> {
    /// `operand` is a constant where this is inlined, and so are all shifts and masks that follow from it.
    #[inline(always)]
    fn of_operand<S: Simd>(self, simd: S, operand: Operand) {
        let small = self.a.len() <= 16 * K_MAX;
        match (self.product.k, small) {
            (16, true) => self.of_size::<S, 16, { 16 * 16 }>(simd, operand),
            (16, false) => self.of_size::<S, 16, { M_MAX * 16 }>(simd, operand),
            (8, true) => self.of_size::<S, 8, { 16 * 8 }>(simd, operand),
            (8, false) => self.of_size::<S, 8, { M_MAX * 8 }>(simd, operand),
            _ => self.of_size::<S, 4, { 16 * 4 }>(simd, operand),
        }
    }

    /// `A` is the largest number of elements of `a`.
    #[inline(always)]
    fn of_size<S: Simd, const K: usize, const A: usize>(self, simd: S, operand: Operand) {
        let Multiply { product, a, b, d, n } = self;
        let product = Product { operand, k: K, ..product };
        match product.arithmetic {
            Arithmetic::Fast => fast::<S, K, A>(simd, product, a, b, d, n),
            Arithmetic::Exact(Generation::Hopper) => exact::<S, 25, K, K, A>(simd, product, a, b, d, n),
            Arithmetic::Exact(Generation::Ampere) if K == 4 || operand == Operand::Tf32 => {
                exact::<S, 24, K, 4, A>(simd, product, a, b, d, n);
            }
            Arithmetic::Exact(Generation::Ampere) => exact::<S, 24, K, 8, A>(simd, product, a, b, d, n),
        }
    }
}

#[inline(always)]
fn fast<S: Simd, const K: usize, const A: usize>(
    simd: S,
    product: Product,
    a: &[u32],
    b: &[u32],
    d: &mut [u32],
    n: usize,
) {
    let mut a_values = [0f32; A];
    for (to, from) in a_values.iter_mut().zip(a) {
        *to = product.operand.value(*from);
    }
    for column in (0..n).step_by(LANES) {
        let mut b_values = [[0f32; LANES]; K];
        for (to, from) in b_values.iter_mut().zip(b.chunks_exact(n)) {
            for j in 0..LANES {
                to[j] = product.operand.value(from[column + j]);
            }
        }
        if S::F32_LANES == LANES && product.accumulator == Accumulator::F32 {
            fast_rows_of_vectors(simd, &a_values, &b_values, d, n, column);
            continue;
        }
        for (a_row, d_row) in a_values.chunks_exact(K).zip(d.chunks_exact_mut(n)) {
            for j in 0..LANES {
                let c = match product.accumulator {
                    Accumulator::F32 => f32::from_bits(d_row[column + j]),
                    Accumulator::F16 => f16_to_f32(d_row[column + j] as u16),
                };
                let sum = a_row.iter().zip(&b_values).fold(c, |sum, (x, b_row)| x.mul_add(b_row[j], sum));
                d_row[column + j] = match product.accumulator {
                    Accumulator::F32 if sum.is_nan() => CANONICAL_NAN,
                    Accumulator::F32 => sum.to_bits(),
                    Accumulator::F16 => narrow(f64::from(sum), F16, Rounding::Nearest),
                };
            }
        }
    }
}

/// All rows of [`LANES`] columns.
#[inline(always)]
fn fast_rows_of_vectors<S: Simd, const K: usize, const A: usize>(
    simd: S,
    a: &[f32; A],
    b: &[[f32; LANES]; K],
    d: &mut [u32],
    n: usize,
    column: usize,
) {
    let (a_rows, _) = a.as_chunks::<K>();
    let mut d_blocks = d.chunks_exact_mut(ROWS * n);
    for (a_rows, d_rows) in a_rows.as_chunks::<ROWS>().0.iter().zip(&mut d_blocks) {
        fast_block(simd, a_rows, b, d_rows, n, column);
    }
}

/// Rows that are computed together, so that the chains of fused multiply-adds overlap.
const ROWS: usize = 8;

#[inline(always)]
fn fast_block<S: Simd, const K: usize>(
    simd: S,
    a: &[[f32; K]; ROWS],
    b: &[[f32; LANES]; K],
    d: &mut [u32],
    n: usize,
    column: usize,
) {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = a;
    let row = |row: usize| row * n + column;
    let (mut s0, mut s1) = (load(simd, d, row(0)), load(simd, d, row(1)));
    let (mut s2, mut s3) = (load(simd, d, row(2)), load(simd, d, row(3)));
    let (mut s4, mut s5) = (load(simd, d, row(4)), load(simd, d, row(5)));
    let (mut s6, mut s7) = (load(simd, d, row(6)), load(simd, d, row(7)));
    for i in 0..K {
        let b_row = S::as_simd_f32s(&b[i]).0[0];
        s0 = simd.mul_add_f32s(simd.splat_f32s(a0[i]), b_row, s0);
        s1 = simd.mul_add_f32s(simd.splat_f32s(a1[i]), b_row, s1);
        s2 = simd.mul_add_f32s(simd.splat_f32s(a2[i]), b_row, s2);
        s3 = simd.mul_add_f32s(simd.splat_f32s(a3[i]), b_row, s3);
        s4 = simd.mul_add_f32s(simd.splat_f32s(a4[i]), b_row, s4);
        s5 = simd.mul_add_f32s(simd.splat_f32s(a5[i]), b_row, s5);
        s6 = simd.mul_add_f32s(simd.splat_f32s(a6[i]), b_row, s6);
        s7 = simd.mul_add_f32s(simd.splat_f32s(a7[i]), b_row, s7);
    }
    store(simd, d, row(0), s0);
    store(simd, d, row(1), s1);
    store(simd, d, row(2), s2);
    store(simd, d, row(3), s3);
    store(simd, d, row(4), s4);
    store(simd, d, row(5), s5);
    store(simd, d, row(6), s6);
    store(simd, d, row(7), s7);
}

#[inline(always)]
fn load<S: Simd>(simd: S, d: &[u32], at: usize) -> S::f32s {
    simd.transmute_f32s_u32s(S::as_simd_u32s(&d[at..at + LANES]).0[0])
}

#[inline(always)]
fn store<S: Simd>(simd: S, d: &mut [u32], at: usize, sum: S::f32s) {
    let nan = simd.splat_u32s(CANONICAL_NAN);
    let value = simd.select_u32s(simd.equal_f32s(sum, sum), simd.transmute_u32s_f32s(sum), nan);
    S::as_mut_simd_u32s(&mut d[at..at + LANES]).0[0] = value;
}

/// What every NaN result looks like.
pub(super) const CANONICAL_NAN: u32 = 0x7fff_ffff;

/// `F` fraction bits are kept when terms are aligned, `STEP` products are added at a time.
#[inline(always)]
fn exact<S: Simd, const F: u32, const K: usize, const STEP: usize, const A: usize>(
    simd: S,
    product: Product,
    a: &[u32],
    b: &[u32],
    d: &mut [u32],
    n: usize,
) {
    let (fraction_bits, ..) = product.operand.format();
    let mut a_parts = Parts::<A>::ZERO;
    let a_finite = a_parts.fill(product.operand, a, F - 2 * fraction_bits);
    for column in (0..n).step_by(LANES) {
        let mut b_parts = [Parts::<LANES>::ZERO; K];
        let mut finite = a_finite;
        for (parts, raw) in b_parts.iter_mut().zip(b.chunks_exact(n)) {
            finite &= parts.fill(product.operand, &raw[column..column + LANES], 0);
        }
        for (row, d_row) in d.chunks_exact_mut(n).enumerate() {
            let d_row: &mut [u32; LANES] = (&mut d_row[column..column + LANES]).try_into().expect("LANES columns");
            let c = *d_row;
            let c_finite = c.iter().fold(true, |all, c| all & accumulator_is_finite(product.accumulator, *c));
            for from in (0..K).step_by(STEP) {
                let b_step: &[Parts<LANES>; STEP] = b_parts[from..from + STEP].try_into().expect("STEP rows");
                let a_step = a_parts.at::<STEP>(row * K + from);
                let c = take_apart::<F>(product.accumulator, d_row);
                let (sums, largest) =
                    if S::U32_LANES == LANES { add_vectors(simd, a_step, b_step, c) } else { add(a_step, b_step, c) };
                let before = *d_row;
                *d_row = round::<F>(product.accumulator, &sums, &largest);
                for j in 0..LANES {
                    // An earlier step may have overflowed. (An infinite or NaN C is seen to below.)
                    if from > 0 && !accumulator_is_finite(product.accumulator, before[j]) {
                        d_row[j] = before[j];
                    }
                }
            }
            if !(finite && c_finite) {
                for j in 0..LANES {
                    d_row[j] = special(product, &a[row * K..][..K], b, n, column + j, c[j]).unwrap_or(d_row[j]);
                }
            }
        }
    }
}

#[inline(always)]
fn accumulator_is_finite(accumulator: Accumulator, c: u32) -> bool {
    match accumulator {
        Accumulator::F32 => c & 0x7f80_0000 != 0x7f80_0000,
        Accumulator::F16 => c & 0x7c00 != 0x7c00,
    }
}

/// Accumulators as terms of the sum, their significands at `F` fraction bits.
#[inline(always)]
fn take_apart<const F: u32>(accumulator: Accumulator, d: &[u32; LANES]) -> Parts<LANES> {
    let (fraction_bits, bias, special) = match accumulator {
        Accumulator::F32 => (23, 127, 255),
        Accumulator::F16 => (10, 15, 31),
    };
    let mut parts = Parts::ZERO;
    for j in 0..LANES {
        let field = (d[j] >> fraction_bits) & special;
        let hidden = u32::from(field != 0) << fraction_bits;
        let finite = u32::from(field == special).wrapping_sub(1);
        parts.significand[j] = (((d[j] & ((1 << fraction_bits) - 1)) | hidden) << (F - fraction_bits)) & finite;
        parts.exponent[j] = (field & finite).max(1) as i32 - bias;
        parts.sign[j] = -(((d[j] >> (fraction_bits + special.trailing_ones())) & 1) as i32);
    }
    parts
}

/// `STEP` elements of a row of A.
type Step<'a, const STEP: usize> = (&'a [u32; STEP], &'a [i32; STEP], &'a [i32; STEP]);
/// A sum in two words (each term is below 2^(F + 2), so that nine fit in one).
type Sums = [[i32; LANES]; 2];

/// One step of a row of [`LANES`] outputs: the products of `a` with the rows of `b`, and `c`, aligned to their largest exponent, which
/// is returned with the sum.
#[inline(always)]
fn add<const STEP: usize>(a: Step<STEP>, b: &[Parts<LANES>; STEP], c: Parts<LANES>) -> (Sums, [i32; LANES]) {
    let (a_significand, a_exponent, a_sign) = a;
    let mut largest = c.exponent;
    for i in 0..STEP {
        for j in 0..LANES {
            largest[j] = largest[j].max(a_exponent[i] + b[i].exponent[j]);
        }
    }
    let mut sums = [[0i32; LANES]; 2];
    for j in 0..LANES {
        let aligned = (c.significand[j] >> (largest[j] - c.exponent[j]).min(31)) as i32;
        sums[0][j] = (aligned ^ c.sign[j]) - c.sign[j];
    }
    for i in 0..STEP {
        for j in 0..LANES {
            let magnitude = a_significand[i].wrapping_mul(b[i].significand[j]);
            let distance = largest[j] - (a_exponent[i] + b[i].exponent[j]);
            let aligned = (magnitude >> distance.min(31)) as i32;
            let sign = a_sign[i] ^ b[i].sign[j];
            sums[i / 8][j] += (aligned ^ sign) - sign;
        }
    }
    (sums, largest)
}

/// [`add`] with vectors of [`LANES`] words. (The compiler finds them in the loops above only in part.)
#[inline(always)]
fn add_vectors<S: Simd, const STEP: usize>(
    simd: S,
    a: Step<STEP>,
    b: &[Parts<LANES>; STEP],
    c: Parts<LANES>,
) -> (Sums, [i32; LANES]) {
    let mut largest = integers::<S>(&c.exponent);
    for i in 0..STEP {
        largest = simd.max_i32s(largest, exponent(simd, a, &b[i], i));
    }
    let c_exponent = integers::<S>(&c.exponent);
    let mut low = term(simd, words::<S>(&c.significand), c_exponent, largest, integers::<S>(&c.sign));
    for i in 0..STEP.min(8) {
        low = simd.add_i32s(low, product_term(simd, a, &b[i], i, largest));
    }
    let mut high = simd.splat_i32s(0);
    for i in 8..STEP {
        high = simd.add_i32s(high, product_term(simd, a, &b[i], i, largest));
    }
    ([array::<S>(low), array::<S>(high)], array::<S>(largest))
}

#[inline(always)]
fn words<S: Simd>(x: &[u32; LANES]) -> S::u32s {
    S::as_simd_u32s(x).0[0]
}

#[inline(always)]
fn integers<S: Simd>(x: &[i32; LANES]) -> S::i32s {
    S::as_simd_i32s(x).0[0]
}

#[inline(always)]
fn array<S: Simd>(x: S::i32s) -> [i32; LANES] {
    let mut out = [0; LANES];
    S::as_mut_simd_i32s(&mut out).0[0] = x;
    out
}

#[inline(always)]
fn exponent<S: Simd, const STEP: usize>(simd: S, a: Step<STEP>, b: &Parts<LANES>, i: usize) -> S::i32s {
    simd.add_i32s(simd.splat_i32s(a.1[i]), integers::<S>(&b.exponent))
}

/// The aligned product of element `i` of `a` with a row of B.
#[inline(always)]
fn product_term<S: Simd, const STEP: usize>(
    simd: S,
    a: Step<STEP>,
    b: &Parts<LANES>,
    i: usize,
    largest: S::i32s,
) -> S::i32s {
    let magnitude = simd.mul_u32s(simd.splat_u32s(a.0[i]), words::<S>(&b.significand));
    let sign = simd.xor_i32s(simd.splat_i32s(a.2[i]), integers::<S>(&b.sign));
    term(simd, magnitude, exponent(simd, a, b, i), largest, sign)
}

#[inline(always)]
fn term<S: Simd>(simd: S, magnitude: S::u32s, exponent: S::i32s, largest: S::i32s, sign: S::i32s) -> S::i32s {
    let distance = simd.min_i32s(simd.sub_i32s(largest, exponent), simd.splat_i32s(31));
    let aligned = simd.wrapping_dyn_shr_u32s(magnitude, simd.transmute_u32s_i32s(distance));
    simd.sub_i32s(simd.xor_i32s(simd.transmute_i32s_u32s(aligned), sign), sign)
}

/// The sum of `sums` · 2^(exponent - F), rounded.
#[inline(always)]
fn round<const F: u32>(accumulator: Accumulator, sums: &Sums, exponent: &[i32; LANES]) -> [u32; LANES] {
    let mut d = [0u32; LANES];
    let mut exact = [0f64; LANES];
    let mut tiny = false;
    for j in 0..LANES {
        // Both factors are exact, and so is their product: 33 bits, and an exponent far inside f64's.
        let scale = f64::from_bits(((exponent[j] - F as i32 + 1023) as u64) << 52);
        exact[j] = (f64::from(sums[0][j]) + f64::from(sums[1][j])) * scale;
        tiny |= exact[j].abs() < f64::from(f32::MIN_POSITIVE) && exact[j] != 0.0;
    }
    match accumulator {
        Accumulator::F16 => {
            for j in 0..LANES {
                d[j] = narrow(exact[j], F16, Rounding::Nearest);
            }
        }
        Accumulator::F32 if tiny => {
            for j in 0..LANES {
                d[j] = narrow(exact[j], F32, Rounding::Zero);
            }
        }
        Accumulator::F32 => {
            for j in 0..LANES {
                // With the 29 bits gone that f32 does not have, the conversion is exact, or overflows to infinity.
                d[j] = (f64::from_bits(exact[j].to_bits() & !0x1fff_ffff) as f32).to_bits();
            }
        }
    }
    d
}

/// The result where an operand is infinite or NaN; None where all are finite.
#[cold]
fn special(product: Product, a: &[u32], b: &[u32], n: usize, column: usize, c: u32) -> Option<u32> {
    let c = match product.accumulator {
        Accumulator::F32 => f32::from_bits(c),
        Accumulator::F16 => f16_to_f32(c as u16),
    };
    let products = a.iter().enumerate().map(|(k, x)| {
        let (x, y) = (product.operand.value(*x), product.operand.value(b[k * n + column]));
        if x.is_finite() && y.is_finite() { 0.0 } else { x * y }
    });
    let sum = products.fold(if c.is_finite() { 0.0 } else { c }, |sum, term| sum + term);
    match product.accumulator {
        _ if sum.is_finite() => None,
        Accumulator::F32 if sum.is_nan() => Some(CANONICAL_NAN),
        Accumulator::F32 => Some(sum.to_bits()),
        Accumulator::F16 => Some(narrow(f64::from(sum), F16, Rounding::Nearest)),
    }
}
