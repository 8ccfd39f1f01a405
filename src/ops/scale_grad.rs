//! Trunk-gradient scale: forward `y = x`, backward `dx = rho * dy`. `rho = 0` turns what reads `y` into a probe.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// The same value.
pub fn forward(x: &Tensor) -> Tensor {
    x.clone()
}

/// `rho * dy`; reuses the bytes of `dy` when nothing else holds them.
pub fn backward(arena: &Arena, dy: Tensor, rho: f64) -> Tensor {
    let Device::Cpu = dy.device();
    let mut dx = dy.into_unique(arena);
    for_dtype!(dx.dtype(), E => scale::<E>(dx.as_mut_slice(), <E as Elem>::Acc::from_f64(rho)));
    dx
}

fn scale<E: Elem>(dx: &mut [E], rho: E::Acc) {
    dx.par_chunks_mut(GRAIN_ELEMS).for_each(|dx| {
        simd(
            #[inline(always)]
            || dx.iter_mut().for_each(|d| *d = E::store(d.load() * rho)),
        )
    });
}

/// The gradient in plain loops.
pub fn reference(dy: &[f64], rho: f64) -> Vec<f64> {
    dy.iter().map(|d| rho * d).collect()
}
