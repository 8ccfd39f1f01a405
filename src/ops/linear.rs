//! Linear layer without bias: `y = x W^T`; `dx = dy W`, `dW += dy^T x`. Saves `x`.
//!
//! Moves and does: `2 N I O` floating-point operations forward, twice that backward.

use crate::device::Device;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul};
use crate::device::gemm::{Operand, gemm};
use crate::for_float;
use crate::tensor::{Arena, Tensor, TensorMut};

/// What backward needs besides the weight.
#[derive(Debug)]
pub struct Saved {
    /// `[N, I]`.
    pub x: Tensor,
}

/// `x [N, I]`, `weight [O, I]` -> `[N, O]`.
pub fn forward(arena: &Arena, x: &Tensor, weight: &Tensor) -> Tensor {
    let ([n, i], [o, i_w]) = (x.shape().rows_cols(), weight.dims());
    assert_eq!(i, i_w, "input width of a linear layer");
    if let Device::Gpu(gpu) = x.device() {
        let mut y = Tensor::uninit(arena, [n, o], x.dtype());
        let (x, w) = (Operand::new(x, n, i), Operand::new(weight, o, i));
        gemm(gpu, &mut y.whole_mut(), x, w.t(), WriteMode::Overwrite);
        return y;
    }
    let wide = x.dtype().accumulator();
    let (xw, ww) = (x.cast(arena, wide), weight.cast(arena, wide));
    let mut y = Tensor::uninit(arena, [n, o], wide);
    for_float!(wide, F => {
        let (x, w) = (Mat::<F>::new(xw.as_slice(), n, i), Mat::new(ww.as_slice(), o, i));
        matmul(y.as_mut_slice(), x, w.t(), WriteMode::Overwrite, Threads::All)
    });
    y.cast(arena, x.dtype())
}

/// `dy [N, O]` -> `dx [N, I]`; adds to `dweight [O, I]`.
pub fn backward(arena: &Arena, dweight: &mut TensorMut, dy: &Tensor, weight: &Tensor, saved: &Saved) -> Tensor {
    let dtype = dy.dtype();
    let ([n, o], [_, i]) = (dy.shape().rows_cols(), weight.dims());
    if let Device::Gpu(gpu) = dy.device() {
        let mut dx = Tensor::uninit(arena, [n, i], dtype);
        let (dy, x, w) = (Operand::new(dy, n, o), Operand::new(&saved.x, n, i), Operand::new(weight, o, i));
        gemm(gpu, dweight, dy.t(), x, WriteMode::Accumulate);
        gemm(gpu, &mut dx.whole_mut(), dy, w, WriteMode::Overwrite);
        return dx;
    }
    let wide = dtype.accumulator();
    let dyw = dy.cast(arena, wide);
    let xw = saved.x.cast(arena, wide);
    for_float!(wide, F => {
        let (dy, x) = (Mat::<F>::new(dyw.as_slice(), n, o), Mat::new(xw.as_slice(), n, i));
        matmul(dweight.as_mut_slice(), dy.t(), x, WriteMode::Accumulate, Threads::All)
    });
    drop(xw);
    let ww = weight.cast(arena, wide);
    let mut dx = Tensor::uninit(arena, [n, i], wide);
    for_float!(wide, F => {
        let (dy, w) = (Mat::<F>::new(dyw.as_slice(), n, o), Mat::new(ww.as_slice(), o, i));
        matmul(dx.as_mut_slice(), dy, w, WriteMode::Overwrite, Threads::All)
    });
    dx.cast(arena, dtype)
}

/// Forward in plain loops: `x [n, i]`, `weight [o, i]`.
pub fn reference(x: &[f64], weight: &[f64], i: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks(i).flat_map(|x| weight.chunks(i).map(move |w| dot(x, w))).collect()
}
