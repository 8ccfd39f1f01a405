//! Turns pieces of text into token ids: a cache of recent pieces, a table of whole-piece tokens, and the merge loop.

use super::split::Splitter;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

/// One merge: `left` followed by `right` becomes `result`. A merge's rank is its place in the list of merges; the lowest
/// rank present in a piece is applied first, and of equal ones the leftmost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Merge {
    /// Id of the left part.
    pub left: u32,
    /// Id of the right part.
    pub right: u32,
    /// Id of the token whose bytes are those of `left` and `right` together.
    pub result: u32,
}

/// Rank of a pair that does not merge.
const NO_MERGE: u32 = u32::MAX;
/// Longest piece, in bytes, that merges by scanning for the lowest rank: quadratic, but in registers and cache.
/// Longer ones use a heap, so that a megabyte without a split takes n log n.
const SCAN_BYTES_MAX: usize = 64;

/// The merges, by pair.
#[derive(Debug, Default)]
pub(super) struct MergeTable {
    rank_of: FxHashMap<u64, u32>,
    results: Vec<u32>,
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl MergeTable {
    /// Appends a merge with the next rank. `false` when the pair has one already.
    pub fn push(&mut self, merge: Merge) -> bool {
        let rank = self.results.len() as u32;
        let fresh = self.rank_of.insert(pair_key(merge.left, merge.right), rank).is_none();
        self.results.push(merge.result);
        fresh
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        self.rank_of.get(&pair_key(left, right)).copied().unwrap_or(NO_MERGE)
    }

    /// Appends the ids that `piece` merges to, starting from `byte_ids` of its bytes.
    pub fn merge_into(&self, piece: &[u8], byte_ids: &[u32; 256], out: &mut Vec<u32>) {
        if piece.len() <= SCAN_BYTES_MAX {
            self.merge_by_scan(piece, byte_ids, out);
        } else {
            self.merge_by_heap(piece, byte_ids, out);
        }
    }

    fn merge_by_scan(&self, piece: &[u8], byte_ids: &[u32; 256], out: &mut Vec<u32>) {
        let mut ids = [0; SCAN_BYTES_MAX];
        let mut ranks = [NO_MERGE; SCAN_BYTES_MAX]; // ranks[i] is that of the pair (ids[i], ids[i + 1])
        let mut len = piece.len();
        for (id, byte) in ids.iter_mut().zip(piece) {
            *id = byte_ids[*byte as usize];
        }
        for i in 1..len {
            ranks[i - 1] = self.rank(ids[i - 1], ids[i]);
        }
        while len > 1 {
            let mut at = 0;
            for i in 1..len - 1 {
                if ranks[i] < ranks[at] {
                    at = i;
                }
            }
            if ranks[at] == NO_MERGE {
                break;
            }
            ids[at] = self.results[ranks[at] as usize];
            ids.copy_within(at + 2..len, at + 1);
            ranks.copy_within(at + 1..len, at);
            len -= 1;
            ranks[at] = if at + 1 < len { self.rank(ids[at], ids[at + 1]) } else { NO_MERGE };
            if at > 0 {
                ranks[at - 1] = self.rank(ids[at - 1], ids[at]);
            }
        }
        out.extend_from_slice(&ids[..len]);
    }

    fn merge_by_heap(&self, piece: &[u8], byte_ids: &[u32; 256], out: &mut Vec<u32>) {
        /// One part of the piece, in a doubly linked list; `rank` is that of the pair with the next part.
        struct Part {
            id: u32,
            rank: u32,
            previous: usize,
            next: usize,
        }
        let len = piece.len();
        let mut parts: Vec<Part> = (0..len)
            .map(|i| Part { id: byte_ids[piece[i] as usize], rank: NO_MERGE, previous: i.wrapping_sub(1), next: i + 1 })
            .collect();
        // Entries go stale when a neighbour merges; they are told by a rank that is no longer the part's.
        let mut heap = BinaryHeap::new();
        for i in 0..len - 1 {
            parts[i].rank = self.rank(parts[i].id, parts[i + 1].id);
            if parts[i].rank != NO_MERGE {
                heap.push(Reverse((parts[i].rank, i)));
            }
        }
        while let Some(Reverse((rank, at))) = heap.pop() {
            if parts[at].rank != rank {
                continue;
            }
            let right = parts[at].next;
            parts[right].rank = NO_MERGE;
            parts[at].id = self.results[rank as usize];
            parts[at].next = parts[right].next;
            if parts[at].next < len {
                let next = parts[at].next;
                parts[next].previous = at;
            }
            for left in [at, parts[at].previous] {
                if left >= len {
                    continue; // the first part has no previous one
                }
                let next = parts[left].next;
                parts[left].rank = if next < len { self.rank(parts[left].id, parts[next].id) } else { NO_MERGE };
                if parts[left].rank != NO_MERGE {
                    heap.push(Reverse((parts[left].rank, left)));
                }
            }
        }
        let mut at = 0;
        while at < len {
            out.push(parts[at].id);
            at = parts[at].next;
        }
    }
}

/// Longest piece, in bytes, that packs into a [`PieceKey`].
const KEY_BYTES_MAX: usize = 15;
/// A short piece as one number: its bytes below, its length in the top byte. Never zero.
type PieceKey = u128;

/// The key of `text[start..end]`, which has 1 to [`KEY_BYTES_MAX`] bytes.
#[inline]
fn piece_key(text: &[u8], start: usize, end: usize) -> PieceKey {
    let len = end - start;
    let bytes = match text.get(start..start + 16) {
        Some(sixteen) => {
            let whole = u128::from_le_bytes(sixteen.try_into().expect("16 bytes"));
            whole & ((1 << (8 * len)) - 1)
        }
        None => {
            let mut padded = [0; 16];
            padded[..len].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(padded)
        }
    };
    bytes | (len as u128) << 120
}

/// Slots of the cache: 4,096 of 48 bytes fit in a second-level cache beside the text.
const SLOTS: usize = 4096;
const SLOT_IDS_MAX: usize = 7;

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: PieceKey,
    len: u32,
    ids: [u32; SLOT_IDS_MAX],
}

/// Recent short pieces and their ids, direct-mapped: a piece takes the one slot its hash names.
#[derive(Debug)]
struct Cache {
    slots: Box<[Slot; SLOTS]>,
}

impl Cache {
    fn new() -> Self {
        let empty = Slot { key: 0, len: 0, ids: [0; SLOT_IDS_MAX] };
        Cache { slots: vec![empty; SLOTS].try_into().expect("SLOTS of them") }
    }

    #[inline]
    fn slot_of(key: PieceKey) -> usize {
        let (low, high) = (key as u64, (key >> 64) as u64);
        let mixed = (low ^ high.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (mixed >> (64 - SLOTS.trailing_zeros())) as usize
    }
}

/// Encodes text. Any number of threads may encode with one encoder; each borrows a cache from the pool meanwhile.
#[derive(Debug)]
pub(super) struct Encoder {
    splitter: Splitter,
    byte_ids: [u32; 256],
    merges: MergeTable,
    whole_short: FxHashMap<PieceKey, u32>,
    whole_long: FxHashMap<Box<[u8]>, u32>,
    caches: Mutex<Vec<Cache>>,
}

impl Encoder {
    /// An encoder for the `tokens` (bytes and id; single bytes are in `byte_ids`). With `whole_pieces`, a piece that is
    /// a token becomes that token whatever the merges say; otherwise only when the merges lead there.
    pub fn new<'a>(
        splitter: Splitter,
        byte_ids: [u32; 256],
        merges: MergeTable,
        tokens: impl Iterator<Item = (&'a [u8], u32)>,
        whole_pieces: bool,
    ) -> Self {
        let (mut whole_short, mut whole_long) = (FxHashMap::default(), FxHashMap::default());
        let mut merged = Vec::new();
        for (bytes, id) in tokens {
            if !whole_pieces {
                merged.clear();
                merges.merge_into(bytes, &byte_ids, &mut merged);
                if merged != [id] {
                    continue;
                }
            }
            if bytes.len() <= KEY_BYTES_MAX {
                whole_short.insert(piece_key(bytes, 0, bytes.len()), id);
            } else {
                whole_long.insert(bytes.into(), id);
            }
        }
        Encoder { splitter, byte_ids, merges, whole_short, whole_long, caches: Mutex::new(Vec::new()) }
    }

    /// Appends the ids of `bytes`. Valid UTF-8 is split by the pattern; each invalid sequence, as
    /// [`<[u8]>::utf8_chunks`](slice::utf8_chunks) finds them, is a piece of its own and ends the text for the pattern.
    pub fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>) {
        let pool = || self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = pool().pop().unwrap_or_else(Cache::new);
        for chunk in bytes.utf8_chunks() {
            let text = chunk.valid();
            self.splitter.for_each(text, |start, end| {
                self.encode_piece(text.as_bytes(), start, end, &mut cache, out);
            });
            if !chunk.invalid().is_empty() {
                self.merges.merge_into(chunk.invalid(), &self.byte_ids, out);
            }
        }
        pool().push(cache);
    }

    #[inline]
    fn encode_piece(&self, text: &[u8], start: usize, end: usize, cache: &mut Cache, out: &mut Vec<u32>) {
        let len = end - start;
        if len > KEY_BYTES_MAX {
            match self.whole_long.get(&text[start..end]) {
                Some(id) => out.push(*id),
                None => self.merges.merge_into(&text[start..end], &self.byte_ids, out),
            }
            return;
        }
        let key = piece_key(text, start, end);
        let slot = &mut cache.slots[Cache::slot_of(key)];
        if slot.key == key {
            match slot.len {
                1 => out.push(slot.ids[0]),
                n => out.extend_from_slice(&slot.ids[..n as usize]),
            }
            return;
        }
        let from = out.len();
        self.encode_short(key, &text[start..end], out);
        let ids = &out[from..];
        if ids.len() <= SLOT_IDS_MAX {
            slot.key = key;
            slot.len = ids.len() as u32;
            slot.ids[..ids.len()].copy_from_slice(ids);
        }
    }

    /// A short piece that the cache does not hold.
    #[inline(never)]
    fn encode_short(&self, key: PieceKey, piece: &[u8], out: &mut Vec<u32>) {
        if let [byte] = piece {
            out.push(self.byte_ids[*byte as usize]);
        } else if let Some(id) = self.whole_short.get(&key) {
            out.push(*id);
        } else {
            self.merges.merge_into(piece, &self.byte_ids, out);
        }
    }
}
