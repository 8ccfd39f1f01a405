//! `data prepare` and `data info`: shards hold the very tokens of the text.

use super::{BOS, assert_user_error, codec, corpus, lines, options, shown, write};
use nanochat_gpu::data::prepare::{PrepareOptions, inventory, prepare};
use nanochat_gpu::data::{LoaderOptions, open_documents};

fn prepare_options() -> PrepareOptions {
    let tokenizer_digest = Some("ab".repeat(32));
    PrepareOptions { val_fraction: 0.1, shard_tokens: 4000, endless_tokens: 10_000, tokenizer_digest }
}

#[test]
fn shards_hold_all_documents_of_both_splits() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let specs = [lines(folder.path(), "a.jsonl", 400)];
    let mut seen = 0;
    let prepared = prepare(&specs, &*codec(), &out, &prepare_options(), &mut |tokens| seen = tokens).unwrap();
    assert!(prepared.files.len() > 4, "{:?}", prepared.files);
    assert_eq!(prepared.train.documents + prepared.validation.documents, 400);
    assert_eq!(seen, prepared.train.tokens + prepared.validation.tokens);
    assert_eq!(seen, prepared.train.bytes + prepared.validation.bytes + 400);

    let text = inventory(&specs[0], Some(&*codec()), None, 0).unwrap();
    let shards = inventory(&shown(&out.join("*.bin")), Some(&*codec()), Some("ab".repeat(32)), 0).unwrap();
    assert_eq!(text.counts, shards.counts);
    assert_eq!(inventory(&specs[0], None, None, 0).unwrap().counts.tokens, 0);

    let trained_on = LoaderOptions { tokenizer_digest: Some("ab".repeat(32)), ..options(2, 64) };
    let batch = corpus(&[shown(&out)], &trained_on).packer(None).unwrap().next_batch().unwrap();
    assert_eq!(batch.tokens[0], BOS);
    assert_user_error(open_documents(&[shown(&out)]).unwrap().collect::<Result<Vec<_>, _>>(), &["token shards"]);
    let again = prepare(&specs, &*codec(), &out, &prepare_options(), &mut |_| ());
    assert_user_error(again, &["train_000000.bin", "exists already"]);
    let of_shards = prepare(&[shown(&out)], &*codec(), &folder.path().join("b"), &prepare_options(), &mut |_| ());
    assert_user_error(of_shards, &["token shards already"]);
}

#[test]
fn nothing_is_left_of_a_failed_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let good: String = (0..600).map(|i| format!("{{\"text\":\"line {i} is good enough\"}}\n")).collect();
    let spec = shown(&write(folder.path(), "bad.jsonl", good + "{broken\n"));
    assert_user_error(prepare(&[spec], &*codec(), &out, &prepare_options(), &mut |_| ()), &["line 601"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    let weighted = prepare(&["synthetic@2".to_owned()], &*codec(), &out, &prepare_options(), &mut |_| ());
    assert_user_error(weighted, &["weights when training"]);
}

#[test]
fn built_in_data_ends_at_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ["synthetic".to_owned()];
    let prepared = prepare(&spec, &*codec(), folder.path(), &prepare_options(), &mut |_| ()).unwrap();
    assert!((10_000..200_000).contains(&prepared.train.tokens), "{prepared:?}");
    let held = inventory("synthetic:counting@3", Some(&*codec()), None, 5_000).unwrap();
    assert!(held.endless && held.weight == 3.0 && held.counts.bytes >= 5_000);
}
