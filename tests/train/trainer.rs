//! The trainer through the library: stopping and resuming, accumulation, recomputing, learning, the memory estimate, and
//! the configuration of runs.

use nanochat_gpu::data::{Batch, IGNORE, Packing};
use nanochat_gpu::device::Device;
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::load_model;
use nanochat_gpu::formats::safetensors::Reader;
use nanochat_gpu::model::gpt::{Recompute, Rows, sum_losses};
use nanochat_gpu::model::losses::LossScales;
use nanochat_gpu::model::{Carried, Gpt, ModelConfig};
use nanochat_gpu::ops::grad_norm::sums_of_squares;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, Tensor};
use nanochat_gpu::tokenizer::{Codec, Tokenizer, TrainSpec};
use nanochat_gpu::train::config::{KEYS, Layers, PRESETS, RunConfig};
use nanochat_gpu::train::estimate::activation_bytes;
use nanochat_gpu::train::guard::{Guard, Observation};
use nanochat_gpu::train::optim::{Kind, Moments, Plan, update};
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::{End, Event, Observer, Summary, Trainer};
use nanochat_gpu::verify::integers;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let train = || {
        let documents = (0..400).map(|i| format!("{i} + {} = {}", 7 * i, 8 * i));
        Arc::new(nanochat_gpu::tokenizer::train(documents, &TrainSpec::new(280)).unwrap().0)
    };
    TOKENIZER.get_or_init(train).clone()
}

/// A small run with `more` over it.
pub fn config(more: &[&str]) -> RunConfig {
    let mut layers = Layers::default();
    let base = [
        "model.layers=2",
        "model.width=32",
        "train.steps=40",
        "train.rows=4",
        "train.seq_len=16",
        "train.eval_tokens=128",
        "train.save_every=0",
        "train.sample_every=0",
        "train.eval_every=0",
        "data.sources=['synthetic:addition']",
    ];
    for assignment in base.iter().chain(more) {
        layers.set(assignment).unwrap();
    }
    layers.resolve(tokenizer().vocab_size()).unwrap()
}

/// Losses and notices, in order.
#[derive(Default)]
pub struct Heard {
    pub losses: Vec<f64>,
    pub notices: Vec<String>,
}

impl Observer for Heard {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Step(record) => self.losses.push(record.loss),
            Event::Notice { message } => self.notices.push(message.to_string()),
            _ => {}
        }
    }
}

pub fn go(trainer: &mut Trainer, stop_after: Option<u64>) -> (End, Summary, Heard) {
    let mut heard = Heard::default();
    let (end, summary) = trainer.run(stop_after, &AtomicBool::new(false), &mut heard).unwrap();
    (end, summary, heard)
}

fn train(config: &RunConfig, out: &Path) -> (Summary, Heard) {
    let mut trainer = Trainer::start(config.clone(), tokenizer(), out).unwrap();
    let (end, summary, heard) = go(&mut trainer, None);
    assert_eq!(end, End::Finished);
    (summary, heard)
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Every file of the newest checkpoint, by its checksum.
fn bits(run: &Path) -> String {
    std::fs::read_to_string(run.join("checkpoints/step_000040/checksums")).unwrap()
}

#[test]
fn stopped_runs_and_other_threads_end_bit_for_bit_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (packing, optimizer) in [("bos", "adamw"), ("bos", "muon"), ("stream", "adamw"), ("stream", "muon")] {
        let config = config(&[&format!("data.packing={packing}"), &format!("train.optimizer={optimizer}")]);
        let out = |name: &str| folder.path().join(format!("{name}-{packing}-{optimizer}"));
        let whole = out("whole");
        on_threads(1, || train(&config, &whole));
        on_threads(2, || train(&config, &out("two")));
        assert_eq!(bits(&whole), bits(&out("two")), "{packing} {optimizer}: two threads");
        for (before, after) in [(1, 1), (2, 2), (1, 2), (2, 1)] {
            let stopped = out(&format!("{before}-{after}"));
            let end = on_threads(before, || {
                go(&mut Trainer::start(config.clone(), tokenizer(), &stopped).unwrap(), Some(20)).0
            });
            assert_eq!(end, End::Stopped);
            on_threads(after, || {
                let (run, config) = RunFolder::open(&stopped).unwrap();
                let mut trainer = Trainer::resume(run, config, 0).unwrap();
                assert_eq!((trainer.step(), go(&mut trainer, None).0), (20, End::Finished));
            });
            assert_eq!(bits(&whole), bits(&stopped), "{packing} {optimizer}: {before} thread(s), then {after}");
        }
    }
}

#[test]
fn recomputing_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in ["f32", "bf16"] {
        let out = |recompute: bool| {
            let out = folder.path().join(format!("{dtype}-{recompute}"));
            let more = [&format!("device.dtype={dtype}")[..], &format!("train.recompute={recompute}"), "train.rows=2"];
            train(&config(&more), &out);
            bits(&out)
        };
        assert_eq!(out(false), out(true), "{dtype}");
    }
}

#[test]
fn accumulated_micro_batches_equal_one_large_one() {
    let folder = tempfile::tempdir().unwrap();
    // All documents are alike and as long as a row, so that any division into micro-batches has the same tokens.
    let data = folder.path().join("shards");
    std::fs::create_dir(&data).unwrap();
    let ids = [&[tokenizer().bos().unwrap()][..], &integers("document", 16, 200)].concat().repeat(200);
    let header = [20_240_520u32, 1, ids.len() as u32].into_iter().chain([0; 253]);
    let mut shard: Vec<u8> = header.flat_map(u32::to_le_bytes).collect();
    shard.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()));
    for name in ["train_0.bin", "val_0.bin"] {
        std::fs::write(data.join(name), &shard).unwrap();
    }
    let updated = |rows: usize| {
        let out = folder.path().join(format!("{rows}"));
        let source = format!("data.sources=['{}']", data.display());
        let more = [&format!("train.rows={rows}")[..], "train.batch_tokens=64", "train.steps=3", "data.packing=bos"];
        let config = config(&[&more[..], &["train.seq_len=16", "train.warmup_steps=0", &source]].concat());
        assert_eq!(config.accumulation(), 4 / rows);
        (train(&config, &out).1.losses, load_model(&out, DType::F32).unwrap().params.master().to_f64())
    };
    let ((losses, whole), (losses_in_parts, parts)) = (updated(4), updated(1));
    for (a, b) in losses.iter().zip(&losses_in_parts) {
        assert!((a - b).abs() <= 1e-4 * a, "{losses:?} {losses_in_parts:?}");
    }
    // AdamW divides by the gradient's own size, so that a rounding can turn a step of one near 0: the norm tells.
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut whole.iter().zip(&parts).map(|(a, b)| a - b));
    let size = norm(&mut whole.iter().copied());
    assert!(difference <= 1e-3 * size, "{difference:e} of {size:e}");
}

fn batch_rows(batch: Batch) -> (Rows, Tensor) {
    let ids = Arena::new(1 << 20).unwrap();
    let rows = Rows::new(&ids, &batch.tokens, batch.seq_len, Some(&batch.doc_start));
    (rows, Tensor::from_slice(&ids, [batch.targets.len()], &batch.targets))
}

/// Gradients of the mean loss over `micro` micro-batches of the same tokens.
fn gradients(model: &Gpt, micro: usize) -> Vec<f64> {
    let params = model.init(DType::F32, 3);
    let arena = Arena::new(256 << 20).unwrap();
    let (n, t) = (8 * 16, 16);
    let mut targets = integers("targets", n, model.config().vocab_size);
    // Unequal numbers of targets in the parts: the mean is over all, not over the parts.
    targets[..23].fill(IGNORE);
    let tokens = integers("tokens", n, model.config().vocab_size);
    let counted = targets.iter().filter(|&&target| target != IGNORE).count();
    let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
    for part in 0..micro {
        let range = part * n / micro..(part + 1) * n / micro;
        let rows = Rows::new(&arena, &tokens[range.clone()], t, None);
        let targets = Tensor::from_slice(&arena, [range.len()], &targets[range]);
        let mut tape = Tape::recording(&arena, &params, &mut grads);
        drop(model.loss(&mut tape, &rows, &targets, 1.0 / counted as f64, Recompute::Nothing));
        tape.backward();
    }
    grads.flat().to_f64()
}

#[test]
fn gradients_of_parts_add_up_to_that_of_the_whole() {
    let model = Gpt::new(ModelConfig { width: 32, ..config(&[]).model }, DType::F32).unwrap();
    let (whole, parts) = (gradients(&model, 1), gradients(&model, 4));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut whole.iter().zip(&parts).map(|(a, b)| a - b));
    let size = norm(&mut whole.iter().copied());
    assert!(size > 0.0 && difference <= 1e-6 * size, "{difference:e} of {size:e}");
}

#[test]
fn one_batch_is_learnt_by_heart() {
    for (kind, dtype) in [(Kind::Adamw, DType::F32), (Kind::Muon, DType::F32), (Kind::Adamw, DType::Bf16)] {
        let config = config(&[]);
        let model = Gpt::new(config.model.clone(), dtype).unwrap();
        let mut params = model.init(dtype, 1);
        let plan = Plan::new(kind, model.layout(), config.model.width, 1.0, Some(0.0));
        let (mut grads, mut moments) = (Grads::zeros(model.layout().clone(), dtype), Moments::zeros(&params));
        let arena = Arena::new(256 << 20).unwrap();
        let v = config.model.vocab_size;
        let ids = Arena::new(1 << 20).unwrap();
        let rows = Rows::new(&ids, &integers("tokens", 64, v), 16, None);
        let targets = Tensor::from_slice(&ids, [64], &integers("targets", 64, v));
        let mut loss = f64::NAN;
        for _ in 0..250 {
            grads.clear();
            let mut tape = Tape::recording(&arena, &params, &mut grads);
            let losses = model.loss(&mut tape, &rows, &targets, 1.0 / 64.0, Recompute::Nothing);
            loss = sum_losses(&losses) / 64.0;
            drop(losses);
            tape.backward();
            drop(tape);
            arena.reset();
            update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
        }
        assert!(loss < 0.05, "{kind:?} in {dtype}: {loss}");
    }
}

#[test]
fn both_types_and_optimisers_learn() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, optimizer) in [("f32", "adamw"), ("bf16", "adamw"), ("bf16", "muon")] {
        let more = [&format!("device.dtype={dtype}")[..], &format!("train.optimizer={optimizer}"), "train.lr_scale=3"];
        let (summary, heard) = train(&config(&more), &folder.path().join(format!("{dtype}-{optimizer}")));
        let (first, last) = (heard.losses[0], *heard.losses.last().unwrap());
        assert!(last < first - 1.0, "{dtype} {optimizer}: {first} -> {last}");
        assert!(summary.val_loss.unwrap() < first - 1.0 && summary.val_bpb.unwrap() > 0.0);
        assert!(heard.notices.is_empty(), "{:?}", heard.notices);
    }
}

#[test]
fn a_step_that_is_no_number_is_not_applied_and_its_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let config = config(&["train.steps=60", "train.bad_steps_max=4", "train.save_every=2", "train.keep=2"]);
    go(&mut Trainer::start(config, tokenizer(), &run).unwrap(), Some(5));
    // A value that overflows in the second block alone.
    let checkpoint = run.join("checkpoints/step_000005");
    let opened = load_model(&checkpoint, DType::F32).unwrap();
    let (model, params) = (opened.model, opened.params);
    let entry = model.layout().entries().iter().find(|entry| entry.name.contains("layers.1.mlp.down")).unwrap();
    let file = std::fs::read(checkpoint.join("model.safetensors")).unwrap();
    let value = params.master().as_slice::<f32>()[entry.range().start..entry.range().end].to_vec();
    let bytes: Vec<u8> = value.iter().flat_map(|x| x.to_le_bytes()).collect();
    let at = file.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let mut changed = file;
    changed[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(checkpoint.join("model.safetensors"), changed).unwrap();
    std::fs::remove_file(checkpoint.join("checksums")).unwrap();
    let (folder, config) = RunFolder::open(&run).unwrap();
    let mut trainer = Trainer::resume(folder, config, 0).unwrap();
    let mut heard = Heard::default();
    let error = trainer.run(None, &AtomicBool::new(false), &mut heard).unwrap_err();
    assert!(!is_user_error(&error) && error.to_string().contains("4 steps in a row"), "{error}");
    assert_eq!(heard.notices.len(), 4, "{:?}", heard.notices);
    assert!(heard.notices[0].contains("step 6 skipped: the loss is NaN; first gradient model."), "{:?}", heard.notices);
    // Steps 6 and 8 were due for saving, and would have pushed both good checkpoints out.
    drop(trainer);
    let (folder, _) = RunFolder::open(&run).unwrap();
    assert_eq!(folder.nth_newest(0).unwrap(), checkpoint);
    assert_eq!(folder.nth_newest(1).unwrap(), run.join("checkpoints/step_000004"));
}

#[test]
fn the_guard_names_the_tensor_of_the_model() {
    let model = Gpt::new(config(&[]).model, DType::F32).unwrap();
    let mut grads = Grads::zeros(model.layout().clone(), DType::F32);
    let entries = model.layout().entries();
    let poisoned = entries.iter().position(|entry| entry.name.contains("layers.1.self_attn")).unwrap();
    grads.flat_mut().as_mut_slice::<f32>()[entries[poisoned].range().start] = f32::INFINITY;
    let ranges: Vec<_> = entries.iter().map(|entry| entry.range()).collect();
    let squares = sums_of_squares(&Arena::new(1 << 20).unwrap(), grads.flat(), &ranges);
    let name = |i: usize| entries[i].name.clone();
    let seen = Observation { loss: 1.0, grad_norm: f64::INFINITY, squares: &squares, name: &name };
    let verdict = Guard::default().judge(&seen, 8.0).unwrap_err();
    assert_eq!(verdict, format!("the gradient of {} is not finite", entries[poisoned].name));
}

#[test]
fn what_a_run_writes_reads_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let more = ["model.kv_heads=1", "model.heads=2", "model.window_pattern=SL", "model.softcap=15.0"];
    let config = config(&[&more[..], &["train.weight_decay=0.01", "train.steps=2"]].concat());
    train(&config, &run);
    let text = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert_eq!(RunConfig::from_toml(&text, "config.toml").unwrap(), config);
    let newest = run.join("checkpoints/step_000002");
    let opened = load_model(&run, DType::F32).unwrap();
    assert_eq!((opened.model.config(), &opened.path), (&config.model, &newest));
    assert_eq!(opened.tokenizer.unwrap().digest(), tokenizer().digest());
    let reader = Reader::open(&newest.join("model.safetensors")).unwrap();
    let values: Vec<f32> = (opened.model.layout().entries().iter())
        .flat_map(|entry| {
            let (shape, values) = reader.floats(&entry.name).unwrap();
            assert_eq!(shape, entry.shape, "{}", entry.name);
            values
        })
        .collect();
    assert_eq!(reader.names().len(), opened.model.layout().entries().len());
    assert!(values.iter().any(|&x| x != 0.0));
    let mut at = 0;
    for entry in opened.model.layout().entries() {
        let n = entry.shape.elems();
        assert_eq!(opened.params.master().as_slice::<f32>()[entry.range()], values[at..at + n], "{}", entry.name);
        at += n;
    }
}

/// Most bytes that the arena held in a step of `config`.
fn measured(config: &RunConfig) -> usize {
    let dtype = config.device.dtype;
    let model = Gpt::new(config.model.clone(), dtype).unwrap();
    let params = model.init(dtype, 0);
    let mut grads = Grads::zeros(model.layout().clone(), dtype);
    let arena = Arena::new(4 << 30).unwrap();
    let n = config.train.rows * config.train.seq_len;
    let v = config.model.vocab_size;
    let batch = Batch {
        tokens: integers("tokens", n, v),
        targets: integers("targets", n, v),
        doc_start: vec![0; n],
        begins: vec![0; n],
        ..empty_batch(config)
    };
    let (rows, targets) = batch_rows(batch);
    let recompute = if config.train.recompute { Recompute::Blocks } else { Recompute::Nothing };
    let mut tape = Tape::recording(&arena, &params, &mut grads);
    let scales = LossScales::all(1.0 / n as f64, 0.5);
    let mut carried = Carried::new(Device::Cpu, &config.model, [config.train.rows, 1], dtype);
    drop(model.losses(&mut tape, &rows, &targets, &scales, recompute, &mut carried));
    tape.backward();
    drop(tape);
    arena.stats().peak_live_bytes
}

fn empty_batch(config: &RunConfig) -> Batch {
    Batch {
        rows: config.train.rows,
        seq_len: config.train.seq_len,
        segments: 1,
        tokens: vec![],
        targets: vec![],
        doc_start: vec![],
        begins: vec![],
        bytes_in_targets: vec![],
        epoch: 0,
        index: 0,
    }
}

#[test]
fn the_memory_estimate_bounds_what_the_arena_holds_closely() {
    let of = |more: &[&str]| config(&[&["train.rows=4", "train.seq_len=64"], more].concat());
    let mut failures = Vec::new();
    for more in [
        &[][..],
        &["model.layers=6"],
        &["model.layers=6", "train.recompute=true"],
        &["model.qk_norm=false"],
        &["model.layer_pattern=KKA", "model.layers=3"],
        &["model.layer_pattern=K", "model.width=128", "model.layers=6"],
        &["model.layers=3", "abacus.enabled=true", "abacus.heads=2"],
        &["digits.enabled=true"],
        &["model.layers=6", "model.width=128", "abacus.enabled=true"],
        &["model.layers=3", "memory.enabled=true"],
        &["model.layers=6", "model.width=128", "memory.enabled=true", "memory.rows=64"],
        &["model.layers=3", "memetic.enabled=true"],
        &["model.layers=6", "model.width=128", "memetic.enabled=true", "memetic.memes=128"],
        &["model.layers=1"],
        &["model.vocab_size=8192"],
        &["model.vocab_size=8192", "model.tie_embeddings=true", "model.width=128"],
        &["model.width=192", "model.heads=6", "model.kv_heads=2", "train.rows=8"],
        &["model.width=128", "model.ffn_width=1024"],
        &["model.width=64", "train.rows=1", "train.seq_len=1024"],
        &["model.layers=4", "model.width=256", "train.seq_len=256", "model.vocab_size=4096"],
        &["model.layers=3", "psyche.enabled=true"],
        &["model.layers=3", "hypercube.enabled=true"],
        &["model.layers=3", "concept.enabled=true"],
        &["model.layers=3", "concept.enabled=true", "concept.feedback=true"],
        &["model.layers=3", "self_model.enabled=true"],
        &["model.layers=3", "latent.enabled=true"],
        &["model.layers=3", "latent.enabled=true", "energy.enabled=true"],
        &["model.layers=6", "model.width=128", "psyche.enabled=true", "hypercube.enabled=true", "concept.enabled=true"],
    ] {
        for dtype in ["f32", "bf16"] {
            for recompute in ["false", "true"] {
                let dtype_key = format!("device.dtype={dtype}");
                let recompute_key = format!("train.recompute={recompute}");
                let config = of(&[more, &[&dtype_key, &recompute_key]].concat());
                let (estimate, measured) = (activation_bytes(&config), measured(&config));
                let ratio = estimate as f64 / measured as f64;
                if !(1.0..=1.6).contains(&ratio) {
                    failures
                        .push(format!("{more:?} {dtype} recompute {recompute}: {estimate} / {measured} = {ratio:.2}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn later_layers_of_the_configuration_win() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.toml");
    std::fs::write(&file, "[train]\nsteps = 11\nclip = 0.5\nlr_scale = 0.5\n[model]\nwidth = 64\n").unwrap();
    let mut layers = Layers::default();
    layers.preset("demo").unwrap();
    let demo = layers.resolve(300).unwrap();
    assert_eq!((demo.train.steps, demo.train.rows, demo.train.clip, demo.model.layers), (150, 16, 1.0, 3));
    layers.file(&file).unwrap();
    layers.set("train.clip=0.25").unwrap();
    layers.set("train.steps=12").unwrap();
    layers.value("train.steps", toml::Value::Integer(13), "--steps").unwrap();
    let config = layers.resolve(300).unwrap();
    // Flag over --set over file; --set over file; file over default; preset over default; default.
    assert_eq!((config.train.steps, config.train.clip, config.train.lr_scale), (13, 0.25, 0.5));
    assert_eq!((config.train.rows, config.model.layers, config.model.width), (16, 3, 64));
    assert_eq!((config.train.keep, config.data.packing), (3, Packing::Bos));
    for (name, _) in PRESETS {
        let mut layers = Layers::default();
        layers.preset(name).unwrap();
        let config = layers.resolve(4096).unwrap();
        assert_eq!(RunConfig::from_toml(&config.to_toml(), "config.toml").unwrap(), config);
    }
    for (key, meaning) in KEYS {
        assert!(!meaning.is_empty() && key.contains('.'), "{key}");
    }
}
