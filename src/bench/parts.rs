//! The ops of the parts beyond the backbone.

use super::{Row, Size, Stage, Work};
use crate::ops::bank_product::{self, Side};
use crate::ops::bank_write::{self, Banks};
use crate::ops::blend::{self, Gradients, Options, Source, Weights};
use crate::ops::concept_loss::{self, Concepts, Windows};
use crate::ops::hypercube;
use crate::ops::select_rows::{self, Stride};
use crate::ops::{segment_mean, top_k_softmax};
use crate::tensor::{DType, ParamId, Tensor};

const EPS: f64 = 1e-5;

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let [n, c] = super::rowwise::stream(size);
    let mut rows: Vec<Row> = blend_rows(dtype, [n, c]).into();
    rows.extend(hypercube_rows(dtype, n));
    rows.extend(select_rows_rows(dtype, [n, c]));
    rows.extend(top_k_softmax_rows(dtype, [n, size.of(96, 1024, 1024)]));
    rows.extend(bank_rows(dtype, [n, c, size.of(32, 256, 256)]));
    rows.push(concept_loss_row(dtype, [n / 8, size.of(16, 64, 64), size.of(1000, 50_257, 50_257)]));
    rows
}

/// Codes of 16 bits: forward reads and writes one, backward reads two; the entropy reads twice and writes its gradient.
fn hypercube_rows(dtype: DType, n: usize) -> [Row; 3] {
    const K: usize = 16;
    let extents = [("N", n), ("K", K)];
    let work = |tensors: usize| Work::bytes(dtype.size_bytes() * tensors * n * K);
    [
        Row::new(["hypercube", "fwd", "code"], dtype, &extents, work(2), move |stage| {
            let (u, arena) = (stage.normals([n, K], dtype), stage.arena.clone());
            Box::new(move || vec![hypercube::forward(&arena, &u)])
        }),
        Row::new(["hypercube", "bwd", "half_warp_per_row"], dtype, &extents, work(3), move |stage| {
            let (u, db, arena) = (stage.normals([n, K], dtype), stage.normals([n, K], dtype), stage.arena.clone());
            let saved = hypercube::Saved { u };
            Box::new(move || vec![hypercube::backward(&arena, &db, &saved)])
        }),
        Row::new(["hypercube", "fwd", "entropy"], dtype, &extents, work(3), move |stage| {
            let (u, arena) = (stage.normals([n, K], dtype), stage.arena.clone());
            Box::new(move || {
                let (loss, du) = hypercube::entropy(&arena, &u, &10.0.into(), Some(&0.5.into()));
                vec![loss, du.expect("asked for")]
            })
        }),
    ]
}

/// Every eighth row: reads and writes as many forward, reads as many and writes all backward.
fn select_rows_rows(dtype: DType, [n, c]: [usize; 2]) -> [Row; 2] {
    let (extents, m) = ([("N", n), ("C", c)], n / 8);
    let stride = Stride { t: n, first: 4, every: 8 };
    let work = |elems: usize| Work::bytes(dtype.size_bytes() * elems);
    [
        Row::new(["select_rows", "fwd", "vector"], dtype, &extents, work(2 * m * c), move |stage| {
            let (x, arena) = (stage.normals([n, c], dtype), stage.arena.clone());
            Box::new(move || vec![select_rows::forward(&arena, &x, stride)])
        }),
        Row::new(["select_rows", "bwd", "vector"], dtype, &extents, work(m * c + n * c), move |stage| {
            let (dy, arena) = (stage.normals([m, c], dtype), stage.arena.clone());
            Box::new(move || vec![select_rows::backward(&arena, &dy, n, stride)])
        }),
    ]
}

/// The 8 highest of a row of scores: forward reads and writes a row, backward writes one; with the statistics of each entry.
fn top_k_softmax_rows(dtype: DType, [n, m]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("M", m)];
    let options = top_k_softmax::Options { top: 8, scale: 0.125 };
    let work = |tensors: usize| Work::bytes(dtype.size_bytes() * tensors * n * m);
    [
        Row::new(["top_k_softmax", "fwd", "warp_per_row"], dtype, &extents, work(2), move |stage| {
            let (scores, arena) = (stage.normals([n, m], dtype), stage.arena.clone());
            Box::new(move || vec![top_k_softmax::forward(&arena, &scores, None, options).0])
        }),
        Row::new(["top_k_softmax", "bwd", "warp_per_row"], dtype, &extents, work(1), move |stage| {
            let (scores, arena) = (stage.normals([n, m], dtype), stage.arena.clone());
            let (da, mut grads) = (stage.normals([n, m], dtype), stage.grads(dtype, &[&[2, m]]));
            let (_, saved) = top_k_softmax::forward(&arena, &scores, None, options);
            Box::new(move || {
                let ds = top_k_softmax::backward(&arena, &da, &saved, Some(grads.view_mut(ParamId(0))));
                vec![ds, grads.flat().clone()]
            })
        }),
    ]
}

/// Eight streams of banks of M rows: a product with their values, the mean of each segment of 1/8 of the rows, and a row written for it.
fn bank_rows(dtype: DType, [n, c, m]: [usize; 3]) -> [Row; 3] {
    const STREAMS: usize = 8;
    let (extents, bytes) = ([("N", n), ("M", m), ("C", c)], dtype.size_bytes());
    let product = Work { bytes: bytes * (n * m + n * c + STREAMS * m * c), flops: 2 * n * m * c, tokens: 0 };
    [
        Row::new(["bank_product", "fwd", super::products::mechanism(dtype)], dtype, &extents, product, move |stage| {
            let (x, bank) = (stage.normals([n, m], dtype), stage.normals([STREAMS, m, c], dtype));
            let arena = stage.arena.clone();
            Box::new(move || vec![bank_product::forward(&arena, &x, &bank, Side::Columns)])
        }),
        Row::new(
            ["segment_mean", "fwd", "column_per_thread"],
            dtype,
            &extents,
            Work::bytes(bytes * n * c),
            move |stage| {
                let (x, arena) = (stage.normals([n, c], dtype), stage.arena.clone());
                Box::new(move || vec![segment_mean::forward(&arena, &x, n / STREAMS, n / STREAMS, None)])
            },
        ),
        Row::new(
            ["bank_write", "fwd", "warp_per_row"],
            dtype,
            &extents,
            Work::bytes(bytes * 2 * STREAMS * (KEY + c)),
            move |stage| {
                let [keys, values] = [KEY, c].map(|width| stage.normals([STREAMS, width], dtype));
                let [mut to_keys, mut to_values] = [KEY, c].map(|width| stage.normals([STREAMS, m, width], dtype));
                let [mut born, mut clock] = [STREAMS * m, STREAMS].map(|count| stage.ids(count, 2));
                let (arena, streams) = (stage.arena.clone(), [STREAMS, m]);
                born = born.reshape(streams);
                Box::new(move || {
                    let banks =
                        Banks { keys: &mut to_keys, values: &mut to_values, born: &mut born, clock: &mut clock };
                    let times = bank_write::forward(&arena, banks, &keys, &values);
                    vec![times]
                })
            },
        ),
    ]
}

/// Width of the keys of a bank.
const KEY: usize = 64;

/// The windows of every eighth token, and three products of `2 M R Nc`; rows, codes and the gradients of both.
fn concept_loss_row(dtype: DType, [m, r, nc]: [usize; 3]) -> Row {
    let bytes = dtype.size_bytes() * (2 * m * r + nc * r) + size_of::<f32>() * nc * r;
    let work = Work { bytes, flops: 6 * m * r * nc, tokens: 0 };
    let extents = [("M", m), ("R", r), ("V", nc)];
    Row::new(["concept_loss", "fwd", "block_per_row"], dtype, &extents, work, move |stage| {
        let (x, codes) = (stage.normals([m, r], dtype), stage.normals([nc, r], dtype));
        let [bias, idf] = [(); 2].map(|()| stage.normals([nc], DType::F32));
        let tokens = stage.ids(8 * m, nc);
        let windows = Windows { stride: Stride { t: 8 * m, first: 4, every: 8 }, window: 16, concepts: nc };
        let (arena, mut grads) = (stage.arena.clone(), stage.grads(dtype, &[&[nc, r]]));
        Box::new(move || {
            let concepts = Concepts { codes: &codes, bias: &bias, idf: &idf };
            let dcodes = Some(grads.view_mut(ParamId(0)));
            let windows = windows.gather(&arena, &tokens, None);
            let wanted = concept_loss::Gradients { scale: 0.5.into(), dcodes };
            let (losses, dx) = concept_loss::forward(&arena, &x, concepts, &windows, Some(wanted));
            vec![losses, dx.expect("asked for"), grads.flat().clone()]
        })
    })
}

/// Forward reads three streams and writes the blend and its norm; backward reads three streams and two gradients, and writes
/// three.
fn blend_elems(n: usize, c: usize) -> [usize; 2] {
    [5 * n * c, 8 * n * c]
}

struct BlendInputs {
    streams: [Tensor; 3],
    controller: Tensor,
    bias: Tensor,
    gain: Tensor,
}

impl BlendInputs {
    fn new(stage: &Stage, [n, c]: [usize; 2], dtype: DType) -> BlendInputs {
        let streams = [(); 3].map(|()| stage.normals([n, c], dtype));
        let (bias, gain) = (stage.normals([3], dtype), stage.normals([c], dtype));
        BlendInputs { streams, controller: stage.normals([3, c], dtype), bias, gain }
    }

    fn weights(&self) -> Weights<'_> {
        Weights { controller: Some(&self.controller), bias: &self.bias, gain: &self.gain }
    }
}

fn blend_rows(dtype: DType, [n, c]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("C", c)];
    let options = Options { source: Source::Third, lean: [0.0; 3], eps: EPS };
    let [forward, backward] = blend_elems(n, c).map(|elems| Work::bytes(dtype.size_bytes() * elems));
    [
        Row::new(["blend", "fwd", "block_per_row"], dtype, &extents, forward, move |stage| {
            let (inputs, arena) = (BlendInputs::new(stage, [n, c], dtype), stage.arena.clone());
            Box::new(move || {
                let (y, x, _) = blend::forward(&arena, inputs.streams.clone(), inputs.weights(), options);
                vec![y, x]
            })
        }),
        Row::new(["blend", "bwd", "block_per_row"], dtype, &extents, backward, move |stage| {
            let (inputs, arena) = (BlendInputs::new(stage, [n, c], dtype), stage.arena.clone());
            let [dy, dx] = [(); 2].map(|()| stage.normals([n, c], dtype));
            let mut grads = stage.grads(dtype, &[&[3, c], &[3], &[c]]);
            let (.., saved) = blend::forward(&arena, inputs.streams.clone(), inputs.weights(), options);
            Box::new(move || {
                let spans = [0, 1, 2].map(|i| ParamId(i).into());
                let [controller, bias, gain] = grads.disjoint_mut(spans);
                let gradients = Gradients { controller: Some(controller), bias, gain };
                let (dy, dx) = (Some(dy.clone()), Some(dx.clone()));
                let dh = blend::backward(&arena, gradients, dy, dx, inputs.weights(), &saved);
                dh.into_iter().chain([grads.flat().clone()]).collect()
            })
        }),
    ]
}
