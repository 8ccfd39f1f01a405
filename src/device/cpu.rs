//! The processor: run-time vector dispatch, fixed-size work splitting, and matrix products through the `gemm` crate.
//!
//! Every helper splits work by size alone, never by the number of threads, so that results do not depend on it.

#[cfg(target_arch = "x86_64")]
use super::gemm_avx2::{self, Target, View};
use crate::tensor::{DType, Elem, Float};
use rayon::prelude::*;
use std::sync::LazyLock;

static ARCH: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `work` compiled for the widest vectors of this machine. Only code inlined into `work` profits.
#[inline(always)]
pub fn simd<R>(work: impl FnOnce() -> R) -> R {
    ARCH.dispatch(work)
}

/// Elements that one task of an elementwise loop takes: 16 KiB of f32, far above the cost of a task.
pub const GRAIN_ELEMS: usize = 4096;

/// Rows per task, so that a task has about [`GRAIN_ELEMS`] elements.
pub fn grain_rows(cols: usize) -> usize {
    (GRAIN_ELEMS / cols.max(1)).max(1)
}

/// Whether a product overwrites its output or adds to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteMode {
    Overwrite,
    Accumulate,
}

/// Whether a product may use all threads or runs inside one task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    All,
    One,
}

/// A strided matrix to read.
#[derive(Clone, Copy)]
pub struct Mat<'a, F> {
    data: &'a [F],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, F> Mat<'a, F> {
    /// A contiguous row-major matrix.
    pub fn new(data: &'a [F], rows: usize, cols: usize) -> Mat<'a, F> {
        Mat::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If it does not lie inside `data`.
    pub fn strided(data: &'a [F], rows: usize, cols: usize, row_stride: usize) -> Mat<'a, F> {
        assert!(extent(rows, cols, row_stride) <= data.len(), "{rows}x{cols} by {row_stride} in {}", data.len());
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, by strides alone.
    pub fn t(self) -> Mat<'a, F> {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A strided row-major matrix to write. Several may interleave in one buffer as long as no element is shared.
pub struct MatMut<F> {
    ptr: *mut F,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<F> MatMut<F> {
    /// A contiguous row-major matrix that fills `data`.
    ///
    /// # Panics
    /// If the size differs.
    pub fn new(data: &mut [F], rows: usize, cols: usize) -> MatMut<F> {
        assert_eq!(rows * cols, data.len(), "matrix size");
        MatMut { ptr: data.as_mut_ptr(), rows, cols, row_stride: cols }
    }
}

fn extent(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols }
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<F: Float>(c: &mut [F], a: Mat<F>, b: Mat<F>, mode: WriteMode, threads: Threads) {
    let c = MatMut::new(c, a.rows, b.cols);
    // SAFETY: `c` borrows its buffer mutably for the whole call, so nothing else reads or writes it.
    unsafe { matmul_into(c, a, b, mode, threads) }
}

/// [`matmul`] into a matrix that may interleave with others.
///
/// # Safety
/// The elements of `c` must be valid for writes and not accessed by anything else during the call.
pub unsafe fn matmul_into<F: Float>(c: MatMut<F>, a: Mat<F>, b: Mat<F>, mode: WriteMode, threads: Threads) {
    assert!(a.cols == b.rows && c.rows == a.rows && c.cols == b.cols, "matmul shapes");
    #[cfg(target_arch = "x86_64")]
    if F::DTYPE == DType::F32 && gemm_avx2::serves(a.rows) {
        let view = |m: Mat<F>| View { ptr: m.data.as_ptr().cast(), row_stride: m.row_stride, col_stride: m.col_stride };
        let target = Target { ptr: c.ptr.cast(), row_stride: c.row_stride };
        // SAFETY: F is f32; a and b lie inside their slices (checked by `strided`); the caller vouches for c.
        unsafe { gemm_avx2::run(target, [a.rows, b.cols, a.cols], view(a), view(b), mode, threads) };
        return;
    }
    let parallelism = match threads {
        Threads::All => gemm::Parallelism::Rayon(0),
        Threads::One => gemm::Parallelism::None,
    };
    // SAFETY: reads a and b inside their slices (checked by `strided`), writes c's rows x cols elements, which the caller
    // vouches for; `gemm` accepts any strides and sizes.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c.ptr,
            1,
            c.row_stride as isize,
            mode == WriteMode::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            F::ONE,
            F::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A buffer that tasks write to in disjoint, interleaved parts, which slices cannot express.
pub struct SharedMut<'a, F> {
    ptr: *mut F,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [F]>,
}

// SAFETY: only `unsafe` methods write, and their callers vouch that tasks touch disjoint elements.
unsafe impl<F: Send> Sync for SharedMut<'_, F> {}

impl<'a, F> SharedMut<'a, F> {
    pub fn new(data: &'a mut [F]) -> SharedMut<'a, F> {
        SharedMut { ptr: data.as_mut_ptr(), len: data.len(), _borrow: std::marker::PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// No other access to these elements while the result lives.
    #[allow(clippy::mut_from_ref)] // the whole point: disjoint parts of one buffer, vouched for by the caller
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [F] {
        assert!(start + len <= self.len, "{start}+{len} of {}", self.len);
        // SAFETY: inside the borrowed buffer; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// The matrix at `start` whose rows are `row_stride` apart. Writing through it is `unsafe` in [`matmul_into`].
    ///
    /// # Panics
    /// If it does not lie inside the buffer.
    pub fn mat(&self, start: usize, rows: usize, cols: usize, row_stride: usize) -> MatMut<F> {
        assert!(start + extent(rows, cols, row_stride) <= self.len, "matrix outside its buffer");
        // SAFETY: `start` is inside the buffer or at its end.
        MatMut { ptr: unsafe { self.ptr.add(start) }, rows, cols, row_stride }
    }
}

/// Lanes of the partial sums below: two AVX-512 or four AVX2 registers of f32, enough to hide the latency of an addition.
const LANES: usize = 32;

/// Sum over `i` of `term(a[i], b[i])` in a fixed order, vectorised.
#[inline(always)]
pub fn sum_zip<A: Copy, B: Copy, F: Float>(a: &[A], b: &[B], term: impl Fn(A, B, F) -> F) -> F {
    let mut lanes = [F::ZERO; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (rest_a, rest_b) = (chunks_a.remainder(), chunks_b.remainder());
    for (x, y) in chunks_a.zip(chunks_b) {
        for i in 0..LANES {
            lanes[i] = term(x[i], y[i], lanes[i]);
        }
    }
    for (i, (&x, &y)) in rest_a.iter().zip(rest_b).enumerate() {
        lanes[i] = term(x, y, lanes[i]);
    }
    fold_lanes(lanes, |x, y| x + y)
}

/// `sum a[i] * b[i]`.
#[inline(always)]
pub fn dot<E: Elem>(a: &[E], b: &[E]) -> E::Acc {
    sum_zip(a, b, |x, y, acc: E::Acc| x.load().mul_add(y.load(), acc))
}

/// `sum a[i]^2`.
#[inline(always)]
pub fn sum_squares<E: Elem>(a: &[E]) -> E::Acc {
    dot(a, a)
}

/// The largest element, negative infinity for none.
#[inline(always)]
pub fn max_of<F: Float>(a: &[F]) -> F {
    let mut lanes = [F::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(x[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = lane.max(x);
    }
    fold_lanes(lanes, |x, y| x.max(y))
}

#[inline(always)]
fn fold_lanes<F: Float>(mut lanes: [F; LANES], combine: impl Fn(F, F) -> F) -> F {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Rows that one partial sum of [`sum_over_rows`] covers: fixed, so that the order of additions is.
const ROWS_PER_PARTIAL: usize = 128;

/// `out[c] += sum over rows r of term(r)[c]`, in an order that depends on sizes only. `term(r, acc)` adds row r to `acc`.
pub fn sum_over_rows<F: Float>(out: &mut [F], rows: usize, add_row: impl Fn(usize, &mut [F]) + Sync) {
    let cols = out.len();
    let mut partials = vec![F::ZERO; rows.div_ceil(ROWS_PER_PARTIAL) * cols];
    partials.par_chunks_mut(cols.max(1)).enumerate().for_each(|(i, partial)| {
        simd(
            #[inline(always)]
            || {
                for r in i * ROWS_PER_PARTIAL..((i + 1) * ROWS_PER_PARTIAL).min(rows) {
                    add_row(r, partial);
                }
            },
        )
    });
    for partial in partials.chunks(cols.max(1)) {
        for (o, &p) in out.iter_mut().zip(partial) {
            *o += p;
        }
    }
}

/// `to[i] = store(load(from[i]))`: converts between storage types.
pub fn convert<A: Elem, B: Elem<Acc = A::Acc>>(to: &mut [B], from: &[A]) {
    assert_eq!(to.len(), from.len(), "elements");
    to.par_chunks_mut(GRAIN_ELEMS * 4).zip(from.par_chunks(GRAIN_ELEMS * 4)).for_each(|(to, from)| {
        simd(
            #[inline(always)]
            || {
                for (t, f) in to.iter_mut().zip(from) {
                    *t = B::store(f.load());
                }
            },
        )
    });
}
