//! The cases of row-wise ops.

use super::{Cases, Check, Extent, OpCase, Outcome, ROWS, at, gradient, grads, integers, normals, pick};
use crate::device::gpu::Gpu;
use crate::ops::rope::{Heads, Llama3Scaling, QkNorm, Table, frequencies};
use crate::ops::{add, embedding, rmsnorm, rope, scale_grad, softcap, swiglu};
use crate::tensor::{Arena, DType, ParamId, Tensor};

const EPS: f64 = 1e-5;

/// Sum of two.
pub fn add(extent: Extent, check: Check) -> Cases {
    pick(ROWS, 3, extent).try_for_each(|&[n, c]| {
        check(&OpCase {
            name: format!("add {n}x{c}"),
            inputs: vec![normals("add a", n * c), normals("add b", n * c)],
            longest_sum: 2,
            run: &|arena, dtype, inputs, dy| {
                let [a, b] = [0, 1].map(|i: usize| at(arena, dtype, [n, c], &inputs[i]));
                let y = add::forward(arena, a, &b);
                Outcome { output: y.to_f64(), gradients: vec![dy.to_vec(), dy.to_vec()] }
            },
            reference: &|inputs| add::reference(&inputs[0], &inputs[1]),
        })
    })
}

/// `cap tanh(x / cap)` with several caps.
pub fn softcap(extent: Extent, check: Check) -> Cases {
    const CAPS: [f64; 5] = [0.5, 2.0, 15.0, 30.0, 1.0];
    let all: Vec<_> = ROWS.iter().zip(CAPS).collect();
    pick(&all, 3, extent).try_for_each(|&(&[n, c], cap)| {
        check(&OpCase {
            name: format!("softcap {n}x{c} by {cap}"),
            inputs: vec![normals("softcap", n * c)],
            longest_sum: 4,
            run: &|arena, dtype, inputs, dy| {
                let y = softcap::forward(arena, at(arena, dtype, [n, c], &inputs[0]), cap);
                let saved = softcap::Saved { y: y.clone(), cap };
                let dx = softcap::backward(arena, at(arena, dtype, [n, c], dy), &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| softcap::reference(&inputs[0], cap),
        })
    })
}

/// `silu(gate) up`.
pub fn swiglu(extent: Extent, check: Check) -> Cases {
    pick(ROWS, 3, extent).try_for_each(|&[n, f]| {
        check(&OpCase {
            name: format!("swiglu {n}x{f}"),
            inputs: vec![normals("swiglu", n * 2 * f)],
            longest_sum: 4,
            run: &|arena, dtype, inputs, dy| {
                let gate_up = at(arena, dtype, [n, 2 * f], &inputs[0]);
                let y = swiglu::forward(arena, &gate_up);
                let dx = swiglu::backward(arena, &at(arena, dtype, [n, f], dy), &swiglu::Saved { gate_up });
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| swiglu::reference(&inputs[0], f),
        })
    })
}

/// Rows of a small table, many tokens of which are the same.
pub fn embedding(extent: Extent, check: Check) -> Cases {
    const V: usize = 11;
    pick(ROWS, 3, extent).try_for_each(|&[n, c]| {
        // Every fifth token has no row.
        let mut tokens = integers("embedding tokens", n, V);
        tokens.iter_mut().skip(4).step_by(5).for_each(|token| *token = embedding::NOTHING);
        check(&OpCase {
            name: format!("embedding {n}x{c}"),
            inputs: vec![normals("embedding table", V * c)],
            longest_sum: n,
            run: &|arena, dtype, inputs, dy| {
                let (table, ids) = (at(arena, dtype, [V, c], &inputs[0]), Tensor::from_slice(arena, [n], &tokens));
                let y = embedding::forward(arena, &table, &ids);
                let mut grads = grads(arena, dtype, &[table.shape()]);
                embedding::backward(&mut grads.view_mut(ParamId(0)), &at(arena, dtype, [n, c], dy), &ids);
                Outcome { output: y.to_f64(), gradients: vec![gradient(&grads, 0)] }
            },
            reference: &|inputs| embedding::reference(&inputs[0], c, &tokens),
        })
    })
}

/// RMSNorm alone, then fused with the addition of a residual. Rows above 1024 columns take a block of their kernels each; 2,500
/// is no multiple of anything.
pub fn rmsnorm(extent: Extent, check: Check) -> Cases {
    pick(ROWS, 3, extent).try_for_each(|&shape| rmsnorm_alone(shape, check))?;
    let without_gain: Vec<[usize; 2]> = ROWS.iter().copied().chain([[9, 2500]]).collect();
    pick(&without_gain, 3, extent).try_for_each(|&shape| rmsnorm_without_gain(shape, check))?;
    let fused: Vec<[usize; 2]> = ROWS.iter().copied().chain([[9, 2500], [3, 8192]]).collect();
    pick(&fused, 3, extent).try_for_each(|&shape| rmsnorm_fused(shape, check))
}

fn rmsnorm_alone([n, c]: [usize; 2], check: Check) -> Cases {
    check(&OpCase {
        name: format!("rmsnorm {n}x{c}"),
        inputs: vec![normals("rmsnorm x", n * c), normals("rmsnorm gain", c)],
        longest_sum: n.max(c),
        run: &|arena, dtype, inputs, dy| {
            let (x, gain) = (at(arena, dtype, [n, c], &inputs[0]), at(arena, dtype, [c], &inputs[1]));
            let (y, saved) = rmsnorm::forward(arena, &x, &gain, EPS);
            let mut grads = grads(arena, dtype, &[gain.shape()]);
            let dy = at(arena, dtype, [n, c], dy);
            let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
            Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
        },
        reference: &|inputs| rmsnorm::reference(&inputs[0], &inputs[1], EPS),
    })
}

fn rmsnorm_without_gain([n, c]: [usize; 2], check: Check) -> Cases {
    check(&OpCase {
        name: format!("rmsnorm without gain {n}x{c}"),
        inputs: vec![normals("rmsnorm x", n * c)],
        longest_sum: n.max(c),
        run: &|arena, dtype, inputs, dy| {
            let (y, saved) = rmsnorm::forward(arena, &at(arena, dtype, [n, c], &inputs[0]), None, EPS);
            let dx = rmsnorm::backward(arena, None, &at(arena, dtype, [n, c], dy), None, None, &saved);
            Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
        },
        reference: &|inputs| rmsnorm::reference(&inputs[0], &vec![1.0; c], EPS),
    })
}

/// The output here is the sum and its norm behind each other, so the residual's own gradient takes part.
fn rmsnorm_fused([n, c]: [usize; 2], check: Check) -> Cases {
    check(&OpCase {
        name: format!("add_rmsnorm {n}x{c}"),
        inputs: vec![
            normals("add_rmsnorm residual", n * c),
            normals("add_rmsnorm delta", n * c),
            normals("add_rmsnorm gain", c),
        ],
        longest_sum: n.max(c),
        run: &|arena, dtype, inputs, dy| {
            let of = |i: usize| at(arena, dtype, [n, c], &inputs[i]);
            let gain = at(arena, dtype, [c], &inputs[2]);
            let (sum, y, saved) = rmsnorm::forward_add(arena, &of(0), of(1), &gain, EPS);
            let mut grads = grads(arena, dtype, &[gain.shape()]);
            let (dsum, dy) = dy.split_at(n * c);
            let [dsum, dy] = [dsum, dy].map(|values| at(arena, dtype, [n, c], values));
            let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, Some(dsum), &gain, &saved);
            let output = [sum.to_f64(), y.to_f64()].concat();
            Outcome { output, gradients: vec![dx.to_f64(), dx.to_f64(), gradient(&grads, 0)] }
        },
        reference: &|inputs| {
            let sum: Vec<f64> = inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect();
            let y = rmsnorm::reference(&sum, &inputs[2], EPS);
            [sum, y].concat()
        },
    })
}

const ROPE: [(usize, usize, Heads); 5] = [
    (1, 1, Heads { h: 1, g: 1, d: 2 }),
    (2, 9, Heads { h: 3, g: 1, d: 6 }),
    (3, 31, Heads { h: 4, g: 2, d: 16 }),
    (1, 140, Heads { h: 9, g: 3, d: 8 }),
    (1, 5, Heads { h: 2, g: 1, d: 136 }),
];
const SCALING: Llama3Scaling =
    Llama3Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 32 };

/// Rotary positions, without and with QK-norm, without and with rescaled frequencies.
pub fn rope(extent: Extent, check: Check) -> Cases {
    let all: Vec<_> = ROPE.iter().zip([None, Some(SCALING)].into_iter().cycle()).collect();
    pick(&all, 1, extent).try_for_each(|&(&shape, scaling)| {
        rope_case(shape, scaling, false, check)?;
        rope_case(shape, scaling, true, check)
    })
}

fn rope_case((b, t, heads): (usize, usize, Heads), scaling: Option<Llama3Scaling>, norm: bool, check: Check) -> Cases {
    let (n, row, d) = (b * t, heads.row_elems(), heads.d);
    let frequencies = frequencies(d, 10_000.0, scaling);
    let gain = |name| if norm { normals(name, d) } else { vec![] };
    check(&OpCase {
        name: format!("rope {b}x{t} {heads:?} norm {norm}"),
        inputs: vec![normals("rope", n * row), gain("q gain"), gain("k gain")],
        longest_sum: n * heads.h + d,
        run: &|arena, dtype, inputs, dy| {
            let table = Table::new(t + 5, &frequencies, dtype.accumulator()).to(arena.device());
            let gains = [1, 2].map(|i: usize| at(arena, dtype, [inputs[i].len()], &inputs[i]));
            let qk_norm = norm.then_some(QkNorm { q_gain: &gains[0], k_gain: &gains[1], eps: EPS });
            let x = at(arena, dtype, [n, row], &inputs[0]);
            let (y, saved) = rope::forward(arena, x, heads, t, 0, &table, qk_norm);
            let mut grads = grads(arena, dtype, &[gains[0].shape(), gains[1].shape()]);
            let dgains = qk_norm.map(|q| (q, grads.pair_mut(ParamId(0), ParamId(1))));
            let dx = rope::backward(arena, at(arena, dtype, [n, row], dy), heads, t, &table, dgains, &saved);
            Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0), gradient(&grads, 1)] }
        },
        reference: &|inputs| {
            let norm = norm.then_some((&inputs[1][..], &inputs[2][..], EPS));
            rope::reference(&inputs[0], heads, t, &frequencies, norm)
        },
    })
}

/// Not a derivative, by design: backward is held against its own definition, of which one rounding is all there is.
///
/// # Errors
/// The first element that differs.
pub fn scale_grad(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 20).map_err(|error| error.to_string())?;
    pick(ROWS, 3, extent).try_for_each(|&[n, c]| {
        [DType::F32, DType::Bf16].into_iter().try_for_each(|dtype| {
            let values = at(&host, dtype, [n, c], &normals("scale_grad", n * c)).to_f64();
            let dx =
                scale_grad::backward(&Arena::scattered(gpu), at_gpu(gpu, dtype, [n, c], &values), &0.3.into()).to_f64();
            let want = at(&host, dtype, [n, c], &scale_grad::reference(&values, f64::from(0.3f32))).to_f64();
            super::told(gpu, "scale_grad")?;
            super::close(&format!("scale_grad {n}x{c} {dtype}"), &dx, &want, 2.0 * super::unit(dtype))
        })
    })
}

fn at_gpu(gpu: &'static Gpu, dtype: DType, shape: [usize; 2], values: &[f64]) -> Tensor {
    at(&Arena::scattered(gpu), dtype, shape, values)
}
