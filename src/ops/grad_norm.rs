//! The global norm of the gradients, `sqrt(sum g^2)`, by named range, so that a value that is not finite can be named.

use crate::device::Device;
use crate::device::cpu::simd;
use crate::for_float;
use crate::tensor::{Float, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of one partial sum: fixed, so that the order of additions is.
const PARTIAL_ELEMS: usize = 16 * 1024;

/// Sum of squares of each range of `flat` (f32 or f64), in f64. Infinite or NaN where an element is.
pub fn sums_of_squares(flat: &Tensor, ranges: &[Range<usize>]) -> Vec<f64> {
    let Device::Cpu = flat.device();
    for_float!(flat.dtype(), F => {
        let flat = flat.as_slice::<F>();
        ranges.iter().map(|range| flat[range.clone()].par_chunks(PARTIAL_ELEMS).map(partial::<F>).collect::<Vec<_>>().iter().sum()).collect()
    })
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
