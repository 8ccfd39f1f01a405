//! Tokenises documents once and for all into token shards, and counts what a SPEC holds.

use super::collection::{Collection, CollectionOptions};
use super::feed::tokenise;
use super::shards::{DOCUMENT_TOKENS_MAX, Expected, ShardHeader, ShardWriter, by_name};
use super::source::{Document, Split};
use super::spec::{FileKind, Spec};
use super::walker::Walker;
use crate::tokenizer::Codec;
use crate::tokenizer::special::{Message, render_chat};
use crate::{user_bail, user_error};
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Documents tokenised together, in parallel.
const GROUP_DOCUMENTS: usize = 256;
/// A group ends at this size, too.
const GROUP_BYTES: usize = 8 << 20;

/// How shards are written.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Share held out into `val_*.bin`.
    pub val_fraction: f64,
    /// Tokens after which a new shard begins, at a document's start; below 2^31.
    pub shard_tokens: usize,
    /// Tokens of a split after which generators end (files are always read whole).
    pub endless_tokens: usize,
    /// Hexadecimal digest of the tokenizer, for the headers.
    pub tokenizer_digest: Option<String>,
}

/// What was written or counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Documents with something in them.
    pub documents: u64,
    /// Bytes of text; for shards 0 unless a tokenizer is given.
    pub bytes: u64,
    /// Tokens, BOS included; 0 when there was no tokenizer.
    pub tokens: u64,
}

/// What [`prepare`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Prepared {
    /// The training shards.
    pub train: Counts,
    /// The validation shards.
    pub validation: Counts,
    /// Every file, in order.
    pub files: Vec<PathBuf>,
}

/// Tokenises all documents of `specs` into `out/train_NNNNNN.bin` and `out/val_NNNNNN.bin`, every document once, in order,
/// in parallel. Files appear under their names only when all are complete and synced. `progress` gets the tokens so far.
/// Errors: a user error when `out` has shards already, a spec has a weight or is shards itself, or the disk is full.
pub fn prepare(
    specs: &[String],
    codec: &dyn Codec,
    out: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Prepared> {
    let bos =
        codec.bos().ok_or_else(|| user_error!("the tokenizer has no <|bos|> token; train or name one that has"))?;
    let shard_tokens = options.shard_tokens;
    if shard_tokens == 0 || shard_tokens + DOCUMENT_TOKENS_MAX > i32::MAX as usize {
        user_bail!("a shard of {shard_tokens} tokens: it must have at least one and stay well below 2^31");
    }
    let specs = Spec::parse_all(specs)?;
    if let Some(spec) = specs.iter().find(|spec| spec.weight != 1.0) {
        user_bail!("{}@{}: shards hold every document once; give weights when training", spec.name, spec.weight);
    }
    std::fs::create_dir_all(out).map_err(|error| user_error!("cannot make the folder {}: {error}", out.display()))?;
    let taken =
        ["train_000000.bin", "val_000000.bin"].map(|name| out.join(name)).into_iter().find(|path| path.exists());
    if let Some(path) = taken {
        user_bail!("{} exists already; choose another --out or remove it", path.display());
    }
    let header = ShardHeader {
        token_bytes: if codec.vocab_size() <= 1 << 16 { 2 } else { 4 },
        tokens: 0,
        vocab_size: Some(codec.vocab_size()),
        bos: Some(bos),
        digest_prefix: options.tokenizer_digest.clone(),
    };
    let mut sealed = Vec::new();
    let mut counts = [Counts::default(), Counts::default()];
    let mut written = 0;
    for (split, count) in [Split::Train, Split::Validation].into_iter().zip(&mut counts) {
        if split == Split::Validation && options.val_fraction == 0.0 {
            continue;
        }
        let prefix = if split == Split::Train { "train" } else { "val" };
        let mut shards = 0;
        let mut writer: Option<ShardWriter> = None;
        for spec in &specs {
            let collection =
                Arc::new(Collection::open(spec, &opening(split, options.val_fraction, Some(codec), None))?);
            let limit = if collection.endless() { options.endless_tokens as u64 } else { u64::MAX };
            let mut walker = collection.walk()?;
            let before = count.tokens;
            while count.tokens - before < limit {
                let group = next_group(&mut walker)?;
                if group.is_empty() {
                    break;
                }
                if group.iter().any(|document| matches!(document, Document::Tokens(_))) {
                    user_bail!("{} holds token shards already; name the text that they were made of", spec.name);
                }
                count.bytes += group.iter().map(document_bytes).sum::<u64>();
                let tokenise = |document| tokenise(codec, bos, document);
                let group: Vec<_> = group.into_par_iter().map(tokenise).collect::<anyhow::Result<_>>()?;
                for tokens in group.into_iter().flatten() {
                    if writer.as_ref().is_some_and(|writer| writer.tokens() >= shard_tokens) {
                        sealed.push(seal(writer.take())?);
                    }
                    let writer = match &mut writer {
                        Some(writer) => writer,
                        none => {
                            let path = out.join(format!("{prefix}_{shards:06}.bin"));
                            shards += 1;
                            none.insert(ShardWriter::create(&path, header.clone())?)
                        }
                    };
                    writer.push(&tokens.ids)?;
                    count.documents += 1;
                    count.tokens += tokens.ids.len() as u64;
                    written += tokens.ids.len() as u64;
                }
                progress(written);
            }
        }
        if writer.is_some() {
            sealed.push(seal(writer)?);
        }
        if count.tokens == 0 {
            let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            user_bail!("{} has no {} text; give more, or another --val-fraction", names.join(", "), split.name());
        }
    }
    let files = sealed.into_iter().map(ShardWriter::finish).collect::<anyhow::Result<_>>()?;
    sync_folder(out)?;
    let [train, validation] = counts;
    Ok(Prepared { train, validation, files })
}

fn seal(writer: Option<ShardWriter>) -> anyhow::Result<ShardWriter> {
    let mut writer = writer.expect("a shard is being written");
    writer.seal()?;
    Ok(writer)
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| user_error!("cannot sync the folder {}: {error}; check the disk", folder.display()))
}

fn opening(split: Split, val_fraction: f64, codec: Option<&dyn Codec>, digest: Option<String>) -> CollectionOptions {
    let probe = Message::new("user", "?");
    CollectionOptions {
        split,
        val_fraction,
        seed: 0,
        expected: Expected {
            vocab_size: codec.map(Codec::vocab_size),
            bos: codec.and_then(|codec| codec.bos()),
            digest,
        },
        chats: codec.is_none_or(|codec| render_chat(codec, &[probe]).is_ok()),
    }
}

/// The next documents, enough to share among threads; empty at the end.
fn next_group(walker: &mut Walker) -> anyhow::Result<Vec<Document>> {
    let (mut group, mut bytes) = (Vec::new(), 0);
    while group.len() < GROUP_DOCUMENTS && bytes < GROUP_BYTES {
        let Some((_, document)) = walker.advance()? else { break };
        bytes += document_bytes(&document) as usize;
        group.push(document);
    }
    Ok(group)
}

fn document_bytes(document: &Document) -> u64 {
    match document {
        Document::Bytes(bytes) => bytes.len() as u64,
        Document::Chat(messages) => messages.iter().map(|message| message.content.to_string().len() as u64).sum(),
        Document::Tokens(_) => 0,
    }
}

/// What one SPEC holds, both splits together.
#[derive(Debug, Clone, Serialize)]
pub struct Inventory {
    /// The SPEC without its weight.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// Whether it never ends; the counts are then those of a sample.
    pub endless: bool,
    /// Documents, bytes and tokens.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Counts one spec; tokens of text only with a `codec` (and its `digest`, for shards). Of generators, `sample_bytes` are
/// counted. Errors: a user error for everything that is wrong with the files.
pub fn inventory(
    spec: &str,
    codec: Option<&dyn Codec>,
    digest: Option<String>,
    sample_bytes: u64,
) -> anyhow::Result<Inventory> {
    let spec = Spec::parse(spec)?;
    // With nothing held out everything is training data, but for shards whose names say otherwise.
    let named = by_name(&spec.files(FileKind::Shards), Split::Validation).is_some();
    let splits: &[Split] = if named { &[Split::Train, Split::Validation] } else { &[Split::Train] };
    let (mut counts, mut endless) = (Counts::default(), false);
    for &split in splits {
        let collection = Arc::new(Collection::open(&spec, &opening(split, 0.0, codec, digest.clone()))?);
        endless |= collection.endless();
        let mut walker = collection.walk()?;
        while !(endless && counts.bytes >= sample_bytes) {
            let group = next_group(&mut walker)?;
            if group.is_empty() {
                break;
            }
            let count = |document: Document| count_document(document, codec);
            let group: Vec<Counts> = group.into_par_iter().map(count).collect::<anyhow::Result<_>>()?;
            for one in group {
                counts.documents += one.documents;
                counts.bytes += one.bytes;
                counts.tokens += one.tokens;
            }
        }
    }
    Ok(Inventory { name: spec.name, weight: spec.weight, endless, counts })
}

fn count_document(document: Document, codec: Option<&dyn Codec>) -> anyhow::Result<Counts> {
    let mut bytes = document_bytes(&document);
    if let (Document::Tokens(ids), Some(codec)) = (&document, codec) {
        bytes = ids.iter().filter_map(|&id| codec.token_bytes(id)).map(|bytes| bytes.len() as u64).sum();
    }
    let tokens = match (codec.and_then(|codec| Some((codec, codec.bos()?))), document) {
        (Some((codec, bos)), document) => tokenise(codec, bos, document)?.map_or(0, |tokens| tokens.ids.len()),
        (None, Document::Tokens(ids)) => ids.len(),
        (None, _) => 0,
    };
    Ok(Counts { documents: u64::from(bytes > 0 || tokens > 1), bytes, tokens: tokens as u64 })
}
