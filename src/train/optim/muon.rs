//! Muon (Jordan et al. 2024): momentum whose matrix is pushed towards the nearest semi-orthogonal one.
//!
//! `m = mu m + (1 - mu) g`, `u = (1 - mu) g + mu m` (Nesterov), `O = NewtonSchulz5(u / |u|)`,
//! `w -= lr sqrt(max(1, rows / cols)) O`; weights decay by `lr decay w` where `O` and `w` agree in sign.
//! Newton-Schulz, five times: `A = X X^T`, `X = a X + (b A + c A A) X` with the quintic's coefficients below, which maps
//! singular values into about 0.7 .. 1.2; on the side with fewer rows.

use super::State;
use crate::device::cpu::{GRAIN_ELEMS, Mat, Threads, WriteMode, matmul, simd, sum_squares};
use crate::tensor::Float;
use rayon::prelude::*;

/// The quintic's coefficients: steepest at 0 among those that keep the result in range after five rounds.
pub(super) const A: f64 = 3.4445;
pub(super) const B: f64 = -4.7750;
pub(super) const C: f64 = 2.0315;
pub(super) const ROUNDS: usize = 5;

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub grad_factor: f64,
}

/// `sqrt(max(1, rows / cols))`.
pub(super) fn rows_factor(rows: usize, cols: usize) -> f64 {
    (rows as f64 / cols as f64).max(1.0).sqrt()
}

/// Updates one `rows x cols` matrix in place; the second moment is not used.
pub fn update<F: Float>(state: State<F>, rows: usize, cols: usize, step: Step) {
    let (mu, rest) = (F::from_f64(step.momentum), F::from_f64((1.0 - step.momentum) * step.grad_factor));
    let mut direction = vec![F::ZERO; rows * cols];
    let tasks = direction.par_chunks_mut(GRAIN_ELEMS).zip(state.grads.par_chunks(GRAIN_ELEMS));
    tasks.zip(state.first.par_chunks_mut(GRAIN_ELEMS)).for_each(|((u, g), m)| {
        simd(
            #[inline(always)]
            || {
                for ((u, g), m) in u.iter_mut().zip(g).zip(m) {
                    let g = *g * rest;
                    *m = mu * *m + g;
                    *u = mu * *m + g;
                }
            },
        )
    });
    let orthogonal = newton_schulz(direction, rows, cols);
    let rate = F::from_f64(step.lr * rows_factor(rows, cols));
    let decay = F::from_f64(step.lr * step.weight_decay);
    state.values.par_chunks_mut(GRAIN_ELEMS).zip(orthogonal.par_chunks(GRAIN_ELEMS)).for_each(|(w, o)| {
        simd(
            #[inline(always)]
            || {
                for (w, &o) in w.iter_mut().zip(o) {
                    let shrink = if *w * o > F::ZERO { decay * *w } else { F::ZERO };
                    *w = *w - rate * o - shrink;
                }
            },
        )
    });
}

/// The semi-orthogonal neighbour of a `rows x cols` matrix.
pub fn newton_schulz<F: Float>(x: Vec<F>, rows: usize, cols: usize) -> Vec<F> {
    // The short side first: the square products are then as small as they can be.
    let (short, long) = (rows.min(cols), rows.max(cols));
    let mut x = if rows <= cols { x } else { transpose(&x, rows, cols) };
    let partials: Vec<f64> = x.par_chunks(GRAIN_ELEMS).map(|c| simd(|| sum_squares(c).to_f64())).collect();
    let norm = partials.iter().sum::<f64>().sqrt();
    let scale = F::from_f64(1.0 / (norm + 1e-7));
    x.par_chunks_mut(GRAIN_ELEMS).for_each(|c| c.iter_mut().for_each(|v| *v *= scale));
    let mut gram = vec![F::ZERO; short * short];
    let mut square = gram.clone();
    let mut next = x.clone();
    for _ in 0..ROUNDS {
        let m = Mat::new(&x, short, long);
        matmul(&mut gram, m, m.t(), WriteMode::Overwrite, Threads::All);
        let g = Mat::new(&gram, short, short);
        matmul(&mut square, g, g, WriteMode::Overwrite, Threads::All);
        for (s, g) in square.iter_mut().zip(&gram) {
            *s = F::from_f64(B) * *g + F::from_f64(C) * *s;
        }
        matmul(&mut next, Mat::new(&square, short, short), m, WriteMode::Overwrite, Threads::All);
        for (n, x) in next.iter_mut().zip(&x) {
            *n += F::from_f64(A) * *x;
        }
        std::mem::swap(&mut x, &mut next);
    }
    if rows <= cols { x } else { transpose(&x, cols, rows) }
}

fn transpose<F: Float>(x: &[F], rows: usize, cols: usize) -> Vec<F> {
    let mut out = vec![F::ZERO; rows * cols];
    out.par_chunks_mut(rows).enumerate().for_each(|(c, out)| {
        for (r, o) in out.iter_mut().enumerate() {
            *o = x[r * cols + c];
        }
    });
    out
}
