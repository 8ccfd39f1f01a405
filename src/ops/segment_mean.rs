//! Mean of the rows of a segment, without a gradient; a segment that comes in pieces is summed up on the way.
//!
//! `sum = sum before + sum over t of x_t`, `mean = sum / T`, `T` the tokens of a whole segment. Must move `N C` elements.

use crate::device::Device;
use crate::device::launch::{Grid, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// `x [B t, C]`, segments of `whole` tokens in all -> means `[B, C]`. `sums [B, C]` in the accumulator type is added to and takes the new sum,
/// where a segment comes in pieces.
pub fn forward(arena: &Arena, x: &Tensor, t: usize, whole: usize, sums: Option<&mut Tensor>) -> Tensor {
    let ([n, c], dtype) = (x.shape().rows_cols(), x.dtype());
    let b = n / t;
    assert!(n == b * t && sums.as_ref().is_none_or(|sums| sums.elems() == b * c), "pieces of segments");
    let mut means = Tensor::uninit(arena, [b, c], dtype);
    if let Device::Gpu(gpu) = x.device() {
        let grid = Grid { blocks: [c.div_ceil(COLUMNS), b, 1], smem_bytes: 0 };
        let mut sums = sums;
        let sums = sums.as_mut().map_or(PtrMut::none(), |sums| sums.ptr_mut());
        by_dtype!(
            dtype,
            segment_mean_fwd_column_per_thread_f32 | segment_mean_fwd_column_per_thread_bf16,
            (gpu, grid, means.ptr_mut(), sums, x.ptr(), 1.0 / whole as f32, t, c)
        );
        return means;
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let factor = F::from_f64(1.0 / whole as f64);
        let mut held = vec![F::ZERO; b * c];
        if let Some(sums) = &sums {
            held.copy_from_slice(sums.as_slice::<F>());
        }
        let rows = held.par_chunks_mut(c).zip(x.as_slice::<E>().par_chunks(t * c));
        rows.zip(means.as_mut_slice::<E>().par_chunks_mut(c)).for_each(|((sum, x), mean)| {
            for x in x.chunks_exact(c) {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x.load());
            }
            mean.iter_mut().zip(&*sum).for_each(|(mean, &sum)| *mean = E::store(sum * factor));
        });
        if let Some(sums) = sums {
            sums.as_mut_slice::<F>().copy_from_slice(&held);
        }
    });
    means
}

/// Columns of a block.
const COLUMNS: usize = 128;

/// Forward in plain loops.
pub fn reference(x: &[f64], t: usize, c: usize, whole: usize, sums: &[f64]) -> Vec<f64> {
    let mean = |(b, x): (usize, &[f64])| {
        let column = |k: usize| (x.iter().skip(k).step_by(c).sum::<f64>() + sums[b * c + k]) / whole as f64;
        (0..c).map(column).collect::<Vec<f64>>()
    };
    x.chunks(t * c).enumerate().flat_map(mean).collect()
}
