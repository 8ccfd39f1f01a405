//! Every kind of source: what it yields, its split, and what it says of bad input.

use super::{assert_user_error, codec, corpus, options, shown, write};
use nanochat_gpu::data::shards::Expected;
use nanochat_gpu::data::source::{Document, Place};
use nanochat_gpu::data::walker::{Visit, Walker};
use nanochat_gpu::data::{Collection, CollectionOptions, Corpus, Spec, Split, open_documents};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

fn open(spec: &str, split: Split, val_fraction: f64) -> anyhow::Result<Arc<Collection>> {
    let expected = Expected::default();
    let options = CollectionOptions { split, val_fraction, seed: 0, expected, chats: true };
    Collection::open(&Spec::parse(spec)?, &options).map(Arc::new)
}

fn all(collection: &Arc<Collection>) -> anyhow::Result<Vec<(Place, Document)>> {
    let mut walker = collection.walk()?;
    std::iter::from_fn(|| walker.advance().transpose()).collect()
}

fn texts(spec: &str, split: Split, val_fraction: f64) -> Vec<String> {
    let document = |(_, document)| match document {
        Document::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("{other:?} is no text"),
    };
    all(&open(spec, split, val_fraction).unwrap()).unwrap().into_iter().map(document).collect()
}

/// Writes `text` (a string or none) in row groups of `group` rows.
fn write_parquet(path: &Path, rows: &[Option<String>], group: usize) {
    let schema = "message m { required int32 id; optional binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, Default::default()).unwrap();
    for rows in rows.chunks(group) {
        let mut writer = file.next_row_group().unwrap();
        let mut column = writer.next_column().unwrap().unwrap();
        let ids: Vec<i32> = (0..rows.len() as i32).collect();
        column.typed::<Int32Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = writer.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(text.as_str())).collect();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        writer.close().unwrap();
    }
    file.close().unwrap();
}

#[test]
fn few_text_files_hold_out_their_ends() {
    let folder = tempfile::tempdir().unwrap();
    for play in 0..3 {
        let text: String = (0..200).map(|line| format!("play {play} line {line}\n")).collect();
        write(folder.path(), &format!("{play}.txt"), text);
    }
    let spec = shown(folder.path());
    let (train, held_out) = (texts(&spec, Split::Train, 0.1), texts(&spec, Split::Validation, 0.1));
    assert_eq!((train.len(), held_out.len()), (3, 3));
    for (play, (train, held_out)) in train.iter().zip(&held_out).enumerate() {
        let whole = std::fs::read_to_string(folder.path().join(format!("{play}.txt"))).unwrap();
        assert_eq!(format!("{train}{held_out}"), whole);
        assert!(train.ends_with('\n') && held_out.starts_with("play"));
        assert!((held_out.len() as f64 / whole.len() as f64 - 0.1).abs() < 0.01);
    }
    assert_eq!(texts(&spec, Split::Train, 0.0).concat().len(), train.concat().len() + held_out.concat().len());
    assert!(open(&spec, Split::Train, 1.0).is_err());
}

#[test]
fn many_text_files_are_split_by_content() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..300 {
        write(folder.path(), &format!("{i}.txt"), format!("document {}", i / 2));
    }
    let spec = shown(folder.path());
    let train: HashSet<String> = texts(&spec, Split::Train, 0.2).into_iter().collect();
    let held_out: HashSet<String> = texts(&spec, Split::Validation, 0.2).into_iter().collect();
    assert!(train.is_disjoint(&held_out), "copies fall on one side");
    assert_eq!(train.len() + held_out.len(), 150);
    assert!((15..50).contains(&held_out.len()), "{}", held_out.len());
}

#[test]
fn long_texts_are_cut_after_lines() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..90_000).map(|line| format!("line number {line}\n")).collect();
    let long_line = "é".repeat(700_000);
    for (name, content) in [("lines.txt", &lines), ("one.txt", &long_line)] {
        let path = shown(&write(folder.path(), name, content));
        let parts = texts(&path, Split::Train, 0.0);
        assert!(parts.len() >= 2 && parts.iter().all(|part| part.len() <= 1 << 20));
        assert_eq!(&parts.concat(), content);
        assert!(name == "one.txt" || parts.iter().all(|part| part.ends_with('\n')));
    }
}

#[test]
fn json_lines_across_ranges_and_from_any_place() {
    let folder = tempfile::tempdir().unwrap();
    let line = |i: usize| format!("{{\"text\": \"{i} {}\"}}\n", "z".repeat(9_000));
    let path =
        shown(&write(folder.path(), "a.jsonl", (0..1200).map(line).collect::<String>() + "\n  \n{\"text\":\"end\"}"));
    let collection = open(&path, Split::Train, 0.0).unwrap();
    assert!(collection.units() >= 3, "several ranges");
    let found = all(&collection).unwrap();
    assert_eq!(found.len(), 1201);
    for (place, document) in found.iter().step_by(97) {
        assert_eq!(&collection.read(*place).unwrap(), document);
    }
    let unique: HashSet<String> = texts(&path, Split::Train, 0.1).into_iter().collect();
    assert!(unique.is_disjoint(&texts(&path, Split::Validation, 0.1).into_iter().collect()));
}

#[test]
fn few_json_lines_still_have_a_validation_split() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        shown(&write(folder.path(), "a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\"}\n{\"text\":\"three\"}\n"));
    assert_eq!(texts(&path, Split::Train, 0.02).len(), 2);
    assert_eq!(texts(&path, Split::Validation, 0.02).len(), 1);
}

#[test]
fn bad_json_lines_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("{\"text\": \"cut", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("{\"body\": 1}", "neither a key 'text'"),
        ("{\"text\": 7}", "not a string"),
        ("{\"messages\": 7}", "not a list"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "'content'"),
    ];
    for (line, reason) in cases {
        let path = shown(&write(folder.path(), "bad.jsonl", format!("{{\"text\":\"good\"}}\n\n{line}\n")));
        assert_user_error(all(&open(&path, Split::Train, 0.0).unwrap()), &["bad.jsonl, line 3", reason]);
    }
}

#[test]
fn chats_become_messages() {
    let folder = tempfile::tempdir().unwrap();
    let line = r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#;
    let path = shown(&write(folder.path(), "c.jsonl", line));
    let found = all(&open(&path, Split::Train, 0.0).unwrap()).unwrap();
    let Document::Chat(messages) = &found[0].1 else { panic!("a chat") };
    assert_eq!((messages[1].role.as_str(), messages[1].content.to_string().as_str()), ("assistant", "Hello"));
    let read: Vec<_> = open_documents(&[path]).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, [b"Hi\nHello".to_vec()]);
}

#[test]
fn parquet_rows_groups_and_nulls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let rows: Vec<Option<String>> = (0..500).map(|i| (i % 7 != 3).then(|| format!("row {i}"))).collect();
    write_parquet(&path, &rows, 150);
    let spec = shown(&path);
    assert_eq!(texts(&spec, Split::Train, 0.0), rows.iter().flatten().cloned().collect::<Vec<_>>());
    let collection = open(&spec, Split::Train, 0.0).unwrap();
    assert_eq!(collection.units(), 4);
    for (place, document) in all(&collection).unwrap().iter().step_by(41) {
        assert_eq!(&collection.read(*place).unwrap(), document);
    }
}

#[test]
fn broken_parquet_is_a_user_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.parquet");
    let rows: Vec<Option<String>> = (0..400).map(|i| Some(format!("row {i} {}", i * i))).collect();
    write_parquet(&path, &rows, 150);
    let good = std::fs::read(&path).unwrap();
    let bad = |name: &str, bytes: &[u8]| shown(&write(folder.path(), name, bytes));
    assert_user_error(open(&bad("cut.parquet", &good[..good.len() / 2]), Split::Train, 0.0), &["cut.parquet"]);
    assert_user_error(open(&bad("junk.parquet", b"no parquet at all"), Split::Train, 0.0), &["junk.parquet"]);
    assert_user_error(open(&bad("empty.parquet", b""), Split::Train, 0.0), &["empty.parquet"]);
    let mut zeroed = good.clone();
    zeroed[2000..4500].fill(0xff);
    let outcome = open(&bad("pages.parquet", &zeroed), Split::Train, 0.0).and_then(|collection| all(&collection));
    assert_user_error(outcome, &["pages.parquet"]);

    let schema = Arc::new(parse_message_type("message m { required int32 body; }").unwrap());
    let other = folder.path().join("other.parquet");
    let file = SerializedFileWriter::new(std::fs::File::create(&other).unwrap(), schema, Default::default()).unwrap();
    file.close().unwrap();
    assert_user_error(open(&shown(&other), Split::Train, 0.0), &["no column 'text'", "body"]);
}

#[test]
fn ranks_are_disjoint_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let spec = super::lines(folder.path(), "a.jsonl", 311);
    let collection = open(&spec, Split::Train, 0.1).unwrap();
    let mut expected: Vec<Place> = all(&collection).unwrap().into_iter().map(|(place, _)| place).collect();
    for epoch in 0..2 {
        let mut found = Vec::new();
        for rank in 0..3 {
            let mut walker = Walker::new(collection.clone(), Visit { seed: Some(9), rank, world: 3 }).unwrap();
            for _ in 0..epoch {
                while walker.advance().unwrap().is_some() {}
                walker.next_epoch();
            }
            found.extend(std::iter::from_fn(|| walker.advance().unwrap()).map(|(place, _)| place));
        }
        found.sort_by_key(|place| (place.unit, place.offset));
        expected.sort_by_key(|place| (place.unit, place.offset));
        assert_eq!(found, expected);
    }
    assert_user_error(Walker::new(collection, Visit { seed: None, rank: 3, world: 3 }).map(|_| ()), &["rank 3 of 3"]);
}

#[test]
fn units_are_shuffled_every_epoch() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..40 {
        write(folder.path(), &format!("{i:02}.txt"), format!("text {i}\n"));
    }
    let collection = open(&shown(folder.path()), Split::Train, 0.0).unwrap();
    let mut walker = Walker::new(collection, Visit { seed: Some(1), rank: 0, world: 1 }).unwrap();
    let mut epoch = || {
        let units: Vec<u64> = std::iter::from_fn(|| walker.advance().unwrap()).map(|(place, _)| place.unit).collect();
        walker.next_epoch();
        units
    };
    let (mut first, mut second) = (epoch(), epoch());
    assert_ne!(first, second);
    first.sort_unstable();
    second.sort_unstable();
    assert_eq!(first, second);
}

#[test]
fn empty_and_tiny_corpora() {
    let folder = tempfile::tempdir().unwrap();
    let empty = vec![shown(&write(folder.path(), "empty.txt", ""))];
    assert_user_error(corpus(&empty, &options(2, 8)).packer(None).unwrap().next_batch(), &["empty.txt", "no training"]);
    let blank = vec![shown(&write(folder.path(), "blank.jsonl", "{\"text\":\"\"}\n\n"))];
    assert_user_error(corpus(&blank, &options(2, 8)).packer(None).unwrap().next_batch(), &["blank.jsonl"]);
    let tiny = vec![shown(&write(folder.path(), "tiny.txt", "only this\n"))];
    let outcome = corpus(&tiny, &options(2, 64)).packer(None).unwrap().next_batch();
    assert_user_error(outcome, &["tiny.txt", "11 tokens", "130", "seq_len"]);
    assert!(corpus(&tiny, &options(1, 10)).packer(None).unwrap().next_batch().is_ok());
    assert_user_error(Corpus::open(&tiny, codec(), options(0, 8)).map(|_| ()), &["rows is 0"]);
    let train_only = nanochat_gpu::data::LoaderOptions { split: Split::Validation, ..options(1, 4) };
    assert_user_error(corpus(&tiny, &train_only).packer(None).unwrap().next_batch(), &["validation", "val_fraction"]);
}
