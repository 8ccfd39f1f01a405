//! `mma.sync.m16n8k16` of 16-bit operands with `f32` accumulators in fast mode: from registers to registers, without tiles
//! between. The order of the sum is that of [`super::mma`]: of eight elements along `k` the even ones come first.
//!
//! Eight lanes of an accumulator register are two rows of four columns (the even or the odd ones of eight). So a vector of
//! sums takes two scalars of A, each in one half, and four columns of a row of B, in both halves.

use pulp::Arch;

use super::fragment::Register;
use super::mma::Sums;
use super::tensor_core::Operand;

/// `d = a b + c`; false if this machine has no vectors for it.
///
/// # Safety
/// As [`Sums`] says.
pub unsafe fn m16n8k16(arch: Arch, operand: Operand, a: [&Register; 4], b: [&Register; 2], sums: Sums) -> bool {
    match (arch, operand) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `V3` exists only where AVX2 and FMA were found; the caller vouches for `sums`.
        (Arch::V3(_), Operand::Bf16) => unsafe { avx2::multiply::<false>(a, b, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Arch::V3(_), Operand::F16) => unsafe { avx2::multiply::<true>(a, b, sums) },
        _ => return false,
    }
    true
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    use super::super::tensor_core::CANONICAL_NAN;
    use super::{Operand, Register, Sums};

    /// Words `8 p ..` of a register.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn load(register: &Register, p: usize) -> __m256 {
        let words: &[u32; 8] = &register.as_chunks().0[p];
        // SAFETY: reads the eight words.
        unsafe { _mm256_loadu_ps(words.as_ptr().cast()) }
    }

    /// Values of the low and of the high halves of eight words.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn halves(operand: Operand, words: __m256) -> [__m256; 2] {
        let words = _mm256_castps_si256(words);
        let (low, high) = (_mm256_slli_epi32::<16>(words), _mm256_and_si256(words, _mm256_set1_epi32(-65536)));
        match operand {
            Operand::F16 => [from_f16(low), from_f16(high)],
            _ => [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)],
        }
    }

    /// Values of the `f16` in the upper halves of eight words, whose lower halves are zero.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn from_f16(words: __m256i) -> __m256 {
        let magnitude = _mm256_srli_epi32::<3>(_mm256_and_si256(words, _mm256_set1_epi32(0x7fff_0000)));
        // Exponents are 112 too small. The product is exact, and makes normal numbers of subnormal ones.
        let value = _mm256_mul_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(f32::from_bits((127 + 112) << 23)));
        let is_special = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x0f7f_ffff));
        let special = _mm256_and_si256(is_special, _mm256_set1_epi32(0x7f80_0000));
        let sign = _mm256_and_si256(words, _mm256_set1_epi32(i32::MIN));
        _mm256_or_ps(value, _mm256_castsi256_ps(_mm256_or_si256(special, sign)))
    }

    /// Words of a register of B by their place in a column: the even columns, then the odd ones.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn transposed(b: &Register) -> [__m256; 4] {
        // Lane 4n + t holds word t of column n: an even column and its right neighbour in each vector.
        let (w0, w1, w2, w3) = (load(b, 0), load(b, 1), load(b, 2), load(b, 3));
        let (low0, low1) = (_mm256_unpacklo_ps(w0, w1), _mm256_unpacklo_ps(w2, w3));
        let (high0, high1) = (_mm256_unpackhi_ps(w0, w1), _mm256_unpackhi_ps(w2, w3));
        let t0 = _mm256_shuffle_ps::<0b01_00_01_00>(low0, low1);
        let t1 = _mm256_shuffle_ps::<0b11_10_11_10>(low0, low1);
        let t2 = _mm256_shuffle_ps::<0b01_00_01_00>(high0, high1);
        let t3 = _mm256_shuffle_ps::<0b11_10_11_10>(high0, high1);
        [t0, t1, t2, t3]
    }

    /// Rows of B: by register, place in a column, and half of the words.
    type Rows = [[[__m256; 2]; 4]; 2];

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn rows_of(operand: Operand, b: &Register) -> [[__m256; 2]; 4] {
        let [t0, t1, t2, t3] = transposed(b);
        [halves(operand, t0), halves(operand, t1), halves(operand, t2), halves(operand, t3)]
    }

    /// The even or the odd columns of a row of B, in both halves of a vector.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn columns(row: &__m256, odd: bool) -> __m256 {
        let four: *const __m128 = (&raw const *row).cast();
        // SAFETY: reads one half of the row.
        unsafe { _mm256_broadcast_ps(&*four.add(usize::from(odd))) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn canonical(sum: __m256) -> __m256 {
        let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum);
        _mm256_blendv_ps(sum, _mm256_castsi256_ps(_mm256_set1_epi32(CANONICAL_NAN as i32)), is_nan)
    }

    /// The product of `f16` or `bf16` operands.
    ///
    /// # Safety
    /// As [`Sums`] says.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn multiply<const IS_F16: bool>(a: [&Register; 4], b: [&Register; 2], Sums { c, d }: Sums) {
        let operand = if IS_F16 { Operand::F16 } else { Operand::Bf16 };
        let rows: Rows = [rows_of(operand, b[0]), rows_of(operand, b[1])];
        // They are meant to lie in memory: from there halves are spread without a shuffle.
        let rows = std::hint::black_box(&rows);
        for half in 0..2 {
            // SAFETY: registers of C, which are read here.
            let (d0, d1) = unsafe { (&*c[2 * half], &*c[2 * half + 1]) };
            let (mut e0, mut e1, mut e2, mut e3) = (load(d0, 0), load(d0, 1), load(d0, 2), load(d0, 3));
            let (mut o0, mut o1, mut o2, mut o3) = (load(d1, 0), load(d1, 1), load(d1, 2), load(d1, 3));
            for j in 0..2 {
                let register = a[half + 2 * j];
                let (a0, a1) = (halves(operand, load(register, 0)), halves(operand, load(register, 1)));
                let (a2, a3) = (halves(operand, load(register, 2)), halves(operand, load(register, 3)));
                for part in 0..2 {
                    macro_rules! word {
                        ($t:literal, $spread:literal) => {{
                            let row = &rows[j][$t][part];
                            let (even, odd) = (columns(row, false), columns(row, true));
                            let (x0, x1) =
                                (_mm256_permute_ps::<$spread>(a0[part]), _mm256_permute_ps::<$spread>(a1[part]));
                            (e0, o0) = (_mm256_fmadd_ps(x0, even, e0), _mm256_fmadd_ps(x0, odd, o0));
                            (e1, o1) = (_mm256_fmadd_ps(x1, even, e1), _mm256_fmadd_ps(x1, odd, o1));
                            let (x2, x3) =
                                (_mm256_permute_ps::<$spread>(a2[part]), _mm256_permute_ps::<$spread>(a3[part]));
                            (e2, o2) = (_mm256_fmadd_ps(x2, even, e2), _mm256_fmadd_ps(x2, odd, o2));
                            (e3, o3) = (_mm256_fmadd_ps(x3, even, e3), _mm256_fmadd_ps(x3, odd, o3));
                        }};
                    }
                    word!(0, 0b00_00_00_00);
                    word!(1, 0b01_01_01_01);
                    word!(2, 0b10_10_10_10);
                    word!(3, 0b11_11_11_11);
                }
            }
            let is_nan = |even: __m256, odd: __m256| _mm256_cmp_ps::<_CMP_UNORD_Q>(even, odd);
            let (first, second) =
                (_mm256_or_ps(is_nan(e0, o0), is_nan(e1, o1)), _mm256_or_ps(is_nan(e2, o2), is_nan(e3, o3)));
            if _mm256_movemask_ps(_mm256_or_ps(first, second)) != 0 {
                (e0, e1, e2, e3) = (canonical(e0), canonical(e1), canonical(e2), canonical(e3));
                (o0, o1, o2, o3) = (canonical(o0), canonical(o1), canonical(o2), canonical(o3));
            }
            let (even, odd) = (d[2 * half].cast::<f32>(), d[2 * half + 1].cast::<f32>());
            for (p, (e, o)) in [(e0, o0), (e1, o1), (e2, o2), (e3, o3)].into_iter().enumerate() {
                // SAFETY: writes eight words of each of two registers of D, after those of C were read.
                unsafe {
                    _mm256_storeu_ps(even.add(8 * p), e);
                    _mm256_storeu_ps(odd.add(8 * p), o);
                }
            }
        }
    }
}
