//! The global norm of the gradients, `sqrt(sum g^2)`, by named range, so that a value that is not finite can be named.

use crate::device::Device;
use crate::device::cpu::simd;
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::for_float;
use crate::tensor::{Arena, DType, Float, Tensor, TensorMut};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of one partial sum: fixed, so that the order of additions is.
pub(crate) const PARTIAL_ELEMS: usize = 16 * 1024;

/// Sum of squares of each range of `flat` (f32 or f64), in f64. Infinite or NaN where an element is.
pub fn sums_of_squares(arena: &Arena, flat: &Tensor, ranges: &[Range<usize>]) -> Vec<f64> {
    if let Device::Gpu(gpu) = flat.device() {
        let parts: Vec<usize> = ranges.iter().map(|range| range.len().div_ceil(PARTIAL_ELEMS)).collect();
        let mut partial = Tensor::uninit(arena, [parts.iter().sum::<usize>()], DType::F64);
        let mut first = 0;
        for (range, &count) in ranges.iter().zip(&parts) {
            launch_parts(gpu, &mut partial.view_mut(first, [count]), &flat.view(range.start, [range.len()]));
            first += count;
        }
        let (partial, mut rest) = (partial.to_f64(), &parts[..]);
        let mut partial = partial.into_iter();
        return std::iter::from_fn(|| {
            let (&count, after) = rest.split_first()?;
            rest = after;
            Some(partial.by_ref().take(count).sum())
        })
        .collect();
    }
    for_float!(flat.dtype(), F => {
        let flat = flat.as_slice::<F>();
        ranges.iter().map(|range| flat[range.clone()].par_chunks(PARTIAL_ELEMS).map(partial::<F>).collect::<Vec<_>>().iter().sum()).collect()
    })
}

/// `partial` = sums of squares of the parts of `x`, on a GPU.
pub(crate) fn launch_parts(gpu: &Gpu, partial: &mut TensorMut, x: &Tensor) {
    let n = x.elems();
    launch::grad_norm_fwd_part_per_block_f32(gpu, Grid::over(n, PARTIAL_ELEMS), partial.ptr_mut(), x.ptr(), n);
}

fn partial<F: Float>(elems: &[F]) -> f64 {
    // f64 lanes: f32 squares would overflow above 1.8e19, which is large but finite.
    simd(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; 16];
            for chunk in elems.chunks(16) {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = x.to_f64().mul_add(x.to_f64(), *lane);
                }
            }
            lanes.iter().sum()
        },
    )
}

/// In plain loops.
pub fn reference(elems: &[f64]) -> f64 {
    elems.iter().map(|x| x * x).sum()
}
