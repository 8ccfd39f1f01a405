//! The special tokens of our own tokenizers, and chats written with them: which ids a conversation becomes, and which
//! of these a model is trained to produce.

use super::Codec;
use crate::{user_bail, user_error};

/// The special tokens of a tokenizer we train, in the order of their ids, which are the last ones of the vocabulary.
pub const SPECIALS: [&str; 9] = [
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
];

/// Special tokens after which a text is over, by the names that common tokenizers have for them.
const END_NAMES: [&str; 6] =
    ["<|assistant_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>"];

/// The ids at which generation ends: BOS, which begins another document, and end tokens.
pub fn end_ids(codec: &dyn Codec) -> Vec<u32> {
    codec.bos().into_iter().chain(END_NAMES.iter().filter_map(|name| codec.special(name))).collect()
}

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system` (first only), `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: Content,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, text: &str) -> Self {
        Message { role: role.to_owned(), content: Content::Text(text.to_owned()) }
    }
}

/// The content of a message: plain text, or, from the assistant, text and tool calls in turn.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts of different kinds, in order.
    Parts(Vec<Part>),
}

impl std::fmt::Display for Content {
    /// The text, all parts in a row.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Text(text) => f.write_str(text),
            Content::Parts(parts) => parts.iter().try_for_each(|part| f.write_str(&part.text)),
        }
    }
}

/// One part of an assistant's message.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// What the text is.
    #[serde(rename = "type")]
    pub kind: PartKind,
    /// The text.
    pub text: String,
}

/// What a part of an assistant's message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Ordinary text.
    Text,
    /// An expression given to the tool.
    Python,
    /// What the tool answered: the model reads it and is not trained to write it.
    PythonOutput,
}

/// A chat as ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// The ids.
    pub ids: Vec<u32>,
    /// For each id, whether the assistant says it, so that a model is trained to produce it.
    pub mask: Vec<bool>,
}

impl RenderedChat {
    fn push(&mut self, id: u32, trained: bool) {
        self.ids.push(id);
        self.mask.push(trained);
    }

    fn text(&mut self, codec: &dyn Codec, text: &str, trained: bool) {
        codec.encode_into(text.as_bytes(), &mut self.ids);
        self.mask.resize(self.ids.len(), trained);
    }
}

/// Renders a whole chat: `<|bos|>`, then every message between its start and end tokens. The mask marks what the
/// assistant says and the `<|assistant_end|>` after it. A leading system message becomes the beginning of the first user
/// message, with an empty line between. User and assistant take turns, the user first; anything else is a user error.
/// Texts are encoded as ordinary text, so a message cannot forge a special token.
pub fn render_chat(codec: &dyn Codec, messages: &[Message]) -> anyhow::Result<RenderedChat> {
    let id = |name: &str| {
        codec.special(name).ok_or_else(|| {
            user_error!(
                "the tokenizer has no special token {name}, which chats need; use one made by `tokenizer train`"
            )
        })
    };
    let (system, turns) = match messages {
        [] => user_bail!("a chat needs at least one message"),
        [first, rest @ ..] if first.role == "system" => (Some(plain_text(first, 0)?), rest),
        all => (None, all),
    };
    if turns.is_empty() {
        user_bail!("a chat needs a user message after the system message");
    }
    let mut chat = RenderedChat::default();
    chat.push(id("<|bos|>")?, false);
    for (turn, message) in turns.iter().enumerate() {
        let number = turn + messages.len() - turns.len();
        let expected = if turn % 2 == 0 { "user" } else { "assistant" };
        if message.role != expected {
            user_bail!("message {number} of the chat has the role {:?} where {expected:?} is due", message.role);
        }
        if expected == "user" {
            chat.push(id("<|user_start|>")?, false);
            let text = plain_text(message, number)?;
            match system.filter(|_| turn == 0) {
                Some(system) => chat.text(codec, &format!("{system}\n\n{text}"), false),
                None => chat.text(codec, text, false),
            }
            chat.push(id("<|user_end|>")?, false);
            continue;
        }
        chat.push(id("<|assistant_start|>")?, false);
        match &message.content {
            Content::Text(text) => chat.text(codec, text, true),
            Content::Parts(parts) => {
                for part in parts {
                    let (around, trained) = match part.kind {
                        PartKind::Text => (None, true),
                        PartKind::Python => (Some(("<|python_start|>", "<|python_end|>")), true),
                        PartKind::PythonOutput => (Some(("<|output_start|>", "<|output_end|>")), false),
                    };
                    if let Some((start, _)) = around {
                        chat.push(id(start)?, trained);
                    }
                    chat.text(codec, &part.text, trained);
                    if let Some((_, end)) = around {
                        chat.push(id(end)?, trained);
                    }
                }
            }
        }
        chat.push(id("<|assistant_end|>")?, true);
    }
    Ok(chat)
}

/// Renders a chat that ends with the user, up to and including the `<|assistant_start|>` after which a model answers.
pub fn render_prompt(codec: &dyn Codec, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
    if messages.last().is_none_or(|last| last.role != "user") {
        user_bail!("the last message must be the user's for the assistant to answer it");
    }
    let mut ids = render_chat(codec, messages)?.ids;
    ids.extend(codec.special("<|assistant_start|>"));
    if codec.special("<|assistant_start|>").is_none() {
        user_bail!("the tokenizer has no special token <|assistant_start|>; use one made by `tokenizer train`");
    }
    Ok(ids)
}

/// The text of a message that may not have parts.
fn plain_text(message: &Message, number: usize) -> anyhow::Result<&str> {
    match &message.content {
        Content::Text(text) => Ok(text),
        Content::Parts(_) => {
            user_bail!("message {number} of the chat has parts; only the assistant's may, a {}'s is text", message.role)
        }
    }
}
