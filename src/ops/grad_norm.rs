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

/// The parts of some ranges, as the kernel takes them: `[B, 3]` low and high word of the first element, number; and
/// `[ranges + 1]` the first part of each range, then their number.
pub(crate) fn parts(ranges: &[Range<usize>]) -> (Vec<u32>, Vec<u32>) {
    let (mut parts, mut firsts) = (Vec::new(), vec![0]);
    for range in ranges {
        for start in range.clone().step_by(PARTIAL_ELEMS) {
            let count = (range.end - start).min(PARTIAL_ELEMS);
            parts.extend([start as u32, (start as u64 >> 32) as u32, count as u32]);
        }
        firsts.push(parts.len() as u32 / 3);
    }
    (parts, firsts)
}

/// `partial [B]` f64 = sums of squares of the listed parts `[B, 3]` of `flat`, on a GPU.
pub(crate) fn launch_listed(gpu: &Gpu, partial: &mut TensorMut, flat: &Tensor, parts: &Tensor) {
    let grid = Grid::linear(parts.elems() / 3);
    launch::grad_norm_fwd_listed_part_per_block_f32(gpu, grid, partial.ptr_mut(), flat.ptr(), parts.ptr());
}

/// Sum of squares of each range of `flat` (f32 or f64), in f64. Infinite or NaN where an element is.
pub fn sums_of_squares(arena: &Arena, flat: &Tensor, ranges: &[Range<usize>]) -> Vec<f64> {
    if let Device::Gpu(gpu) = flat.device() {
        let (parts, firsts) = parts(ranges);
        let list = Tensor::from_slice(arena, [parts.len()], &parts);
        let mut partial = Tensor::uninit(arena, [parts.len() / 3], DType::F64);
        launch_listed(gpu, &mut partial.whole_mut(), flat, &list);
        let partial = partial.to_f64();
        return firsts.windows(2).map(|ends| partial[ends[0] as usize..ends[1] as usize].iter().sum()).collect();
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
