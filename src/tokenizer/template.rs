//! Chat templates of other people's models (Jinja): from messages to ids, without a message that could forge a turn.
//!
//! A template is rendered as text, which is then encoded with the special tokens it names. In what people wrote those names are broken by a
//! mark before and mended after, so that they come out as ordinary text. The dialect is that of Hugging Face: blocks are trimmed,
//! `raise_exception` refuses, `strftime_now` tells a date, methods are those of Python's strings and lists.

use super::{Codec, Message, Tokenizer};
use crate::{user_bail, user_error};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Steps of a template: hundreds of times what a long conversation takes, so that one that loops ends.
const FUEL: u64 = 50_000_000;
/// Longest template, in bytes.
const BYTES_MAX: usize = 1 << 20;

/// A parsed template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// What a template may ask for beside the messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    pub bos: String,
    pub eos: String,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// A user's error that says where it is wrong.
    pub fn new(source: &str) -> anyhow::Result<ChatTemplate> {
        if source.len() > BYTES_MAX {
            user_bail!("the chat template has {} bytes, at most {BYTES_MAX} are read; use another", source.len());
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |_: Rest<Value>, _: Kwargs| DATE);
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|error| user_error!("the chat template does not parse: {}", first_line(&error)))?;
        Ok(ChatTemplate { environment })
    }

    /// The ids of a conversation; with `ask`, up to where the assistant begins to answer.
    ///
    /// # Errors
    /// A user's error where the template refuses the messages.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        tokens: &TemplateTokens,
        messages: &[Message],
        ask: bool,
    ) -> anyhow::Result<Vec<u32>> {
        let texts: Vec<String> = messages.iter().map(|message| message.content.to_string()).collect();
        let mark = unused_mark(texts.iter().map(String::as_str))?;
        let specials: Vec<&str> = tokenizer.specials().iter().map(|(text, _)| text.as_str()).collect();
        let message = |(message, text): (&Message, &String)| {
            context! { role => message.role.clone(), content => marked(text, &specials, mark) }
        };
        let messages: Vec<Value> = messages.iter().zip(&texts).map(message).collect();
        let TemplateTokens { bos, eos } = tokens;
        let template = self.environment.get_template("chat").expect("added when made");
        let text = template
            .render(context! { messages, add_generation_prompt => ask, bos_token => bos, eos_token => eos })
            .map_err(|error| {
                user_error!("the model's chat template refuses the conversation: {}", first_line(&error))
            })?;
        let mut ids = Vec::new();
        tokenizer.encode_marked(&text, mark, &mut ids);
        Ok(ids)
    }
}

/// The day that templates are told where they ask: one and the same, so that a prompt is.
const DATE: &str = "26 Jul 2024";

fn first_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// A character of the private use area that no text has.
fn unused_mark<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> anyhow::Result<char> {
    let is_free = |mark: &char| !texts.clone().any(|text| text.contains(*mark));
    match ('\u{e000}'..='\u{f8ff}').rev().find(is_free) {
        Some(mark) => Ok(mark),
        None => user_bail!("the messages use every private character there is; leave one out"),
    }
}

/// `text` with a mark after the first character of each special token in it.
fn marked(text: &str, specials: &[&str], mark: char) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        out.push(c);
        if specials.iter().any(|special| text[at..].starts_with(special)) {
            out.push(mark);
        }
    }
    out
}

impl Tokenizer {
    /// Appends the ids of text in which the names of special tokens are special, but where `mark` breaks them; marks are left out.
    fn encode_marked(&self, text: &str, mark: char, out: &mut Vec<u32>) {
        let mut ordinary = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match self.special_at(rest.as_bytes()) {
                Some(id) => {
                    self.encode_into(ordinary.as_bytes(), out);
                    ordinary.clear();
                    out.push(id);
                    rest = &rest[self.token(id).len()..];
                }
                None => {
                    if c != mark {
                        ordinary.push(c);
                    }
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        self.encode_into(ordinary.as_bytes(), out);
    }
}
