//! From generated ids to text: bytes that arrive in pieces, strings that end it.

/// Decodes UTF-8 that arrives in pieces. What it gives out, put together, is what [`String::from_utf8_lossy`] makes of
/// all the bytes; a character that is not complete yet is held back.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character; at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// The text that is certain after `bytes`; each invalid sequence is U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    rest = after;
                    match error.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[invalid..];
                        }
                        None => break,
                    }
                }
            }
        }
        self.held = rest.to_vec();
        text
    }

    /// What was held back, as U+FFFD, since the rest of it will not come; the stream can begin anew.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Text that is over as soon as one of some strings is whole, and ends before it; what may be the beginning of one is held back.
#[derive(Clone, Debug, Default)]
pub struct StopStream {
    stops: Vec<String>,
    held: String,
    is_over: bool,
}

impl StopStream {
    /// Ends before the first of `stops`; those that are empty end nothing.
    pub fn new(stops: &[String]) -> StopStream {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        StopStream { stops, ..StopStream::default() }
    }

    /// The text that is certain after `text`.
    pub fn push(&mut self, text: &str) -> String {
        if self.is_over {
            return String::new();
        }
        self.held.push_str(text);
        // The one that is whole first, however the text comes in pieces.
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at)));
        if let Some((_, at)) = found.min() {
            self.is_over = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a string came that ends the text.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What was held back and is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
