//! Ablations through the real binary: all arms, going on where they were, and what they are refused for.

use super::{last_object, read, refused, run, succeed};
use nanochat_gpu::model::parts::TABLES;
use nanochat_gpu::train::ablation::{Moments, arms};
use nanochat_gpu::train::config::Layers;

const LINE: &str = "ablate --data synthetic:addition --depth 3 --steps 3 --seeds 2 --parts psyche,hypercube --out out \
                    --set model.width=32 --set train.seq_len=16 --set train.rows=2 --set train.batch_tokens=32 \
                    --set train.threads=1 --set train.eval_tokens=64 --set data.vocab_size=300";

const ARMS: [&str; 8] = [
    "plain",
    "psyche",
    "psyche, static weights",
    "hypercube",
    "hypercube, probe",
    "all",
    "all but psyche",
    "all but hypercube",
];

#[test]
fn all_arms_run_once_and_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let table = succeed(folder, LINE);
    let names: Vec<&str> = table.lines().skip(2).map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(names, ARMS);
    assert_eq!(read(&folder.join("out/table.md")), table);
    let svg = read(&folder.join("out/bits-per-byte.svg"));
    assert!(ARMS.iter().all(|name| svg.contains(name)), "{svg}");
    // A dot for each run.
    assert_eq!(svg.matches("<circle").count(), 16, "{svg}");

    // A second time nothing runs; a run that was cut short runs again and comes to the same.
    let object = |line: &str| last_object(&succeed(folder, line));
    std::fs::remove_file(folder.join("out/psyche-seed-2/outcome.json")).unwrap();
    let again = run(folder, &format!("{LINE} --json"));
    assert!(
        again.err.contains("15 of 16 runs are finished") && again.err.contains("1/1 psyche, seed 2"),
        "{}",
        again.err
    );
    let report = last_object(&again.out);
    let rows = report["rows"].as_array().unwrap();
    let bpb = |row: usize| rows[row]["val_bpb"]["mean"].as_f64().unwrap();
    for (i, row) in rows.iter().enumerate() {
        let number = |key: &str| row[key]["mean"].as_f64().unwrap();
        assert_eq!(row["seeds"], 2);
        let base = if row["against"] == "all" { 5 } else { 0 };
        assert_eq!(row["against"] == "all", i >= 6);
        assert!((number("difference") - (bpb(i) - bpb(base))).abs() < 1e-12 && number("time") > 0.0, "{row}");
    }
    // A probe does not reach the trunk, which is the plain one's where the part is read by nothing else.
    let entropy = |row: usize, i: usize| rows[row]["parts"]["entropy"][i]["mean"].as_f64().unwrap();
    assert_eq!(entropy(3, 0), entropy(4, 0), "the same model before it learns");
    assert!(rows[1]["parts"].as_object().unwrap().is_empty() && bpb(3) != bpb(0));

    let only = object(&format!("{LINE} --only probe --json"));
    assert_eq!(only["rows"].as_array().unwrap().len(), 2);
    // What an arm is held against is there too.
    let only = object(&format!("{LINE} --only psyche --json"));
    let rows = only["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["arm"].as_str().unwrap()).collect();
    assert_eq!(names, ["plain", "psyche", "psyche, static weights", "all", "all but psyche"]);
    assert!(rows.iter().all(|row| row["difference"]["mean"].is_number()), "{only}");
    refused(folder, &LINE.replace("--steps 3", "--steps 4"), &["another configuration", "--out"]);
    refused(folder, &LINE.replace("psyche,hypercube", "psyche,ego"), &["no part named ego", "psyche, concept"]);
    refused(folder, &format!("{LINE} --only nothing"), &["no arm", "nothing"]);
    refused(folder, &LINE.replace("--depth 3", "--depth 2").replace("--out out", "--out two"), &["3 layers or more"]);
}

/// Also the probes: a loss that reaches no trunk anyway has none.
#[test]
fn every_arm_of_every_part_is_a_configuration() {
    let names: Vec<String> = TABLES.iter().map(|name| name.to_string()).collect();
    let arms = arms(&names).unwrap();
    assert!(arms.len() > 3 * names.len());
    for arm in arms {
        let layers = Layers::default();
        let config = arm.config(&layers, 1, 512).unwrap_or_else(|error| panic!("{}: {error:#}", arm.name));
        assert_eq!(config.train.seed, 1);
    }
}

#[test]
fn one_part_has_no_rest() {
    let names: Vec<String> = arms(&["concept".into()]).unwrap().into_iter().map(|arm| arm.name).collect();
    assert_eq!(names, ["plain", "concept", "concept, probe", "concept, hypercube codes"]);
    let probe = &arms(&["concept".into()]).unwrap()[2];
    assert_eq!(probe.sets, ["concept.enabled=true", "loss.concept.rho=0"]);
}

#[test]
fn means_and_deviations() {
    let of = |values: &[f64]| Moments::of(values.iter().copied());
    assert_eq!(of(&[1.0, 2.0, 6.0]), Moments { mean: 3.0, deviation: 7f64.sqrt() });
    assert_eq!(of(&[4.0]), Moments { mean: 4.0, deviation: 0.0 });
}
