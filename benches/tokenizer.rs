//! Training and encoding, beside the `tokenizers` and `tiktoken-rs` crates on the same text and vocabulary.
//!
//! `cargo bench --bench tokenizer`. The text is `.fixtures/shakespeare/*.txt` (5 MB), or a small invented one where that
//! is missing. `NANOCHAT_BENCH_SMOKE=1` takes little text and few samples. Encoding uses one thread, training all.

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use nanochat_gpu::tokenizer::{Codec, Pattern, Tokenizer, TrainSpec, train};
use std::hint::black_box;
use std::time::Duration;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;

const VOCAB_SIZE: usize = 4096;

fn is_smoke() -> bool {
    std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some_and(|value| value == "1")
}

/// The documents: Shakespeare's works, one a file, or invented ones.
fn documents() -> Vec<String> {
    let mut paths: Vec<_> = std::fs::read_dir(".fixtures/shakespeare")
        .map(|folder| folder.filter_map(|file| Some(file.ok()?.path())).collect())
        .unwrap_or_default();
    paths.sort();
    let mut documents: Vec<String> = paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    if documents.is_empty() || is_smoke() {
        documents =
            (0..20).map(|i| format!("{i} To be, or not to be: that's the question {}.\n", i * 77).repeat(50)).collect();
    }
    documents
}

fn hugging_face_vocabulary(documents: &[String]) -> usize {
    let pattern = SplitPattern::Regex(Pattern::Gpt4.regex().to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("our own expression");
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()])));
    let alphabet = ByteLevel::alphabet().into_iter().collect();
    let trainer = BpeTrainer::builder().vocab_size(VOCAB_SIZE).show_progress(false).initial_alphabet(alphabet).build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), documents.iter()).expect("trains on text");
    tokenizer.get_vocab_size(false)
}

fn group<'a>(criterion: &'a mut Criterion, name: &str, bytes: usize, samples: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes as u64)).sample_size(if is_smoke() { 10 } else { samples });
    if is_smoke() {
        group.warm_up_time(Duration::from_millis(10)).measurement_time(Duration::from_millis(50));
    }
    group
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let documents = documents();
    let text = documents.concat();
    let spec = TrainSpec::new(VOCAB_SIZE);

    let mut training = group(&mut criterion, "train_4096", text.len(), 10);
    training.bench_function("ours", |b| b.iter(|| train(black_box(&documents).iter(), &spec).expect("there is text")));
    training.bench_function("tokenizers", |b| b.iter(|| hugging_face_vocabulary(black_box(&documents))));
    training.finish();

    let ranks = |bpe: &tiktoken_rs::CoreBPE, size: u32| -> Vec<(Vec<u8>, u32)> {
        (0..size).map(|id| (bpe.decode_bytes(&[id]).expect("ids below size are tokens"), id)).collect()
    };
    let build = |ranks, pattern| Tokenizer::from_ranks(ranks, [], pattern).expect("a vocabulary in use");
    let own = train(documents.iter(), &spec).expect("there is text").0;
    let own_ranks: Vec<(Vec<u8>, u32)> = own.ordinary_tokens().map(|(bytes, id)| (bytes.to_vec(), id)).collect();
    let cl100k = tiktoken_rs::cl100k_base_singleton();
    let gpt2 = tiktoken_rs::r50k_base_singleton();
    let theirs_own = tiktoken_rs::CoreBPE::new(
        own_ranks.into_iter().collect(),
        Default::default(),
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    )
    .expect("our vocabulary in tiktoken's form");
    let cases = [
        ("encode_cl100k", build(ranks(cl100k, 100_256), Pattern::Gpt4), cl100k),
        ("encode_gpt2", build(ranks(gpt2, 50_256), Pattern::Gpt2), gpt2),
        ("encode_own_4096", own, &theirs_own),
    ];
    for (name, ours, theirs) in cases {
        assert_eq!(ours.encode(text.as_bytes()), theirs.encode_ordinary(&text), "both encode alike");
        let mut encoding = group(&mut criterion, name, text.len(), 10);
        encoding.bench_function("ours", |b| b.iter(|| ours.encode(black_box(text.as_bytes()))));
        encoding.bench_function("tiktoken", |b| b.iter(|| theirs.encode_ordinary(black_box(&text))));
        encoding.finish();
    }
    criterion.final_summary();
}
