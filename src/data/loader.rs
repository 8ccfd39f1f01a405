//! The loader: a thread that reads, tokenises and packs batches ahead, and whose position can be kept and taken up again.

use super::collection::{Collection, CollectionOptions};
use super::feed::Lane;
use super::packing::{Batch, ChatTargets, Packer, PackerState, Packing, Shape};
use super::shards::Expected;
use super::source::Split;
use super::spec::Spec;
use super::walker::{Visit, Walker};
use crate::tokenizer::Codec;
use crate::tokenizer::special::{Message, render_chat};
use crate::{user_bail, user_error};
use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// Share of the documents held out when nothing else is said.
pub const VAL_FRACTION: f64 = 0.02;

/// How a corpus is cut, ordered and packed.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Rows of a batch.
    pub rows: usize,
    /// Inputs per row.
    pub seq_len: usize,
    /// How documents are laid into rows.
    pub packing: Packing,
    /// Rows of a stream in a batch of [`Packing::Stream`], one behind the other; divides `rows`.
    pub segments: usize,
    /// Which targets of chats count.
    pub chat_targets: ChatTargets,
    /// This rank, from 0; its documents are its own.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Seed of the order of units (every epoch another), of generated documents and of choices in packing.
    pub seed: u64,
    /// Which documents.
    pub split: Split,
    /// Share held out for validation, in `0..1`; [`VAL_FRACTION`] by default. Must be the same for both splits.
    pub val_fraction: f64,
    /// Batches packed ahead; at least 1.
    pub depth: usize,
    /// Hexadecimal digest of the tokenizer, held against token shards that name one.
    pub tokenizer_digest: Option<String>,
}

impl LoaderOptions {
    /// The training split for one rank, packed by [`Packing::Bos`], three batches ahead, seed 0.
    pub fn new(rows: usize, seq_len: usize) -> LoaderOptions {
        LoaderOptions {
            rows,
            seq_len,
            packing: Packing::default(),
            segments: 1,
            chat_targets: ChatTargets::default(),
            rank: 0,
            world: 1,
            seed: 0,
            split: Split::Train,
            val_fraction: VAL_FRACTION,
            depth: 3,
            tokenizer_digest: None,
        }
    }
}

/// The position after a batch: all that the following batches depend on besides specs, options and tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Of this format: 1.
    pub version: u32,
    /// Options that must be the same on resuming.
    pub packing: Packing,
    /// See [`LoaderOptions::rank`].
    pub rank: usize,
    /// See [`LoaderOptions::world`].
    pub world: usize,
    /// See [`LoaderOptions::seed`].
    pub seed: u64,
    /// See [`LoaderOptions::split`].
    pub split: Split,
    /// See [`LoaderOptions::val_fraction`].
    pub val_fraction: f64,
    /// Sources, open documents and rows.
    pub packer: PackerState,
}

/// Opened sources, ready to be walked any number of times (a validation pass each time from its beginning).
pub struct Corpus {
    collections: Vec<Arc<Collection>>,
    codec: Arc<dyn Codec>,
    options: LoaderOptions,
    bos: u32,
    lengths: Arc<[u16]>,
}

impl Corpus {
    /// Opens `specs` (see [`Spec::parse`]) for use with `codec`.
    /// Errors: a user error for options out of range, a tokenizer without BOS, and all that specs and sources report.
    pub fn open(specs: &[String], codec: Arc<dyn Codec>, options: LoaderOptions) -> anyhow::Result<Corpus> {
        if options.rows == 0 || options.seq_len == 0 {
            user_bail!("rows is {} and seq_len is {}; both must be at least 1", options.rows, options.seq_len);
        }
        if options.segments == 0 || !options.rows.is_multiple_of(options.segments) {
            user_bail!("{} segments do not divide {} rows; choose a divisor", options.segments, options.rows);
        }
        if options.rank >= options.world {
            user_bail!("rank {} of {}: ranks count from 0 and stay below their number", options.rank, options.world);
        }
        let bos = codec.bos().ok_or_else(|| {
            user_error!("the tokenizer has no token that begins a document (<|bos|>); train or name one that has")
        })?;
        let opening = collection_options(&*codec, &options);
        let specs = Spec::parse_all(specs)?;
        let open = |spec: &Spec| Collection::open(spec, &opening).map(Arc::new);
        let collections = specs.iter().map(open).collect::<anyhow::Result<_>>()?;
        let bytes = |id: u32| if id == bos { 0 } else { codec.token_bytes(id).map_or(0, |bytes| bytes.len() as u16) };
        let lengths = (0..codec.vocab_size() as u32).map(bytes).collect();
        Ok(Corpus { collections, codec, options, bos, lengths })
    }

    /// A packer at the beginning, or where `state` was taken. Packs in the calling thread.
    /// Errors: a user error when the state belongs to other data, another seed or another division of the ranks.
    pub fn packer(&self, state: Option<&LoaderState>) -> anyhow::Result<Packer> {
        let LoaderOptions { rows, seq_len, packing, segments, chat_targets, seed, .. } = self.options;
        let segments = if packing == Packing::Stream { segments } else { 1 };
        let visit = Visit { seed: Some(seed), rank: self.options.rank as u64, world: self.options.world as u64 };
        if let Some(state) = state {
            self.check(state)?;
        }
        let mut lanes = Vec::new();
        for (index, collection) in self.collections.iter().enumerate() {
            let collection = collection.clone();
            lanes.push(match state.map(|state| &state.packer.lanes[index]) {
                None => Lane::new(Walker::new(collection, visit)?),
                Some(lane) => {
                    let walker = Walker::resume(collection, visit, lane.cursor)?;
                    Lane::resume(walker, &lane.open, &*self.codec, self.bos)?
                }
            });
        }
        let weights = self.collections.iter().map(|collection| collection.weight).collect();
        let shape = Shape { rows, seq_len, packing, segments, chat_targets, seed };
        let mut packer = Packer::new(shape, self.codec.clone(), self.bos, self.lengths.clone(), lanes, weights);
        if let Some(state) = state {
            packer.restore(&state.packer)?;
        }
        Ok(packer)
    }

    /// Starts the thread, at the beginning or where `state` was taken. Errors: those of [`Corpus::packer`].
    pub fn start(&self, state: Option<&LoaderState>) -> anyhow::Result<Loader> {
        let mut packer = self.packer(state)?;
        let state = self.state(packer.state());
        let (send, receive) = sync_channel(self.options.depth.max(1));
        let work = move || {
            loop {
                let packed = packer.next_batch().map(|batch| (batch, packer.state()));
                let failed = packed.is_err();
                // Nobody listens any more once the loader is dropped.
                if send.send(packed).is_err() || failed {
                    return;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("data".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Loader { state, receive: Some(receive), thread: Some(thread) })
    }

    /// What a checkpoint keeps of a packer's state.
    pub fn state(&self, packer: PackerState) -> LoaderState {
        let LoaderOptions { packing, rank, world, seed, split, val_fraction, .. } = self.options;
        LoaderState { version: 1, packing, rank, world, seed, split, val_fraction, packer }
    }

    fn check(&self, state: &LoaderState) -> anyhow::Result<()> {
        let ours = self.state(state.packer.clone());
        let differs = |what: &str, then: String, now: String| {
            Err(user_error!(
                "the checkpoint's data position was made with {what} {then}, not {now}; resume with the same"
            ))
        };
        if state.version != ours.version {
            return differs("format", state.version.to_string(), ours.version.to_string());
        }
        if (state.rank, state.world) != (ours.rank, ours.world) {
            let rank = |state: &LoaderState| format!("{} of {}", state.rank, state.world);
            return differs("rank", rank(state), rank(&ours));
        }
        if state.seed != ours.seed {
            return differs("seed", state.seed.to_string(), ours.seed.to_string());
        }
        if state.packing != ours.packing {
            return differs("packing", format!("{:?}", state.packing), format!("{:?}", ours.packing));
        }
        if (state.split, state.val_fraction) != (ours.split, ours.val_fraction) {
            let part = |state: &LoaderState| format!("{} and val_fraction {}", state.split.name(), state.val_fraction);
            return differs("split", part(state), part(&ours));
        }
        let then: Vec<&str> = state.packer.lanes.iter().map(|lane| lane.name.as_str()).collect();
        let now: Vec<&str> = self.collections.iter().map(|collection| collection.name.as_str()).collect();
        if then.len() != now.len() {
            return differs("data", then.join(", "), now.join(", "));
        }
        for (lane, collection) in state.packer.lanes.iter().zip(&self.collections) {
            if lane.fingerprint != collection.fingerprint() {
                let name = &collection.name;
                user_bail!(
                    "{name} is not the data of the checkpoint any more ({}); bring the old files back",
                    lane.name
                );
            }
        }
        Ok(())
    }
}

/// How sources are opened for `codec`.
fn collection_options(codec: &dyn Codec, options: &LoaderOptions) -> CollectionOptions {
    let probe = Message::new("user", "?");
    CollectionOptions {
        split: options.split,
        val_fraction: options.val_fraction,
        seed: options.seed,
        expected: Expected {
            vocab_size: Some(codec.vocab_size()),
            bos: codec.bos(),
            digest: options.tokenizer_digest.clone(),
        },
        chats: render_chat(codec, &[probe]).is_ok(),
    }
}

type Packed = anyhow::Result<(Batch, PackerState)>;

/// Batches without end, packed ahead by a thread. Dropping it ends the thread.
pub struct Loader {
    state: LoaderState,
    receive: Option<Receiver<Packed>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Opens `specs` and starts at the beginning. Errors: those of [`Corpus::open`] and [`Corpus::start`].
    pub fn new(specs: &[String], codec: Arc<dyn Codec>, options: LoaderOptions) -> anyhow::Result<Loader> {
        Corpus::open(specs, codec, options)?.start(None)
    }

    /// Opens `specs` and goes on after the batch at which `state` was taken: the batches are the same, bit for bit.
    pub fn resume(
        specs: &[String],
        codec: Arc<dyn Codec>,
        options: LoaderOptions,
        state: &LoaderState,
    ) -> anyhow::Result<Loader> {
        Corpus::open(specs, codec, options)?.start(Some(state))
    }

    /// The next batch, as soon as it is packed. Errors: the first error of the thread, which then has ended.
    pub fn next_batch(&mut self) -> anyhow::Result<Batch> {
        let receive = self.receive.as_ref().expect("a loader has its channel until it is dropped");
        let (batch, packer) = receive.recv().map_err(|_| anyhow!("the data thread ended after an error"))??;
        self.state.packer = packer;
        Ok(batch)
    }

    /// The position after the last batch that [`Loader::next_batch`] returned (not the last one packed).
    pub fn state(&self) -> &LoaderState {
        &self.state
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Closing the channel first lets a thread that waits for room in it go on and end.
        self.receive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
