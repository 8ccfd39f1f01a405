//! The contract of both packings, and the shares of a mixture.

use super::{BOS, assert_user_error, codec, corpus, options, pieces, shown, whole_row, write};
use nanochat_gpu::data::mixture::Shares;
use nanochat_gpu::data::{Batch, ChatTargets, Corpus, IGNORE, LoaderOptions, Packing};
use proptest::prelude::*;
use std::collections::HashSet;
use std::path::Path;

/// One JSONL document per character, which it starts with; of 2 to about 50 bytes.
fn marked(folder: &Path) -> (String, Vec<String>) {
    let marks = ('!'..='z').filter(|mark| !['"', '\\'].contains(mark));
    let documents: Vec<String> =
        marks.map(|mark| format!("{mark}{}", "~".repeat(1 + mark as usize * 37 % 50))).collect();
    let lines: String = documents.iter().map(|text| format!("{{\"text\":\"{text}\"}}\n")).collect();
    (shown(&write(folder, "marked.jsonl", lines)), documents)
}

fn batches(specs: &[String], options: &LoaderOptions, n: usize) -> Vec<Batch> {
    let mut packer = corpus(specs, options).packer(None).unwrap();
    (0..n).map(|_| packer.next_batch().unwrap()).collect()
}

/// What holds of every batch without masks: shifted targets, document starts, bytes.
fn check_layout(batch: &Batch) {
    let Batch { rows, seq_len, .. } = *batch;
    for values in [&batch.tokens, &batch.targets, &batch.doc_start, &batch.begins] {
        assert_eq!(values.len(), rows * seq_len);
    }
    for row in 0..rows {
        let at = row * seq_len;
        assert_eq!(
            batch.targets[at..at + seq_len - 1],
            batch.tokens[at + 1..at + seq_len],
            "targets are inputs shifted"
        );
        let mut start = 0;
        for t in 0..seq_len {
            if batch.tokens[at + t] == BOS {
                start = t as u32;
            }
            assert_eq!(batch.doc_start[at + t], start);
            assert_eq!(batch.begins[at + t], u32::from(batch.tokens[at + t] == BOS));
            assert_eq!(batch.bytes_in_targets[at + t], u16::from(batch.targets[at + t] != BOS));
        }
    }
}

#[test]
fn bos_rows_hold_every_document_once_per_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, documents) = marked(folder.path());
    let batches = batches(&[spec], &options(3, 60), 60);
    let mut emitted = Vec::new();
    for batch in &batches {
        check_layout(batch);
        for row in 0..3 {
            let ids = whole_row(batch, row);
            assert_eq!(ids[0], BOS, "rows start at a document's start");
            let pieces = pieces(&ids);
            for (index, piece) in pieces.iter().enumerate() {
                let whole = documents.iter().find(|text| text.starts_with(&piece[..1])).unwrap();
                assert!(
                    piece == whole || (index + 1 == pieces.len() && whole.starts_with(piece)),
                    "only a row's end crops"
                );
            }
            emitted.extend(pieces.into_iter().map(|piece| piece[..1].to_owned()));
        }
    }
    let epochs = emitted.chunks_exact(documents.len());
    assert!(epochs.len() >= 3);
    for epoch in epochs {
        assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), documents.len(), "an epoch has every document once");
    }
    assert_eq!(batches[0].epoch, 0);
    assert!(batches[59].epoch >= 3);
}

#[test]
fn best_fit_wastes_little() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, documents) = marked(folder.path());
    let batches = batches(&[spec], &options(4, 200), 50);
    let rows = batches.iter().flat_map(|batch| (0..4).map(|row| whole_row(batch, row)));
    let cropped = rows.filter(|ids| pieces(ids).last().is_some_and(|last| !documents.contains(last))).count();
    assert!(cropped < 50, "{cropped} of 200 rows end in a cropped document");
}

#[test]
fn long_documents_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let digits: String = (0..300).map(|n| format!("{n}\n")).collect();
    let letters: String = (0..200).map(|n: u32| format!("{}\n", "abcdefghijk"[n as usize % 7..].to_owned())).collect();
    write(folder.path(), "a.txt", &digits);
    write(folder.path(), "b.txt", &letters);
    let batches = batches(&[shown(folder.path())], &options(2, 64), 25);
    let mut texts = [String::new(), String::new()];
    for batch in &batches {
        check_layout(batch);
        for row in 0..2 {
            for piece in pieces(&whole_row(batch, row)) {
                assert!(piece.len() <= 64);
                let letters = piece.contains(|c: char| c.is_ascii_lowercase());
                texts[usize::from(letters)].push_str(&piece);
            }
        }
    }
    for (text, whole) in texts.iter().zip([digits, letters]) {
        assert!(text.starts_with(&whole), "pieces follow one another without a gap");
        assert!(text.len() > whole.len(), "a second epoch began");
    }
}

#[test]
fn streams_go_on_and_hold_every_document_once_per_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, documents) = marked(folder.path());
    for rows in [1, 3] {
        let options = LoaderOptions { packing: Packing::Stream, ..options(rows, 31) };
        let batches = batches(std::slice::from_ref(&spec), &options, 300 / rows);
        let mut first_epoch = Vec::new();
        for row in 0..rows {
            let mut stream: Vec<u32> = Vec::new();
            for batch in &batches {
                check_layout(batch);
                let ids = whole_row(batch, row);
                match stream.last() {
                    None => assert_eq!(ids[0], BOS),
                    Some(last) => assert_eq!(&ids[0], last, "a row begins with the last target of the row before it"),
                }
                let shared = usize::from(!stream.is_empty());
                stream.extend(&ids[shared..]);
            }
            let mut complete = pieces(&stream);
            complete.pop();
            assert!(complete.iter().all(|piece| documents.contains(piece)), "documents are whole in a stream");
            if rows == 1 {
                for epoch in complete.chunks_exact(documents.len()) {
                    assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), documents.len());
                }
                assert!(complete.len() > 3 * documents.len());
            }
            first_epoch.extend(complete.into_iter().take(documents.len() / 6));
        }
        let distinct: HashSet<_> = first_epoch.iter().collect();
        assert_eq!(distinct.len(), first_epoch.len(), "rows have documents of their own");
    }
}

#[test]
fn ranks_share_an_epoch_without_overlap() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, documents) = marked(folder.path());
    let mut seen = HashSet::new();
    for rank in 0..2 {
        let options = LoaderOptions { rank, world: 2, ..options(1, 60) };
        let batches = batches(std::slice::from_ref(&spec), &options, 60);
        let marks = batches.iter().flat_map(|batch| pieces(&whole_row(batch, 0))).map(|piece| piece[..1].to_owned());
        let own = documents.len().div_ceil(2) - if documents.len() % 2 == 1 { rank } else { 0 };
        for mark in marks.take(own) {
            assert!(seen.insert(mark));
        }
    }
    assert_eq!(seen.len(), documents.len());
}

/// Two streams in rows of 120 tokens are the same two in three rows of 40 each.
#[test]
fn segments_of_a_stream_lie_one_behind_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, _) = marked(folder.path());
    let of = |rows: usize, seq_len: usize, segments: usize| {
        let options = LoaderOptions { packing: Packing::Stream, segments, ..options(rows, seq_len) };
        batches(std::slice::from_ref(&spec), &options, 12)
    };
    for (long, short) in of(2, 120, 1).into_iter().zip(of(6, 40, 3)) {
        assert_eq!((long.segments, short.segments, short.rows), (1, 3, 6));
        assert_eq!((long.tokens, long.targets, long.begins), (short.tokens, short.targets, short.begins));
    }
    let error = Corpus::open(&[spec], codec(), LoaderOptions { segments: 4, ..options(6, 40) });
    assert_user_error(error.map(drop), &["4 segments do not divide 6 rows"]);
}

#[test]
fn mixtures_keep_their_shares_of_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let source = |letter: &str, length: usize| {
        let line = |i: usize| format!("{{\"text\":\"{}\"}}\n", letter.repeat(1 + (i * 13) % length));
        let path = write(folder.path(), &format!("{letter}.jsonl"), (0..300).map(line).collect::<String>());
        shown(&path)
    };
    let specs = vec![source("a", 10), format!("{}@2", source("b", 40)), format!("{}@5", source("c", 400))];
    for packing in [Packing::Bos, Packing::Stream] {
        let batches = batches(&specs, &LoaderOptions { packing, ..options(4, 128) }, 200);
        let mut tokens = [0.0; 3];
        for piece in batches.iter().flat_map(|batch| (0..4).flat_map(|row| pieces(&whole_row(batch, row)))) {
            tokens["abc".find(&piece[..1]).unwrap()] += 1.0 + piece.len() as f64;
        }
        let total: f64 = tokens.iter().sum();
        for (share, wanted) in tokens.iter().zip([0.125, 0.25, 0.625]) {
            assert!((share / total - wanted).abs() < 0.02, "{packing:?}: {tokens:?}");
        }
    }
}

#[test]
fn only_the_assistant_is_learnt_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let line = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"ask {i}\"}},{{\"role\":\"assistant\",\"content\":\"ANSWER\"}}]}}\n"
        )
    };
    let spec = shown(&write(folder.path(), "chats.jsonl", (0..50).map(line).collect::<String>()));
    let all = batches(std::slice::from_ref(&spec), &options(2, 100), 2);
    let options = LoaderOptions { chat_targets: ChatTargets::Assistant, ..options(2, 100) };
    let some = batches(&[spec], &options, 2);
    for (all, some) in all.iter().zip(&some) {
        assert_eq!(all.tokens, some.tokens);
        let learnt: Vec<u32> = some.targets.iter().copied().filter(|&id| id != IGNORE).collect();
        let text = String::from_utf8(codec().decode(&learnt)).unwrap();
        assert!(text.contains("ANSWERANSWER") && !text.contains("ask"), "{text}");
        let counted = some.targets.iter().zip(&some.bytes_in_targets).all(|(&id, &bytes)| id != IGNORE || bytes == 0);
        assert!(counted, "ignored targets have no bytes");
    }
}

proptest! {
    #[test]
    fn shares_stay_within_a_document(
        weights in prop::collection::vec(0.05f64..10.0, 1..5),
        sizes in prop::collection::vec(1usize..50, 200..400),
    ) {
        let total_weight: f64 = weights.iter().sum();
        let mut shares = Shares::new(weights.clone());
        let mut total = 0.0;
        for size in sizes {
            shares.charge(shares.order()[0], size);
            total += size as f64;
        }
        // The source furthest ahead got its last document when it was furthest behind.
        for (emitted, weight) in shares.emitted().iter().zip(&weights) {
            let wanted = total * weight / total_weight;
            prop_assert!(*emitted as f64 <= wanted + 50.0, "{emitted} of {wanted}");
        }
    }
}
