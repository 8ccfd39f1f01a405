//! Runs of models with parts: every loss logged and plotted, stopped runs that go on bit for bit, the controller that waits, a head that
//! beats what it began with, and the same on a simulated GPU.

use super::the_simulator_follows_the_cpu;
use super::trainer::{config, go, tokenizer};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::formats::checkpoint::load_model;
use nanochat_gpu::model::{Gpt, KvCache};
use nanochat_gpu::tensor::DType;
use nanochat_gpu::train::config::{Layers, RunConfig};
use nanochat_gpu::train::estimate::estimate;
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::{End, Trainer};
use serde_json::Value;
use std::path::Path;

const PARTS: [&str; 17] = [
    "model.layers=3",
    "psyche.enabled=true",
    "hypercube.enabled=true",
    "hypercube.bits=12",
    "concept.enabled=true",
    "concept.count=300",
    "concept.rank=8",
    "concept.window=4",
    "concept.every=4",
    "self_model.enabled=true",
    "self_model.width=24",
    "latent.enabled=true",
    "latent.width=16",
    "latent.every=2",
    "energy.enabled=true",
    "energy.width=16",
    "train.eval_every=10",
];

fn lines(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"))
}

#[test]
fn every_loss_is_logged_and_plotted_by_itself_and_the_total_is_their_sum() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let config = config(&PARTS);
    assert_eq!(go(&mut Trainer::start(config.clone(), tokenizer(), &run).unwrap(), None).0, End::Finished);
    let lines = lines(&run);
    for line in &lines {
        let keys = ["loss.lm", "loss.concept", "loss.entropy", "loss.self_model", "loss.reconstruction"];
        let [score, energy] = ["loss.score", "loss.energy"].map(|key| number(line, key));
        let [lm, concept, entropy, of_self, latent] = keys.map(|key| number(line, key));
        let total = lm + 0.1 * concept + 0.02 * entropy + 0.02 * of_self + latent + 0.05 * (score + energy);
        assert!((number(line, "loss") - total).abs() < 1e-9, "{line}");
    }
    let held_out = |key: &str| lines.iter().filter(|line| line.get(key).is_some()).count();
    assert_eq!(["val_loss", "val_loss.concept", "val_loss.entropy", "val_loss.self_model"].map(held_out), [4; 4]);
    assert_eq!(["val_loss.reconstruction", "val_latent.bits", "val_latent.accuracy"].map(held_out), [4; 3]);
    let shares =
        |key: &str| lines.iter().filter_map(|line| line.get(key)).map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    for key in ["grad_share.concept", "grad_share.entropy", "grad_share.self_model"] {
        let shares = shares(key);
        // Gradients reach the trunk, not by more than the language model's, and none at the end of the cooldown.
        assert!(
            shares.len() == 4 && shares[0] > 0.0 && shares[..3].iter().all(|&x| x < 1.0) && shares[3] == 0.0,
            "{shares:?}"
        );
    }
    assert_eq!(["val_loss.score", "val_loss.energy"].map(held_out), [4; 2]);
    assert_eq!(shares("grad_share.reconstruction"), [0.0; 4], "the latent does not move the trunk");
    for name in ["loss.svg", "loss.concept.svg", "loss.entropy.svg", "loss.self_model.svg", "loss.reconstruction.svg"] {
        assert!(std::fs::read_to_string(run.join(name)).unwrap().contains("polyline"), "{name}");
    }
    // The concept head begins at the unigram, which it must beat; the language model learns beside it.
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert!(number(last, "val_loss.concept") < number(first, "loss.concept") - 0.1, "{first} {last}");
    // The self-model begins with nothing said: 1 for the features, the whole loss, the doubt.
    assert!(number(last, "val_loss.self_model") < number(first, "loss.self_model") - 1.0, "{first} {last}");
    // The generator begins with nothing, the energies at even odds.
    assert!(number(last, "val_loss.score") < number(first, "loss.score"), "{first} {last}");
    assert!(number(last, "val_loss.energy") < number(first, "loss.energy"), "{first} {last}");
    // The latent begins at even odds, and its report is that of the tokens alone.
    assert!(number(last, "val_loss.reconstruction") < number(first, "loss.reconstruction") - 0.5, "{first} {last}");
    let (bits, right) = (number(last, "val_latent.bits"), number(last, "val_latent.accuracy"));
    let nats = bits * std::f64::consts::LN_2;
    assert!(nats > 0.0 && nats < number(last, "val_loss.reconstruction") && (0.0..=1.0).contains(&right), "{last}");
    assert!(number(last, "loss.lm") < number(first, "loss.lm") - 0.5);
    let opened = load_model(&run, DType::F32).unwrap();
    assert_eq!(*opened.model.config(), config.model);
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    let config = config(&PARTS);
    go(&mut Trainer::start(config.clone(), tokenizer(), &whole).unwrap(), None);
    go(&mut Trainer::start(config.clone(), tokenizer(), &stopped).unwrap(), Some(13));
    let (reopened, resolved) = RunFolder::open(&stopped).unwrap();
    assert_eq!(resolved, config, "config.toml says all of it");
    go(&mut Trainer::resume(reopened, resolved, 0).unwrap(), None);
    let sums = |run: &Path| std::fs::read_to_string(run.join("checkpoints/step_000040/checksums")).unwrap();
    assert_eq!(sums(&whole), sums(&stopped));
}

/// A run without parts goes on with them, from the same loss; one with a part does not go on without it.
#[test]
fn parts_are_switched_on_in_a_run_that_goes_on_and_not_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let plain = config(&["model.layers=3", "train.eval_every=0"]);
    go(&mut Trainer::start(plain.clone(), tokenizer(), &path).unwrap(), Some(12));
    let mut with_parts = config(&PARTS);
    with_parts.train.eval_every = 0;
    let go_on = |config: &RunConfig, stop: u64| {
        let (reopened, _) = RunFolder::open(&path).unwrap();
        Trainer::resume(reopened, config.clone(), 0).map(|mut trainer| go(&mut trainer, Some(stop)).2)
    };
    let other = folder.path().join("other");
    go(&mut Trainer::start(plain.clone(), tokenizer(), &other).unwrap(), Some(13));
    go_on(&with_parts, 13).unwrap();
    let first = |run: &Path| number(&lines(run)[12], "loss.lm");
    assert!((first(&path) - first(&other)).abs() < 1e-5, "{} {}", first(&path), first(&other));
    let opened = load_model(&path, DType::F32).unwrap();
    assert_eq!(*opened.model.config(), with_parts.model);
    let error = go_on(&plain, 14).err().unwrap();
    assert!(is_user_error(&error) && format!("{error:#}").contains("has a psyche part"), "{error:#}");
}

#[test]
fn the_controller_waits_for_the_end_of_warm_up() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&[&PARTS[..], &["train.warmup_steps=8"]].concat());
    let controller = |steps: u64| {
        let run = folder.path().join(steps.to_string());
        go(&mut Trainer::start(config.clone(), tokenizer(), &run).unwrap(), Some(steps));
        let opened = load_model(&run, DType::F32).unwrap();
        let entries = opened.model.layout().entries().to_vec();
        let at = entries.iter().position(|e| e.name == "nanochat.psyche.controller.weight").unwrap();
        opened.params.master().to_f64()[entries[at].range()].to_vec()
    };
    assert!(controller(8).iter().all(|&w| w == 0.0));
    assert!(controller(9).iter().all(|&w| w != 0.0));
}

#[test]
fn the_simulator_follows_the_cpu_and_replays_what_it_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str], dtype: DType| {
        let mut config = config(&[&PARTS[..], &["train.rows=2", "train.optimizer=adamw"], more].concat());
        config.device.dtype = dtype;
        let out = folder.path().join(name);
        go(&mut Trainer::start(config, tokenizer(), &out).unwrap(), Some(8));
        let keys = [
            "loss.lm",
            "loss.concept",
            "loss.entropy",
            "loss.self_model",
            "loss.reconstruction",
            "loss.score",
            "loss.energy",
        ];
        lines(&out).iter().map(|line| keys.map(|key| number(line, key)).to_vec()).collect()
    };
    the_simulator_follows_the_cpu(run);
}

/// What all parts cost at depth 12 with a vocabulary of 32,768: the bounds that their design sets, and the arithmetic behind them.
#[test]
fn all_parts_cost_little() {
    let of = |preset: Option<&str>| {
        let mut layers = Layers::default();
        preset.iter().for_each(|name| layers.preset(name).unwrap());
        ["model.depth=12", "train.seq_len=1024", "train.rows=8"].iter().for_each(|key| layers.set(key).unwrap());
        layers.resolve(32_768).unwrap()
    };
    let (plain, full) = (of(None), of(Some("full")));
    let parts = &full.model.parts;
    assert!(parts.psyche.enabled && parts.concept.enabled && parts.hypercube.enabled && parts.self_model.enabled);
    assert!(parts.latent.enabled && parts.energy.enabled);
    let flops = |config: &RunConfig| config.model.train_flops_per_token(1024);
    let abacus = 768 * 4 * (6 * 64 + 1) + 4 * (6 * 64 * 64 + 4 * 64 * 128) / 2;
    // Query and two outputs of the long-term memory, and its rows, which get no gradient.
    let memory = 768 * (64 + 2 * 768) + 2 * 256 * (64 + 768) / 3;
    // Query, keys, values and output of the memes.
    let memetic = 64 * (768 + 1024) + 768 * (1024 + 768);
    // Controller; into the code twice and out of it; an eighth of the concept head; the self-model, whose truths have no way back; a
    // quarter of the latent's encoder, decoder and vocabulary.
    let elems = 3 * 768 + 3 * 16 * 768 + 64 * (768 + 50_257) / 8 + 256 * (768 + 66) + 64 * 768 / 3;
    let elems = elems + (256 * 768 + 6 * 256 * 704 + 3 * 64 * 256 + 32_768 * 256) / 4;
    // Four samples and queries, and a retrieval, for each 16 tokens; the encoder again without a way back.
    let samples = 4 * (256 * (768 + 2 * 64) + 3 * 256 * 704 + 128 * (768 + 2 * 64)) + 128 * (768 + 64);
    let elems = elems + (samples + 4 * (256 * 768 + 3 * 256 * 704 + 2 * 64 * 256) / 3) / 16 + memetic + abacus + memory;
    assert_eq!(flops(&full) - flops(&plain), 6 * elems);
    assert!(flops(&full) as f64 <= 1.25 * flops(&plain) as f64);
    let bytes = |config: &RunConfig| {
        let model = Gpt::new(config.model.clone(), DType::F32).unwrap();
        estimate(config, &model, false).memory_bytes as f64
    };
    assert!(bytes(&full) <= 1.3 * bytes(&plain), "{} {}", bytes(&full), bytes(&plain));
    let of_a_conversation = KvCache::new(&full.model, 1, DType::F32).state().memory_bytes();
    assert!((64 << 10..1 << 20).contains(&of_a_conversation), "{of_a_conversation}");
}

/// The latent's decoder goes over the vocabulary: it is no wider than half the model, unless it is told to be.
#[test]
fn the_latents_width_follows_from_the_models() {
    let of = |keys: &[&str]| {
        let mut layers = Layers::default();
        keys.iter().for_each(|key| layers.set(key).unwrap());
        layers.resolve(300).unwrap().model.parts.latent.width
    };
    let on = "latent.enabled=true";
    assert_eq!([of(&["model.depth=4", on]), of(&["model.depth=12", on])], [128, 256]);
    assert_eq!(of(&["model.depth=4", on, "latent.width=256"]), 256);
}

#[test]
fn keys_out_of_range_are_refused_in_one_line() {
    let refused = |assignment: &str| {
        let mut layers = Layers::default();
        layers.set("model.layers=3").unwrap();
        let result = layers.set(assignment).and_then(|()| layers.resolve(300).map(drop));
        let error = result.unwrap_err();
        assert!(is_user_error(&error), "{error:#}");
        format!("{error:#}")
    };
    let mut few = Layers::default();
    ["concept.enabled=true", "concept.feedback=true", "concept.count=200"].iter().for_each(|key| few.set(key).unwrap());
    let error = few.resolve(300).unwrap_err();
    assert!(
        is_user_error(&error) && format!("{error:#}").contains("raise it or set concept.feedback=false"),
        "{error:#}"
    );
    assert!(refused("hypercube.bits=17").contains("between 1 and 16"));
    assert!(refused("loss.concept.weight=-1").contains("loss.concept.weight = -1"));
    assert!(refused("loss.entropy.rho=2").contains("loss.entropy.rho = 2"));
    assert!(refused("self_model.width=0").contains("between 1 and"));
    assert!(refused("latent.dropout=1").contains("between 0 and 0.9"));
    assert!(refused("latent.every=0").contains("latent.every = 0"));
    assert!(refused("energy.width=0").contains("energy.width = 0"));
    assert!(refused("energy.enabled=true").contains("set latent.enabled=true"));
    assert!(refused("loss.self_model.rho=2").contains("loss.self_model.rho = 2"));
    assert!(refused("psyche.enable=true").contains("did you mean psyche.enabled?"));
    assert!(refused("psyche.source=ego").contains("psyche"));
    let mut shallow = Layers::default();
    ["model.layers=2", "psyche.enabled=true"].iter().for_each(|key| shallow.set(key).unwrap());
    assert!(format!("{:#}", shallow.resolve(300).unwrap_err()).contains("use 3 layers or more"));
}
