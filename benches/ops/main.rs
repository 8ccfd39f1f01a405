//! Every op forward and backward, and whole training steps, on the CPU. `NANOCHAT_BENCH_SMOKE=1` takes tiny sizes.
//! The bytes or operations behind a rate stand beside each row.

use criterion::{Criterion, Throughput};
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::{Gpt, ModelConfig};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads};
use nanochat_gpu::train::optim::{self, Kind, Moments, Plan};
use nanochat_gpu::verify;
use std::time::Duration;

fn smoke() -> bool {
    std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    if smoke() {
        criterion = criterion
            .sample_size(10)
            .warm_up_time(Duration::from_millis(1))
            .measurement_time(Duration::from_millis(20));
    }
    training_steps(&mut criterion);
    criterion.final_summary();
}

/// The configurations that `tools/peers/torch_gpt_cpu.py` times: layers, width, heads, length, rows, vocabulary.
fn training_steps(criterion: &mut Criterion) {
    let sizes: &[[usize; 6]] =
        if smoke() { &[[2, 32, 2, 16, 2, 65]] } else { &[[6, 384, 6, 256, 8, 65], [4, 256, 4, 256, 16, 4096]] };
    let mut group = criterion.benchmark_group("train_step_f32_adamw");
    for &[layers, width, heads, t, b, v] in sizes {
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
        let model = Gpt::new(config, DType::F32).expect("a valid model");
        let mut params = model.init(DType::F32, 0);
        let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
        let mut moments = Moments::zeros(&params);
        let plan = Plan::new(Kind::Adamw, model.layout(), width, 1.0, None);
        let arena = Arena::new(8 << 30).expect("address space");
        let rows = Rows { tokens: verify::integers("tokens", b * t, v).into(), t, doc_start: None };
        let targets = verify::integers("targets", b * t, v);
        group.throughput(Throughput::Elements((b * t) as u64)).sample_size(10);
        group.bench_function(format!("L{layers} C{width} H{heads} T{t} B{b} V{v}"), |bench| {
            bench.iter(|| {
                grads.clear();
                let mut tape = Tape::recording(&arena, &params, &mut grads);
                let losses = model.loss(&mut tape, &rows, &targets, 1.0 / (b * t) as f64, Recompute::Nothing);
                let loss = sum_losses(&losses);
                drop(losses);
                tape.backward();
                drop(tape);
                arena.reset();
                optim::update(&plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
                loss
            })
        });
    }
    group.finish();
}
