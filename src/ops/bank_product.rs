//! Products of rows with banks that get no gradient: `y_s = x_s W_s^T` or `y_s = x_s W_s`, `s` the bank that the rows belong to.
//!
//! The rows fall to the banks in equal shares, in order. Each is the other's backward. Saves the banks.
//! Moves and does: `2 N I O` floating-point operations.

use crate::device::Device;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul};
use crate::device::gemm::{Operand, gemm};
use crate::for_float;
use crate::tensor::{Arena, Tensor};

/// What of a bank `[S, M, D]` rows are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Its rows: `[N, D]` -> `[N, M]`.
    Rows,
    /// Its columns: `[N, M]` -> `[N, D]`.
    Columns,
}

impl Side {
    /// The side by which gradients go back.
    pub fn other(self) -> Side {
        match self {
            Side::Rows => Side::Columns,
            Side::Columns => Side::Rows,
        }
    }
}

/// `x [N, D]` or `[N, M]`, `bank [S, M, D]` -> `[N, M]` or `[N, D]`.
pub fn forward(arena: &Arena, x: &Tensor, bank: &Tensor, side: Side) -> Tensor {
    let ([n, i], [banks, m, d]) = (x.shape().rows_cols(), bank.dims());
    let (width, o) = if side == Side::Rows { (d, m) } else { (m, d) };
    assert!(i == width && n.is_multiple_of(banks), "{n} rows of {i} to banks of {m} x {d}");
    let rows = n / banks;
    if x.device() != Device::Cpu {
        let mut y = Tensor::uninit(arena, [n, o], x.dtype());
        for s in 0..banks {
            let a = Operand::new(&x.view(s * rows * i, [rows, i]), rows, i);
            let w = Operand::new(&bank.view(s * m * d, [m, d]), m, d);
            let b = if side == Side::Rows { w.t() } else { w };
            gemm(arena, &mut y.view_mut(s * rows * o, [rows, o]), a, b, WriteMode::Overwrite);
        }
        return y;
    }
    let wide = x.dtype().accumulator();
    let (xw, bank) = (x.cast(arena, wide), bank.cast(arena, wide));
    let mut y = Tensor::uninit(arena, [n, o], wide);
    for_float!(wide, F => {
        let y = y.as_mut_slice::<F>().chunks_exact_mut(rows * o);
        let each = y.zip(xw.as_slice::<F>().chunks_exact(rows * i)).zip(bank.as_slice::<F>().chunks_exact(m * d));
        for ((y, x), w) in each {
            let w = Mat::new(w, m, d);
            let b = if side == Side::Rows { w.t() } else { w };
            matmul(y, Mat::new(x, rows, i), b, WriteMode::Overwrite, Threads::All);
        }
    });
    y.cast(arena, x.dtype())
}

/// Forward in plain loops.
pub fn reference(x: &[f64], bank: &[f64], [banks, m, d]: [usize; 3], side: Side) -> Vec<f64> {
    let i = if side == Side::Rows { d } else { m };
    let share = x.len() / banks;
    let row = |(n, x): (usize, &[f64])| {
        let bank = &bank[n * i / share * m * d..][..m * d];
        let dot = |entry: &[f64]| x.iter().zip(entry).map(|(x, w)| x * w).sum::<f64>();
        match side {
            Side::Rows => bank.chunks(d).map(dot).collect::<Vec<f64>>(),
            Side::Columns => (0..d).map(|k| (0..m).map(|e| x[e] * bank[e * d + k]).sum()).collect(),
        }
    };
    x.chunks(i).enumerate().flat_map(row).collect()
}
