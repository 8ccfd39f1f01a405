//! The `tokenizer` command: what it trains can be loaded, and mistakes are users' errors.

use clap::{Args, FromArgMatches};
use nanochat_gpu::cli::tokenizer::{TokenizerCommand, run};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::tokenizer::{Codec, Pattern, Tokenizer};

fn run_line(words: &[&str]) -> anyhow::Result<()> {
    let parser = TokenizerCommand::augment_args(clap::Command::new("tokenizer").no_binary_name(true));
    run(TokenizerCommand::from_arg_matches(&parser.try_get_matches_from(words)?)?)
}

#[test]
fn a_trained_tokenizer_is_saved_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("text.txt"), folder.path().join("tok"));
    std::fs::write(&data, "the cat and the dog and the 1234 birds\n".repeat(20)).unwrap();
    let short = folder.path().join("short.txt");
    std::fs::write(&short, b"the \xFF cat").unwrap();
    let [data, out, short] = [&data, &out, &short].map(|path| path.to_str().unwrap());
    let train = ["train", "--data", data, "--vocab-size", "280", "--out", out, "--json"];
    run_line(&train).unwrap();
    assert_eq!(Tokenizer::load(out).unwrap().pattern(), &Pattern::Gpt4);
    run_line(&[&train[..], &["--single-digits"]].concat()).unwrap();
    let tokenizer = Tokenizer::load(out).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.pattern()), (280, &Pattern::Gpt4SingleDigit));
    for line in [
        &["info", "--tokenizer", out][..],
        &["info", "--tokenizer", out, "--json"],
        &["encode", "--tokenizer", out, "the cat<|bos|>", "--special", "--json"],
        &["encode", "--tokenizer", out, "--file", short],
        &["decode", "--tokenizer", out, "100,111", "103", "10"],
        &["decode", "--tokenizer", out, "255", "--json"],
    ] {
        run_line(line).unwrap();
    }
    for (line, expected) in [
        (&["train", "--data", data, "--vocab-size", "100", "--out", out][..], "give --vocab-size 265 or more"),
        (&["train", "--data", "absent.txt", "--vocab-size", "300", "--out", out], "absent.txt"),
        (&["decode", "--tokenizer", out, "280"], "280 is not a token: the vocabulary has 280"),
        (&["decode", "--tokenizer", out, "x1"], "\"x1\" is not a token id"),
        (&["encode", "--tokenizer", "absent", "text"], "absent"),
        (&["encode", "--tokenizer", out, "--file", "absent.txt"], "absent.txt"),
    ] {
        let error = run_line(line).unwrap_err();
        assert!(is_user_error(&error) && error.to_string().contains(expected), "{error}");
    }
}
