//! Linear layer without bias: `y = x W^T`, or added to a residual, `y = r + x W^T`; `dx = dy W`, `dW += dy^T x`, `dr = dy`.
//! Saves `x`.
//!
//! Moves and does: `2 N I O` floating-point operations forward, twice that backward.

use crate::device::Device;
use crate::device::cpu::{Mat, SharedMut, Threads, WriteMode, dot, matmul, simd};
use crate::device::gemm::{Operand, gemm, gemm_onto, gemm_rows};
use crate::device::packed::gpu::gemm_packed;
use crate::device::packed::{self, PackedWeight};
use crate::for_float;
use crate::tensor::{Arena, DType, Tensor, TensorMut, Weight};
use rayon::prelude::*;

/// What backward needs besides the weight.
#[derive(Debug)]
pub struct Saved {
    /// `[N, I]`.
    pub x: Tensor,
}

/// Whether adding a residual in the product of `x` moves fewer bytes than adding it in the norm that follows: on a GPU the
/// sum takes the place of the product in memory (4 values an element move, not 5), on the CPU it would be one more pass.
pub fn adds_in_place(x: &Tensor) -> bool {
    x.device() != Device::Cpu
}

/// `x [N, I]`, `weight [O, I]` -> `[N, O]`.
pub fn forward(arena: &Arena, x: &Tensor, weight: &Tensor) -> Tensor {
    product(arena, x, weight, None)
}

/// `x [N, I]`, `weight [O, I]`, `residual [N, O]` -> `[N, O]`.
pub fn forward_onto(arena: &Arena, x: &Tensor, weight: &Tensor, residual: &Tensor) -> Tensor {
    product(arena, x, weight, Some(residual))
}

/// `x [N, I]`, `weight [O, I]`, perhaps a `residual [N, O]` -> `[N, O]`, whether the weight is packed or not.
pub fn forward_by(arena: &Arena, x: &Tensor, weight: &Weight, residual: Option<&Tensor>) -> Tensor {
    match weight {
        Weight::Dense(weight) => product(arena, x, weight, residual),
        Weight::ByRows(weight) => product_by_rows(arena, x, weight, residual),
        Weight::Packed(weight) => packed_product(arena, x, *weight, residual),
    }
}

/// On the processor in f32, on a GPU in bf16.
fn packed_product(arena: &Arena, x: &Tensor, weight: PackedWeight, residual: Option<&Tensor>) -> Tensor {
    let ([n, _], o) = (x.shape().rows_cols(), weight.matrices.iter().map(|matrix| matrix.dims()[0]).sum::<usize>());
    if x.device() != Device::Cpu {
        let mut y = Tensor::uninit(arena, [n, o], x.dtype());
        gemm_packed(&mut y.whole_mut(), residual, x, weight.matrices);
        return y;
    }
    let (mut y, mode) = match residual {
        None => (Tensor::uninit(arena, [n, o], DType::F32), WriteMode::Overwrite),
        Some(residual) => (residual.cast(arena, DType::F32).into_unique(arena), WriteMode::Accumulate),
    };
    packed::product(y.as_mut_slice(), x.cast(arena, DType::F32).as_slice(), weight, mode);
    y.cast(arena, x.dtype())
}

/// Outputs of a task of [`product_by_rows`]: with a width of 512 their weights stay in L2 for all rows.
const COLUMNS: usize = 64;

/// Every number one sum in one order, whatever the rows.
fn product_by_rows(arena: &Arena, x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Tensor {
    let ([n, i], [o, i_w]) = (x.shape().rows_cols(), weight.dims());
    assert_eq!(i, i_w, "input width of a linear layer");
    if x.device() != Device::Cpu {
        let mut y = Tensor::uninit(arena, [n, o], x.dtype());
        gemm_rows(&mut y.whole_mut(), residual, x, weight);
        return y;
    }
    let wide = x.dtype().accumulator();
    let (xw, ww) = (x.cast(arena, wide), weight.cast(arena, wide));
    let mut y = match residual {
        None => Tensor::zeros(arena, [n, o], wide),
        Some(residual) => residual.cast(arena, wide).into_unique(arena),
    };
    for_float!(wide, F => {
        let (x, w, y) = (xw.as_slice::<F>(), ww.as_slice::<F>(), SharedMut::new(y.as_mut_slice::<F>()));
        w.par_chunks(COLUMNS * i).enumerate().for_each(|(task, w)| simd(
            #[inline(always)]
            || {
                for (row, x) in x.chunks_exact(i).enumerate() {
                    // SAFETY: these columns are this task's alone.
                    let y = unsafe { y.slice(row * o + task * COLUMNS, w.len() / i) };
                    y.iter_mut().zip(w.chunks_exact(i)).for_each(|(y, w)| *y += dot(x, w));
                }
            },
        ))
    });
    y.cast(arena, x.dtype())
}

fn product(arena: &Arena, x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Tensor {
    let ([n, i], [o, i_w]) = (x.shape().rows_cols(), weight.dims());
    assert_eq!(i, i_w, "input width of a linear layer");
    if x.device() != Device::Cpu {
        let mut y = Tensor::uninit(arena, [n, o], x.dtype());
        let (a, b) = (Operand::new(x, n, i), Operand::new(weight, o, i).t());
        match residual {
            None => gemm(arena, &mut y.whole_mut(), a, b, WriteMode::Overwrite),
            Some(residual) => gemm_onto(arena, &mut y.whole_mut(), residual, a, b, [1.0, 1.0]),
        }
        return y;
    }
    let wide = x.dtype().accumulator();
    let (xw, ww) = (x.cast(arena, wide), weight.cast(arena, wide));
    let (mut y, mode) = match residual {
        None => (Tensor::uninit(arena, [n, o], wide), WriteMode::Overwrite),
        Some(residual) => (residual.cast(arena, wide).into_unique(arena), WriteMode::Accumulate),
    };
    for_float!(wide, F => {
        let (x, w) = (Mat::<F>::new(xw.as_slice(), n, i), Mat::new(ww.as_slice(), o, i));
        matmul(y.as_mut_slice(), x, w.t(), mode, Threads::All)
    });
    y.cast(arena, x.dtype())
}

/// `dy [N, O]` -> `dx [N, I]`; adds to `dweight [O, I]`. The gradient of a residual is `dy` itself.
pub fn backward(arena: &Arena, dweight: &mut TensorMut, dy: &Tensor, weight: &Tensor, saved: &Saved) -> Tensor {
    weight_gradient(arena, dweight, dy, &saved.x);
    input_gradient(arena, dy, weight)
}

/// `dy [N, O]`, `x [N, I]`: adds `dy^T x` to `dweight [O, I]`.
pub(super) fn weight_gradient(arena: &Arena, dweight: &mut TensorMut, dy: &Tensor, x: &Tensor) {
    let ([n, o], [_, i]) = (dy.shape().rows_cols(), x.shape().rows_cols());
    if dy.device() != Device::Cpu {
        let (dy, x) = (Operand::new(dy, n, o), Operand::new(x, n, i));
        return gemm(arena, dweight, dy.t(), x, WriteMode::Accumulate);
    }
    let wide = dy.dtype().accumulator();
    let (dyw, xw) = (dy.cast(arena, wide), x.cast(arena, wide));
    for_float!(wide, F => {
        let (dy, x) = (Mat::<F>::new(dyw.as_slice(), n, o), Mat::new(xw.as_slice(), n, i));
        matmul(dweight.as_mut_slice(), dy.t(), x, WriteMode::Accumulate, Threads::All)
    });
}

/// `dy [N, O]`, `weight [O, I]` -> `dx [N, I]`.
pub(super) fn input_gradient(arena: &Arena, dy: &Tensor, weight: &Tensor) -> Tensor {
    let ([n, o], [_, i]) = (dy.shape().rows_cols(), weight.dims());
    if dy.device() != Device::Cpu {
        let mut dx = Tensor::uninit(arena, [n, i], dy.dtype());
        let (dy, w) = (Operand::new(dy, n, o), Operand::new(weight, o, i));
        gemm(arena, &mut dx.whole_mut(), dy, w, WriteMode::Overwrite);
        return dx;
    }
    let wide = dy.dtype().accumulator();
    let (dyw, ww) = (dy.cast(arena, wide), weight.cast(arena, wide));
    let mut dx = Tensor::uninit(arena, [n, i], wide);
    for_float!(wide, F => {
        let (dy, w) = (Mat::<F>::new(dyw.as_slice(), n, o), Mat::new(ww.as_slice(), o, i));
        matmul(dx.as_mut_slice(), dy, w, WriteMode::Overwrite, Threads::All)
    });
    dx.cast(arena, dy.dtype())
}

/// Forward in plain loops: `x [n, i]`, `weight [o, i]`.
pub fn reference(x: &[f64], weight: &[f64], i: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks(i).flat_map(|x| weight.chunks(i).map(move |w| dot(x, w))).collect()
}
