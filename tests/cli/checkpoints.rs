//! Damaged and mismatching checkpoints: every command that opens one refuses it in one line.

use super::{Ended, finished_copy, names, read, refused, reseal, run, succeed, write};
use std::path::Path;

const NEWEST: &str = "run/checkpoints/step_000004";

/// `sample`, `eval`, `logits` and `train --resume` refuse the newest checkpoint of the run in `folder` and write nothing.
fn all_refuse(folder: &Path, parts: &[&str]) {
    let before = (names(&folder.join("run")), names(&folder.join("run/checkpoints")));
    refused(folder, "sample --checkpoint run -p 1", parts);
    refused(folder, "eval --checkpoint run --data synthetic:addition --tokens 64", parts);
    refused(folder, "logits --checkpoint run --tokens 1,2 --out out.safetensors", parts);
    refused(folder, "train --resume --out run", parts);
    assert!(!folder.join("out.safetensors").exists());
    assert_eq!(before, (names(&folder.join("run")), names(&folder.join("run/checkpoints"))));
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn truncated_and_flipped_files_are_refused_and_the_checkpoint_before_still_resumes() {
    let folder = finished_copy();
    let folder = folder.path();
    let model = folder.join(NEWEST).join("model.safetensors");
    let whole = std::fs::read(&model).unwrap();
    change(&model, |bytes| bytes.truncate(bytes.len() / 2));
    all_refuse(folder, &["model.safetensors", "checksum", "--resume=-1"]);
    change(&model, |bytes| *bytes = whole.clone());
    change(&model, |bytes| bytes[whole.len() - 100] ^= 16);
    all_refuse(folder, &["model.safetensors", "checksum", "--resume=-1"]);
    std::fs::remove_file(&model).unwrap();
    all_refuse(folder, &["model.safetensors", "use another checkpoint"]);
    std::fs::write(&model, &whole).unwrap();
    std::fs::write(folder.join(NEWEST).join("checksums"), "nothing of use").unwrap();
    all_refuse(folder, &["checksums is damaged"]);
    succeed(folder, "train --resume=-1 --out run");
    succeed(folder, "sample --checkpoint run -p 1 --max-tokens 3");
}

#[test]
fn truncation_is_told_without_checksums_too() {
    let folder = finished_copy();
    let folder = folder.path();
    std::fs::remove_file(folder.join(NEWEST).join("checksums")).unwrap();
    change(&folder.join(NEWEST).join("model.safetensors"), |bytes| bytes.truncate(bytes.len() / 2));
    all_refuse(folder, &["model.safetensors", "truncated"]);
}

#[test]
fn another_shape_is_refused() {
    let folder = finished_copy();
    let folder = folder.path();
    let config = folder.join(NEWEST).join("config.json");
    let original = read(&config);
    for (from, to, part) in [
        ("\"hidden_size\": 32", "\"hidden_size\": 64", "shape"),
        ("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2", "layers.1"),
        ("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 0", "layers"),
        ("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 1e99", "num_hidden_layers"),
        ("\"hidden_size\": 32", "\"hidden_size\": 4611686018427387904", "width"),
        ("\"vocab_size\": 300", "\"vocab_size\": 400", "shape"),
        ("\"Qwen3ForCausalLM\"", "\"GPT2LMHeadModel\"", "GPT2LMHeadModel"),
    ] {
        let changed = original.replacen(from, to, 1);
        assert_ne!(changed, original, "{from} is not in the configuration");
        std::fs::write(&config, changed).unwrap();
        reseal(&folder.join(NEWEST));
        all_refuse(folder, &[part]);
    }
    std::fs::write(&config, &original[..original.len() / 2]).unwrap();
    reseal(&folder.join(NEWEST));
    all_refuse(folder, &["config.json", "JSON"]);
}

#[test]
fn another_tokenizer_is_refused_even_of_the_same_size() {
    let folder = finished_copy();
    let folder = folder.path();
    write(folder, "text.txt", "some other text, which makes other merges of other pairs; ".repeat(200));
    let tokenizer = folder.join(NEWEST).join("tokenizer.json");
    for size in [300, 290, 310] {
        succeed(folder, &format!("tokenizer train --data text.txt --vocab-size {size} --out other-{size}"));
        std::fs::copy(folder.join(format!("other-{size}/tokenizer.json")), &tokenizer).unwrap();
        reseal(&folder.join(NEWEST));
        for line in ["sample --checkpoint run -p 1", "eval --checkpoint run --tokens 64", "train --resume --out run"] {
            refused(folder, line, &["tokenizer"]);
        }
    }
    std::fs::write(&tokenizer, "{}").unwrap();
    reseal(&folder.join(NEWEST));
    refused(folder, "sample --checkpoint run -p 1", &["tokenizer.json"]);
}

#[test]
fn damaged_training_state_is_named() {
    let folder = finished_copy();
    let folder = folder.path();
    let newest = folder.join(NEWEST);
    let resume = |parts: &[&str]| {
        reseal(&newest);
        refused(folder, "train --resume --out run", parts);
    };
    let (state, moments) = (newest.join("train_state.json"), newest.join("optimizer.safetensors"));
    let (state_text, moments_bytes) = (read(&state), std::fs::read(&moments).unwrap());
    std::fs::write(&state, &state_text[..state_text.len() / 2]).unwrap();
    resume(&["train_state.json", "damaged"]);
    std::fs::write(&state, state_text.replace("\"version\":1", "\"version\":7")).unwrap();
    resume(&["train_state.json", "format 7"]);
    std::fs::write(&state, &state_text).unwrap();
    change(&moments, |bytes| bytes.truncate(bytes.len() - 4));
    resume(&["optimizer.safetensors", "truncated"]);
    std::fs::write(&moments, &moments_bytes).unwrap();
    std::fs::remove_file(&state).unwrap();
    resume(&["train_state.json", "only a checkpoint of a training run"]);
    std::fs::write(&state, &state_text).unwrap();
    reseal(&newest);
    let config = folder.join("run/config.toml");
    let text = read(&config);
    std::fs::write(&config, text.replace("width = 32", "width = 64")).unwrap();
    refused(folder, "train --resume --out run", &["another model", "config.toml"]);
    std::fs::write(&config, text.replace("clip", "clipp")).unwrap();
    refused(folder, "train --resume --out run", &["config.toml", "unknown key train.clipp"]);
    std::fs::write(&config, &text).unwrap();
    let Ended { code, .. } = run(folder, "train --resume --out run");
    assert_eq!(code, Some(0));
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("bare")).unwrap();
    write(folder, "file", "text");
    for (dir, part) in [("absent", "does not exist"), ("bare", "neither"), ("file", "file")] {
        refused(folder, &format!("sample --checkpoint {dir} -p 1"), &[dir, part]);
        refused(folder, &format!("eval --checkpoint {dir}"), &[dir, part]);
        refused(folder, &format!("logits --checkpoint {dir} --tokens 1 --out o.safetensors"), &[dir, part]);
    }
}
