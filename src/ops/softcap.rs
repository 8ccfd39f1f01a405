//! Soft-cap: `y = cap * tanh(x / cap)`, backward `dx = dy * (1 - (y / cap)^2)`. Saves `y`.

use crate::device::Device;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    pub y: Tensor,
    pub cap: f64,
}

/// `cap * tanh(x / cap)` of every element, `cap > 0`.
pub fn forward(arena: &Arena, x: Tensor, cap: f64) -> Tensor {
    let Device::Cpu = x.device();
    assert!(cap > 0.0, "soft-cap {cap}");
    let mut y = x.into_unique(arena);
    for_dtype!(y.dtype(), E => {
        y.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).for_each(|y| {
            simd(
                #[inline(always)]
                || y.iter_mut().for_each(|v| *v = E::store(cap_value(v.load(), <E as Elem>::Acc::from_f64(cap)))),
            )
        })
    });
    y
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub fn cap_value<F: Float>(x: F, cap: F) -> F {
    cap * (x / cap).tanh()
}

/// The derivative of [`cap_value`] where its result is `y`.
#[inline(always)]
pub fn cap_slope<F: Float>(y: F, cap: F) -> F {
    let ratio = y / cap;
    F::ONE - ratio * ratio
}

/// The gradient of the input.
pub fn backward(arena: &Arena, dy: Tensor, saved: &Saved) -> Tensor {
    let Device::Cpu = dy.device();
    let mut dx = dy.into_unique(arena);
    for_dtype!(dx.dtype(), E => {
        let cap = <E as Elem>::Acc::from_f64(saved.cap);
        dx.as_mut_slice::<E>().par_chunks_mut(GRAIN_ELEMS).zip(saved.y.as_slice::<E>().par_chunks(GRAIN_ELEMS)).for_each(
            |(dx, y)| {
                simd(
                    #[inline(always)]
                    || {
                        for (d, y) in dx.iter_mut().zip(y) {
                            *d = E::store(d.load() * cap_slope(y.load(), cap));
                        }
                    },
                )
            },
        )
    });
    dx
}

/// Forward in plain loops.
pub fn reference(x: &[f64], cap: f64) -> Vec<f64> {
    x.iter().map(|x| cap * (x / cap).tanh()).collect()
}
