//! Ops that memory bounds: what counts is bytes. Ops that work in place are fed their own result.

use super::{Row, Size, Stage, Work, in_place};
use crate::device::Device;
use crate::ops::rope::{self, Heads, QkNorm, Table};
use crate::ops::sample::{self, Draw};
use crate::ops::{add, embedding, grad_norm, rmsnorm, scale_grad, softcap, swiglu};
use crate::tensor::{DType, ParamId, Tensor};

const EPS: f64 = 1e-5;

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let [n, c] = stream(size);
    // Wider than a warp holds: a block for each row.
    let wide = [n.div_ceil(4), size.of(1032, 2048, 4096)];
    let mut rows = vec![add_row(dtype, [n, c]), scale_grad_row(dtype, [n, c]), cast_row(dtype, n * c)];
    rows.extend(embedding_rows(dtype, [n, c], size.of(300, 4096, 32_768)));
    rows.extend(rmsnorm_rows(dtype, [n, c], "warp_per_row"));
    rows.extend(rmsnorm_rows(dtype, wide, "block_per_row"));
    rows.extend(rope_rows(size, dtype));
    rows.extend(swiglu_rows(dtype, [n, size.of(192, 1024, 2048)]));
    rows.extend(softcap_rows(dtype, [n, c]));
    rows.extend([(1, 1), (8, 50)].map(|(n, k)| sample_row(dtype, k, [n, size.of(700, 49_152, 49_152)])));
    if dtype == DType::F32 {
        rows.push(copy_row(size));
        rows.push(grad_norm_row(size.of(40_000, 10_000_000, 128 << 20)));
    }
    rows
}

/// Rows and columns of the residual stream.
pub(super) fn stream(size: Size) -> [usize; 2] {
    size.of([64, 256], [2048, 384], [16_384, 768])
}

/// Bytes of `elems` values.
fn bytes(dtype: DType, elems: usize) -> Work {
    Work::bytes(dtype.size_bytes() * elems)
}

/// Draws from the `k` most probable, by a share of 0.95 where that is more than the first: what the logits take must move.
fn sample_row(dtype: DType, k: u32, [n, v]: [usize; 2]) -> Row {
    let extents = [("N", n), ("V", v), ("k", k as usize)];
    Row::new(["sample", "fwd", "block_per_row"], dtype, &extents, bytes(dtype, n * v), move |stage| {
        let (logits, arena) = (stage.normals([n, v], dtype), stage.arena.clone());
        let top_p = if k == 1 { 0 } else { u64::MAX / 20 * 19 };
        let draws = vec![Draw { uniform: 1 << 63, scale: 1.0, top_k: k, top_p, least_weight: 0 }; n];
        Box::new(move || {
            let tokens: Vec<u32> = match arena.device() {
                Device::Gpu(_) => sample::forward(&arena, &logits, &draws).into_iter().flatten().collect(),
                Device::Cpu => {
                    let wide = logits.cast(&arena, DType::F32);
                    let rows = wide.as_slice::<f32>().chunks_exact(v).zip(&draws);
                    rows.map(|(row, draw)| draw.pick(row, sample::most_probable(row).expect("numbers"))).collect()
                }
            };
            vec![Tensor::from_slice(&arena, [n], &tokens)]
        })
    })
}

/// What memory can do: every byte is read and written.
fn copy_row(size: Size) -> Row {
    let n = size.of(1 << 16, 1 << 24, 1 << 27);
    Row::new(["copy", "", ""], DType::F32, &[("N", n)], bytes(DType::F32, 2 * n), move |stage| {
        let (x, arena) = (stage.normals([n], DType::F32), stage.arena.clone());
        Box::new(move || vec![x.copy(&arena)])
    })
}

/// To the other type: reads 4 bytes and writes 2, or the other way round.
fn cast_row(dtype: DType, n: usize) -> Row {
    let (mechanism, to) = match dtype {
        DType::F32 => ("vector_bf16_to", DType::F32),
        _ => ("vector_f32_to", DType::Bf16),
    };
    let from = if to == DType::F32 { DType::Bf16 } else { DType::F32 };
    Row::new(["cast", "fwd", mechanism], dtype, &[("N", n)], Work::bytes(6 * n), move |stage| {
        let (x, arena) = (stage.normals([n], from), stage.arena.clone());
        Box::new(move || vec![x.cast(&arena, to)])
    })
}

/// Reads two, writes one. Backward hands on the same tensor twice and moves nothing.
fn add_row(dtype: DType, [n, c]: [usize; 2]) -> Row {
    Row::new(["add", "fwd", "vector"], dtype, &[("N", n), ("C", c)], bytes(dtype, 3 * n * c), move |stage| {
        let (mut a, b) = (Some(stage.normals([n, c], dtype)), stage.normals([n, c], dtype));
        let arena = stage.arena.clone();
        Box::new(move || in_place(&mut a, |a| add::forward(&arena, a, &b)))
    })
}

/// Backward reads and writes one; forward hands on its input and moves nothing.
fn scale_grad_row(dtype: DType, [n, c]: [usize; 2]) -> Row {
    let work = bytes(dtype, 2 * n * c);
    Row::new(["scale_grad", "bwd", "vector"], dtype, &[("N", n), ("C", c)], work, move |stage| {
        let (mut dy, arena) = (Some(stage.normals([n, c], dtype)), stage.arena.clone());
        // By -1, since anything else would drift to 0 or infinity.
        Box::new(move || in_place(&mut dy, |dy| scale_grad::backward(&arena, dy, &(-1.0).into())))
    })
}

/// Forward reads a row of the table and writes one. Backward reads `dy`, and reads and writes rows of the gradient in f32.
fn embedding_bytes(dtype: DType, n: usize, c: usize) -> [usize; 2] {
    let size = dtype.size_bytes();
    [2 * n * c * size, n * c * (size + 2 * size_of::<f32>())]
}

fn embedding_rows(dtype: DType, [n, c]: [usize; 2], v: usize) -> [Row; 2] {
    let extents = [("N", n), ("C", c), ("V", v)];
    let [forward, backward] = embedding_bytes(dtype, n, c).map(Work::bytes);
    [
        Row::new(["embedding", "fwd", "vector"], dtype, &extents, forward, move |stage| {
            let (table, tokens, arena) = (stage.normals([v, c], dtype), stage.ids(n, v), stage.arena.clone());
            Box::new(move || vec![embedding::forward(&arena, &table, &tokens)])
        }),
        Row::new(["embedding", "bwd", "table_rows"], dtype, &extents, backward, move |stage| {
            let (dy, tokens) = (stage.normals([n, c], dtype), stage.ids(n, v));
            let mut grads = stage.grads(dtype, &[&[v, c]]);
            Box::new(move || {
                embedding::backward(&mut grads.view_mut(ParamId(0)), &dy, &tokens);
                vec![grads.flat().clone()]
            })
        }),
    ]
}

/// Elements moved by forward, forward with the addition, backward, backward with the residual's gradient. Forward reads `x` and
/// writes `y`, backward reads `dy` and `x` and writes `dx`.
fn rmsnorm_elems(n: usize, c: usize) -> [usize; 4] {
    [2, 4, 3, 4].map(|tensors| tensors * n * c)
}

fn rmsnorm_rows(dtype: DType, [n, c]: [usize; 2], mechanism: &'static str) -> Vec<Row> {
    let of = |direction: &'static str, elems: usize, make: fn(&Stage, [usize; 2], DType) -> super::Run| {
        let extents = [("N", n), ("C", c)];
        Row::new(["rmsnorm", direction, mechanism], dtype, &extents, bytes(dtype, elems), move |stage| {
            make(stage, [n, c], dtype)
        })
    };
    let [forward, forward_add, backward, backward_add] = rmsnorm_elems(n, c);
    vec![
        of("fwd", forward, |stage, [n, c], dtype| {
            let (x, gain, arena) = (stage.normals([n, c], dtype), stage.normals([c], dtype), stage.arena.clone());
            Box::new(move || vec![rmsnorm::forward(&arena, &x, &gain, EPS).0])
        }),
        of("fwd_add", forward_add, |stage, [n, c], dtype| {
            let (x, gain, arena) = (stage.normals([n, c], dtype), stage.normals([c], dtype), stage.arena.clone());
            let mut delta = Some(stage.normals([n, c], dtype));
            Box::new(move || in_place(&mut delta, |delta| rmsnorm::forward_add(&arena, &x, delta, &gain, EPS).0))
        }),
        of("bwd", backward, |stage, shape, dtype| rmsnorm_backward(stage, shape, dtype, false)),
        of("bwd_add", backward_add, |stage, shape, dtype| rmsnorm_backward(stage, shape, dtype, true)),
    ]
}

fn rmsnorm_backward(stage: &Stage, [n, c]: [usize; 2], dtype: DType, fused: bool) -> super::Run {
    let (x, gain, dy) = (stage.normals([n, c], dtype), stage.normals([c], dtype), stage.normals([n, c], dtype));
    let (mut dsum, mut grads) = (fused.then(|| stage.normals([n, c], dtype)), stage.grads(dtype, &[&[c]]));
    let arena = stage.arena.clone();
    let (_, saved) = rmsnorm::forward(&arena, &x, &gain, EPS);
    Box::new(move || {
        let taken = dsum.take();
        let dx = rmsnorm::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, taken, &gain, &saved);
        dsum = fused.then(|| dx.clone());
        vec![dx, grads.flat().clone()]
    })
}

/// Elements of both directions without a norm, which read and write queries and keys and leave values where they are; of forward
/// with QK-norm, which writes the whole row anew; of its backward, which reads the gradient and the input.
fn rope_elems(n: usize, heads: Heads) -> [usize; 3] {
    let normed = n * (heads.h + heads.g) * heads.d;
    [2 * normed, 2 * n * heads.row_elems(), 3 * normed]
}

fn rope_rows(size: Size, dtype: DType) -> Vec<Row> {
    let (n, t, heads) = size.of(
        (96, 48, Heads { h: 3, g: 1, d: 32 }),
        (2048, 256, Heads { h: 6, g: 6, d: 64 }),
        (16_384, 2048, Heads { h: 6, g: 6, d: 128 }),
    );
    let Heads { h, g, d } = heads;
    let extents = [("N", n), ("T", t), ("H", h), ("G", g), ("D", d)];
    let [plain, forward, backward] = rope_elems(n, heads).map(|elems| bytes(dtype, elems));
    let table = move |stage: &Stage| Table::new(t, &rope::frequencies(d, 1e4, None), DType::F32).to(stage.device());
    let plain_row = |direction: &'static str, mechanism: &'static str| {
        Row::new(["rope", direction, mechanism], dtype, &extents, plain, move |stage| {
            let (mut qkv, table) = (Some(stage.normals([n, heads.row_elems()], dtype)), table(stage));
            let (arena, saved) = (stage.arena.clone(), rope::Saved { normed: None });
            Box::new(move || {
                in_place(&mut qkv, |x| match direction {
                    "fwd" => rope::forward(&arena, x, heads, t, 0, &table, None).0,
                    _ => rope::backward(&arena, x, heads, t, &table, None, &saved),
                })
            })
        })
    };
    let gains = move |stage: &Stage| [(); 2].map(|()| stage.normals([d], dtype));
    vec![
        plain_row("fwd", "warp_per_head"),
        plain_row("bwd", "warp_per_row"),
        Row::new(["rope", "fwd_norm", "warp_per_head"], dtype, &extents, forward, move |stage| {
            let (x, table, gains) = (stage.normals([n, heads.row_elems()], dtype), table(stage), gains(stage));
            let arena = stage.arena.clone();
            Box::new(move || vec![rope::forward(&arena, x.clone(), heads, t, 0, &table, Some(norm(&gains))).0])
        }),
        Row::new(["rope", "bwd_norm", "warp_per_row"], dtype, &extents, backward, move |stage| {
            let (x, table, gains) = (stage.normals([n, heads.row_elems()], dtype), table(stage), gains(stage));
            let (arena, mut grads) = (stage.arena.clone(), stage.grads(dtype, &[&[d], &[d]]));
            let (_, saved) = rope::forward(&arena, x, heads, t, 0, &table, Some(norm(&gains)));
            let mut dy = Some(stage.normals([n, heads.row_elems()], dtype));
            Box::new(move || {
                let dgains = grads.pair_mut(ParamId(0), ParamId(1));
                let mut results = in_place(&mut dy, |dy| {
                    rope::backward(&arena, dy, heads, t, &table, Some((norm(&gains), dgains)), &saved)
                });
                results.push(grads.flat().clone());
                results
            })
        }),
    ]
}

fn norm([q_gain, k_gain]: &[Tensor; 2]) -> QkNorm<'_> {
    QkNorm { q_gain, k_gain, eps: EPS }
}

/// Forward reads gate and up and writes one, backward also reads `dy` and writes two.
fn swiglu_elems(n: usize, f: usize) -> [usize; 2] {
    [3 * n * f, 5 * n * f]
}

fn swiglu_rows(dtype: DType, [n, f]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("F", f)];
    let [forward, backward] = swiglu_elems(n, f).map(|elems| bytes(dtype, elems));
    [
        Row::new(["swiglu", "fwd", "vector"], dtype, &extents, forward, move |stage| {
            let (gate_up, arena) = (stage.normals([n, 2 * f], dtype), stage.arena.clone());
            Box::new(move || vec![swiglu::forward(&arena, &gate_up)])
        }),
        Row::new(["swiglu", "bwd", "vector"], dtype, &extents, backward, move |stage| {
            let saved = swiglu::Saved { gate_up: stage.normals([n, 2 * f], dtype) };
            let (dy, arena) = (stage.normals([n, f], dtype), stage.arena.clone());
            Box::new(move || vec![swiglu::backward(&arena, &dy, &saved)])
        }),
    ]
}

/// Forward reads and writes one, backward reads `y` besides. Values would shrink if they were fed back, so a processor, which
/// works in place, is timed with a copy.
fn softcap_elems(n: usize, c: usize) -> [usize; 2] {
    [2 * n * c, 3 * n * c]
}

fn softcap_rows(dtype: DType, [n, c]: [usize; 2]) -> [Row; 2] {
    let (extents, cap) = ([("N", n), ("C", c)], 15.0);
    let [forward, backward] = softcap_elems(n, c).map(|elems| bytes(dtype, elems));
    [
        Row::new(["softcap", "fwd", "vector"], dtype, &extents, forward, move |stage| {
            let (x, arena) = (stage.normals([n, c], dtype), stage.arena.clone());
            Box::new(move || vec![softcap::forward(&arena, x.clone(), cap)])
        }),
        Row::new(["softcap", "bwd", "vector"], dtype, &extents, backward, move |stage| {
            let (y, dy, arena) = (stage.normals([n, c], dtype), stage.normals([n, c], dtype), stage.arena.clone());
            let saved = softcap::Saved { y, cap };
            Box::new(move || vec![softcap::backward(&arena, dy.clone(), &saved)])
        }),
    ]
}

/// Reads every gradient once. The sums are wanted on the host, so a card is waited for.
fn grad_norm_row(n: usize) -> Row {
    let work = bytes(DType::F32, n);
    Row::new(["grad_norm", "fwd", "listed_part_per_block"], DType::F32, &[("N", n)], work, move |stage| {
        let (flat, arena) = (stage.normals([n], DType::F32), stage.arena.clone());
        let host = crate::tensor::Arena::new(4096).expect("address space");
        Box::new(move || {
            let sums = grad_norm::sums_of_squares(&arena, &flat, &[0..n / 3, n / 3..n]);
            vec![Tensor::from_f64(&host, [sums.len()], DType::F64, &sums)]
        })
    })
}
