//! An answer as it comes: ids become text, strings end it, and what the model asks the calculator is answered.

use super::calculator;
use super::text::{StopStream, Utf8Stream};
use crate::tokenizer::{Codec, Content, Part, PartKind};

/// The ids around what a model asks the calculator, and around what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tool {
    python: [u32; 2],
    output: [u32; 2],
}

impl Tool {
    fn of(codec: &dyn Codec) -> Option<Tool> {
        let pair = |name: &str| {
            let id = |end: &str| codec.special(&format!("<|{name}_{end}|>"));
            Some([id("start")?, id("end")?])
        };
        Some(Tool { python: pair("python")?, output: pair("output")? })
    }
}

/// What a token brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Text that is certain.
    pub text: String,
    /// An expression and its value.
    pub calculated: Option<[String; 2]>,
    /// Tokens that come next, undrawn.
    pub forced: Vec<u32>,
    /// A stop string came: nothing more is wanted.
    pub is_over: bool,
}

/// An answer under way.
pub struct Answer {
    utf8: Utf8Stream,
    stops: StopStream,
    tool: Option<Tool>,
    /// What is being asked.
    asked: Option<Vec<u8>>,
    parts: Vec<Part>,
    tokens: usize,
}

impl Answer {
    /// An empty one, of a model with the tokens of `codec`, that ends before the first of `stops`.
    pub fn new(codec: &dyn Codec, stops: &[String]) -> Answer {
        let (utf8, stops, tool) = (Utf8Stream::default(), StopStream::new(stops), Tool::of(codec));
        Answer { utf8, stops, tool, asked: None, parts: Vec::new(), tokens: 0 }
    }

    /// Takes the next token.
    pub fn token(&mut self, codec: &dyn Codec, token: u32) -> Said {
        self.tokens += 1;
        if let Some(Tool { python: [start, end], .. }) = self.tool {
            match &mut self.asked {
                None if token == start => {
                    let text = self.flush();
                    self.asked = Some(Vec::new());
                    return Said { text, is_over: self.stops.is_over(), ..Said::default() };
                }
                Some(_) if token == end => return self.calculate(codec),
                Some(expression) => {
                    expression.extend_from_slice(codec.token_bytes(token).unwrap_or_default());
                    return Said::default();
                }
                None => {}
            }
        }
        // A padding row of the vocabulary has no bytes.
        let text = self.utf8.push(codec.token_bytes(token).unwrap_or_default());
        let text = self.stops.push(&text);
        self.keep(PartKind::Text, &text);
        Said { text, is_over: self.stops.is_over(), ..Said::default() }
    }

    /// The text that was held back, when no token follows.
    pub fn finish(&mut self) -> String {
        self.asked = None;
        self.flush()
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// All that was said, as the content of a message.
    pub fn content(&self) -> Content {
        match &self.parts[..] {
            [] => Content::Text(String::new()),
            [Part { kind: PartKind::Text, text }] => Content::Text(text.clone()),
            parts => Content::Parts(parts.to_vec()),
        }
    }

    /// The text alone.
    pub fn text(&self) -> String {
        self.parts.iter().filter(|part| part.kind == PartKind::Text).map(|part| part.text.as_str()).collect()
    }

    fn calculate(&mut self, codec: &dyn Codec) -> Said {
        let Some((asked, Tool { output: [start, end], .. })) = self.asked.take().zip(self.tool) else {
            return Said::default();
        };
        let expression = String::from_utf8_lossy(&asked).into_owned();
        self.keep(PartKind::Python, &expression);
        // As nanochat does it: what has no value gets no answer.
        let Some(value) = calculator::evaluate(&expression) else { return Said::default() };
        self.keep(PartKind::PythonOutput, &value);
        let forced = [vec![start], codec.encode(value.as_bytes()), vec![end]].concat();
        Said { calculated: Some([expression, value]), forced, ..Said::default() }
    }

    fn flush(&mut self) -> String {
        let rest = self.utf8.finish();
        let text = self.stops.push(&rest) + &self.stops.finish();
        self.keep(PartKind::Text, &text);
        text
    }

    fn keep(&mut self, kind: PartKind, text: &str) {
        match self.parts.last_mut() {
            Some(part) if part.kind == kind && kind == PartKind::Text => part.text.push_str(text),
            _ if text.is_empty() && kind == PartKind::Text => {}
            _ => self.parts.push(Part { kind, text: text.to_owned() }),
        }
    }
}
