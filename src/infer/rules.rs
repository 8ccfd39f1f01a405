//! Rules of what may be drawn (the Superego's): grammars and banned strings. They act on logits before a token is drawn, never on training.

use crate::tokenizer::Codec;
use crate::{user_bail, user_error};
use anyhow::bail;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::sync::Arc;

/// Rules of one sequence.
pub trait Rules: Send {
    /// Makes the logits `[V]` of tokens that may not come next minus infinity.
    ///
    /// # Errors
    /// No token may come next.
    fn mask(&mut self, logits: &mut [f32]) -> anyhow::Result<()>;

    /// Says that `token` was drawn; whether the sequence is over with it.
    ///
    /// # Errors
    /// It was not allowed.
    fn accept(&mut self, token: u32) -> anyhow::Result<bool>;
}

/// Several rules, all of which hold.
pub struct All(pub Vec<Box<dyn Rules>>);

impl Rules for All {
    fn mask(&mut self, logits: &mut [f32]) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(|rules| rules.mask(logits))
    }

    fn accept(&mut self, token: u32) -> anyhow::Result<bool> {
        let mut is_over = false;
        for rules in &mut self.0 {
            is_over |= rules.accept(token)?;
        }
        Ok(is_over)
    }
}

/// What a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// JSON that a schema accepts; the schema as JSON.
    JsonSchema(String),
    /// What a regular expression matches whole.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
}

/// Grammars over the tokens of a tokenizer.
pub struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// Over the tokens of `codec`; `end` is the token that ends a text, and is allowed where a text may end.
    ///
    /// # Errors
    /// What the library for grammars refuses.
    pub fn new(codec: &dyn Codec, end: u32) -> anyhow::Result<Grammars> {
        let n = codec.vocab_size() as u32;
        let word = |id: u32| match codec.is_special(id) {
            // Marked: a grammar of characters never takes it for its text.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], codec.token_bytes(id).unwrap_or_default()].concat(),
            false => codec.token_bytes(id).unwrap_or_default().to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..n).map(word).collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&TokRxInfo::new(n, end), &words)));
        let mut factory = ParserFactory::new_simple(&env)?;
        factory.quiet();
        Ok(Grammars { factory })
    }

    /// The rules of one sequence.
    ///
    /// # Errors
    /// A user's error: a grammar that is none, or that no text meets.
    pub fn rules(&self, spec: &GrammarSpec) -> anyhow::Result<Grammar> {
        let (what, grammar) = match spec {
            GrammarSpec::JsonSchema(schema) => {
                let schema = serde_json::from_str(schema)
                    .map_err(|error| user_error!("the JSON schema is not valid JSON ({error}); give a schema"))?;
                ("JSON schema", TopLevelGrammar::from_json_schema(schema))
            }
            GrammarSpec::Regex(regex) => ("regular expression", TopLevelGrammar::from_regex(regex)),
            GrammarSpec::Choice(strings) if strings.is_empty() || strings.iter().any(String::is_empty) => {
                user_bail!("a choice needs strings that are not empty")
            }
            GrammarSpec::Choice(strings) => {
                let any = strings.iter().map(|string| regex_syntax::escape(string)).collect::<Vec<_>>().join("|");
                ("choice", TopLevelGrammar::from_regex(&any))
            }
        };
        let refuse = |error: anyhow::Error| {
            let why = error.to_string();
            let why = why.lines().next().unwrap_or_default().to_owned();
            user_error!("the {what} cannot be met by any text: {why}")
        };
        let parser = self.factory.create_parser(grammar).map_err(refuse)?;
        let mut matcher = Matcher::new(Ok(parser));
        let first = matcher.compute_mask().map_err(refuse)?;
        if first.is_zero() {
            user_bail!("the {what} cannot be met by any text; change it");
        }
        Ok(Grammar { matcher })
    }
}

/// A grammar and how far a sequence is in it.
pub struct Grammar {
    matcher: Matcher,
}

impl Rules for Grammar {
    fn mask(&mut self, logits: &mut [f32]) -> anyhow::Result<()> {
        let mask = self.matcher.compute_mask_or_eos()?;
        let mut any = false;
        for (id, logit) in logits.iter_mut().enumerate() {
            match id < mask.len() && mask.get(id) {
                true => any = true,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        if !any {
            bail!("the grammar allows no token any more");
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> anyhow::Result<bool> {
        self.matcher.consume_token(token)?;
        Ok(self.matcher.is_stopped())
    }
}

/// Strings that a text must not contain.
pub struct Banned {
    strings: Vec<BannedString>,
    /// The last bytes of the text so far: one fewer than the longest string has.
    tail: Vec<u8>,
    tail_max: usize,
    /// The bytes of all tokens.
    words: Arc<Vec<Vec<u8>>>,
}

struct BannedString {
    bytes: Vec<u8>,
    /// Tokens that contain it.
    within: Vec<u32>,
    /// By how many of its bytes the text ends with: tokens that complete it.
    completions: Vec<Vec<u32>>,
}

impl Banned {
    /// Rules over the tokens of `codec`, special tokens aside: a text that ends with a part of a string may go on in another way.
    ///
    /// # Errors
    /// A user's error for an empty string.
    pub fn new(codec: &dyn Codec, strings: &[String]) -> anyhow::Result<Banned> {
        if strings.iter().any(String::is_empty) {
            user_bail!("a banned string is empty; it would ban every text");
        }
        let word = |id: u32| match codec.is_special(id) {
            true => Vec::new(),
            false => codec.token_bytes(id).unwrap_or_default().to_vec(),
        };
        let words: Arc<Vec<Vec<u8>>> = Arc::new((0..codec.vocab_size() as u32).map(word).collect());
        let of = |string: &String| {
            let bytes = string.as_bytes();
            let tokens = |test: &dyn Fn(&[u8]) -> bool| {
                (0..words.len() as u32).filter(|&id| test(&words[id as usize])).collect::<Vec<u32>>()
            };
            let within = tokens(&|word| word.windows(bytes.len()).any(|part| part == bytes));
            let completions = (1..bytes.len()).map(|done| tokens(&|word| word.starts_with(&bytes[done..]))).collect();
            BannedString { bytes: bytes.to_vec(), within, completions }
        };
        let tail_max = strings.iter().map(String::len).max().unwrap_or(1) - 1;
        Ok(Banned { strings: strings.iter().map(of).collect(), tail: Vec::new(), tail_max, words })
    }
}

impl Rules for Banned {
    fn mask(&mut self, logits: &mut [f32]) -> anyhow::Result<()> {
        for BannedString { bytes, within, completions } in &self.strings {
            let completing = (1..bytes.len()).filter(|&done| self.tail.ends_with(&bytes[..done]));
            let completing = completing.flat_map(|done| &completions[done - 1]);
            within.iter().chain(completing).for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> anyhow::Result<bool> {
        let words = self.words.clone();
        self.tail.extend(words.get(token as usize).into_iter().flatten());
        self.tail.drain(..self.tail.len().saturating_sub(self.tail_max));
        Ok(false)
    }
}
