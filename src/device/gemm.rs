//! Matrix products on a GPU: the one place that chooses a kernel. `C [M, N] = alpha A [M, K] B [K, N] + beta D [M, N]`.
//!
//! bf16 by bf16 runs on tensor cores: by `wgmma` where the device has it, rows lie 16 bytes apart and C is large enough, else by
//! `mma`; rows that are not 16 bytes apart take narrower copies. f32 runs on the plain cores.

use super::Device;
use super::cpu::WriteMode;
use super::gpu::Gpu;
use super::launch::{self, Grid, Ptr, by_dtype};
use super::modules;
use crate::tensor::{Alias, Arena, DType, Tensor, TensorMut};
use half::bf16;

/// A matrix to read: a tensor seen as rows and columns, or its transpose.
#[derive(Clone, Copy)]
pub struct Operand {
    elems: Alias,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// How an operand lies in memory.
#[derive(Clone, Copy)]
struct Packed {
    /// Whether its rows, else its columns, are what lies side by side.
    along_rows: bool,
    /// Elements from one to the next.
    apart: usize,
    /// Elements of the widest aligned copy: 8, 4, 2 or 1.
    width: usize,
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

    fn packed(&self) -> Packed {
        let (along_rows, apart) = if self.col_stride == 1 { (true, self.row_stride) } else { (false, self.col_stride) };
        let fits = |width: &usize| apart.is_multiple_of(*width) && self.elems.is_aligned(2 * *width as u64);
        Packed { along_rows, apart, width: [8, 4, 2].into_iter().find(fits).unwrap_or(1) }
    }

    /// Whether the kernels for rows 16 bytes apart take it: bf16 that lies so.
    pub fn is_wide(&self) -> bool {
        self.elems.dtype() == DType::Bf16 && self.packed().width == 8
    }
}

/// `c = a b` or `c += a b`.
///
/// # Panics
/// If the shapes or types do not fit: f32 by f32 gives f32, bf16 by bf16 gives either.
pub fn gemm(arena: &Arena, c: &mut TensorMut, a: Operand, b: Operand, mode: WriteMode) {
    Product::of(c, a, b, mode).run(arena, c);
}

/// `c = alpha a b + beta d`, `d` of the type and size of `c`.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_onto(arena: &Arena, c: &mut TensorMut, d: &Tensor, a: Operand, b: Operand, [alpha, beta]: [f32; 2]) {
    assert_eq!(d.elems(), c.shape().elems(), "what a product is added to");
    Product { a, b, d: d.alias(), alpha, beta }.run(arena, c);
}

/// `y [N, O] = x [N, K] w^T`, `w [O, K]`, or added to `residual [N, O]`: no row of `y` depends on how many there are, or on the others. Slower than
/// [`gemm`] where there are many rows.
///
/// # Panics
/// If the shapes or types do not fit: f32 by f32 gives f32, bf16 by bf16 gives bf16.
pub fn gemm_rows(y: &mut TensorMut, residual: Option<&Tensor>, x: &Tensor, w: &Tensor) {
    let ([n, k], [o, _]) = (x.shape().rows_cols(), w.dims());
    let (a, b) = (Operand::new(x, n, k), Operand::new(w, o, k).t());
    let (d, beta) = residual.map_or((y.alias(), 0.0), |d| (d.alias(), 1.0));
    let product = Product { a, b, d, alpha: 1.0, beta };
    product.check(y);
    let gpu = gpu_of(y);
    match (x.dtype(), a.is_wide() && b.t().is_wide()) {
        (DType::Bf16, true) => gemm_rows_into(y, 0, residual, x, w),
        // Each number is one sum along all of K, whatever the size.
        (DType::Bf16, false) => product.tensor_cores(gpu, y, MMA, 1),
        _ => product.plain_cores(gpu, y),
    }
}

/// Columns `first` to `first + O` of `y` by [`gemm_rows`] in bf16, of rows in whole vectors.
///
/// # Panics
/// If the shapes or types do not fit, or a row of `x` or `w` does not begin at a multiple of 16 bytes.
pub(super) fn gemm_rows_into(y: &mut TensorMut, first: usize, d: Option<&Tensor>, x: &Tensor, w: &Tensor) {
    let ([n, k], [o, _], [_, pitch]) = (x.shape().rows_cols(), w.dims(), y.shape().rows_cols());
    let (a, b) = (Operand::new(x, n, k), Operand::new(w, o, k));
    assert!(a.is_wide() && b.is_wide() && first + o <= pitch, "{n} rows of {k} by {o} into columns of {pitch}");
    let ((is_few, grid), gpu) = (rows_grid(n, o), gpu_of(y));
    let d = d.map_or(Ptr::none(), |d| d.ptr::<bf16>().part(first));
    let (y, x, w) = (y.ptr_mut::<bf16>(), x.ptr(), w.ptr());
    match is_few {
        true => launch::gemm_rows_few_bf16(gpu, grid, y.part(first), d, x, w, n, o, k, pitch),
        false => launch::gemm_rows_many_bf16(gpu, grid, y.part(first), d, x, w, n, o, k, pitch),
    }
}

/// Whether the kernel for few rows multiplies `n` rows of X by `o` of W, and its blocks.
pub(super) fn rows_grid(n: usize, o: usize) -> (bool, Grid) {
    let rows = if n <= FEW_ROWS { FEW_ROWS } else { MANY_ROWS };
    (n <= FEW_ROWS, Grid { blocks: [o.div_ceil(ROWS_OF_W), n.div_ceil(rows), 1], smem_bytes: 0 })
}

/// Rows of W and of X of a block of `gemm_rows`.
const ROWS_OF_W: usize = 16;
const FEW_ROWS: usize = 8;
const MANY_ROWS: usize = 64;

/// As [`gemm`] on the plain cores, whatever the type: the twin that the others are held against.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_naive(c: &mut TensorMut, a: Operand, b: Operand, mode: WriteMode) {
    let product = Product::of(c, a, b, mode);
    product.check(c);
    product.plain_cores(gpu_of(c), c);
}

/// As [`gemm`] of bf16 by the kernels that every device has: what those of a newer one are held against.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_mma(arena: &Arena, c: &mut TensorMut, a: Operand, b: Operand, mode: WriteMode) {
    let product = Product::of(c, a, b, mode);
    product.check(c);
    product.in_parts(arena, c, MMA);
}

/// How kernels on tensor cores cut a product.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Rows and columns of C of a block, and its step along K.
    tile: [usize; 2],
    depth: usize,
    /// Blocks that run at the same time. One number for all devices that have the kernels, so that they sum in the same order.
    blocks_at_once: usize,
}

/// Two blocks on each of the 108 multiprocessors of an A100; an H100 has more.
pub const MMA: Cut = Cut { tile: [MMA_TILE; 2], depth: 32, blocks_at_once: 216 };
/// One on each of the 132 multiprocessors of an H100.
pub const WGMMA: Cut = Cut { tile: [128, 256], depth: 64, blocks_at_once: 132 };
/// Dynamic shared memory of a block, as `kernels/gemm_wgmma.cu` divides it.
pub const WGMMA_SMEM_BYTES: usize = 217_152;

/// Numbers along K that are worth a part of their own: their operands are twice the traffic of the part's sums, which go to memory
/// and back.
const PART_DEPTH: usize = 512;

impl Cut {
    fn tiles(&self, [m, n, _]: [usize; 3]) -> usize {
        m.div_ceil(self.tile[0]) * n.div_ceil(self.tile[1])
    }

    /// Parts that K is cut into, a function of the sizes alone: more than one where C has too few tiles for all multiprocessors
    /// and K is long.
    pub fn parts_of_k(&self, sizes: [usize; 3]) -> usize {
        let steps = sizes[2].div_ceil(self.depth);
        let parts = (self.blocks_at_once / self.tiles(sizes).max(1)).min(steps / (PART_DEPTH / self.depth)).max(1);
        // As the kernels cut them: none is empty.
        steps.div_ceil(steps.div_ceil(parts).max(1)).max(1)
    }

    const fn parts_bytes_max(&self) -> usize {
        self.blocks_at_once * self.tile[0] * self.tile[1] * size_of::<f32>()
    }
}

/// Most bytes that the sums of parts take beside a product: those of all blocks that run at the same time.
pub const PARTS_BYTES_MAX: usize = WGMMA.parts_bytes_max();
const _: () = assert!(PARTS_BYTES_MAX >= MMA.parts_bytes_max(), "the kernels whose parts take the most");

/// A product and what it is added to.
#[derive(Clone, Copy)]
struct Product {
    a: Operand,
    b: Operand,
    d: Alias,
    alpha: f32,
    beta: f32,
}

/// Launches the kernel for how A and B lie (along K or not) and for the type of C.
macro_rules! by_layout {
    ($layout:expr, $dtype:expr, $args:tt, $($along_k:pat => $bf16:ident | $f32:ident,)*) => {
        match ($layout, $dtype) {
            $(($along_k, DType::Bf16) => launch::$bf16 $args,
            ($along_k, DType::F32) => launch::$f32 $args,)*
            (_, to) => panic!("no kernel multiplies bf16 to {to}"),
        }
    };
}

impl Product {
    /// `a b`, which replaces `c` or is added to it.
    fn of(c: &TensorMut, a: Operand, b: Operand, mode: WriteMode) -> Product {
        let beta = match mode {
            WriteMode::Overwrite => 0.0,
            WriteMode::Accumulate => 1.0,
        };
        Product { a, b, d: c.alias(), alpha: 1.0, beta }
    }

    fn sizes(&self) -> [usize; 3] {
        [self.a.rows, self.b.cols, self.a.cols]
    }

    fn check(&self, c: &TensorMut) {
        let [m, n, k] = self.sizes();
        assert!(self.b.rows == k && c.shape().elems() == m * n, "matmul shapes");
    }

    fn run(&self, arena: &Arena, c: &mut TensorMut) {
        self.check(c);
        let [m, n, _] = self.sizes();
        if m * n == 0 {
            return;
        }
        if self.a.elems.dtype() != DType::Bf16 {
            return self.plain_cores(gpu_of(c), c);
        }
        self.in_parts(arena, c, if self.is_for_wgmma(gpu_of(c)) { WGMMA } else { MMA });
    }

    /// Whether this executable has the kernels for the device, they take the operands, and C fills more than half of a tile each way:
    /// below, the smaller tiles of `mma` waste less.
    fn is_for_wgmma(&self, gpu: &Gpu) -> bool {
        let ([m, n, _], [rows, cols]) = (self.sizes(), WGMMA.tile);
        let has = || modules::best("gemm_wgmma", gpu.driver().capability()).is_some();
        2 * m > rows && 2 * n > cols && self.a.is_wide() && self.b.is_wide() && has()
    }

    /// On tensor cores, K in as many parts as the sizes ask for.
    fn in_parts(&self, arena: &Arena, c: &mut TensorMut, cut: Cut) {
        let (gpu, [m, n, _], parts) = (gpu_of(c), self.sizes(), cut.parts_of_k(self.sizes()));
        if parts == 1 {
            return self.tensor_cores(gpu, c, cut, 1);
        }
        let mut sums = Tensor::uninit(arena, [parts, m, n], DType::F32);
        let (mut each, d) = (sums.whole_mut(), self.d);
        Product { d: each.alias(), alpha: 1.0, beta: 0.0, ..*self }.tensor_cores(gpu, &mut each, cut, parts);
        by_dtype!(
            c.dtype(),
            gemm_split_sum_f32 | gemm_split_sum_bf16,
            (gpu, Grid::over(m * n, 1024), c.ptr_mut(), d.ptr(), sums.ptr(), self.alpha, self.beta, parts, m * n)
        );
    }

    /// On tensor cores, K in `parts` parts: with more than one `c` is `[parts, M, N]`.
    fn tensor_cores(&self, gpu: &Gpu, c: &mut TensorMut, cut: Cut, parts: usize) {
        let (Product { a, b, d, alpha, beta }, [m, n, k]) = (*self, self.sizes());
        let tiles = cut.tiles([m, n, k]);
        let (left, right) = (a.packed(), b.t().packed());
        let (layout, lda, ldb) = ((left.along_rows, right.along_rows), left.apart, right.apart);
        let [a, b] = [a.elems, b.elems];
        if cut == WGMMA {
            // A block for each multiprocessor, which takes tiles in turn.
            let blocks = tiles.min((gpu.driver().multiprocessors() / parts).max(1));
            let grid = Grid { blocks: [blocks, parts, 1], smem_bytes: WGMMA_SMEM_BYTES };
            by_layout!(
                layout, c.dtype(), (gpu, grid, c.ptr_mut(), d.ptr(), a.ptr(), b.ptr(), alpha, beta, m, n, k, lda, ldb),
                (true, true) => gemm_wgmma_ak_bk_bf16 | gemm_wgmma_ak_bk_bf16_to_f32,
                (true, false) => gemm_wgmma_ak_bn_bf16 | gemm_wgmma_ak_bn_bf16_to_f32,
                (false, true) => gemm_wgmma_am_bk_bf16 | gemm_wgmma_am_bk_bf16_to_f32,
                (false, false) => gemm_wgmma_am_bn_bf16 | gemm_wgmma_am_bn_bf16_to_f32,
            );
            return;
        }
        let grid = Grid { blocks: [tiles, parts, 1], smem_bytes: 0 };
        if left.width == 8 && right.width == 8 {
            by_layout!(
                layout, c.dtype(), (gpu, grid, c.ptr_mut(), d.ptr(), a.ptr(), b.ptr(), alpha, beta, m, n, k, lda, ldb),
                (true, true) => gemm_mma_ak_bk_bf16 | gemm_mma_ak_bk_bf16_to_f32,
                (true, false) => gemm_mma_ak_bn_bf16 | gemm_mma_ak_bn_bf16_to_f32,
                (false, true) => gemm_mma_am_bk_bf16 | gemm_mma_am_bk_bf16_to_f32,
                (false, false) => gemm_mma_am_bn_bf16 | gemm_mma_am_bn_bf16_to_f32,
            );
            return;
        }
        let (wa, wb) = (left.width, right.width);
        by_layout!(
            layout, c.dtype(), (gpu, grid, c.ptr_mut(), d.ptr(), a.ptr(), b.ptr(), alpha, beta, m, n, k, lda, ldb, wa, wb),
            (true, true) => gemm_mma_narrow_ak_bk_bf16 | gemm_mma_narrow_ak_bk_bf16_to_f32,
            (true, false) => gemm_mma_narrow_ak_bn_bf16 | gemm_mma_narrow_ak_bn_bf16_to_f32,
            (false, true) => gemm_mma_narrow_am_bk_bf16 | gemm_mma_narrow_am_bk_bf16_to_f32,
            (false, false) => gemm_mma_narrow_am_bn_bf16 | gemm_mma_narrow_am_bn_bf16_to_f32,
        );
    }

    fn plain_cores(&self, gpu: &Gpu, c: &mut TensorMut) {
        let (Product { a, b, d, alpha, beta }, [m, n, k]) = (*self, self.sizes());
        let grid = Grid { blocks: [n.div_ceil(TILE), m.div_ceil(TILE), 1], smem_bytes: 0 };
        macro_rules! run {
            ($kernel:ident) => {{
                let (c, d, a_elems, b_elems) = (c.ptr_mut(), d.ptr(), a.elems.ptr(), b.elems.ptr());
                let ([a_m, a_k], [b_k, b_n]) = ([a.row_stride, a.col_stride], [b.row_stride, b.col_stride]);
                launch::$kernel(gpu, grid, c, d, a_elems, b_elems, alpha, beta, m, n, k, a_m, a_k, b_k, b_n)
            }};
        }
        match (a.elems.dtype(), c.dtype()) {
            (DType::F32, DType::F32) => run!(gemm_naive_tiled_f32),
            (DType::Bf16, DType::Bf16) => run!(gemm_naive_tiled_bf16),
            (DType::Bf16, DType::F32) => run!(gemm_naive_tiled_bf16_to_f32),
            (from, to) => panic!("no kernel multiplies {from} to {to}"),
        }
    }
}

fn gpu_of(c: &TensorMut) -> &'static Gpu {
    match c.device() {
        Device::Gpu(gpu) => gpu,
        Device::Cpu => panic!("products on the CPU are `cpu::matmul`"),
    }
}

/// Rows and columns of C of one block of the kernels on plain cores, and by `mma`.
const TILE: usize = 64;
pub(crate) const MMA_TILE: usize = 128;
