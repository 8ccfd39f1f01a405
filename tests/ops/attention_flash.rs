//! Attention by tiles on tensor cores, in the simulator: every element within what rounding to bf16 can change, the same bits
//! under every order, every barrier and wait needed, no bank conflicts.

use super::attention::mask;
use super::*;
use nanochat_gpu::ops::attention;
use nanochat_gpu::ops::rope::Heads;
use nanochat_gpu::verify::{self, AttentionCase};
use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::mutation::{self, Fate, Trial};

/// The unit of bf16, and 1/20 of it for sums and exponentials in f32, which are off by less than 2^-14.
const UNIT: f64 = 1.05 / 256.0;

/// Packed rows, and the gradient of the output, in numbers that bf16 holds.
fn inputs(case: &AttentionCase) -> [Vec<f64>; 2] {
    let (n, Heads { h, d, .. }) = (case.b * case.t, case.heads);
    let round = |x: f64| half::bf16::from_f64(x).to_f64();
    [("flash", n * case.heads.row_elems()), ("flash gradient", n * h * d)]
        .map(|(name, elems)| verify::normals(name, elems).into_iter().map(round).collect())
}

/// Output and gradient of the packed rows.
fn run(arena: &Arena, dtype: DType, case: &AttentionCase, [qkv, dout]: &[Vec<f64>; 2]) -> [Vec<f64>; 2] {
    let (n, heads) = (case.b * case.t, case.heads);
    let qkv = tensor(arena, dtype, [n, heads.row_elems()], qkv);
    let (out, saved) = attention::forward(arena, &qkv, heads, case.t, mask(arena, case));
    let dout = tensor(arena, dtype, [n, heads.h * heads.d], dout);
    let dqkv = attention::backward(arena, &dout, heads, case.t, &saved);
    [out.to_f64(), dqkv.to_f64()]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What may differ at most from `exact`, element by element. With u the unit of bf16, p and ds rounded before their products and
/// results rounded when stored:
///
/// - `o = sum p v`: u |o| + u sum p |v|; `dv` likewise from p and do;
/// - delta = <do, o> comes from the stored o, so it is off by e_t = sum |do| (bound of o);
/// - `ds = p (<do, v> - delta)` so by p e_t + u |ds|; `dq = scale sum ds k` by u |dq| + scale sum (u |ds| + p e_t) |k|, `dk`
///   likewise with q.
fn bounds(case: &AttentionCase, [qkv, dout]: &[Vec<f64>; 2], exact: &[Vec<f64>; 2]) -> [Vec<f64>; 2] {
    let AttentionCase { b, t: t_len, heads: Heads { h, g, d }, .. } = *case;
    let row = case.heads.row_elems();
    let mut bounds = exact.clone().map(|values| values.iter().map(|x| UNIT * x.abs()).collect::<Vec<f64>>());
    let scale = 1.0 / (d as f64).sqrt();
    for (i, head) in (0..b * t_len).flat_map(|i| (0..h).map(move |head| (i, head))) {
        let (first_row, t, group) = (i / t_len * t_len, i % t_len, head / (h / g));
        let at = |s: usize, part: usize| (first_row + s) * row + part * d;
        let part = |start: usize| &qkv[start..][..d];
        let (q_at, out_at) = (at(t, head), i * h * d + head * d);
        let (q, dout, out) = (part(q_at), &dout[out_at..][..d], &exact[0][out_at..][..d]);
        let by_window = case.window.map_or(0, |window| (t + 1).saturating_sub(window));
        let seen = by_window.max(t.checked_div(case.document).map_or(0, |i| i * case.document))..t + 1;
        let scores: Vec<f64> = seen.clone().map(|s| dot(q, part(at(s, h + group))) * scale).collect();
        let total: f64 = scores.iter().map(|x| x.exp()).sum();
        let delta = dot(dout, out);
        for (s, score) in seen.clone().zip(&scores) {
            let (p, v) = (score.exp() / total, part(at(s, h + g + group)));
            bounds[0][out_at..][..d].iter_mut().zip(v).for_each(|(bound, v)| *bound += UNIT * p * v.abs());
        }
        let e: f64 = dout.iter().zip(&bounds[0][out_at..]).map(|(x, bound)| x.abs() * bound).sum();
        for (s, score) in seen.zip(&scores) {
            let (k_at, v_at) = (at(s, h + group), at(s, h + g + group));
            let p = score.exp() / total;
            let ds = scale * (UNIT * (p * (dot(dout, part(v_at)) - delta)).abs() + p * e);
            for c in 0..d {
                bounds[1][q_at + c] += ds * qkv[k_at + c].abs();
                bounds[1][k_at + c] += ds * q[c].abs();
                bounds[1][v_at + c] += UNIT * p * dout[c].abs();
            }
        }
    }
    bounds
}

/// Every element of `got` within its bound.
fn within(what: &str, got: &[f64], want: &[f64], bounds: &[f64]) {
    assert!(got.len() == want.len() && got.len() == bounds.len(), "{what}: {} elements", got.len());
    for (i, ((got, want), bound)) in got.iter().zip(want).zip(bounds).enumerate() {
        let holds = (got - want).abs() <= bound + 1e-6;
        assert!(holds, "{what}[{i}]: {got}, {want} expected, within {bound:e}");
    }
}

#[test]
fn cases() {
    let host = Arena::new(64 << 20).unwrap();
    for case in verify::ATTENTION_FLASH {
        let inputs = inputs(case);
        let exact = run(&host, DType::F64, case, &inputs);
        let bounds = bounds(case, &inputs, &exact);
        let mut before: Option<[Vec<f64>; 2]> = None;
        for gpu in simulators() {
            let got = run(&Arena::scattered(gpu), DType::Bf16, case, &inputs);
            gpu.synchronise().unwrap_or_else(|error| panic!("{case:?}: {error}"));
            let counts = gpu.driver().take_counts();
            let names = ["fwd_query_tiles", "bwd_query_tiles", "bwd_key_tiles"];
            let names = names.map(|name| format!("attention_flash_{name}_d{}_bf16", case.heads.d));
            for name in names {
                let counted =
                    counts.get(&name).unwrap_or_else(|| panic!("{name} was not launched: {:?}", counts.keys()));
                assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{case:?}: {name}: {counted:?}");
            }
            for (i, what) in ["output", "gradient"].into_iter().enumerate() {
                within(&format!("{case:?} {what}"), &got[i], &exact[i], &bounds[i]);
            }
            assert!(before.is_none_or(|before| before == got), "{case:?}: other bits under another order");
            before = Some(got);
        }
    }
}

/// The last queries of a sequence over its cached keys and values are its last rows; what lies in the cache behind them is not
/// read, be it NaN.
#[test]
fn queries_over_a_cache() {
    let host = Arena::new(64 << 20).unwrap();
    let (one, grouped) = (|d| Heads { h: 1, g: 1, d }, |d| Heads { h: 4, g: 2, d });
    let cases = [
        (1, 200, grouped(64), None),
        (97, 161, one(128), Some(70)),
        (5, 64, grouped(96), None),
        (70, 300, one(32), Some(100)),
    ];
    for (t, s, heads, window) in cases {
        let case = AttentionCase { b: 1, t: s, heads, window, document: 0 };
        let inputs = inputs(&case);
        let exact = run(&host, DType::F64, &case, &inputs);
        let bounds = bounds(&case, &inputs, &exact);
        let Heads { h, g, d } = heads;
        let columns = |first: usize, cols: usize, from: usize, blank_rows: usize| {
            let rows =
                inputs[0].chunks_exact(heads.row_elems()).skip(from).flat_map(|row| row[first..first + cols].to_vec());
            rows.chain(std::iter::repeat_n(f64::NAN, blank_rows * cols)).collect::<Vec<f64>>()
        };
        for gpu in simulators() {
            let arena = Arena::scattered(gpu);
            let q = tensor(&arena, DType::Bf16, [t, h * d], &columns(0, h * d, s - t, 0));
            let [k, v] = [h * d, (h + g) * d]
                .map(|first| tensor(&arena, DType::Bf16, [s + 7, g * d], &columns(first, g * d, 0, 7)));
            let out = attention::forward_cached(&arena, &q, &k, &v, heads, s, window).to_f64();
            gpu.synchronise().unwrap_or_else(|error| panic!("{case:?}: {error}"));
            let last = (s - t) * h * d;
            within(&format!("last {t} of {case:?}"), &out, &exact[0][last..], &bounds[0][last..]);
        }
    }
}

/// A launch of one kernel of (maybe changed) PTX over three tiles of keys, two heads and a window; results are the gradients, or
/// output and lse.
fn launch(ptx: &str, entry: &str, options: &Options) -> ptxsim::error::Result<Trial> {
    const T: usize = 140;
    let heads = Heads { h: 2, g: 1, d: 32 };
    let (row, Heads { h, g, d }) = (heads.row_elems(), heads);
    let mut device = Device::new();
    let module = device.load("attention_flash.ptx", ptx)?;
    let function = module.function(entry)?;
    let bits = |x: f64| half::bf16::from_f64(x).to_le_bytes();
    let qkv = device.upload(&verify::normals("mutants", T * row), bits)?;
    let dout = device.upload(&verify::normals("mutants gradient", T * h * d), bits)?;
    let lse = device.upload(&vec![3.0; h * T], f32::to_le_bytes)?;
    let delta = device.upload(&vec![0.25; h * T], f32::to_le_bytes)?;
    let [q, k, v] = [0, h * d, (h + g) * d].map(|first| Arg::Pointer(qkv + 2 * first as u64));
    let bytes = 2 * T * row;
    let results = device.upload(&vec![0u8; bytes], |byte| [byte])?;
    let result = |first: usize| Arg::Pointer(results + 2 * first as u64);
    let number = |x: usize| Arg::U32(x as u32);
    let (no_documents, scale, window) = (Arg::Pointer(0), Arg::F32(0.18), number(100));
    let saved = [Arg::Pointer(lse), Arg::Pointer(delta), Arg::Pointer(dout), no_documents.clone()];
    let (mut args, blocks_y) = match entry {
        _ if entry.contains("fwd") => (vec![result(0), result(T * h * d), q, k, v, no_documents], h),
        _ if entry.contains("bwd_query") => ([vec![result(0), q, k, v], saved.to_vec()].concat(), h),
        _ => ([vec![result(h * d), result((h + g) * d), q, k, v], saved.to_vec()].concat(), g),
    };
    args.push(scale);
    args.extend(if entry.contains("fwd") {
        vec![number(T), number(T), number(h), number(g), number(row), number(row), window, number(0)]
    } else {
        vec![number(T), number(h), number(g), number(row), window]
    });
    let grid = [T.div_ceil(64) as u32, blocks_y as u32, 1];
    let geometry = Geometry { grid, block: [128, 1, 1], cluster: None, dynamic_bytes: 512 * d as u32 + 768 };
    let outcome = device.launch(&function, &geometry, &args, options)?;
    let mut out = vec![0; bytes];
    device.read(results, &mut out)?;
    Ok((outcome.findings, out))
}

/// Without any one of its barriers, waits or commits each kernel is reported: none is superfluous.
#[test]
fn every_barrier_wait_and_commit_is_needed() {
    for module in MODULES.iter().filter(|module| module.stem == "attention_flash") {
        for name in ["fwd_query_tiles", "bwd_query_tiles", "bwd_key_tiles"] {
            let entry = format!("attention_flash_{name}_d32_bf16");
            let base = Options { seed: 1, ..Options::default() };
            let run = |ptx: &str, options: &Options| launch(ptx, &entry, options);
            let verdicts = mutation::examine(module.ptx, &entry, &mutation::runs(&base), run);
            let verdicts = verdicts.unwrap_or_else(|error| panic!("{entry} for {}: {error}", module.arch));
            assert!(verdicts.len() >= 6, "{entry}: {verdicts:?}");
            for verdict in verdicts {
                assert!(matches!(verdict.fate, Fate::Reported(_)), "{entry} for {}: {verdict:?}", module.arch);
            }
        }
    }
}
