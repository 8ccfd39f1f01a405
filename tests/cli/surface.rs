//! What every command shows and prints: help with examples, completions, JSON, estimates, and the happy paths.

use super::{finished, last_object, names, refused, run, succeed, tiny, write};
use serde_json::Value;

/// Commands out of a `--help`, between "Commands:" and the next empty line.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(str::to_string).filter(|name| name != "help").collect()
}

#[test]
fn every_command_shows_an_example_and_every_shell_has_completions() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let help = succeed(folder, "--help");
    assert!(help.contains("Example"), "{help}");
    let all = commands(&help);
    assert!(all.len() >= 7, "{all:?}");
    for command in &all {
        let help = succeed(folder, &format!("{command} --help"));
        let inner = commands(&help);
        assert!(help.contains("Example") || !inner.is_empty(), "{command}: {help}");
        for name in inner {
            let help = succeed(folder, &format!("{command} {name} --help"));
            assert!(help.contains("Example"), "{command} {name}: {help}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(folder, &format!("completions {shell}"));
        assert!(script.contains("nanochat-gpu") && script.contains("stop-after"), "{shell}");
    }
    refused(folder, "completions dos", &["dos", "bash"]);
    let version = succeed(folder, "--version");
    assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("commit"), "{version}");
}

#[test]
fn doctor_says_what_is_here_and_checks_every_family_in_the_simulator() {
    let folder = tempfile::tempdir().unwrap();
    if nanochat_gpu::device::modules::MODULES.is_empty() {
        let out = succeed(folder.path(), "doctor");
        assert!(out.contains("built without nvcc"), "{out}");
        return;
    }
    let out = succeed(folder.path(), "doctor --device sim --json");
    for part in ["processor", "memory", "sm_80, sm_90a", "NVRTC", "simulated GPU"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let report = last_object(&out);
    let families = report["families"].as_array().unwrap();
    assert!(families.len() >= 18 && families.iter().all(|family| family["error"].is_null()), "{report}");
    let some = |family: &Value| !family["kernels"].as_array().unwrap().is_empty();
    assert!(families.iter().all(some) && report["not_launched"].is_array(), "{report}");
    assert!(report["kernels"].as_u64().unwrap() > 40, "{report}");
    refused(folder.path(), "doctor --device tpu", &["tpu", "auto, cpu, sim and cuda[:i]"]);
}

#[test]
fn a_dry_run_tells_and_makes_nothing() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let out = succeed(folder, &format!("{tiny} --dry-run --out run"));
    for part in ["parameters", "memory", "floating-point operations", "tokens", "time", "width 32", "vocabulary 300"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let estimate = last_object(&succeed(folder, &format!("{tiny} --dry-run --json")));
    for key in ["parameters", "state_bytes", "activation_bytes", "memory_bytes", "tokens", "flops", "seconds"] {
        assert!(estimate[key].as_f64().unwrap() > 0.0, "{key}: {estimate}");
    }
    // Embeddings, one block (q, k, v, o of 32 x 32; three of 32 x 128), two norms of 32 and one, two of a head's 32.
    let block = 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32 + 2 * 32;
    assert_eq!(estimate["parameters"], 2 * 300 * 32 + block + 32);
    assert_eq!(estimate["tokens"], 3 * 32);
    assert_eq!(names(folder), [""; 0]);
}

#[test]
fn a_model_too_large_for_the_memory_is_refused_with_both_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for more in ["--depth 150 --dry-run", "--depth 150", "--depth 150 --data synthetic"] {
        let line = format!("train --vocab-size 300 --out run {more}");
        let started = std::time::Instant::now();
        refused(folder, &line, &["needs about", "GiB and", "GiB are available", "lower"]);
        assert!(started.elapsed().as_secs() < 10, "refused before any work");
    }
    assert_eq!(names(folder), [""; 0]);
}

#[test]
fn the_last_line_of_json_has_the_documented_keys() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let summary = last_object(&succeed(folder, &format!("{tiny} --out run --json")));
    let keys =
        "steps tokens seconds tokens_per_second train_loss val_loss val_bpb parameters peak_memory_bytes checkpoint";
    for key in keys.split(' ') {
        assert!(!summary[key].is_null(), "{key}: {summary}");
    }
    assert_eq!((&summary["steps"], &summary["tokens"]), (&3.into(), &96.into()));
    assert!(folder.join(summary["checkpoint"].as_str().unwrap()).join("model.safetensors").exists());
    let metrics = super::read(&folder.join("run/metrics.jsonl"));
    let last = last_object(&metrics);
    for key in ["step", "tokens", "loss", "loss.lm", "lr", "grad_norm", "tokens_per_second", "val_loss", "val_bpb"] {
        assert!(last[key].is_number(), "{key}: {last}");
    }
    assert_eq!((&last["val_loss"], &last["loss"]), (&summary["val_loss"], &summary["train_loss"]));
    let made = ["checkpoints", "config.toml", "control.toml", "lock", "loss.svg", "metrics.jsonl"];
    assert_eq!(names(&folder.join("run")), made);
    let evaluation = "eval --checkpoint run --data synthetic:addition --tokens 64 --json";
    let evaluation = last_object(&succeed(folder, evaluation));
    assert!(evaluation["bits_per_byte"].as_f64().unwrap() > 0.0 && evaluation["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_trained_model_is_sampled_evaluated_and_looked_into() {
    let (run_folder, folder) = (finished(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let checkpoint = run_folder.join("run");
    let checkpoint = checkpoint.display();
    let sample = format!("sample --checkpoint {checkpoint} -p 12+ -n 2 --max-tokens 5 --seed 4");
    let first = succeed(folder, &sample);
    assert!(first.starts_with("12+") && first.contains("\n---\n12+"), "{first}");
    assert_eq!(first, succeed(folder, &sample));
    let samples = last_object(&succeed(folder, &format!("{sample} --json")));
    assert_eq!(samples["samples"].as_array().unwrap().len(), 2);
    // More than are drawn side by side; each as it comes alone.
    let many = last_object(&succeed(
        folder,
        &format!("sample --checkpoint {checkpoint} -p 12+ -n 11 --max-tokens 5 --seed 4 --json"),
    ));
    let many = many["samples"].as_array().unwrap();
    assert_eq!((many.len(), &many[..2]), (11, &samples["samples"].as_array().unwrap()[..]));
    let evaluation = succeed(folder, &format!("eval --checkpoint {checkpoint} --data synthetic:addition --tokens 64"));
    assert!(evaluation.contains("bits per byte"), "{evaluation}");
    succeed(
        folder,
        &format!("logits --checkpoint {checkpoint} --tokens 1,2,3 --targets 2,3,4 --grads --out o.safetensors"),
    );
    assert_eq!(names(folder), ["o.safetensors"]);
    for (line, parts) in [
        ("logits --tokens 1,900 --out x.safetensors", &["900", "0 to 299"][..]),
        ("logits --tokens 1,x --out x.safetensors", &["x", "--tokens"]),
        ("sample --top-k 0", &["top-k"]),
        ("sample -n 0", &["0"]),
        ("eval --data absent.txt", &["absent.txt"]),
        ("eval --seq-len 17", &["--seq-len is 17", "context 16", "lower it"]),
    ] {
        refused(folder, &format!("{line} --checkpoint {checkpoint}"), parts);
    }
    assert_eq!(names(folder), ["o.safetensors"]);
}

#[test]
fn text_becomes_a_tokenizer_then_shards_then_a_model() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lines: String = (0..900).map(|i| format!("{{\"text\": \"the cat {i} sat on the mat {}\"}}\n", i * 7)).collect();
    write(folder, "cats.jsonl", lines);
    succeed(folder, "tokenizer train --data cats.jsonl --vocab-size 300 --out tok");
    let ids = succeed(folder, "tokenizer encode --tokenizer tok cat");
    let ids = ids.trim().replace([' ', '\n'], ",");
    assert_eq!(succeed(folder, &format!("tokenizer decode --tokenizer tok {ids}")).trim_end(), "cat");
    assert!(succeed(folder, "tokenizer info --tokenizer tok").contains("300"));
    let prepared =
        succeed(folder, "data prepare --data cats.jsonl --tokenizer tok --out shards --val-fraction 0.2 --json");
    assert!(last_object(&prepared)["train"]["tokens"].as_u64().unwrap() > 1000);
    let held = last_object(&succeed(folder, "data info --data shards --json"));
    assert_eq!(held["data"].as_array().unwrap().len(), 1);
    succeed(folder, &format!("{tiny} --data shards --tokenizer tok --out run"));
    succeed(folder, "eval --checkpoint run --data shards --tokens 64");
    succeed(folder, "sample --checkpoint run -p the --max-tokens 4");
    assert_eq!(run(folder, "data info --data absent.txt").code, Some(2));
    refused(folder, "data prepare --data absent.txt --tokenizer tok --out none", &["absent.txt"]);
    refused(folder, "tokenizer train --data absent.txt --vocab-size 300 --out none", &["absent.txt"]);
    assert!(!folder.join("none").exists());
}
