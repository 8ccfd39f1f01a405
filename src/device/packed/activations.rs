//! The other operand of products with quantised weights: rows in blocks of 32 integers with a scale each.

use crate::device::cpu::simd;
use rayon::prelude::*;
use std::cell::Cell;

/// Elements of a block.
pub const BLOCK: usize = 32;

/// What a block has beside its integers `q`, of which `x = d q` within `d / 2`.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct BlockScale {
    /// Largest magnitude / 127; NaN where an element is not finite.
    pub d: f32,
    /// `d` times the sum of `q`.
    pub weighted_sum: f32,
    /// Sums of the first 16 `q` and of the others.
    pub half_sums: [i16; 2],
    /// Sum of all `q`.
    pub sum: i32,
}

/// Rows `[n, i]` in blocks along a row; of a row of activations one, or several whose sum it is.
#[derive(Clone, Copy)]
pub struct Quantised<'a> {
    /// `[n, i]`, from -127 to 127.
    pub q: &'a [i8],
    /// `[n, i / 32]`.
    pub scales: &'a [BlockScale],
    /// `i`, a multiple of [`BLOCK`].
    pub cols: usize,
}

impl<'a> Quantised<'a> {
    /// The integers of row `n`.
    pub fn row(&self, n: usize) -> &'a [i8] {
        &self.q[n * self.cols..][..self.cols]
    }

    /// The scales of row `n`.
    pub fn row_scales(&self, n: usize) -> &'a [BlockScale] {
        let blocks = self.cols / BLOCK;
        &self.scales[n * blocks..][..blocks]
    }
}

/// Where a row of [`Quantised`] lies, for vectors.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Row {
    q: *const i8,
    scales: *const BlockScale,
}

#[cfg(target_arch = "x86_64")]
impl Row {
    /// `N` rows, whose ends are checked here.
    pub fn several<const N: usize>(x: Quantised, first: usize) -> [Row; N] {
        std::array::from_fn(|n| Row { q: x.row(first + n).as_ptr(), scales: x.row_scales(first + n).as_ptr() })
    }

    /// Four integers from `at` on.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    pub unsafe fn quad(self, at: usize) -> i32 {
        // SAFETY: by the caller's promise.
        unsafe { self.q.add(at).cast::<i32>().read_unaligned() }
    }

    /// The scale of block `b`.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    pub unsafe fn scale(self, b: usize) -> BlockScale {
        // SAFETY: by the caller's promise.
        unsafe { *self.scales.add(b) }
    }

    /// The two sums of 16 of block `b`, as one number.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    pub unsafe fn half_sums(self, b: usize) -> i32 {
        // SAFETY: by the caller's promise; two i16 are four bytes.
        unsafe { std::ptr::addr_of!((*self.scales.add(b)).half_sums).cast::<i32>().read_unaligned() }
    }
}

thread_local! {
    static SCRATCH: Cell<(Vec<i8>, Vec<BlockScale>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Elements of a task: fewer are not worth another thread.
const TASK_ELEMS: usize = 1 << 15;

/// Runs `work` with the rows `x [n, cols]` quantised to `terms` rows each, in memory that the thread keeps between calls. The second
/// row of a row is of what the first leaves, and so on.
pub fn with_quantised<R>(x: &[f32], cols: usize, terms: usize, work: impl FnOnce(Quantised) -> R) -> R {
    assert!(
        cols.is_multiple_of(BLOCK) && x.len().is_multiple_of(cols.max(1)),
        "{} elements in rows of {cols}",
        x.len()
    );
    let (mut q, mut scales) = SCRATCH.take();
    let (elems, blocks) = (x.len() * terms, x.len() * terms / BLOCK);
    if q.len() < elems {
        q.resize(elems, 0);
        scales.resize(blocks, BlockScale::default());
    }
    if elems < TASK_ELEMS {
        quantise(&mut q[..elems], &mut scales[..blocks], x, cols);
    } else {
        let task = (TASK_ELEMS / cols).max(1) * cols;
        let quantised = q[..elems].par_chunks_mut(task * terms);
        let quantised = quantised.zip(scales[..blocks].par_chunks_mut(task * terms / BLOCK));
        quantised.zip(x.par_chunks(task)).for_each(|((q, scales), x)| quantise(q, scales, x, cols));
    }
    let result = work(Quantised { q: &q[..elems], scales: &scales[..blocks], cols });
    SCRATCH.set((q, scales));
    result
}

/// Whole rows; as many rows of `q` for a row of `x` as go in.
fn quantise(q: &mut [i8], scales: &mut [BlockScale], x: &[f32], cols: usize) {
    let (terms, blocks) = (q.len() / x.len().max(1), cols / BLOCK);
    let (q, scales) = (q.as_chunks_mut::<BLOCK>().0, scales);
    simd(
        #[inline(always)]
        || {
            let rows = q.chunks_exact_mut(terms * blocks).zip(scales.chunks_exact_mut(terms * blocks));
            for ((q, scales), x) in rows.zip(x.chunks_exact(cols)) {
                for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                    let mut left = *x;
                    for at in (block..terms * blocks).step_by(blocks) {
                        scales[at] = quantise_block(&mut q[at], &left);
                        left.iter_mut().zip(&q[at]).for_each(|(left, &q)| *left -= scales[at].d * f32::from(q));
                    }
                }
            }
        },
    );
}

/// Rounds to the nearest multiple of the scale, ties to even. Blocks too small for a normal scale are 0.
#[inline(always)]
fn quantise_block(q: &mut [i8; BLOCK], x: &[f32; BLOCK]) -> BlockScale {
    // Magnitudes order as their bits do, infinities and NaN above all numbers.
    let peak = f32::from_bits(x.iter().fold(0, |peak, x| peak.max(x.to_bits() & 0x7fff_ffff)));
    if peak < 127.0 * f32::MIN_POSITIVE {
        *q = [0; BLOCK];
        return BlockScale::default();
    }
    // 1.5 x 2^23: a number of this size has no bits for fractions, and its last bits are the integer.
    const MAGIC: f32 = 12_582_912.0;
    let (d, inverse) = (peak / 127.0, 127.0 / peak);
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse + MAGIC).to_bits() as i8;
    }
    let half_sums = [0, 16].map(|first| q[first..first + 16].iter().map(|&q| i16::from(q)).sum::<i16>());
    let sum = i32::from(half_sums[0]) + i32::from(half_sums[1]);
    let d = if peak.is_finite() { d } else { f32::NAN };
    BlockScale { d, weighted_sum: d * sum as f32, half_sums, sum }
}
