//! The seam of the data: what a kind of file (or a generator) must offer to be walked, split, sharded and resumed.
//! Knows of nothing but documents; tokenising, packing and mixing happen above it.

use crate::tokenizer::special::Message;
use serde::{Deserialize, Serialize};

/// Which part of a corpus is meant. The two never share a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What it is measured on.
    Validation,
}

impl Split {
    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::Validation => "validation",
        }
    }
}

/// One document, as its source holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Text to be tokenised; valid UTF-8 is usual but not required.
    Bytes(Vec<u8>),
    /// A chat, to be rendered with the tokenizer's special tokens.
    Chat(Vec<Message>),
    /// Token ids of a shard; the first is BOS unless a document had to be cut.
    Tokens(Vec<u32>),
}

/// Where a document is: enough to read it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Index of the unit, in `0..Source::units()`.
    pub unit: u64,
    /// Position within the unit; its meaning is the source's own (bytes, rows, tokens or an index).
    pub offset: u64,
}

/// What [`Reader::advance`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Position of this document in its unit.
    pub offset: u64,
    /// Position from which reading goes on after it.
    pub next: u64,
    /// A hash of the content (or of the key that determines it), by which the split is decided.
    pub identity: u64,
}

/// A finite (or endless), ordered collection of documents. It is cut into units that can be opened independently, so that
/// an epoch can visit them in any order: pieces of text files, ranges of JSONL files, row groups, shards.
pub trait Source: Send + Sync {
    /// What the files are, for messages.
    fn name(&self) -> &str;
    /// A hash of names and sizes: if it changed, old places mean nothing any more.
    fn fingerprint(&self) -> u64;
    /// Number of units; zero when there is nothing.
    fn units(&self) -> u64;
    /// Whether a unit never ends (generators).
    fn endless(&self) -> bool {
        false
    }
    /// A reader whose first document is the one at `place`.
    /// Errors: a user error when the file is gone or broken.
    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>>;
}

/// Walks the documents of one unit. Finding a document and building it are apart, so that documents of the other split
/// or of other ranks cost neither parsing nor copies.
pub trait Reader: Send {
    /// Steps to the next document; `None` at the unit's end. Errors: a user error when the file is broken.
    fn advance(&mut self) -> anyhow::Result<Option<Record>>;
    /// The document that the last `advance` found; at most once per `advance`.
    /// Errors: a user error, naming file and line, when it is malformed.
    fn document(&mut self) -> anyhow::Result<Document>;
}
