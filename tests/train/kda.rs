//! Runs of models with layers of Kimi Delta Attention: stopped, resumed and opened again, and on a simulated GPU.

use super::the_simulator_follows_the_cpu;
use super::trainer::{config, go, tokenizer};
use nanochat_gpu::formats::checkpoint::load_model;
use nanochat_gpu::tensor::DType;
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::Trainer;

const MIXED: [&str; 4] =
    ["model.layers=3", "model.layer_pattern=KKA", "model.document_mask=true", "train.recompute=true"];

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_its_checkpoint_says_which_layers_are_which() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let config = config(&MIXED);
    let heard = go(&mut Trainer::start(config.clone(), tokenizer(), &whole).unwrap(), None).2;
    assert!(heard.losses[39] < heard.losses[0] - 0.5, "{:?}", heard.losses);
    go(&mut Trainer::start(config.clone(), tokenizer(), &stopped).unwrap(), Some(17));
    let (reopened, resolved) = RunFolder::open(&stopped).unwrap();
    assert_eq!(resolved, config);
    go(&mut Trainer::resume(reopened, resolved, 0).unwrap(), None);
    let file = |name: &str, run: &std::path::Path| {
        std::fs::read_to_string(run.join("checkpoints/step_000040").join(name)).unwrap()
    };
    assert_eq!(file("checksums", &whole), file("checksums", &stopped));
    let written: serde_json::Value = serde_json::from_str(&file("config.json", &whole)).unwrap();
    assert_eq!(written["architectures"][0], "NanochatForCausalLM");
    assert_eq!(written["nanochat"]["layer_pattern"], "KKA");
    assert_eq!(*load_model(&whole, DType::F32).unwrap().model.config(), config.model);
}

#[test]
fn the_simulator_follows_the_cpu_and_replays_what_it_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str], dtype: DType| {
        let mut config = config(&[&MIXED[..], &["train.rows=2", "train.optimizer=adamw"], more].concat());
        config.device.dtype = dtype;
        go(&mut Trainer::start(config, tokenizer(), &folder.path().join(name)).unwrap(), Some(8)).2.losses
    };
    the_simulator_follows_the_cpu(|name, more, dtype| {
        run(name, more, dtype).into_iter().map(|loss| vec![loss]).collect()
    });
}
