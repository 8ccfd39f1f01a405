//! Tests of `data`, and what they share: a byte codec, corpora on disk, and ways to hold batches against documents.

mod loader;
mod packing;
mod prepare;
mod shards;
mod sources;
mod spec;
mod synthetic;

use nanochat_gpu::data::{Batch, Corpus, LoaderOptions};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::tokenizer::Codec;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const BOS: u32 = 256;

/// Ids 0..256 are bytes, then come specials.
pub struct ByteCodec {
    bytes: Vec<u8>,
}

impl Codec for ByteCodec {
    fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>) {
        out.extend(bytes.iter().map(|&byte| u32::from(byte)));
    }
    fn decode_into(&self, ids: &[u32], out: &mut Vec<u8>) {
        out.extend(ids.iter().filter_map(|&id| u8::try_from(id).ok()));
    }
    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize..id as usize + 1)
    }
    fn vocab_size(&self) -> usize {
        280
    }
    fn special(&self, name: &str) -> Option<u32> {
        match name {
            "<|bos|>" => Some(BOS),
            "<|user_start|>" => Some(257),
            "<|user_end|>" => Some(258),
            "<|assistant_start|>" => Some(259),
            "<|assistant_end|>" => Some(260),
            _ => Some(270),
        }
    }
    fn bos(&self) -> Option<u32> {
        Some(BOS)
    }
    fn is_special(&self, id: u32) -> bool {
        id >= BOS
    }
}

pub fn codec() -> Arc<dyn Codec> {
    Arc::new(ByteCodec { bytes: (0..=255).collect() })
}

pub fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

pub fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A JSONL file of `n` different documents of 5 to about 120 bytes.
pub fn lines(folder: &Path, name: &str, n: usize) -> String {
    let line = |i: usize| format!("{{\"text\": \"<{name} {i}> {}\"}}\n", "xy".repeat(i * 7 % 53));
    shown(&write(folder, name, (0..n).map(line).collect::<String>()))
}

pub fn options(rows: usize, seq_len: usize) -> LoaderOptions {
    LoaderOptions { val_fraction: 0.0, ..LoaderOptions::new(rows, seq_len) }
}

pub fn corpus(specs: &[String], options: &LoaderOptions) -> Corpus {
    Corpus::open(specs, codec(), options.clone()).unwrap()
}

/// The error must be the user's, and its message must have each of `parts` in it.
#[track_caller]
pub fn assert_user_error<T>(result: anyhow::Result<T>, parts: &[&str]) {
    let error = result.err().expect("this must fail");
    let message = format!("{error:#}");
    assert!(is_user_error(&error), "not a user error: {message}");
    assert!(!message.contains('\n'), "more than a line: {message}");
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

/// Row `row` of a batch with its last target: `seq_len + 1` ids.
pub fn whole_row(batch: &Batch, row: usize) -> Vec<u32> {
    let range = row * batch.seq_len..(row + 1) * batch.seq_len;
    let mut ids = batch.tokens[range.clone()].to_vec();
    ids.push(batch.targets[range.end - 1]);
    ids
}

/// The texts between BOS tokens.
pub fn pieces(ids: &[u32]) -> Vec<String> {
    let text = |ids: &[u32]| String::from_utf8_lossy(&codec().decode(ids)).into_owned();
    ids.split(|&id| id == BOS).filter(|piece| !piece.is_empty()).map(text).collect()
}
