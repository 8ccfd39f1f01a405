//! `mma.sync.m16n8k16` of 16-bit operands with `f32` accumulators in exact mode, from registers to registers, for operands
//! that are zero or of ordinary size.
//!
//! The product of two such operands has at most 22 bits: `f32` holds it exactly, and its conversion to an integer, after it
//! was scaled so that the last bit to be kept counts one, truncates it as the tensor core does ([`super::tensor_core`]). That
//! is half the instructions of shifted integers. Ordinary is 2^-45 to 2^46: no product overflows or loses bits.

use pulp::Arch;

use super::fragment::Register;
use super::mma::Sums;
use super::tensor_core::{Generation, Operand};

/// `d = a b + c`; false, and nothing written, where operands are not ordinary, C is not finite, or this machine has no
/// vectors for it.
///
/// # Safety
/// As [`Sums`] says.
pub unsafe fn m16n8k16(
    arch: Arch,
    (operand, generation): (Operand, Generation),
    a: [&Register; 4],
    b: [&Register; 2],
    sums: Sums,
) -> bool {
    match arch {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `V3` exists only where AVX2 and FMA were found; the caller vouches for `sums`.
        Arch::V3(_) => unsafe {
            match (operand, generation) {
                (Operand::Bf16, Generation::Hopper) => avx2::multiply::<25, 1>(a, b, sums, Operand::Bf16),
                (Operand::Bf16, Generation::Ampere) => avx2::multiply::<24, 2>(a, b, sums, Operand::Bf16),
                (Operand::F16, Generation::Hopper) => avx2::multiply::<25, 1>(a, b, sums, Operand::F16),
                (Operand::F16, Generation::Ampere) => avx2::multiply::<24, 2>(a, b, sums, Operand::F16),
                (Operand::Tf32, _) => false,
            }
        },
        _ => false,
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;
    use std::mem::MaybeUninit;

    use super::super::fast_mma::avx2::{halves, load, transposed};
    use super::{Operand, Register, Sums};
    use crate::scalar::round::{F32, Rounding, narrow};

    /// Magnitudes as bits of `f32`: the least and the greatest that are ordinary.
    const ORDINARY: [i32; 2] = [(127 - 45) << 23, ((127 + 46) << 23) - 1];
    const INFINITY: i32 = 0x7f80_0000;

    /// Operands taken apart. Along `k` the elements come by halves of eight, and of these the even ones first.
    #[repr(align(32))]
    struct Tile {
        /// Rows of A.
        a: [[f32; 16]; 16],
        /// Rows of B; of eight columns the even ones come first.
        b: [[f32; 8]; 16],
        /// Exponents of a row of A: the even elements of both halves, then the odd ones.
        a_exponents: [[i16; 16]; 16],
        /// Exponents of two rows of B: an even one and the odd one after it.
        b_exponents: [[i16; 16]; 8],
    }

    /// The greatest magnitude of some values, and the least that is not zero, minus one.
    struct Range {
        most: __m256i,
        least: __m256i,
    }

    impl Range {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn take(&mut self, value: __m256) {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(i32::MAX));
            self.most = _mm256_max_epu32(self.most, magnitude);
            // Zero becomes the greatest of all.
            self.least = _mm256_min_epu32(self.least, _mm256_sub_epi32(magnitude, _mm256_set1_epi32(1)));
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn is_inside(&self, [least, most]: [i32; 2]) -> bool {
            let (least, most) = (_mm256_set1_epi32(least - 1), _mm256_set1_epi32(most));
            let below = _mm256_cmpeq_epi32(_mm256_max_epu32(self.most, most), most);
            let above = _mm256_cmpeq_epi32(_mm256_min_epu32(self.least, least), least);
            _mm256_movemask_epi8(_mm256_and_si256(below, above)) == -1
        }
    }

    /// Exponents, biased by 127: never below that of the type's subnormal numbers, which zero has, too.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn exponents(operand: Operand, value: __m256) -> __m256i {
        let least = if operand == Operand::F16 { 127 - 14 } else { 1 };
        let field = _mm256_srli_epi32::<24>(_mm256_slli_epi32::<1>(_mm256_castps_si256(value)));
        _mm256_max_epi32(field, _mm256_set1_epi32(least))
    }

    /// Takes the operands apart; false if they are not ordinary.
    ///
    /// # Safety
    /// `tile` can be written. All of it has been when this returns.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn prepare(operand: Operand, a: [&Register; 4], b: [&Register; 2], tile: *mut Tile) -> bool {
        let mut range = Range { most: _mm256_setzero_si256(), least: _mm256_set1_epi32(-1) };
        for eight in 0..2 {
            for p in 0..4 {
                let row = 8 * eight + 2 * p;
                let mut both = [[_mm256_setzero_ps(); 2]; 2];
                for half in 0..2 {
                    let [even, odd] = halves(operand, load(a[eight + 2 * half], p));
                    range.take(even);
                    range.take(odd);
                    let upper = _mm256_permute2f128_ps::<0x20>(even, odd);
                    let lower = _mm256_permute2f128_ps::<0x31>(even, odd);
                    both[half] = [upper, lower];
                    // SAFETY: writes half of two rows of the tile.
                    unsafe {
                        _mm256_storeu_ps((&raw mut (*tile).a[row][8 * half]).cast(), upper);
                        _mm256_storeu_ps((&raw mut (*tile).a[row + 1][8 * half]).cast(), lower);
                    }
                }
                for i in 0..2 {
                    let [first, second] = [exponents(operand, both[0][i]), exponents(operand, both[1][i])];
                    // SAFETY: writes a row of the tile.
                    unsafe {
                        let to = &raw mut (*tile).a_exponents[row + i];
                        _mm256_storeu_si256(to.cast(), _mm256_packus_epi32(first, second));
                    }
                }
            }
        }
        for half in 0..2 {
            let words = transposed(b[half]);
            for t in 0..4 {
                let [even, odd] = halves(operand, words[t]);
                range.take(even);
                range.take(odd);
                let packed = _mm256_packus_epi32(exponents(operand, even), exponents(operand, odd));
                // SAFETY: writes rows of the tile.
                unsafe {
                    _mm256_storeu_ps((&raw mut (*tile).b[8 * half + t]).cast(), even);
                    _mm256_storeu_ps((&raw mut (*tile).b[8 * half + 4 + t]).cast(), odd);
                    let to = &raw mut (*tile).b_exponents[4 * half + t];
                    _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
                }
            }
        }
        range.is_inside(ORDINARY)
    }

    /// `F` fraction bits are kept, products are added in `STEPS` steps. `operand` is a constant where this is inlined.
    ///
    /// # Safety
    /// As [`Sums`] says.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn multiply<const F: i32, const STEPS: usize>(
        a: [&Register; 4],
        b: [&Register; 2],
        Sums { c, d }: Sums,
        operand: Operand,
    ) -> bool {
        let mut range = Range { most: _mm256_setzero_si256(), least: _mm256_set1_epi32(-1) };
        for c in c {
            for p in 0..4 {
                // SAFETY: reads eight words of a register.
                range.take(unsafe { _mm256_loadu_ps(c.cast::<f32>().add(8 * p)) });
            }
        }
        let mut tile = MaybeUninit::<Tile>::uninit();
        // SAFETY: the tile can be written, and is read only after it was.
        let is_ordinary = unsafe { prepare(operand, a, b, tile.as_mut_ptr()) };
        if !is_ordinary || !range.is_inside([1, INFINITY - 1]) {
            return false;
        }
        // SAFETY: `prepare` has written all of it.
        let tile = unsafe { tile.assume_init_ref() };
        for row in 0..16 {
            let (first, at) = (2 * (row / 8), 4 * (row % 8));
            // SAFETY: reads four words of each of two registers.
            let mut sum = unsafe {
                let even = _mm_loadu_si128(c[first].cast::<u32>().add(at).cast());
                _mm256_set_m128i(_mm_loadu_si128(c[first + 1].cast::<u32>().add(at).cast()), even)
            };
            for step in 0..STEPS {
                let before = sum;
                sum = add::<F, STEPS>(tile, row, step, sum);
                if step > 0 {
                    // The earlier step may have overflowed.
                    let infinity = _mm256_set1_epi32(INFINITY);
                    let is_finite = _mm256_cmpgt_epi32(infinity, _mm256_and_si256(before, infinity));
                    sum = _mm256_blendv_epi8(before, sum, is_finite);
                }
            }
            // SAFETY: writes the same words of D.
            unsafe {
                _mm_storeu_si128(d[first].cast::<u32>().add(at).cast(), _mm256_castsi256_si128(sum));
                let odd = _mm256_extracti128_si256::<1>(sum);
                _mm_storeu_si128(d[first + 1].cast::<u32>().add(at).cast(), odd);
            }
        }
        true
    }

    /// The sum of eight columns of a row after one step.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn add<const F: i32, const STEPS: usize>(tile: &Tile, row: usize, step: usize, c: __m256i) -> __m256i {
        let elements = 16 / STEPS;
        // SAFETY: reads a row.
        let a_exponents = unsafe { _mm256_loadu_si256((&raw const tile.a_exponents[row]).cast()) };
        let mut largest = _mm256_setzero_si256();
        for i in step * elements / 2..(step + 1) * elements / 2 {
            // Element `i` of the eight in either half of the vector, in all places of that half.
            let spread = _mm256_set1_epi16(0x0100 + 0x0202 * i as i16);
            // SAFETY: reads a row.
            let b_exponents = unsafe { _mm256_loadu_si256((&raw const tile.b_exponents[i]).cast()) };
            let sum = _mm256_add_epi16(_mm256_shuffle_epi8(a_exponents, spread), b_exponents);
            largest = _mm256_max_epi16(largest, sum);
        }
        let largest = _mm_max_epi16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
        // As those of products, exponents are biased by twice 127.
        let field = _mm256_and_si256(_mm256_srli_epi32::<23>(c), _mm256_set1_epi32(255));
        let c_exponent = _mm256_add_epi32(_mm256_max_epi32(field, _mm256_set1_epi32(1)), _mm256_set1_epi32(127));
        let largest = _mm256_max_epi32(_mm256_cvtepi16_epi32(largest), c_exponent);
        // Where the scale would be above f32's, all products are zero.
        let scale = _mm256_min_epi32(_mm256_sub_epi32(_mm256_set1_epi32(F + 3 * 127), largest), _mm256_set1_epi32(254));
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(scale));
        let mut sums = [accumulator::<F>(c, field, _mm256_sub_epi32(largest, c_exponent)), _mm256_setzero_si256()];
        for i in 0..elements {
            let k = step * elements + i;
            // SAFETY: reads a row of B.
            let b = unsafe { _mm256_loadu_ps((&raw const tile.b[k]).cast()) };
            let product = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(tile.a[row][k]), b), scale);
            sums[i / 8] = _mm256_add_epi32(sums[i / 8], _mm256_cvttps_epi32(product));
        }
        round::<F>(sums, largest)
    }

    /// C as a term of the sum, this far below the largest one.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn accumulator<const F: i32>(c: __m256i, field: __m256i, distance: __m256i) -> __m256i {
        let is_normal = _mm256_cmpgt_epi32(field, _mm256_setzero_si256());
        let hidden = _mm256_and_si256(is_normal, _mm256_set1_epi32(1 << 23));
        let significand = _mm256_or_si256(_mm256_and_si256(c, _mm256_set1_epi32((1 << 23) - 1)), hidden);
        let significand = _mm256_sll_epi32(significand, _mm_cvtsi32_si128(F - 23));
        let sign = _mm256_srai_epi32::<31>(c);
        _mm256_sub_epi32(_mm256_xor_si256(_mm256_srlv_epi32(significand, distance), sign), sign)
    }

    /// The two sums together, times 2^(exponent - F), cut to `f32`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn round<const F: i32>([low, high]: [__m256i; 2], exponent: __m256i) -> __m256i {
        let scale = _mm256_add_epi32(exponent, _mm256_set1_epi32(1023 - 2 * 127 - F));
        let halves = |x: __m256i| [_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)];
        let ([l0, l1], [h0, h1], [s0, s1]) = (halves(low), halves(high), halves(scale));
        // Both factors are exact, and so is their product: 33 bits, and an exponent far inside f64's.
        let exact = |low: __m128i, high: __m128i, scale: __m128i| {
            let scale = _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_cvtepu32_epi64(scale)));
            _mm256_mul_pd(_mm256_add_pd(_mm256_cvtepi32_pd(low), _mm256_cvtepi32_pd(high)), scale)
        };
        let (x0, x1) = (exact(l0, h0, s0), exact(l1, h1, s1));
        let is_tiny = |x: __m256d| {
            let magnitude = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
            let below = _mm256_cmp_pd::<_CMP_LT_OQ>(magnitude, _mm256_set1_pd(f64::from(f32::MIN_POSITIVE)));
            _mm256_and_pd(below, _mm256_cmp_pd::<_CMP_NEQ_OQ>(x, _mm256_setzero_pd()))
        };
        if _mm256_movemask_pd(_mm256_or_pd(is_tiny(x0), is_tiny(x1))) != 0 {
            return round_tiny(x0, x1);
        }
        // With the 29 bits gone that f32 does not have, the conversion is exact, or overflows to infinity.
        let cut = |x: __m256d| {
            let kept = _mm256_castsi256_pd(_mm256_set1_epi64x(!0x1fff_ffff));
            _mm_castps_si128(_mm256_cvtpd_ps(_mm256_and_pd(x, kept)))
        };
        _mm256_set_m128i(cut(x1), cut(x0))
    }

    /// The same where some results are subnormal.
    #[cold]
    #[target_feature(enable = "avx2,fma")]
    fn round_tiny(x0: __m256d, x1: __m256d) -> __m256i {
        let mut exact = [0f64; 8];
        // SAFETY: writes the eight values.
        unsafe {
            _mm256_storeu_pd(exact.as_mut_ptr(), x0);
            _mm256_storeu_pd(exact.as_mut_ptr().add(4), x1);
        }
        let words = exact.map(|exact| narrow(exact, F32, Rounding::Zero));
        // SAFETY: reads the eight words.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }
}
