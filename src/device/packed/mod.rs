//! Products with weights that stay as they are stored: `y [n, o] = x [n, i] W^T`, or added to `y`. Here on the processor; [`gpu`] has those
//! of a GPU.
//!
//! `W [o, i]` lies in [`panels`]; quantised weights meet activations quantised in blocks of 32 ([`activations`]), and single elements
//! meet f32. An element of `y` is one sum in one order, whatever the number of rows, of threads, or the vectors of the
//! machine: a row comes out the same bit for bit alone and among others.

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
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

/// Which kernels multiply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernels {
    /// Plain Rust; slow on a processor without fused multiply-adds, which it computes by software.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
}

impl Kernels {
    /// All that this machine can run, the best last.
    pub fn available() -> Vec<Kernels> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return vec![Kernels::Scalar, Kernels::Avx2];
        }
        vec![Kernels::Scalar]
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
    assert!(kernels == Kernels::Scalar || kernels == *BEST, "{kernels:?} on this machine");
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

/// Rows that meet a panel together: four sums, four vectors of integers, and the weights fill the registers.
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
        let (mut first_panel, mut first_output) = (0, 0);
        for matrix in self.matrices {
            let panels = matrix.rows.div_ceil(LANES);
            let [from, end] = [from, end].map(|panel| panel.clamp(first_panel, first_panel + panels) - first_panel);
            for first in (0..self.n).step_by(ROWS) {
                for panel in from..end {
                    self.panel(matrix, panel, first_output + panel * LANES, first..self.n.min(first + ROWS));
                }
            }
            first_panel += panels;
            first_output += matrix.rows;
        }
    }

    /// A panel whose outputs begin at `output`, with some rows of x.
    fn panel(&self, matrix: &PackedMatrix, panel: usize, output: usize, rows: std::ops::Range<usize>) {
        let (weights, lanes) = (matrix.panel(panel), LANES.min(matrix.rows - panel * LANES));
        let terms = if is_quantised(matrix.kind) { self.terms } else { 1 };
        let (mut next, end) = (rows.start * terms, rows.end * terms);
        while next < end {
            // Whole rows of y, for a tile is a multiple of the terms.
            let tile = TILE.min(end - next);
            let sums = match tile {
                1 => pad(self.tile::<1>(matrix.kind, weights, next)),
                2 => pad(self.tile::<2>(matrix.kind, weights, next)),
                3 => pad(self.tile::<3>(matrix.kind, weights, next)),
                _ => self.tile::<TILE>(matrix.kind, weights, next),
            };
            for (row, sums) in sums[..tile].chunks_exact(terms).enumerate() {
                // SAFETY: columns of this panel in a row of y; a panel is one task's.
                let y = unsafe { self.y.slice((next / terms + row) * self.o + output, lanes) };
                for (lane, y) in y.iter_mut().enumerate() {
                    let sum = sums[1..].iter().fold(sums[0][lane], |sum, term| sum + term[lane]);
                    *y = if self.mode == WriteMode::Accumulate { *y + sum } else { sum };
                }
            }
            next += tile;
        }
    }

    fn tile<const N: usize>(&self, kind: BlockType, weights: &[u8], first: usize) -> scalar::Sums<N> {
        let rows = self.rows;
        let quantised = || self.quantised.expect("rows are quantised where a matrix is");
        #[cfg(target_arch = "x86_64")]
        if self.kernels == Kernels::Avx2 {
            // SAFETY: the machine has AVX2, FMA and F16C (`product_by`); `weights` is a panel of `kind` of the rows' width, and the
            // rows exist.
            return unsafe {
                match kind {
                    BlockType::F32 => avx2::f32(weights, rows, first),
                    BlockType::F16 => avx2::f16(weights, rows, first),
                    BlockType::Bf16 => avx2::bf16(weights, rows, first),
                    BlockType::Q8_0 => avx2::q8_0(weights, quantised(), first),
                    BlockType::Q4_0 => avx2::q4_0(weights, quantised(), first),
                    BlockType::Q4_1 => avx2::q4_1(weights, quantised(), first),
                    BlockType::Q6K => avx2::q6_k(weights, quantised(), first),
                }
            };
        }
        match kind {
            BlockType::F32 => scalar::f32(weights, rows, first),
            BlockType::F16 => scalar::f16(weights, rows, first),
            BlockType::Bf16 => scalar::bf16(weights, rows, first),
            BlockType::Q8_0 => scalar::q8_0(weights, quantised(), first),
            BlockType::Q4_0 => scalar::q4_0(weights, quantised(), first),
            BlockType::Q4_1 => scalar::q4_1(weights, quantised(), first),
            BlockType::Q6K => scalar::q6_k(weights, quantised(), first),
        }
    }
}

/// The sums of fewer rows as those of a whole tile.
fn pad<const N: usize>(sums: scalar::Sums<N>) -> scalar::Sums<TILE> {
    let mut whole = [[0.0; LANES]; TILE];
    whole[..N].copy_from_slice(&sums);
    whole
}
