//! Cuts PTX text into tokens. A dot word (`.global`, `.shared::cta`) is one token.

use crate::error::{Error, Result};

/// Kind and value of a token.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    /// Name: opcode, register, variable, label.
    Name(&'a str),
    /// Word after a dot, without it: directive, type or modifier, `::` included.
    Dot(&'a str),
    /// Integer literal, as 64 bits.
    Integer(u64),
    /// `0f...` literal: bits of an `f32`.
    Float32(u32),
    /// `0d...` or decimal literal: bits of an `f64`.
    Float64(u64),
    /// Text in quotes.
    Text(&'a str),
    /// One character of punctuation.
    Mark(char),
    /// After the last token.
    End,
}

/// A token and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Token<'a> {
    /// What.
    pub kind: Kind<'a>,
    /// Line, from 1.
    pub line: u32,
    /// Byte range in the text.
    pub start: usize,
    /// End of the range.
    pub end: usize,
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

struct Lexer<'a> {
    file: &'a str,
    text: &'a str,
    at: usize,
    line: u32,
}

/// All tokens of `text`, an [`Kind::End`] last.
///
/// # Errors
/// On a character or literal that PTX does not have, and on an open comment or string.
pub fn tokens<'a>(file: &'a str, text: &'a str) -> Result<Vec<Token<'a>>> {
    let mut lexer = Lexer { file, text, at: 0, line: 1 };
    let mut out = Vec::with_capacity(text.len() / 4);
    loop {
        lexer.skip_blank()?;
        let (start, line) = (lexer.at, lexer.line);
        let kind = lexer.token()?;
        let last = kind == Kind::End;
        out.push(Token { kind, line, start, end: lexer.at });
        if last {
            return Ok(out);
        }
    }
}

impl<'a> Lexer<'a> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::Ptx { file: self.file.to_string(), line: self.line, message: message.into() }
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) -> Result<()> {
        loop {
            match (self.byte(0), self.byte(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                (b'/', b'*') => {
                    let rest = &self.text[self.at + 2..];
                    let Some(length) = rest.find("*/") else { return Err(self.error("comment without an end")) };
                    self.line += rest[..length].bytes().filter(|&b| b == b'\n').count() as u32;
                    self.at += length + 4;
                }
                _ => return Ok(()),
            }
        }
    }

    fn take(&mut self, more: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.at < self.text.len() && more(self.byte(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn token(&mut self) -> Result<Kind<'a>> {
        if self.at >= self.text.len() {
            return Ok(Kind::End);
        }
        let first = self.byte(0);
        match first {
            b'.' if is_name(self.byte(1)) => Ok(self.dot_word()),
            b'0'..=b'9' => self.number(),
            b'%' if !is_name(self.byte(1)) => {
                self.at += 1;
                Ok(Kind::Mark('%'))
            }
            b'%' => {
                let start = self.at;
                self.at += 1;
                self.take(is_name);
                Ok(Kind::Name(&self.text[start..self.at]))
            }
            b if is_name(b) => Ok(Kind::Name(self.take(is_name))),
            b'"' => self.quoted(),
            b if b.is_ascii_punctuation() => {
                self.at += 1;
                Ok(Kind::Mark(first as char))
            }
            _ => {
                let found = self.text[self.at..].chars().next().unwrap_or('\0');
                Err(self.error(format!("unexpected character {found:?}")))
            }
        }
    }

    fn dot_word(&mut self) -> Kind<'a> {
        self.at += 1;
        let start = self.at;
        self.take(is_name);
        while self.byte(0) == b':' && self.byte(1) == b':' && is_name(self.byte(2)) {
            self.at += 2;
            self.take(is_name);
        }
        Kind::Dot(&self.text[start..self.at])
    }

    fn quoted(&mut self) -> Result<Kind<'a>> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.byte(0) {
                b'"' => break,
                b'\\' if self.at + 1 < self.text.len() => self.at += 1,
                0 | b'\n' => return Err(self.error("string without an end")),
                _ => {}
            }
            self.at += 1;
            while !self.text.is_char_boundary(self.at) {
                self.at += 1;
            }
        }
        let inner = &self.text[start..self.at];
        self.at += 1;
        Ok(Kind::Text(inner))
    }

    fn number(&mut self) -> Result<Kind<'a>> {
        let start = self.at;
        let word = self.take(is_name);
        let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let parsed = match (word.get(..2), word.get(2..)) {
            (Some("0f" | "0F"), Some(digits)) if digits.len() == 8 => {
                hex(digits).map(|bits| Kind::Float32(bits as u32))
            }
            (Some("0d" | "0D"), Some(digits)) if digits.len() == 16 => hex(digits).map(Kind::Float64),
            (Some("0x" | "0X"), Some(digits)) => hex(digits.trim_end_matches('U')).map(Kind::Integer),
            (Some("0b" | "0B"), Some(digits)) => {
                u64::from_str_radix(digits.trim_end_matches('U'), 2).ok().map(Kind::Integer)
            }
            _ if self.byte(0) == b'.' && self.byte(1).is_ascii_digit() => {
                self.at += 1;
                self.take(|b| b.is_ascii_alphanumeric());
                if matches!(self.byte(0), b'-' | b'+') && self.text[start..self.at].ends_with(['e', 'E']) {
                    self.at += 1;
                    self.take(|b| b.is_ascii_digit());
                }
                self.text[start..self.at].parse::<f64>().ok().map(|value| Kind::Float64(value.to_bits()))
            }
            _ => {
                let digits = word.trim_end_matches('U');
                let octal = digits.len() > 1 && digits.starts_with('0');
                u64::from_str_radix(digits, if octal { 8 } else { 10 }).ok().map(Kind::Integer)
            }
        };
        parsed.ok_or_else(|| self.error(format!("bad literal {:?}", &self.text[start..self.at])))
    }
}
