//! The optimisers: AdamW over a flat buffer, Muon on one matrix.

use super::{Row, Run, Size, Stage, Work};
use crate::device::Device;
use crate::ops::clip::{self, Evidence, Limits};
use crate::tensor::{DType, Layout, ParamId, Params, Role, Tensor};
use crate::train::optim::{self, Kind, Moments, Plan};
use std::sync::Arc;

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    // On a card as many as a model of 124 million has: gradients and moments do not fit any cache.
    let shape @ [rows, cols] = size.of([64, 256], [4096, 2560], [32_768, 4096]);
    let n = rows * cols;
    let adamw = Row::new(["adamw", "fwd", "vector"], dtype, &[("N", n)], Work::bytes(adamw_bytes(dtype, n)), {
        move |stage| run(stage, dtype, Kind::Adamw, shape)
    });
    let [m, n] = size.of([96, 160], [512, 1536], [1024, 4096]);
    let muon = Row::new(["muon", "fwd", "naive_tiled"], dtype, &[("M", m), ("N", n)], muon_work([m, n]), {
        move |stage| run(stage, dtype, Kind::Muon, [m, n])
    });
    match dtype {
        DType::F32 => vec![adamw, muon, clip_row(size.of(40, 600, 7600))],
        _ => vec![adamw, muon],
    }
}

/// The verdict on a step from `n` partial sums of squares: a few microseconds of waiting, whatever is moved.
fn clip_row(n: usize) -> Row {
    let ranges = n.min(300);
    Row::new(["clip", "fwd", "verdict"], DType::F64, &[("N", n)], Work::bytes(size_of::<f64>() * n), move |stage| {
        let arena = stage.arena.clone();
        let partial = Tensor::from_f64(&arena, [n], DType::F64, &stage.normals([n], DType::F32).to_f64());
        let limits = Limits { clip: 1.0, loss: f64::INFINITY, grad_norm: f64::INFINITY };
        let Device::Gpu(gpu) = stage.device() else {
            let squares = partial.to_f64();
            return Box::new(move || {
                let factor = clip::verdict(1.0, &squares, &limits).unwrap_or(0.0);
                vec![Tensor::from_slice(&arena, [1], &[factor])]
            });
        };
        let firsts: Vec<u32> = (0..=ranges).map(|i| (i * n / ranges) as u32).collect();
        let firsts = Tensor::from_slice(&arena, [firsts.len()], &firsts);
        let knobs = Tensor::from_slice(&arena, [5], &clip::knobs(1.0, 1.0, &limits));
        let total = Tensor::from_slice(&arena, [1], &[1.0f64]);
        Box::new(move || {
            let mut report = Tensor::uninit(&arena, [clip::REPORT_SQUARES + ranges], DType::F64);
            let mut verdict = Tensor::uninit(&arena, [2], DType::F32);
            let seen = Evidence { total: &total, partial: &partial, firsts: &firsts, knobs: &knobs };
            clip::launch_verdict(gpu, &mut report.whole_mut(), &mut verdict.whole_mut(), &seen);
            vec![report, verdict]
        })
    })
}

/// Reads values, gradients and two moments and writes all but the gradients, in f32; values narrower than that are rounded from
/// the new ones.
fn adamw_bytes(dtype: DType, elems: usize) -> usize {
    let rounded = if dtype == DType::F32 { 0 } else { size_of::<f32>() + dtype.size_bytes() };
    (7 * size_of::<f32>() + rounded) * elems
}

/// The products of Newton-Schulz: five rounds of `X X^T`, its square, and their product with `X`. Moved: values and momentum both
/// ways, gradients.
fn muon_work([rows, cols]: [usize; 2]) -> Work {
    let (short, long) = (rows.min(cols), rows.max(cols));
    let flops = 5 * (4 * short * short * long + 2 * short * short * short);
    Work { bytes: 5 * size_of::<f32>() * rows * cols, flops, tokens: 0 }
}

fn run(stage: &Stage, dtype: DType, kind: Kind, shape: [usize; 2]) -> Run {
    let mut layout = Layout::default();
    layout.push("w", shape, Role::Matrix);
    let (plan, layout) = (Plan::new(kind, &layout, 1024, 1.0, None), Arc::new(layout));
    let mut params = Params::zeros(layout.clone(), dtype).to(stage.device());
    let values = stage.normals([layout.elems()], DType::F32);
    params.master_mut().copy_from_bytes(&values.to_bytes());
    params.round();
    drop(values);
    let (grads, mut moments) = (stage.normals([layout.elems()], DType::F32), Moments::zeros(&params));
    let arena = stage.arena.clone();
    Box::new(move || {
        optim::update(&arena, &plan, &mut params, &grads, &mut moments, 1.0, 1.0);
        vec![params.master().clone(), params.view(ParamId(0))]
    })
}
