//! Opens what a SPEC names as one collection of documents, and decides which of them are held out for validation.
//!
//! Held out is decided by content, never by position, so copies of a document fall on the same side:
//! - documents are validation when the hash of their content is among the lowest `val_fraction` of all hashes;
//! - of fewer than [`FEW`] documents, the `val_fraction` of them (at least one of two) with the lowest hashes are;
//! - of fewer than [`FEW`] text files, the last `val_fraction` of each file's bytes is, from a line's start on;
//! - token shards with `val` in their names are, when there are others without;
//! - of generated documents, those whose content key (the operands of a sum, a story's cast) has a low hash.

use super::jsonl::JsonLines;
use super::parquet::ParquetFiles;
use super::shards::{Expected, TokenShards, by_name};
use super::source::{Document, Place, Reader, Source, Split};
use super::spec::{FileKind, Origin, Spec};
use super::synthetic::Synthetic;
use super::text::TextFiles;
use super::walker::{Visit, Walker};
use crate::user_bail;
use std::path::PathBuf;
use std::sync::Arc;

/// With fewer documents than this, the held-out ones are counted instead of left to chance.
pub const FEW: usize = 100;

/// How collections are opened.
#[derive(Debug, Clone)]
pub struct CollectionOptions {
    /// Which documents are wanted.
    pub split: Split,
    /// Share of the documents held out, in `0..1`.
    pub val_fraction: f64,
    /// Seed of generated documents; the validation documents do not depend on it.
    pub seed: u64,
    /// What token shards are held against.
    pub expected: Expected,
    /// Whether the built-in mixture may emit chats (the tokenizer has the special tokens for them).
    pub chats: bool,
}

/// Which documents of a part belong to the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    /// All: the part was opened for this split.
    All,
    /// Those whose identity is at most (validation) or above (training) the bound; without a bound all are training.
    Bound(Option<u64>),
}

/// Everything a SPEC names: parts of several kinds, their units numbered through.
pub struct Collection {
    /// The SPEC without its weight.
    pub name: String,
    /// Its share of the tokens, relative to the others.
    pub weight: f64,
    split: Split,
    parts: Vec<(Box<dyn Source>, Membership)>,
}

impl Collection {
    /// Opens the files (or the generator) of `spec`.
    /// Errors: a user error for a fraction outside `0..1`, or a file that is missing, broken or of another tokenizer.
    pub fn open(spec: &Spec, options: &CollectionOptions) -> anyhow::Result<Collection> {
        let (split, fraction) = (options.split, options.val_fraction);
        if !(0.0..1.0).contains(&fraction) {
            user_bail!("val_fraction is {fraction}; it must be at least 0 and below 1");
        }
        let mut parts: Vec<(Box<dyn Source>, Membership)> = Vec::new();
        match &spec.origin {
            Origin::Synthetic(task) => {
                let seed = if split == Split::Train { options.seed } else { 0 };
                let source = Synthetic::new(&spec.name, *task, seed, options.chats);
                parts.push((Box::new(source), Membership::Bound(bound_of_many(fraction))));
            }
            Origin::Files(_) => {
                for kind in FileKind::ALL {
                    let paths = spec.files(kind);
                    if !paths.is_empty() {
                        parts.push(open_kind(&spec.name, kind, &paths, options)?);
                    }
                }
            }
        }
        Ok(Collection { name: spec.name.clone(), weight: spec.weight, split, parts })
    }

    /// The split it was opened for.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Number of units of all parts.
    pub fn units(&self) -> u64 {
        self.parts.iter().map(|(source, _)| source.units()).sum()
    }

    /// Whether it never ends.
    pub fn endless(&self) -> bool {
        self.parts.iter().any(|(source, _)| source.endless())
    }

    /// A hash of the files' names and sizes.
    pub fn fingerprint(&self) -> u64 {
        let words: Vec<u64> = self.parts.iter().map(|(source, _)| source.fingerprint()).collect();
        super::random::identity(bytemuck::cast_slice(&words))
    }

    /// Opens the unit of `place` there.
    pub fn open_reader(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let (part, unit) = self.locate(place.unit);
        self.parts[part].0.open(Place { unit, offset: place.offset })
    }

    /// Whether a document with `identity`, found in `unit`, belongs to the split.
    pub fn holds(&self, unit: u64, identity: u64) -> bool {
        match self.parts[self.locate(unit).0].1 {
            Membership::All => true,
            Membership::Bound(bound) => {
                let held_out = bound.is_some_and(|bound| identity <= bound);
                held_out == (self.split == Split::Validation)
            }
        }
    }

    /// Reads the document at `place` again. Errors: as reading did; a user error when it is not there any more.
    pub fn read(&self, place: Place) -> anyhow::Result<Document> {
        let mut reader = self.open_reader(place)?;
        match reader.advance()? {
            Some(record) if record.offset == place.offset => reader.document(),
            _ => user_bail!("{} changed since the checkpoint was written; bring the old files back", self.name),
        }
    }

    /// All documents of the split once, in the order of the files; without end for generators.
    pub fn walk(self: &Arc<Self>) -> anyhow::Result<Walker> {
        Walker::new(self.clone(), Visit { seed: None, rank: 0, world: 1 })
    }

    fn locate(&self, mut unit: u64) -> (usize, u64) {
        for (index, (source, _)) in self.parts.iter().enumerate() {
            if unit < source.units() {
                return (index, unit);
            }
            unit -= source.units();
        }
        panic!("unit {unit} is beyond the last part of {}", self.name);
    }
}

fn open_kind(
    name: &str,
    kind: FileKind,
    paths: &[PathBuf],
    options: &CollectionOptions,
) -> anyhow::Result<(Box<dyn Source>, Membership)> {
    let (split, fraction) = (options.split, options.val_fraction);
    let source: Box<dyn Source> = match kind {
        FileKind::Text if paths.len() < FEW => {
            let source = TextFiles::open(name, paths, Some((split, fraction)))?;
            return Ok((Box::new(source), Membership::All));
        }
        FileKind::Text => Box::new(TextFiles::open(name, paths, None)?),
        FileKind::JsonLines => Box::new(JsonLines::open(name, paths)?),
        FileKind::Parquet => Box::new(ParquetFiles::open(name, paths)?),
        FileKind::Shards => {
            if let Some(paths) = by_name(paths, split) {
                return Ok((Box::new(TokenShards::open(name, &paths, &options.expected)?), Membership::All));
            }
            Box::new(TokenShards::open(name, paths, &options.expected)?)
        }
    };
    let bound = bound(&*source, fraction)?;
    Ok((source, Membership::Bound(bound)))
}

/// The highest identity that is held out.
fn bound(source: &dyn Source, fraction: f64) -> anyhow::Result<Option<u64>> {
    let (mut identities, mut documents) = (Vec::new(), 0);
    'count: for unit in 0..source.units() {
        let mut reader = source.open(Place { unit, offset: 0 })?;
        while let Some(record) = reader.advance()? {
            identities.push(record.identity);
            documents += 1;
            if documents == FEW {
                break 'count;
            }
        }
    }
    if documents == FEW || fraction == 0.0 {
        return Ok(bound_of_many(fraction));
    }
    identities.sort_unstable();
    identities.dedup();
    let wanted = ((identities.len() as f64 * fraction).round() as usize).max(1);
    let wanted = wanted.min(identities.len().saturating_sub(1));
    Ok(wanted.checked_sub(1).map(|last| identities[last]))
}

fn bound_of_many(fraction: f64) -> Option<u64> {
    (fraction > 0.0).then_some((fraction * u64::MAX as f64) as u64)
}
