//! Scores of continuations against numbers worked out from logits, which one is better, and the command that prints the best.

use super::{random_params, save_checkpoint, small_model};
use crate::data::{assert_user_error, shown};
use crate::tokenizer::small;
use clap::{Args, FromArgMatches};
use nanochat_gpu::cli::sample;
use nanochat_gpu::infer::Rerank;
use nanochat_gpu::model::energy::EnergyConfig;
use nanochat_gpu::model::gpt::Rows;
use nanochat_gpu::model::latent::LatentConfig;
use nanochat_gpu::model::{Gpt, Parts};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType};
use nanochat_gpu::tokenizer::{Codec, Pattern};
use nanochat_gpu::verify::integers;

fn with_energy(vocab_size: usize, context: usize) -> Gpt {
    let latent = LatentConfig { enabled: true, width: 16, ..LatentConfig::default() };
    let parts = Parts { latent, energy: EnergyConfig { enabled: true, width: 16 }, ..Parts::default() };
    let mut config = small_model(vocab_size, context).config().clone();
    config.parts = parts;
    Gpt::new(config, DType::F32).unwrap()
}

#[test]
fn a_log_probability_is_that_of_the_tokens_after_the_prompt() {
    let model = small_model(31, 32);
    let params = random_params(&model, DType::F32);
    let (prompt, tokens) = (integers("prompt", 5, 31), integers("tokens", 21, 31));
    let (text, arena) = ([&prompt[..], &tokens].concat(), Arena::new(64 << 20).unwrap());
    let logits =
        model.logits(&mut Tape::inference(&arena, &params), &Rows::new(&arena, &text, text.len(), None)).to_f64();
    let nats = |i: usize| {
        logits[(4 + i) * 31 + tokens[i] as usize]
            - logits[(4 + i) * 31..][..31].iter().map(|l| l.exp()).sum::<f64>().ln()
    };
    let want = (0..21).map(nats).sum::<f64>() / 21.0;
    let got = Rerank::Logprob.score(&model, &params, &prompt, &tokens).unwrap().unwrap();
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    assert_eq!(Rerank::Logprob.score(&model, &params, &prompt, &[]).unwrap(), None);
}

/// Of a prompt of 5, the whole chunks that follow are those at 8 and 12.
#[test]
fn an_energy_is_of_whole_chunks_of_the_continuation() {
    let model = with_energy(31, 32);
    let params = random_params(&model, DType::F32);
    let (prompt, tokens) = (integers("prompt", 5, 31), integers("tokens", 11, 31));
    let of = |prompt: &[u32], tokens: &[u32]| Rerank::Energy.score(&model, &params, prompt, tokens).unwrap();
    let all = of(&prompt, &tokens).unwrap();
    let first = of(&prompt, &tokens[..7]).unwrap();
    let second = of(&[&prompt[..], &tokens[..7]].concat(), &tokens[7..]).unwrap();
    assert!((all - (first + second) / 2.0).abs() < 1e-5 && (first - second).abs() > 1e-3, "{all} {first} {second}");
    assert_eq!(of(&prompt, &tokens[..6]), None, "no chunk is whole");
    assert_eq!(of(&prompt, &tokens[..10]).unwrap(), first, "nor is the second");
    let mut other = tokens.clone();
    other[1] ^= 1;
    assert_ne!(of(&prompt, &other[..7]).unwrap(), first, "the context counts");
}

#[test]
fn the_lowest_energy_and_the_highest_probability_are_best() {
    for (rerank, better) in [(Rerank::Energy, [-2.0, -1.0]), (Rerank::Logprob, [-1.0, -2.0])] {
        let [better, worse] = better.map(Some);
        assert!(rerank.is_better(better, worse) && !rerank.is_better(worse, better) && !rerank.is_better(worse, worse));
        assert!(rerank.is_better(worse, None) && !rerank.is_better(None, worse) && !rerank.is_better(None, None));
        assert!(!rerank.is_better(Some(f64::NAN), worse));
    }
}

#[test]
fn the_command_draws_several_and_refuses_what_a_model_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let (tokenizer, dir) = (small(Pattern::Gpt4), shown(folder.path()));
    let draw = |tokens: &str, more: &[&str]| {
        let words = [&["--checkpoint", &dir, "--max-tokens", tokens, "-p", "a cat"], more].concat();
        let parser = sample::SampleCommand::augment_args(clap::Command::new("sample").no_binary_name(true));
        sample::run(sample::SampleCommand::from_arg_matches(&parser.try_get_matches_from(words)?)?)
    };
    let of = |more: &[&str]| draw("9", more);
    let plain = small_model(tokenizer.vocab_size(), 32);
    save_checkpoint(folder.path(), &plain, &random_params(&plain, DType::F32), Some(&tokenizer));
    of(&["--best-of", "3", "--rerank", "logprob"]).unwrap();
    assert_user_error(of(&["--best-of", "3", "--rerank", "energy"]), &["no energy head", "energy.enabled=true"]);
    assert_user_error(of(&["--memory", &shown(&folder.path().join("talk"))]), &["memory.enabled=true"]);
    assert!(of(&["--rerank", "energy"]).is_err() && of(&["--best-of", "0"]).is_err());
    let model = with_energy(tokenizer.vocab_size(), 32);
    save_checkpoint(folder.path(), &model, &random_params(&model, DType::F32), Some(&tokenizer));
    of(&["--best-of", "3", "--rerank", "energy", "--json"]).unwrap();
    draw("1", &["--best-of", "2", "--rerank", "energy"]).unwrap();
}
