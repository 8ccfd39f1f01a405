//! `tools/gpu-check` end to end in the simulator, with parts that fail, and its report on figures of a card that are made up.

use crate::cli::{read, write};
use nanochat_gpu::device::modules::MODULES;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn tool(folder: &Path, name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(Path::new(ROOT).join("tools").join(name));
    command.current_dir(folder).env("OMP_NUM_THREADS", "1").args(args).output().unwrap()
}

fn object(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

#[test]
fn every_part_runs_in_the_simulator() {
    if MODULES.is_empty() {
        return; // built without nvcc
    }
    let folder = tempfile::tempdir().unwrap();
    let binary = env!("CARGO_BIN_EXE_nanochat-gpu");
    let ended = tool(folder.path(), "gpu-check", &["--device", "sim", "--binary", binary, "out.json"]);
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(0), "{out}{err}");
    let result = object(&folder.path().join("out.json"));
    for part in ["doctor", "bench", "train_f32", "train_bf16"] {
        assert_eq!(result["parts"][part]["exit"], 0, "{part}: {out}{err}");
    }
    assert!(result["doctor"]["families"].as_array().unwrap().len() >= 18);
    assert!(
        result["bench"]["rows"].as_array().unwrap().iter().all(|row| row["error"].is_null() && row["ms"].is_null())
    );
    for dtype in ["f32", "bf16"] {
        assert_eq!(result["training"][dtype]["losses"].as_array().unwrap().len(), 8);
        assert_eq!(result["training"][dtype]["holds"], true, "{}", result["training"]);
    }
    assert!(out.contains("losses f32") && out.contains("gemm_fwd_mma_ak_bk_bf16"), "{out}");
}

/// An executable that fails in every part but the last: each is told, the file is written, and the exit code says so.
#[test]
fn a_part_that_fails_stops_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let script = "#!/bin/sh\n[ \"$1\" = bench ] && echo '{\"commit\": \"c\", \"device\": \"d\", \"rows\": []}' && exit 0\necho boom >&2\nexit 3\n";
    let path = write(folder, "broken", script);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let args = ["--device", "sim", "--binary", path.to_str().unwrap(), "--python", "python3", "out.json"];
    let ended = tool(folder, "gpu-check", &args);
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(1), "{out}{err}");
    let result = object(&folder.join("out.json"));
    assert_eq!(
        (&result["parts"]["doctor"]["exit"], &result["parts"]["bench"]["exit"]),
        (&3.into(), &0.into()),
        "{out}"
    );
    assert!(result["parts"]["train_bf16"]["said"].as_str().unwrap().contains("boom"), "{result}");
    assert_eq!(result["training"]["f32"]["holds"], false);
    assert!(err.contains("doctor") && err.contains("losses f32") && !err.contains("bench"), "{err}");
    let ended = tool(folder, "gpu-check", &["--binary", "absent"]);
    assert_eq!(ended.status.code(), Some(2));
}

fn row(name: &str, ms: f64, share: f64, digest: &str) -> Value {
    let times = json!({"ms": ms, "share_of_copy": share, "gb_per_s": 1000.0, "tflops": 0.0, "tokens_per_s": 0.0});
    let mut row = json!({"name": name, "shape": "N4", "dtype": "bf16", "mechanism": "vector", "flops": 0, "tokens": 0,
        "bytes": 8, "digest": digest, "kernels": ["row_sum", "add_vector"]});
    row.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
    row
}

/// Ratios are the best peer's time by ours; bits are compared row by row; the worst row is that of the least share; losses that are
/// NaN or elsewhere do not hold.
#[test]
fn the_report_compares_what_the_parts_say() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bench = |rows: Vec<Value>| json!({"commit": "c", "device": "Card 1", "rows": rows}).to_string();
    let fast = row("add_fwd_vector_bf16", 2.0, 0.9, "aa");
    let slow = row("swiglu_fwd_vector_bf16", 4.0, 0.3, "bb");
    let other = row("swiglu_fwd_vector_bf16", 4.0, 0.3, "cc");
    write(folder, "bench.out", format!("a table\n{}\n", bench(vec![fast.clone(), slow.clone()])));
    write(folder, "bits_here.out", bench(vec![fast.clone(), slow.clone()]));
    write(folder, "bits_sim.out", bench(vec![fast, other]));
    let variants = json!({"eager": 5.0, "compiled": 3.0, "flash": "RuntimeError: none"});
    let peers =
        json!({"device": "Card 1", "rows": [{"name": "add_fwd_vector_bf16", "shape": "N4", "variants": variants}]});
    write(folder, "peers.out", peers.to_string());
    for part in ["bench", "peers", "bits_here", "bits_sim", "train_f32", "train_bf16"] {
        write(folder, &format!("{part}.status"), r#"{"exit": 0, "seconds": 1, "limit": 9}"#);
    }
    let recorded = object(&Path::new(ROOT).join("benches/results/losses.json"));
    let lines = |dtype: &str, change: &dyn Fn(f64) -> String| {
        let losses = recorded["sim"][dtype].as_array().unwrap().iter().map(|loss| change(loss.as_f64().unwrap()));
        losses.map(|loss| format!("{{\"loss\": {loss}}}\n")).collect::<String>()
    };
    write(folder, "metrics_f32.jsonl", lines("f32", &|loss| (loss + 1e-4).to_string()));
    write(folder, "metrics_bf16.jsonl", lines("bf16", &|loss| (loss + 1e-4).to_string()));
    let (at, losses) = (folder.to_str().unwrap(), format!("{ROOT}/benches/results/losses.json"));
    let report = |more: &[&str]| tool(folder, "peers/report.py", &[&[at], more].concat());
    let full = ["--device", "cuda:0", "--losses", &losses, "--results", at];
    let ended = report(&full);
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.status.code(), Some(1), "f32 is too far: {out}");
    let made = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let made: Vec<_> = made.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    assert!(made.len() == 1 && made[0].file_name().unwrap().to_str().unwrap().starts_with("card-1-20"), "{made:?}");
    let result = object(&made[0]);
    assert_eq!(result["ratios"].as_array().unwrap().len(), 1);
    let ratio = &result["ratios"][0];
    assert_eq!((&ratio["best"], &ratio["speed_of_best"]), (&"compiled".into(), &1.5.into()));
    assert_eq!(result["bits"], json!({"compared": 2, "same": 1, "different": ["swiglu_fwd_vector_bf16"]}));
    let holds = |result: &Value| ["f32", "bf16"].map(|dtype| result["training"][dtype]["holds"] == true);
    assert_eq!(holds(&result), [false, true]);
    assert!(out.contains("1.50 x compiled") && out.contains("NOT as recorded"), "{out}");
    let worst = report(&["--worst"]).stdout;
    assert_eq!(String::from_utf8_lossy(&worst), "swiglu_fwd_vector_bf16\tadd_vector\n");

    write(folder, "metrics_f32.jsonl", lines("f32", &|loss| loss.to_string()));
    write(folder, "metrics_bf16.jsonl", lines("bf16", &|_| "NaN".to_string()));
    report(&full);
    assert_eq!(holds(&object(&made[0])), [true, false]);
}
