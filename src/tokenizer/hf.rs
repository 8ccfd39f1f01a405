//! Reads and writes Hugging Face's `tokenizer.json`: a BPE model over the byte-level alphabet.
//!
//! Read: merges in both spellings, `added_tokens` (all become special tokens, wherever Hugging Face would find them in
//! text), and as splitter `ByteLevel` with its own expression, alone or behind single `Digits`, or one `Split` before `ByteLevel`. An NFC normaliser is
//! accepted and not applied, since decoding must give back the bytes that were encoded; text is nearly always in that
//! form already. A file that means anything else is refused with one line that says what.

use super::{Merge, Pattern, Tokenizer, TokenizerParts};
use crate::{user_bail, user_error};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The name of the file inside a tokenizer's or a checkpoint's folder.
const FILE_NAME: &str = "tokenizer.json";

/// The byte-level alphabet: printable characters of Latin-1 stand for themselves, the other bytes, in order, for
/// the characters from U+0100 on. So a token is a string without spaces or controls whatever its bytes are.
static ALPHABET: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(printable),
        _ => others.next().expect("68 characters"),
    })
});

static BYTE_OF: LazyLock<FxHashMap<char, u8>> =
    LazyLock::new(|| ALPHABET.iter().enumerate().map(|(byte, c)| (*c, byte as u8)).collect());

pub(crate) fn to_alphabet(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| ALPHABET[*byte as usize]).collect()
}

pub(crate) fn from_alphabet(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTE_OF.get(&c).copied()).collect()
}

impl Tokenizer {
    /// Reads `path`, or the `tokenizer.json` inside when `path` is a folder. What is wrong with the file is a
    /// [`UserError`](crate::error::UserError) of one line that names it.
    pub fn load(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let path = file_in(path.as_ref());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                user_bail!("{}: no tokenizer here; `tokenizer train` makes one, or give another folder", path.display())
            }
            Err(error) => user_bail!("{}: cannot be read: {error}", path.display()),
        };
        Self::from_json(&text).map_err(|error| user_error!("{}: {error}", path.display()))
    }

    /// The special token that the file's post-processor puts before every text, if any; `path` as in [`load`](Tokenizer::load).
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn prefix_in(path: impl AsRef<Path>) -> anyhow::Result<Option<String>> {
        #[derive(Deserialize)]
        struct Tail {
            #[serde(default)]
            post_processor: Value,
        }
        let path = file_in(path.as_ref());
        let text = fs::read(&path).map_err(|error| user_error!("{}: cannot be read: {error}", path.display()))?;
        let tail: Tail = serde_json::from_slice(&text)
            .map_err(|error| user_error!("{}: is not valid JSON: {error}", path.display()))?;
        let one = vec![tail.post_processor.clone()];
        let steps = tail.post_processor["processors"].as_array().unwrap_or(&one);
        let template = steps.iter().find(|step| step["type"] == "TemplateProcessing");
        Ok(template.and_then(|step| step["single"][0]["SpecialToken"]["id"].as_str()).map(str::to_owned))
    }

    /// Parses the content of a `tokenizer.json`; errors are users' errors that say what is wrong, without a file name.
    pub fn from_json(text: &[u8]) -> anyhow::Result<Self> {
        let file: Value = serde_json::from_slice(text).map_err(|error| user_error!("is not valid JSON: {error}"))?;
        Tokenizer::new(parts_of(file)?).map_err(|error| user_error!("{error}"))
    }

    /// Writes `tokenizer.json` into the folder `dir`, which is made if it is not there, or to the file `dir` when its
    /// name ends in `.json`. The file appears complete or not at all. Returns its path.
    pub fn save(&self, dir: impl AsRef<Path>) -> anyhow::Result<PathBuf> {
        self.save_with_prefix(dir, None)
    }

    /// As [`save`](Tokenizer::save); other programs that read the file put the special token `prefix` before every text.
    pub fn save_with_prefix(&self, dir: impl AsRef<Path>, prefix: Option<u32>) -> anyhow::Result<PathBuf> {
        let path = match dir.as_ref().extension() {
            Some(extension) if extension == "json" => dir.as_ref().to_owned(),
            _ => dir.as_ref().join(FILE_NAME),
        };
        write_whole(&path, self.to_json_with_prefix(prefix).as_bytes())
            .map_err(|error| user_error!("{}: cannot be written: {error}", path.display()))?;
        Ok(path)
    }

    /// The content of this tokenizer's `tokenizer.json`.
    pub fn to_json(&self) -> String {
        self.to_json_with_prefix(None)
    }

    fn to_json_with_prefix(&self, prefix: Option<u32>) -> String {
        let spelled = |id| to_alphabet(self.token(id));
        let mut vocab: Vec<(String, u32)> =
            self.ordinary_tokens().map(|(bytes, id)| (to_alphabet(bytes), id)).collect();
        // Hugging Face numbers added tokens on from the vocabulary's size; where ours do not follow without a hole, they
        // must stand in the vocabulary to keep their ids.
        let follow = vocab.len()..vocab.len() + self.specials.len();
        let in_sequence = vocab.iter().enumerate().all(|(i, (_, id))| i == *id as usize)
            && follow.zip(&self.specials).all(|(due, (_, id))| due == *id as usize);
        if !in_sequence {
            vocab.extend(self.specials.iter().cloned());
        }
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex,
            })
        };
        let pre_tokenizer = match &self.pattern {
            Pattern::Gpt2 => byte_level(true),
            Pattern::SmolLm => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                byte_level(true),
            ]}),
            other => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": other.regex()}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]}),
        };
        let added_tokens = self.specials.iter().map(|(text, id)| Added { id: *id, content: text.clone() }).collect();
        let file = FileOut {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens,
            normalizer: None,
            pre_tokenizer,
            post_processor: prefix.map(|id| self.prefix_template(id)),
            decoder: byte_level(true),
            model: ModelOut {
                kind: "BPE",
                dropout: None,
                unk_token: self.unknown().map(|id| String::from_utf8_lossy(self.token(id)).into_owned()),
                continuing_subword_prefix: None,
                end_of_word_suffix: None,
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: self.whole_pieces,
                vocab: Vocab(vocab),
                merges: self.merges.iter().map(|m| format!("{} {}", spelled(m.left), spelled(m.right))).collect(),
            },
        };
        serde_json::to_string_pretty(&file).expect("strings and numbers")
    }
}

impl Tokenizer {
    /// The post-processor that puts `id` before every text of a single one or a pair.
    fn prefix_template(&self, id: u32) -> Value {
        let text = String::from_utf8_lossy(self.token(id));
        let special = |text_number: u32| json!({"SpecialToken": {"id": text, "type_id": text_number}});
        let text_of = |name: &str, number: u32| json!({"Sequence": {"id": name, "type_id": number}});
        json!({
            "type": "TemplateProcessing",
            "single": [special(0), text_of("A", 0)],
            "pair": [special(0), text_of("A", 0), special(1), text_of("B", 1)],
            "special_tokens": {text.as_ref(): {"id": text, "ids": [id], "tokens": [text]}},
        })
    }
}

fn file_in(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() }
}

/// Writes a temporary file beside `path`, syncs it and renames it.
fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // best effort: the error that matters is the first one
        return written;
    }
    fs::File::open(folder)?.sync_all()
}

#[derive(Serialize)]
struct FileOut {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    #[serde(serialize_with = "added_tokens")]
    added_tokens: Vec<Added>,
    normalizer: Option<()>,
    pre_tokenizer: Value,
    post_processor: Option<Value>,
    decoder: Value,
    model: ModelOut,
}

#[derive(Serialize)]
struct ModelOut {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<()>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocab,
    merges: Vec<String>,
}

/// A JSON object in the order of the list.
struct Vocab(Vec<(String, u32)>);

impl Serialize for Vocab {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, id)| (text, id)))
    }
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

fn added_tokens<S: Serializer>(tokens: &[Added], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tokens.iter().map(|token| {
        json!({
            "id": token.id, "content": token.content, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        })
    }))
}

#[derive(Deserialize)]
struct ModelIn {
    vocab: FxHashMap<String, u32>,
    merges: Vec<MergeIn>,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// `"a b"`, or `["a", "b"]` in newer files.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeIn {
    Joined(String),
    Pair(String, String),
}

fn parts_of(mut file: Value) -> anyhow::Result<TokenizerParts> {
    match file["model"]["type"].as_str() {
        Some("BPE") => {}
        Some(other) => user_bail!("its model is {other}; only byte-level BPE is supported"),
        // Files from before the key was there have vocabulary and merges all the same.
        None if file["model"]["merges"].is_array() => {}
        None => user_bail!("it has no BPE model (`model.type`)"),
    }
    check_normalizer(&file["normalizer"])?;
    let pattern = pattern_of(&file["pre_tokenizer"])?;
    let added: Vec<Added> = match file["added_tokens"].take() {
        Value::Null => Vec::new(),
        tokens => serde_json::from_value(tokens).map_err(|error| user_error!("`added_tokens`: {error}"))?,
    };
    let model: ModelIn =
        serde_json::from_value(file["model"].take()).map_err(|error| user_error!("`model`: {error}"))?;
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if model.byte_fallback || affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
        user_bail!("its model marks words or falls back to bytes; only byte-level BPE is supported");
    }

    let added_texts: FxHashSet<&str> = added.iter().map(|token| token.content.as_str()).collect();
    let mut tokens = Vec::with_capacity(model.vocab.len());
    for (text, id) in model.vocab.iter().filter(|(text, _)| !added_texts.contains(text.as_str())) {
        let Some(bytes) = from_alphabet(text) else {
            user_bail!("token {id} ({text:?}) has characters outside the byte-level alphabet");
        };
        tokens.push((bytes, *id));
    }
    tokens.sort_unstable_by_key(|(_, id)| *id);
    let mut merges = Vec::with_capacity(model.merges.len());
    for (rank, merge) in model.merges.iter().enumerate() {
        let (left, right) = match merge {
            MergeIn::Pair(left, right) => (left.as_str(), right.as_str()),
            MergeIn::Joined(joined) => joined
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))
                .ok_or_else(|| user_error!("merge {rank} ({joined:?}) is not two tokens with a space between"))?,
        };
        let id = |text: &str| {
            let found = model.vocab.get(text).copied();
            found.ok_or_else(|| user_error!("merge {rank} names {text:?}, which is not in the vocabulary"))
        };
        merges.push(Merge { left: id(left)?, right: id(right)?, result: id(&format!("{left}{right}"))? });
    }
    let specials: Vec<(String, u32)> = added.into_iter().map(|token| (token.content, token.id)).collect();
    let unknown = match &model.unk_token {
        Some(text) => specials.iter().find(|(special, _)| special == text).map(|(_, id)| *id),
        None => TokenizerParts::usual_unknown(&specials),
    };
    Ok(TokenizerParts { tokens, merges, specials, pattern, whole_pieces: model.ignore_merges, unknown })
}

fn check_normalizer(normalizer: &Value) -> anyhow::Result<()> {
    match normalizer["type"].as_str() {
        _ if normalizer.is_null() => Ok(()),
        Some("NFC") => Ok(()),
        Some("Sequence") if normalizer["normalizers"].as_array().is_some_and(Vec::is_empty) => Ok(()),
        other => user_bail!("its normalizer ({}) is not supported", other.unwrap_or("unnamed")),
    }
}

fn pattern_of(pre_tokenizer: &Value) -> anyhow::Result<Pattern> {
    let one = [pre_tokenizer.clone()];
    let steps: &[Value] = match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().map_or(&[], Vec::as_slice),
        _ => &one,
    };
    let kinds: Vec<&str> = steps.iter().map(|step| step["type"].as_str().unwrap_or("none")).collect();
    let byte_level = steps.last().unwrap_or(&Value::Null);
    if byte_level["add_prefix_space"].as_bool() == Some(true) {
        user_bail!("its pre_tokenizer adds a space before the text (`add_prefix_space`), which is not supported");
    }
    let use_regex = byte_level["use_regex"].as_bool().unwrap_or(true);
    match (kinds.as_slice(), use_regex) {
        (["ByteLevel"], true) => Ok(Pattern::Gpt2),
        (["Digits", "ByteLevel"], true) if steps[0]["individual_digits"] == true => Ok(Pattern::SmolLm),
        (["Split", "ByteLevel"], false) => {
            let split = &steps[0];
            let Some(regex) = split["pattern"]["Regex"].as_str() else {
                user_bail!("its Split has no `pattern.Regex`");
            };
            let pattern = Pattern::from_regex(regex);
            let known = !matches!(pattern, Pattern::Custom(_));
            match (split["behavior"].as_str(), split["invert"].as_bool().unwrap_or(false)) {
                (Some("Isolated"), _) => Ok(pattern),
                // Keeps the matches and drops what is between them: nothing, for the known patterns.
                (Some("Removed"), true) if known => Ok(pattern),
                (behavior, _) => {
                    user_bail!("its Split has the behavior {}, which is not supported", behavior.unwrap_or("none"))
                }
            }
        }
        _ => user_bail!(
            "its pre_tokenizer ({}) is not supported: ByteLevel with use_regex, behind single Digits or not, or a Split and ByteLevel without, is",
            kinds.join(", ")
        ),
    }
}
