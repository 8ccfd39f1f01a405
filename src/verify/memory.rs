//! The cases of the ops of a carried state: the delta rule and what makes its operands.

use super::{Cases, Check, Extent, OpCase, Outcome, ROWS, at, close, gradient, grads, normals, pick, told, unit};
use crate::device::gpu::Gpu;
use crate::ops::delta_rule::{self, Dims, Inputs, Keep};
use crate::ops::{decay_gate, short_conv, sigmoid_gate, unit_norm};
use crate::tensor::{Arena, DType, ParamId, Tensor};

/// A shape of the delta rule.
#[derive(Clone, Copy, Debug)]
pub struct DeltaCase {
    pub b: usize,
    pub t: usize,
    pub dims: Dims,
    /// First token of a row that starts a document, and tokens of a document; 0 for rows that go on with theirs.
    pub documents: [usize; 2],
    /// Mean of `-log_alpha`.
    pub decay: f64,
}

const fn delta(b: usize, t: usize, [h, dk, dv]: [usize; 3], documents: [usize; 2], decay: f64) -> DeltaCase {
    DeltaCase { b, t, dims: Dims { h, dk, dv }, documents, decay }
}

/// Shapes of the delta rule: fewer tokens than a chunk, a chunk, parts of one, documents that start inside chunks and blocks, at their
/// edges and with the row; no decay, half-lives of many and of few tokens, and decay that leaves nothing.
pub const DELTA: &[DeltaCase] = &[
    delta(3, 5, [2, 32, 64], [0, 0], 0.3),
    delta(2, 70, [2, 32, 32], [0, 0], 0.05),
    delta(1, 150, [2, 64, 64], [36, 37], 0.2),
    delta(1, 129, [1, 128, 32], [64, 16], 0.0),
    delta(1, 64, [3, 96, 32], [0, 48], 30.0),
    delta(2, 1, [1, 64, 64], [0, 0], 0.1),
    delta(1, 97, [1, 128, 128], [80, 0], 1.0),
];

/// Widths that only the CPU takes.
pub const DELTA_ODD: &[DeltaCase] = &[
    delta(1, 1, [1, 1, 1], [0, 0], 0.5),
    delta(2, 9, [3, 5, 7], [4, 3], 0.1),
    delta(1, 200, [2, 7, 3], [17, 90], 0.02),
    delta(1, 140, [1, 16, 9], [0, 0], 30.0),
];

impl DeltaCase {
    /// Start flags, where there are documents.
    pub fn starts(&self) -> Option<Vec<u32>> {
        let [first, tokens] = self.documents;
        let start = |t: usize| t >= first && (t == first || tokens > 0 && (t - first).is_multiple_of(tokens));
        (self.documents != [0, 0]).then(|| (0..self.b * self.t).map(|i| u32::from(start(i % self.t))).collect())
    }

    /// q, k, v, log_alpha, beta and a state: keys of about unit length, decays of every strength about the mean.
    pub fn inputs(&self) -> Vec<Vec<f64>> {
        let (n, Dims { h, dk, dv }) = (self.b * self.t, self.dims);
        let scaled = |name, n: usize, by: f64| normals(name, n).iter().map(|x| by * x).collect::<Vec<f64>>();
        let unit = 1.0 / (dk as f64).sqrt();
        let decays = normals("delta decay", n * h * dk).iter().map(|x| -self.decay * x * x).collect();
        let betas = normals("delta beta", n * h).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        vec![
            scaled("delta q", n * h * dk, unit),
            scaled("delta k", n * h * dk, unit),
            normals("delta v", n * h * dv),
            decays,
            betas,
            normals("delta state", self.b * h * dk * dv),
        ]
    }
}

/// The state, as part of the inputs, is kept in the accumulator type; so is its gradient.
fn delta_case(case: &DeltaCase, check: Check) -> Cases {
    let (DeltaCase { b, t, dims, .. }, Dims { h, dk, dv }, n) = (*case, case.dims, case.b * case.t);
    let out = n * h * dv;
    check(&OpCase {
        name: format!("delta_rule {case:?}"),
        inputs: case.inputs(),
        longest_sum: t.min(64) + dk + dv,
        run: &|arena, dtype, inputs, dy| {
            let of = |i: usize, cols: usize| at(arena, dtype, [n, cols], &inputs[i]);
            let [q, k, v, log_alpha, beta] = [(0, dk), (1, dk), (2, dv), (3, dk), (4, 1)].map(|(i, d)| of(i, h * d));
            let inputs_of = Inputs { q: &q, k: &k, v: &v, log_alpha: &log_alpha, beta: &beta };
            let state = at(arena, dtype.accumulator(), [b, h, dk, dv], &inputs[5]);
            let starts = case.starts().map(|starts| Tensor::from_slice(arena, [n], &starts));
            let past = delta_rule::Past { starts: starts.as_ref(), state: Some(&state) };
            let y = delta_rule::forward(arena, inputs_of, dims, t, past, Keep::Everything);
            let dout = at(arena, dtype, [n, h * dv], &dy[..out]);
            let dstate = at(arena, dtype.accumulator(), [b, h, dk, dv], &dy[out..]);
            let saved = y.saved.expect("everything is kept");
            let d = delta_rule::backward(arena, &dout, Some(&dstate), dims, t, &saved);
            let gradients = [d.q, d.k, d.v, d.log_alpha, d.beta, d.state].iter().map(Tensor::to_f64).collect();
            Outcome { output: [y.o.to_f64(), y.state.to_f64()].concat(), gradients }
        },
        reference: &|inputs| {
            let inputs = [0, 1, 2, 3, 4, 5].map(|i: usize| &inputs[i][..]);
            delta_rule::reference(inputs, dims, t, case.starts().as_deref()).concat()
        },
    })
}

/// Every shape of [`DELTA`].
pub fn delta_rule(extent: Extent, check: Check) -> Cases {
    pick(DELTA, 1, extent).try_for_each(|case| delta_case(case, check))
}

/// Every shape of [`DELTA_ODD`].
pub fn delta_rule_odd(extent: Extent, check: Check) -> Cases {
    pick(DELTA_ODD, 1, extent).try_for_each(|case| delta_case(case, check))
}

/// Token by token on a GPU, against f64 on the CPU: output, and the state that moves on in place.
///
/// # Errors
/// The first element that differs, or what the device says.
pub fn delta_decode_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(64 << 20).map_err(|error| error.to_string())?;
    for (case, dtype) in pick(DELTA, 1, extent).flat_map(|case| [(case, DType::F32), (case, DType::Bf16)]) {
        let (DeltaCase { b, t, dims, .. }, Dims { h, dk, dv }, n) = (*case, case.dims, case.b * case.t);
        let inputs: Vec<Vec<f64>> =
            case.inputs().iter().map(|values| at(&host, dtype, [values.len()], values).to_f64()).collect();
        let run = |arena: &Arena, dtype: DType| {
            let of = |i: usize, cols: usize| at(arena, dtype, [n, cols], &inputs[i]);
            let [q, k, v, log_alpha, beta] = [(0, dk), (1, dk), (2, dv), (3, dk), (4, 1)].map(|(i, d)| of(i, h * d));
            let x = Inputs { q: &q, k: &k, v: &v, log_alpha: &log_alpha, beta: &beta };
            let starts = case.starts().map(|starts| Tensor::from_slice(arena, [n], &starts));
            let mut state = at(arena, dtype.accumulator(), [b, h, dk, dv], &inputs[5]);
            let o = delta_rule::recurrent(arena, x, dims, t, starts.as_ref(), &mut state);
            [o.to_f64(), state.to_f64()]
        };
        let ([o, state], [want, last]) = (run(&Arena::scattered(gpu), dtype), run(&host, DType::F64));
        let what = format!("delta_rule token by token {dtype} {case:?}");
        told(gpu, &what)?;
        // As for other ops; the state is f32 and never rounded further.
        let bound = |dtype| 16.0 * unit(dtype) * ((t.min(64) + dk + dv) as f64).sqrt();
        close(&format!("{what} output"), &o, &want, bound(dtype))?;
        close(&format!("{what} state"), &state, &last, bound(DType::F32))?;
    }
    Ok(())
}

/// Batch, tokens, channels; documents as in [`DeltaCase`]; whether rows come before.
const CONVOLUTIONS: &[(usize, usize, usize, [usize; 2], bool)] = &[
    (1, 1, 3, [0, 0], false),
    (2, 2, 8, [0, 0], true),
    (3, 31, 40, [0, 0], false),
    (1, 97, 20, [0, 5], true),
    (2, 70, 64, [33, 2], true),
    (1, 140, 7, [64, 1], false),
];

/// Four taps and SiLU; the output is followed by the rows to go on from, which take no gradient.
pub fn short_conv(extent: Extent, check: Check) -> Cases {
    pick(CONVOLUTIONS, 3, extent).try_for_each(|&(b, t, c, documents, carried)| {
        let (n, dims) = (b * t, Dims { h: 1, dk: 1, dv: 1 });
        let starts = DeltaCase { b, t, dims, documents, decay: 0.0 }.starts();
        let rows = carried.then(|| normals("conv rows", b * short_conv::BEFORE * c));
        // Numbers that bf16 holds: what comes before is no input here, so nothing else rounds it.
        let rows: Option<Vec<f64>> = rows.map(|r| r.iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect());
        check(&OpCase {
            name: format!("short_conv {b}x{t}x{c} {documents:?} {carried}"),
            inputs: vec![normals("conv x", n * c), normals("conv w", c * short_conv::TAPS)],
            longest_sum: n,
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (at(arena, dtype, [n, c], &inputs[0]), at(arena, dtype, [c, 4], &inputs[1]));
                let starts = starts.as_ref().map(|starts| Tensor::from_slice(arena, [n], starts));
                let rows = rows.as_ref().map(|rows| at(arena, dtype, [b, short_conv::BEFORE, c], rows));
                let past = short_conv::Past { starts: starts.as_ref(), rows: rows.as_ref() };
                let (y, _, saved) = short_conv::forward(arena, &x, &w, t, past);
                let mut grads = grads(arena, dtype, &[w.shape()]);
                let dy = at(arena, dtype, [n, c], dy);
                let dx = short_conv::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, &w, t, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| short_conv::reference(&inputs[0], &inputs[1], t, starts.as_deref(), rows.as_deref()),
        })
    })
}

/// Rows, heads, width of a head.
const DECAYS: &[[usize; 3]] = &[[1, 1, 1], [5, 3, 7], [33, 2, 32], [131, 4, 64], [300, 1, 5]];

/// `-exp(A) softplus(f + dt)`.
pub fn decay_gate(extent: Extent, check: Check) -> Cases {
    pick(DECAYS, 1, extent).try_for_each(|&[n, h, d]| {
        check(&OpCase {
            name: format!("decay_gate {n}x{h}x{d}"),
            // Offsets about -4: half-lives of tens of tokens, where softplus is small.
            inputs: vec![
                normals("decay f", n * h * d),
                normals("decay a", h),
                normals("decay dt", h * d).iter().map(|x| 3.0 * x - 4.0).collect(),
            ],
            longest_sum: n * d,
            run: &|arena, dtype, inputs, dy| {
                let f = at(arena, dtype, [n, h * d], &inputs[0]);
                let (a, dt) = (at(arena, dtype, [h], &inputs[1]), at(arena, dtype, [h, d], &inputs[2]));
                let rates = decay_gate::Rates { a: &a, dt: &dt };
                let (y, saved) = decay_gate::forward(arena, &f, rates);
                let mut grads = grads(arena, dtype, &[a.shape(), dt.shape()]);
                let [mut da, mut ddt] = grads.pair_mut(ParamId(0), ParamId(1));
                let dy = at(arena, dtype, [n, h * d], dy);
                let df = decay_gate::backward(arena, [&mut da, &mut ddt], &dy, rates, &saved);
                Outcome { output: y.to_f64(), gradients: vec![df.to_f64(), gradient(&grads, 0), gradient(&grads, 1)] }
            },
            reference: &|inputs| decay_gate::reference(&inputs[0], &inputs[1], &inputs[2]),
        })
    })
}

/// `x s(g)`, and `s(g)` alone.
pub fn sigmoid_gate(extent: Extent, check: Check) -> Cases {
    let gated = |shape: [usize; 2], dtype: DType, arena: &Arena, inputs: &[Vec<f64>], dy: &[f64]| {
        let of = |values: &Vec<f64>| at(arena, dtype, shape, values);
        let (gate, x) = (of(&inputs[0]), inputs.get(1).map(of));
        let (y, saved) = sigmoid_gate::forward(arena, x.as_ref(), &gate);
        let (dx, dgate) = sigmoid_gate::backward(arena, &at(arena, dtype, shape, dy), &saved);
        let gradients = std::iter::once(dgate).chain(dx).map(|d| d.to_f64()).collect();
        Outcome { output: y.to_f64(), gradients }
    };
    pick(ROWS, 3, extent).try_for_each(|&[n, c]| {
        [1, 2].into_iter().try_for_each(|operands| {
            check(&OpCase {
                name: format!("sigmoid_gate {n}x{c}, {operands} operands"),
                inputs: ["gate g", "gate x"][..operands].iter().map(|name| normals(name, n * c)).collect(),
                longest_sum: 4,
                run: &|arena, dtype, inputs, dy| gated([n, c], dtype, arena, inputs, dy),
                reference: &|inputs| sigmoid_gate::reference(inputs.get(1).map(|x| &x[..]), &inputs[0]),
            })
        })
    })
}

/// Heads of several widths to unit length.
pub fn unit_norm(extent: Extent, check: Check) -> Cases {
    const NORMS: &[[usize; 2]] = &[[1, 3], [7, 5], [33, 64], [131, 128], [9, 256], [70, 20]];
    pick(NORMS, 1, extent).try_for_each(|&[n, d]| {
        check(&OpCase {
            name: format!("unit_norm {n}x{d}"),
            inputs: vec![normals("unit x", n * d)],
            longest_sum: d,
            run: &|arena, dtype, inputs, dy| {
                let (y, saved) = unit_norm::forward(arena, &at(arena, dtype, [n, d], &inputs[0]), d);
                let dx = unit_norm::backward(arena, &at(arena, dtype, [n, d], dy), d, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| unit_norm::reference(&inputs[0], d),
        })
    })
}
