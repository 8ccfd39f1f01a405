//! How conversations become prompts: by a model's own template, or by the special tokens of tokenizers trained here.

use crate::tokenizer::{ChatTemplate, Codec, Message, TemplateTokens, Tokenizer, render_prompt};
use crate::user_bail;

/// How a model was taught to converse.
pub enum ChatFormat {
    /// By a template.
    Template(Box<ChatTemplate>, TemplateTokens),
    /// By the special tokens of tokenizers trained here.
    Specials,
}

impl ChatFormat {
    /// The format of a model with this template, where it has one.
    ///
    /// # Errors
    /// A user's error for a template that does not parse, or a model that has neither a template nor the tokens.
    pub fn new(
        tokenizer: &Tokenizer,
        template: Option<&str>,
        [bos, eos]: [Option<u32>; 2],
    ) -> anyhow::Result<ChatFormat> {
        if let Some(template) = template {
            let text = |id: Option<u32>| {
                let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
                String::from_utf8_lossy(bytes).into_owned()
            };
            let tokens = TemplateTokens { bos: text(bos), eos: text(eos) };
            return Ok(ChatFormat::Template(Box::new(ChatTemplate::new(template)?), tokens));
        }
        if ["<|bos|>", "<|user_start|>", "<|assistant_start|>"].iter().any(|name| tokenizer.special(name).is_none()) {
            user_bail!(
                "the model has no chat template and no special tokens for turns; `sample` continues a text with it"
            );
        }
        Ok(ChatFormat::Specials)
    }

    /// The ids of a conversation that ends with the user, up to where the assistant begins.
    ///
    /// # Errors
    /// Roles that the format does not know, or in another order than it wants.
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        match self {
            ChatFormat::Template(template, tokens) => template.encode(tokenizer, tokens, messages, true),
            ChatFormat::Specials => render_prompt(tokenizer, messages),
        }
    }

    /// As [`prompt`](ChatFormat::prompt), of at most `room` tokens: the oldest messages are left out for it, down to the last one and the system's.
    /// Also how many were.
    ///
    /// # Errors
    /// As there; a last message that is too long by itself.
    pub fn prompt_within(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        room: usize,
    ) -> anyhow::Result<(Vec<u32>, usize)> {
        let fixed = usize::from(messages.first().is_some_and(|first| first.role == "system"));
        let mut left_out = 0;
        loop {
            let kept: Vec<Message> = messages[..fixed].iter().chain(&messages[fixed + left_out..]).cloned().collect();
            let prompt = self.prompt(tokenizer, &kept)?;
            if prompt.len() <= room {
                return Ok((prompt, left_out));
            }
            // A question and its answer go together.
            if left_out + 2 >= messages.len() - fixed {
                let tokens = prompt.len();
                user_bail!("the message takes {tokens} tokens, of which the context has {room} left; shorten it");
            }
            left_out += 2;
        }
    }
}
