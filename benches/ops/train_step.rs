//! Whole training steps: forward, loss, backward, AdamW.

use super::{Bench, Work};
use nanochat_gpu::device::{peak_memory_bytes, resident_memory_bytes};
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::{Gpt, ModelConfig};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, Tensor};
use nanochat_gpu::train::optim::{self, Kind, Moments, Plan};
use nanochat_gpu::verify;

/// The configurations that `tools/peers/torch_gpt_cpu.py` times: layers, width, heads, length, rows, vocabulary.
pub fn rows(bench: &mut Bench) {
    let real = vec![[6, 384, 6, 256, 8, 65], [4, 256, 4, 256, 16, 4096]];
    for [layers, width, heads, t, b, v] in bench.size(real, vec![[2, 32, 2, 16, 2, 65]]) {
        let config = ModelConfig {
            layers,
            width,
            heads,
            kv_heads: heads,
            head_dim: width / heads,
            ffn_width: ModelConfig::default_ffn_width(width),
            qk_norm: false,
            ..ModelConfig::from_depth(layers, v, t)
        };
        let before = resident_memory_bytes();
        let model = Gpt::new(config, DType::F32).expect("a valid model");
        let mut params = model.init(DType::F32, 0);
        let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
        let mut moments = Moments::zeros(&params);
        let plan = Plan::new(Kind::Adamw, model.layout(), width, 1.0, None);
        let arena = bench.arena.clone();
        let ids = Arena::new(4 << 20).expect("address space");
        let rows = Rows::new(&ids, &verify::integers("tokens", b * t, v), t, None);
        let targets = Tensor::from_slice(&ids, [b * t], &verify::integers("targets", b * t, v));
        let name = format!("L{layers} C{width} H{heads} T{t} B{b} V{v}");
        bench.row("train_step_f32_adamw", &name, Work::Tokens(b * t), || {
            grads.clear();
            let mut tape = Tape::recording(&arena, &params, &mut grads);
            let losses = model.loss(&mut tape, &rows, &targets, 1.0 / (b * t) as f64, Recompute::Nothing);
            let loss = sum_losses(&losses);
            drop(losses);
            tape.backward();
            drop(tape);
            optim::update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
            loss
        });
        arena.reset();
        // True for a row that runs alone, as `tools/peers/compare-cpu` runs it: the peak is the process's.
        let peak = peak_memory_bytes().saturating_sub(before);
        eprintln!("{name}: peak {} MiB above the process before the model", peak >> 20);
    }
}
