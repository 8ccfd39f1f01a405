//! `tokenizer.json`: round trip, equality with the `tokenizers` crate, and one-line errors for bad files.

use super::{AWKWARD, CL100K, GPT2, encode_with_special, mixed_text, small};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::tokenizer::{Codec, Pattern, Tokenizer};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

fn hugging_face(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(tokenizer.to_json()).expect("the file we write loads")
}

fn assert_equals_hugging_face(ours: &Tokenizer, theirs: &tokenizers::Tokenizer, text: &str) {
    let encoding = theirs.encode(text, false).unwrap();
    assert_eq!(encode_with_special(ours, text.as_bytes()), encoding.get_ids(), "{} {text:?}", ours.pattern().name());
    assert_eq!(theirs.decode(encoding.get_ids(), false).unwrap(), text);
}

#[test]
fn the_written_file_means_the_same_to_hugging_face() {
    let mut runner = TestRunner::deterministic();
    let random: Vec<String> = (0..300).map(|_| mixed_text().new_tree(&mut runner).unwrap().current()).collect();
    // Characters that Unicode added later than Oniguruma's tables have another class there.
    let known = |text: &&str| text.chars().all(|c| (c as u32) < 0x1_0000 && !('\u{860}'..'\u{900}').contains(&c));
    let small: Vec<Tokenizer> = Pattern::named().cloned().map(small).collect();
    for ours in small.iter().chain([&*CL100K, &*GPT2]) {
        let theirs = hugging_face(ours);
        for text in AWKWARD.iter().copied().chain(random.iter().map(String::as_str).filter(known)) {
            assert_equals_hugging_face(ours, &theirs, text);
        }
        for (text, id) in ours.specials() {
            assert_eq!(theirs.token_to_id(text), Some(*id));
        }
        assert_equals_hugging_face(ours, &theirs, "<|bos|>hi<|user_end|> <|endoftext|>  <|endofprompt|>\n");
    }
}

#[test]
fn a_prefix_is_put_before_texts_by_hugging_face_too() {
    let folder = tempfile::tempdir().unwrap();
    let ours = small(Pattern::Llama3);
    let bos = ours.special("<|bos|>").unwrap();
    for (prefix, name) in [(None, None), (Some(bos), Some("<|bos|>"))] {
        let path = ours.save_with_prefix(folder.path(), prefix).unwrap();
        let theirs = tokenizers::Tokenizer::from_file(&path).unwrap();
        let expected: Vec<u32> = prefix.into_iter().chain(ours.encode(b"some text")).collect();
        assert_eq!(theirs.encode("some text", true).unwrap().get_ids(), expected);
        assert_eq!(Tokenizer::prefix_in(folder.path()).unwrap().as_deref(), name);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().digest(), ours.digest());
    }
}

#[test]
fn reading_back_gives_the_same_tokenizer() {
    for ours in Pattern::named().cloned().map(small).chain([small(Pattern::Custom(r"\w+|\W".into()))]) {
        let folder = tempfile::tempdir().unwrap();
        let path = ours.save(folder.path().join("new/folder")).unwrap();
        assert!(path.ends_with("new/folder/tokenizer.json"));
        let names: Vec<_> =
            std::fs::read_dir(path.parent().unwrap()).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(names, ["tokenizer.json"], "no temporary file is left");
        for source in [path.as_path(), path.parent().unwrap()] {
            let read = Tokenizer::load(source).unwrap();
            assert_eq!((read.digest(), read.pattern()), (ours.digest(), ours.pattern()));
            assert_eq!(read.to_json(), ours.to_json());
        }
        ours.save(path.parent().unwrap()).expect("an old file is replaced");
    }
    for ours in [&*CL100K, &*GPT2] {
        let read = Tokenizer::from_json(ours.to_json().as_bytes()).unwrap();
        assert_eq!(read.digest(), ours.digest());
        let text = AWKWARD.join("\n");
        assert_eq!(read.encode(text.as_bytes()), ours.encode(text.as_bytes()));
    }
}

#[test]
fn a_file_that_hugging_face_trained_is_read() {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    let mut theirs = tokenizers::Tokenizer::new(BPE::default());
    theirs.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    theirs.with_decoder(Some(ByteLevel::default()));
    let special = tokenizers::AddedToken::from("<|endoftext|>", true);
    let trainer = BpeTrainer::builder().vocab_size(500).show_progress(false).special_tokens(vec![special]);
    let mut trainer: tokenizers::models::TrainerWrapper =
        trainer.initial_alphabet(ByteLevel::alphabet().into_iter().collect()).build().into();
    theirs.train(&mut trainer, AWKWARD.iter()).unwrap();
    let pairs = theirs.to_string(false).unwrap();
    assert!(pairs.contains("\"merges\":[[\""), "this version writes pairs");
    let ours = Tokenizer::from_json(pairs.as_bytes()).unwrap();
    assert_eq!(ours.special("<|endoftext|>"), Some(0));
    for text in AWKWARD {
        assert_equals_hugging_face(&ours, &theirs, text);
    }
    // Written again, the special token keeps the id that it has before all others.
    assert_equals_hugging_face(&ours, &hugging_face(&ours), "a<|endoftext|>b");
}

#[test]
fn both_spellings_of_merges_mean_the_same() {
    let ours = small(Pattern::Gpt4);
    let mut file: Value = serde_json::from_str(&ours.to_json()).unwrap();
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    for merge in merges {
        *merge = merge.as_str().unwrap().split(' ').collect();
    }
    assert_eq!(Tokenizer::from_json(file.to_string().as_bytes()).unwrap().digest(), ours.digest());
}

#[test]
fn bad_files_are_users_errors_of_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let good: Value = serde_json::from_str(&small(Pattern::Gpt4).to_json()).unwrap();
    let assert_refused = |content: &[u8], expected: &str| {
        std::fs::write(&path, content).unwrap();
        let error = Tokenizer::load(folder.path()).expect_err(expected);
        let line = error.to_string();
        assert!(is_user_error(&error), "{line}");
        assert!(line.contains("tokenizer.json") && line.contains(expected) && !line.contains('\n'), "{line}");
    };
    assert_refused(b"", "is not valid JSON");
    assert_refused(b"\xFF\xFE", "is not valid JSON");
    assert_refused(b"[]", "no BPE model");
    assert_refused(b"{}", "no BPE model");
    assert_refused(br#"{"model": 3}"#, "no BPE model");
    assert_refused(br#"{"model": {"type": "Unigram"}}"#, "Unigram");
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 20] = [
        (|f| f["model"]["vocab"] = json!([]), "`model`"),
        (|f| f["model"]["vocab"]["Ġa"] = json!(-1), "`model`"),
        (|f| f["model"]["vocab"]["€uro"] = json!(900), "outside the byte-level alphabet"),
        (|f| f["model"]["vocab"]["zzz"] = json!(97), "two tokens have the id 97"),
        (|f| f["model"]["vocab"]["zzz"] = json!(4_000_000_000u32), "too large"),
        (|f| drop(f["model"]["vocab"].as_object_mut().unwrap().remove("q")), "no token for the byte 0x71"),
        (|f| f["model"]["merges"][3] = json!("one"), "merge 3 (\"one\")"),
        (|f| f["model"]["merges"][3] = json!("a b c"), "merge 3 (\"a b c\")"),
        (|f| f["model"]["merges"][3] = json!("nowhere x"), "merge 3 names \"nowhere\""),
        (|f| f["model"]["merges"][3] = json!("Q Q"), "merge 3 names \"QQ\""),
        (|f| f["model"]["merges"][3] = json!(7), "`model`"),
        (|f| f["model"]["merges"][3] = f["model"]["merges"][2].clone(), "merge 3 repeats"),
        (|f| f["model"]["byte_fallback"] = json!(true), "byte-level BPE"),
        (|f| f["model"]["end_of_word_suffix"] = json!("</w>"), "byte-level BPE"),
        (|f| f["normalizer"] = json!({"type": "Lowercase"}), "normalizer (Lowercase)"),
        (|f| f["pre_tokenizer"] = Value::Null, "pre_tokenizer (none)"),
        (|f| f["pre_tokenizer"] = json!({"type": "Metaspace"}), "pre_tokenizer (Metaspace)"),
        (|f| f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true), "add_prefix_space"),
        (|f| f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("("), "not a valid regular expression"),
        (|f| f["added_tokens"][0] = json!({"id": "x"}), "`added_tokens`"),
    ];
    for (change, expected) in cases {
        let mut file = good.clone();
        change(&mut file);
        assert_refused(file.to_string().as_bytes(), expected);
    }
    let error = Tokenizer::load(folder.path().join("absent")).unwrap_err();
    assert!(is_user_error(&error) && error.to_string().contains("absent"), "{error}");
    let error = small(Pattern::Gpt4).save(path.join("below/a/file")).unwrap_err();
    assert!(is_user_error(&error) && error.to_string().contains("cannot be written"), "{error}");
}
