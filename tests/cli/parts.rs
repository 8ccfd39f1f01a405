//! Models with parts through the real binary: presets, colours of the stages, concepts.

use super::{finished, last_object, read, refused, succeed, tiny};

#[test]
fn a_model_with_parts_is_trained_sampled_and_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let parts =
        "--set psyche.enabled=true --set hypercube.enabled=true --set concept.enabled=true --set concept.count=300";
    let line = format!("{} --set model.layers=3 {parts} --out run --json", tiny());
    last_object(&succeed(folder, &line));
    assert!(read(&folder.join("run/config.toml")).contains("[psyche]\nenabled = true"));
    assert!(read(&folder.join("run/control.toml")).contains("[loss.concept]"));
    let config = read(&folder.join("run/checkpoints/step_000003/config.json"));
    assert!(config.contains("NanochatForCausalLM") && config.contains("hypercube"), "{config}");

    let sample = "sample --checkpoint run -p 12+ --max-tokens 6 --seed 4";
    let shown = last_object(&succeed(folder, &format!("{sample} --show psyche --json")));
    let (tokens, weights) = (&shown["samples"][0]["tokens"], shown["samples"][0]["psyche"].as_array().unwrap());
    assert!(weights.len() >= tokens.as_array().unwrap().len());
    let sum = |w: &serde_json::Value| w.as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).sum::<f64>();
    assert!(weights.iter().all(|w| (sum(w) - 1.0).abs() < 1e-5), "{shown}");
    let leaning = last_object(&succeed(folder, &format!("{sample} --show psyche --psyche ego=+6,id=-1 --json")));
    let first = |object: &serde_json::Value| object["samples"][0]["psyche"][0][1].as_f64().unwrap();
    assert!(first(&leaning) > first(&shown) + 0.2, "{leaning} {shown}");
    // Piped text has no colours.
    assert!(!succeed(folder, &format!("{sample} --show psyche")).contains('\x1b'));
    refused(folder, &format!("{sample} --psyche super=1"), &["super=1", "id=+1"]);

    let out = succeed(folder, "concepts --checkpoint run 1 2 3 --plot plot.svg");
    for part in ["vertex", "neighbours", "nearest", "1 - 2 + 3", "its stream passes vertex"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert!(read(&folder.join("plot.svg")).contains("<svg"));
    let object = last_object(&succeed(folder, "concepts --checkpoint run 1 2 3 --nearest 4 --json"));
    assert_eq!(object["words"][1]["nearest"].as_array().unwrap().len(), 4);
    assert_eq!(object["words"][0]["vertex"].as_str().unwrap().len(), 16);
    assert_eq!(object, last_object(&succeed(folder, "concepts --checkpoint run 1 2 3 --nearest 4 --json")));
}

#[test]
fn what_a_plain_model_does_not_have_is_refused() {
    let (run, folder) = (finished(), tempfile::tempdir().unwrap());
    let checkpoint = run.join("run");
    let line = format!("sample --checkpoint {} -p 1 --show psyche", checkpoint.display());
    refused(folder.path(), &line, &["no PsycheController", "psyche.enabled=true"]);
}
