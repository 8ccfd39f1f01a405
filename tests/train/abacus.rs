//! Runs of models with a memory: what is carried is in the checkpoint, a stopped run goes on bit for bit, a simulated GPU follows the CPU, and
//! rows go with segments.

use super::the_simulator_follows_the_cpu;
use super::trainer::{config, go, tokenizer};
use nanochat_gpu::data::Packing;
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::safetensors::Reader;
use nanochat_gpu::tensor::DType;
use nanochat_gpu::train::config::Layers;
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::Trainer;

/// Two micro-batches a step, of two streams of two segments each.
const MEMORY: [&str; 7] = [
    "model.layers=3",
    "abacus.enabled=true",
    "abacus.heads=2",
    "abacus.key_dim=32",
    "abacus.value_dim=32",
    "train.rows=4",
    "train.batch_tokens=128",
];

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let config = config(&[&MEMORY[..], &["train.eval_every=20"]].concat());
    assert_eq!(config.data.packing, Packing::Stream);
    go(&mut Trainer::start(config.clone(), tokenizer(), &whole).unwrap(), None);
    go(&mut Trainer::start(config.clone(), tokenizer(), &stopped).unwrap(), Some(13));
    let states = |run: &std::path::Path, step: u64| {
        let file = run.join(format!("checkpoints/step_{step:06}/carried.safetensors"));
        let (shape, values) = Reader::open(&file).unwrap().floats("abacus").unwrap();
        assert_eq!(shape.as_slice(), [2, 2, 32, 32]);
        values
    };
    let (then, now) = (states(&stopped, 13), states(&whole, 40));
    assert!(then != now && then.chunks(1024).chain(now.chunks(1024)).all(|head| head.iter().any(|&x| x != 0.0)));
    let (reopened, resolved) = RunFolder::open(&stopped).unwrap();
    assert_eq!(resolved, config);
    go(&mut Trainer::resume(reopened, resolved, 0).unwrap(), None);
    let sums = |run: &std::path::Path| std::fs::read_to_string(run.join("checkpoints/step_000040/checksums")).unwrap();
    assert_eq!(sums(&whole), sums(&stopped));
}

/// From nothing in the memory, and with its output learnt: the losses depend on what is carried from step to step.
#[test]
fn the_simulator_follows_the_cpu_and_replays_what_it_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str], dtype: DType| {
        let more = [&MEMORY[..], &["train.optimizer=adamw", "train.lr_scale=4"], more].concat();
        let mut config = config(&more);
        config.device.dtype = dtype;
        go(&mut Trainer::start(config, tokenizer(), &folder.path().join(name)).unwrap(), Some(6)).2.losses
    };
    the_simulator_follows_the_cpu(|name, more, dtype| {
        run(name, more, dtype).into_iter().map(|loss| vec![loss]).collect()
    });
}

#[test]
fn rows_are_whole_streams() {
    let resolve = |more: &[&str]| {
        let mut layers = Layers::default();
        ["model.layers=3", "abacus.enabled=true"].iter().chain(more).for_each(|key| layers.set(key).unwrap());
        layers.resolve(300)
    };
    let error = resolve(&["train.rows=4", "abacus.segments=3"]).unwrap_err();
    assert!(is_user_error(&error), "{error:#}");
    assert!(format!("{error:#}").contains("abacus.segments = 3 does not divide train.rows = 4"), "{error:#}");
    // Rows that begin with their documents stand alone.
    let alone = resolve(&["train.rows=4", "abacus.segments=3", "data.packing=bos"]).unwrap();
    assert_eq!((alone.segments(), alone.data.packing), (1, Packing::Bos));
    let long = resolve(&["train.seq_len=2048", "abacus.segments=3"]).unwrap();
    assert_eq!((long.train.rows, long.segments(), long.data.packing), (3, 3, Packing::Stream));
}
