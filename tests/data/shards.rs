//! Token shards: round trips, llm.c's header, and every way a shard can be wrong.

use super::{BOS, assert_user_error, corpus, options, shown, whole_row, write};
use nanochat_gpu::data::Split;
use nanochat_gpu::data::shards::{Expected, HEADER_BYTES, MAGIC, ShardHeader, ShardWriter, TokenShards, by_name};
use nanochat_gpu::data::source::{Document, Place, Source};
use std::path::{Path, PathBuf};

fn header(token_bytes: usize) -> ShardHeader {
    ShardHeader {
        token_bytes,
        tokens: 0,
        vocab_size: Some(280),
        bos: Some(BOS),
        digest_prefix: Some("00112233445566778899aabbccddeeff".to_owned()),
    }
}

fn write_shard(path: &Path, token_bytes: usize, ids: &[u32]) -> PathBuf {
    let mut writer = ShardWriter::create(path, header(token_bytes)).unwrap();
    for chunk in ids.chunks(5) {
        writer.push(chunk).unwrap();
    }
    assert!(!path.exists(), "nothing under its name before it is complete");
    writer.seal().unwrap();
    writer.finish().unwrap()
}

fn documents(shards: &TokenShards) -> anyhow::Result<Vec<(Place, Vec<u32>)>> {
    let mut found = Vec::new();
    for unit in 0..shards.units() {
        let mut reader = shards.open(Place { unit, offset: 0 })?;
        while let Some(record) = reader.advance()? {
            let Document::Tokens(ids) = reader.document()? else { panic!("tokens") };
            found.push((Place { unit, offset: record.offset }, ids));
        }
    }
    Ok(found)
}

/// llm.c's header: three words, the rest zero.
fn llmc(version: u32, count: u32, ids: &[u16]) -> Vec<u8> {
    let mut words = [0u32; 256];
    words[..3].copy_from_slice(&[MAGIC, version, count]);
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    bytes
}

#[test]
fn round_trip_of_both_widths() {
    let folder = tempfile::tempdir().unwrap();
    let ids = [BOS, 1, 2, 3, BOS, 4, BOS, 5, 6, 7, 8, 9];
    for token_bytes in [2, 4] {
        let path = write_shard(&folder.path().join(format!("{token_bytes}.bin")), token_bytes, &ids);
        let expected = Expected { vocab_size: Some(280), bos: Some(BOS), digest: None };
        let shards = TokenShards::open("s", &[path], &expected).unwrap();
        let (_, read) = shards.headers().next().unwrap();
        assert_eq!(read, &ShardHeader { tokens: 12, ..header(token_bytes) });
        let found = documents(&shards).unwrap();
        let texts: Vec<&[u32]> = found.iter().map(|(_, ids)| ids.as_slice()).collect();
        assert_eq!(texts, [&ids[..4], &ids[4..6], &ids[6..]]);
        for (place, ids) in &found {
            let mut reader = shards.open(*place).unwrap();
            reader.advance().unwrap();
            assert_eq!(reader.document().unwrap(), Document::Tokens(ids.clone()));
        }
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "no temporary files stay");
    drop(ShardWriter::create(&folder.path().join("x.bin"), header(2)).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), left);
}

#[test]
fn llm_c_shards_feed_batches() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u16> = (0..400).map(|i| if i % 50 == 0 { BOS as u16 } else { i % 200 }).collect();
    let path = shown(&write(folder.path(), "gpt.bin", llmc(1, 400, &ids)));
    let batch = corpus(&[path], &options(2, 49)).packer(None).unwrap().next_batch().unwrap();
    for row in 0..2 {
        let ids: Vec<u16> = whole_row(&batch, row).iter().map(|&id| id as u16).collect();
        assert_eq!(ids[0], BOS as u16);
        assert!((0..8).any(|document| ids == ids_of(document)), "a row is a document: {ids:?}");
    }
    fn ids_of(document: u16) -> Vec<u16> {
        (document * 50..document * 50 + 50).map(|i| if i % 50 == 0 { BOS as u16 } else { i % 200 }).collect()
    }
}

#[test]
fn wrong_shards() {
    let folder = tempfile::tempdir().unwrap();
    let expected = Expected { vocab_size: Some(280), bos: Some(BOS), digest: Some("00112233ffff".to_owned()) };
    let open =
        |name: &str, bytes: &[u8]| TokenShards::open("s", &[write(folder.path(), name, bytes)], &expected).map(|_| ());
    let good = llmc(1, 4, &[256, 1, 2, 3]);
    open("good.bin", &good).unwrap();
    let mut magic = good.clone();
    magic[0] ^= 1;
    assert_user_error(open("magic.bin", &magic), &["magic.bin", "no token shard"]);
    assert_user_error(open("version.bin", &llmc(7, 4, &[1, 2, 3, 4])), &["version 7"]);
    assert_user_error(open("short.bin", &good[..good.len() - 1]), &["promises 4 tokens", "1031"]);
    assert_user_error(open("long.bin", &[good.clone(), vec![0]].concat()), &["long.bin"]);
    assert_user_error(open("head.bin", &good[..HEADER_BYTES - 1]), &["too short"]);
    assert_user_error(open("none.bin", b""), &["too short"]);
    assert_user_error(open("ids.bin", &llmc(1, 4, &[256, 1, 280, 3])), &["token 2", "byte 1028", "280"]);
    let with = |change: fn(&mut ShardHeader)| {
        let mut header = ShardHeader { digest_prefix: None, ..header(2) };
        change(&mut header);
        header.to_bytes()
    };
    assert_user_error(open("vocab.bin", &with(|header| header.vocab_size = Some(300))), &["vocabulary of 300"]);
    assert_user_error(open("bos.bin", &with(|header| header.bos = Some(0))), &["id 0"]);
    let digest = with(|header| header.digest_prefix = Some("0011223344556677".repeat(2)));
    assert_user_error(open("digest.bin", &digest), &["another tokenizer"]);
}

#[test]
fn late_bad_ids_are_found_as_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut ids = vec![7u16; 5000];
    ids[4321] = 999;
    let path = write(folder.path(), "late.bin", llmc(1, 5000, &ids));
    let expected = Expected { vocab_size: Some(280), bos: Some(BOS), digest: None };
    let shards = TokenShards::open("s", &[path], &expected).unwrap();
    assert_user_error(documents(&shards), &["late.bin", "token 4321", "byte 9666", "999"]);
}

#[test]
fn names_tell_the_split() {
    let paths: Vec<PathBuf> = ["fine_train_0.bin", "fine_val_0.bin", "interval_0.bin"].map(PathBuf::from).to_vec();
    assert_eq!(by_name(&paths, Split::Validation).unwrap(), [paths[1].clone()]);
    assert_eq!(by_name(&paths, Split::Train).unwrap().len(), 2);
    assert_eq!(by_name(&paths[2..], Split::Train), None);
    assert_eq!(by_name(&paths[1..2], Split::Train), None);
}
