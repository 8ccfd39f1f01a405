//! The kernels of [`scalar`](super::scalar) for x86-64 with AVX-512 (F, BW, VNNI): a vector holds one place of the sixteen rows of two
//! panels.
//!
//! Four weights of each row meet four activations that every row gets: `dpbusd` multiplies unsigned by signed 8-bit integers and adds
//! the four products to a 32-bit sum. Sums of integers are exact, so their order is free; those of f32 are in the scalar kernels' order.
//!
//! Every function here needs AVX-512 F, BW and VNNI, two panels of `cols` columns of its type, and `N` rows of x from `first` on.

use super::Rows;
use super::activations::{BLOCK, BlockScale, Quantised, Row};
use super::panels::LANES;
use std::arch::x86_64::*;

/// Bytes of a panel's half of a vector.
const HALF: usize = 32;

/// Bytes between what is multiplied and what is fetched, of each panel.
const AHEAD: usize = 2560;

/// Dot products of a tile, those of the second panel behind those of the first.
pub type Sums<const N: usize> = [[f32; 2 * LANES]; N];

/// A place in each of two panels.
#[derive(Clone, Copy)]
struct Pair([*const u8; 2]);

impl Pair {
    /// The block of `bytes` bytes with number `b`, in panels whose ends are checked here.
    #[inline(always)]
    fn block(panels: [&[u8]; 2], b: usize, bytes: usize) -> Pair {
        let [first, second] = panels;
        Pair([first[b * bytes..][..bytes].as_ptr(), second[b * bytes..][..bytes].as_ptr()])
    }

    #[inline(always)]
    fn add(self, bytes: usize) -> Pair {
        let Pair([first, second]) = self;
        Pair([first.wrapping_add(bytes), second.wrapping_add(bytes)])
    }

    /// 32 bytes of each.
    ///
    /// # Safety
    /// They exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn vector(self) -> __m512i {
        let Pair([first, second]) = self;
        // SAFETY: by the caller's promise.
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(second.cast()))
        }
    }

    /// 16 bytes of each.
    ///
    /// # Safety
    /// They exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn short(self) -> __m256i {
        let Pair([first, second]) = self;
        // SAFETY: by the caller's promise.
        unsafe { _mm256_loadu2_m128i(second.cast(), first.cast()) }
    }

    /// Eight f16 of each.
    ///
    /// # Safety
    /// They exist.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn halves(self) -> __m512 {
        // SAFETY: by the caller's promise.
        _mm512_cvtph_ps(unsafe { self.short() })
    }

    /// Fetches `LINES` lines of the weights that follow.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn prefetch<const LINES: usize>(self) {
        let Pair(panels) = self.add(AHEAD);
        for line in 0..LINES {
            for panel in panels {
                _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(64 * line).cast());
            }
        }
    }
}

/// `sums` and the products of four weights of every row of the panels with the four integers of a row from `at` on.
///
/// # Safety
/// They exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_products(sums: __m512i, weights: __m512i, row: Row, at: usize) -> __m512i {
    // SAFETY: by the caller's promise.
    _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(unsafe { row.quad(at) }))
}

/// `sums + d x.d integers`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_scaled(sums: __m512, integers: __m512i, d: __m512, x: BlockScale) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_mul_ps(d, _mm512_set1_ps(x.d)), sums)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn stored<const N: usize>(sums: [__m512; N]) -> Sums<N> {
    let mut out = [[0.0; 2 * LANES]; N];
    for (out, sums) in out.iter_mut().zip(sums) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
    }
    out
}

/// `d q + m`, or `d (q - 8)` without a minimum; `q` of four bits.
///
/// # Safety
/// See above.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn nibbles<const N: usize, const HAS_MINIMUM: bool>(panels: [&[u8]; 2], x: Quantised, first: usize) -> Sums<N> {
    let (rows, block_bytes) = (Row::several::<N>(x, first), if HAS_MINIMUM { 20 } else { 18 });
    let low_bits = _mm512_set1_epi8(15);
    let mut sums = [_mm512_setzero_ps(); N];
    for b in 0..x.cols / BLOCK {
        let block = Pair::block(panels, b, LANES * block_bytes);
        // SAFETY: scales, minima and four vectors of a block of the panels; 32 integers and the scale of block b of each row.
        unsafe {
            let (d, quads) = (block.halves(), block.add(LANES * (block_bytes - 16)));
            block.prefetch::<3>();
            let mut dots = [_mm512_setzero_si512(); N];
            for quad in 0..4 {
                let both = quads.add(quad * HALF).vector();
                let low = _mm512_and_si512(both, low_bits);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low_bits);
                for (dots, row) in dots.iter_mut().zip(rows) {
                    let at = b * BLOCK + quad * 4;
                    *dots = add_products(*dots, low, row, at);
                    *dots = add_products(*dots, high, row, at + 16);
                }
            }
            let minimum = if HAS_MINIMUM { block.add(2 * LANES).halves() } else { _mm512_setzero_ps() };
            for ((sums, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                let x = row.scale(b);
                if HAS_MINIMUM {
                    *sums = add_scaled(*sums, dots, d, x);
                    *sums = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.weighted_sum), *sums);
                } else {
                    *sums = add_scaled(*sums, _mm512_sub_epi32(dots, _mm512_set1_epi32(8 * x.sum)), d, x);
                }
            }
        }
    }
    stored(sums)
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn q4_0<const N: usize>(panels: [&[u8]; 2], x: Quantised, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise.
    unsafe { nibbles::<N, false>(panels, x, first) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn q4_1<const N: usize>(panels: [&[u8]; 2], x: Quantised, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise.
    unsafe { nibbles::<N, true>(panels, x, first) }
}

/// `dpbusd` wants one operand without sign: 128 is added to the weights, and 128 times the sum of the activations taken off again.
///
/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn q8_0<const N: usize>(panels: [&[u8]; 2], x: Quantised, first: usize) -> Sums<N> {
    let (rows, sign_bits) = (Row::several::<N>(x, first), _mm512_set1_epi8(i8::MIN));
    let mut sums = [_mm512_setzero_ps(); N];
    for b in 0..x.cols / BLOCK {
        let block = Pair::block(panels, b, LANES * 34);
        // SAFETY: scales and eight vectors of a block of the panels; 32 integers and the scale of block b of each row.
        unsafe {
            let d = block.halves();
            block.prefetch::<5>();
            let mut dots = [_mm512_setzero_si512(); N];
            for quad in 0..8 {
                let weights = _mm512_xor_si512(block.add(2 * LANES + quad * HALF).vector(), sign_bits);
                for (dots, row) in dots.iter_mut().zip(rows) {
                    *dots = add_products(*dots, weights, row, b * BLOCK + quad * 4);
                }
            }
            for ((sums, dots), row) in sums.iter_mut().zip(dots).zip(rows) {
                let x = row.scale(b);
                *sums = add_scaled(*sums, _mm512_sub_epi32(dots, _mm512_set1_epi32(128 * x.sum)), d, x);
            }
        }
    }
    stored(sums)
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn q6_k<const N: usize>(panels: [&[u8]; 2], x: Quantised, first: usize) -> Sums<N> {
    let rows = Row::several::<N>(x, first);
    let mut sums = [_mm512_setzero_ps(); N];
    for b in 0..x.cols / (8 * BLOCK) {
        let block = Pair::block(panels, b, LANES * 210);
        // SAFETY: scales of a block of the panels.
        let d = unsafe { block.halves() };
        for c in 0..8 {
            block.add(210 * c).prefetch::<4>();
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
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn q6_k_part<const N: usize>(block: Pair, rows: [Row; N], first: usize, c: usize) -> [__m512i; N] {
    let (low_shift, high_shift) = (_mm_cvtsi32_si128(c as i32 % 4 / 2 * 4), _mm_cvtsi32_si128(c as i32 % 4 * 2));
    // Pairs of 16-bit scales: those of the first and of the second 16 weights of a row.
    // SAFETY: the 16 bytes of part c of the scales.
    let scales = _mm512_cvtepi8_epi16(unsafe { block.add((2 + 2 * c) * LANES).short() });
    let of_halves = [_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(scales)), _mm512_srai_epi32::<16>(scales)];
    let mut dots = [_mm512_setzero_si512(); N];
    for (half, scale) in of_halves.into_iter().enumerate() {
        let mut products = [_mm512_setzero_si512(); N];
        for quad in half * 4..half * 4 + 4 {
            // SAFETY: a vector of low bits and one of high bits of the block; four integers of each row.
            unsafe {
                let group = block.add((18 + (c / 4 * 8 + quad) * 12) * LANES);
                let low = _mm512_srl_epi16(group.add(c % 2 * HALF).vector(), low_shift);
                let high = _mm512_srl_epi16(group.add(2 * HALF).vector(), high_shift);
                let high = _mm512_slli_epi16::<4>(_mm512_and_si512(high, _mm512_set1_epi8(3)));
                let weights = _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(15)), high);
                for (products, row) in products.iter_mut().zip(rows) {
                    *products = add_products(*products, weights, row, (first + c) * BLOCK + quad * 4);
                }
            }
        }
        for (dots, products) in dots.iter_mut().zip(products) {
            *dots = _mm512_add_epi32(*dots, _mm512_mullo_epi32(products, scale));
        }
    }
    for (dots, row) in dots.iter_mut().zip(rows) {
        // SAFETY: the scale exists.
        let sums = unsafe { row.half_sums(first + c) };
        let offset = _mm512_madd_epi16(scales, _mm512_set1_epi32(sums));
        *dots = _mm512_sub_epi32(*dots, _mm512_slli_epi32::<5>(offset));
    }
    dots
}

/// Single elements: those of even and of odd number are summed apart.
///
/// # Safety
/// See above; `load` reads eight weights of `bytes` bytes of each panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn elements<const N: usize>(
    panels: [&[u8]; 2],
    x: Rows,
    first: usize,
    bytes: usize,
    load: impl Fn(Pair) -> __m512,
) -> Sums<N> {
    let rows: [*const f32; N] = std::array::from_fn(|n| x.row(first + n).as_ptr());
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    for k in (0..x.cols).step_by(2) {
        for odd in 0..2.min(x.cols - k) {
            let place = Pair::block(panels, k + odd, LANES * bytes);
            place.prefetch::<1>();
            let weights = load(place);
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: element k + odd of a row.
                let x = unsafe { *row.add(k + odd) };
                sums[odd] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x), sums[odd]);
            }
        }
    }
    let mut both = [_mm512_setzero_ps(); N];
    for (both, [even, odd]) in both.iter_mut().zip(sums) {
        *both = _mm512_add_ps(even, odd);
    }
    stored(both)
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn f32<const N: usize>(panels: [&[u8]; 2], x: Rows, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise; eight f32 of each panel.
    unsafe { elements(panels, x, first, 4, |at| _mm512_castsi512_ps(at.vector())) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn f16<const N: usize>(panels: [&[u8]; 2], x: Rows, first: usize) -> Sums<N> {
    // SAFETY: by the caller's promise; eight f16 of each panel.
    unsafe { elements(panels, x, first, 2, |at| at.halves()) }
}

/// # Safety
/// See above.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn bf16<const N: usize>(panels: [&[u8]; 2], x: Rows, first: usize) -> Sums<N> {
    // A bf16 is the upper half of an f32.
    let load = |at: Pair| {
        // SAFETY: eight bf16 of each panel.
        let halves = unsafe { at.short() };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    };
    // SAFETY: by the caller's promise.
    unsafe { elements(panels, x, first, 2, load) }
}
