//! Clipping, and whether a step may be applied: the factor `min(clip / |g|, 1)` of all gradients, and no update at all where
//! the loss or a gradient is not finite or above a limit. On a GPU it is decided there, so that the update need not wait for
//! the host; both sides compare the same numbers in f64.

use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::tensor::{Tensor, TensorMut};

/// What a step is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest norm of the gradient that is not scaled down.
    pub clip: f64,
    /// Largest loss and norm with which a step is applied; infinite for any finite one.
    pub loss: f64,
    pub grad_norm: f64,
}

/// A norm of zero clips nothing.
const TINY: f64 = 1e-30;

/// The factor of all gradients, or `None` when the step must not be applied.
pub fn verdict(loss: f64, squares: &[f64], limits: &Limits) -> Option<f64> {
    let sum: f64 = squares.iter().sum();
    let norm = sum.sqrt();
    let applies = loss.is_finite() && sum.is_finite() && loss <= limits.loss && norm <= limits.grad_norm;
    applies.then(|| (limits.clip / norm.max(TINY)).min(1.0))
}

/// `total [1] += sum of losses`, in f64 on a GPU.
pub fn launch_losses(gpu: &Gpu, total: &mut TensorMut, losses: &Tensor) {
    launch::clip_fwd_losses_f32(gpu, Grid::linear(1), total.ptr_mut(), losses.ptr(), losses.elems());
}

/// What [`launch_verdict`] reads, all on a GPU.
pub struct Evidence<'a> {
    /// `[1]` f64: sum of the losses.
    pub total: &'a Tensor,
    /// f64: sums of squares of parts, a range's after the other's.
    pub partial: &'a Tensor,
    /// `[R + 1]` u32: the first part of each range, then their number.
    pub firsts: &'a Tensor,
    /// `[5]` f64, see [`knobs`].
    pub knobs: &'a Tensor,
}

/// Where the sums of squares begin in a report.
pub const REPORT_SQUARES: usize = 3;

/// The loss is `weight (total mean)`.
pub fn knobs(weight: f64, mean: f64, limits: &Limits) -> [f64; 5] {
    [weight, mean, limits.clip, limits.loss, limits.grad_norm]
}

/// `report [3 + R]` f64: sum of the losses, norm, 1 where the step is applied, sum of squares of each range; `verdict [2]` f32: the factor, and whether
/// the step is applied.
pub fn launch_verdict(gpu: &Gpu, report: &mut TensorMut, verdict: &mut TensorMut, seen: &Evidence) {
    launch::clip_fwd_verdict_f64(
        gpu,
        Grid::linear(1),
        report.ptr_mut(),
        verdict.ptr_mut(),
        seen.total.ptr(),
        seen.partial.ptr(),
        seen.knobs.ptr(),
        seen.firsts.ptr(),
        seen.firsts.elems() - 1,
    );
}
