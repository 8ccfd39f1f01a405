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

/// What an update multiplies with, formed in f64 and rounded once: `c` is `1 - b`, `keep` the decay, `rate` and `root` carry
/// the corrections of the two moments.
pub(super) struct Factors<F> {
    pub b1: F,
    pub b2: F,
    pub c1: F,
    pub c2: F,
    pub keep: F,
    pub rate: F,
    pub root: F,
    pub eps: F,
    pub factor: F,
}

impl Step {
    pub(super) fn factors<F: Float>(self) -> Factors<F> {
        let corrected = |beta: f64| 1.0 - beta.powi(self.updates.min(i32::MAX as u64) as i32);
        let of = F::from_f64;
        Factors {
            b1: of(self.beta1),
            b2: of(self.beta2),
            c1: of(1.0 - self.beta1),
            c2: of(1.0 - self.beta2),
            keep: of(1.0 - self.lr * self.weight_decay),
            rate: of(self.lr / corrected(self.beta1)),
            root: of(1.0 / corrected(self.beta2).sqrt()),
            eps: of(self.eps),
            factor: of(self.grad_factor),
        }
    }
}

/// Updates one range in place.
pub fn update<F: Float>(state: State<F>, step: Step) {
    let Factors { b1, b2, c1, c2, keep, rate, root, eps, factor } = step.factors::<F>();
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
