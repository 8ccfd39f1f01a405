//! `chat` through the real binary: one answer, a conversation from a pipe, rules, refusals.

use super::{last_object, program, read, refused, succeed, tiny, write};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A model that was trained for a moment, with the special tokens of chats.
fn trained() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        succeed(folder.path(), &format!("{} --set model.max_seq_len=160 --out run", tiny()));
        folder
    });
    folder.path()
}

/// Words with spaces do not come through [`succeed`].
fn chat(words: &[&str]) -> std::process::Output {
    let mut command = program(trained(), "chat --checkpoint run --device cpu");
    command.args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn one_answer_goes_to_standard_output() {
    let answer = |more: &[&str]| {
        let out = chat(&[&["-p", "3 + 4 =", "--max-tokens", "12"], more].concat());
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let plain = answer(&[]);
    assert!(plain.ends_with('\n') && !plain.contains('\u{1b}'), "{plain:?}");
    assert_eq!(plain, answer(&[]), "the same seed");
    assert_ne!(answer(&["--seed", "1"]), answer(&["--seed", "2"]));
    let object = last_object(&answer(&["--json"]));
    assert_eq!(object["text"].as_str().unwrap().trim_end(), plain.trim_end());
    assert!(object["tokens"].as_u64().unwrap() <= 12 && object["prompt_tokens"].as_u64().unwrap() > 4);
    assert!(object["ready_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn answers_keep_to_rules() {
    for seed in ["1", "2", "3"] {
        let out = chat(&["-p", "well?", "--choice", "yes", "--choice", "no", "--seed", seed, "--temperature", "1.5"]);
        assert!(["yes\n", "no\n"].contains(&&text(&out.stdout)[..]), "{:?}", text(&out.stdout));
        let schema = r#"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
            "additionalProperties": false}"#;
        let out = chat(&["-p", "n?", "--json-schema", schema, "--seed", seed, "--temperature", "1.5"]);
        let value: serde_json::Value =
            serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{}: {e}", text(&out.stdout)));
        assert!((0..100).contains(&value["n"].as_u64().unwrap()));
    }
    write(trained(), "schema.json", "{\"enum\": [\"a b\"]}");
    assert_eq!(text(&chat(&["-p", "x", "--json-schema", "@schema.json"]).stdout), "\"a b\"\n");
}

#[test]
fn a_conversation_comes_from_a_pipe() {
    let mut command = program(trained(), "chat --checkpoint run --device cpu --max-tokens 5 --temperature 0");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let lines = "one\n/stats\n/temp 0.9\n/save kept.json\n/nonsense\n/temp hot\n\ntwo\n/reset\n/load kept.json\n/psyche id=1\n/exit\nthree\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{err}");
    assert!(text(&out.stdout).lines().count() >= 2, "two answers: {:?}", text(&out.stdout));
    for said in [
        "context ",
        "tokens/s",
        "/nonsense is no command",
        "/temp needs a number",
        "(2 messages)",
        "no PsycheController",
    ] {
        assert!(err.contains(said), "{said:?} is not in {err}");
    }
    let kept: serde_json::Value = serde_json::from_str(&read(&trained().join("kept.json"))).unwrap();
    assert_eq!(
        (kept["messages"][0]["role"].as_str(), kept["messages"][0]["content"].as_str()),
        (Some("user"), Some("one"))
    );
    assert_eq!(kept["messages"].as_array().unwrap().len(), 2);
}

/// What a call was told is in the memories of the next, as in those of one that began anew in between.
#[test]
fn memories_go_on_in_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let parts = "--set model.layers=3 --set memory.enabled=true --set abacus.enabled=true";
    succeed(at, &format!("{} --set model.max_seq_len=160 {parts} --out run", tiny()));
    let talk = |file: &str, lines: &str| {
        let line = format!("chat --checkpoint run --device cpu --max-tokens 6 --temperature 0 --memory {file}");
        let mut child = program(at, &line).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let kept = |file: &str| std::fs::read(at.join(file)).unwrap();
    let together = talk("one", "2 + 3 = 5, 5 + 1 = 6\n/reset\n7 + 2 =\nand?\n");
    let first = talk("two", "2 + 3 = 5, 5 + 1 = 6\n");
    let after_first = kept("two");
    assert_eq!(first + &talk("two", "7 + 2 =\nand?\n"), together);
    assert_eq!(kept("one"), kept("two"));
    talk("anew", "7 + 2 =\nand?\n");
    assert!(kept("anew") != kept("two") && after_first != kept("two"));
    // A turn that goes on from the last is remembered once.
    talk("turns", "7 + 2 =\n");
    assert_ne!(kept("turns"), kept("anew"));
    std::fs::write(at.join("two"), &after_first[..after_first.len() / 2]).unwrap();
    refused(at, "chat --checkpoint run --device cpu --memory two -p x", &["two"]);
    refused(trained(), "chat --checkpoint run --device cpu --memory kept.memory -p x", &["the model has no memory"]);
    assert!(!trained().join("kept.memory").exists());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_said() {
    let at = trained();
    let words = |more: &[&str], parts: &[&str]| {
        let out = chat(more);
        let err = text(&out.stderr);
        assert_eq!(
            (out.status.code(), err.lines().count(), text(&out.stdout).as_str()),
            (Some(2), 1, ""),
            "{more:?}: {err}"
        );
        parts.iter().for_each(|part| assert!(err.contains(part), "{part:?} is not in {err}"));
    };
    words(&["-p", "x", "--json-schema", "{\"enum\": []}"], &["JSON schema cannot be met"]);
    words(&["-p", "x", "--json-schema", "@nowhere.json"], &["cannot read the schema nowhere.json"]);
    words(&["-p", "x", "--regex", "("], &["regular expression"]);
    words(&["-p", "x", "--ban", ""], &["banned string is empty"]);
    words(&["-p", "x", "--min-p", "2"], &["min-p is 2"]);
    words(&["-p", "x", "--repetition-penalty", "0"], &["repetition-penalty is 0"]);
    words(&["-p", &"word ".repeat(200)], &["conversation takes", "context has 160", "--drop-oldest"]);
    words(&["-p", &"word ".repeat(200), "--drop-oldest"], &["message takes", "shorten it"]);
    refused(at, "chat --checkpoint nowhere -p x", &["nowhere does not exist"]);
}
