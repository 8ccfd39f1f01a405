//! AdamW (Loshchilov and Hutter 2019): decay apart from the gradient, moments corrected for their start at zero.
//!
//! `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `w = w (1 - lr decay) - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)`. One pass: reads 4, writes 3 values.

use super::State;
use crate::device::cpu::{GRAIN_ELEMS, simd};
use crate::tensor::Float;
use rayon::prelude::*;

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Updates including this one, from 1.
    pub updates: u64,
    pub grad_factor: f64,
}

/// Updates one range in place.
pub fn update<F: Float>(state: State<F>, step: Step) {
    let corrected = |beta: f64| 1.0 - beta.powi(step.updates.min(i32::MAX as u64) as i32);
    let of = F::from_f64;
    let (b1, b2, factor) = (of(step.beta1), of(step.beta2), of(step.grad_factor));
    let (c1, c2) = (of(1.0 - step.beta1), of(1.0 - step.beta2));
    let keep = of(1.0 - step.lr * step.weight_decay);
    let (rate, root, eps) = (of(step.lr / corrected(step.beta1)), of(1.0 / corrected(step.beta2).sqrt()), of(step.eps));
    const GRAIN: usize = 4 * GRAIN_ELEMS;
    let tasks = state.values.par_chunks_mut(GRAIN).zip(state.grads.par_chunks(GRAIN));
    let tasks = tasks.zip(state.first.par_chunks_mut(GRAIN)).zip(state.second.par_chunks_mut(GRAIN));
    tasks.for_each(|(((w, g), m), v)| {
        simd(
            #[inline(always)]
            || {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = *g * factor;
                    *m = b1 * *m + c1 * g;
                    *v = b2 * *v + c2 * g * g;
                    *w = *w * keep - rate * *m / (v.sqrt() * root + eps);
                }
            },
        )
    });
}

/// One element in plain f64: `(w, m, v)` after the update.
pub fn reference(w: f64, g: f64, m: f64, v: f64, step: Step) -> (f64, f64, f64) {
    let g = g * step.grad_factor;
    let (m, v) = (step.beta1 * m + (1.0 - step.beta1) * g, step.beta2 * v + (1.0 - step.beta2) * g * g);
    let n = step.updates as i32;
    let (m_hat, v_hat) = (m / (1.0 - step.beta1.powi(n)), v / (1.0 - step.beta2.powi(n)));
    (w - step.lr * step.weight_decay * w - step.lr * m_hat / (v_hat.sqrt() + step.eps), m, v)
}
