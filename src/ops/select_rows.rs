//! Every so manieth row: of each `T` rows those at `first`, `first + every`, ...; backward puts their gradients back in place and
//! zeros elsewhere. Must move 2 times the selected elements forward, the selected and all once backward.

use crate::device::Device;
use crate::device::cpu::GRAIN_ELEMS;
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Tensor};
use rayon::prelude::*;

/// Which rows of each `t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stride {
    pub t: usize,
    pub first: usize,
    pub every: usize,
}

impl Stride {
    /// Selected rows of each `t`.
    pub fn per_row(self) -> usize {
        self.t.saturating_sub(self.first).div_ceil(self.every)
    }

    /// Selected rows of `n`.
    pub fn count(self, n: usize) -> usize {
        n / self.t * self.per_row()
    }

    /// The row that is selected as number `m`.
    pub fn row(self, m: usize) -> usize {
        m / self.per_row() * self.t + self.first + m % self.per_row() * self.every
    }

    /// The number of a row among the selected.
    fn number(self, row: usize) -> Option<usize> {
        let (b, t) = (row / self.t, row % self.t);
        let is_selected = t >= self.first && (t - self.first).is_multiple_of(self.every);
        is_selected.then(|| b * self.per_row() + (t - self.first) / self.every)
    }
}

/// `x [N, C]` -> `[M, C]`. `N` is a multiple of `t`.
pub fn forward(arena: &Arena, x: &Tensor, stride: Stride) -> Tensor {
    let ([n, c], dtype) = (x.shape().rows_cols(), x.dtype());
    assert!(n.is_multiple_of(stride.t), "{n} rows are no whole number of {}", stride.t);
    let m = stride.count(n);
    let mut y = Tensor::uninit(arena, [m, c], dtype);
    if let Device::Gpu(gpu) = x.device() {
        let Stride { t, first, every } = stride;
        let grid = Grid::elementwise(m * c, dtype.size_bytes());
        by_dtype!(
            dtype,
            select_rows_fwd_vector_f32 | select_rows_fwd_vector_bf16,
            (gpu, grid, y.ptr_mut(), x.ptr(), stride.per_row(), t, first, every, m, c)
        );
        return y;
    }
    for_dtype!(dtype, E => {
        let x = x.as_slice::<E>();
        y.as_mut_slice::<E>().chunks_exact_mut(c).enumerate().for_each(|(m, y)| y.copy_from_slice(&x[stride.row(m) * c..][..c]));
    });
    y
}

/// `dy [M, C]` -> `dx [N, C]`.
pub fn backward(arena: &Arena, dy: &Tensor, n: usize, stride: Stride) -> Tensor {
    let ([m, c], dtype) = (dy.shape().rows_cols(), dy.dtype());
    assert_eq!(m, stride.count(n), "selected rows");
    let mut dx = Tensor::uninit(arena, [n, c], dtype);
    if let Device::Gpu(gpu) = dy.device() {
        let Stride { t, first, every } = stride;
        let grid = Grid::elementwise(n * c, dtype.size_bytes());
        by_dtype!(
            dtype,
            select_rows_bwd_vector_f32 | select_rows_bwd_vector_bf16,
            (gpu, grid, dx.ptr_mut(), dy.ptr(), stride.per_row(), t, first, every, n, c)
        );
        return dx;
    }
    for_dtype!(dtype, E => {
        let (dy, grain) = (dy.as_slice::<E>(), (GRAIN_ELEMS / c).max(1));
        dx.as_mut_slice::<E>().par_chunks_mut(grain * c).enumerate().for_each(|(task, dx)| {
            for (i, dx) in dx.chunks_exact_mut(c).enumerate() {
                match stride.number(task * grain + i) {
                    Some(m) => dx.copy_from_slice(&dy[m * c..][..c]),
                    None => dx.fill(E::default()),
                }
            }
        });
    });
    dx
}

/// Forward in plain loops.
pub fn reference(x: &[f64], c: usize, stride: Stride) -> Vec<f64> {
    let rows = x.chunks(c).enumerate();
    let is_selected = |t: usize| t >= stride.first && (t - stride.first).is_multiple_of(stride.every);
    rows.filter(|(row, _)| is_selected(row % stride.t)).flat_map(|(_, row)| row.to_vec()).collect()
}
