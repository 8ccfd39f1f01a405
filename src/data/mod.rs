//! Data: from `--data SPEC` to packed batches. Knows of the tokenizer's interface, not of models or devices.
//!
//! The way of a document: [`spec`] names files or a built-in task; a [`source`] finds documents in them; a [`collection`]
//! tells training from validation; a [`walker`] visits one rank's share of them, epoch by epoch; [`feed`] tokenises;
//! [`mixture`] picks the source whose turn it is; [`packing`] fills rows; [`loader`] does all that ahead, in a thread.

pub mod collection;
pub mod feed;
pub mod jsonl;
pub mod loader;
pub mod mixture;
pub mod packing;
pub mod parquet;
pub mod prepare;
pub mod random;
pub mod shards;
pub mod source;
pub mod spec;
pub mod statistics;
pub mod stories;
pub mod synthetic;
pub mod text;
pub mod walker;

pub use collection::{Collection, CollectionOptions};
pub use loader::{Corpus, Loader, LoaderOptions, LoaderState, VAL_FRACTION};
pub use packing::{Batch, ChatTargets, IGNORE, Packer, Packing};
pub use source::{Document, Source, Split};
pub use spec::Spec;

use crate::user_error;
use std::sync::Arc;

/// Bytes that a generator contributes to [`open_documents`].
pub const ENDLESS_BYTES: usize = 4_000_000;

/// The documents of the training split (with [`VAL_FRACTION`] held out) of all `specs`, one spec after the other, in the
/// order of the files; for tokenizer training. Of a chat the contents come, a line each; a generator gives about
/// [`ENDLESS_BYTES`]. Weights are not regarded.
/// Errors: a user error for bad specs and broken files, and for token shards, which have no text.
pub fn open_documents(specs: &[String]) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<Vec<u8>>> + Send>> {
    let options = CollectionOptions {
        split: Split::Train,
        val_fraction: VAL_FRACTION,
        seed: 0,
        expected: shards::Expected::default(),
        chats: true,
    };
    let mut walkers = Vec::new();
    for spec in Spec::parse_all(specs)? {
        walkers.push(Arc::new(Collection::open(&spec, &options)?).walk()?);
    }
    Ok(Box::new(walkers.into_iter().flat_map(|walker| Texts { walker, bytes: 0, failed: false })))
}

/// The texts of one spec.
struct Texts {
    walker: walker::Walker,
    bytes: usize,
    failed: bool,
}

impl Iterator for Texts {
    type Item = anyhow::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let collection = self.walker.collection();
        if self.failed || (collection.endless() && self.bytes >= ENDLESS_BYTES) {
            return None;
        }
        let text = match self.walker.advance() {
            Ok(None) => return None,
            Ok(Some((_, Document::Bytes(bytes)))) => Ok(bytes),
            Ok(Some((_, Document::Chat(messages)))) => {
                let contents: Vec<String> = messages.iter().map(|message| message.content.to_string()).collect();
                Ok(contents.join("\n").into_bytes())
            }
            Ok(Some((_, Document::Tokens(_)))) => {
                let name = &self.walker.collection().name;
                Err(user_error!("{name} holds token shards, which have no text; name the text they were made of"))
            }
            Err(error) => Err(error),
        };
        self.failed = text.is_err();
        self.bytes += text.as_ref().map_or(0, Vec::len);
        Some(text)
    }
}
