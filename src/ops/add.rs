//! Addition, `y = a + b`; its backward hands `dy` to both. Also how two gradients of one value are joined.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Tensor};
use rayon::prelude::*;

/// `a + b`, both of one shape and type; reuses the bytes of `a` when nothing else holds them.
pub fn forward(arena: &Arena, a: Tensor, b: &Tensor) -> Tensor {
    let Device::Cpu = a.device();
    assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()), "operands of an addition");
    let mut y = a.into_unique(arena);
    for_dtype!(y.dtype(), E => add_into::<E>(y.as_mut_slice(), b.as_slice()));
    y
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
