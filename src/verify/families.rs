//! A case or more of every family of kernels, ready to run on a device: what `doctor` launches.

use super::{ATTENTION, AttentionCase, OpCase, Outcome, ROWS, integers, normals};
use crate::device::gpu::Gpu;
use crate::ops::attention::{self, Mask};
use crate::ops::rope::{Heads, QkNorm, Table, frequencies};
use crate::ops::{add, embedding, linear, lm_loss, rmsnorm, rope, softcap, swiglu};
use crate::tensor::{Arena, DType, Grads, Layout, ParamId, Role, Shape, Tensor};
use std::sync::Arc;

/// How many cases of a family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// One, at a size that divides nothing.
    One,
    /// All of `verify`.
    All,
}

/// Every family, and the check of its cases in f32 and bf16 against f64 on the CPU.
///
/// A check's error says what disagreed.
#[allow(clippy::type_complexity)] // a table of functions
pub const FAMILIES: &[(&str, fn(&'static Gpu, Extent) -> Result<(), String>)] = &[
    ("add", check_add),
    ("softcap", check_softcap),
    ("swiglu", check_swiglu),
    ("embedding", check_embedding),
    ("rmsnorm", check_rmsnorm),
    ("rope", check_rope),
    ("linear", check_linear),
    ("attention", check_attention),
    ("lm_loss", check_lm_loss),
];

fn shapes(extent: Extent) -> &'static [[usize; 2]] {
    match extent {
        Extent::One => &ROWS[3..4],
        Extent::All => ROWS,
    }
}

fn at(arena: &Arena, dtype: DType, shape: impl Into<Shape>, values: &[f64]) -> Tensor {
    Tensor::from_f64(arena, shape, dtype, values)
}

fn grads(arena: &Arena, dtype: DType, shapes: &[Shape]) -> Grads {
    let mut layout = Layout::default();
    for (i, shape) in shapes.iter().enumerate() {
        layout.push(format!("{i}"), shape.as_slice(), Role::Matrix);
    }
    Grads::zeros_on(arena.device(), Arc::new(layout), dtype)
}

fn gradient(grads: &Grads, i: u32) -> Vec<f64> {
    grads.view(ParamId(i)).to_f64()
}

/// An op from one tensor to one, of a row's width to a row's width.
type Unary<'a> = &'a dyn Fn(&Arena, DType, [usize; 2], &[Vec<f64>], &[f64]) -> Outcome;

/// Its forward in plain loops, given the width of a row.
type Reference<'a> = &'a dyn Fn(&[Vec<f64>], usize) -> Vec<f64>;

fn check_rows(
    gpu: &'static Gpu,
    extent: Extent,
    inputs: &dyn Fn(usize, usize) -> Vec<Vec<f64>>,
    run: Unary,
    reference: Reference,
) -> Result<(), String> {
    shapes(extent).iter().try_for_each(|&[n, c]| {
        let case = OpCase {
            name: format!("{n}x{c}"),
            inputs: inputs(n, c),
            longest_sum: n.max(c),
            run: &|arena, dtype, inputs, dy| run(arena, dtype, [n, c], inputs, dy),
            reference: &|inputs| reference(inputs, c),
        };
        case.check_on(gpu)
    })
}

fn check_add(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let run: Unary = &|arena, dtype, shape, inputs, _| {
        let y = add::forward(arena, at(arena, dtype, shape, &inputs[0]), &at(arena, dtype, shape, &inputs[1]));
        Outcome { output: y.to_f64(), gradients: vec![] }
    };
    let inputs = |n, c| vec![normals("add a", n * c), normals("add b", n * c)];
    check_rows(gpu, extent, &inputs, run, &|inputs, _| add::reference(&inputs[0], &inputs[1]))
}

fn check_softcap(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let run: Unary = &|arena, dtype, shape, inputs, dy| {
        let y = softcap::forward(arena, at(arena, dtype, shape, &inputs[0]), 2.0);
        let saved = softcap::Saved { y: y.clone(), cap: 2.0 };
        let dx = softcap::backward(arena, at(arena, dtype, shape, dy), &saved);
        Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
    };
    let inputs = |n, c| vec![normals("softcap", n * c)];
    check_rows(gpu, extent, &inputs, run, &|inputs, _| softcap::reference(&inputs[0], 2.0))
}

fn check_swiglu(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let run: Unary = &|arena, dtype, [n, f], inputs, dy| {
        let gate_up = at(arena, dtype, [n, 2 * f], &inputs[0]);
        let y = swiglu::forward(arena, &gate_up);
        let dx = swiglu::backward(arena, &at(arena, dtype, [n, f], dy), &swiglu::Saved { gate_up });
        Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
    };
    let inputs = |n, f| vec![normals("swiglu", 2 * n * f)];
    check_rows(gpu, extent, &inputs, run, &|inputs, f| swiglu::reference(&inputs[0], f))
}

fn check_embedding(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    const V: usize = 11;
    let tokens = |n: usize| integers("embedding tokens", n, V);
    shapes(extent).iter().try_for_each(|&[n, c]| {
        let case = OpCase {
            name: format!("{n}x{c}"),
            inputs: vec![normals("embedding table", V * c)],
            longest_sum: n,
            run: &|arena, dtype, inputs, dy| {
                let (table, ids) = (at(arena, dtype, [V, c], &inputs[0]), Tensor::from_slice(arena, [n], &tokens(n)));
                let y = embedding::forward(arena, &table, &ids);
                let mut grads = grads(arena, dtype, &[table.shape()]);
                embedding::backward(&mut grads.view_mut(ParamId(0)), &at(arena, dtype, [n, c], dy), &ids);
                Outcome { output: y.to_f64(), gradients: vec![gradient(&grads, 0)] }
            },
            reference: &|inputs| embedding::reference(&inputs[0], c, &tokens(n)),
        };
        case.check_on(gpu)
    })
}

fn check_rmsnorm(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let run: Unary = &|arena, dtype, [n, c], inputs, dy| {
        let (x, gain) = (at(arena, dtype, [n, c], &inputs[0]), at(arena, dtype, [c], &inputs[1]));
        let (y, saved) = rmsnorm::forward(arena, &x, &gain, 1e-5);
        let mut grads = grads(arena, dtype, &[gain.shape()]);
        let dy = at(arena, dtype, [n, c], dy);
        let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
        Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
    };
    let inputs = |n, c| vec![normals("rmsnorm x", n * c), normals("rmsnorm gain", c)];
    check_rows(gpu, extent, &inputs, run, &|inputs, _| rmsnorm::reference(&inputs[0], &inputs[1], 1e-5))
}

fn check_rope(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let all = [(31, Heads { h: 4, g: 2, d: 16 }), (9, Heads { h: 3, g: 1, d: 6 }), (140, Heads { h: 9, g: 3, d: 8 })];
    let cases = if extent == Extent::All { &all[..] } else { &all[..1] };
    cases.iter().try_for_each(|&(t, heads)| {
        let (row, d, frequencies) = (heads.row_elems(), heads.d, frequencies(heads.d, 1e4, None));
        let case = OpCase {
            name: format!("{t} {heads:?}"),
            inputs: vec![normals("rope", t * row), normals("q gain", d), normals("k gain", d)],
            longest_sum: t * heads.h + d,
            run: &|arena, dtype, inputs, dy| {
                let table = Table::new(t, &frequencies, dtype.accumulator()).to(arena.device());
                let gains = [1, 2].map(|i: usize| at(arena, dtype, [d], &inputs[i]));
                let norm = QkNorm { q_gain: &gains[0], k_gain: &gains[1], eps: 1e-5 };
                let x = at(arena, dtype, [t, row], &inputs[0]);
                let (y, saved) = rope::forward(arena, x, heads, t, 0, &table, Some(norm));
                let mut grads = grads(arena, dtype, &[gains[0].shape(), gains[1].shape()]);
                let dgains = grads.pair_mut(ParamId(0), ParamId(1));
                let dy = at(arena, dtype, [t, row], dy);
                let dx = rope::backward(arena, dy, heads, t, &table, Some((norm, dgains)), &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0), gradient(&grads, 1)] }
            },
            reference: &|inputs| {
                rope::reference(&inputs[0], heads, t, &frequencies, Some((&inputs[1], &inputs[2], 1e-5)))
            },
        };
        case.check_on(gpu)
    })
}

fn check_linear(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let all = [[17, 97, 33], [1, 1, 1], [3, 7, 5], [65, 130, 200]];
    let cases = if extent == Extent::All { &all[..] } else { &all[..1] };
    cases.iter().try_for_each(|&[n, i, o]| {
        let case = OpCase {
            name: format!("{n}x{i} to {o}"),
            inputs: vec![normals("linear x", n * i), normals("linear w", o * i)],
            longest_sum: n.max(i).max(o),
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (at(arena, dtype, [n, i], &inputs[0]), at(arena, dtype, [o, i], &inputs[1]));
                let y = linear::forward(arena, &x, &w);
                let mut grads = grads(arena, dtype, &[w.shape()]);
                let (dy, saved) = (at(arena, dtype, [n, o], dy), linear::Saved { x });
                let dx = linear::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| linear::reference(&inputs[0], &inputs[1], i),
        };
        case.check_on(gpu)
    })
}

fn check_attention(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let cases = if extent == Extent::All { ATTENTION } else { &ATTENTION[6..] };
    cases.iter().try_for_each(|case| {
        let AttentionCase { b, t, heads, window, document } = *case;
        let n = b * t;
        let mask = |arena: &Arena| {
            let starts = |i: usize| ((i % t) / document * document) as u32;
            let starts = (document > 0).then(|| (0..n).map(starts).collect::<Vec<_>>());
            Mask { window, doc_start: starts.map(|starts| Tensor::from_slice(arena, [n], &starts)) }
        };
        let host = Arena::new(1 << 20).map_err(|error| error.to_string())?;
        let case = OpCase {
            name: format!("{case:?}"),
            inputs: vec![normals("attention", n * heads.row_elems())],
            longest_sum: t + heads.d,
            run: &|arena, dtype, inputs, dy| {
                let qkv = at(arena, dtype, [n, heads.row_elems()], &inputs[0]);
                let (y, saved) = attention::forward(arena, &qkv, heads, t, mask(arena));
                let dy = at(arena, dtype, [n, heads.h * heads.d], dy);
                let dqkv = attention::backward(arena, &dy, heads, t, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dqkv.to_f64()] }
            },
            reference: &|inputs| attention::reference(&inputs[0], heads, t, &mask(&host)),
        };
        case.check_on(gpu)
    })
}

fn check_lm_loss(gpu: &'static Gpu, extent: Extent) -> Result<(), String> {
    let all = [(33, 20, 97, None), (5, 7, 13, Some(2.0)), (9, 5, 1025, None)];
    let cases = if extent == Extent::All { &all[..] } else { &all[..1] };
    cases.iter().try_for_each(|&(n, c, v, cap)| {
        let targets = integers("lm targets", n, v);
        let case = OpCase {
            name: format!("{n}x{c} of {v}"),
            inputs: vec![normals("lm x", n * c), normals("lm w", v * c)],
            longest_sum: v,
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (at(arena, dtype, [n, c], &inputs[0]), at(arena, dtype, [v, c], &inputs[1]));
                let mut grads = grads(arena, dtype, &[w.shape()]);
                let wanted = lm_loss::Gradients { scale: dy[0], dweight: grads.view_mut(ParamId(0)) };
                let ids = Tensor::from_slice(arena, [n], &targets);
                let (losses, dx) = lm_loss::forward(arena, &x, &w, &ids, cap, Some(wanted));
                let dx = dx.expect("gradients were asked for").to_f64();
                Outcome { output: vec![losses.to_f64().iter().sum()], gradients: vec![dx, gradient(&grads, 0)] }
            },
            reference: &|inputs| vec![lm_loss::reference(&inputs[0], &inputs[1], c, &targets, cap).iter().sum()],
        };
        case.check_on(gpu)
    })
}
