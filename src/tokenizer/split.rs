//! Cuts text into pieces by a split pattern: hand-written scanners for the named patterns, `fancy-regex` for others.
//!
//! The scanners read bytes. One table answers for ASCII; other characters are decoded and looked up in a two-level
//! table made at start-up from the Unicode classes of `regex-syntax`, so that `\p{L}`, `\p{N}` and `\s` mean here
//! exactly what they mean to the regular expression.

use super::pattern::{Gpt4Rules, Pattern};
use fancy_regex::{Regex, RegexBuilder};
use std::sync::LazyLock;

/// What a character is to the patterns. Each character has exactly one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    /// `[^\s\p{L}\p{N}]`: punctuation, marks, symbols, controls.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` without `\r` and `\n`
    Space,
    /// `\r` and `\n`
    Newline,
    /// In the ASCII table only: a byte of a longer character, whose class is in the Unicode table.
    Wide,
}

static ASCII: [Class; 256] = ascii_classes();

const fn ascii_classes() -> [Class; 256] {
    let mut table = [Class::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
            b'0'..=b'9' => Class::Number,
            b'\r' | b'\n' => Class::Newline,
            b' ' | b'\t' | 0x0B | 0x0C => Class::Space,
            0x80..=0xFF => Class::Wide,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
}

/// The class of every code point, in blocks of 256 of which equal ones are stored once (about 70 KiB).
struct UnicodeClasses {
    block_of: Vec<u16>,
    blocks: Vec<[Class; 256]>,
}

static UNICODE: LazyLock<UnicodeClasses> = LazyLock::new(|| {
    let mut flat = vec![Class::Other; 0x11_0000];
    for (expression, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
        let hir = regex_syntax::parse(expression).expect("a constant expression");
        let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() else {
            unreachable!("{expression} is a Unicode class")
        };
        for range in ranges.iter() {
            flat[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    flat['\r' as usize] = Class::Newline;
    flat['\n' as usize] = Class::Newline;
    let mut classes = UnicodeClasses { block_of: Vec::with_capacity(flat.len() / 256), blocks: Vec::new() };
    for chunk in flat.chunks_exact(256) {
        let block: [Class; 256] = chunk.try_into().expect("chunks of 256");
        let index = classes.blocks.iter().position(|known| *known == block).unwrap_or_else(|| {
            classes.blocks.push(block);
            classes.blocks.len() - 1
        });
        classes.block_of.push(index as u16);
    }
    classes
});

/// Cuts valid UTF-8 text into pieces. The pieces are in order and together are the whole text.
#[derive(Debug, Clone)]
pub(super) enum Splitter {
    Gpt2,
    SmolLm,
    Gpt4(Gpt4Rules),
    Regex(Box<Regex>),
}

impl Splitter {
    /// The splitter for `pattern`; an error when a custom expression does not compile.
    pub fn new(pattern: &Pattern) -> Result<Self, Box<fancy_regex::Error>> {
        match (pattern, pattern.gpt4_rules()) {
            (_, Some(rules)) => Ok(Splitter::Gpt4(rules)),
            (Pattern::Gpt2, _) => Ok(Splitter::Gpt2),
            (Pattern::SmolLm, _) => Ok(Splitter::SmolLm),
            _ => Ok(Splitter::Regex(Box::new(RegexBuilder::new(pattern.regex()).backtrack_limit(usize::MAX).build()?))),
        }
    }

    /// Calls `piece` with the start and the end of every piece. Text that a custom expression leaves out between two
    /// matches is a piece, too, and so is the rest when the expression fails at run time: nothing is ever lost.
    #[inline]
    pub fn for_each(&self, text: &str, mut piece: impl FnMut(usize, usize)) {
        let bytes = text.as_bytes();
        let mut start = 0;
        match self {
            Splitter::Gpt2 => {
                while start < bytes.len() {
                    let end = gpt2_piece_end(bytes, start);
                    piece(start, end);
                    start = end;
                }
            }
            Splitter::SmolLm => {
                while start < bytes.len() {
                    let end = smollm_piece_end(bytes, start);
                    piece(start, end);
                    start = end;
                }
            }
            Splitter::Gpt4(rules) => {
                while start < bytes.len() {
                    let end = gpt4_piece_end(bytes, start, *rules);
                    piece(start, end);
                    start = end;
                }
            }
            Splitter::Regex(regex) => {
                for found in regex.find_iter(text).map_while(Result::ok).filter(|found| !found.as_str().is_empty()) {
                    if start < found.start() {
                        piece(start, found.start());
                    }
                    piece(found.start(), found.end());
                    start = found.end();
                }
                if start < bytes.len() {
                    piece(start, bytes.len());
                }
            }
        }
    }

    /// A place near `near` where `bytes` can be cut in two without changing any piece: before a space that stands
    /// between two ASCII letters. `None` when there is none within 4 KiB or the expression is not a known one.
    pub fn safe_cut(&self, bytes: &[u8], near: usize) -> Option<usize> {
        if matches!(self, Splitter::Regex(_)) {
            return None;
        }
        let window = bytes.get(near..(near + 4096).min(bytes.len()))?;
        window
            .windows(3)
            .position(|w| w[0].is_ascii_alphabetic() && w[1] == b' ' && w[2].is_ascii_alphabetic())
            .map(|at| near + at + 1)
    }
}

/// The class and the length in bytes of the character at `at`. `text` is valid UTF-8 and `at` a character's start.
#[inline]
fn class_at(text: &[u8], at: usize) -> (Class, usize) {
    match ASCII[text[at] as usize] {
        Class::Wide => wide_class_at(text, at),
        class => (class, 1),
    }
}

fn wide_class_at(text: &[u8], at: usize) -> (Class, usize) {
    let low = |i: usize| u32::from(text[at + i] & 0x3F);
    let lead = u32::from(text[at]);
    let (code, len) = match lead {
        0xC0..=0xDF => ((lead & 0x1F) << 6 | low(1), 2),
        0xE0..=0xEF => ((lead & 0x0F) << 12 | low(1) << 6 | low(2), 3),
        _ => ((lead & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4),
    };
    let classes = &*UNICODE;
    (classes.blocks[classes.block_of[(code >> 8) as usize] as usize][(code & 0xFF) as usize], len)
}

/// Where the run of characters of one class that is under way at `at` ends.
#[inline]
fn run_end(text: &[u8], mut at: usize, class: Class) -> usize {
    while at < text.len() {
        let ascii = ASCII[text[at] as usize];
        if ascii == class {
            at += 1;
        } else if ascii == Class::Wide {
            let (wide, len) = wide_class_at(text, at);
            if wide != class {
                break;
            }
            at += len;
        } else {
            break;
        }
    }
    at
}

/// A run of white space: its end, the end of its last line end, and the start of its last character.
struct SpaceRun {
    end: usize,
    last_newline_end: Option<usize>,
    last_start: usize,
}

fn space_run(text: &[u8], start: usize) -> SpaceRun {
    let mut run = SpaceRun { end: start, last_newline_end: None, last_start: start };
    while run.end < text.len() {
        let (class, len) = class_at(text, run.end);
        match class {
            Class::Newline => run.last_newline_end = Some(run.end + len),
            Class::Space => {}
            _ => break,
        }
        run.last_start = run.end;
        run.end += len;
    }
    run
}

impl SpaceRun {
    /// The end of `\s+(?!\S)|\s+`: all of it at the end of the text, else all but the last character, which may belong
    /// to what follows, else (when there is only one character) all of it.
    fn piece_end(&self, start: usize, text_len: usize) -> usize {
        if self.end == text_len || self.last_start == start { self.end } else { self.last_start }
    }
}

/// The end of `'s`, `'t`, `'m`, `'d`, `'re`, `'ve`, `'ll` at an apostrophe, if one is there. `any_case` folds as
/// Unicode does, by which `ſ` (U+017F, bytes C5 BF) is an `s`; no other character outside ASCII folds to these letters.
fn contraction_end(text: &[u8], at: usize, any_case: bool) -> Option<usize> {
    let letter = |i: usize| {
        let byte = *text.get(at + i)?;
        Some(if any_case { byte.to_ascii_lowercase() } else { byte })
    };
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        (0xC5, Some(0xBF)) if any_case => Some(at + 3),
        _ => None,
    }
}

/// `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
#[inline]
fn gpt2_piece_end(text: &[u8], start: usize) -> usize {
    if text[start] == b'\''
        && let Some(end) = contraction_end(text, start, false)
    {
        return end;
    }
    let after_space = start + usize::from(text[start] == b' ');
    if after_space < text.len() {
        let (class, len) = class_at(text, after_space);
        if matches!(class, Class::Letter | Class::Number | Class::Other) {
            return run_end(text, after_space + len, class);
        }
    }
    space_run(text, start).piece_end(start, text.len())
}

/// Single digits, and what lies between them as [`gpt2_piece_end`] cuts it when it stands alone: white space before a digit
/// is one piece, as at the end of a text.
#[inline]
fn smollm_piece_end(text: &[u8], start: usize) -> usize {
    let (class, len) = class_at(text, start);
    if class == Class::Number {
        return start + len;
    }
    let is_number = |at: usize| at < text.len() && class_at(text, at).0 == Class::Number;
    if matches!(class, Class::Space | Class::Newline) {
        let run = space_run(text, start);
        if is_number(run.end) {
            return run.end;
        }
    }
    gpt2_piece_end(text, start)
}

/// `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+`,
/// with the number of digits and the presence of `\s++$` as `rules` say.
#[inline]
fn gpt4_piece_end(text: &[u8], start: usize, rules: Gpt4Rules) -> usize {
    if text[start] == b'\''
        && let Some(end) = contraction_end(text, start, true)
    {
        return end;
    }
    let (class, len) = class_at(text, start);
    let next = start + len;
    match class {
        Class::Letter => return run_end(text, next, Class::Letter),
        Class::Number => {
            let mut end = next;
            for _ in 1..rules.digits_max {
                match (end < text.len()).then(|| class_at(text, end)) {
                    Some((Class::Number, len)) => end += len,
                    _ => break,
                }
            }
            return end;
        }
        Class::Other | Class::Space if next < text.len() => {
            let (next_class, next_len) = class_at(text, next);
            if next_class == Class::Letter {
                return run_end(text, next + next_len, Class::Letter);
            }
            if class == Class::Other || (text[start] == b' ' && next_class == Class::Other) {
                return run_end(text, run_end(text, next, Class::Other), Class::Newline);
            }
        }
        Class::Other => return next,
        _ => {}
    }
    let run = space_run(text, start);
    match run.last_newline_end {
        Some(end) if !(rules.join_trailing_space && run.end == text.len()) => end,
        _ => run.piece_end(start, text.len()),
    }
}
