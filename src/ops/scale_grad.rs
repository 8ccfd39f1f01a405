//! Trunk-gradient scale: forward `y = x`, backward `dx = rho * dy`. `rho = 0` turns what reads `y` into a probe.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Scale, Tensor};
use rayon::prelude::*;

/// The same value.
pub fn forward(x: &Tensor) -> Tensor {
    x.clone()
}

/// `rho dy`; reuses the bytes of `dy` when nothing else holds them.
pub fn backward(arena: &Arena, dy: Tensor, rho: &Scale) -> Tensor {
    match dy.device() {
        Device::Cpu => {
            let (mut dx, rho) = (dy.into_unique(arena), rho.value());
            for_dtype!(dx.dtype(), E => scale::<E>(dx.as_mut_slice(), <E as Elem>::Acc::from_f64(rho)));
            dx
        }
        Device::Gpu(gpu) => {
            let (n, dtype, dy_elems, rho) = (dy.elems(), dy.dtype(), dy.alias(), rho.on_gpu(arena));
            let mut dx = dy.into_output(arena);
            let grid = Grid::elementwise(n, dtype.size_bytes());
            by_dtype!(
                dtype,
                scale_grad_bwd_vector_f32 | scale_grad_bwd_vector_bf16,
                (gpu, grid, dx.ptr_mut(), dy_elems.ptr(), rho.ptr(), n)
            );
            dx
        }
    }
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
