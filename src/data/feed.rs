//! Turns the documents of one collection into tokens, a few of them open at a time. Knows of the tokenizer, not of rows.

use super::collection::Collection;
use super::source::{Document, Place, Split};
use super::walker::{Cursor, Walker};
use crate::tokenizer::Codec;
use crate::tokenizer::special::render_chat;
use crate::user_bail;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Documents kept open per source: what best fit chooses among.
pub const OPEN_DOCUMENTS: usize = 64;

/// The tokens of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenised {
    /// BOS, then the content.
    pub ids: Vec<u32>,
    /// For chats: which tokens the assistant says, parallel to `ids`.
    pub said: Option<Vec<bool>>,
}

/// Tokenises a document: `bos`, then its content. `None` when there is no content.
/// Errors: a user error when a chat cannot be rendered with this tokenizer.
pub fn tokenise(codec: &dyn Codec, bos: u32, document: Document) -> anyhow::Result<Option<Tokenised>> {
    let (ids, said) = match document {
        Document::Bytes(bytes) => {
            let mut ids = Vec::with_capacity(bytes.len() / 3 + 2);
            ids.push(bos);
            codec.encode_into(&bytes, &mut ids);
            (ids, None)
        }
        Document::Chat(messages) if messages.is_empty() => return Ok(None),
        Document::Chat(messages) => {
            let chat = render_chat(codec, &messages)?;
            (chat.ids, Some(chat.mask))
        }
        Document::Tokens(mut ids) => {
            if ids.first() != Some(&bos) {
                ids.insert(0, bos);
            }
            (ids, None)
        }
    };
    Ok((ids.len() > 1).then_some(Tokenised { ids, said }))
}

/// A document being consumed.
#[derive(Debug, Clone)]
pub struct OpenDocument {
    /// Where it came from.
    pub place: Place,
    /// Its tokens, BOS first.
    pub tokens: Tokenised,
    /// Tokens consumed, an index into `tokens.ids`; its meaning is the packing's.
    pub at: usize,
}

/// An open document without its tokens, for checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenState {
    /// Where it came from.
    pub place: Place,
    /// Tokens consumed.
    pub at: u64,
}

impl OpenDocument {
    /// What a checkpoint keeps of it.
    pub fn state(&self) -> OpenState {
        OpenState { place: self.place, at: self.at as u64 }
    }
}

/// One collection on its way into the rows.
pub struct Lane {
    walker: Walker,
    /// Documents read and not consumed, in reading order. An epoch's documents are all consumed before the next begins.
    pub open: VecDeque<OpenDocument>,
    tokens_of_epoch: u64,
    /// Whether this epoch was walked from its beginning, so that the count above is complete.
    from_start: bool,
    tokens_of_first_epoch: Option<u64>,
}

impl Lane {
    /// A lane at the walker's beginning.
    pub fn new(walker: Walker) -> Lane {
        let from_start = walker.cursor() == Cursor::default();
        Lane { walker, open: VecDeque::new(), tokens_of_epoch: 0, from_start, tokens_of_first_epoch: None }
    }

    /// A lane that goes on: `walker` stands where it stood, and `open` documents are read again.
    /// Errors: a user error when a document is not there any more.
    pub fn resume(walker: Walker, open: &[OpenState], codec: &dyn Codec, bos: u32) -> anyhow::Result<Lane> {
        let mut lane = Lane::new(walker);
        let collection = lane.walker.collection().clone();
        let read = |state: &OpenState| reread(&collection, state, codec, bos);
        lane.open = open.par_iter().map(read).collect::<anyhow::Result<_>>()?;
        Ok(lane)
    }

    /// Reads the document of `state` again.
    pub fn reread(&self, state: &OpenState, codec: &dyn Codec, bos: u32) -> anyhow::Result<OpenDocument> {
        reread(self.walker.collection(), state, codec, bos)
    }

    /// The walker's cursor.
    pub fn cursor(&self) -> Cursor {
        self.walker.cursor()
    }

    /// The name of the collection.
    pub fn name(&self) -> &str {
        &self.walker.collection().name
    }

    /// The split of the collection.
    pub fn split(&self) -> Split {
        self.walker.collection().split()
    }

    /// The collection's fingerprint.
    pub fn fingerprint(&self) -> u64 {
        self.walker.collection().fingerprint()
    }

    /// Tokens of the first epoch that was walked as a whole, known once it has ended.
    pub fn tokens_of_first_epoch(&self) -> Option<u64> {
        self.tokens_of_first_epoch
    }

    /// Makes sure that a document is open, and refills to [`OPEN_DOCUMENTS`] when fewer than half are. Begins the next
    /// epoch only when nothing of this one is left.
    /// Errors: a user error when an epoch has no documents, and the walker's.
    pub fn fill(&mut self, codec: &dyn Codec, bos: u32) -> anyhow::Result<()> {
        if self.open.len() >= OPEN_DOCUMENTS / 2 {
            return Ok(());
        }
        let mut ended = self.read_more(codec, bos)?;
        while self.open.is_empty() {
            if ended {
                if self.from_start {
                    self.check_not_empty()?;
                    self.tokens_of_first_epoch.get_or_insert(self.tokens_of_epoch);
                }
                self.walker.next_epoch();
                (self.from_start, self.tokens_of_epoch) = (true, 0);
            }
            ended = self.read_more(codec, bos)?;
        }
        Ok(())
    }

    /// Reads and tokenises up to [`OPEN_DOCUMENTS`]; whether the epoch ended.
    fn read_more(&mut self, codec: &dyn Codec, bos: u32) -> anyhow::Result<bool> {
        let mut found = Vec::new();
        while self.open.len() + found.len() < OPEN_DOCUMENTS {
            match self.walker.advance()? {
                Some(document) => found.push(document),
                None => break,
            }
        }
        let ended = self.open.len() + found.len() < OPEN_DOCUMENTS;
        let tokenised: Vec<_> = found
            .into_par_iter()
            .map(|(place, document)| tokenise(codec, bos, document).map(|tokens| (place, tokens)))
            .collect::<anyhow::Result<_>>()?;
        for (place, tokens) in tokenised {
            if let Some(tokens) = tokens {
                self.tokens_of_epoch += tokens.ids.len() as u64;
                self.open.push_back(OpenDocument { place, tokens, at: 0 });
            }
        }
        Ok(ended)
    }

    fn check_not_empty(&self) -> anyhow::Result<()> {
        if self.tokens_of_epoch > 0 {
            return Ok(());
        }
        let (name, split) = (self.name(), self.split());
        let remedy = match split {
            Split::Train => "give more text, or fewer ranks",
            Split::Validation => "give more text, or raise val_fraction",
        };
        user_bail!("{name} has no {} documents with text in them; {remedy}", split.name())
    }
}

fn reread(collection: &Collection, state: &OpenState, codec: &dyn Codec, bos: u32) -> anyhow::Result<OpenDocument> {
    let (place, at) = (state.place, state.at as usize);
    match tokenise(codec, bos, collection.read(place)?)? {
        Some(tokens) if at < tokens.ids.len() => Ok(OpenDocument { place, tokens, at }),
        _ => {
            let name = &collection.name;
            user_bail!("{name} or the tokenizer changed since the checkpoint was written; bring the old one back")
        }
    }
}
