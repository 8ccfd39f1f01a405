//! Against logits, loss and every gradient that `transformers` computed (tests/reference).

use nanochat_gpu::formats::hf;
use nanochat_gpu::formats::safetensors::Reader;
use nanochat_gpu::model::Gpt;
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Tensor};
use nanochat_gpu::verify::close;
use std::path::Path;

fn against(case: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(case);
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = hf::parse_config(&serde_json::from_str(&config).unwrap(), case).unwrap();
    let reference = Reader::open(&dir.join("reference.safetensors")).unwrap();
    let weights = Reader::open(&dir.join("model.safetensors")).unwrap();
    let integers = |name| reference.integers(name).unwrap().iter().map(|&x| x as u32).collect::<Vec<_>>();
    let floats = |name: &str| reference.floats(name).unwrap().1.iter().map(|&x| x as f64).collect::<Vec<_>>();
    let (tokens, targets) = (integers("tokens"), integers("targets"));
    for dtype in [DType::F32, DType::F64] {
        let model = Gpt::new(config.clone(), dtype).unwrap();
        let params = hf::read_params(&model, &weights, dtype, case).unwrap();
        let ids = Arena::new(1 << 20).unwrap();
        let rows = Rows::new(&ids, &tokens, tokens.len() / 2, None);
        let target_ids = Tensor::from_slice(&ids, [targets.len()], &targets);
        let arena = Arena::new(64 << 20).unwrap();
        let logits = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
        close(&format!("{case} {dtype} logits"), &logits, &floats("logits"), 2e-5).unwrap();
        for recompute in [Recompute::Nothing, Recompute::Blocks] {
            let mut grads = Grads::zeros(model.layout().clone(), dtype);
            let mut tape = Tape::recording(&arena, &params, &mut grads);
            let losses = model.loss(&mut tape, &rows, &target_ids, 1.0 / targets.len() as f64, recompute);
            let loss = sum_losses(&losses) / targets.len() as f64;
            close(&format!("{case} {dtype} loss"), &[loss], &floats("loss"), 1e-6).unwrap();
            tape.backward();
            drop((tape, losses));
            arena.reset();
            for (i, entry) in model.layout().entries().iter().enumerate() {
                let (got, want) = (grads.view(ParamId(i as u32)).to_f64(), floats(&format!("grad.{}", entry.name)));
                close(&format!("{case} {dtype} {recompute:?} {}", entry.name), &got, &want, 5e-5).unwrap();
            }
        }
    }
}

#[test]
fn llama_with_grouped_heads() {
    against("llama_gqa");
}

#[test]
fn llama_tied_with_scaled_rope() {
    against("llama_tied_scaled_rope");
}

#[test]
fn qwen3_with_qk_norm() {
    against("qwen3_qk_norm");
}
