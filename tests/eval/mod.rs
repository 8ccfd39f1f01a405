//! Bits per byte against counts and probabilities worked out independently, where evaluation ends, and the command.

mod heads;
mod scores;

use crate::data::{BOS, assert_user_error, codec, lines, options, shown, write};
use crate::infer::{random_params, save_checkpoint, small_model};
use crate::tokenizer::small;
use clap::{Args, FromArgMatches};
use nanochat_gpu::cli::eval;
use nanochat_gpu::data::{Batch, ChatTargets, Corpus, IGNORE, LoaderOptions, Packing};
use nanochat_gpu::eval::{Evaluation, bits_per_byte};
use nanochat_gpu::model::Gpt;
use nanochat_gpu::model::gpt::Rows;
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Params};
use nanochat_gpu::tokenizer::{Codec, Message, Pattern};
use std::sync::Arc;

fn evaluate(model: &Gpt, params: &Params, corpus: &Corpus, tokens_max: usize) -> anyhow::Result<Evaluation> {
    let arena = Arena::new(256 << 20).unwrap();
    bits_per_byte(model, params, &arena, &mut corpus.packer(None).unwrap(), tokens_max)
}

/// The batches before the second epoch.
fn first_epoch(corpus: &Corpus) -> Vec<Batch> {
    let mut packer = corpus.packer(None).unwrap();
    std::iter::from_fn(|| Some(packer.next_batch().unwrap())).take_while(|batch| batch.epoch == 0).collect()
}

#[test]
fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Arc::new(small(Pattern::Gpt4));
    let (vocab, bos) = (tokenizer.vocab_size(), tokenizer.bos().unwrap());
    let text: String = (0..300).map(|i| format!("{{\"text\": \"naïve the word {i} 日本語 and then\"}}\n")).collect();
    let specs = [shown(&write(folder.path(), "a.jsonl", text))];
    let model = small_model(vocab, 24);
    let mut params = random_params(&model, DType::F32);
    params.master_entry_mut(model.head()).as_mut_slice::<f32>().fill(0.0);
    for packing in [Packing::Bos, Packing::Stream] {
        let corpus = Corpus::open(&specs, tokenizer.clone(), LoaderOptions { packing, ..options(3, 24) }).unwrap();
        let (mut all, mut with_bytes, mut bytes) = (0, 0, 0);
        for &target in first_epoch(&corpus).iter().flat_map(|batch| &batch.targets) {
            all += 1;
            if target != bos {
                with_bytes += 1;
                bytes += tokenizer.decode(&[target]).len();
            }
        }
        assert!(all > with_bytes && bytes > with_bytes, "BOS and tokens of several bytes are among the targets");
        let made = evaluate(&model, &params, &corpus, usize::MAX).unwrap();
        let expected = (vocab as f64).log2() * with_bytes as f64 / bytes as f64;
        assert!((made.bits_per_byte - expected).abs() <= 1e-6 * expected, "{} {expected}", made.bits_per_byte);
        assert!((made.loss - (vocab as f64).ln()).abs() <= 1e-6, "{}", made.loss);
        assert_eq!((made.tokens, made.bytes), (all, bytes as u64));
    }
}

#[test]
fn losses_are_those_of_the_logits_and_ignored_targets_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let chat = |i: usize| {
        let messages = [Message::new("user", &format!("say {i}")), Message::new("assistant", &format!("it is {i}"))];
        format!("{}\n", serde_json::json!({"messages": messages}))
    };
    let specs = [shown(&write(folder.path(), "chats.jsonl", (0..80).map(chat).collect::<String>()))];
    let model = small_model(codec().vocab_size(), 40);
    let params = random_params(&model, DType::F32);
    let options = LoaderOptions { chat_targets: ChatTargets::Assistant, ..options(2, 40) };
    let corpus = Corpus::open(&specs, codec(), options).unwrap();
    let arena = Arena::new(256 << 20).unwrap();
    let (mut nats, mut byte_nats, mut tokens, mut bytes, mut ignored) = (0.0, 0.0, 0, 0u64, 0);
    for batch in first_epoch(&corpus) {
        let rows = Rows::new(&arena, &batch.tokens, batch.seq_len, None);
        let logits = model.logits(&mut Tape::inference(&arena, &params), &rows).to_f64();
        for (logits, &target) in logits.chunks(model.config().vocab_size).zip(&batch.targets) {
            if target == IGNORE {
                ignored += 1;
                continue;
            }
            let loss = logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize];
            (nats, tokens) = (nats + loss, tokens + 1);
            // An id of this codec is a byte, or one of the special tokens after them.
            if target < BOS {
                (byte_nats, bytes) = (byte_nats + loss, bytes + 1);
            }
        }
    }
    assert!(ignored > tokens / 2 && tokens as u64 > bytes && bytes > 0, "{ignored} {tokens} {bytes}");
    let made = evaluate(&model, &params, &corpus, usize::MAX).unwrap();
    let (loss, bits) = (nats / tokens as f64, byte_nats / std::f64::consts::LN_2 / bytes as f64);
    assert!((made.loss - loss).abs() <= 1e-5 * loss, "{} {loss}", made.loss);
    assert!((made.bits_per_byte - bits).abs() <= 1e-5 * bits, "{} {bits}", made.bits_per_byte);
    assert_eq!((made.tokens, made.bytes), (tokens, bytes));
}

#[test]
fn evaluation_ends_at_the_limit_or_with_the_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [lines(folder.path(), "a.jsonl", 40)];
    let model = small_model(codec().vocab_size(), 16);
    let params = random_params(&model, DType::F32);
    let corpus = Corpus::open(&specs, codec(), options(4, 16)).unwrap();
    let of = |tokens_max| evaluate(&model, &params, &corpus, tokens_max).unwrap();
    let batches = first_epoch(&corpus).len();
    assert!(batches > 4);
    for (tokens_max, expected) in [(1, 64), (64, 64), (127, 64), (128, 128), (200, 192)] {
        assert_eq!(of(tokens_max).tokens, expected, "at most {tokens_max}");
    }
    assert_eq!(of(usize::MAX).tokens, 64 * batches);
    assert_eq!(of(200), of(200));
    // One batch is more than an epoch of the smaller source: it counts all the same.
    let specs = [&specs[..], &[lines(folder.path(), "b.jsonl", 1) + "@30"]].concat();
    let corpus = Corpus::open(&specs, codec(), options(40, 16)).unwrap();
    assert!(corpus.packer(None).unwrap().next_batch().unwrap().epoch > 0);
    assert_eq!(evaluate(&model, &params, &corpus, usize::MAX).unwrap().tokens, 640);
}

#[test]
fn rows_and_ids_beyond_the_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = Corpus::open(&[lines(folder.path(), "a.jsonl", 40)], codec(), options(2, 16)).unwrap();
    let of = |model: Gpt| evaluate(&model, &random_params(&model, DType::F32), &corpus, 100);
    assert_user_error(of(small_model(280, 15)), &["16 tokens", "context 15", "seq_len"]);
    assert_user_error(of(small_model(50, 16)), &["vocabulary 50"]);
}

#[test]
fn the_command_evaluates_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = small(Pattern::Gpt4);
    let model = small_model(tokenizer.vocab_size(), 32);
    save_checkpoint(folder.path(), &model, &random_params(&model, DType::F32), Some(&tokenizer));
    let (dir, data) = (shown(folder.path()), lines(folder.path(), "a.jsonl", 400));
    let of = |more: &[&str]| {
        let words = [&["--checkpoint", &dir, "--tokens", "200", "--data", &data], more].concat();
        let parser = eval::EvalCommand::augment_args(clap::Command::new("eval").no_binary_name(true));
        assert!(parser.get_after_help().unwrap().to_string().contains("Example"));
        eval::run(eval::EvalCommand::from_arg_matches(&parser.try_get_matches_from(words)?)?)
    };
    of(&["--val-fraction", "0.5", "--json"]).unwrap();
    of(&["--split", "train", "--rows", "2", "--seq-len", "7"]).unwrap();
    assert_user_error(of(&["--seq-len", "33"]), &["--seq-len is 33", "context 32"]);
    assert_user_error(of(&["--rows", "0"]), &["--rows"]);
    assert_user_error(of(&["--data", "absent.txt"]), &["absent.txt"]);
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_user_error(of(&[]), &["tokenizer.json"]);
}
