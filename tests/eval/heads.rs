//! The report on heads: where it must say nothing, against numbers worked out from logits, and heads that know.

use crate::data::{codec, lines, options};
use nanochat_gpu::data::{Corpus, IGNORE};
use nanochat_gpu::eval::heads::judge;
use nanochat_gpu::eval::scores::{auroc, r_squared};
use nanochat_gpu::model::energy::EnergyConfig;
use nanochat_gpu::model::gpt::Rows;
use nanochat_gpu::model::latent::LatentConfig;
use nanochat_gpu::model::self_model::SelfModelConfig;
use nanochat_gpu::model::{Gpt, ModelConfig, Parts};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, ParamId, Params};
use std::collections::BTreeMap;

const T: usize = 24;

fn model(parts: Parts) -> Gpt {
    let base = ModelConfig {
        width: 32,
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        ffn_width: 40,
        ..ModelConfig::from_depth(3, codec().vocab_size(), T)
    };
    Gpt::new(ModelConfig { parts, ..base }, DType::F32).unwrap()
}

fn all_heads() -> Parts {
    let self_model = SelfModelConfig { enabled: true, width: 24 };
    let latent = LatentConfig { enabled: true, width: 16, ..LatentConfig::default() };
    Parts { self_model, latent, energy: EnergyConfig { enabled: true, width: 16 }, ..Parts::default() }
}

fn corpus(folder: &std::path::Path) -> Corpus {
    Corpus::open(&[lines(folder, "a.jsonl", 60)], codec(), options(3, T)).unwrap()
}

fn judged(model: &Gpt, params: &Params, corpus: &Corpus) -> BTreeMap<&'static str, f64> {
    let arena = Arena::new(256 << 20).unwrap();
    judge(model, params, &arena, &mut corpus.packer(None).unwrap(), 12 * 3 * T).unwrap()
}

fn near(scores: &BTreeMap<&'static str, f64>, name: &str, want: f64, by: f64) {
    let got = scores[name];
    assert!((got - want).abs() <= by, "{name}: {got}, not {want}");
}

#[test]
fn a_model_without_heads_has_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(Parts::default());
    assert!(judged(&model, &model.init(DType::F32, 1), &corpus(folder.path())).is_empty());
}

/// A head at its beginning says the same of everything: it tells nothing, and its control is worked out from the logits. The language model knows
/// that y comes after x and x after y.
#[test]
fn heads_that_know_nothing_score_nothing_and_controls_are_those_of_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let (model, corpus) = (model(all_heads()), corpus(folder.path()));
    let (mut params, c) = (model.init(DType::F32, 1), 32);
    let (embedding, mut head) = (params.view(model.embedding()).to_f64(), params.view(model.head()).to_f64());
    for (before, after) in [(b'x', b'y'), (b'y', b'x')].map(|(a, b)| (usize::from(a), usize::from(b))) {
        head[after * c..][..c].copy_from_slice(&embedding[before * c..][..c]);
    }
    params.set_master(model.head(), &head);
    let scores = judged(&model, &params, &corpus);
    near(&scores, "self_model.auroc", 0.5, 0.0);
    near(&scores, "energy.auroc", 0.5, 0.0);
    assert!(scores["self_model.features_r2"] < 0.0 && scores["self_model.loss_r2"] < 0.0, "{scores:?}");
    assert_eq!(scores, judged(&model, &params, &corpus), "the same twice");
    let (v, arena) = (model.config().vocab_size, Arena::new(256 << 20).unwrap());
    let (mut losses, mut entropies, mut kinds) = (vec![], vec![], [vec![], vec![]]);
    let mut packer = corpus.packer(None).unwrap();
    let batches = std::iter::from_fn(|| Some(packer.next_batch().unwrap())).take_while(|batch| batch.epoch == 0);
    for batch in batches.take(12) {
        let rows = Rows::of(&arena, &batch);
        let logits = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
        for (row, &target) in logits.chunks(v).zip(&batch.targets).filter(|(_, target)| **target != IGNORE) {
            let sum: f64 = row.iter().map(|l| l.exp()).sum();
            let entropy = -row.iter().map(|l| l.exp() / sum * (l.exp() / sum).ln()).sum::<f64>();
            let is_wrong = row.iter().any(|&l| l > row[target as usize]);
            losses.push(sum.ln() - row[target as usize]);
            entropies.push(entropy);
            kinds[usize::from(is_wrong)].push(entropy);
        }
    }
    // At even odds of an error, as far from the truth as errors are more often.
    let wrong = kinds[1].len() as f64 / losses.len() as f64;
    near(&scores, "self_model.calibration_error", (wrong - 0.5).abs(), 1e-9);
    near(&scores, "self_model.loss_r2.entropy", r_squared(&entropies, &losses, 1).unwrap(), 1e-4);
    assert!((0.2..0.8).contains(&wrong), "{wrong} are wrong");
    near(&scores, "self_model.auroc.entropy", auroc(&kinds[1], &kinds[0]).unwrap(), 1e-3);
}

/// A language model that says each of 280 tokens alike: whatever it draws is as likely as the truth, and nothing is drawn twice. Queries at random
/// say different things of different chunks.
#[test]
fn what_a_flat_model_draws_is_no_likelier_than_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let (model, corpus) = (model(all_heads()), corpus(folder.path()));
    let mut params = model.init(DType::F32, 1);
    let entry = model.layout().entry(model.head()).clone();
    params.set_master(model.head(), &vec![0.0; entry.shape.elems()]);
    let scores = judged(&model, &params, &corpus);
    near(&scores, "energy.auroc.logprob", 0.5, 0.0);
    assert_eq!(scores["energy.brier_lm.lm"], 0.0, "nothing is drawn twice");
    assert!(scores["self_model.loss_r2.entropy"].is_finite(), "{scores:?}");
    let at = model.layout().entries().iter().position(|e| e.name == "nanochat.energy.query.weight").unwrap();
    let elems = model.layout().entries()[at].shape.elems();
    params.set_master(ParamId(at as u32), &nanochat_gpu::verify::normals("queries", elems));
    let told = judged(&model, &params, &corpus)["energy.auroc"];
    assert!(told != 0.5 && (0.0..=1.0).contains(&told), "{told}");
}
