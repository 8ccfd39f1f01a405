//! Matrix products on a GPU: the one place that chooses a kernel. `C [M, N] = A [M, K] B [K, N]`.

use super::cpu::WriteMode;
use super::gpu::Gpu;
use super::launch::{self, Grid};
use crate::tensor::{Alias, DType, Tensor, TensorMut};

/// A matrix to read: a tensor seen as rows and columns, or its transpose.
#[derive(Clone, Copy)]
pub struct Operand {
    elems: Alias,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl Operand {
    /// A tensor as `rows x cols`, row-major.
    ///
    /// # Panics
    /// If it has another number of elements.
    pub fn new(tensor: &Tensor, rows: usize, cols: usize) -> Operand {
        assert_eq!(rows * cols, tensor.elems(), "{tensor:?} as {rows} x {cols}");
        Operand { elems: tensor.alias(), rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, by strides alone.
    pub fn t(self) -> Operand {
        Operand { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If the shapes or types do not fit: f32 by f32 gives f32, bf16 by bf16 gives either.
pub fn gemm(gpu: &Gpu, c: &mut TensorMut, a: Operand, b: Operand, mode: WriteMode) {
    let beta = match mode {
        WriteMode::Overwrite => 0.0,
        WriteMode::Accumulate => 1.0,
    };
    gemm_scaled(gpu, c, a, b, 1.0, beta);
}

/// `c = alpha a b + beta c`; where `beta` is 0 the old content is not read.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_scaled(gpu: &Gpu, c: &mut TensorMut, a: Operand, b: Operand, alpha: f32, beta: f32) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(b.rows == k && c.shape().elems() == m * n, "matmul shapes");
    if k == 0 || m * n == 0 {
        return;
    }
    let grid = Grid { blocks: [n.div_ceil(TILE), m.div_ceil(TILE), 1], smem_bytes: 0 };
    macro_rules! run {
        ($kernel:ident) => {{
            let (c, a_elems, b_elems) = (c.ptr_mut(), a.elems.ptr(), b.elems.ptr());
            let ([a_m, a_k], [b_k, b_n]) = ([a.row_stride, a.col_stride], [b.row_stride, b.col_stride]);
            launch::$kernel(gpu, grid, c, a_elems, b_elems, alpha, beta, m, n, k, a_m, a_k, b_k, b_n)
        }};
    }
    match (a.elems.dtype(), c.dtype()) {
        (DType::F32, DType::F32) => run!(gemm_naive_tiled_f32),
        (DType::Bf16, DType::Bf16) => run!(gemm_naive_tiled_bf16),
        (DType::Bf16, DType::F32) => run!(gemm_naive_tiled_bf16_to_f32),
        (from, to) => panic!("no kernel multiplies {from} to {to}"),
    }
}

/// Rows and columns of C of one block.
const TILE: usize = 64;
