//! Runs that are killed, interrupted, stopped, rolled back, changed while they train, or out of disk.

use super::{
    Ended, assert_refused, finish, finished_copy, names, program, read, refused, run, succeed, tiny, wait_until,
};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A run long enough to be hit in its middle.
const LONG: &str = "--steps 300 --set train.save_every=40 --set train.eval_every=100 --set train.sample_every=0";

/// Lines of the metrics that are whole.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn steps(run: &Path) -> u64 {
    metrics(run).last().map_or(0, |record| record["step"].as_u64().unwrap())
}

/// The metrics without what a clock says.
fn timeless(run: &Path) -> Vec<Value> {
    let mut records = metrics(run);
    for record in &mut records {
        let record = record.as_object_mut().unwrap();
        record.retain(|key, _| !key.ends_with("per_second"));
    }
    records
}

/// Starts `line`, with its output thrown away, and waits until `step` steps are done.
fn start_until(folder: &Path, line: &str, out: &str, step: u64) -> Child {
    let mut command = program(folder, line);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let run = folder.join(out);
    wait_until(&format!("{out} has {step} steps"), || {
        assert!(child.try_wait().unwrap().is_none(), "{line}: ended before step {step}");
        steps(&run) >= step
    });
    child
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap().success());
}

/// The uninterrupted run that all others must equal.
fn assert_same_end(folder: &Path, out: &str) {
    let newest = |out: &str| folder.join(out).join("checkpoints/step_000300/checksums");
    assert_eq!(read(&newest("whole")), read(&newest(out)), "{out} ended elsewhere");
    assert_eq!(timeless(&folder.join("whole")), timeless(&folder.join(out)));
}

#[test]
fn a_killed_run_goes_on_and_ends_bit_for_bit_like_one_that_was_not() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, &format!("{tiny} {LONG} --out whole"));
    for step in [1, 41, 139] {
        let out = format!("killed-{step}");
        let mut child = start_until(folder, &format!("{tiny} {LONG} --out {out}"), &out, step);
        child.kill().unwrap();
        child.wait().unwrap();
        if step == 139 {
            // Once more, in the middle of the run that goes on.
            let mut child = start_until(folder, &format!("train --resume --out {out}"), &out, 200);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        succeed(folder, &format!("train --resume --out {out}"));
        assert_same_end(folder, &out);
        let temporary =
            names(&folder.join(&out).join("checkpoints")).into_iter().find(|name| !name.starts_with("step_"));
        assert_eq!(temporary, None);
    }
    for (name, flags) in [("INT", ""), ("TERM", "--json")] {
        let mut child = program(folder, &format!("{tiny} {LONG} --out {name} {flags}")).spawn().unwrap();
        wait_until("30 steps are done", || steps(&folder.join(name)) >= 30);
        // While one trains, nobody else may.
        let second = run(folder, &format!("train --resume --out {name}"));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_refused("the second trainer", &second, &[&format!("another trainer works in {name}"), "another --out"]);
        let done = steps(&folder.join(name));
        assert!(done < 300, "the signal came too late");
        let saved = folder.join(name).join(format!("checkpoints/step_{done:06}"));
        assert!(saved.exists(), "{name}: the state is saved");
        succeed(folder, &format!("train --resume --out {name}"));
        assert_same_end(folder, name);
    }
    // Leftovers of a kill while a checkpoint was written.
    let left = folder.join("INT/checkpoints/.step_000300.tmp");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("model.tmp"), "half").unwrap();
    succeed(folder, "train --resume --out INT");
    assert!(!left.exists());
    assert_same_end(folder, "INT");
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_again() {
    let folder = finished_copy();
    let folder = folder.path();
    let last = read(&folder.join("run/checkpoints/step_000004/checksums"));
    std::fs::remove_dir_all(folder.join("run/checkpoints")).unwrap();
    refused(folder, "train --resume=-1 --out run", &["run holds 0 checkpoints"]);
    succeed(folder, "train --resume --out run");
    assert_eq!(read(&folder.join("run/checkpoints/step_000004/checksums")), last);
    assert_eq!(metrics(&folder.join("run")).len(), 4);
}

#[test]
fn stopping_and_rolling_back_end_in_the_same_bits() {
    let tiny = tiny();
    let folder = finished_copy();
    let folder = folder.path();
    let run = folder.join("run");
    let last = read(&run.join("checkpoints/step_000004/checksums"));
    let line = format!("{tiny} --steps 4 --set train.save_every=2 --out stopped --stop-after 3");
    assert!(succeed(folder, &line).contains("stopped after step 3"));
    assert_eq!(names(&folder.join("stopped/checkpoints")), ["step_000002", "step_000003"]);
    succeed(folder, "train --resume --out stopped");
    assert_eq!(read(&folder.join("stopped/checkpoints/step_000004/checksums")), last);
    // Back by one, and one step: what was after it is gone.
    succeed(folder, "train --resume=-1 --out run --stop-after 3");
    assert_eq!(names(&run.join("checkpoints")), ["step_000002", "step_000003"]);
    assert_eq!(metrics(&run).len(), 3);
    succeed(folder, "train --resume --out run");
    assert_eq!(read(&run.join("checkpoints/step_000004/checksums")), last);
    assert_eq!(timeless(&run), timeless(&folder.join("stopped")));
    // Nothing is left to do: the same once more.
    succeed(folder, "train --resume --out run");
    assert_eq!(read(&run.join("checkpoints/step_000004/checksums")), last);
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, &format!("{tiny} --steps 9 --set train.save_every=2 --set train.keep=2 --out run"));
    assert_eq!(names(&folder.join("run/checkpoints")), ["step_000008", "step_000009"]);
}

#[test]
fn a_full_disk_is_one_line_and_leaves_the_earlier_checkpoints() {
    let folder = finished_copy();
    let folder = folder.path();
    // Files may have 32 KiB: the metrics fit, a model does not. A write beyond it fails instead of ending the process.
    let binary = env!("CARGO_BIN_EXE_nanochat-gpu");
    let script = format!("trap '' XFSZ; ulimit -f 32; exec {binary} train --resume=-1 --out run");
    // The checkpoint that fails is there from before, then it is a new one.
    for new in [false, true] {
        if new {
            succeed(folder, "train --resume=-1 --out run --stop-after 3");
        }
        let before = names(&folder.join("run/checkpoints"));
        let mut command = Command::new("bash");
        command.current_dir(folder).args(["-c", &script]).stdin(Stdio::null());
        let ended = finish(command);
        assert_refused("a full disk", &ended, &["cannot write run/checkpoints/step_000004", "free some space"]);
        assert_eq!(names(&folder.join("run/checkpoints")), before);
        for checkpoint in &before {
            succeed(folder, &format!("sample --checkpoint run/checkpoints/{checkpoint} -p 1 --max-tokens 2"));
        }
    }
    succeed(folder, "train --resume --out run");
}

#[test]
fn a_changed_control_file_is_applied_and_survives_resuming() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = format!(
        "{tiny} --steps 400 --set train.save_every=0 --set train.warmup_steps=0 --set train.cooldown_fraction=0"
    );
    let child = start_until(folder, &format!("{line} --out run --set loss.lm.weight=2"), "run", 10);
    let run = folder.join("run");
    // An editor that empties the file before it fills it changes nothing, and a key left out neither.
    std::fs::write(run.join("control.toml"), "").unwrap();
    let at = steps(&run);
    wait_until("the empty file is seen", || steps(&run) >= at + 3);
    std::fs::write(run.join("control.toml"), "lr_scale = 0.25\n").unwrap();
    wait_until("the rate is applied", || metrics(&run).last().unwrap()["lr"] == 0.25);
    std::fs::write(run.join("control.toml"), "lr_scale = 'wrong'\n").unwrap();
    let at = steps(&run);
    wait_until("the wrong file is seen", || steps(&run) >= at + 3);
    std::fs::write(run.join("control.toml"), "lr_scale = 0.5\nsave = true\n[loss.lm]\nweight = 3.0\n").unwrap();
    let saved = || names(&run.join("checkpoints")).into_iter().find(|name| name.starts_with("step_"));
    wait_until("a checkpoint is saved", || saved().is_some());
    wait_until("the request is answered", || read(&run.join("control.toml")).contains("save = false"));
    let at = steps(&run);
    wait_until("it trains on", || steps(&run) >= at + 3);
    std::fs::write(run.join("control.toml"), "stop = true\n").unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let records = metrics(&run);
    let (first, last) = (&records[0], records.last().unwrap());
    let weight = |record: &Value| record["loss"].as_f64().unwrap() / record["loss.lm"].as_f64().unwrap();
    assert!((weight(first) - 2.0).abs() < 1e-9 && (weight(last) - 3.0).abs() < 1e-9);
    assert!(records.iter().all(|record| weight(record) > 1.9), "the weight fell back to its default");
    assert_eq!((first["lr"].as_f64(), last["lr"].as_f64()), (Some(1.0), Some(0.5)));
    assert!(records.len() < 400, "it was asked to stop");
    // Go on from the end, and from the checkpoint before: the same bits, by what control.toml said then.
    let stopped = records.len();
    super::copy_folder(&run, &folder.join("again"));
    succeed(folder, &format!("train --resume=-1 --out again --stop-after {stopped}"));
    let last = |out: &str| read(&folder.join(out).join(format!("checkpoints/step_{stopped:06}/checksums")));
    assert_eq!(last("run"), last("again"));
    succeed(folder, &format!("train --resume --out again --stop-after {}", stopped + 2));
    assert_eq!(metrics(&folder.join("again")).last().unwrap()["lr"], 0.5);
}

#[test]
fn a_wrong_control_file_is_a_notice() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut command = program(folder, &format!("{tiny} --steps 4000 --set train.save_every=0 --out run"));
    let mut child = command.spawn().unwrap();
    let run = folder.join("run");
    for (content, step) in [("lr_scale = -1.0", 20), ("lr_scal = 1.0", 40), ("no toml at all", 60)] {
        wait_until("it trains", || steps(&run) >= step);
        // In one step: half a file would be a notice of its own.
        std::fs::write(run.join("control.new"), content).unwrap();
        std::fs::rename(run.join("control.new"), run.join("control.toml")).unwrap();
    }
    wait_until("it trains on", || steps(&run) >= 90);
    signal(&child, "INT");
    child.wait().unwrap();
    let ended = child.wait_with_output().unwrap();
    let out = String::from_utf8(ended.stdout).unwrap();
    for part in ["lr_scale = -1 must lie between", "lr_scal", "control.toml is not applied"] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    assert_eq!(out.matches("control.toml is not applied").count(), 3, "{out}");
}

#[test]
fn a_run_that_cannot_learn_ends_with_a_clear_line() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wild = "--steps 200 --set train.lr_scale=1e6 --set train.clip=1e30 --set train.warmup_steps=0 --optimizer adamw \
                --set train.eval_every=1 --set train.sample_every=1 --set train.bad_steps_max=3";
    let Ended { code, out, err } = run(folder, &format!("{tiny} {wild} --out run"));
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{out}{err}");
    for part in ["training stopped at step", "3 steps in a row", "lower train.lr_scale"] {
        assert!(err.contains(part), "{part}: {err}");
    }
}

#[test]
fn a_reader_that_goes_away_does_not_end_training() {
    let tiny = tiny();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for json in ["", "--json"] {
        let out = format!("run{json}");
        let mut command = program(folder, &format!("{tiny} --steps 5 --out {out} {json}"));
        let mut child = command.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(0), "{json}");
        assert_eq!(steps(&folder.join(out)), 5);
    }
}
