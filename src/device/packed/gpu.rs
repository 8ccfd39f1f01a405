//! Packed weights on a GPU: its kernels read the panels as they are, in bf16 by bf16 (`kernels/gemm_packed.cu`).

use super::{PackedMatrix, Panels};
use crate::device::Device;
use crate::device::gemm::{gemm_rows_into, rows_grid};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr};
use crate::tensor::{Arena, BlockType, DType, Tensor, TensorMut};
use half::bf16;

/// Whether kernels read blocks of `kind`; other weights are laid down in bf16.
fn is_read(kind: BlockType) -> bool {
    matches!(kind, BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q8_0)
}

/// Whether products on a GPU take rows of this width: whole vectors of bf16.
pub fn takes(matrix: &PackedMatrix) -> bool {
    matrix.cols.is_multiple_of(8)
}

/// A matrix on `gpu`.
pub fn to_gpu(matrix: &PackedMatrix, gpu: &'static Gpu) -> PackedMatrix {
    let device = Device::Gpu(gpu);
    let Panels::Host(bytes) = &matrix.panels else { return matrix.clone() };
    let (kind, tensor) = match is_read(matrix.kind) {
        true => {
            let mut words = Tensor::owned_on(device, [bytes.len() / 4], DType::U32);
            words.copy_from_bytes(bytes);
            (matrix.kind, words)
        }
        false => {
            let mut rows = Tensor::owned_on(device, [matrix.rows, matrix.cols], DType::Bf16);
            rows.copy_from_slice(&matrix.to_f32().into_iter().map(bf16::from_f32).collect::<Vec<bf16>>());
            (BlockType::Bf16, rows)
        }
    };
    PackedMatrix { kind, panels: Panels::Device(tensor), ..matrix.clone() }
}

/// `y [N, O] = x [N, K] W^T`, or added to `d [N, O]`, all in bf16; the outputs of several matrices lie side by side. No row of `y` depends on how
/// many there are.
///
/// # Panics
/// If the shapes or types do not fit, or a matrix lies elsewhere.
pub fn gemm_packed(y: &mut TensorMut, d: Option<&Tensor>, x: &Tensor, matrices: &[PackedMatrix]) {
    let ([n, k], Device::Gpu(gpu)) = (x.shape().rows_cols(), x.device()) else {
        panic!("gemm_packed on the processor")
    };
    let outputs: usize = matrices.iter().map(|matrix| matrix.rows).sum();
    assert!(x.dtype() == DType::Bf16 && y.dtype() == DType::Bf16, "{} to {} by packed weights", x.dtype(), y.dtype());
    assert_eq!(y.shape().rows_cols(), [n, outputs], "a product of {n} rows with {matrices:?}");
    assert!(d.is_none_or(|d| d.shape().rows_cols() == [n, outputs] && d.dtype() == DType::Bf16), "what it is added to");
    let mut first = 0;
    for matrix in matrices {
        assert_eq!(matrix.cols, k, "rows of {k} by {matrix:?}");
        let w = matrix.on_device();
        match matrix.kind {
            BlockType::Bf16 => gemm_rows_into(y, first, d, x, w),
            kind => launch_packed(gpu, kind, (y, first), d, x, (w, matrix.rows)),
        }
        first += matrix.rows;
    }
}

fn launch_packed(
    gpu: &'static Gpu,
    kind: BlockType,
    (y, first): (&mut TensorMut, usize),
    d: Option<&Tensor>,
    x: &Tensor,
    (w, o): (&Tensor, usize),
) {
    let ([n, k], [_, pitch]) = (x.shape().rows_cols(), y.shape().rows_cols());
    let (is_few, grid) = rows_grid(n, o);
    let d = d.map_or(Ptr::none(), |d| d.ptr::<bf16>().part(first));
    let (y, x, w) = (y.ptr_mut::<bf16>(), x.ptr::<bf16>(), w.ptr::<u32>());
    assert!(x.is_aligned(8), "rows of a product with packed weights begin at multiples of 8 bytes");
    let y = y.part(first);
    match (kind, is_few) {
        (BlockType::Q4_0, true) => launch::gemm_packed_few_q4_0_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (BlockType::Q4_0, false) => launch::gemm_packed_many_q4_0_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (BlockType::Q4_1, true) => launch::gemm_packed_few_q4_1_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (BlockType::Q4_1, false) => launch::gemm_packed_many_q4_1_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (BlockType::Q8_0, true) => launch::gemm_packed_few_q8_0_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (BlockType::Q8_0, false) => launch::gemm_packed_many_q8_0_bf16(gpu, grid, y, d, x, w, n, o, k, pitch),
        (kind, _) => panic!("{} is not read on a GPU", kind.name()),
    }
}

/// Elements that a block of the look-up writes.
const LOOKED_UP: usize = 1024;

/// Rows of a packed table `[V, C]` in blocks: `tokens [N]` -> `[N, C]` in bf16.
///
/// # Panics
/// If the matrix lies elsewhere, or in bf16.
pub fn look_up(arena: &Arena, table: &PackedMatrix, tokens: &Tensor) -> Tensor {
    let (Device::Gpu(gpu), n, v, c) = (tokens.device(), tokens.elems(), table.rows, table.cols) else {
        panic!("look_up on the processor")
    };
    let mut y = Tensor::uninit(arena, [n, c], DType::Bf16);
    let (grid, w, tokens) = (Grid::over(n * c, LOOKED_UP), table.on_device().ptr(), tokens.ptr());
    match table.kind {
        BlockType::Q4_0 => launch::embedding_packed_fwd_q4_0_bf16(gpu, grid, y.ptr_mut(), w, tokens, n, v, c),
        BlockType::Q4_1 => launch::embedding_packed_fwd_q4_1_bf16(gpu, grid, y.ptr_mut(), w, tokens, n, v, c),
        BlockType::Q8_0 => launch::embedding_packed_fwd_q8_0_bf16(gpu, grid, y.ptr_mut(), w, tokens, n, v, c),
        kind => panic!("{} is not read on a GPU", kind.name()),
    }
    y
}
