//! The optimisers: AdamW over a flat buffer, Muon on one matrix.

use super::{Row, Run, Size, Stage, Work};
use crate::tensor::{DType, Layout, ParamId, Params, Role};
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
    vec![adamw, muon]
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
