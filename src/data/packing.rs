//! Packs tokens into batches of rows. Knows of lanes and shares, not of files or threads.
//!
//! A row has `seq_len + 1` tokens: the first `seq_len` are inputs, the last `seq_len` their targets.
//! - [`Packing::Bos`]: every row starts with BOS at a document's start. Whole documents are put into it by best fit; when
//!   none fits what is left, the shortest one is cropped and its rest is lost, as in nanochat. A document of more than
//!   `seq_len` tokens is used in consecutive pieces of at most `seq_len`, each with BOS before it, and loses nothing.
//! - [`Packing::Stream`]: `segments` rows in a row are one stream: each goes on where the one before it ended, the first where the
//!   last of the batch before did, with documents of its own, and nothing is lost: every token but a stream's first is a target exactly once per epoch.

use super::feed::{Lane, OpenDocument, OpenState};
use super::mixture::Shares;
use super::random::Draw;
use super::walker::Cursor;
use crate::tokenizer::Codec;
use crate::user_bail;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A target that is not learnt.
pub const IGNORE: u32 = u32::MAX;

/// How documents are laid into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Every row starts at a document's start.
    #[default]
    Bos,
    /// Every row goes on where it ended in the last batch.
    Stream,
}

/// Which tokens of chats are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ChatTargets {
    /// All of them.
    #[default]
    All,
    /// Only what the assistant says; the others become [`IGNORE`].
    Assistant,
}

/// Sizes and manner of the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of a batch.
    pub rows: usize,
    /// Inputs per row.
    pub seq_len: usize,
    /// How rows are filled.
    pub packing: Packing,
    /// Rows of a stream in a batch; divides `rows`. 1 for [`Packing::Bos`].
    pub segments: usize,
    /// Which targets of chats count.
    pub chat_targets: ChatTargets,
    /// Seed of the choice among documents that fit equally well.
    pub seed: u64,
}

/// A batch. All vectors but the scalars are `[rows, seq_len]`, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row.
    pub seq_len: usize,
    /// Rows of a stream, one behind the other: 1 where each row stands alone or is a stream.
    pub segments: usize,
    /// Input ids.
    pub tokens: Vec<u32>,
    /// The id that follows each input, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// For each input, the index in its row at which its document (or piece) began; 0 when it began in an earlier batch.
    pub doc_start: Vec<u32>,
    /// 1 for each input that begins its document (or piece), else 0.
    pub begins: Vec<u32>,
    /// Bytes that each target stands for; 0 for special and ignored ones. Their sum is the divisor of bits per byte.
    pub bytes_in_targets: Vec<u16>,
    /// How often the most repeated source had been completed when this batch was packed.
    pub epoch: u64,
    /// Batches packed before it.
    pub index: u64,
}

/// Where one source stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// Its name, to be recognised by.
    pub name: String,
    /// Its files' names and sizes, hashed.
    pub fingerprint: u64,
    /// The next document to read.
    pub cursor: Cursor,
    /// Tokens drawn, for the shares.
    pub emitted: u64,
    /// Documents read and not consumed.
    pub open: Vec<OpenState>,
}

/// What a row of [`Packing::Stream`] is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowState {
    /// Index of the source.
    pub lane: u64,
    /// Its document; `at` is the index of the row's last token, which begins the next row.
    pub document: OpenState,
}

/// All that the next batches depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackerState {
    /// Batches packed.
    pub batches: u64,
    /// Choices made among documents.
    pub picks: u64,
    /// Every source.
    pub lanes: Vec<LaneState>,
    /// Every stream, empty for [`Packing::Bos`] and before the first batch.
    pub rows: Vec<RowState>,
}

/// Packs batches; the same lanes and state give the same batches, bit for bit.
pub struct Packer {
    shape: Shape,
    codec: Arc<dyn Codec>,
    bos: u32,
    /// Bytes per token id.
    lengths: Arc<[u16]>,
    lanes: Vec<Lane>,
    shares: Shares,
    streams: Vec<(usize, OpenDocument)>,
    batches: u64,
    picks: u64,
}

/// A row under construction.
#[derive(Default)]
struct Row {
    ids: Vec<u32>,
    learnt: Vec<bool>,
    starts: Vec<u32>,
    begins: Vec<u32>,
}

impl Row {
    /// Appends `document.ids[from..to]`; `start` is the index in the row where it began.
    fn extend(&mut self, document: &OpenDocument, from: usize, to: usize, start: usize, targets: ChatTargets) {
        let tokens = &document.tokens;
        self.ids.extend_from_slice(&tokens.ids[from..to]);
        match &tokens.said {
            Some(said) if targets == ChatTargets::Assistant => self.learnt.extend_from_slice(&said[from..to]),
            _ => self.learnt.resize(self.ids.len(), true),
        }
        self.starts.resize(self.ids.len(), start as u32);
        self.begins.extend((from..to).map(|at| u32::from(at == 0)));
    }

    fn push_bos(&mut self, bos: u32) {
        self.starts.push(self.ids.len() as u32);
        self.ids.push(bos);
        self.learnt.push(true);
        self.begins.push(1);
    }
}

impl Packer {
    /// A packer over `lanes` with their `weights`; `lengths` has the bytes of every token id.
    pub fn new(
        shape: Shape,
        codec: Arc<dyn Codec>,
        bos: u32,
        lengths: Arc<[u16]>,
        lanes: Vec<Lane>,
        weights: Vec<f64>,
    ) -> Packer {
        assert_eq!(lanes.len(), weights.len(), "a weight for every lane");
        let shares = Shares::new(weights);
        Packer { shape, codec, bos, lengths, lanes, shares, streams: Vec::new(), batches: 0, picks: 0 }
    }

    /// Goes on from `state`; the lanes must have been resumed from it.
    /// Errors: a user error when the number of rows of a stream changed, or a document is not there any more.
    pub fn restore(&mut self, state: &PackerState) -> anyhow::Result<()> {
        let streams = self.shape.rows / self.shape.segments;
        if !state.rows.is_empty() && state.rows.len() != streams {
            let (then, now) = (state.rows.len(), streams);
            user_bail!(
                "the checkpoint's data position has {then} rows, not {now}; resume with the same rows and segments"
            );
        }
        (self.batches, self.picks) = (state.batches, state.picks);
        let weights = self.shares.weights().to_vec();
        self.shares = Shares::resume(weights, state.lanes.iter().map(|lane| lane.emitted).collect());
        self.streams.clear();
        for row in &state.rows {
            let Some(lane) = self.lanes.get(row.lane as usize) else {
                user_bail!("the checkpoint's data position names source {}, which is not there", row.lane);
            };
            self.streams.push((row.lane as usize, lane.reread(&row.document, &*self.codec, self.bos)?));
        }
        Ok(())
    }

    /// The state from which the next batch is packed.
    pub fn state(&self) -> PackerState {
        let lane_state = |(lane, &emitted): (&Lane, &u64)| LaneState {
            name: lane.name().to_owned(),
            fingerprint: lane.fingerprint(),
            cursor: lane.cursor(),
            emitted,
            open: lane.open.iter().map(OpenDocument::state).collect(),
        };
        let row_state =
            |(lane, document): &(usize, OpenDocument)| RowState { lane: *lane as u64, document: document.state() };
        PackerState {
            batches: self.batches,
            picks: self.picks,
            lanes: self.lanes.iter().zip(self.shares.emitted()).map(lane_state).collect(),
            rows: self.streams.iter().map(row_state).collect(),
        }
    }

    /// Packs the next batch. Errors: those of reading; a user error when one epoch of all sources does not fill a batch.
    pub fn next_batch(&mut self) -> anyhow::Result<Batch> {
        let Shape { rows, seq_len, segments, .. } = self.shape;
        let mut batch = Batch {
            rows,
            seq_len,
            segments,
            tokens: Vec::with_capacity(rows * seq_len),
            targets: Vec::with_capacity(rows * seq_len),
            doc_start: Vec::with_capacity(rows * seq_len),
            begins: Vec::with_capacity(rows * seq_len),
            bytes_in_targets: Vec::with_capacity(rows * seq_len),
            epoch: 0,
            index: self.batches,
        };
        for row in 0..rows {
            let packed = match self.shape.packing {
                Packing::Bos => self.bos_row()?,
                Packing::Stream => self.stream_row(row / segments)?,
            };
            assert_eq!(packed.ids.len(), seq_len + 1, "a row is filled exactly");
            batch.tokens.extend_from_slice(&packed.ids[..seq_len]);
            batch.doc_start.extend_from_slice(&packed.starts[..seq_len]);
            batch.begins.extend_from_slice(&packed.begins[..seq_len]);
            for (&id, &learnt) in packed.ids[1..].iter().zip(&packed.learnt[1..]) {
                batch.targets.push(if learnt { id } else { IGNORE });
                let bytes = self.lengths.get(id as usize).copied().unwrap_or(0);
                batch.bytes_in_targets.push(if learnt { bytes } else { 0 });
            }
        }
        batch.epoch = self.lanes.iter().map(|lane| lane.cursor().epoch).max().unwrap_or(0);
        if self.batches == 0 {
            self.check_enough()?;
        }
        self.batches += 1;
        Ok(batch)
    }

    fn check_enough(&self) -> anyhow::Result<()> {
        let Shape { rows, seq_len, .. } = self.shape;
        let ended: Option<Vec<u64>> = self.lanes.iter().map(Lane::tokens_of_first_epoch).collect();
        let needed = (rows * (seq_len + 1)) as u64;
        if let Some(held) = ended.map(|tokens| tokens.iter().sum::<u64>())
            && held < needed
        {
            let names: Vec<&str> = self.lanes.iter().map(Lane::name).collect();
            let split = self.lanes[0].split().name();
            user_bail!(
                "the {split} data of {} has {held} tokens, fewer than the {needed} of one batch ({rows} rows of {seq_len} + 1); \
                 give more data, or lower rows or seq_len",
                names.join(", ")
            );
        }
        Ok(())
    }

    fn bos_row(&mut self) -> anyhow::Result<Row> {
        let width = self.shape.seq_len + 1;
        let mut row = Row::default();
        while row.ids.len() < width {
            let room = width - row.ids.len();
            if room == 1 && !row.ids.is_empty() {
                // Only BOS fits: it tells that the last document is over, and starts none.
                row.push_bos(self.bos);
                break;
            }
            let order = self.shares.order();
            let mut chosen = None;
            for &lane in &order {
                self.lanes[lane].fill(&*self.codec, self.bos)?;
                chosen = self.best_fit(lane, room).map(|index| (lane, index));
                if chosen.is_some() {
                    break;
                }
            }
            let (lane, index) = chosen.unwrap_or_else(|| (order[0], self.shortest(order[0])));
            self.place_piece(&mut row, lane, index, room);
        }
        Ok(row)
    }

    /// Length of the next piece of a document: BOS and at most `seq_len` tokens.
    fn piece_len(&self, document: &OpenDocument) -> usize {
        1 + (document.tokens.ids.len() - 1 - document.at).min(self.shape.seq_len)
    }

    /// The document whose next piece is the longest that fits `room`; one of them by lot when there are several.
    fn best_fit(&mut self, lane: usize, room: usize) -> Option<usize> {
        let pieces = self.lanes[lane].open.iter().map(|document| self.piece_len(document));
        let fitting: Vec<(usize, usize)> = pieces.enumerate().filter(|(_, length)| *length <= room).collect();
        let longest = fitting.iter().map(|(_, length)| *length).max()?;
        let equal: Vec<usize> =
            fitting.iter().filter(|(_, length)| *length == longest).map(|(index, _)| *index).collect();
        self.picks += 1;
        Some(*Draw::new(&[self.shape.seed, self.picks]).pick(&equal))
    }

    fn shortest(&self, lane: usize) -> usize {
        let open = &self.lanes[lane].open;
        (0..open.len()).min_by_key(|&index| self.piece_len(&open[index])).expect("a filled lane has an open document")
    }

    /// Puts what fits of a document's next piece into the row.
    fn place_piece(&mut self, row: &mut Row, lane: usize, index: usize, room: usize) {
        let length = self.piece_len(&self.lanes[lane].open[index]).min(room);
        let start = row.ids.len();
        let document = &mut self.lanes[lane].open[index];
        row.push_bos(self.bos);
        if let (Some(said), ChatTargets::Assistant) = (&document.tokens.said, self.shape.chat_targets) {
            row.learnt[start] = said[0];
        }
        let from = 1 + document.at;
        row.extend(document, from, from + length - 1, start, self.shape.chat_targets);
        document.at += length - 1;
        let content = document.tokens.ids.len() - 1;
        // A document that would have fitted a row of its own gives up its rest, a longer one goes on in another piece.
        if document.at == content || content <= self.shape.seq_len {
            self.lanes[lane].open.remove(index);
        }
        self.shares.charge(lane, length);
    }

    fn stream_row(&mut self, index: usize) -> anyhow::Result<Row> {
        let width = self.shape.seq_len + 1;
        let mut row = Row::default();
        if self.streams.len() <= index {
            let opened = self.open_next()?;
            self.streams.push(opened);
        }
        loop {
            let document = &mut self.streams[index].1;
            let to = document.tokens.ids.len().min(document.at + width - row.ids.len());
            let start = row.ids.len();
            row.extend(document, document.at, to, start, self.shape.chat_targets);
            document.at = to - 1;
            if row.ids.len() == width {
                return Ok(row);
            }
            self.streams[index] = self.open_next()?;
        }
    }

    /// The next document of the source that is furthest behind; it is charged as a whole.
    fn open_next(&mut self) -> anyhow::Result<(usize, OpenDocument)> {
        let lane = self.shares.order()[0];
        self.lanes[lane].fill(&*self.codec, self.bos)?;
        let document = self.lanes[lane].open.pop_front().expect("a filled lane has an open document");
        self.shares.charge(lane, document.tokens.ids.len());
        Ok((lane, document))
    }
}
