//! The built-in tasks: deterministic, right, and never the same content in both splits.

use nanochat_gpu::data::random::identity;
use nanochat_gpu::data::source::Document;
use nanochat_gpu::data::synthetic::{Sample, Task, sample};
use nanochat_gpu::data::{ENDLESS_BYTES, open_documents};
use std::collections::{HashMap, HashSet};

fn text(sample: &Sample) -> String {
    match &sample.document {
        Document::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Document::Chat(messages) => messages.iter().map(|m| format!("{}: {}\n", m.role, m.content)).collect(),
        Document::Tokens(_) => panic!("no tokens here"),
    }
}

#[test]
fn a_document_is_a_function_of_seed_task_and_index() {
    for (_, task) in Task::ALL {
        let first: Vec<Sample> = (0..50).map(|i| sample(3, task, i, true)).collect();
        let again: Vec<Sample> = (0..50).rev().map(|i| sample(3, task, i, true)).collect();
        assert!(first.iter().eq(again.iter().rev()));
        assert!((0..50).any(|i| sample(4, task, i, true) != first[i as usize]));
        assert!(first.iter().map(text).collect::<HashSet<_>>().len() > 30, "{task:?} varies");
    }
}

#[test]
fn splits_share_no_text_and_no_key() {
    let bound = (0.1 * u64::MAX as f64) as u64;
    for (name, task) in Task::ALL {
        let mut sides: HashMap<String, bool> = HashMap::new();
        let mut held_out = 0;
        for index in 0..20_000 {
            for seed in [0, 1] {
                let sample = sample(seed, task, index, true);
                let validation = identity(sample.key.as_bytes()) <= bound;
                held_out += usize::from(validation);
                let side = *sides.entry(text(&sample)).or_insert(validation);
                assert_eq!(side, validation, "{name}: the same text on both sides: {}", text(&sample));
            }
        }
        assert!((1_000..9_000).contains(&held_out), "{name} holds out {held_out} of 40000");
    }
}

#[test]
fn a_sum_falls_on_one_side_in_every_task_and_order() {
    let mut sums: HashMap<(u64, u64), String> = HashMap::new();
    for task in [Task::AdditionPlain, Task::AdditionReversed] {
        for index in 0..5_000 {
            let sample = sample(0, task, index, true);
            let text = text(&sample);
            let sum = text.trim().trim_start_matches("reversed: ");
            let numbers: Vec<u64> = sum
                .split(['+', '='])
                .map(|digits| match task {
                    Task::AdditionReversed => digits.chars().rev().collect::<String>().parse().unwrap(),
                    _ => digits.parse().unwrap(),
                })
                .collect();
            assert_eq!(numbers[0] + numbers[1], numbers[2], "{text}");
            let operands = (numbers[0].min(numbers[1]), numbers[0].max(numbers[1]));
            assert_eq!(sums.entry(operands).or_insert(sample.key.clone()), &sample.key);
        }
    }
}

#[test]
fn stories_read_well() {
    for index in 0..3_000 {
        let story = text(&sample(0, Task::Stories, index, true));
        assert!(story.ends_with(".\n") || story.ends_with("\"\n"), "{story}");
        for wrong in ["  ", "hisself", "hiss", "a orange", "an red", "{", " ,"] {
            assert!(!story.contains(wrong), "'{wrong}' in: {story}");
        }
        assert!(story.split(' ').count() > 40, "{story}");
    }
}

#[test]
fn tokenizer_training_gets_a_finite_share() {
    let documents = open_documents(&["synthetic".to_owned(), "synthetic:counting".to_owned()]).unwrap();
    let bytes: usize = documents.map(|document| document.unwrap().len()).sum();
    assert!((2 * ENDLESS_BYTES..2 * ENDLESS_BYTES + 10_000).contains(&bytes), "{bytes}");
}
