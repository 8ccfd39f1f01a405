//! The gated delta rule: chunks against the definition, against tokens one by one and against themselves in parts; what rounding may
//! change; documents and decays at their limits.

use super::*;
use nanochat_gpu::ops::delta_rule::{self, Dims, Gradients, Inputs, Keep, Output, Past};
use nanochat_gpu::ops::short_conv;
use nanochat_gpu::tape::{DecayParams, DeltaOperands, Tape};
use nanochat_gpu::tensor::{Float, Params};
use nanochat_gpu::verify::memory::{DELTA, DELTA_ODD, DeltaCase};
use nanochat_gpu::verify::{close, normals};

#[test]
fn cases() {
    check(verify::memory::delta_rule);
    check_on_cpu(verify::memory::delta_rule_odd);
}

/// Some tokens of the operands of a case, as tensors: q, k, v, log_alpha, beta.
struct Operands {
    tensors: [Tensor; 5],
    starts: Option<Tensor>,
    t: usize,
}

impl Operands {
    fn new(arena: &Arena, dtype: DType, case: &DeltaCase, inputs: &[Vec<f64>], tokens: std::ops::Range<usize>) -> Self {
        let (DeltaCase { b, t, dims: Dims { h, dk, dv }, .. }, part) = (*case, tokens.len());
        let rows = |values: &[f64], cols: usize| -> Vec<f64> {
            values.chunks_exact(t * cols).flat_map(|row| row[tokens.start * cols..tokens.end * cols].to_vec()).collect()
        };
        let widths = [h * dk, h * dk, h * dv, h * dk, h];
        let mut made = inputs.iter().zip(widths);
        let tensors = [(); 5].map(|()| {
            let (values, cols) = made.next().unwrap();
            tensor(arena, dtype, [b * part, cols], &rows(values, cols))
        });
        let starts = case.starts().map(|starts| {
            let starts: Vec<u32> = starts.chunks_exact(t).flat_map(|row| row[tokens.clone()].to_vec()).collect();
            ids(arena, &starts)
        });
        Operands { tensors, starts, t: part }
    }

    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v, log_alpha, beta] = &self.tensors;
        Inputs { q, k, v, log_alpha, beta }
    }

    fn past<'a>(&'a self, state: &'a Tensor) -> Past<'a> {
        Past { starts: self.starts.as_ref(), state: Some(state) }
    }
}

fn state_of(arena: &Arena, dtype: DType, case: &DeltaCase, values: &[f64]) -> Tensor {
    let Dims { h, dk, dv } = case.dims;
    tensor(arena, dtype, [case.b, h, dk, dv], values)
}

/// In f64 the chunked form, the form token by token and the definition are the same, states included.
#[test]
fn chunks_and_tokens_agree() {
    let arena = Arena::new(64 << 20).unwrap();
    for case in DELTA.iter().chain(DELTA_ODD) {
        let inputs = case.inputs();
        let x = Operands::new(&arena, DType::F64, case, &inputs, 0..case.t);
        let mut state = state_of(&arena, DType::F64, case, &inputs[5]);
        let chunked = delta_rule::forward(&arena, x.inputs(), case.dims, case.t, x.past(&state), Keep::Nothing);
        let o = delta_rule::recurrent(&arena, x.inputs(), case.dims, case.t, x.starts.as_ref(), &mut state);
        let [want, last] = delta_rule::reference(
            [0, 1, 2, 3, 4, 5].map(|i: usize| &inputs[i][..]),
            case.dims,
            case.t,
            case.starts().as_deref(),
        );
        for (what, got, want) in [
            ("token by token", o.to_f64(), &want),
            ("its state", state.to_f64(), &last),
            ("chunks", chunked.o.to_f64(), &want),
            ("their state", chunked.state.to_f64(), &last),
        ] {
            close(&format!("{case:?} {what}"), &got, want, 1e-13 * case.t as f64).unwrap();
        }
        assert!(want.iter().any(|x| x.abs() > 0.01), "{case:?} says nothing");
    }
}

/// A sequence in several calls, the state handed from each to the next and its gradient back, is one call over all of it, whether
/// the parts end where chunks do or not.
#[test]
fn several_calls_are_one() {
    let arena = Arena::new(256 << 20).unwrap();
    let cases = [DELTA[2], DELTA[3], DELTA_ODD[2]];
    for (case, cuts) in cases.iter().zip([vec![0, 64, 150], vec![0, 1, 30, 129], vec![0, 100, 163, 200]]) {
        let DeltaCase { b, t, dims, .. } = *case;
        let cols = dims.h * dims.dv;
        let (inputs, dout) = (case.inputs(), normals("calls", b * t * cols));
        let last = normals("calls state", b * dims.h * dims.dk * dims.dv);
        let run = |cuts: &[usize]| {
            let (mut state, mut kept) = (state_of(&arena, DType::F64, case, &inputs[5]), Vec::new());
            for ends in cuts.windows(2) {
                let x = Operands::new(&arena, DType::F64, case, &inputs, ends[0]..ends[1]);
                let y = delta_rule::forward(&arena, x.inputs(), dims, x.t, x.past(&state), Keep::Everything);
                state = y.state;
                kept.push((y.o.to_f64(), y.saved.unwrap(), ends[0]..ends[1]));
            }
            let mut dstate = state_of(&arena, DType::F64, case, &last);
            // By row, so that parts of rows lie where they belong.
            let widths = [cols, dims.h * dims.dk, dims.h * dims.dk, cols, dims.h * dims.dk, dims.h];
            let mut whole = widths.map(|cols| vec![f64::NAN; b * t * cols]);
            for (o, saved, tokens) in kept.into_iter().rev() {
                let rows = dout.chunks_exact(t * cols);
                let rows: Vec<f64> =
                    rows.flat_map(|row| row[tokens.start * cols..tokens.end * cols].to_vec()).collect();
                let d = tensor(&arena, DType::F64, [b * tokens.len(), cols], &rows);
                let d = delta_rule::backward(&arena, &d, Some(&dstate), dims, tokens.len(), &saved);
                let Gradients { q, k, v, log_alpha, beta, state } = d;
                let parts = [q, k, v, log_alpha, beta].map(|x| x.to_f64());
                dstate = state;
                for ((whole, part), cols) in whole.iter_mut().zip(std::iter::once(&o).chain(&parts)).zip(widths) {
                    for (row, part) in whole.chunks_exact_mut(t * cols).zip(part.chunks_exact(tokens.len() * cols)) {
                        row[tokens.start * cols..tokens.end * cols].copy_from_slice(part);
                    }
                }
            }
            [whole.to_vec(), vec![state.to_f64(), dstate.to_f64()]].concat()
        };
        for (i, (parts, one)) in run(&cuts).iter().zip(run(&[0, t])).enumerate() {
            close(&format!("{case:?} result {i}"), parts, &one, 1e-12).unwrap();
        }
    }
}

/// Plain loops in any precision: output, state, and the gradients of q, k, v, log_alpha, beta and the first state, each token as the
/// recurrence has it.
fn plain<F: Float>(case: &DeltaCase, inputs: &[Vec<f64>], dout: &[f64], dlast: &[f64]) -> Vec<Vec<f64>> {
    let (DeltaCase { b, t, .. }, Dims { h, dk, dv }, starts) = (*case, case.dims, case.starts());
    let of = |x: &[f64]| x.iter().map(|&x| F::from_f64(x)).collect::<Vec<F>>();
    let [q, k, v, a, beta, first] = [0, 1, 2, 3, 4, 5].map(|i| of(&inputs[i]));
    let (dout, dlast, zeros) = (of(dout), of(dlast), |n: usize| vec![F::ZERO; n]);
    let (mut o, mut last) = (zeros(v.len()), first.clone());
    let (mut dq, mut dkey, mut dvalue, mut da, mut db) =
        (zeros(q.len()), zeros(q.len()), zeros(v.len()), zeros(q.len()), zeros(beta.len()));
    let mut dfirst = dlast;
    for (row, head) in (0..b).flat_map(|row| (0..h).map(move |head| (row, head))) {
        let at = (row * h + head) * dk * dv;
        let state = &mut last[at..at + dk * dv];
        let mut trail = Vec::new(); // decayed state, error, state
        let tokens = (row * t..(row + 1) * t).map(|i| (i * h + head, starts.as_ref().is_some_and(|s| s[i] != 0)));
        for (i, start) in tokens.clone() {
            let (ks, vs) = (i * dk, i * dv);
            let mut decayed: Vec<F> = (0..dk * dv).map(|x| a[ks + x / dv].exp() * state[x]).collect();
            if start {
                decayed.fill(F::ZERO);
            }
            let mut error = v[vs..vs + dv].to_vec();
            for x in 0..dk * dv {
                error[x % dv] -= k[ks + x / dv] * decayed[x];
            }
            for x in 0..dk * dv {
                state[x] = decayed[x] + beta[i] * k[ks + x / dv] * error[x % dv];
                o[vs + x % dv] += q[ks + x / dv] * state[x];
            }
            trail.push((decayed, error, state.to_vec()));
        }
        let dstate = &mut dfirst[at..at + dk * dv];
        for (i, start) in tokens.rev() {
            let ((ks, vs), (decayed, error, state)) = ((i * dk, i * dv), trail.pop().unwrap());
            let mut derror = zeros(dv);
            for x in 0..dk * dv {
                let (c, j) = (x / dv, x % dv);
                dq[ks + c] += state[x] * dout[vs + j];
                dstate[x] += q[ks + c] * dout[vs + j];
                db[i] += k[ks + c] * dstate[x] * error[j];
                dkey[ks + c] += beta[i] * dstate[x] * error[j];
                derror[j] += beta[i] * dstate[x] * k[ks + c];
            }
            for x in 0..dk * dv {
                let (c, j) = (x / dv, x % dv);
                dkey[ks + c] -= decayed[x] * derror[j];
                let ddecayed = dstate[x] - k[ks + c] * derror[j];
                da[ks + c] += ddecayed * decayed[x];
                dstate[x] = if start { F::ZERO } else { a[ks + c].exp() * ddecayed };
            }
            dvalue[vs..vs + dv].copy_from_slice(&derror);
        }
    }
    [o, last, dq, dkey, dvalue, da, db, dfirst].map(|x| x.iter().map(|x| x.to_f64()).collect()).to_vec()
}

const RESULTS: [&str; 8] = ["o", "state", "dq", "dk", "dv", "dlog_alpha", "dbeta", "dstate"];

/// Output, state and gradients, in the order of [`RESULTS`].
fn chunked(
    arena: &Arena,
    dtype: DType,
    case: &DeltaCase,
    inputs: &[Vec<f64>],
    dout: &[f64],
    dlast: &[f64],
) -> Vec<Vec<f64>> {
    let (x, dims) = (Operands::new(arena, dtype, case, inputs, 0..case.t), case.dims);
    let state = state_of(arena, dtype, case, &inputs[5]);
    let Output { o, state, saved } =
        delta_rule::forward(arena, x.inputs(), dims, case.t, x.past(&state), Keep::Everything);
    let dout = tensor(arena, dtype, o.shape(), dout);
    let dlast = state_of(arena, dtype, case, dlast);
    let Gradients { q, k, v, log_alpha, beta, state: dstate } =
        delta_rule::backward(arena, &dout, Some(&dlast), dims, case.t, &saved.unwrap());
    [o, state, q, k, v, log_alpha, beta, dstate].iter().map(Tensor::to_f64).collect()
}

fn rms(x: impl Iterator<Item = f64>) -> f64 {
    let (n, sum) = x.fold((0, 0.0), |(n, sum), x| (n + 1, sum + x * x));
    (sum / f64::from(n)).sqrt()
}

/// Every decay, weak or strong, costs no precision: the error of chunks in f32 against f64 is at most twice that of plain loops over
/// tokens in f32, and two roundings of the result.
fn precise_on<'a>(cases: impl Iterator<Item = &'a DeltaCase>, arenas: &dyn Fn() -> Vec<Arena>) {
    for (case, decay) in cases.flat_map(|case| [(case, case.decay), (case, 3.0)]) {
        let case = DeltaCase { decay, ..*case };
        let round = |x: Vec<f64>| x.iter().map(|&x| f64::from(x as f32)).collect::<Vec<f64>>();
        let inputs: Vec<Vec<f64>> = case.inputs().into_iter().map(round).collect();
        let dout = round(normals("precise", inputs[2].len()));
        let dlast = round(normals("precise state", inputs[5].len()));
        let [exact, narrow] =
            [plain::<f64>(&case, &inputs, &dout, &dlast), plain::<f32>(&case, &inputs, &dout, &dlast)];
        let results: Vec<_> =
            arenas().iter().map(|arena| chunked(arena, DType::F32, &case, &inputs, &dout, &dlast)).collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{case:?}: other bits under another order");
        for got in results {
            for (i, what) in RESULTS.iter().enumerate() {
                let error = |x: &[f64]| rms(x.iter().zip(&exact[i]).map(|(x, want)| x - want));
                let (err, err_plain) = (error(&got[i]), error(&narrow[i]));
                let floor = 2f64.powi(-23) * rms(exact[i].iter().copied());
                assert!(
                    err <= 2.0 * err_plain + floor,
                    "{case:?} {what}: {err:e}, in plain loops {err_plain:e}, {floor:e}"
                );
            }
        }
    }
}

#[test]
fn chunks_are_as_precise_as_plain_loops() {
    precise_on(DELTA.iter().chain(DELTA_ODD), &|| vec![Arena::new(256 << 20).unwrap()]);
}

/// So are the kernels; and every order of warps gives the same bits.
#[test]
fn kernels_are_as_precise_as_plain_loops() {
    let gpus = simulators();
    precise_on(DELTA.iter(), &|| gpus.iter().map(|&gpu| Arena::scattered(gpu)).collect());
    for gpu in gpus {
        gpu.synchronise().unwrap();
    }
}

#[test]
fn tokens_one_by_one_on_a_gpu() {
    check_on_all(verify::memory::delta_decode_on);
}

/// No access of shared memory is served twice, but for placing the sums of pairs and inverting small blocks, once a chunk.
#[test]
fn kernels_meet_no_bank_conflicts_in_their_loops() {
    for gpu in simulators().into_iter().chain(hopper()) {
        let (case, arena) = (DELTA[6], Arena::scattered(gpu));
        let inputs = case.inputs();
        let (dout, dlast) = (normals("counted", inputs[2].len()), normals("counted state", inputs[5].len()));
        gpu.take_counts();
        chunked(&arena, DType::F32, &case, &inputs, &dout, &dlast);
        gpu.synchronise().unwrap();
        let counts = gpu.take_counts();
        assert_eq!(counts.len(), 6, "{:?}", counts.keys());
        for (name, counted) in counts {
            let most = if name.contains("chunk_pairs") { 80 * case.t.div_ceil(delta_rule::CHUNK) as u64 } else { 0 };
            assert!(counted.bank_conflicts <= most, "{name}: {counted:?}");
            let (moved, asked) = (counted.global_bytes_moved as f64, counted.global_bytes_requested as f64);
            assert!(asked >= 0.9 * moved, "{name}: {counted:?}");
        }
    }
}

/// The gradients of chunks are those of the recurrence in f64, every element.
#[test]
fn gradients_are_those_of_the_recurrence() {
    let arena = Arena::new(256 << 20).unwrap();
    for case in DELTA.iter().chain(DELTA_ODD) {
        let inputs = case.inputs();
        let (dout, dlast) = (normals("recurrence", inputs[2].len()), normals("recurrence state", inputs[5].len()));
        let got = chunked(&arena, DType::F64, case, &inputs, &dout, &dlast);
        for ((got, want), what) in got.iter().zip(plain::<f64>(case, &inputs, &dout, &dlast)).zip(RESULTS) {
            close(&format!("{case:?} {what}"), got, &want, 1e-13 * case.t as f64).unwrap();
        }
    }
}

/// `alpha = 0` on every channel of a token is a document start there, forward and backward: nothing is divided by.
#[test]
fn a_decay_of_zero_is_a_start() {
    let arena = Arena::new(64 << 20).unwrap();
    let case = DeltaCase { documents: [36, 37], ..DELTA[2] };
    let mut inputs = case.inputs();
    let (dout, dlast) = (normals("zero", inputs[2].len()), normals("zero state", inputs[5].len()));
    let want = chunked(&arena, DType::F32, &case, &inputs, &dout, &dlast);
    let cols = case.dims.h * case.dims.dk;
    for (i, _) in case.starts().unwrap().iter().enumerate().filter(|(_, start)| **start != 0) {
        inputs[3][i * cols..(i + 1) * cols].fill(f64::NEG_INFINITY);
    }
    let got = chunked(&arena, DType::F32, &DeltaCase { documents: [0, 0], ..case }, &inputs, &dout, &dlast);
    for ((got, want), what) in got.iter().zip(&want).zip(RESULTS) {
        close(what, got, want, 1e-5).unwrap();
    }
}

/// What comes after a start neither sees what was before nor hands it a gradient: not even a NaN.
#[test]
fn documents_know_nothing_of_each_other() {
    let arena = Arena::new(64 << 20).unwrap();
    let case = DeltaCase { documents: [36, 0], ..DELTA[2] };
    let (t, Dims { h, dk, dv }) = (case.t, case.dims);
    let inputs = case.inputs();
    let mut poisoned = inputs.clone();
    // Values and the state: keys and decays are read by all pairs of a chunk, of which those across documents are then dropped.
    poisoned[2][..36 * h * dv].fill(3.0);
    poisoned[5].fill(-7.0);
    let (mut dout, dlast) = (normals("apart", inputs[2].len()), vec![0.0; inputs[5].len()]);
    dout[..36 * h * dv].fill(0.0);
    let [a, b] = [&inputs, &poisoned].map(|x| chunked(&arena, DType::F32, &case, x, &dout, &dlast));
    assert!(a[0][36 * h * dv..] == b[0][36 * h * dv..] && a[1] == b[1], "outputs after the start");
    for (i, cols) in [(2, h * dk), (3, h * dk), (4, h * dv), (5, h * dk), (6, h)] {
        assert!(a[i][..36 * cols].iter().all(|&x| x == 0.0), "{} before the start", RESULTS[i]);
        assert!(a[i][36 * cols..].iter().any(|&x| x != 0.0) && a[i].len() == t * cols, "{}", RESULTS[i]);
    }
    assert!(a[7].iter().all(|&x| x == 0.0), "the first state");
    let at_start = &a[5][36 * h * dk..37 * h * dk];
    assert!(at_start.iter().all(|&x| x == 0.0), "nothing decays at a start");
}

/// A layer on the tape: a convolution, unit keys, decay, sigmoids and the rule, of inputs x, f, g, gate and v; returns the output, with the
/// gradients of the inputs where there are some to add to.
fn layer(
    params: &Params,
    grads: Option<&mut Grads>,
    inputs: &[Vec<f64>],
    weights: &[f64],
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let (arena, [t, h, d]) = (Arena::new(16 << 20).unwrap(), [9, 2, 3]);
    let n = 2 * t;
    let mut tape = match grads {
        Some(grads) => Tape::recording(&arena, params, grads),
        None => Tape::inference(&arena, params),
    };
    let of = |i: usize| tensor(&arena, DType::F64, [n, inputs[i].len() / n], &inputs[i]);
    let [x, f, g, gate, v] = [0, 1, 2, 3, 4].map(|i| tape.input(of(i)));
    let starts = ids(&arena, &(0..n).map(|i| u32::from(i == 4)).collect::<Vec<_>>());
    let (past, none) = (short_conv::Past { starts: Some(&starts), rows: None }, short_conv::Past::default());
    let (q, _) = tape.short_conv(&x, ParamId(0), t, past);
    let (k, _) = tape.short_conv(&x, ParamId(0), t, none);
    let (q, k) = (tape.unit_norm(&q, d), tape.unit_norm(&k, d));
    let log_alpha = tape.decay_gate(&f, DecayParams { a: ParamId(1), dt: ParamId(2) });
    let beta = tape.sigmoid_gate(None, &g);
    let operands = DeltaOperands { q: &q, k: &k, v: &v, log_alpha: &log_alpha, beta: &beta };
    let past = Past { starts: Some(&starts), state: None };
    let (o, state) = tape.delta_rule(operands, Dims { h, dk: d, dv: d }, t, past);
    assert_eq!(state.elems(), 2 * h * d * d);
    let y = tape.sigmoid_gate(Some(&o), &gate);
    let values = y.value().to_f64();
    if tape.nodes().is_empty() {
        return (values, Vec::new());
    }
    let text = tape.to_string();
    for op in
        ["short_conv %0 w", "unit_norm %5 3", "decay_gate %1 a", "sigmoid_gate %2", "= delta_rule %7 %8 %4 %9 %10"]
    {
        assert!(text.contains(op), "{op} in {text}");
    }
    tape.seed(&y, tensor(&arena, DType::F64, [n, h * d], weights));
    tape.backward();
    let inputs = [x, f, g, gate, v];
    let gradients = inputs.iter().map(|x| tape.take_gradient(x).expect("it was used").to_f64()).collect();
    (values, gradients)
}

/// Every gradient that the tape hands on, to operands and to parameters, is that of central differences.
#[test]
fn the_tape_hands_on_every_gradient() {
    let (n, cols) = (18, 6);
    let inputs: Vec<Vec<f64>> = [("x", cols), ("f", cols), ("g", 2), ("gate", cols), ("v", cols)]
        .map(|(name, cols)| normals(&format!("layer {name}"), n * cols))
        .to_vec();
    let mut layout = Layout::default();
    layout.push("w", [cols, 4], Role::Matrix);
    layout.push("a", [2], Role::Gain);
    layout.push("dt", [2, 3], Role::Matrix);
    let layout = Arc::new(layout);
    let values = normals("layer parameters", layout.elems());
    let params = |values: &[f64]| {
        let mut params = Params::zeros(layout.clone(), DType::F64);
        params.master_mut().copy_from_f64(values);
        params.round();
        params
    };
    let weights = normals("layer weights", n * cols);
    let total = |params: &Params, inputs: &[Vec<f64>]| -> f64 {
        layer(params, None, inputs, &weights).0.iter().zip(&weights).map(|(y, w)| y * w).sum()
    };
    let mut grads = Grads::zeros(layout.clone(), DType::F64);
    let (_, gradients) = layer(&params(&values), Some(&mut grads), &inputs, &weights);
    let check = |what: &str, i: usize, got: f64, f: &dyn Fn(f64) -> f64| {
        let slope = verify::central_difference(1e-5, f);
        assert!((got - slope).abs() <= 1e-6 * (1.0 + slope.abs()), "{what}[{i}]: {got}, differences give {slope}");
    };
    for (which, i) in (0..5).flat_map(|which| (0..inputs[which].len()).step_by(5).map(move |i| (which, i))) {
        check(&format!("input {which}"), i, gradients[which][i], &|shift| {
            let mut inputs = inputs.clone();
            inputs[which][i] += shift;
            total(&params(&values), &inputs)
        });
    }
    for (i, &got) in grads.flat().to_f64().iter().enumerate() {
        check("parameter", i, got, &|shift| {
            let mut values = values.clone();
            values[i] += shift;
            total(&params(&values), &inputs)
        });
    }
}
