//! Training: equal to a naive trainer, the same on any number of threads, and of the size asked for.

use super::{AWKWARD, assert_round_trip, broken_text, small};
use nanochat_gpu::tokenizer::{Codec, Pattern, SPECIALS, Tokenizer, TrainError, TrainSpec, train};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn spec(vocab_size: usize, pattern: &str) -> TrainSpec {
    TrainSpec { vocab_size, pattern: Pattern::from_regex(pattern), specials: vec!["<|end|>".into()] }
}

/// Merges as pairs of ids, by counting every pair afresh before each merge.
fn naive_merges(documents: &[Vec<u8>], pattern: &str, merges_max: usize) -> Vec<(u32, u32)> {
    let regex = fancy_regex::Regex::new(pattern).unwrap();
    let mut pieces: Vec<Vec<u32>> = Vec::new();
    for chunk in documents.iter().flat_map(|document| document.utf8_chunks()) {
        let valid = regex.find_iter(chunk.valid()).map(|found| found.unwrap().as_str().as_bytes());
        pieces.extend(valid.chain([chunk.invalid()]).map(|piece| piece.iter().map(|byte| u32::from(*byte)).collect()));
    }
    let mut merges = Vec::new();
    while merges.len() < merges_max {
        let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        pieces.iter().flat_map(|piece| piece.windows(2)).for_each(|w| *counts.entry((w[0], w[1])).or_default() += 1);
        // Of equal counts the smallest pair: the first in the map's order, so later ones must be strictly greater.
        let mut best: Option<((u32, u32), usize)> = None;
        for (pair, count) in counts {
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((pair, count));
            }
        }
        let Some((pair, _)) = best else { break };
        let id = 256 + merges.len() as u32;
        merges.push(pair);
        for piece in &mut pieces {
            let mut at = 0;
            while at + 1 < piece.len() {
                if (piece[at], piece[at + 1]) == pair {
                    piece.splice(at..at + 2, [id]);
                }
                at += 1;
            }
        }
    }
    merges
}

fn merges_of(tokenizer: &Tokenizer) -> Vec<(u32, u32)> {
    tokenizer.merges().iter().map(|merge| (merge.left, merge.right)).collect()
}

fn assert_equals_naive(documents: &[Vec<u8>], pattern: &str, merges: usize) {
    if documents.iter().all(Vec::is_empty) {
        return;
    }
    let (tokenizer, report) = train(documents.iter(), &spec(257 + merges, pattern)).unwrap();
    let expected = naive_merges(documents, pattern, merges);
    assert_eq!(merges_of(&tokenizer), expected);
    assert_eq!(report.vocab_size, 257 + expected.len());
    assert_eq!(report.ran_out_of_pairs(), expected.len() < merges);
}

#[test]
fn awkward_texts_train_as_the_naive_trainer_does() {
    let documents: Vec<Vec<u8>> = AWKWARD.iter().map(|text| text.as_bytes().to_vec()).collect();
    for pattern in [Pattern::Gpt2, Pattern::Gpt4, Pattern::Qwen2] {
        assert_equals_naive(&documents, pattern.regex(), 300);
    }
    for run in ["aaaaaaaaaaa aaaaa aaaa aaa", "abababab bababa aabbaabb", "xyxxyxxxyxxxxyxxxxxy", "aaab aaab baaa"] {
        assert_equals_naive(&[run.as_bytes().to_vec()], Pattern::Gpt4.regex(), 50);
        assert_equals_naive(&[run.as_bytes().to_vec()], r"(?s).+", 50);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn few_letters_train_as_the_naive_trainer_does(documents in proptest::collection::vec("[abc ]{0,60}", 1..5)) {
        let documents: Vec<Vec<u8>> = documents.into_iter().map(String::into_bytes).collect();
        assert_equals_naive(&documents, r"(?s).+", 40);
        assert_equals_naive(&documents, Pattern::Gpt4.regex(), 40);
    }

    #[test]
    fn any_bytes_train_as_the_naive_trainer_does(documents in proptest::collection::vec(broken_text(), 1..4)) {
        assert_equals_naive(&documents, Pattern::Gpt4.regex(), 30);
    }
}

/// About a megabyte of words of an invented language, in documents of very different lengths.
fn documents() -> Vec<String> {
    let mut state = 12345u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let syllables = ["ka", "to", "mi", "ne", "shu", "ra", "lo", "ve", "é", "st", "in", "g"];
    (0..40)
        .map(|i| {
            let words = if i == 7 { 100_000 } else { 20 * i };
            let mut text = String::new();
            for _ in 0..words {
                let len = 1 + next(4).min(next(4));
                (0..len).for_each(|_| text.push_str(syllables[(next(12) * next(12) / 12) as usize]));
                text.push_str([" ", " ", " ", " ", "\n", ", ", ".\n\n", " 12", "  "][next(9) as usize]);
            }
            text
        })
        .collect()
}

#[test]
fn threads_and_order_change_nothing() {
    let documents = documents();
    let mut reversed = documents.clone();
    reversed.reverse();
    for pattern in [Pattern::Gpt2, Pattern::Gpt4, Pattern::Qwen2] {
        let spec = TrainSpec { pattern, ..TrainSpec::new(1000) };
        let digests: Vec<String> = [1, 2, 3]
            .into_iter()
            .flat_map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                [&documents, &reversed]
                    .map(|documents| pool.install(|| train(documents.iter(), &spec)).unwrap().0.digest())
            })
            .collect();
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    }
}

#[test]
fn cutting_long_documents_changes_nothing() {
    let long = &documents()[7];
    assert!(long.len() > 3 * (128 << 10), "long enough to be cut");
    for named in [Pattern::Gpt2, Pattern::Gpt4] {
        // The custom spelling runs as a regular expression, for which documents are never cut.
        let whole = TrainSpec { pattern: Pattern::Custom(named.regex().to_owned()), ..TrainSpec::new(600) };
        let cut = TrainSpec { pattern: named, ..TrainSpec::new(600) };
        let merges = |spec| merges_of(&train([long].into_iter(), spec).unwrap().0);
        assert_eq!(merges(&cut), merges(&whole));
    }
}

#[test]
fn the_vocabulary_is_bytes_then_merges_then_specials() {
    let tokenizer = small(Pattern::Gpt4);
    assert_eq!(tokenizer.vocab_size(), 500);
    for byte in 0..=255u8 {
        assert_eq!(tokenizer.token_bytes(u32::from(byte)), Some(&[byte][..]));
    }
    for (i, name) in SPECIALS.iter().enumerate() {
        assert_eq!(tokenizer.special(name), Some((500 - SPECIALS.len() + i) as u32));
    }
    assert_eq!(tokenizer.bos(), tokenizer.special("<|bos|>"));
    AWKWARD.iter().for_each(|text| assert_round_trip(&tokenizer, text.as_bytes()));
}

#[test]
fn a_larger_vocabulary_begins_with_the_smaller_and_encodes_shorter() {
    let documents = documents();
    let mut smaller_merges = Vec::new();
    let mut smaller_ids = usize::MAX;
    for vocab_size in [300, 400, 700, 1200] {
        let (tokenizer, report) = train(documents.iter(), &TrainSpec::new(vocab_size)).unwrap();
        assert_eq!((tokenizer.vocab_size(), report.ran_out_of_pairs()), (vocab_size, false));
        let merges = merges_of(&tokenizer);
        assert!(merges.starts_with(&smaller_merges));
        let ids = tokenizer.encode(documents[7].as_bytes()).len();
        assert!(ids < smaller_ids, "{ids} ids at {vocab_size}, {smaller_ids} before");
        (smaller_merges, smaller_ids) = (merges, ids);
    }
}

#[test]
fn running_out_of_pairs_is_reported() {
    let (tokenizer, report) = train(["abc abc"].into_iter(), &TrainSpec::new(1000)).unwrap();
    assert!(report.ran_out_of_pairs());
    assert_eq!(report.vocab_size, tokenizer.vocab_size());
    assert_eq!((report.documents, report.bytes, report.distinct_pieces), (1, 7, 2));
    // "ab", "abc", " abc": nothing else can merge.
    assert_eq!(tokenizer.vocab_size(), 256 + 3 + SPECIALS.len());
    assert_eq!(tokenizer.special("<|bos|>"), Some(259));
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    let minimum = 256 + SPECIALS.len();
    let small = TrainSpec::new(minimum - 1);
    assert_eq!(
        train(["abc"].into_iter(), &small).unwrap_err(),
        TrainError::VocabularyTooSmall { requested: minimum - 1, minimum }
    );
    assert_eq!(train(["abc"].into_iter(), &TrainSpec::new(minimum)).unwrap().0.vocab_size(), minimum);
    assert_eq!(train([""].into_iter(), &TrainSpec::new(300)).unwrap_err(), TrainError::EmptyCorpus);
    assert_eq!(train([""; 0].into_iter(), &TrainSpec::new(300)).unwrap_err(), TrainError::EmptyCorpus);
    assert!(matches!(train(["abc"].into_iter(), &spec(300, "(")).unwrap_err(), TrainError::Vocabulary(_)));
}
