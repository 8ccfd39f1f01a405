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

    /// Whether its rows (else its columns) are what lies side by side, and how far they are apart, where 16-byte accesses
    /// are aligned.
    fn packed(&self) -> Option<(bool, usize)> {
        let (along_rows, apart) = match (self.row_stride, self.col_stride) {
            (apart, 1) => (true, apart),
            (1, apart) => (false, apart),
            _ => return None,
        };
        (apart.is_multiple_of(8) && self.elems.is_aligned(16)).then_some((along_rows, apart))
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
    if a.elems.dtype() == DType::Bf16
        && let (Some((a_along_k, lda)), Some((b_along_k, ldb))) = (a.packed(), b.t().packed())
    {
        tensor_cores(gpu, c, [a.elems, b.elems], alpha, beta, [m, n, k], (a_along_k, lda), (b_along_k, ldb));
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

/// The product on tensor cores; `lda` and `ldb` with whether the operand lies along K.
#[allow(clippy::too_many_arguments)] // a matrix product's own
fn tensor_cores(
    gpu: &Gpu,
    c: &mut TensorMut,
    [a, b]: [Alias; 2],
    alpha: f32,
    beta: f32,
    [m, n, k]: [usize; 3],
    (a_along_k, lda): (bool, usize),
    (b_along_k, ldb): (bool, usize),
) {
    let grid = Grid::linear(m.div_ceil(MMA_TILE) * n.div_ceil(MMA_TILE));
    macro_rules! run {
        ($kernel:ident) => {
            launch::$kernel(gpu, grid, c.ptr_mut(), a.ptr(), b.ptr(), alpha, beta, m, n, k, lda, ldb)
        };
    }
    match (a_along_k, b_along_k, c.dtype()) {
        (true, true, DType::Bf16) => run!(gemm_mma_ak_bk_bf16),
        (true, true, DType::F32) => run!(gemm_mma_ak_bk_bf16_to_f32),
        (true, false, DType::Bf16) => run!(gemm_mma_ak_bn_bf16),
        (true, false, DType::F32) => run!(gemm_mma_ak_bn_bf16_to_f32),
        (false, true, DType::Bf16) => run!(gemm_mma_am_bk_bf16),
        (false, true, DType::F32) => run!(gemm_mma_am_bk_bf16_to_f32),
        (false, false, DType::Bf16) => run!(gemm_mma_am_bn_bf16),
        (false, false, DType::F32) => run!(gemm_mma_am_bn_bf16_to_f32),
        (_, _, to) => panic!("no kernel multiplies bf16 to {to}"),
    }
}

/// Rows and columns of C of one block of the kernels on plain cores, and on tensor cores.
const TILE: usize = 64;
const MMA_TILE: usize = 128;
