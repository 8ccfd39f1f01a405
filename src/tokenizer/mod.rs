//! Byte-level byte-pair encoding: the `Codec` seam, and the `Tokenizer` that trains, encodes, decodes, loads and saves.
//! Knows bytes and ids; knows nothing of models, data sources or the command line.

mod encode;
mod hf;
mod pattern;
pub mod special;
mod split;
pub mod template;
mod train;

pub use encode::Merge;
pub(crate) use hf::{from_alphabet, to_alphabet};
pub use pattern::Pattern;
pub use special::{Content, Message, Part, PartKind, RenderedChat, SPECIALS, end_ids, render_chat, render_prompt};
pub use template::{ChatTemplate, TemplateTokens};
pub use train::{TrainError, TrainReport, TrainSpec, train};

use encode::{Encoder, MergeTable};
use rustc_hash::FxHashMap;
use split::Splitter;

/// What turns bytes into token ids and back. Training, data preparation and inference know tokenizers only by this.
pub trait Codec: Send + Sync {
    /// Appends the ids of `bytes` as ordinary text: the text of a special token is not recognised as one. Any bytes
    /// are allowed, and decoding gives back exactly these bytes.
    fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>);

    /// Appends the bytes of `ids`; a special token's are its text.
    ///
    /// # Panics
    /// On an id for which [`token_bytes`](Codec::token_bytes) is `None`: check ids from outside first.
    fn decode_into(&self, ids: &[u32], out: &mut Vec<u8>) {
        for &id in ids {
            out.extend_from_slice(self.token_bytes(id).unwrap_or_else(|| panic!("no token has the id {id}")));
        }
    }

    /// The bytes of one token, or `None` when no token has this id.
    fn token_bytes(&self, id: u32) -> Option<&[u8]>;

    /// One more than the highest id, special tokens included: the rows an embedding needs.
    fn vocab_size(&self) -> usize;

    /// The id of the special token with this text.
    fn special(&self, name: &str) -> Option<u32>;

    /// Whether this is a special token.
    fn is_special(&self, id: u32) -> bool;

    /// The ids of `bytes`: see [`encode_into`](Codec::encode_into).
    fn encode(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(bytes.len() / 3);
        self.encode_into(bytes, &mut ids);
        ids
    }

    /// The bytes of `ids`: see [`decode_into`](Codec::decode_into), also for its panic.
    fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        self.decode_into(ids, &mut bytes);
        bytes
    }

    /// The token that begins a document, by the names that common tokenizers have for it.
    fn bos(&self) -> Option<u32> {
        ["<|bos|>", "<|endoftext|>", "<|begin_of_text|>", "<s>", "<|im_start|>"]
            .iter()
            .find_map(|name| self.special(name))
    }
}

/// Why a vocabulary does not make a tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// Every byte must be a token, or an unknown token stand for it; else some text could not be encoded.
    #[error("the vocabulary has no token for the byte 0x{0:02X}")]
    MissingByte(u8),
    /// A token of no bytes could be put anywhere.
    #[error("the token with id {0} is empty")]
    EmptyToken(u32),
    /// Two tokens or special tokens share an id.
    #[error("two tokens have the id {0}")]
    DuplicateId(u32),
    /// Two tokens, or two special tokens, have the same bytes.
    #[error("two ids ({0} and {1}) have the same bytes")]
    DuplicateToken(u32, u32),
    /// Ids index tables, so they must be small, and not far beyond the number of tokens.
    #[error("the id {0} is too large (at most {ID_MAX}, and {HOLES_MAX} more than there are tokens)")]
    IdTooLarge(u32),
    /// A merge names an id without a token, or its result is not its parts joined.
    #[error("merge {0} does not join two tokens into a third")]
    BadMerge(usize),
    /// Two merges of the same pair.
    #[error("merge {0} repeats an earlier pair")]
    RepeatedMerge(usize),
    /// The custom split pattern is not a valid regular expression.
    #[error("the split pattern is not a valid regular expression: {0}")]
    BadPattern(String),
}

/// Highest id a token may have: 16 Mi, a hundred times the largest vocabularies in use.
const ID_MAX: u32 = (1 << 24) - 1;
/// Most ids without a token below the highest one: tables are not to be far larger than what they hold.
const HOLES_MAX: usize = 1 << 16;

/// All that a tokenizer consists of; [`Tokenizer::new`] checks it.
#[derive(Debug, Clone)]
pub struct TokenizerParts {
    /// Ordinary tokens: bytes and id. Every single byte must be among them unless `unknown` stands in; ids may have holes.
    pub tokens: Vec<(Vec<u8>, u32)>,
    /// Merges in the order of their rank.
    pub merges: Vec<Merge>,
    /// Special tokens: text and id.
    pub specials: Vec<(String, u32)>,
    /// How text is split before merging.
    pub pattern: Pattern,
    /// Whether a whole piece that is a token becomes it even when the merges would not lead there (tiktoken's rule, and
    /// `ignore_merges` in Hugging Face's file). Without effect on vocabularies whose tokens all come from merges.
    pub whole_pieces: bool,
    /// The token that a byte becomes for which there is none: some vocabularies (SmolLM's) lack bytes that their training
    /// text had not. Such a byte does not come back when it is decoded.
    pub unknown: Option<u32>,
}

impl TokenizerParts {
    /// The token that common tokenizers have for what they do not know.
    pub(crate) fn usual_unknown(specials: &[(String, u32)]) -> Option<u32> {
        let id = |name: &str| specials.iter().find(|(text, _)| text == name).map(|(_, id)| *id);
        ["<unk>", "<|endoftext|>"].into_iter().find_map(id)
    }
}

/// A byte-level BPE tokenizer: ordinary tokens, merges, special tokens and a split pattern.
#[derive(Debug)]
pub struct Tokenizer {
    /// The bytes of all tokens, by id; token `id` is `bytes[starts[id]..starts[id + 1]]`, empty where there is none.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    merges: Vec<Merge>,
    specials: Vec<(String, u32)>,
    special_ids: FxHashMap<String, u32>,
    /// For each first byte, the special tokens that begin with it, longest first.
    specials_by_byte: Vec<Vec<u32>>,
    pattern: Pattern,
    whole_pieces: bool,
    unknown: Option<u32>,
    encoder: Encoder,
}

impl Tokenizer {
    /// Builds a tokenizer from its parts.
    pub fn new(parts: TokenizerParts) -> Result<Self, VocabularyError> {
        let TokenizerParts { tokens, merges, mut specials, pattern, whole_pieces, unknown } = parts;
        specials.sort_by_key(|(_, id)| *id);
        let (bytes, starts) = token_table(&tokens, &specials)?;
        let special_ids: FxHashMap<String, u32> = specials.iter().cloned().collect();
        if let Some((text, id)) = specials.iter().find(|(text, id)| special_ids[text] != *id) {
            return Err(VocabularyError::DuplicateToken(*id, special_ids[text]));
        }
        let mut specials_by_byte = vec![Vec::new(); 256];
        let mut longest_first: Vec<&(String, u32)> = specials.iter().collect();
        longest_first.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));
        for (text, id) in longest_first {
            specials_by_byte[text.as_bytes()[0] as usize].push(*id);
        }

        let is_any = |id: usize| starts.get(id).is_some_and(|at| starts.get(id + 1).is_some_and(|end| end > at));
        let unknown = unknown.filter(|id| is_any(*id as usize) && self::byte_ids(&tokens, None).is_err());
        let byte_ids = self::byte_ids(&tokens, unknown)?;
        let is_token: FxHashMap<u32, &[u8]> = tokens.iter().map(|(bytes, id)| (*id, bytes.as_slice())).collect();
        let mut table = MergeTable::default();
        for (rank, merge) in merges.iter().enumerate() {
            let part = |id| is_token.get(id).copied().ok_or(VocabularyError::BadMerge(rank));
            if [part(&merge.left)?, part(&merge.right)?].concat() != part(&merge.result)? {
                return Err(VocabularyError::BadMerge(rank));
            }
            if !table.push(*merge) {
                return Err(VocabularyError::RepeatedMerge(rank));
            }
        }
        let mut seen: FxHashMap<&[u8], u32> = FxHashMap::default();
        for (token, id) in &tokens {
            if let Some(earlier) = seen.insert(token, *id) {
                return Err(VocabularyError::DuplicateToken(earlier, *id));
            }
        }
        let splitter = Splitter::new(&pattern).map_err(|error| VocabularyError::BadPattern(error.to_string()))?;
        let longer = tokens.iter().filter(|(token, _)| token.len() > 1).map(|(token, id)| (token.as_slice(), *id));
        let encoder = Encoder::new(splitter, byte_ids, table, longer, whole_pieces);
        Ok(Tokenizer {
            bytes,
            starts,
            merges,
            specials,
            special_ids,
            specials_by_byte,
            pattern,
            whole_pieces,
            unknown,
            encoder,
        })
    }

    /// Builds a tokenizer from a list in tiktoken's form, in which a token's rank is its id and the merges are implied:
    /// each token is the pair of parts that merging with the lower ranks alone leaves of its bytes. A token that they
    /// leave in more than two parts is reached only as a whole piece.
    pub fn from_ranks(
        ranks: impl IntoIterator<Item = (Vec<u8>, u32)>,
        specials: impl IntoIterator<Item = (String, u32)>,
        pattern: Pattern,
    ) -> Result<Self, VocabularyError> {
        let mut tokens: Vec<(Vec<u8>, u32)> = ranks.into_iter().collect();
        tokens.sort_by_key(|(_, rank)| *rank);
        let byte_ids = byte_ids(&tokens, None)?;
        let mut table = MergeTable::default();
        let (mut merges, mut halves) = (Vec::new(), Vec::new());
        for (token, rank) in tokens.iter().filter(|(token, _)| token.len() > 1) {
            halves.clear();
            table.merge_into(token, &byte_ids, &mut halves);
            if let [left, right] = halves[..] {
                let merge = Merge { left, right, result: *rank };
                table.push(merge);
                merges.push(merge);
            }
        }
        let specials = specials.into_iter().collect();
        Tokenizer::new(TokenizerParts { tokens, merges, specials, pattern, whole_pieces: true, unknown: None })
    }

    /// Appends the ids of `bytes`, where the text of every special token becomes that token; the longest wins where
    /// several begin at one place. For trusted text only: a user's text could forge a turn.
    pub fn encode_with_special(&self, bytes: &[u8], out: &mut Vec<u32>) {
        let (mut start, mut at) = (0, 0);
        while at < bytes.len() {
            match self.special_at(&bytes[at..]) {
                Some(id) => {
                    self.encoder.encode_into(&bytes[start..at], out);
                    out.push(id);
                    at += self.token(id).len();
                    start = at;
                }
                None => at += 1,
            }
        }
        self.encoder.encode_into(&bytes[start..], out);
    }

    /// The longest special token whose text `bytes` begin with.
    fn special_at(&self, bytes: &[u8]) -> Option<u32> {
        let candidates = &self.specials_by_byte[*bytes.first()? as usize];
        candidates.iter().copied().find(|&id| bytes.starts_with(self.token(id)))
    }

    /// Blake3, in hexadecimal, of the canonical content: tokens by id, merges, special tokens and pattern. Tells
    /// whether a tokenizer is the one a checkpoint was trained with.
    pub fn digest(&self) -> String {
        let unknown = self.unknown.map(u32::to_le_bytes);
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(b"nanochat-gpu tokenizer 1");
        field(self.pattern.regex().as_bytes());
        for id in 0..self.vocab_size() as u32 {
            field(self.token(id));
        }
        let merges: Vec<u8> =
            self.merges.iter().flat_map(|m| [m.left, m.right, m.result]).flat_map(u32::to_le_bytes).collect();
        field(&merges);
        for (text, id) in &self.specials {
            field(text.as_bytes());
            field(&id.to_le_bytes());
        }
        if let Some(unknown) = unknown {
            field(&unknown);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Merges in the order of their rank.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// Special tokens, text and id, in the order of their ids.
    pub fn specials(&self) -> &[(String, u32)] {
        &self.specials
    }

    /// The split pattern.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Whether a whole piece that is a token becomes it whatever the merges: see [`TokenizerParts::whole_pieces`].
    pub fn whole_pieces(&self) -> bool {
        self.whole_pieces
    }

    /// The token of bytes that are no token, where there are such bytes.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// Ordinary tokens, bytes and id, in the order of their ids.
    pub fn ordinary_tokens(&self) -> impl Iterator<Item = (&[u8], u32)> {
        let mut specials = self.specials.iter().map(|(_, id)| *id).peekable();
        (0..self.vocab_size() as u32)
            .filter(move |id| specials.next_if_eq(id).is_none())
            .map(|id| (self.token(id), id))
            .filter(|(token, _)| !token.is_empty())
    }

    /// The bytes of a token; empty where there is none with this id below `vocab_size`.
    fn token(&self, id: u32) -> &[u8] {
        &self.bytes[self.starts[id as usize]..self.starts[id as usize + 1]]
    }
}

impl Codec for Tokenizer {
    fn encode_into(&self, bytes: &[u8], out: &mut Vec<u32>) {
        self.encoder.encode_into(bytes, out);
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        ((id as usize) < self.vocab_size()).then(|| self.token(id)).filter(|token| !token.is_empty())
    }

    fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    fn special(&self, name: &str) -> Option<u32> {
        self.special_ids.get(name).copied()
    }

    fn is_special(&self, id: u32) -> bool {
        self.specials.binary_search_by_key(&id, |(_, id)| *id).is_ok()
    }
}

/// Lays the bytes of all tokens out by id; refuses empty tokens and repeated or excessive ids.
fn token_table(
    tokens: &[(Vec<u8>, u32)],
    specials: &[(String, u32)],
) -> Result<(Vec<u8>, Vec<usize>), VocabularyError> {
    let ordinary = tokens.iter().map(|(bytes, id)| (bytes.as_slice(), *id));
    let mut all: Vec<(&[u8], u32)> = ordinary.chain(specials.iter().map(|(text, id)| (text.as_bytes(), *id))).collect();
    all.sort_unstable_by_key(|(_, id)| *id);
    let count = all.len();
    let (mut bytes, mut starts) = (Vec::new(), vec![0]);
    for (token, id) in all {
        if token.is_empty() {
            return Err(VocabularyError::EmptyToken(id));
        }
        if id > ID_MAX || id as usize > count + HOLES_MAX {
            return Err(VocabularyError::IdTooLarge(id));
        }
        if starts.len() > id as usize + 1 {
            return Err(VocabularyError::DuplicateId(id));
        }
        starts.resize(id as usize + 1, bytes.len());
        bytes.extend_from_slice(token);
        starts.push(bytes.len());
    }
    Ok((bytes, starts))
}

/// The id of each single byte, `unknown` for bytes that are no token.
fn byte_ids(tokens: &[(Vec<u8>, u32)], unknown: Option<u32>) -> Result<[u32; 256], VocabularyError> {
    let mut ids = [None; 256];
    for (token, id) in tokens {
        if let [byte] = token[..] {
            ids[byte as usize] = Some(*id);
        }
    }
    let mut found = [0; 256];
    for byte in 0..=255u8 {
        found[byte as usize] = ids[byte as usize].or(unknown).ok_or(VocabularyError::MissingByte(byte))?;
    }
    Ok(found)
}
