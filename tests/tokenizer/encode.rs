//! Encoding: equal to tiktoken on every text, exact round trip on every byte string, no blow-up on long runs.

use super::{AWKWARD, CL100K, GPT2, assert_round_trip, broken_text, encode_with_special, mixed_text, small};
use nanochat_gpu::tokenizer::{Codec, Merge, Pattern, Tokenizer, TokenizerParts, VocabularyError};
use proptest::prelude::*;
use tiktoken_rs::{cl100k_base_singleton, r50k_base_singleton};

fn assert_equals_tiktoken(text: &str) {
    assert_eq!(CL100K.encode(text.as_bytes()), cl100k_base_singleton().encode_ordinary(text), "cl100k {text:?}");
    assert_eq!(GPT2.encode(text.as_bytes()), r50k_base_singleton().encode_ordinary(text), "gpt2 {text:?}");
}

#[test]
fn awkward_strings_equal_tiktoken() {
    AWKWARD.iter().for_each(|text| assert_equals_tiktoken(text));
    assert_equals_tiktoken(&AWKWARD.join(" "));
    assert_equals_tiktoken(&AWKWARD.join("\n"));
    // Again, with the pieces in the cache.
    AWKWARD.iter().for_each(|text| assert_equals_tiktoken(text));
}

#[test]
fn every_character_equals_tiktoken_among_neighbours() {
    // Each character once, between a letter, a digit and spaces; a step that divides no block visits all kinds.
    let mut text = String::new();
    for code in (0..0x11_0000).step_by(3) {
        if let Some(c) = char::from_u32(code) {
            text.extend(["a", "1 ", " ", "\n", "'"][code as usize % 5].chars().chain([c]));
        }
        if text.len() > 4096 {
            assert_equals_tiktoken(&text);
            text.clear();
        }
    }
    assert_equals_tiktoken(&text);
}

#[test]
fn every_tiktoken_token_has_a_merge_or_is_a_byte() {
    assert_eq!(CL100K.merges().len(), 100_000);
    assert_eq!(GPT2.merges().len(), 50_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn mixed_text_equals_tiktoken(text in mixed_text()) {
        assert_equals_tiktoken(&text);
    }

    #[test]
    fn every_byte_string_round_trips(bytes in broken_text()) {
        assert_round_trip(&CL100K, &bytes);
        assert_round_trip(&GPT2, &bytes);
    }

    #[test]
    fn named_splitters_equal_their_expressions(text in mixed_text()) {
        for (named, custom) in SMALL.iter() {
            prop_assert_eq!(named.encode(text.as_bytes()), custom.encode(text.as_bytes()), "{}", named.pattern().name());
        }
    }
}

/// For every named pattern, a vocabulary with the hand-written splitter and the same with the regular expression.
static SMALL: std::sync::LazyLock<Vec<(Tokenizer, Tokenizer)>> = std::sync::LazyLock::new(|| {
    Pattern::named()
        .map(|pattern| {
            let named = small(pattern.clone());
            let custom = parts(&named, Pattern::Custom(pattern.regex().to_owned()));
            (named, Tokenizer::new(custom).unwrap())
        })
        .collect()
});

fn parts(tokenizer: &Tokenizer, pattern: Pattern) -> TokenizerParts {
    TokenizerParts {
        tokens: tokenizer.ordinary_tokens().map(|(bytes, id)| (bytes.to_vec(), id)).collect(),
        merges: tokenizer.merges().to_vec(),
        specials: tokenizer.specials().to_vec(),
        pattern,
        whole_pieces: false,
        unknown: None,
    }
}

#[test]
fn invalid_bytes_are_pieces_of_their_own() {
    // The text before a broken character ends there for the pattern: its trailing spaces are one piece.
    let expected = [CL100K.encode(b"hi  "), CL100K.encode(&[0xE2, 0x82]), CL100K.encode(b" you")].concat();
    assert_eq!(CL100K.encode(b"hi  \xE2\x82 you"), expected);
    assert_round_trip(&CL100K, &(0..=255).collect::<Vec<u8>>());
    assert_round_trip(&GPT2, &(0..=255).rev().cycle().take(3000).collect::<Vec<u8>>());
}

#[test]
fn a_custom_pattern_that_leaves_text_out_loses_nothing() {
    let tokenizer = Tokenizer::new(parts(&small(Pattern::Gpt4), Pattern::Custom(r"[a-z]+|x*".into()))).unwrap();
    assert_round_trip(&tokenizer, b"ONE two 3 four ... FIVE");
    assert_round_trip(&tokenizer, "ü two é".as_bytes());
}

#[test]
fn long_runs_merge_in_good_time_and_right() {
    // A quadratic merge would take hours on the first ones, and tiktoken's expression overflows its stack on the spaces.
    let letters: String =
        (0..1_000_000u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    for text in [letters.clone(), "a".repeat(1_000_000), " ".repeat(1_000_000), "\n ".repeat(500_000)] {
        assert_round_trip(&CL100K, text.as_bytes());
        assert_round_trip(&GPT2, format!("{text}x").as_bytes());
    }
    for text in [&letters[..100_000], &"=".repeat(100_000), &"本".repeat(30_000), &" ".repeat(5_000)] {
        assert_equals_tiktoken(text);
        assert_equals_tiktoken(&format!("{text}x"));
    }
}

#[test]
fn scan_and_heap_agree_around_the_limit() {
    for len in 1..140 {
        assert_equals_tiktoken(&"abracadabrasimsalabim".chars().cycle().take(len).collect::<String>());
    }
}

#[test]
fn special_tokens_are_recognised_only_on_request() {
    let text = "<|endoftext|>Hello<|endofprompt|><|endoftext|> <|endoftext> x";
    assert_eq!(encode_with_special(&CL100K, text.as_bytes()), cl100k_base_singleton().encode_with_special_tokens(text));
    assert_eq!(CL100K.encode(text.as_bytes()), cl100k_base_singleton().encode_ordinary(text));
    assert_eq!(CL100K.decode(&[100_257, 9906, 100_276]), b"<|endoftext|>Hello<|endofprompt|>");
    assert_eq!(
        encode_with_special(&CL100K, b"\xFF<|endoftext|>\xFF"),
        [CL100K.encode(b"\xFF"), vec![100_257], CL100K.encode(b"\xFF")].concat()
    );
}

#[test]
fn the_longest_special_token_wins() {
    let mut with_two = parts(&small(Pattern::Gpt4), Pattern::Gpt4);
    with_two.specials = vec![("<s>".into(), 600), ("<s><s>".into(), 601)];
    let tokenizer = Tokenizer::new(with_two).unwrap();
    assert_eq!(encode_with_special(&tokenizer, b"<s><s><s>"), [601, 600]);
    assert_eq!(tokenizer.vocab_size(), 602);
    assert_eq!(tokenizer.token_bytes(599), None);
    assert_eq!(tokenizer.token_bytes(602), None);
    assert_eq!(tokenizer.bos(), Some(600));
}

#[test]
fn threads_share_one_tokenizer() {
    let expected: Vec<Vec<u32>> = AWKWARD.iter().map(|text| GPT2.encode(text.as_bytes())).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (text, ids) in AWKWARD.iter().zip(&expected) {
                    assert_eq!(GPT2.encode(text.as_bytes()), *ids);
                }
            });
        }
    });
}

#[test]
fn the_digest_tells_content_apart() {
    let base = small(Pattern::Gpt4);
    assert_eq!(base.digest(), Tokenizer::new(parts(&base, Pattern::Gpt4)).unwrap().digest());
    assert_eq!(base.digest().len(), 64);
    let mut others = vec![parts(&base, Pattern::Qwen2)];
    let mut shorter = parts(&base, Pattern::Gpt4);
    shorter.merges.pop();
    others.push(shorter);
    let mut renamed = parts(&base, Pattern::Gpt4);
    renamed.specials[0].0 = "<|eos|>".into();
    others.push(renamed);
    let mut swapped = parts(&base, Pattern::Gpt4);
    swapped.merges.swap(0, 1);
    others.push(swapped);
    for other in others {
        assert_ne!(base.digest(), Tokenizer::new(other).unwrap().digest());
    }
}

#[test]
fn impossible_vocabularies_are_refused() {
    let good = || parts(&small(Pattern::Gpt4), Pattern::Gpt4);
    let refused = |change: &dyn Fn(&mut TokenizerParts)| {
        let mut parts = good();
        change(&mut parts);
        Tokenizer::new(parts).expect_err("the change makes it impossible")
    };
    assert_eq!(refused(&|p| p.tokens.retain(|(bytes, _)| bytes != b"q")), VocabularyError::MissingByte(b'q'));
    assert_eq!(refused(&|p| p.tokens.push((vec![], 700))), VocabularyError::EmptyToken(700));
    assert_eq!(refused(&|p| p.tokens.push((b"new".to_vec(), 97))), VocabularyError::DuplicateId(97));
    assert_eq!(refused(&|p| p.specials.push(("<|x|>".into(), 97))), VocabularyError::DuplicateId(97));
    assert_eq!(refused(&|p| p.specials.push(("<|x|>".into(), u32::MAX))), VocabularyError::IdTooLarge(u32::MAX));
    assert!(matches!(refused(&|p| p.tokens.push((b"a".to_vec(), 700))), VocabularyError::DuplicateToken(97, 700)));
    assert!(matches!(refused(&|p| p.specials.push(("<|bos|>".into(), 700))), VocabularyError::DuplicateToken(..)));
    let merge = |left, right, result| Merge { left, right, result };
    assert_eq!(refused(&|p| p.merges.insert(0, merge(1, 2, 3))), VocabularyError::BadMerge(0));
    assert_eq!(refused(&|p| p.merges.insert(0, merge(1, 9999, 3))), VocabularyError::BadMerge(0));
    assert_eq!(refused(&|p| p.merges.insert(1, p.merges[0])), VocabularyError::RepeatedMerge(1));
    assert!(matches!(refused(&|p| p.pattern = Pattern::Custom("(".into())), VocabularyError::BadPattern(_)));
}
