//! The cases of attention, and what rounding to bf16 may change in its kernels by tiles, element by element.

use super::{
    ATTENTION, ATTENTION_FLASH, AttentionCase, Cases, Check, Extent, OpCase, Outcome, at, normals, pick, told,
};
use crate::device::gpu::Gpu;
use crate::ops::attention::{self, Mask};
use crate::ops::rope::Heads;
use crate::tensor::{Arena, DType, Tensor};

/// The mask of a case, in `arena`.
pub fn mask(arena: &Arena, case: &AttentionCase) -> Mask {
    let n = case.b * case.t;
    let start = |i: usize| ((i % case.t) / case.document * case.document) as u32;
    let starts = (case.document > 0).then(|| (0..n).map(start).collect::<Vec<_>>());
    Mask { window: case.window, doc_start: starts.map(|starts| Tensor::from_slice(arena, [n], &starts)) }
}

/// Every shape of [`ATTENTION`].
pub fn attention(extent: Extent, check: Check) -> Cases {
    let host = Arena::new(1 << 20).map_err(|error| error.to_string())?;
    pick(ATTENTION, 6, extent).try_for_each(|case| {
        let AttentionCase { b, t, heads, .. } = *case;
        let n = b * t;
        check(&OpCase {
            name: format!("attention {case:?}"),
            inputs: vec![normals("attention", n * heads.row_elems())],
            longest_sum: t + heads.d,
            run: &|arena, dtype, inputs, dy| {
                let qkv = at(arena, dtype, [n, heads.row_elems()], &inputs[0]);
                let (y, saved) = attention::forward(arena, &qkv, heads, t, mask(arena, case));
                let dy = at(arena, dtype, [n, heads.h * heads.d], dy);
                let dqkv = attention::backward(arena, &dy, heads, t, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dqkv.to_f64()] }
            },
            reference: &|inputs| attention::reference(&inputs[0], heads, t, &mask(&host, case)),
        })
    })
}

/// The unit of bf16, and 1/20 of it for sums and exponentials in f32, which are off by less than 2^-14.
const UNIT: f64 = 1.05 / 256.0;

/// Packed rows, and the gradient of the output, in numbers that bf16 holds.
fn inputs(case: &AttentionCase) -> [Vec<f64>; 2] {
    let (n, Heads { h, d, .. }) = (case.b * case.t, case.heads);
    let round = |x: f64| half::bf16::from_f64(x).to_f64();
    [("flash", n * case.heads.row_elems()), ("flash gradient", n * h * d)]
        .map(|(name, elems)| normals(name, elems).into_iter().map(round).collect())
}

/// Output and gradient of the packed rows.
fn run(arena: &Arena, dtype: DType, case: &AttentionCase, [qkv, dout]: &[Vec<f64>; 2]) -> [Vec<f64>; 2] {
    let (n, heads) = (case.b * case.t, case.heads);
    let qkv = at(arena, dtype, [n, heads.row_elems()], qkv);
    let (out, saved) = attention::forward(arena, &qkv, heads, case.t, mask(arena, case));
    let dout = at(arena, dtype, [n, heads.h * heads.d], dout);
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
fn within(what: &str, got: &[f64], want: &[f64], bounds: &[f64]) -> Cases {
    if got.len() != want.len() || got.len() != bounds.len() {
        return Err(format!("{what}: {} elements, {} expected", got.len(), want.len()));
    }
    for (i, ((got, want), bound)) in got.iter().zip(want).zip(bounds).enumerate() {
        let holds = (got - want).abs() <= bound + 1e-6;
        if !holds {
            return Err(format!("{what}[{i}]: {got}, {want} expected, within {bound:e}"));
        }
    }
    Ok(())
}

/// A case by tiles in bf16 on each of `gpus`: output and gradient there.
///
/// # Errors
/// The first element beyond its bound, or what a device says.
pub fn flash_case(gpus: &[&'static Gpu], case: &AttentionCase) -> Result<Vec<[Vec<f64>; 2]>, String> {
    let host = Arena::new(64 << 20).map_err(|error| error.to_string())?;
    let inputs = inputs(case);
    let exact = run(&host, DType::F64, case, &inputs);
    let bounds = bounds(case, &inputs, &exact);
    let on = |&gpu: &&'static Gpu| {
        let got = run(&Arena::scattered(gpu), DType::Bf16, case, &inputs);
        told(gpu, &format!("{case:?}"))?;
        within(&format!("{case:?} output"), &got[0], &exact[0], &bounds[0])?;
        within(&format!("{case:?} gradient"), &got[1], &exact[1], &bounds[1])?;
        Ok(got)
    };
    gpus.iter().map(on).collect()
}

/// Attention by tiles: every shape of [`ATTENTION_FLASH`].
///
/// # Errors
/// As [`flash_case`].
pub fn flash_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    pick(ATTENTION_FLASH, 4, extent).try_for_each(|case| flash_case(&[gpu], case).map(|_| ()))
}
