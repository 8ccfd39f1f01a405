//! Runs that count digits: the tokenizer they need, the shift of each batch, and a simulated GPU.

use super::the_simulator_follows_the_cpu;
use super::trainer::{config, go};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::load_model;
use nanochat_gpu::tensor::DType;
use nanochat_gpu::tokenizer::{Codec, Pattern, Tokenizer, TrainSpec, train};
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::Trainer;
use std::sync::Arc;

const DIGITS: [&str; 2] = ["digits.enabled=true", "model.vocab_size=300"];

fn tokenizer(pattern: Pattern) -> Arc<Tokenizer> {
    let documents = (0..400).map(|i| format!("{i} + {} = {}", 7 * i, 8 * i));
    Arc::new(train(documents, &TrainSpec { pattern, ..TrainSpec::new(270) }).unwrap().0)
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_knows_its_digits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let (config, tokenizer) = (config(&DIGITS), tokenizer(Pattern::Gpt4SingleDigit));
    go(&mut Trainer::start(config.clone(), tokenizer.clone(), &whole).unwrap(), None);
    go(&mut Trainer::start(config, tokenizer.clone(), &stopped).unwrap(), Some(13));
    let (reopened, resolved) = RunFolder::open(&stopped).unwrap();
    go(&mut Trainer::resume(reopened, resolved, 0).unwrap(), None);
    let sums = |run: &std::path::Path| std::fs::read_to_string(run.join("checkpoints/step_000040/checksums")).unwrap();
    assert_eq!(sums(&whole), sums(&stopped));
    let opened = load_model(&whole, DType::F32).unwrap();
    let ids = &opened.model.config().parts.digits.ids;
    let digits: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
    assert_eq!(digits, b"0123456789");
    // Shifts reach rows of the table that no number of the task is long enough for.
    let layout = opened.params.layout();
    let table = layout.entries().iter().find(|entry| entry.name == "nanochat.digits.weight").unwrap();
    let values = opened.params.master().to_f64()[table.range()].to_vec();
    let learnt: Vec<bool> = values.chunks(32).map(|row| row.iter().any(|&x| x != 0.0)).collect();
    assert!(!learnt[0] && learnt[90..].iter().any(|&x| x), "{learnt:?}");
}

#[test]
fn a_tokenizer_that_joins_digits_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let error = Trainer::start(config(&DIGITS), tokenizer(Pattern::Gpt4), &run).err().unwrap();
    assert!(is_user_error(&error) && format!("{error:#}").contains("set digits.enabled=false"), "{error:#}");
    assert!(!run.exists());
}

#[test]
fn the_simulator_follows_the_cpu_and_replays_with_other_shifts() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str], dtype: DType| {
        let mut config =
            config(&[&DIGITS[..], &["train.rows=2", "train.optimizer=adamw", "train.lr_scale=4"], more].concat());
        config.device.dtype = dtype;
        let tokenizer = tokenizer(Pattern::Gpt4SingleDigit);
        go(&mut Trainer::start(config, tokenizer, &folder.path().join(name)).unwrap(), Some(8)).2.losses
    };
    the_simulator_follows_the_cpu(|name, more, dtype| {
        run(name, more, dtype).into_iter().map(|loss| vec![loss]).collect()
    });
}
