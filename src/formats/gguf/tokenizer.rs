//! The tokenizer inside a GGUF file: byte-level BPE as a list of tokens with types, merges, and the name of a split pattern.

use super::Gguf;
use crate::formats::text_rules::TextRules;
use crate::tokenizer::{Codec, Merge, Pattern, Tokenizer, TokenizerParts, from_alphabet};
use crate::{user_bail, user_error};
use rustc_hash::FxHashMap;

/// Split patterns and the names that llama.cpp has for them; the first name of a pattern is the one written.
const PATTERNS: [(&str, Pattern); 10] = [
    ("gpt-2", Pattern::Gpt2),
    ("phi-2", Pattern::Gpt2),
    ("smollm", Pattern::SmolLm),
    ("starcoder", Pattern::SmolLm),
    ("refact", Pattern::SmolLm),
    ("command-r", Pattern::SmolLm),
    ("llama-bpe", Pattern::Llama3),
    ("llama3", Pattern::Llama3),
    ("llama-v3", Pattern::Llama3),
    ("qwen2", Pattern::Qwen2),
];
/// Where files of ours say the whole expression, since llama.cpp knows patterns by name only.
pub const PATTERN_KEY: &str = "nanochat.tokenizer.pattern";

/// Where files of ours say whether whole pieces are taken as they are, since llama.cpp knows it by the pattern.
pub const WHOLE_PIECES_KEY: &str = "nanochat.tokenizer.whole_pieces";

/// What a token is, by its number in the file.
pub mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

/// The name that llama.cpp splits by as `pattern` does, or nearly: and then what differs. None where it has no such name.
pub fn pattern_name(pattern: &Pattern) -> Option<(&'static str, Option<&'static str>)> {
    let near = "white space with line ends at the very end of a text";
    match pattern {
        Pattern::Gpt4 => Some(("llama-bpe", Some(near))),
        Pattern::Gpt4SingleDigit => Some(("qwen2", Some(near))),
        other => PATTERNS.iter().find(|(_, known)| known == other).map(|(name, _)| (*name, None)),
    }
}

/// The tokenizer of a file, if it has one, and what the file says of texts.
///
/// # Errors
/// A tokenizer of another kind, a damaged one, or ids beyond it.
pub fn read(gguf: &Gguf) -> anyhow::Result<(Option<Tokenizer>, TextRules)> {
    let template = gguf.text("tokenizer.chat_template")?.map(str::to_owned);
    let file = gguf.file();
    match gguf.text("tokenizer.ggml.model")? {
        None | Some("none" | "no_vocab") => return Ok((None, TextRules { template, ..TextRules::default() })),
        Some("gpt2") => {}
        Some(other) => {
            user_bail!("{file}: its tokenizer is of the kind {other:?}; only byte-level BPE (gpt2) is supported")
        }
    }
    if gguf.flag("tokenizer.ggml.add_space_prefix")? == Some(true) {
        user_bail!("{file}: its tokenizer adds a space before the text (add_space_prefix), which is not supported");
    }
    let pattern = pattern(gguf)?;
    let parts = parts(gguf, pattern.clone()).map_err(|problem| user_error!("{file}: its tokenizer: {problem}"))?;
    let tokenizer = Tokenizer::new(parts).map_err(|e| user_error!("{file}: its tokenizer: {e}"))?;
    let id = |name: &str| -> anyhow::Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = gguf.count(&key)? else { return Ok(None) };
        match u32::try_from(id).ok().filter(|id| tokenizer.token_bytes(*id).is_some()) {
            Some(id) => Ok(Some(id)),
            None => user_bail!("{file}: {key} is {id}, and there is no such token; the file is damaged"),
        }
    };
    let bos = id("bos")?;
    // What llama.cpp does where a file does not say.
    let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(pattern == Pattern::Llama3);
    let mut rules = TextRules { bos, add_bos: add_bos && bos.is_some(), eos: Vec::new(), template };
    rules.end_with([id("eos")?, id("eot")?, id("eom")?].into_iter().flatten(), &tokenizer);
    Ok((Some(tokenizer), rules))
}

fn pattern(gguf: &Gguf) -> anyhow::Result<Pattern> {
    if let Some(regex) = gguf.text(PATTERN_KEY)? {
        return Ok(Pattern::from_regex(regex));
    }
    let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    match PATTERNS.iter().find(|(known, _)| *known == name) {
        Some((_, pattern)) => Ok(pattern.clone()),
        None => user_bail!(
            "{}: its tokenizer splits text by the pattern {name:?} (tokenizer.ggml.pre), which is not known; gpt-2, smollm, llama-bpe and qwen2 are",
            gguf.file()
        ),
    }
}

/// Tokens, merges and special tokens; errors say what is wrong with them.
fn parts(gguf: &Gguf, pattern: Pattern) -> anyhow::Result<TokenizerParts> {
    let missing = |key: &str| user_error!("{key} is missing");
    let texts = gguf.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let types = gguf.integers("tokenizer.ggml.token_type")?;
    if let Some(types) = types.as_ref().filter(|types| types.len() != texts.len()) {
        user_bail!("it has {} tokens and {} types of tokens", texts.len(), types.len());
    }
    let (mut tokens, mut specials, mut ids) = (Vec::new(), Vec::new(), FxHashMap::default());
    for (id, text) in texts.iter().enumerate() {
        match types.as_ref().map_or(token_type::NORMAL, |types| types[id]) {
            token_type::UNUSED => {}
            token_type::CONTROL | token_type::USER_DEFINED | token_type::UNKNOWN => {
                specials.push(((*text).to_owned(), id as u32));
            }
            token_type::NORMAL => {
                let Some(bytes) = from_alphabet(text) else {
                    user_bail!("token {id} ({text:?}) has characters outside the byte-level alphabet");
                };
                tokens.push((bytes, id as u32));
                ids.insert(*text, id as u32);
            }
            other => user_bail!("token {id} ({text:?}) has type {other}, which byte-level BPE has not"),
        }
    }
    let joined = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("tokenizer.ggml.merges"))?;
    let mut merges = Vec::with_capacity(joined.len());
    let mut both = String::new();
    for (rank, merge) in joined.iter().enumerate() {
        let Some((left, right)) = merge.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            user_bail!("merge {rank} ({merge:?}) is not two tokens with a space between");
        };
        both.clear();
        both.extend([left, right]);
        let id = |text: &str| {
            let found = ids.get(text).copied();
            found.ok_or_else(|| user_error!("merge {rank} names {text:?}, which is not in the vocabulary"))
        };
        merges.push(Merge { left: id(left)?, right: id(right)?, result: id(&both)? });
    }
    let unknown = match gguf.count("tokenizer.ggml.unknown_token_id")? {
        Some(id) => u32::try_from(id).ok(),
        None => TokenizerParts::usual_unknown(&specials),
    };
    // llama.cpp, and the files of Llama 3 that it reads, take a whole piece that is a token as it is.
    let whole_pieces = gguf.flag(WHOLE_PIECES_KEY)?.unwrap_or(pattern == Pattern::Llama3);
    Ok(TokenizerParts { tokens, merges, specials, pattern, whole_pieces, unknown })
}
