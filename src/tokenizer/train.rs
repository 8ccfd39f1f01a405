//! Trains a byte-pair vocabulary: counts pieces on all cores, then merges the most frequent pair again and again.
//!
//! The result depends on the documents alone, not on their order or on the number of threads: counts are sums, pieces
//! are put in byte order before merging starts, and among pairs that are equally frequent the one with the lowest left
//! id wins, then the one with the lowest right id.

use super::encode::Merge;
use super::split::Splitter;
use super::{Pattern, Tokenizer, TokenizerParts, VocabularyError};
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What to train.
#[derive(Debug, Clone)]
pub struct TrainSpec {
    /// Tokens in all: 256 bytes, the merges, and the special tokens at the end.
    pub vocab_size: usize,
    /// How text is split before counting; merges never cross a split.
    pub pattern: Pattern,
    /// Special tokens, which take the last ids in this order.
    pub specials: Vec<String>,
}

impl TrainSpec {
    /// A vocabulary of `vocab_size` tokens with our own special tokens and the GPT-4 pattern.
    pub fn new(vocab_size: usize) -> Self {
        let specials = super::SPECIALS.iter().map(|name| name.to_string()).collect();
        TrainSpec { vocab_size, pattern: Pattern::Gpt4, specials }
    }
}

/// What training saw and made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TrainReport {
    /// Documents read.
    pub documents: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Different pieces that the pattern cut them into.
    pub distinct_pieces: usize,
    /// The size asked for.
    pub requested_vocab_size: usize,
    /// The size made: smaller than requested when the documents ran out of pairs to merge.
    pub vocab_size: usize,
}

impl TrainReport {
    /// Whether the documents ran out of pairs before the vocabulary was full.
    pub fn ran_out_of_pairs(&self) -> bool {
        self.vocab_size < self.requested_vocab_size
    }
}

/// Why there is nothing to train, or nothing to train on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// There must be room for every byte and every special token.
    #[error("a vocabulary of {requested} tokens is too small: 256 bytes and the special tokens need {minimum}")]
    VocabularyTooSmall {
        /// The size asked for.
        requested: usize,
        /// The smallest size that works.
        minimum: usize,
    },
    /// No document held a byte.
    #[error("there is no text to train a tokenizer on")]
    EmptyCorpus,
    /// The special tokens repeat, or the pattern is not a regular expression.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
}

/// Trains a tokenizer on `documents`, on the threads of the current rayon pool.
pub fn train<D: AsRef<[u8]> + Send + Sync>(
    documents: impl Iterator<Item = D>,
    spec: &TrainSpec,
) -> Result<(Tokenizer, TrainReport), TrainError> {
    let minimum = 256 + spec.specials.len();
    if spec.vocab_size < minimum {
        return Err(TrainError::VocabularyTooSmall { requested: spec.vocab_size, minimum });
    }
    let splitter = Splitter::new(&spec.pattern).map_err(|error| VocabularyError::BadPattern(error.to_string()))?;
    let counted = count_pieces(documents, &splitter);
    if counted.bytes == 0 {
        return Err(TrainError::EmptyCorpus);
    }
    let distinct_pieces = counted.pieces.len();
    let merges = learn_merges(Words::new(counted.pieces), spec.vocab_size - minimum);

    let mut tokens: Vec<(Vec<u8>, u32)> = (0..=255u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    for merge in &merges {
        let bytes = [tokens[merge.left as usize].0.as_slice(), &tokens[merge.right as usize].0].concat();
        tokens.push((bytes, merge.result));
    }
    let specials = spec.specials.iter().cloned().zip(tokens.len() as u32..).collect();
    let pattern = spec.pattern.clone();
    let tokenizer =
        Tokenizer::new(TokenizerParts { tokens, merges, specials, pattern, whole_pieces: false, unknown: None })?;
    let report = TrainReport {
        documents: counted.documents,
        bytes: counted.bytes,
        distinct_pieces,
        requested_vocab_size: spec.vocab_size,
        vocab_size: super::Codec::vocab_size(&tokenizer),
    };
    Ok((tokenizer, report))
}

/// How often each piece occurs.
struct Counted {
    pieces: FxHashMap<Box<[u8]>, u64>,
    documents: u64,
    bytes: u64,
}

/// Documents are counted in batches of about this size, which bounds the memory that is held at a time.
const BATCH_BYTES: usize = 32 << 20;
/// Long documents are cut, where that changes no piece, so that every thread has work.
const SEGMENT_BYTES: usize = 128 << 10;

fn count_pieces<D: AsRef<[u8]> + Send + Sync>(documents: impl Iterator<Item = D>, splitter: &Splitter) -> Counted {
    let mut counted = Counted { pieces: FxHashMap::default(), documents: 0, bytes: 0 };
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    let mut documents = documents.peekable();
    while let Some(document) = documents.next() {
        let len = document.as_ref().len();
        counted.documents += 1;
        counted.bytes += len as u64;
        batch_bytes += len;
        batch.push(document);
        if batch_bytes >= BATCH_BYTES || documents.peek().is_none() {
            count_batch(&batch, splitter, &mut counted.pieces);
            batch.clear();
            batch_bytes = 0;
        }
    }
    counted
}

fn count_batch<D: AsRef<[u8]>>(batch: &[D], splitter: &Splitter, pieces: &mut FxHashMap<Box<[u8]>, u64>) {
    let mut segments = Vec::new();
    for document in batch {
        let mut rest = document.as_ref();
        while let Some(cut) = splitter.safe_cut(rest, SEGMENT_BYTES) {
            let (segment, after) = rest.split_at(cut);
            segments.push(segment);
            rest = after;
        }
        segments.push(rest);
    }
    let counts = segments
        .into_par_iter()
        .fold(FxHashMap::default, |mut counts: FxHashMap<&[u8], u64>, segment| {
            for chunk in segment.utf8_chunks() {
                let (text, invalid) = (chunk.valid(), chunk.invalid());
                splitter.for_each(text, |start, end| *counts.entry(&text.as_bytes()[start..end]).or_default() += 1);
                if !invalid.is_empty() {
                    *counts.entry(invalid).or_default() += 1;
                }
            }
            counts
        })
        .reduce(FxHashMap::default, |a, b| {
            let (mut large, small) = if a.len() >= b.len() { (a, b) } else { (b, a) };
            for (piece, count) in small {
                *large.entry(piece).or_default() += count;
            }
            large
        });
    for (piece, count) in counts {
        match pieces.get_mut(piece) {
            Some(total) => *total += count,
            None => {
                pieces.insert(piece.into(), count);
            }
        }
    }
}

/// The distinct pieces as sequences of ids, which shrink in place as pairs merge.
struct Words {
    ids: Vec<u32>,
    /// Where each word's ids start, how many are left, and how often the word occurs.
    spans: Vec<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    start: usize,
    len: u32,
    count: u64,
}

impl Words {
    fn new(pieces: FxHashMap<Box<[u8]>, u64>) -> Self {
        let mut pieces: Vec<(Box<[u8]>, u64)> = pieces.into_iter().filter(|(piece, _)| piece.len() > 1).collect();
        pieces.par_sort_unstable();
        let mut words = Words { ids: Vec::new(), spans: Vec::with_capacity(pieces.len()) };
        for (piece, count) in pieces {
            words.spans.push(Span { start: words.ids.len(), len: piece.len() as u32, count });
            words.ids.extend(piece.iter().map(|byte| u32::from(*byte)));
        }
        words
    }
}

/// A pair of neighbouring ids; orders by the left, then the right one.
type Pair = (u32, u32);

/// How often a pair occurs now, and the words it has occurred in (some may have lost it since).
#[derive(Default)]
struct PairInfo {
    count: u64,
    words: Vec<u32>,
}

impl PairInfo {
    fn add(&mut self, word: u32, count: u64) {
        self.count += count;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

/// Merges the most frequent pair, at most `merges_max` times; stops early when no pair is left.
///
/// The heap holds for every pair a count that is at least the true one: merging only ever lowers the counts of pairs
/// that exist, and the new pairs, which contain the new id, are pushed once all words are done. So an entry that is out
/// of date is corrected when it comes up, and the first one that is right is the maximum.
fn learn_merges(mut words: Words, merges_max: usize) -> Vec<Merge> {
    let mut pairs: FxHashMap<Pair, PairInfo> = FxHashMap::default();
    for (word, span) in words.spans.iter().enumerate() {
        for pair in words.ids[span.start..][..span.len as usize].windows(2) {
            pairs.entry((pair[0], pair[1])).or_default().add(word as u32, span.count);
        }
    }
    let mut heap: BinaryHeap<(u64, Reverse<Pair>)> =
        pairs.iter().map(|(pair, info)| (info.count, Reverse(*pair))).collect();
    let mut merges = Vec::with_capacity(merges_max);
    let mut created = Vec::new();
    while merges.len() < merges_max {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        let now = pairs.get(&pair).map_or(0, |info| info.count);
        if now == 0 {
            continue;
        }
        if now < count {
            heap.push((now, Reverse(pair)));
            continue;
        }
        let result = 256 + merges.len() as u32;
        merges.push(Merge { left: pair.0, right: pair.1, result });
        let info = pairs.remove(&pair).expect("its count is above zero");
        for word in info.words {
            let span = &mut words.spans[word as usize];
            let ids = &mut words.ids[span.start..][..span.len as usize];
            span.len = merge_word(ids, pair, result, |changed, gained| match pairs.entry(changed) {
                std::collections::hash_map::Entry::Vacant(vacant) if gained => {
                    created.push(changed);
                    vacant.insert(PairInfo::default()).add(word, span.count);
                }
                std::collections::hash_map::Entry::Vacant(_) => {} // the pair being merged, in a run like `aaa`
                std::collections::hash_map::Entry::Occupied(mut info) if gained => info.get_mut().add(word, span.count),
                std::collections::hash_map::Entry::Occupied(mut info) => info.get_mut().count -= span.count,
            }) as u32;
        }
        heap.extend(created.drain(..).map(|pair| (pairs[&pair].count, Reverse(pair))));
    }
    merges
}

/// Replaces `pair` by `result` in a word, from left to right, and returns the word's new length. Calls `changed` for
/// every pair of neighbours that appears (`true`) or disappears (`false`) beside a merge, other than `pair` itself.
fn merge_word(ids: &mut [u32], pair: Pair, result: u32, mut changed: impl FnMut(Pair, bool)) -> usize {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if read + 1 == ids.len() || (ids[read], ids[read + 1]) != pair {
            ids[write] = ids[read];
            read += 1;
            write += 1;
            continue;
        }
        if write > 0 {
            changed((ids[write - 1], pair.0), false);
            changed((ids[write - 1], result), true);
        }
        if read + 2 < ids.len() {
            changed((pair.1, ids[read + 2]), false);
            changed((result, ids[read + 2]), true);
        }
        ids[write] = result;
        read += 2;
        write += 1;
    }
    write
}
