//! The kernels of [`scalar`](super::scalar) for x86-64 with AVX2, FMA and F16C: a vector holds one place of the eight rows of a panel.
//!
//! Four weights of each row meet four activations that every row gets: `maddubs` multiplies 8-bit integers and adds pairs, `madd` adds
//! pairs of those. Sums of integers are exact, so their order is free; those of f32 are in the scalar kernels' order.
//!
//! Every function here needs AVX2, FMA and F16C, a panel that holds `cols` columns of its type, and `N` rows of x from `first` on.

use super::Rows;
use super::activations::{BLOCK, BlockScale, Quantised, Row};
use super::panels::LANES;
use super::scalar::Sums;
use std::arch::x86_64::*;

/// Bytes of a vector.
const VECTOR: usize = 32;

/// Bytes between what is multiplied and what is fetched: memory answers a single row, which reads each weight once, half again as fast
/// as when the processor guesses alone.
const AHEAD: usize = 2560;

/// Fetches `N` lines of the weights that follow those at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prefetch<const N: usize>(at: *const u8) {
    for line in 0..N {
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + 64 * line).cast());
    }
}

/// Four integers of a row from `at` on, for every row of the panel.
///
/// # Safety
/// They exist.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn activations(row: Row, at: usize) -> __m256i {
    // SAFETY: by the caller's promise.
    _mm256_set1_epi32(unsafe { row.quad(at) })
}

/// The vector at `at`.
///
/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn vector(at: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// Eight f16 at `at`.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: by the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// `sums + d x.d integers`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_scaled(sums: __m256, integers: __m256i, d: __m256, x: BlockScale) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), _mm256_mul_ps(d, _mm256_set1_ps(x.d)), sums)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn stored<const N: usize>(sums: [__m256; N]) -> Sums<N> {
    sums.map(|sums| {
        let mut out = [0.0; LANES];
        // SAFETY: eight floats.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
        out
    })
}

/// `d q + m`, or `d (q - 8)` without a minimum; `q` of four bits. A sum of 16 products is at most 16 x 15 x 127, below 2^15.
///
/// # Safety
/// See above.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles<const N: usize, const HAS_MINIMUM: bool>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let (rows, block_bytes) = (Row::several::<N>(x, first), if HAS_MINIMUM { 20 } else { 18 });
    let (low_bits, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); N];
    for (b, block) in panel.chunks_exact(LANES * block_bytes).enumerate() {
        // SAFETY: scales, minima and four vectors of a block of the panel; 32 integers and the scale of block b of each row.
        unsafe {
            let (d, quads) = (halves(block.as_ptr()), block.as_ptr().add(LANES * (block_bytes - 16)));
            prefetch::<3>(block.as_ptr());
            let mut dots = [_mm256_setzero_si256(); N];
            for quad in 0..4 {
                let both = vector(quads.add(quad * VECTOR));
                let low = _mm256_and_si256(both, low_bits);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low_bits);
                for (dots, row) in dots.iter_mut().zip(rows) {
                    let at = b * BLOCK + quad * 4;
                    *dots = _mm256_add_epi16(*dots, _mm256_maddubs_epi16(low, activations(row, at)));
                    *dots = _mm256_add_epi16(*dots, _mm256_maddubs_epi16(high, activations(row, at + 16)));
                }
            }
            for ((sums, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                let (dots, x) = (_mm256_madd_epi16(dots, ones), row.scale(b));
                if HAS_MINIMUM {
                    let minimum = halves(block.as_ptr().add(2 * LANES));
                    *sums = add_scaled(*sums, dots, d, x);
                    *sums = _mm256_fmadd_ps(minimum, _mm256_set1_ps(x.weighted_sum), *sums);
                } else {
                    *sums = add_scaled(*sums, _mm256_sub_epi32(dots, _mm256_set1_epi32(8 * x.sum)), d, x);
                }
            }
        }
    }
    stored(sums)
}

/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q4_0<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise.
    unsafe { nibbles::<N, false>(panel, x, first) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q4_1<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise.
    unsafe { nibbles::<N, true>(panel, x, first) }
}

/// `maddubs` wants one operand without sign: the weight's goes over to the activation. A pair is at most 2 x 128 x 127, below 2^15.
///
/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q8_0<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let (rows, ones) = (Row::several::<N>(x, first), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_ps(); N];
    for (b, block) in panel.chunks_exact(LANES * 34).enumerate() {
        // SAFETY: scales and eight vectors of a block of the panel; 32 integers and the scale of block b of each row.
        unsafe {
            let d = halves(block.as_ptr());
            prefetch::<5>(block.as_ptr());
            let mut dots = [_mm256_setzero_si256(); N];
            for quad in 0..8 {
                let weights = vector(block.as_ptr().add(2 * LANES + quad * VECTOR));
                let magnitudes = _mm256_abs_epi8(weights);
                for (dots, row) in dots.iter_mut().zip(rows) {
                    let x = _mm256_sign_epi8(activations(row, b * BLOCK + quad * 4), weights);
                    let pairs = _mm256_maddubs_epi16(magnitudes, x);
                    *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(pairs, ones));
                }
            }
            for ((sums, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                *sums = add_scaled(*sums, dots, d, row.scale(b));
            }
        }
    }
    stored(sums)
}

/// Two vectors of pairs, each at most 2 x 63 x 127, are added before they meet the scale of their 16.
///
/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn q6_k<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let rows = Row::several::<N>(x, first);
    let mut sums = [_mm256_setzero_ps(); N];
    for (b, block) in panel.chunks_exact(LANES * 210).enumerate() {
        // SAFETY: scales of a block of the panel.
        let d = unsafe { halves(block.as_ptr()) };
        for c in 0..8 {
            prefetch::<4>(block.as_ptr().wrapping_add(210 * c));
            // SAFETY: see `q6_k_part`; the scale of 32-block c of each row.
            unsafe {
                let dots = q6_k_part(block, rows, b * 8, c);
                for ((sums, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                    *sums = add_scaled(*sums, dots, d, row.scale(b * 8 + c));
                }
            }
        }
    }
    stored(sums)
}

/// Dot products, with the scales of the weights, of 32-block `c` of a block, which is number `first + c` of each row of x.
///
/// # Safety
/// See above.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k_part<const N: usize>(block: &[u8], rows: [Row; N], first: usize, c: usize) -> [__m256i; N] {
    let (low_shift, high_shift) = (_mm_cvtsi32_si128(c as i32 % 4 / 2 * 4), _mm_cvtsi32_si128(c as i32 % 4 * 2));
    // Pairs of 16-bit scales: the two of a row side by side, and each twice.
    // SAFETY: the 16 bytes of part c of the scales.
    let scales = unsafe { _mm_loadu_si128(block.as_ptr().add((2 + 2 * c) * LANES).cast()) };
    let scales = _mm256_cvtepi8_epi16(scales);
    let twice = [
        _mm256_or_si256(_mm256_and_si256(scales, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32::<16>(scales)),
        _mm256_or_si256(_mm256_srli_epi32::<16>(scales), _mm256_andnot_si256(_mm256_set1_epi32(0xffff), scales)),
    ];
    let mut dots = [_mm256_setzero_si256(); N];
    for (half, scales) in twice.into_iter().enumerate() {
        for pair in 0..2 {
            let mut products = [_mm256_setzero_si256(); N];
            for quad in [half * 4 + pair * 2, half * 4 + pair * 2 + 1] {
                // SAFETY: a vector of low bits and one of high bits of the block; four integers of each row.
                unsafe {
                    let group = block.as_ptr().add((18 + (c / 4 * 8 + quad) * 12) * LANES);
                    let low = _mm256_srl_epi16(vector(group.add(c % 2 * VECTOR)), low_shift);
                    let high = _mm256_srl_epi16(vector(group.add(2 * VECTOR)), high_shift);
                    let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, _mm256_set1_epi8(3)));
                    let weights = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), high);
                    for (products, row) in products.iter_mut().zip(rows) {
                        let x = activations(row, (first + c) * BLOCK + quad * 4);
                        *products = _mm256_add_epi16(*products, _mm256_maddubs_epi16(weights, x));
                    }
                }
            }
            for (dots, products) in dots.iter_mut().zip(products) {
                *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(products, scales));
            }
        }
    }
    for (dots, row) in dots.iter_mut().zip(rows) {
        // SAFETY: the scale exists.
        let sums = unsafe { row.half_sums(first + c) };
        let offset = _mm256_madd_epi16(scales, _mm256_set1_epi32(sums));
        *dots = _mm256_sub_epi32(*dots, _mm256_slli_epi32::<5>(offset));
    }
    dots
}

/// Single elements: those of even and of odd number are summed apart.
///
/// # Safety
/// See above; `load` reads eight weights of `bytes` bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn elements<const N: usize>(
    panel: &[u8],
    x: Rows,
    first: usize,
    bytes: usize,
    load: impl Fn(*const u8) -> __m256,
) -> Sums<N> {
    let rows: [*const f32; N] = std::array::from_fn(|n| x.row(first + n).as_ptr());
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for k in (0..x.cols / 2 * 2).step_by(2) {
        prefetch::<1>(panel.as_ptr().wrapping_add(k * LANES * bytes));
        for odd in 0..2 {
            let weights = load(panel.as_ptr().wrapping_add((k + odd) * LANES * bytes));
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: element k + odd of a row.
                let x = unsafe { *row.add(k + odd) };
                sums[odd] = _mm256_fmadd_ps(weights, _mm256_set1_ps(x), sums[odd]);
            }
        }
    }
    if x.cols % 2 == 1 {
        let weights = load(panel.as_ptr().wrapping_add((x.cols - 1) * LANES * bytes));
        for (sums, row) in sums.iter_mut().zip(rows) {
            // SAFETY: the last element of a row.
            let x = unsafe { *row.add(x.cols - 1) };
            sums[0] = _mm256_fmadd_ps(weights, _mm256_set1_ps(x), sums[0]);
        }
    }
    stored(sums.map(|[even, odd]| _mm256_add_ps(even, odd)))
}

/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f32<const N: usize>(panel: &[u8], x: Rows, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise; eight f32 of the panel.
    unsafe { elements(panel, x, first, 4, |at| _mm256_loadu_ps(at.cast())) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn f16<const N: usize>(panel: &[u8], x: Rows, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise; eight f16 of the panel.
    unsafe { elements(panel, x, first, 2, |at| halves(at)) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn bf16<const N: usize>(panel: &[u8], x: Rows, first: usize) -> Sums<N> {
    // A bf16 is the upper half of an f32.
    let load = |at: *const u8| {
        // SAFETY: eight bf16 of the panel.
        let halves = unsafe { _mm_loadu_si128(at.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    };
    // SAFETY: by the caller's promise.
    unsafe { elements(panel, x, first, 2, load) }
}
