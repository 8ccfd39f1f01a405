//! The loss of the self-model: what it says of a token's deeper state, loss and error, against what they are.
//!
//! A row `s` is `[F]` features of the state, a loss and a score of error; `y [F]` are the true features, `l` the token's
//! cross-entropy, `e` 1 where the likeliest token is wrong:
//!
//! `loss = |s_F - y|^2 / |y|^2 + huber(s_l - l) + softplus(s_e) - e s_e`, `huber(r) = r^2 / 2` up to `|r| = 1`, `|r| - 1/2` beyond.
//!
//! A token whose target is ignored counts for nothing. Gradients are formed in the same pass (a leaf, as `lm_loss`): `ds = scale
//! [2 (s_F - y) / |y|^2, clamp(s_l - l, -1, 1), sigmoid(s_e) - e]`. Nothing reaches `y`, `l`, `e`. Must move `N (4 F + 6)`
//! elements.

use super::lm_loss::IGNORE;
use super::sigmoid_gate::sigmoid;
use crate::device::Device;
use crate::device::cpu::grain_rows;
use crate::device::launch::{Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Scale, Tensor};
use rayon::prelude::*;

/// Keeps a row without features from dividing by zero.
const TINY: f64 = 1e-12;

/// Rows of a block of the kernel: a warp each.
const BLOCK_ROWS: usize = 8;

/// What is true of each token.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    /// `[N, F]`, in the type of `s`.
    pub features: &'a Tensor,
    /// `[N]`, accumulator type: cross-entropy in nats.
    pub losses: &'a Tensor,
    /// `[N]`, accumulator type: 1 where the likeliest token is wrong, else 0.
    pub errors: &'a Tensor,
    /// `[N]` u32: [`IGNORE`] where nothing counts.
    pub targets: &'a Tensor,
}

/// `s [N, F + 2]` -> losses `[N]` (accumulator type) and, where a factor of each in the total is given, `ds [N, F + 2]`.
pub fn forward(arena: &Arena, s: &Tensor, truth: Truth, factor: Option<&Scale>) -> (Tensor, Option<Tensor>) {
    let ([n, width], dtype) = (s.shape().rows_cols(), s.dtype());
    let Truth { features, losses, errors, targets } = truth;
    assert!(features.elems() == n * (width - 2) && features.dtype() == dtype, "features of each token");
    assert!([losses, errors, targets].iter().all(|x| x.elems() == n), "a loss, an error and a target of each token");
    let mut values = Tensor::uninit(arena, [n], dtype.accumulator());
    let mut ds = factor.is_some().then(|| Tensor::uninit(arena, [n, width], dtype));
    if let Device::Gpu(gpu) = s.device() {
        let factor = factor.map(|factor| factor.on_gpu(arena));
        by_dtype!(
            dtype,
            self_loss_fwd_warp_per_row_f32 | self_loss_fwd_warp_per_row_bf16,
            (
                gpu,
                Grid::over(n, BLOCK_ROWS),
                values.ptr_mut(),
                ds.as_mut().map_or(PtrMut::none(), |ds| ds.ptr_mut()),
                s.ptr(),
                features.ptr(),
                losses.ptr(),
                errors.ptr(),
                targets.ptr(),
                factor.as_ref().map_or(Ptr::none(), |factor| factor.ptr()),
                n,
                width - 2
            )
        );
        return (values, ds);
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (s, features, targets) = (s.as_slice::<E>(), features.as_slice::<E>(), targets.as_slice::<u32>());
        let (losses, errors) = (losses.as_slice::<F>(), errors.as_slice::<F>());
        let (factor, grain) = (factor.map(|factor| F::from_f64(factor.value())), grain_rows(width));
        let row = |n: usize, ds: Option<&mut [E]>| {
            let (s, y) = (&s[n * width..][..width], &features[n * (width - 2)..][..width - 2]);
            loss_row(s, y, [losses[n], errors[n]], targets[n] != IGNORE, ds.zip(factor))
        };
        let values = values.as_mut_slice::<F>().par_chunks_mut(grain).enumerate();
        match &mut ds {
            Some(ds) => values.zip(ds.as_mut_slice::<E>().par_chunks_mut(grain * width)).for_each(|((at, values), ds)| {
                for (i, (value, ds)) in values.iter_mut().zip(ds.chunks_exact_mut(width)).enumerate() {
                    *value = row(at * grain + i, Some(ds));
                }
            }),
            None => values.for_each(|(at, values)| {
                values.iter_mut().enumerate().for_each(|(i, value)| *value = row(at * grain + i, None));
            }),
        }
    });
    (values, ds)
}

/// The loss of a row, and its gradient times a factor.
fn loss_row<E: Elem>(
    s: &[E],
    y: &[E],
    [loss, error]: [E::Acc; 2],
    counts: bool,
    gradient: Option<(&mut [E], E::Acc)>,
) -> E::Acc {
    type Acc<E> = <E as Elem>::Acc;
    let (zero, one, f) = (Acc::<E>::ZERO, Acc::<E>::ONE, y.len());
    if !counts {
        if let Some((ds, _)) = gradient {
            ds.fill(E::store(zero));
        }
        return zero;
    }
    let square = y.iter().fold(zero, |sum, y| y.load().mul_add(y.load(), sum)) + Acc::<E>::from_f64(TINY);
    let apart = s.iter().zip(y).fold(zero, |sum, (s, y)| {
        let r = s.load() - y.load();
        r.mul_add(r, sum)
    });
    let half = Acc::<E>::from_f64(0.5);
    let (r, score) = (s[f].load() - loss, s[f + 1].load());
    // As comparisons, so that a NaN stays one.
    let slope = if r > one {
        one
    } else if r < -one {
        -one
    } else {
        r
    };
    if let Some((ds, factor)) = gradient {
        let each = factor * Acc::<E>::from_f64(2.0) / square;
        for (ds, (s, y)) in ds.iter_mut().zip(s.iter().zip(y)) {
            *ds = E::store((s.load() - y.load()) * each);
        }
        ds[f] = E::store(slope * factor);
        ds[f + 1] = E::store((sigmoid(score) - error) * factor);
    }
    let huber = slope * (r - half * slope);
    let softplus = score.max(zero) + (one + (-score.abs()).exp()).ln();
    apart / square + huber + softplus - error * score
}

/// Losses in plain loops: `s [N, f + 2]`, `y [N, f]`.
pub fn reference(s: &[f64], y: &[f64], f: usize, losses: &[f64], errors: &[f64], targets: &[u32]) -> Vec<f64> {
    let row = |n: usize| {
        if targets[n] == IGNORE {
            return 0.0;
        }
        let (s, y) = (&s[n * (f + 2)..][..f + 2], &y[n * f..][..f]);
        let apart: f64 = s.iter().zip(y).map(|(s, y)| (s - y).powi(2)).sum();
        let square: f64 = y.iter().map(|y| y * y).sum();
        let r = (s[f] - losses[n]).abs();
        let huber = if r <= 1.0 { 0.5 * r * r } else { r - 0.5 };
        apart / (square + TINY) + huber + (1.0 + s[f + 1].exp()).ln() - errors[n] * s[f + 1]
    };
    (0..targets.len()).map(row).collect()
}
