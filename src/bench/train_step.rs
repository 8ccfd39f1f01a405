//! Whole training steps: forward, loss, backward, AdamW.

use super::{Row, Run, Size, Stage, Work};
use crate::model::gpt::{Recompute, Rows, sum_losses};
use crate::model::{Gpt, ModelConfig};
use crate::tape::Tape;
use crate::tensor::{DType, Grads, Tensor};
use crate::train::optim::{self, Kind, Moments, Plan};

/// A model, and the rows of a batch.
#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    t: usize,
    b: usize,
    v: usize,
}

const fn shape([layers, width, heads, t, b, v]: [usize; 6]) -> Shape {
    Shape { layers, width, heads, t, b, v }
}

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let shapes = size.of(
        vec![shape([2, 64, 2, 32, 2, 65])],
        // Those that `tools/peers/compare-cpu` runs beside PyTorch.
        vec![shape([6, 384, 6, 256, 8, 65]), shape([4, 256, 4, 256, 16, 4096])],
        // 124 million parameters; in f32, without tensor cores, of two rows only.
        vec![shape([12, 768, 6, 1024, if dtype == DType::F32 { 2 } else { 16 }, 32_768])],
    );
    shapes.into_iter().map(|shape| row(dtype, shape)).collect()
}

fn config(Shape { layers, width, heads, t, v, .. }: Shape) -> ModelConfig {
    ModelConfig {
        layers,
        width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        ffn_width: ModelConfig::default_ffn_width(width),
        qk_norm: false,
        ..ModelConfig::from_depth(layers, v, t)
    }
}

fn row(dtype: DType, shape: Shape) -> Row {
    let Shape { layers, width, heads, t, b, v } = shape;
    let extents = [("L", layers), ("C", width), ("H", heads), ("T", t), ("B", b), ("V", v)];
    let flops = b * t * config(shape).train_flops_per_token(t) as usize;
    let work = Work { bytes: 0, flops, tokens: b * t };
    Row::new(["train_step", "", "adamw"], dtype, &extents, work, move |stage| run(stage, dtype, shape))
}

fn run(stage: &Stage, dtype: DType, shape: Shape) -> Run {
    let (Shape { width, t, b, v, .. }, device) = (shape, stage.device());
    let model = Gpt::new(config(shape), dtype).expect("a valid model").to(device);
    let mut params = model.init(dtype, 0).to(device);
    let mut grads = Grads::zeros_on(device, model.layout().clone(), dtype);
    let mut moments = Moments::zeros(&params);
    let plan = Plan::new(Kind::Adamw, model.layout(), width, 1.0, None);
    let (tokens, targets) = (stage.ids(b * t, v), stage.ids(b * t, v));
    let (rows, arena) =
        (Rows { tokens, t, doc_start: None, starts: None, segments: 1, places: None }, stage.arena.clone());
    let host = crate::tensor::Arena::new(4096).expect("address space");
    Box::new(move || {
        grads.clear();
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        let losses = model.loss(&mut tape, &rows, &targets, 1.0 / (b * t) as f64, Recompute::Nothing);
        let loss = sum_losses(&losses);
        drop(losses);
        tape.backward();
        drop(tape);
        optim::update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
        vec![Tensor::from_f64(&host, [1], DType::F64, &[loss]), params.master().clone()]
    })
}
