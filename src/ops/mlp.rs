//! Feed-forward layer: `y = h Wd^T`, `h = silu(g) * u`, `[g u] = x Wgu^T`, `Wgu [2F, C]` holding the rows of the gate and then of
//! up; or added to a residual, `y = r + h Wd^T`.
//!
//! Saves `x`, `[g u]` and `h`. Backward: `dWd += dy^T h`, `dh = dy Wd`, `d[g u]` from `dh` as in [`swiglu`], `dWgu += d[g u]^T x`,
//! `dx = d[g u] Wgu`, `dr = dy`. On tensor cores SwiGLU is part of the products before it: `h` leaves the first with `[g u]`,
//! which is not written at all where nothing is saved, and `dh` is never in memory. Elsewhere the layer is three ops.

use super::{linear, swiglu};
use crate::device::Device;
use crate::device::gemm::{MMA_TILE, Operand};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, PtrMut};
use crate::tensor::{Arena, DType, Tensor, TensorMut, Weight};

/// The two matrices.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `[2F, C]`.
    pub gate_up: &'a Tensor,
    /// `[C, F]`.
    pub down: &'a Tensor,
}

/// What backward needs besides the weights.
#[derive(Debug)]
pub struct Saved {
    /// `[N, C]`.
    pub x: Tensor,
    /// `[N, 2F]`: gate, then up.
    pub gate_up: Tensor,
    /// `[N, F]`.
    pub hidden: Tensor,
}

/// Whether forward keeps what backward needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    Everything,
    Nothing,
}

/// `x [N, C]` and perhaps `residual [N, C]` -> `[N, C]`; [`Saved`] where `keep` asks for it.
pub fn forward(
    arena: &Arena,
    x: Tensor,
    weights: Weights,
    residual: Option<&Tensor>,
    keep: Keep,
) -> (Tensor, Option<Saved>) {
    let (hidden, gate_up) = match gpu_of_fused(&x, weights) {
        Some(gpu) => launch_forward(gpu, arena, &x, weights.gate_up, keep),
        None => {
            let gate_up = linear::forward(arena, &x, weights.gate_up);
            (swiglu::forward(arena, &gate_up), Some(gate_up))
        }
    };
    let saved = match (keep, gate_up) {
        (Keep::Everything, Some(gate_up)) => Some(Saved { x, gate_up, hidden: hidden.clone() }),
        _ => None,
    };
    let y = match residual {
        Some(residual) => linear::forward_onto(arena, &hidden, weights.down, residual),
        None => linear::forward(arena, &hidden, weights.down),
    };
    (y, saved)
}

/// As [`forward`] with weights of which some are packed; nothing is kept.
pub fn forward_by(arena: &Arena, x: Tensor, gate_up: &Weight, down: &Weight, residual: Option<&Tensor>) -> Tensor {
    let hidden = swiglu::forward(arena, &linear::forward_by(arena, &x, gate_up, None));
    drop(x);
    linear::forward_by(arena, &hidden, down, residual)
}

/// `dy [N, C]` -> `dx [N, C]`; adds to `dgate_up [2F, C]` and `ddown [C, F]`.
pub fn backward(
    arena: &Arena,
    [dgate_up, ddown]: [&mut TensorMut; 2],
    dy: &Tensor,
    weights: Weights,
    saved: Saved,
) -> Tensor {
    let Saved { x, gate_up, hidden } = saved;
    linear::weight_gradient(arena, ddown, dy, &hidden);
    drop(hidden);
    let d = match gpu_of_fused(dy, weights) {
        Some(gpu) => launch_backward(gpu, arena, dy, weights.down, gate_up),
        None => swiglu::backward(arena, &linear::input_gradient(arena, dy, weights.down), &swiglu::Saved { gate_up }),
    };
    linear::backward(arena, dgate_up, &d, weights.gate_up, &linear::Saved { x })
}

/// The GPU whose fused kernels take rows `[N, C]` and the weights: bf16, all rows 16 bytes apart.
fn gpu_of_fused(rows: &Tensor, weights: Weights) -> Option<&'static Gpu> {
    let Device::Gpu(gpu) = rows.device() else { return None };
    let wide = |x: &Tensor| {
        let [rows, cols] = x.shape().rows_cols();
        Operand::new(x, rows, cols).is_wide()
    };
    (wide(rows) && wide(weights.gate_up) && wide(weights.down)).then_some(gpu)
}

/// Hidden, and gate and up where they are kept.
fn launch_forward(gpu: &Gpu, arena: &Arena, x: &Tensor, weight: &Tensor, keep: Keep) -> (Tensor, Option<Tensor>) {
    let ([n, c], [two_f, _]) = (x.shape().rows_cols(), weight.dims());
    let f = two_f / 2;
    let mut hidden = Tensor::uninit(arena, [n, f], DType::Bf16);
    let mut gate_up = (keep == Keep::Everything).then(|| Tensor::uninit(arena, [n, two_f], DType::Bf16));
    // A block forms 64 columns of each half.
    let grid = Grid::linear(n.div_ceil(MMA_TILE) * f.div_ceil(MMA_TILE / 2));
    let saved = gate_up.as_mut().map_or(PtrMut::none(), Tensor::ptr_mut);
    launch::mlp_fwd_gate_up_mma_bf16(gpu, grid, hidden.ptr_mut(), saved, x.ptr(), weight.ptr(), n, c, f);
    (hidden, gate_up)
}

/// The gradients of gate and up, in their place where nobody else holds them.
fn launch_backward(gpu: &Gpu, arena: &Arena, dy: &Tensor, down: &Tensor, gate_up: Tensor) -> Tensor {
    let ([n, c], [_, f]) = (dy.shape().rows_cols(), down.dims());
    let from = gate_up.alias();
    let mut d = gate_up.into_output(arena);
    let grid = Grid::linear(n.div_ceil(MMA_TILE) * f.div_ceil(MMA_TILE));
    launch::mlp_bwd_down_mma_bf16(gpu, grid, d.ptr_mut(), from.ptr(), dy.ptr(), down.ptr(), n, c, f);
    d
}

/// Forward in plain loops: `x [N, c]`, `gate_up [2F, c]`, `down [c, F]`.
pub fn reference(x: &[f64], gate_up: &[f64], down: &[f64], c: usize) -> Vec<f64> {
    let f = down.len() / c;
    linear::reference(&swiglu::reference(&linear::reference(x, gate_up, c), f), down, f)
}
