//! Text files as a source: a `.txt` file is one document, or several consecutive ones when it is long.

use super::random::identity;
use super::source::{Document, Place, Reader, Record, Source, Split};
use crate::user_error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A longer file is read as consecutive documents of about this size, cut after a line, so that memory stays bounded.
pub const TEXT_DOCUMENT_BYTES_MAX: u64 = 512 * 1024;

/// Bytes looked at in one go when a line's end is searched.
const SEARCH_BYTES: usize = 8 * 1024;

/// Text files, cut into units of one document each.
pub struct TextFiles {
    name: String,
    fingerprint: u64,
    paths: Vec<Arc<Path>>,
    units: Vec<Unit>,
}

#[derive(Debug, Clone, Copy)]
struct Unit {
    file: u32,
    start: u64,
    end: u64,
}

impl TextFiles {
    /// Opens `paths`. With `region` (split and fraction), only that split's part of every file is there: the last
    /// `fraction` of its bytes, from a line's start on, is validation. Empty parts give no unit.
    /// Errors: a user error when a file cannot be read.
    pub fn open(name: &str, paths: &[PathBuf], region: Option<(Split, f64)>) -> anyhow::Result<TextFiles> {
        let mut units = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let file = open_file(path)?;
            let length = file.metadata().map_err(|error| unreadable(path, error))?.len();
            let (start, end) = match region {
                None => (0, length),
                Some((split, fraction)) => {
                    let cut = line_start(&file, path, (length as f64 * (1.0 - fraction)) as u64, length)?;
                    match split {
                        Split::Train => (0, cut),
                        Split::Validation => (cut, length),
                    }
                }
            };
            let mut from = start;
            while from < end {
                let nominal = from + TEXT_DOCUMENT_BYTES_MAX;
                let to = if nominal >= end { end } else { line_start(&file, path, nominal, end)? };
                units.push(Unit { file: index as u32, start: from, end: to });
                from = to;
            }
        }
        let fingerprint = fingerprint_of(paths)?;
        let paths = paths.iter().map(|path| Arc::from(path.as_path())).collect();
        Ok(TextFiles { name: name.to_owned(), fingerprint, paths, units })
    }
}

impl Source for TextFiles {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn units(&self) -> u64 {
        self.units.len() as u64
    }

    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let unit = self.units[place.unit as usize];
        let path = self.paths[unit.file as usize].clone();
        Ok(Box::new(TextReader { path, unit, done: place.offset > 0, content: Vec::new() }))
    }
}

struct TextReader {
    path: Arc<Path>,
    unit: Unit,
    done: bool,
    content: Vec<u8>,
}

impl Reader for TextReader {
    fn advance(&mut self) -> anyhow::Result<Option<Record>> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(None);
        }
        self.content = vec![0; (self.unit.end - self.unit.start) as usize];
        let file = open_file(&self.path)?;
        file.read_exact_at(&mut self.content, self.unit.start).map_err(|error| unreadable(&self.path, error))?;
        Ok(Some(Record { offset: 0, next: 1, identity: identity(&self.content) }))
    }

    fn document(&mut self) -> anyhow::Result<Document> {
        Ok(Document::Bytes(std::mem::take(&mut self.content)))
    }
}

/// The first start of a line at or after `position`; `end` when there is none before it. A line longer than
/// [`TEXT_DOCUMENT_BYTES_MAX`] is cut at the first start of a character instead.
pub(super) fn line_start(file: &File, path: &Path, position: u64, end: u64) -> anyhow::Result<u64> {
    if position == 0 || position >= end {
        return Ok(position.min(end));
    }
    let mut buffer = vec![0; SEARCH_BYTES];
    let mut at = position - 1;
    let give_up = position.saturating_add(TEXT_DOCUMENT_BYTES_MAX);
    while at < end.min(give_up) {
        let wanted = SEARCH_BYTES.min((end - at) as usize);
        file.read_exact_at(&mut buffer[..wanted], at).map_err(|error| unreadable(path, error))?;
        if let Some(newline) = buffer[..wanted].iter().position(|&byte| byte == b'\n') {
            return Ok(at + newline as u64 + 1);
        }
        at += wanted as u64;
    }
    if at >= end {
        return Ok(end);
    }
    let wanted = 4.min((end - position) as usize);
    file.read_exact_at(&mut buffer[..wanted], position).map_err(|error| unreadable(path, error))?;
    let continuation = buffer[..wanted].iter().take_while(|&&byte| byte & 0xc0 == 0x80).count();
    Ok(position + if continuation < wanted { continuation as u64 } else { 0 })
}

pub(super) fn open_file(path: &Path) -> anyhow::Result<File> {
    File::open(path).map_err(|error| unreadable(path, error))
}

pub(super) fn unreadable(path: &Path, error: std::io::Error) -> anyhow::Error {
    user_error!("cannot read {}: {error}; was it moved or changed?", path.display())
}

/// A hash of the names and sizes of `paths`. The folder is left out, so that a corpus may be moved.
pub(super) fn fingerprint_of(paths: &[PathBuf]) -> anyhow::Result<u64> {
    let mut described = Vec::new();
    for path in paths {
        let length = std::fs::metadata(path).map_err(|error| unreadable(path, error))?.len();
        described.extend_from_slice(path.file_name().unwrap_or_default().as_encoded_bytes());
        described.push(0);
        described.extend_from_slice(&length.to_le_bytes());
    }
    Ok(identity(&described))
}
