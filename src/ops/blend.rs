//! Blend of three streams by weights of each row, and the norm of the blend.
//!
//! Increments `d_1 = h_1`, `d_2 = h_2 - h_1`, `d_3 = h_3 - h_2`. With `n(x) = x / sqrt(mean(x^2) + eps)` and the source `s` one of
//! the streams: `z = W n(s) + b (+ lean)`, `w = softmax(z)`, `y = h_3 + sum_k (3 w_k - 1) d_k`, `x = n(y) g`. At `z = 0` the weights
//! are 1/3 and `y` is `h_3`, bit for bit. Without a source `z = b (+ lean)`.
//!
//! Saves the streams, `w`, `W n(s)` and both roots. With `t` the gradient of `y` (its own, and that through the norm):
//! `dw_k = 3 <t, d_k>`, `dz = w (dw - <w, dw>)`, `dd_k = (3 w_k - 1) t`, `dW += dz n(s)^T`, `db += dz`. Must move forward 5 (three
//! streams in, two rows out), backward 8 times `N C` elements.

use super::linear;
use super::rmsnorm::sum_parts;
use crate::device::Device;
use crate::device::cpu::{grain_rows, simd, sum_over_rows, sum_squares, sum_zip};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// Which stream the weights are computed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    First,
    Third,
    /// None: the bias alone.
    Nothing,
}

impl Source {
    fn index(self) -> Option<usize> {
        match self {
            Source::First => Some(0),
            Source::Third => Some(2),
            Source::Nothing => None,
        }
    }
}

/// The parameters' values.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// `[3, C]`; there where there is a source.
    pub controller: Option<&'a Tensor>,
    /// `[3]`.
    pub bias: &'a Tensor,
    /// `[C]`.
    pub gain: &'a Tensor,
}

/// Their gradients, added to.
pub struct Gradients<'a> {
    pub controller: Option<TensorMut<'a>>,
    pub bias: TensorMut<'a>,
    pub gain: TensorMut<'a>,
}

/// What is no tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub source: Source,
    /// Added to `z`: a leaning that is not learnt.
    pub lean: [f64; 3],
    pub eps: f64,
}

/// What backward needs besides the parameters.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Three of `[N, C]`.
    pub streams: [Tensor; 3],
    /// `[N, 3]`, `w`, accumulator type as all that follow.
    pub weights: Tensor,
    /// `[N, 3]`, `W n(s)`; zeros without a source.
    pub scores: Tensor,
    /// `[N, 2]`: `1 / sqrt(mean + eps)` of the source and of `y`.
    pub rstd: Tensor,
    pub options: Options,
}

/// Three of `[N, C]` -> `y [N, C]`, its norm `x [N, C]`.
pub fn forward(arena: &Arena, streams: [Tensor; 3], weights: Weights, options: Options) -> (Tensor, Tensor, Saved) {
    let ([n, c], dtype) = (streams[0].shape().rows_cols(), streams[0].dtype());
    assert!(streams.iter().all(|h| h.shape().rows_cols() == [n, c]), "three streams of one shape");
    assert_eq!(weights.controller.is_some(), options.source != Source::Nothing, "a controller and its source");
    let wide = dtype.accumulator();
    let [mut y, mut x] = [(); 2].map(|()| Tensor::uninit(arena, [n, c], dtype));
    let [mut w, mut scores] = [(); 2].map(|()| Tensor::uninit(arena, [n, 3], wide));
    let mut rstd = Tensor::uninit(arena, [n, 2], wide);
    if let Device::Gpu(gpu) = streams[0].device() {
        launch_forward(gpu, [&mut y, &mut x, &mut w, &mut scores, &mut rstd], &streams, weights, options);
        return (y, x, Saved { streams, weights: w, scores, rstd, options });
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let h = [0, 1, 2].map(|k: usize| streams[k].as_slice::<E>());
        let (gain, fixed) = (weights.gain.as_slice::<E>(), fixed_scores::<E>(&weights, &options));
        let controller = weights.controller.map(Tensor::as_slice::<E>);
        let grain = grain_rows(c);
        let rows = y.as_mut_slice::<E>().par_chunks_mut(grain * c).zip(x.as_mut_slice::<E>().par_chunks_mut(grain * c));
        let rows = rows.zip(w.as_mut_slice::<F>().par_chunks_mut(grain * 3));
        let rows = rows.zip(scores.as_mut_slice::<F>().par_chunks_mut(grain * 3));
        let rows = rows.zip(rstd.as_mut_slice::<F>().par_chunks_mut(grain * 2)).enumerate();
        rows.for_each(|(task, ((((y, x), w), scores), rstd))| {
            simd(
                #[inline(always)]
                || {
                    let rows = y.chunks_exact_mut(c).zip(x.chunks_exact_mut(c)).zip(w.chunks_exact_mut(3));
                    let rows = rows.zip(scores.chunks_exact_mut(3)).zip(rstd.chunks_exact_mut(2)).enumerate();
                    for (i, ((((y, x), w), scores), rstd)) in rows {
                        let h = h.map(|h| &h[(task * grain + i) * c..][..c]);
                        let source = options.source.index().map(|k| h[k]);
                        rstd[0] = score(scores, source, controller, options.eps);
                        softmax(w, scores, fixed);
                        blend_row(y, h, w);
                        rstd[1] = super::rmsnorm::norm_row(x, y, gain, options.eps);
                    }
                },
            )
        })
    });
    (y, x, Saved { streams, weights: w, scores, rstd, options })
}

/// `b + lean`.
fn fixed_scores<E: Elem>(weights: &Weights, options: &Options) -> [E::Acc; 3] {
    let bias = weights.bias.as_slice::<E>();
    [0, 1, 2].map(|k: usize| bias[k].load() + E::Acc::from_f64(options.lean[k]))
}

/// `W n(s)`; returns the root.
#[inline(always)]
fn score<E: Elem>(scores: &mut [E::Acc], source: Option<&[E]>, controller: Option<&[E]>, eps: f64) -> E::Acc {
    let (Some(source), Some(controller)) = (source, controller) else {
        scores.fill(E::Acc::ZERO);
        return E::Acc::ZERO;
    };
    let c = source.len();
    let r = E::Acc::ONE / (sum_squares(source) / E::Acc::from_f64(c as f64) + E::Acc::from_f64(eps)).sqrt();
    for (score, row) in scores.iter_mut().zip(controller.chunks_exact(c)) {
        *score = r * sum_zip(row, source, |w: E, s: E, acc: E::Acc| w.load().mul_add(s.load(), acc));
    }
    r
}

#[inline(always)]
fn softmax<F: Float>(w: &mut [F], scores: &[F], fixed: [F; 3]) {
    let z = [0, 1, 2].map(|k: usize| scores[k] + fixed[k]);
    let peak = z[0].max(z[1]).max(z[2]);
    let e = z.map(|z| (z - peak).exp());
    let sum = e[0] + e[1] + e[2];
    w.iter_mut().zip(e).for_each(|(w, e)| *w = e / sum);
}

/// `h_3 + sum_k (3 w_k - 1) d_k`.
#[inline(always)]
fn blend_row<E: Elem>(y: &mut [E], [first, second, third]: [&[E]; 3], w: &[E::Acc]) {
    let [a, b, e] = excess(w);
    for (((y, h1), h2), h3) in y.iter_mut().zip(first).zip(second).zip(third) {
        let (h1, h2, h3) = (h1.load(), h2.load(), h3.load());
        *y = E::store(h3 + (a * h1 + b * (h2 - h1) + e * (h3 - h2)));
    }
}

/// `3 w_k - 1`.
#[inline(always)]
fn excess<F: Float>(w: &[F]) -> [F; 3] {
    [0, 1, 2].map(|k: usize| F::from_f64(3.0) * w[k] - F::ONE)
}

/// Gradients of `y` and of its norm, where something read them -> those of the three streams.
pub fn backward(
    arena: &Arena,
    gradients: Gradients,
    dy: Option<Tensor>,
    dx: Option<Tensor>,
    weights: Weights,
    saved: &Saved,
) -> [Tensor; 3] {
    let ([n, c], dtype) = (saved.streams[0].shape().rows_cols(), saved.streams[0].dtype());
    let mut dz = Tensor::uninit(arena, [n, 3], dtype);
    let mut dh = [(); 3].map(|()| Tensor::uninit(arena, [n, c], dtype));
    let Gradients { controller: dcontroller, mut bias, mut gain } = gradients;
    let targets = Targets { dh: &mut dh, dz: &mut dz, bias: &mut bias, gain: &mut gain };
    match saved.streams[0].device() {
        Device::Cpu => backward_on_host(arena, targets, [dy, dx], weights, saved),
        Device::Gpu(gpu) => launch_backward(gpu, arena, targets, [dy, dx], weights, saved),
    }
    if let (Some(mut dcontroller), Some(source)) = (dcontroller, saved.options.source.index()) {
        // dz holds the root of its row, so that the source itself is the other factor.
        linear::weight_gradient(arena, &mut dcontroller, &dz, &saved.streams[source]);
    }
    dh
}

struct Targets<'a, 'b> {
    dh: &'a mut [Tensor; 3],
    /// `[N, 3]`: `r dz`.
    dz: &'a mut Tensor,
    bias: &'a mut TensorMut<'b>,
    gain: &'a mut TensorMut<'b>,
}

fn backward_on_host(arena: &Arena, to: Targets, [dy, dx]: [Option<Tensor>; 2], weights: Weights, saved: &Saved) {
    let ([n, c], dtype) = (saved.streams[0].shape().rows_cols(), saved.streams[0].dtype());
    let wide = dtype.accumulator();
    let mut dscores = Tensor::uninit(arena, [n, 3], wide);
    let options = saved.options;
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let h = [0, 1, 2].map(|k: usize| saved.streams[k].as_slice::<E>());
        let (w, rstd, scores) = (saved.weights.as_slice::<F>(), saved.rstd.as_slice::<F>(), saved.scores.as_slice::<F>());
        let (dy, dx) = (dy.as_ref().map(Tensor::as_slice::<E>), dx.as_ref().map(Tensor::as_slice::<E>));
        let gain = weights.gain.as_slice::<E>();
        let controller = weights.controller.map(Tensor::as_slice::<E>);
        let blended = |row: usize, y: &mut [E]| blend_row(y, h.map(|h| &h[row * c..][..c]), &w[row * 3..][..3]);
        if let Some(dx) = dx {
            sum_over_rows(to.gain.as_mut_slice::<F>(), n, |row, acc| {
                let mut y = vec![E::default(); c];
                blended(row, &mut y);
                for ((acc, dx), y) in acc.iter_mut().zip(&dx[row * c..][..c]).zip(&y) {
                    *acc = (dx.load() * rstd[2 * row + 1]).mul_add(y.load(), *acc);
                }
            });
        }
        let grain = grain_rows(c);
        let [d1, d2, d3] = to.dh.each_mut().map(|d| d.as_mut_slice::<E>().par_chunks_mut(grain * c));
        let rows = d1.zip(d2).zip(d3).zip(to.dz.as_mut_slice::<E>().par_chunks_mut(grain * 3));
        let rows = rows.zip(dscores.as_mut_slice::<F>().par_chunks_mut(grain * 3)).enumerate();
        rows.for_each(|(task, ((((d1, d2), d3), dz), dscores))| {
            let (mut y, mut t) = (vec![E::default(); c], vec![F::ZERO; c]);
            let rows = d1.chunks_exact_mut(c).zip(d2.chunks_exact_mut(c)).zip(d3.chunks_exact_mut(c));
            let rows = rows.zip(dz.chunks_exact_mut(3)).zip(dscores.chunks_exact_mut(3)).enumerate();
            for (i, ((((d1, d2), d3), dz), dscores)) in rows {
                let row = task * grain + i;
                let of = |values: Option<&[E]>, to: &mut [F]| {
                    values.iter().for_each(|v| to.iter_mut().zip(&v[row * c..][..c]).for_each(|(t, v)| *t = v.load()))
                };
                t.fill(F::ZERO);
                of(dy, &mut t);
                if let Some(dx) = dx {
                    blended(row, &mut y);
                    let put = |i: usize, d: F| t[i] += d;
                    super::rmsnorm::norm_row_backward(put, &dx[row * c..][..c], &y, gain, rstd[2 * row + 1]);
                }
                let streams = h.map(|h| &h[row * c..][..c]);
                let w = [0, 1, 2].map(|k: usize| w[row * 3 + k]);
                score_gradient(dscores, &t, streams, w);
                let r = rstd[2 * row];
                dz.iter_mut().zip(&*dscores).for_each(|(z, d)| *z = E::store(*d * r));
                let through = controller.map(|controller| Through { controller, r, scores: &scores[row * 3..][..3] });
                stream_gradients([d1, d2, d3], &t, streams, w, dscores, options.source, through);
            }
        });
        let dscores = dscores.as_slice::<F>();
        sum_over_rows(to.bias.as_mut_slice::<F>(), n, |row, acc| {
            acc.iter_mut().zip(&dscores[row * 3..][..3]).for_each(|(acc, d)| *acc += *d);
        });
    });
}

/// `dz = w (dw - <w, dw>)` with `dw_k = 3 <t, d_k>`.
fn score_gradient<E: Elem>(dz: &mut [E::Acc], t: &[E::Acc], [h1, h2, h3]: [&[E]; 3], w: [E::Acc; 3]) {
    let three = E::Acc::from_f64(3.0);
    let dot = |h: &[E]| three * sum_zip(t, h, |t: E::Acc, h: E, acc: E::Acc| t.mul_add(h.load(), acc));
    let [p1, p2, p3] = [dot(h1), dot(h2), dot(h3)];
    let dw = [p1, p2 - p1, p3 - p2];
    let mean = w[0] * dw[0] + w[1] * dw[1] + w[2] * dw[2];
    for k in 0..3 {
        dz[k] = w[k] * (dw[k] - mean);
    }
}

/// The way of a row's gradient through the controller.
struct Through<'a, E: Elem> {
    controller: &'a [E],
    /// Root of the source's row.
    r: E::Acc,
    scores: &'a [E::Acc],
}

fn stream_gradients<E: Elem>(
    [d1, d2, d3]: [&mut [E]; 3],
    t: &[E::Acc],
    streams: [&[E]; 3],
    w: [E::Acc; 3],
    dz: &[E::Acc],
    source: Source,
    through: Option<Through<E>>,
) {
    let (three, c) = (E::Acc::from_f64(3.0), t.len());
    let [a, b, e] = [three * (w[0] - w[1]), three * (w[1] - w[2]), three * w[2]];
    for i in 0..c {
        let mut d = [a * t[i], b * t[i], e * t[i]];
        if let (Some(through), Some(source)) = (&through, source.index()) {
            let Through { controller, r, scores } = through;
            let along = dz[0] * scores[0] + dz[1] * scores[1] + dz[2] * scores[2];
            let dn = [0, 1, 2].map(|k: usize| dz[k] * controller[k * c + i].load());
            let slope = along * *r * *r / E::Acc::from_f64(c as f64);
            d[source] += (dn[0] + dn[1] + dn[2]) * *r - streams[source][i].load() * slope;
        }
        (d1[i], d2[i], d3[i]) = (E::store(d[0]), E::store(d[1]), E::store(d[2]));
    }
}

/// Widest rows of the kernels.
const COLS_MAX: usize = 8192;

/// Most blocks of backward, whatever the device, so that sums are the same on all.
const PARTS_MAX: usize = 264;

fn launch_forward(
    gpu: &Gpu,
    [y, x, w, scores, rstd]: [&mut Tensor; 5],
    streams: &[Tensor; 3],
    weights: Weights,
    options: Options,
) {
    let [n, c] = y.shape().rows_cols();
    assert!(c <= COLS_MAX, "a blend of {c} columns; the kernels take at most {COLS_MAX}");
    let (source, lean, eps) = (options.source.index().unwrap_or(3), options.lean.map(|z| z as f32), options.eps as f32);
    macro_rules! run {
        ($kernel:ident) => {
            launch::$kernel(
                gpu,
                Grid::linear(n),
                y.ptr_mut(),
                x.ptr_mut(),
                w.ptr_mut(),
                scores.ptr_mut(),
                rstd.ptr_mut(),
                streams[0].ptr(),
                streams[1].ptr(),
                streams[2].ptr(),
                weights.controller.map_or(Ptr::none(), |controller| controller.ptr()),
                weights.bias.ptr(),
                weights.gain.ptr(),
                lean[0],
                lean[1],
                lean[2],
                eps,
                source,
                c,
            )
        };
    }
    match y.dtype() {
        DType::F32 => run!(blend_fwd_block_per_row_f32),
        DType::Bf16 => run!(blend_fwd_block_per_row_bf16),
        other => panic!("no kernel blends {other}"),
    }
}

fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    to: Targets,
    [dy, dx]: [Option<Tensor>; 2],
    weights: Weights,
    saved: &Saved,
) {
    let ([n, c], dtype) = (saved.streams[0].shape().rows_cols(), saved.streams[0].dtype());
    let (parts, source) = (n.div_ceil(8).min(PARTS_MAX), saved.options.source.index().unwrap_or(3));
    // The gain's columns, then the bias.
    let mut partial = Tensor::uninit(arena, [parts, c + 3], DType::F32);
    let [d1, d2, d3] = to.dh;
    macro_rules! optional {
        ($tensor:expr) => {
            $tensor.as_ref().map_or(Ptr::none(), |tensor| tensor.ptr())
        };
    }
    macro_rules! run {
        ($kernel:ident) => {
            launch::$kernel(
                gpu,
                Grid::linear(parts),
                d1.ptr_mut(),
                d2.ptr_mut(),
                d3.ptr_mut(),
                to.dz.ptr_mut(),
                partial.ptr_mut(),
                saved.streams[0].ptr(),
                saved.streams[1].ptr(),
                saved.streams[2].ptr(),
                saved.weights.ptr(),
                saved.scores.ptr(),
                saved.rstd.ptr(),
                optional!(dy),
                optional!(dx),
                optional!(weights.controller),
                weights.gain.ptr(),
                source,
                n,
                c,
            )
        };
    }
    match dtype {
        DType::F32 => run!(blend_bwd_block_per_row_f32),
        DType::Bf16 => run!(blend_bwd_block_per_row_bf16),
        other => panic!("no kernel blends {other}"),
    }
    sum_parts(gpu, to.gain, &partial, 0);
    sum_parts(gpu, to.bias, &partial, c);
}

/// Forward in plain loops: the streams, then controller, bias and gain -> `y`, then its norm, row after row of all.
pub fn reference(streams: [&[f64]; 3], [controller, bias, gain]: [&[f64]; 3], options: Options) -> [Vec<f64>; 2] {
    let c = gain.len();
    let (mut y, mut x) = (Vec::new(), Vec::new());
    for row in 0..streams[0].len() / c {
        let h = streams.map(|h| &h[row * c..][..c]);
        let mut z = [0, 1, 2].map(|k: usize| bias[k] + options.lean[k]);
        if let Some(source) = options.source.index() {
            let n = super::rmsnorm::reference(h[source], &vec![1.0; c], options.eps);
            for (z, row) in z.iter_mut().zip(controller.chunks(c)) {
                *z += row.iter().zip(&n).map(|(w, n)| w * n).sum::<f64>();
            }
        }
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        let w = z.map(|z| z.exp() / sum);
        let blended: Vec<f64> = (0..c)
            .map(|i| {
                let d = [h[0][i], h[1][i] - h[0][i], h[2][i] - h[1][i]];
                h[2][i] + (0..3).map(|k| (3.0 * w[k] - 1.0) * d[k]).sum::<f64>()
            })
            .collect();
        x.extend(super::rmsnorm::reference(&blended, gain, options.eps));
        y.extend(blended);
    }
    [y, x]
}
