//! One update of all parameters of a model of about ten million.

use super::{Bench, Work, f32_bytes};
use nanochat_gpu::model::{Gpt, ModelConfig};
use nanochat_gpu::tensor::{DType, Grads};
use nanochat_gpu::train::optim::{self, Kind, Moments, Plan, Rule};
use nanochat_gpu::verify;

/// AdamW reads values, gradients and two moments, and writes all but the gradients.
fn adamw_bytes(elems: usize) -> usize {
    f32_bytes(7 * elems)
}

/// The products of Newton-Schulz: five rounds of `X X^T`, its square, and their product with `X`. The AdamW groups and
/// the passes over memory are not counted.
fn muon_flops(plan: &Plan) -> usize {
    let of = |rows: usize, cols: usize| {
        let (short, long) = (rows.min(cols), rows.max(cols));
        5 * (4 * short * short * long + 2 * short * short * short)
    };
    let groups = plan.groups.iter();
    groups.map(|group| if let Rule::Muon { rows, cols, .. } = group.rule { of(rows, cols) } else { 0 }).sum()
}

pub fn rows(bench: &mut Bench) {
    let (depth, v) = bench.size((6, 65), (1, 65));
    let config = ModelConfig::from_depth(depth, v, 256);
    let width = config.width;
    let model = Gpt::new(config, DType::F32).expect("a valid model");
    let elems = model.layout().elems();
    for (kind, name) in [(Kind::Adamw, "adamw"), (Kind::Muon, "muon")] {
        let plan = Plan::new(kind, model.layout(), width, 1.0, None);
        let mut params = model.init(DType::F32, 0);
        let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
        grads.flat_mut().copy_from_f64(&verify::normals("gradients", elems));
        let mut moments = Moments::zeros(&params);
        let work = match kind {
            Kind::Adamw => Work::Bytes(adamw_bytes(elems)),
            Kind::Muon => Work::Flops(muon_flops(&plan)),
        };
        let arena = bench.arena.clone();
        bench.row("optim", &format!("{name} {elems} parameters"), work, || {
            optim::update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0)
        });
    }
}
