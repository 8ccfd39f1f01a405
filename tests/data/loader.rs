//! The loader: exact resume from any batch, what makes a state unusable, errors and endings of its thread.

use super::{assert_user_error, codec, lines, options, pieces, shown, whole_row, write};
use nanochat_gpu::data::{Batch, Loader, LoaderOptions, LoaderState, Packing, Split};
use std::collections::HashSet;
use std::path::Path;

fn long_texts(folder: &Path) -> String {
    for play in 0..5 {
        let line = |i: usize| format!("play {play} line {i} {}\n", "~".repeat(i * play % 11));
        write(folder, &format!("plays/{play}.txt"), (0..60).map(line).collect::<String>());
    }
    shown(&folder.join("plays"))
}

fn run(specs: &[String], options: &LoaderOptions, state: Option<&LoaderState>, n: usize) -> Vec<(Batch, String)> {
    let mut loader = match state {
        None => Loader::new(specs, codec(), options.clone()).unwrap(),
        Some(state) => Loader::resume(specs, codec(), options.clone(), state).unwrap(),
    };
    let mut next = || {
        let batch = loader.next_batch().unwrap();
        (batch, serde_json::to_string(loader.state()).unwrap())
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn resume_is_exact_from_every_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mixed =
        [long_texts(folder.path()), format!("{}@0.5", lines(folder.path(), "a.jsonl", 90)), "synthetic@0.7".to_owned()];
    for specs in [&mixed[..1], &mixed[1..2], &mixed[..]] {
        for packing in [Packing::Bos, Packing::Stream] {
            let options = LoaderOptions { packing, seed: 5, val_fraction: 0.1, ..options(3, 47) };
            let whole = run(specs, &options, None, 60);
            assert!(specs.len() > 1 || whole[59].0.epoch >= 1, "the run crosses an epoch");
            for (k, (_, state)) in whole.iter().enumerate().take(57).step_by(if specs.len() == 1 { 3 } else { 7 }) {
                let state: LoaderState = serde_json::from_str(state).unwrap();
                let resumed = run(specs, &options, Some(&state), 3);
                assert!(resumed[..] == whole[k + 1..k + 4], "{packing:?} {specs:?}: batches differ after batch {k}");
            }
        }
    }
}

#[test]
fn a_fresh_state_resumes_at_the_beginning() {
    let specs = ["synthetic:stories".to_owned()];
    let loader = Loader::new(&specs, codec(), options(2, 32)).unwrap();
    let state = loader.state().clone();
    assert!(run(&specs, &options(2, 32), Some(&state), 2) == run(&specs, &options(2, 32), None, 2));
}

#[test]
fn states_of_other_runs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [lines(folder.path(), "a.jsonl", 60)];
    let stream = LoaderOptions { packing: Packing::Stream, ..options(2, 32) };
    let mut loader = Loader::new(&specs, codec(), stream.clone()).unwrap();
    loader.next_batch().unwrap();
    let state = loader.state().clone();
    let resume = |specs: &[String], options: LoaderOptions| Loader::resume(specs, codec(), options, &state).map(|_| ());
    resume(&specs, stream.clone()).unwrap();
    assert_user_error(resume(&specs, LoaderOptions { seed: 1, ..stream.clone() }), &["seed 0, not 1"]);
    assert_user_error(resume(&specs, LoaderOptions { world: 2, ..stream.clone() }), &["rank 0 of 1"]);
    assert_user_error(resume(&specs, LoaderOptions { rows: 3, ..stream.clone() }), &["2 rows, not 3"]);
    assert_user_error(resume(&specs, LoaderOptions { packing: Packing::Bos, ..stream.clone() }), &["packing"]);
    assert_user_error(resume(&specs, LoaderOptions { val_fraction: 0.5, ..stream.clone() }), &["val_fraction 0"]);
    assert_user_error(resume(&[specs[0].clone(), "synthetic".to_owned()], stream.clone()), &["synthetic"]);
    lines(folder.path(), "a.jsonl", 61);
    assert_user_error(resume(&specs, stream), &["not the data of the checkpoint"]);
}

#[test]
fn another_seed_gives_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [long_texts(folder.path())];
    let seeded = |seed| run(&specs, &LoaderOptions { seed, ..options(2, 32) }, None, 2);
    assert!(seeded(1) == seeded(1));
    assert!(seeded(1) != seeded(2));
}

#[test]
fn splits_share_no_document() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [lines(folder.path(), "a.jsonl", 200)];
    let documents = |split| -> HashSet<String> {
        let options = LoaderOptions { split, val_fraction: 0.3, packing: Packing::Stream, ..options(2, 150) };
        let batches = run(&specs, &options, None, 60);
        let rows = batches.iter().flat_map(|(batch, _)| (0..2).flat_map(|row| pieces(&whole_row(batch, row))));
        // A row may begin or end within a mark; those are seen whole in another epoch.
        let mark = |piece: String| piece.strip_prefix('<')?.split_once('>').map(|(mark, _)| mark.to_owned());
        rows.filter_map(mark).collect()
    };
    let (train, held_out) = (documents(Split::Train), documents(Split::Validation));
    assert!(train.is_disjoint(&held_out));
    assert_eq!(train.len() + held_out.len(), 200);
}

#[test]
fn an_error_comes_through_once_and_later_calls_fail() {
    let folder = tempfile::tempdir().unwrap();
    let good: String = (0..300).map(|i| format!("{{\"text\":\"line {i} is good enough\"}}\n")).collect();
    let spec = shown(&write(folder.path(), "bad.jsonl", good + "{broken\n"));
    let mut loader = Loader::new(&[spec], codec(), options(1, 64)).unwrap();
    let error = (0..1000).find_map(|_| loader.next_batch().err()).expect("the broken line is reached");
    assert_user_error(Err::<(), _>(error), &["bad.jsonl, line 301"]);
    assert!(loader.next_batch().is_err());
}

#[test]
fn dropping_a_loader_ends_its_thread() {
    for taken in [0, 1, 5] {
        let mut loader = Loader::new(&["synthetic".to_owned()], codec(), options(2, 64)).unwrap();
        for _ in 0..taken {
            loader.next_batch().unwrap();
        }
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(loader);
            send.send(()).unwrap();
        });
        receive.recv_timeout(std::time::Duration::from_secs(20)).expect("the drop hangs");
    }
}
