//! The ops of a carried state: the delta rule and what makes its operands.

use super::{Row, Size, Stage, Work};
use crate::ops::delta_rule::{self, Dims, Inputs, Keep, Past};
use crate::ops::{decay_gate, short_conv, sigmoid_gate, unit_norm};
use crate::tensor::{DType, ParamId, Tensor};

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let (memory, mixer) = (Dims { h: 4, dk: 64, dv: 64 }, Dims { h: 3, dk: 128, dv: 128 });
    let [n, c, t] = size.of([128, 128, 64], [2048, 384, 256], [16_384, 768, 2048]);
    let mut rows = Vec::new();
    rows.extend(delta_rows(dtype, n / t, t, memory));
    rows.extend(delta_rows(dtype, n / t, t, mixer));
    rows.push(decode_row(dtype, size.of(2, 8, 64), mixer));
    rows.extend(convolution_rows(dtype, n, t, c));
    rows.extend(decay_rows(dtype, n, [c / 64, 64]));
    rows.extend(gate_rows(dtype, [n, c]));
    rows.extend(norm_rows(dtype, [n * c / 64, 64]));
    rows
}

/// Bytes of `elems` values.
fn bytes(dtype: DType, elems: usize) -> Work {
    Work::bytes(dtype.size_bytes() * elems)
}

/// Operands of which keys have about unit length and nothing decays fast.
fn operands(stage: &Stage, dtype: DType, n: usize, Dims { h, dk, dv }: Dims) -> [Tensor; 5] {
    let arena = &stage.arena;
    let [q, k] = [(); 2].map(|()| unit_norm::forward(arena, &stage.normals([n, h * dk], dtype), dk).0);
    let (a, dt) = (stage.normals([h], dtype), stage.normals([h, dk], dtype));
    let rates = decay_gate::Rates { a: &a, dt: &dt };
    let log_alpha = decay_gate::forward(arena, &stage.normals([n, h * dk], dtype), rates).0;
    let beta = sigmoid_gate::forward(arena, None, &stage.normals([n, h], dtype)).0;
    [q, k, stage.normals([n, h * dv], dtype), log_alpha, beta]
}

fn inputs([q, k, v, log_alpha, beta]: &[Tensor; 5]) -> Inputs<'_> {
    Inputs { q, k, v, log_alpha, beta }
}

/// Products of a chunk of C tokens: pairs of keys and of queries with keys (C^2 dk), the errors and the output from pairs (C^2 dv),
/// and three of C dk dv with the state. Backward makes the pairs again, and each product has two gradients. Forward reads the
/// operands and writes the output; backward reads those and the output's gradient, and writes theirs.
fn delta_work(dtype: DType, n: usize, Dims { h, dk, dv }: Dims) -> [Work; 2] {
    let pairs = n * h * delta_rule::CHUNK * dk;
    let multiplications = pairs + n * h * delta_rule::CHUNK * dv + 3 * n * h * dk * dv;
    let operands = n * h * (3 * dk + dv + 1);
    let size = dtype.size_bytes();
    let of = |elems: usize, multiplications: usize| Work { bytes: size * elems, flops: 2 * multiplications, tokens: 0 };
    [of(operands + n * h * dv, multiplications), of(2 * operands + n * h * dv, pairs + 2 * multiplications)]
}

fn delta_rows(dtype: DType, b: usize, t: usize, dims: Dims) -> [Row; 2] {
    let Dims { h, dk, dv } = dims;
    let extents = [("B", b), ("T", t), ("H", h), ("D", dk), ("Dv", dv)];
    let [forward, backward] = delta_work(dtype, b * t, dims);
    [
        Row::new(["delta_rule", "fwd", "value_columns"], dtype, &extents, forward, move |stage| {
            let (x, arena) = (operands(stage, dtype, b * t, dims), stage.arena.clone());
            Box::new(move || {
                let y = delta_rule::forward(&arena, inputs(&x), dims, t, Past::default(), Keep::Everything);
                vec![y.o, y.state]
            })
        }),
        Row::new(["delta_rule", "bwd", "value_columns"], dtype, &extents, backward, move |stage| {
            let (x, arena) = (operands(stage, dtype, b * t, dims), stage.arena.clone());
            let y = delta_rule::forward(&arena, inputs(&x), dims, t, Past::default(), Keep::Everything);
            let (saved, dout) = (y.saved.expect("everything is kept"), stage.normals([b * t, h * dv], dtype));
            Box::new(move || {
                let d = delta_rule::backward(&arena, &dout, None, dims, t, &saved);
                vec![d.q, d.k, d.v, d.log_alpha, d.beta]
            })
        }),
    ]
}

/// A token for each of `b` sequences: their states are read and written.
fn decode_row(dtype: DType, b: usize, dims: Dims) -> Row {
    let Dims { h, dk, dv } = dims;
    let extents = [("B", b), ("H", h), ("D", dk), ("Dv", dv)];
    let moved = 2 * size_of::<f32>() * b * h * dk * dv + dtype.size_bytes() * b * h * (3 * dk + 2 * dv + 1);
    Row::new(["delta_rule", "decode", "state_columns"], dtype, &extents, Work::bytes(moved), move |stage| {
        let (x, arena) = (operands(stage, dtype, b, dims), stage.arena.clone());
        let mut state = Tensor::zeros(&arena, [b, h, dk, dv], DType::F32);
        Box::new(move || vec![delta_rule::recurrent(&arena, inputs(&x), dims, 1, None, &mut state)])
    })
}

/// Forward reads and writes one; backward reads the gradient besides.
fn convolution_rows(dtype: DType, n: usize, t: usize, c: usize) -> [Row; 2] {
    let extents = [("N", n), ("T", t), ("C", c)];
    let prepare = move |stage: &Stage| {
        let (x, w) = (stage.normals([n, c], dtype), stage.normals([c, short_conv::TAPS], dtype));
        (x, w, stage.arena.clone())
    };
    [
        Row::new(["short_conv", "fwd", "channel_runs"], dtype, &extents, bytes(dtype, 2 * n * c), move |stage| {
            let (x, w, arena) = prepare(stage);
            Box::new(move || vec![short_conv::forward(&arena, &x, &w, t, short_conv::Past::default()).0])
        }),
        Row::new(["short_conv", "bwd", "channel_runs"], dtype, &extents, bytes(dtype, 3 * n * c), move |stage| {
            let (x, w, arena) = prepare(stage);
            let (dy, mut grads) = (stage.normals([n, c], dtype), stage.grads(dtype, &[&[c, short_conv::TAPS]]));
            let saved = short_conv::Saved { x, starts: None, rows: None };
            Box::new(move || {
                let dx = short_conv::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, &w, t, &saved);
                vec![dx, grads.flat().clone()]
            })
        }),
    ]
}

fn decay_rows(dtype: DType, n: usize, [h, d]: [usize; 2]) -> [Row; 2] {
    let (extents, elems) = ([("N", n), ("H", h), ("D", d)], n * h * d);
    let prepare = move |stage: &Stage| {
        let of = |shape: [usize; 2]| stage.normals(shape, dtype);
        (of([n, h * d]), of([1, h]), of([h, d]), stage.arena.clone())
    };
    [
        Row::new(["decay_gate", "fwd", "vector"], dtype, &extents, bytes(dtype, 2 * elems), move |stage| {
            let (f, a, dt, arena) = prepare(stage);
            Box::new(move || vec![decay_gate::forward(&arena, &f, decay_gate::Rates { a: &a, dt: &dt }).0])
        }),
        Row::new(["decay_gate", "bwd", "column_runs"], dtype, &extents, bytes(dtype, 3 * elems), move |stage| {
            let (f, a, dt, arena) = prepare(stage);
            let (dy, mut grads) = (stage.normals([n, h * d], dtype), stage.grads(dtype, &[&[h], &[h, d]]));
            let saved = decay_gate::Saved { f };
            Box::new(move || {
                let [mut da, mut ddt] = grads.pair_mut(ParamId(0), ParamId(1));
                let rates = decay_gate::Rates { a: &a, dt: &dt };
                vec![decay_gate::backward(&arena, [&mut da, &mut ddt], &dy, rates, &saved), grads.flat().clone()]
            })
        }),
    ]
}

/// Forward reads two and writes one, backward reads three and writes two.
fn gate_rows(dtype: DType, [n, c]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("C", c)];
    let [forward, backward] = [3, 5].map(|tensors| bytes(dtype, tensors * n * c));
    [
        Row::new(["sigmoid_gate", "fwd", "vector"], dtype, &extents, forward, move |stage| {
            let (x, gate, arena) = (stage.normals([n, c], dtype), stage.normals([n, c], dtype), stage.arena.clone());
            Box::new(move || vec![sigmoid_gate::forward(&arena, Some(&x), &gate).0])
        }),
        Row::new(["sigmoid_gate", "bwd", "vector"], dtype, &extents, backward, move |stage| {
            let saved =
                sigmoid_gate::Saved { x: Some(stage.normals([n, c], dtype)), gate: stage.normals([n, c], dtype) };
            let (dy, arena) = (stage.normals([n, c], dtype), stage.arena.clone());
            Box::new(move || {
                let (dx, dgate) = sigmoid_gate::backward(&arena, &dy, &saved);
                vec![dx.expect("there is an x"), dgate]
            })
        }),
    ]
}

/// Forward reads and writes one, backward reads the gradient besides.
fn norm_rows(dtype: DType, [n, d]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("D", d)];
    let [forward, backward] = [2, 3].map(|tensors| bytes(dtype, tensors * n * d));
    [
        Row::new(["unit_norm", "fwd", "lanes_per_row"], dtype, &extents, forward, move |stage| {
            let (x, arena) = (stage.normals([n, d], dtype), stage.arena.clone());
            Box::new(move || vec![unit_norm::forward(&arena, &x, d).0])
        }),
        Row::new(["unit_norm", "bwd", "lanes_per_row"], dtype, &extents, backward, move |stage| {
            let saved = unit_norm::Saved { x: stage.normals([n, d], dtype) };
            let (dy, arena) = (stage.normals([n, d], dtype), stage.arena.clone());
            Box::new(move || vec![unit_norm::backward(&arena, &dy, d, &saved)])
        }),
    ]
}
