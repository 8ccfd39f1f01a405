//! Addition, `y = a + b`; its backward hands `dy` to both. Also how two gradients of one value are joined.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Tensor};
use rayon::prelude::*;

/// `a + b`, both of one shape and type; reuses the bytes of `a` when nothing else holds them.
pub fn forward(arena: &Arena, a: Tensor, b: &Tensor) -> Tensor {
    assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "operands of an addition");
    match a.device() {
        Device::Cpu => {
            let mut y = a.into_unique(arena);
            for_dtype!(y.dtype(), E => add_into::<E>(y.as_mut_slice(), b.as_slice()));
            y
        }
        Device::Gpu(gpu) => {
            let (n, dtype, a_elems) = (a.elems(), a.dtype(), a.alias());
            let mut y = a.into_output(arena);
            let grid = Grid::elementwise(n, dtype.size_bytes());
            by_dtype!(
                dtype,
                add_fwd_vector_f32 | add_fwd_vector_bf16,
                (gpu, grid, y.ptr_mut(), a_elems.ptr(), b.ptr(), n)
            );
            y
        }
    }
}

fn add_into<E: Elem>(y: &mut [E], b: &[E]) {
    y.par_chunks_mut(GRAIN_ELEMS).zip(b.par_chunks(GRAIN_ELEMS)).for_each(|(y, b)| {
        simd(
            #[inline(always)]
            || {
                for (y, b) in y.iter_mut().zip(b) {
                    *y = E::store(y.load() + b.load());
                }
            },
        )
    });
}

/// `a + b` in plain loops.
pub fn reference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
