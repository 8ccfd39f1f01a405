//! Walks a collection epoch by epoch: units in a seeded order, one split, one rank, from any cursor.

use super::collection::Collection;
use super::random::permutation;
use super::source::{Document, Place, Reader};
use crate::user_bail;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Documents that an endless source may offer in a row without one that belongs to the split.
const SKIPPED_MAX: u64 = 10_000_000;

/// A position in the endless sequence of epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Epochs completed.
    pub epoch: u64,
    /// Units of this epoch completed.
    pub step: u64,
    /// Position in the unit at hand.
    pub offset: u64,
    /// Documents of the split passed in this epoch, those of other ranks included.
    pub ordinal: u64,
}

/// Which documents are visited, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit {
    /// Shuffles the units anew every epoch; `None` keeps the order of the files. Documents within a unit (the lines of
    /// 4 MiB of a JSONL file, a row group, a shard) keep theirs.
    pub seed: Option<u64>,
    /// Of the split's documents, counted through, this rank takes those with number = `rank` modulo `world`.
    pub rank: u64,
    /// Number of ranks.
    pub world: u64,
}

/// A resumable walk over the documents of a collection.
pub struct Walker {
    collection: Arc<Collection>,
    visit: Visit,
    order: Vec<u32>,
    cursor: Cursor,
    reader: Option<Box<dyn Reader>>,
}

impl Walker {
    /// A walk from the beginning of epoch 0. Errors: a user error when the rank is not below the number of ranks.
    pub fn new(collection: Arc<Collection>, visit: Visit) -> anyhow::Result<Walker> {
        Walker::resume(collection, visit, Cursor::default())
    }

    /// A walk that goes on at `cursor`.
    pub fn resume(collection: Arc<Collection>, visit: Visit, cursor: Cursor) -> anyhow::Result<Walker> {
        if visit.rank >= visit.world {
            user_bail!("rank {} of {}: ranks count from 0 and must be below their number", visit.rank, visit.world);
        }
        if cursor.step > collection.units() {
            user_bail!("{} has fewer files than when the checkpoint was written; bring them back", collection.name);
        }
        let mut walker = Walker { collection, visit, order: Vec::new(), cursor, reader: None };
        walker.order = walker.order_of_epoch();
        Ok(walker)
    }

    /// Where the next document is searched.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What is walked.
    pub fn collection(&self) -> &Arc<Collection> {
        &self.collection
    }

    /// The next document of this epoch and its place; `None` at the epoch's end.
    /// Errors: a user error when a file is broken, or an endless source has nothing of the split.
    pub fn advance(&mut self) -> anyhow::Result<Option<(Place, Document)>> {
        let mut skipped = 0;
        while (self.cursor.step as usize) < self.order.len() {
            let unit = u64::from(self.order[self.cursor.step as usize]);
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(self.collection.open_reader(Place { unit, offset: self.cursor.offset })?),
            };
            let Some(record) = reader.advance()? else {
                self.reader = None;
                self.cursor = Cursor { step: self.cursor.step + 1, offset: 0, ..self.cursor };
                continue;
            };
            self.cursor.offset = record.next;
            if self.collection.holds(unit, record.identity) {
                self.cursor.ordinal += 1;
                if (self.cursor.ordinal - 1) % self.visit.world == self.visit.rank {
                    return Ok(Some((Place { unit, offset: record.offset }, reader.document()?)));
                }
            }
            skipped += 1;
            if skipped > SKIPPED_MAX && self.collection.endless() {
                let (name, split) = (&self.collection.name, self.collection.split().name());
                user_bail!("{name} yields no {split} documents; choose another val_fraction");
            }
        }
        Ok(None)
    }

    /// Goes on with the next epoch, from its beginning.
    pub fn next_epoch(&mut self) {
        self.cursor = Cursor { epoch: self.cursor.epoch + 1, ..Cursor::default() };
        self.reader = None;
        self.order = self.order_of_epoch();
    }

    fn order_of_epoch(&self) -> Vec<u32> {
        let units = self.collection.units() as usize;
        match self.visit.seed {
            Some(seed) => permutation(units, &[seed, self.cursor.epoch]),
            None => (0..units as u32).collect(),
        }
    }
}
