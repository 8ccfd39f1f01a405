//! Products with weights that stay as they are stored: `y [n, o] = x [n, i] W^T`, or added to `y`. Here on the processor; [`gpu`] has those
//! of a GPU.
//!
//! `W [o, i]` lies in [`panels`]; quantised weights meet activations quantised in blocks of 32 ([`activations`]), and single elements
//! meet f32. An element of `y` is one sum in one order, whatever the number of rows, of threads, or the vectors of the
//! machine: a row comes out the same bit for bit alone and among others.

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod gpu;
mod panels;
mod scalar;
mod slab;

use crate::device::Device;
use crate::device::cpu::{SharedMut, WriteMode};
use crate::tensor::{BlockType, Tensor};
use crate::user_bail;
use activations::{Quantised, with_quantised};
use panels::LANES;
use rayon::prelude::*;
use slab::Bytes;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// A matrix of weights `[rows, cols]`. Cloning shares the bytes.
#[derive(Clone)]
pub struct PackedMatrix {
    kind: BlockType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    panels: Panels,
}

#[derive(Clone)]
enum Panels {
    Host(Arc<Bytes>),
    /// The same as words, `[bytes / 4]`; weights of single elements are rows `[rows, cols]` in bf16.
    Device(Tensor),
}

impl PackedMatrix {
    /// From rows of blocks, one behind the other; they are copied.
    ///
    /// # Errors
    /// A user error where a row is not whole blocks, there is no element, or `bytes` has another length.
    ///
    /// # Panics
    /// When the system has no memory left.
    pub fn new(kind: BlockType, dims: [usize; 2], bytes: &[u8]) -> anyhow::Result<PackedMatrix> {
        PackedMatrix::in_order(kind, dims, bytes, |row| row)
    }

    /// As [`PackedMatrix::new`], where row `i` is the row `place(i)` of `bytes`.
    ///
    /// # Errors
    /// As [`PackedMatrix::new`].
    ///
    /// # Panics
    /// As [`PackedMatrix::new`]; if there is no such row.
    pub fn in_order(
        kind: BlockType,
        [rows, cols]: [usize; 2],
        bytes: &[u8],
        place: impl Fn(usize) -> usize + Sync,
    ) -> anyhow::Result<PackedMatrix> {
        let (block, name, given) = (kind.block_elems(), kind.name(), bytes.len());
        let row_bytes = match kind.row_bytes(cols) {
            Some(row_bytes) if rows > 0 && row_bytes > 0 => row_bytes,
            _ => user_bail!("a matrix of {rows} x {cols} in {name}: its width must be a multiple of {block}"),
        };
        if rows.checked_mul(row_bytes) != Some(given) {
            user_bail!("a matrix of {rows} x {cols} in {name} has {given} bytes; the file is damaged or cut short");
        }
        let mut panels = Bytes::zeros(panels::panels_bytes(rows, row_bytes));
        let row = |row: usize| &bytes[place(row) * row_bytes..][..row_bytes];
        panels::interleave(panels.as_mut(), rows, row, row_bytes, kind);
        Ok(PackedMatrix { kind, rows, cols, row_bytes, panels: Panels::Host(Arc::new(panels)) })
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// How it is stored.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Bytes it takes.
    pub fn size_bytes(&self) -> usize {
        match &self.panels {
            Panels::Host(bytes) => bytes.len(),
            Panels::Device(tensor) => tensor.size_bytes(),
        }
    }

    /// The values of row `row` in f32.
    ///
    /// # Panics
    /// If there is no such row, `out` has another width, or it lies on a GPU.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "elements of a row");
        self.kind.dequantise(&panels::row_of(self.on_host(), row, self.row_bytes, self.kind), out);
    }

    /// All values in f32, row by row.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols).enumerate().for_each(|(row, out)| self.dequantise_row(row, out));
        out
    }

    fn panel(&self, panel: usize) -> &[u8] {
        let bytes = LANES * self.row_bytes;
        &self.on_host()[panel * bytes..][..bytes]
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match &self.panels {
            Panels::Host(_) => Device::Cpu,
            Panels::Device(tensor) => tensor.device(),
        }
    }

    /// The rows `[rows, cols]` in bf16, where they lie so on a GPU.
    pub fn dense_rows(&self) -> Option<&Tensor> {
        match &self.panels {
            Panels::Device(rows) if self.kind == BlockType::Bf16 => Some(rows),
            _ => None,
        }
    }

    fn on_host(&self) -> &[u8] {
        match &self.panels {
            Panels::Host(bytes) => bytes,
            Panels::Device(_) => panic!("{self:?} lies on a GPU"),
        }
    }

    fn on_device(&self) -> &Tensor {
        match &self.panels {
            Panels::Host(_) => panic!("{self:?} lies on the processor"),
            Panels::Device(tensor) => tensor,
        }
    }
}

impl fmt::Debug for PackedMatrix {
    /// Type and shape, not the elements: `Q4_1[576, 1536]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}, {}]", self.kind.name(), self.rows, self.cols)
    }
}

/// How finely products with quantised weights see the other operand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ActivationBits {
    /// Integers of 8 bits: the fastest, and off by half a percent of a product's deviation.
    Eight,
    /// The sum of two integers of 8 bits, the second of what the first left: twice the work where memory does not bound it.
    #[default]
    Sixteen,
}

impl ActivationBits {
    /// Rows of integers for a row of activations.
    fn terms(self) -> usize {
        match self {
            ActivationBits::Eight => 1,
            ActivationBits::Sixteen => 2,
        }
    }
}

/// A weight: matrices of equal width, whose rows lie below each other.
#[derive(Clone, Copy, Debug)]
pub struct PackedWeight<'a> {
    pub matrices: &'a [PackedMatrix],
    pub bits: ActivationBits,
}

impl<'a> PackedWeight<'a> {
    /// One matrix.
    pub fn of(matrix: &'a PackedMatrix, bits: ActivationBits) -> PackedWeight<'a> {
        PackedWeight { matrices: std::slice::from_ref(matrix), bits }
    }
}

/// Whether products quantise the other operand too.
fn is_quantised(kind: BlockType) -> bool {
    kind.block_elems() > 1
}

/// Which kernels multiply. Machines that run one run those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kernels {
    /// Plain Rust; slow on a processor without fused multiply-adds, which it computes by software.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same, and AVX-512 F, BW and VNNI.
    Avx512,
}

impl Kernels {
    /// All that this machine can run, the best last.
    pub fn available() -> Vec<Kernels> {
        let all = [Kernels::Scalar, Kernels::Avx2, Kernels::Avx512];
        all.into_iter().filter(|kernels| kernels.run_here()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn run_here(self) -> bool {
        let has_256 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let has_512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni")
        };
        match self {
            Kernels::Scalar => true,
            Kernels::Avx2 => has_256(),
            Kernels::Avx512 => has_256() && has_512(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn run_here(self) -> bool {
        self == Kernels::Scalar
    }

    /// Panels that are multiplied together where there are as many.
    fn panels(self) -> usize {
        if self == Kernels::Avx512 { 2 } else { 1 }
    }
}

static BEST: LazyLock<Kernels> = LazyLock::new(|| Kernels::available().pop().unwrap_or(Kernels::Scalar));

/// `y [n, o] = x [n, i] W^T`, or added to `y`; the outputs of several matrices lie side by side, `o` being all their rows.
///
/// # Panics
/// If the shapes do not fit.
pub fn product(y: &mut [f32], x: &[f32], weight: PackedWeight, mode: WriteMode) {
    product_by(*BEST, y, x, weight, mode)
}

/// [`product`] by kernels that [`Kernels::available`] names.
///
/// # Panics
/// As [`product`]; if the machine cannot run them.
pub fn product_by(kernels: Kernels, y: &mut [f32], x: &[f32], weight: PackedWeight, mode: WriteMode) {
    let PackedWeight { matrices, bits } = weight;
    let Some(first) = matrices.first() else { panic!("a product with no matrix") };
    let cols = first.cols;
    assert!(matrices.iter().all(|matrix| matrix.cols == cols), "{matrices:?} side by side");
    assert!(x.len().is_multiple_of(cols), "{} elements in rows of {cols}", x.len());
    let (n, o) = (x.len() / cols, matrices.iter().map(|matrix| matrix.rows).sum::<usize>());
    assert_eq!(y.len(), n * o, "elements of a product of {n} rows with {matrices:?}");
    assert!(kernels <= *BEST, "{kernels:?} on this machine");
    let rows = Rows { x, cols };
    let shared = SharedMut::new(y);
    let product = |quantised: Option<Quantised>| {
        Product { y: &shared, o, n, rows, quantised, terms: bits.terms(), matrices, mode, kernels }.run();
    };
    match matrices.iter().any(|matrix| is_quantised(matrix.kind)) {
        true => with_quantised(x, cols, bits.terms(), |quantised| product(Some(quantised))),
        false => product(None),
    }
}

/// Rows `[n, i]` of f32.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    cols: usize,
}

impl<'a> Rows<'a> {
    fn row(&self, n: usize) -> &'a [f32] {
        &self.x[n * self.cols..][..self.cols]
    }
}

/// Rows that meet a panel together, at most: four sums, four vectors of integers, and the weights fill the registers; there are twice as
/// many where two panels are multiplied together.
const TILE: usize = 4;
/// Rows of activations that all panels of a task pass before the next: with 1536 columns 150 KiB, which L2 holds.
const ROWS: usize = 64;
/// Multiply-adds below which a task is not worth another thread: about 5 us.
const TASK_MACS: usize = 1 << 17;

struct Product<'a> {
    y: &'a SharedMut<'a, f32>,
    o: usize,
    n: usize,
    rows: Rows<'a>,
    quantised: Option<Quantised<'a>>,
    /// Rows of `quantised` for a row of `rows`.
    terms: usize,
    matrices: &'a [PackedMatrix],
    mode: WriteMode,
    kernels: Kernels,
}

/// The kernel of a module for weights of a kind, called.
macro_rules! by_kind {
    ($kernels:ident, $product:expr, $kind:expr, $weights:expr, $first:expr) => {
        match $kind {
            BlockType::F32 => $kernels::f32($weights, $product.rows, $first),
            BlockType::F16 => $kernels::f16($weights, $product.rows, $first),
            BlockType::Bf16 => $kernels::bf16($weights, $product.rows, $first),
            BlockType::Q8_0 => $kernels::q8_0($weights, $product.quantised(), $first),
            BlockType::Q4_0 => $kernels::q4_0($weights, $product.quantised(), $first),
            BlockType::Q4_1 => $kernels::q4_1($weights, $product.quantised(), $first),
            BlockType::Q6K => $kernels::q6_k($weights, $product.quantised(), $first),
        }
    };
}

impl Product<'_> {
    fn run(&self) {
        let panels = self.matrices.iter().map(|matrix| matrix.rows.div_ceil(LANES)).sum::<usize>();
        let macs = panels * LANES * self.rows.cols * self.n;
        let tasks = (macs / TASK_MACS).clamp(1, 4 * rayon::current_num_threads());
        let per_task = panels.div_ceil(tasks);
        if tasks == 1 {
            return self.panels(0, panels);
        }
        (0..panels.div_ceil(per_task)).into_par_iter().with_max_len(1).for_each(|task| {
            self.panels(task * per_task, ((task + 1) * per_task).min(panels));
        });
    }

    /// Panels `from..end`, counted through all matrices.
    fn panels(&self, from: usize, end: usize) {
        // Memory bounds a single row, and answers it faster where it reads on at one place.
        let together = if self.n == 1 { 1 } else { self.kernels.panels() };
        let (mut first_panel, mut first_output) = (0, 0);
        for matrix in self.matrices {
            let panels = matrix.rows.div_ceil(LANES);
            let [from, end] = [from, end].map(|panel| panel.clamp(first_panel, first_panel + panels) - first_panel);
            for first in (0..self.n).step_by(ROWS) {
                for panel in (from..end).step_by(together) {
                    let panels = panel..end.min(panel + together);
                    self.rows(matrix, panels, first_output + panel * LANES, first..self.n.min(first + ROWS));
                }
            }
            first_panel += panels;
            first_output += matrix.rows;
        }
    }

    /// Panels that are multiplied together, whose outputs begin at `output`, with some rows of x.
    fn rows(&self, matrix: &PackedMatrix, panels: Range<usize>, output: usize, rows: Range<usize>) {
        let terms = if is_quantised(matrix.kind) { self.terms } else { 1 };
        let (mut next, end) = (rows.start * terms, rows.end * terms);
        while next < end {
            // Whole rows of y, for a tile is a multiple of the terms.
            let tile = match end - next {
                left if left >= 2 * TILE && panels.len() == 2 => 2 * TILE,
                left => left.min(TILE),
            };
            match tile {
                1 => self.tile::<1>(matrix, panels.clone(), next, output),
                2 => self.tile::<2>(matrix, panels.clone(), next, output),
                3 => self.tile::<3>(matrix, panels.clone(), next, output),
                TILE => self.tile::<TILE>(matrix, panels.clone(), next, output),
                _ => self.tile::<{ 2 * TILE }>(matrix, panels.clone(), next, output),
            }
            next += tile;
        }
    }

    /// `N` rows of activations, quantised where the weights are, from `first` on.
    fn tile<const N: usize>(&self, matrix: &PackedMatrix, panels: Range<usize>, first: usize, output: usize) {
        let lanes = (panels.len() * LANES).min(matrix.rows - panels.start * LANES);
        #[cfg(target_arch = "x86_64")]
        if panels.len() == 2 {
            let weights = [matrix.panel(panels.start), matrix.panel(panels.start + 1)];
            return self.write(matrix, &self.pair_by_avx512::<N>(matrix.kind, weights, first), first, output, lanes);
        }
        let weights = matrix.panel(panels.start);
        #[cfg(target_arch = "x86_64")]
        if self.kernels >= Kernels::Avx2 {
            return self.write(matrix, &self.panel_by_avx2::<N>(matrix.kind, weights, first), first, output, lanes);
        }
        self.write(matrix, &self.panel_by_scalars::<N>(matrix.kind, weights, first), first, output, lanes);
    }

    /// Writes `lanes` outputs of each row of a tile.
    fn write<const L: usize>(
        &self,
        matrix: &PackedMatrix,
        sums: &[[f32; L]],
        first: usize,
        output: usize,
        lanes: usize,
    ) {
        let terms = if is_quantised(matrix.kind) { self.terms } else { 1 };
        for (row, sums) in sums.chunks_exact(terms).enumerate() {
            let mut sum = sums[0];
            for term in &sums[1..] {
                sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
            }
            // SAFETY: columns of these panels in a row of y; a panel is one task's.
            let y = unsafe { self.y.slice((first / terms + row) * self.o + output, lanes) };
            match (self.mode, <&mut [f32; L]>::try_from(&mut *y)) {
                (WriteMode::Overwrite, Ok(y)) => *y = sum,
                (WriteMode::Overwrite, Err(_)) => y.copy_from_slice(&sum[..lanes]),
                (WriteMode::Accumulate, _) => y.iter_mut().zip(sum).for_each(|(y, sum)| *y += sum),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn pair_by_avx512<const N: usize>(&self, kind: BlockType, weights: [&[u8]; 2], first: usize) -> avx512::Sums<N> {
        assert!(self.kernels == Kernels::Avx512, "two panels at once");
        // SAFETY: the machine has AVX-512 F, BW and VNNI (`product_by`); `weights` are panels of `kind` of the rows' width, and the
        // rows exist.
        unsafe { by_kind!(avx512, self, kind, weights, first) }
    }

    #[cfg(target_arch = "x86_64")]
    fn panel_by_avx2<const N: usize>(&self, kind: BlockType, weights: &[u8], first: usize) -> scalar::Sums<N> {
        assert!(self.kernels >= Kernels::Avx2, "vectors");
        // SAFETY: the machine has AVX2, FMA and F16C (`product_by`); `weights` is a panel of `kind` of the rows' width, and the
        // rows exist.
        unsafe { by_kind!(avx2, self, kind, weights, first) }
    }

    fn panel_by_scalars<const N: usize>(&self, kind: BlockType, weights: &[u8], first: usize) -> scalar::Sums<N> {
        by_kind!(scalar, self, kind, weights, first)
    }

    fn quantised(&self) -> Quantised<'_> {
        self.quantised.expect("rows are quantised where a matrix is")
    }
}
