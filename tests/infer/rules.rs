//! Rules: what a grammar lets through always parses, banned strings never come, one line for what cannot be met.

use crate::data::assert_user_error;
use nanochat_gpu::data::random::Draw;
use nanochat_gpu::infer::rules::{All, Banned, GrammarSpec, Grammars, Rules};
use nanochat_gpu::tokenizer::{Codec, Tokenizer, TrainSpec, train};

/// A small tokenizer of English and JSON.
fn tokenizer() -> Tokenizer {
    let text = "the cat sat on the mat {\"name\": \"Ann\", \"age\": 41, \"tags\": [\"a\", \"b\"], \"ok\": true} banana bandana \n";
    train([text.repeat(50)].into_iter(), &TrainSpec::new(400)).unwrap().0
}

/// Draws tokens at random among those that the rules allow, until they say that the text is over; none after `most` tokens.
fn draw(rules: &mut dyn Rules, codec: &dyn Codec, end: u32, draw: &mut Draw, most: usize) -> Option<String> {
    let mut bytes = Vec::new();
    for _ in 0..most {
        let mut logits = vec![0.0f32; codec.vocab_size() + 7];
        rules.mask(&mut logits).unwrap();
        let allowed: Vec<u32> = (0..logits.len() as u32).filter(|&id| logits[id as usize] == 0.0).collect();
        assert!(allowed.iter().all(|&id| (id as usize) < codec.vocab_size()), "a padding row was allowed");
        // The end where it may come, now and then: a random text hardly ever finds it.
        let token = if allowed.contains(&end) && draw.below(2) == 0 { end } else { *draw.pick(&allowed) };
        if token == end {
            return Some(String::from_utf8(bytes).expect("a grammar of characters"));
        }
        bytes.extend_from_slice(codec.token_bytes(token).unwrap());
        if rules.accept(token).unwrap() {
            return Some(String::from_utf8(bytes).expect("a grammar of characters"));
        }
    }
    None
}

#[test]
fn what_a_schema_lets_through_parses_and_fits() {
    let tokenizer = tokenizer();
    let end = tokenizer.special("<|assistant_end|>").unwrap();
    let grammars = Grammars::new(&tokenizer, end).unwrap();
    let schema = r#"{"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}, "ok": {"type": "boolean"}},
        "required": ["name", "age", "tags"], "additionalProperties": false}"#;
    let mut ended = 0;
    for seed in 0..200 {
        let mut rules = grammars.rules(&GrammarSpec::JsonSchema(schema.into())).unwrap();
        let Some(text) = draw(&mut rules, &tokenizer, end, &mut Draw::new(&[seed]), 400) else { continue };
        ended += 1;
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(["Ann", "Bob"].contains(&value["name"].as_str().unwrap()), "{text}");
        assert!((0..=120).contains(&value["age"].as_i64().unwrap()), "{text}");
        let tags = value["tags"].as_array().unwrap();
        assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "b"), "{text}");
        assert!(value.as_object().unwrap().keys().all(|key| ["name", "age", "tags", "ok"].contains(&key.as_str())));
    }
    assert!(ended > 100, "{ended} of 200 came to an end");
}

#[test]
fn regular_expressions_and_choices_match_whole() {
    let tokenizer = tokenizer();
    let end = tokenizer.special("<|assistant_end|>").unwrap();
    let grammars = Grammars::new(&tokenizer, end).unwrap();
    let regex = fancy_regex::Regex::new(r"^(cat|[0-9]{2,4})-x?$").unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let mut rules = grammars.rules(&GrammarSpec::Regex("(cat|[0-9]{2,4})-x?".into())).unwrap();
        let text = draw(&mut rules, &tokenizer, end, &mut Draw::new(&[1, seed]), 50).unwrap();
        assert!(regex.is_match(&text).unwrap(), "{text}");
        let choice = GrammarSpec::Choice(vec!["yes".into(), "no (really)".into(), "the cat".into()]);
        let mut rules = grammars.rules(&choice).unwrap();
        seen.insert(draw(&mut rules, &tokenizer, end, &mut Draw::new(&[2, seed]), 50).unwrap());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["no (really)", "the cat", "yes"]);
}

#[test]
fn banned_strings_do_not_come() {
    let tokenizer = tokenizer();
    let banned = ["ban".to_string(), "cat s".to_string(), "\"a\"".to_string()];
    let end = tokenizer.special("<|bos|>").unwrap();
    let text_of = |rules: &mut dyn Rules, seed: u64| {
        let (mut bytes, mut random) = (Vec::new(), Draw::new(&[3, seed]));
        // A walk that loves the letters of the banned strings.
        for _ in 0..300 {
            let mut logits = vec![0.0f32; tokenizer.vocab_size()];
            rules.mask(&mut logits).unwrap();
            let loved = |id: &u32| {
                let word = tokenizer.token_bytes(*id).unwrap_or_default();
                logits[*id as usize] == 0.0 && word.iter().all(|c| b"bancat s\"".contains(c)) && *id != end
            };
            let allowed: Vec<u32> = (0..logits.len() as u32).filter(loved).collect();
            let token = *random.pick(&allowed);
            bytes.extend_from_slice(tokenizer.token_bytes(token).unwrap());
            assert!(!rules.accept(token).unwrap());
        }
        String::from_utf8(bytes).unwrap()
    };
    let mut free = 0;
    for seed in 0..20 {
        let text = text_of(&mut Banned::new(&tokenizer, &banned).unwrap(), seed);
        assert!(banned.iter().all(|string| !text.contains(string.as_str())), "{text}");
        let without = text_of(&mut All(vec![]), seed);
        free += banned.iter().filter(|string| without.contains(string.as_str())).count();
    }
    assert!(free > 20, "without the rule they come: {free}");
}

#[test]
fn what_no_text_meets_is_refused_in_one_line() {
    let tokenizer = tokenizer();
    let grammars = Grammars::new(&tokenizer, tokenizer.special("<|assistant_end|>").unwrap()).unwrap();
    let refused = |spec: GrammarSpec, said: &[&str]| assert_user_error(grammars.rules(&spec).map(drop), said);
    refused(GrammarSpec::JsonSchema("{\"type\":".into()), &["JSON schema is not valid JSON"]);
    refused(GrammarSpec::JsonSchema("{\"type\": \"no such type\"}".into()), &["JSON schema cannot be met"]);
    refused(GrammarSpec::JsonSchema("{\"enum\": []}".into()), &["JSON schema cannot be met"]);
    refused(
        GrammarSpec::JsonSchema("{\"type\": \"integer\", \"minimum\": 3, \"maximum\": 2}".into()),
        &["cannot be met"],
    );
    refused(GrammarSpec::Regex("(a".into()), &["regular expression cannot be met"]);
    refused(GrammarSpec::Choice(vec![]), &["choice needs strings"]);
    refused(GrammarSpec::Choice(vec!["a".into(), String::new()]), &["choice needs strings"]);
    assert_user_error(Banned::new(&tokenizer, &[String::new()]).map(drop), &["banned string is empty"]);
}
