//! JSONL files as a source: a document per line, from the key `text` (a string) or `messages` (a chat).

use super::random::identity;
use super::source::{Document, Place, Reader, Record, Source};
use super::text::{fingerprint_of, open_file, unreadable};
use crate::tokenizer::special::Message;
use crate::user_error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files are cut into ranges of this size; a line belongs to the range in which it starts.
pub const RANGE_BYTES: u64 = 4 * 1024 * 1024;

/// JSONL files, cut into ranges of lines. Places are byte offsets of lines in their file.
pub struct JsonLines {
    name: String,
    fingerprint: u64,
    paths: Vec<Arc<Path>>,
    ranges: Vec<(u32, u64)>,
}

impl JsonLines {
    /// Opens `paths`. Errors: a user error when a file cannot be read.
    pub fn open(name: &str, paths: &[PathBuf]) -> anyhow::Result<JsonLines> {
        let mut ranges = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let length = open_file(path)?.metadata().map_err(|error| unreadable(path, error))?.len();
            ranges.extend((0..length.div_ceil(RANGE_BYTES)).map(|range| (index as u32, range * RANGE_BYTES)));
        }
        let fingerprint = fingerprint_of(paths)?;
        let paths = paths.iter().map(|path| Arc::from(path.as_path())).collect();
        Ok(JsonLines { name: name.to_owned(), fingerprint, paths, ranges })
    }
}

impl Source for JsonLines {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn units(&self) -> u64 {
        self.ranges.len() as u64
    }

    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let (file, start) = self.ranges[place.unit as usize];
        let path = self.paths[file as usize].clone();
        let mut input = BufReader::with_capacity(1 << 16, open_file(&path)?);
        // A range that does not begin the file gives up what remains of the line that the range before it began.
        let fresh = place.offset == 0 && start > 0;
        let mut offset = if fresh { start - 1 } else { place.offset };
        input.seek(SeekFrom::Start(offset)).map_err(|error| unreadable(&path, error))?;
        if fresh {
            let skipped = input.skip_until(b'\n').map_err(|error| unreadable(&path, error))?;
            offset += skipped as u64;
        }
        Ok(Box::new(LineReader { path, input, offset, end: start + RANGE_BYTES, line: Vec::new(), line_offset: 0 }))
    }
}

struct LineReader {
    path: Arc<Path>,
    input: BufReader<File>,
    offset: u64,
    end: u64,
    line: Vec<u8>,
    line_offset: u64,
}

impl Reader for LineReader {
    fn advance(&mut self) -> anyhow::Result<Option<Record>> {
        while self.offset < self.end {
            self.line.clear();
            let read = self.input.read_until(b'\n', &mut self.line).map_err(|error| unreadable(&self.path, error))?;
            if read == 0 {
                return Ok(None);
            }
            self.line_offset = self.offset;
            self.offset += read as u64;
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                let identity = identity(line);
                return Ok(Some(Record { offset: self.line_offset, next: self.offset, identity }));
            }
        }
        Ok(None)
    }

    fn document(&mut self) -> anyhow::Result<Document> {
        parse_line(&self.line).map_err(|reason| {
            let line = line_number(&self.path, self.line_offset);
            user_error!("{}, line {line}: {reason}; mend or remove that line", self.path.display())
        })
    }
}

/// The document of one line, or what is wrong with it.
fn parse_line(line: &[u8]) -> Result<Document, String> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let value: serde_json::Value = serde_json::from_slice(line).map_err(|error| format!("not valid JSON ({error})"))?;
    let object = value.as_object().ok_or("not a JSON object")?;
    if let Some(text) = object.get("text") {
        let text = text.as_str().ok_or("the key 'text' is not a string")?;
        return Ok(Document::Bytes(text.as_bytes().to_vec()));
    }
    let messages = object.get("messages").ok_or("neither a key 'text' nor a key 'messages'")?;
    let messages = messages.as_array().ok_or("the key 'messages' is not a list")?;
    let mut chat = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let field = |key: &str| {
            message.get(key).and_then(|value| value.as_str()).ok_or(format!("message {index} has no string '{key}'"))
        };
        chat.push(Message::new(field("role")?, field("content")?));
    }
    Ok(Document::Chat(chat))
}

/// The number, from 1, of the line that starts at `offset`; only wanted for messages, so it is counted then.
fn line_number(path: &Path, offset: u64) -> usize {
    let Ok(file) = File::open(path) else { return 0 };
    let mut input = BufReader::new(file.take(offset));
    let mut lines = 1;
    while matches!(input.skip_until(b'\n'), Ok(read) if read > 0) {
        lines += 1;
    }
    lines
}
