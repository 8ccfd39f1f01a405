//! What a checkpoint says of texts: the token before them, the tokens that end them, and the template of its chats.

use crate::tokenizer::{Codec, Tokenizer, end_ids};
use crate::{user_bail, user_error};
use serde_json::Value;
use std::path::Path;

/// How texts are put to a model, and when it has finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextRules {
    /// The token that begins a text, as chat templates name it.
    pub bos: Option<u32>,
    /// Whether it is put before a prompt; not every model that has one wants it (SmolLM2).
    pub add_bos: bool,
    /// The tokens at which generation ends, the one the checkpoint names first.
    pub eos: Vec<u32>,
    /// The template of its chats, in Jinja.
    pub template: Option<String>,
}

impl TextRules {
    /// What is put before a prompt.
    pub fn prefix(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The rules that common names of special tokens suggest.
    pub fn guessed(tokenizer: &Tokenizer) -> TextRules {
        let bos = tokenizer.bos();
        TextRules { bos, add_bos: bos.is_some(), eos: end_ids(tokenizer), template: None }
    }

    /// Puts the ids that a checkpoint names before those that names suggest.
    pub fn end_with(&mut self, named: impl IntoIterator<Item = u32>, tokenizer: &Tokenizer) {
        let mut seen = Vec::new();
        for id in named.into_iter().chain(end_ids(tokenizer)) {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        self.eos = seen;
    }

    /// The rules in a Hugging Face folder: `tokenizer_config.json`, `chat_template.jinja`, the ids in `config` and in
    /// `generation_config.json`, and the post-processor of `tokenizer.json`. A folder without `tokenizer_config.json` is one
    /// that training made: names suggest the rules.
    ///
    /// # Errors
    /// Files that are there and cannot be read.
    pub fn of_folder(dir: &Path, config: &Value, tokenizer: &Tokenizer) -> anyhow::Result<TextRules> {
        let mut rules = TextRules::guessed(tokenizer);
        let settings = read_json(&dir.join("tokenizer_config.json"))?;
        if let Some(settings) = &settings {
            let named = token_text(&settings["bos_token"]);
            rules.bos =
                named.and_then(|text| tokenizer.special(text)).or(ids(&config["bos_token_id"]).first().copied());
            rules.add_bos = match settings["add_bos_token"].as_bool() {
                Some(wanted) => wanted,
                None => Tokenizer::prefix_in(dir)?.is_some_and(|text| tokenizer.special(&text) == rules.bos),
            } && rules.bos.is_some();
            rules.template = template_in(&settings["chat_template"]);
        }
        match std::fs::read_to_string(dir.join("chat_template.jinja")) {
            Ok(template) => rules.template = Some(template),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => user_bail!("cannot read {}: {e}", dir.join("chat_template.jinja").display()),
        }
        let generation = read_json(&dir.join("generation_config.json"))?.unwrap_or_default();
        let mut named = ids(&config["eos_token_id"]);
        named.extend(ids(&generation["eos_token_id"]));
        let eos = settings.as_ref().and_then(|settings| tokenizer.special(token_text(&settings["eos_token"])?));
        named.extend(eos);
        named.retain(|id| tokenizer.token_bytes(*id).is_some());
        rules.end_with(named, tokenizer);
        Ok(rules)
    }

    /// `tokenizer_config.json`, from which `transformers` and [`of_folder`](TextRules::of_folder) take these rules.
    pub fn to_json(&self, tokenizer: &Tokenizer, context: usize) -> Value {
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_bytes(id)).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos,
            "bos_token": text(self.bos),
            "eos_token": text(self.eos.first().copied()),
            "chat_template": self.template,
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
        })
    }
}

/// A JSON file, none where it is not there.
fn read_json(path: &Path) -> anyhow::Result<Option<Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => user_bail!("cannot read {}: {e}", path.display()),
    };
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|e| user_error!("{} is not valid JSON: {e}", path.display()))
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    }
}

/// A token as text, or as an object with its content.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or(value["content"].as_str())
}

/// One template, or the default one of several.
fn template_in(value: &Value) -> Option<String> {
    let named = |list: &Vec<Value>| {
        list.iter().find(|entry| entry["name"] == "default").map(|entry| &entry["template"]).cloned()
    };
    match value {
        Value::Array(list) => named(list)?.as_str().map(str::to_owned),
        other => other.as_str().map(str::to_owned),
    }
}
