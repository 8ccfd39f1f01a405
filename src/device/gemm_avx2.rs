//! Our own f32 matrix product for processors with AVX2 and FMA but no AVX-512; others go through the `gemm` crate.
//!
//! `C (+)= A B` in tiles of 6 x 16: twelve accumulators, two vectors of B and one broadcast of A fill the sixteen registers.
//! Depth is cut in equal pieces of at most [`KC`], so that a panel of B (16 columns, 16 KiB) stays in L1 while a block of
//! A ([`MC`] rows, 192 KiB) stays in L2. Both are packed into panels, padded with zeros; threads share the packed B and take
//! blocks of rows. Every element of C sums over its depth in one order, whatever the number of threads.
//!
//! The scheme is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS 34, 2008).

use super::cpu::{Threads, WriteMode};
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::sync::LazyLock;
use std::thread::LocalKey;

/// Rows and columns of a tile.
const MR: usize = 6;
const NR: usize = 16;
/// Most depth of a packed piece.
const KC: usize = 256;
/// Most rows of a packed block of A.
const MC: usize = 32 * MR;
/// Most columns of a packed piece of B: 4 MiB, a share of L3.
const NC: usize = 4096;
/// Below this many rows packing B costs more than it saves.
const ROWS_MIN: usize = 4;

static IS_SUPPORTED: LazyLock<bool> = LazyLock::new(|| {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && !is_x86_feature_detected!("avx512f")
});

/// Whether [`run`] may be called, and pays, for a product of `rows` rows on this machine.
pub fn serves(rows: usize) -> bool {
    rows >= ROWS_MIN && *IS_SUPPORTED
}

/// A matrix to read: element `(i, j)` is `i * row_stride + j * col_stride` elements behind `ptr`.
#[derive(Clone, Copy)]
pub struct View {
    pub ptr: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

// SAFETY: only read through, during a call whose caller vouches for the elements.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// The matrix that begins at element `(i, j)`.
    ///
    /// # Safety
    /// The element must exist.
    unsafe fn at(self, i: usize, j: usize) -> View {
        // SAFETY: by the caller's promise.
        View { ptr: unsafe { self.ptr.add(i * self.row_stride + j * self.col_stride) }, ..self }
    }

    fn t(self) -> View {
        View { ptr: self.ptr, row_stride: self.col_stride, col_stride: self.row_stride }
    }
}

/// The row-major matrix to write.
#[derive(Clone, Copy)]
pub struct Target {
    pub ptr: *mut f32,
    pub row_stride: usize,
}

// SAFETY: tasks write disjoint rows.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The matrix that begins at element `(i, j)`.
    ///
    /// # Safety
    /// The element must exist.
    unsafe fn at(self, i: usize, j: usize) -> Target {
        // SAFETY: by the caller's promise.
        Target { ptr: unsafe { self.ptr.add(i * self.row_stride + j) }, ..self }
    }
}

/// `c (+)= a b`, `a` being `m x k` and `b` `k x n`.
///
/// # Safety
/// [`serves`] said so. All elements of `a` and `b` can be read, those of `c` written, and nobody else touches `c`.
pub unsafe fn run(c: Target, [m, n, k]: [usize; 3], a: View, b: View, mode: WriteMode, threads: Threads) {
    if k == 0 {
        for i in 0..if mode == WriteMode::Overwrite { m } else { 0 } {
            // SAFETY: row i of c.
            unsafe { c.ptr.add(i * c.row_stride).write_bytes(0, n) };
        }
        return;
    }
    let depth = k.div_ceil(k.div_ceil(KC));
    let row_blocks = match threads {
        Threads::One => m.div_ceil(MC),
        // Four tasks a thread even out cores of unequal speed; with fewer than four tiles a task the pauses would tell.
        Threads::All => m.div_ceil(MC).max((4 * rayon::current_num_threads()).min(m / (4 * MR))),
    };
    let block_rows = m.div_ceil(row_blocks.max(1)).next_multiple_of(MR);
    for j in (0..n).step_by(NC) {
        let cols = NC.min(n - j);
        for p in (0..k).step_by(depth) {
            let depth = depth.min(k - p);
            let accumulate = p > 0 || mode == WriteMode::Accumulate;
            with_scratch(&PACKED_B, cols.next_multiple_of(NR) * depth, |packed| {
                let pack = |(panel, to): (usize, &mut [f32])| {
                    let first = panel * NR;
                    // SAFETY: the machine has AVX2 (`serves`); the panel's columns lie in b.
                    unsafe { pack_panel::<NR>(to, b.at(p, j + first).t(), NR.min(cols - first)) }
                };
                match threads {
                    Threads::One => packed.chunks_exact_mut(NR * depth).enumerate().for_each(pack),
                    Threads::All => packed.par_chunks_exact_mut(NR * depth).enumerate().for_each(pack),
                }
                let packed = &*packed;
                let block = |i: usize| {
                    let (i, rows) = (i * block_rows, block_rows.min(m - i * block_rows));
                    // SAFETY: the block's rows lie in a and c, and this task alone writes them; AVX2 as above.
                    unsafe {
                        row_block(c.at(i, j), [rows, cols], depth, a.at(i, p), packed, accumulate);
                    }
                };
                match threads {
                    Threads::One => (0..m.div_ceil(block_rows)).for_each(block),
                    Threads::All => (0..m.div_ceil(block_rows)).into_par_iter().for_each(block),
                }
            });
        }
    }
}

thread_local! {
    static PACKED_A: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PACKED_B: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `work` with `elems` floats that the thread keeps between calls. A call that a waiting thread picks up within
/// `work` finds the place empty and allocates.
fn with_scratch(place: &'static LocalKey<Cell<Vec<f32>>>, elems: usize, work: impl FnOnce(&mut [f32])) {
    let mut scratch = place.take();
    if scratch.len() < elems {
        scratch.resize(elems, 0.0);
    }
    work(&mut scratch[..elems]);
    place.set(scratch);
}

/// Some rows of C, all `cols` columns of a packed piece of B.
///
/// # Safety
/// As [`run`], for these rows.
unsafe fn row_block(c: Target, [rows, cols]: [usize; 2], depth: usize, a: View, packed_b: &[f32], accumulate: bool) {
    with_scratch(&PACKED_A, rows.next_multiple_of(MR) * depth, |packed_a| {
        for (panel, to) in packed_a.chunks_exact_mut(MR * depth).enumerate() {
            let first = panel * MR;
            // SAFETY: the panel's rows lie in a.
            unsafe { pack_panel::<MR>(to, a.at(first, 0), MR.min(rows - first)) };
        }
        for (j, b) in packed_b.chunks_exact(NR * depth).enumerate() {
            for (i, a) in packed_a.chunks_exact(MR * depth).enumerate() {
                let (tile_rows, tile_cols) = (MR.min(rows - i * MR), NR.min(cols - j * NR));
                // SAFETY: the tile lies in c.
                unsafe {
                    let c = c.at(i * MR, j * NR);
                    if tile_rows == MR && tile_cols == NR {
                        tile(c, a, b, accumulate);
                    } else {
                        edge_tile(c, [tile_rows, tile_cols], a, b, accumulate);
                    }
                }
            }
        }
    });
}

/// A tile that reaches over the edge of C: computed beside it, and the part inside copied.
///
/// # Safety
/// `rows x cols` elements of `c` are this task's.
unsafe fn edge_tile(c: Target, [rows, cols]: [usize; 2], a: &[f32], b: &[f32], accumulate: bool) {
    let mut whole = [0f32; MR * NR];
    // SAFETY: `whole` is one tile.
    unsafe { tile(Target { ptr: whole.as_mut_ptr(), row_stride: NR }, a, b, false) };
    for (i, row) in whole.chunks_exact(NR).take(rows).enumerate() {
        // SAFETY: a row of the part of the tile that lies in c.
        let to = unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.row_stride), cols) };
        for (to, &value) in to.iter_mut().zip(row) {
            *to = if accumulate { *to + value } else { value };
        }
    }
}

/// One whole tile of C from a panel of A (`depth x 6`) and one of B (`depth x 16`).
///
/// # Safety
/// A whole tile at `c` is this task's.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(c: Target, a: &[f32], b: &[f32], accumulate: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; MR];
    for i in 0..MR {
        // SAFETY: a hint; the address is in c. The tile's last touch is long ago, and depth hides the way from L3.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(c.ptr.add(i * c.row_stride).cast()) };
    }
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        // SAFETY: b holds 16 floats.
        let (b0, b1) = unsafe { (_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))) };
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = _mm256_broadcast_ss(a);
            *sums = [_mm256_fmadd_ps(a, b0, sums[0]), _mm256_fmadd_ps(a, b1, sums[1])];
        }
    }
    for (i, [low, high]) in sums.into_iter().enumerate() {
        // SAFETY: row i of the tile, 16 floats.
        unsafe {
            let to = c.ptr.add(i * c.row_stride);
            let (low, high) = match accumulate {
                true => (_mm256_add_ps(_mm256_loadu_ps(to), low), _mm256_add_ps(_mm256_loadu_ps(to.add(8)), high)),
                false => (low, high),
            };
            _mm256_storeu_ps(to, low);
            _mm256_storeu_ps(to.add(8), high);
        }
    }
}

/// Packs the first `rows` (at most `R`) rows of `from`, as deep as `to` has room: `to[p * R + i] = from(i, p)`, 0 for the
/// missing rows. `R` is 6 or 16.
///
/// # Safety
/// These elements of `from` can be read.
#[target_feature(enable = "avx2")]
unsafe fn pack_panel<const R: usize>(to: &mut [f32], from: View, rows: usize) {
    let depth = to.len() / R;
    if from.row_stride == 1 && rows == R {
        for (p, to) in to.chunks_exact_mut(R).enumerate() {
            // SAFETY: R elements side by side.
            to.copy_from_slice(unsafe { std::slice::from_raw_parts(from.ptr.add(p * from.col_stride), R) });
        }
        return;
    }
    // Where depth runs contiguously, eight columns at a time: rows are loaded as vectors and turned in registers.
    let turned = if from.col_stride == 1 && rows == R { depth / 8 * 8 } else { 0 };
    for p in (0..turned).step_by(8) {
        for first in (0..R).step_by(8) {
            // The rows behind the sixth repeat it; they are not stored.
            let rows: [__m256; 8] = std::array::from_fn(|i| {
                let row = (first + i).min(R - 1);
                // SAFETY: eight elements of a row.
                unsafe { _mm256_loadu_ps(from.ptr.add(row * from.row_stride + p)) }
            });
            for (k, column) in turn(rows).into_iter().enumerate() {
                let to = &mut to[(p + k) * R + first..][..8.min(R)];
                let mut values = [0f32; 8];
                // SAFETY: eight floats.
                unsafe { _mm256_storeu_ps(values.as_mut_ptr(), column) };
                to.copy_from_slice(&values[..to.len()]);
            }
        }
    }
    for (p, to) in to.chunks_exact_mut(R).enumerate().skip(turned) {
        for (i, to) in to.iter_mut().enumerate() {
            // SAFETY: element (i, p) where i is one of the rows.
            *to = if i < rows { unsafe { *from.ptr.add(i * from.row_stride + p * from.col_stride) } } else { 0.0 };
        }
    }
}

/// The transpose of an 8 x 8 matrix in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn turn(r: [__m256; 8]) -> [__m256; 8] {
    // Pairs of rows interleaved by element, then by pair, then halves exchanged.
    let pairs: [__m256; 8] = std::array::from_fn(|i| {
        let (x, y) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm256_unpacklo_ps(x, y) } else { _mm256_unpackhi_ps(x, y) }
    });
    let quads: [__m256; 8] = std::array::from_fn(|i| {
        let (x, y) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
        if i % 2 == 0 { _mm256_shuffle_ps::<0b01_00_01_00>(x, y) } else { _mm256_shuffle_ps::<0b11_10_11_10>(x, y) }
    });
    std::array::from_fn(|i| {
        let (x, y) = (quads[i % 4], quads[i % 4 + 4]);
        if i < 4 { _mm256_permute2f128_ps::<0x20>(x, y) } else { _mm256_permute2f128_ps::<0x31>(x, y) }
    })
}
