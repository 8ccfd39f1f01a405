//! Token shards: llm.c's `.bin` files, our compatible extension of their header, and a writer for them.
//!
//! A header of 256 little-endian 32-bit words, then the tokens:
//!
//! | word | llm.c | ours |
//! |---|---|---|
//! | 0 | magic 20240520 | the same |
//! | 1 | version 1: u16 tokens | 1: u16, 2: u32 tokens |
//! | 2 | number of tokens | the same |
//! | 3 | 0 | size of the vocabulary |
//! | 4 | 0 | BOS id + 1 (0: unknown) |
//! | 5..9 | 0 | first 16 bytes of the tokenizer's digest |
//!
//! So llm.c reads ours of version 1, and we read llm.c's. Every document starts with BOS. Shards are memory-mapped.

use super::random::identity;
use super::source::{Document, Place, Reader, Record, Source, Split};
use super::text::{fingerprint_of, open_file, unreadable};
use crate::{user_bail, user_error};
use anyhow::Context;
use memmap2::Mmap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First word of every shard.
pub const MAGIC: u32 = 20240520;
/// Bytes before the first token.
pub const HEADER_BYTES: usize = 1024;
/// A longer document is cut into consecutive ones, so that memory stays bounded.
pub const DOCUMENT_TOKENS_MAX: usize = 256 * 1024;
/// Tokens checked against the vocabulary when a shard is opened; the others are checked as they are read.
const CHECKED_AT_OPEN: usize = 1024;

/// What a shard says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHeader {
    /// Bytes per token: 2 or 4.
    pub token_bytes: usize,
    /// Number of tokens.
    pub tokens: usize,
    /// Size of the vocabulary it was made with.
    pub vocab_size: Option<usize>,
    /// Id with which documents start.
    pub bos: Option<u32>,
    /// First 32 hexadecimal digits of the tokenizer's digest.
    pub digest_prefix: Option<String>,
}

impl ShardHeader {
    /// Reads the header of a shard of `length` bytes in all, from its first bytes; `path` is for messages.
    /// Errors: a user error for a wrong magic number or version, or when the count does not match the length.
    pub fn parse(bytes: &[u8], length: u64, path: &Path) -> anyhow::Result<ShardHeader> {
        let shown = path.display();
        if bytes.len() < HEADER_BYTES {
            user_bail!("{shown} is too short for a token shard ({length} bytes); write it again with 'data prepare'");
        }
        let word = |index: usize| u32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().expect("four bytes"));
        if word(0) != MAGIC {
            user_bail!("{shown} is no token shard (it starts with {}, not {MAGIC}); name another file", word(0));
        }
        let token_bytes = match word(1) {
            1 => 2,
            2 => 4,
            other => user_bail!("{shown} is a token shard of version {other}; 1 and 2 can be read; prepare it again"),
        };
        let tokens = word(2) as usize;
        let expected = HEADER_BYTES as u64 + tokens as u64 * token_bytes as u64;
        if length != expected {
            user_bail!(
                "{shown} promises {tokens} tokens, so {expected} bytes, but has {length}; fetch or prepare it again"
            );
        }
        let digest: Vec<u8> = bytes[20..36].to_vec();
        let digest = digest.iter().any(|&byte| byte != 0).then(|| hex(&digest));
        let vocab_size = (word(3) > 0).then_some(word(3) as usize);
        Ok(ShardHeader { token_bytes, tokens, vocab_size, bos: word(4).checked_sub(1), digest_prefix: digest })
    }

    /// The 1,024 bytes of the header. `tokens` must be below 2^31, as llm.c reads the count as signed.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut words = [0u32; HEADER_BYTES / 4];
        words[0] = MAGIC;
        words[1] = if self.token_bytes == 2 { 1 } else { 2 };
        words[2] = self.tokens as u32;
        words[3] = self.vocab_size.unwrap_or(0) as u32;
        words[4] = self.bos.map_or(0, |bos| bos + 1);
        let mut bytes = [0; HEADER_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        if let Some(digest) = &self.digest_prefix {
            for (byte, pair) in bytes[20..36].iter_mut().zip(digest.as_bytes().chunks_exact(2)) {
                let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
                *byte = digit(pair[0]) << 4 | digit(pair[1]);
            }
        }
        bytes
    }
}

/// What the tokenizer at hand says, to be held against the shards.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Size of its vocabulary.
    pub vocab_size: Option<usize>,
    /// Its BOS id.
    pub bos: Option<u32>,
    /// Its digest, hexadecimal.
    pub digest: Option<String>,
}

/// Token shards; a unit is a shard, an offset a token's index in it.
pub struct TokenShards {
    name: String,
    fingerprint: u64,
    shards: Vec<Arc<Shard>>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    header: ShardHeader,
    bos: Option<u32>,
    vocab_size: usize,
}

/// Whether the file name of `path` has the word `val` or `validation` in it (`val_000000.bin`, `fineweb_val_000000.bin`).
pub fn is_validation_name(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    stem.split(['_', '-', '.']).any(|word| word == "val" || word == "validation")
}

/// The shards of one split when their names tell it (some of `paths` have `val` in them); `None` when they do not.
pub fn by_name(paths: &[PathBuf], split: Split) -> Option<Vec<PathBuf>> {
    let (validation, train): (Vec<_>, Vec<_>) = paths.iter().cloned().partition(|path| is_validation_name(path));
    let told = !validation.is_empty() && !train.is_empty();
    told.then_some(if split == Split::Train { train } else { validation })
}

impl TokenShards {
    /// Maps `paths` and checks headers and first tokens.
    /// Errors: a user error for a file that is no sound shard or was made with another tokenizer.
    pub fn open(name: &str, paths: &[PathBuf], expected: &Expected) -> anyhow::Result<TokenShards> {
        let shards = paths.iter().map(|path| Shard::open(path, expected).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(TokenShards { name: name.to_owned(), fingerprint: fingerprint_of(paths)?, shards })
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&Path, &ShardHeader)> {
        self.shards.iter().map(|shard| (shard.path.as_path(), &shard.header))
    }
}

impl Source for TokenShards {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn units(&self) -> u64 {
        self.shards.len() as u64
    }

    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let shard = self.shards[place.unit as usize].clone();
        Ok(Box::new(ShardReader { shard, at: place.offset as usize, ids: Vec::new() }))
    }
}

impl Shard {
    fn open(path: &Path, expected: &Expected) -> anyhow::Result<Shard> {
        let file = open_file(path)?;
        let length = file.metadata().map_err(|error| unreadable(path, error))?.len();
        if length < HEADER_BYTES as u64 {
            user_bail!("{} is too short for a token shard ({length} bytes); prepare it again", path.display());
        }
        // SAFETY: the map is read only and lives as long as the shard; no reference outlives it. Another program that
        // shortens the file meanwhile would end this one with a bus error, which no memory map can prevent.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(path, error))?;
        let header = ShardHeader::parse(&map, length, path)?;
        let shown = path.display();
        if let (Some(theirs), Some(ours)) = (header.vocab_size, expected.vocab_size)
            && theirs != ours
        {
            user_bail!("{shown} was made with a vocabulary of {theirs}, the tokenizer has {ours}; prepare it again");
        }
        if let (Some(theirs), Some(ours)) = (header.bos, expected.bos)
            && theirs != ours
        {
            user_bail!("{shown} starts documents with id {theirs}, the tokenizer with {ours}; prepare it again");
        }
        if let (Some(theirs), Some(ours)) = (&header.digest_prefix, &expected.digest)
            && !ours.starts_with(theirs.as_str())
        {
            user_bail!("{shown} was made with another tokenizer; name that one, or prepare the data again");
        }
        let vocab_size = expected.vocab_size.or(header.vocab_size).unwrap_or(u32::MAX as usize);
        let bos = header.bos.or(expected.bos);
        let shard = Shard { path: path.to_owned(), map, bos, vocab_size, header };
        for index in 0..shard.header.tokens.min(CHECKED_AT_OPEN) {
            shard.checked(index)?;
        }
        Ok(shard)
    }

    fn token(&self, index: usize) -> u32 {
        let width = self.header.token_bytes;
        let bytes = &self.map[HEADER_BYTES + index * width..][..width];
        match bytes {
            [a, b] => u32::from(u16::from_le_bytes([*a, *b])),
            _ => u32::from_le_bytes(bytes.try_into().expect("four bytes")),
        }
    }

    fn checked(&self, index: usize) -> anyhow::Result<u32> {
        let id = self.token(index);
        if id as usize >= self.vocab_size {
            let (path, byte) = (self.path.display(), HEADER_BYTES + index * self.header.token_bytes);
            return Err(user_error!(
                "{path}: token {index} (byte {byte}) is {id}, outside the vocabulary of {}; use its own tokenizer",
                self.vocab_size
            ));
        }
        Ok(id)
    }
}

struct ShardReader {
    shard: Arc<Shard>,
    at: usize,
    ids: Vec<u32>,
}

impl Reader for ShardReader {
    fn advance(&mut self) -> anyhow::Result<Option<Record>> {
        let start = self.at;
        let end = self.shard.header.tokens.min(start + DOCUMENT_TOKENS_MAX);
        self.ids.clear();
        while self.at < end {
            let id = self.shard.checked(self.at)?;
            if self.at > start && Some(id) == self.shard.bos {
                break;
            }
            self.ids.push(id);
            self.at += 1;
        }
        if self.ids.is_empty() {
            return Ok(None);
        }
        let identity = identity(bytemuck::cast_slice(&self.ids));
        Ok(Some(Record { offset: start as u64, next: self.at as u64, identity }))
    }

    fn document(&mut self) -> anyhow::Result<Document> {
        Ok(Document::Tokens(std::mem::take(&mut self.ids)))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes one shard under a temporary name; [`ShardWriter::finish`] gives it its own. Dropped before, it leaves nothing.
pub struct ShardWriter {
    target: PathBuf,
    temporary: PathBuf,
    output: Option<BufWriter<File>>,
    header: ShardHeader,
}

impl ShardWriter {
    /// Begins `path`; `header` says everything but the number of tokens.
    /// Errors: when the file cannot be made (a user error).
    pub fn create(path: &Path, header: ShardHeader) -> anyhow::Result<ShardWriter> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary)
            .map_err(|error| user_error!("cannot write to {}: {error}; choose another --out", path.display()))?;
        let header = ShardHeader { tokens: 0, ..header };
        let mut writer = ShardWriter { target: path.to_owned(), temporary, output: Some(BufWriter::new(file)), header };
        let head = writer.header.to_bytes();
        writer.write(&head)?;
        Ok(writer)
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> usize {
        self.header.tokens
    }

    /// Appends tokens. Ids must fit the header's width. Errors: a user error when the disk is full.
    pub fn push(&mut self, ids: &[u32]) -> anyhow::Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.header.token_bytes);
        for &id in ids {
            if self.header.token_bytes == 2 {
                let id = u16::try_from(id).with_context(|| format!("token id {id} does not fit 16 bits"))?;
                bytes.extend_from_slice(&id.to_le_bytes());
            } else {
                bytes.extend_from_slice(&id.to_le_bytes());
            }
        }
        self.header.tokens += ids.len();
        self.write(&bytes)
    }

    /// Completes the header and makes the bytes durable, still under the temporary name.
    pub fn seal(&mut self) -> anyhow::Result<()> {
        let head = self.header.to_bytes();
        if let Some(output) = self.output.as_mut() {
            output.seek(SeekFrom::Start(0)).map_err(|error| unwritable(&self.target, error))?;
        }
        self.write(&head)?;
        if let Some(output) = self.output.as_mut() {
            output.flush().map_err(|error| unwritable(&self.target, error))?;
            output.get_ref().sync_all().map_err(|error| unwritable(&self.target, error))?;
        }
        Ok(())
    }

    /// Gives a sealed shard its name.
    pub fn finish(mut self) -> anyhow::Result<PathBuf> {
        self.output = None;
        std::fs::rename(&self.temporary, &self.target).map_err(|error| unwritable(&self.target, error))?;
        Ok(self.target.clone())
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let output = self.output.as_mut().expect("an unfinished shard is open");
        output.write_all(bytes).map_err(|error| unwritable(&self.target, error))
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // After `finish` the temporary name is gone already.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> anyhow::Error {
    user_error!("cannot write {}: {error}; free some space or choose another --out", path.display())
}
