//! Puts a GGUF file together: metadata, the list of tensors, and their bytes, written as they are made.

use super::{ALIGNMENT, MAGIC, VERSION, type_number};
use crate::tensor::BlockType;
use crate::user_error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor to be written: its bytes are made when its turn comes.
pub struct Planned<'a> {
    pub name: String,
    /// Rows first, columns last.
    pub shape: Vec<usize>,
    pub kind: BlockType,
    /// Its rows in the order of the file, in blocks of `kind`.
    pub bytes: Box<dyn Fn() -> anyhow::Result<Vec<u8>> + 'a>,
}

impl Planned<'_> {
    fn len(&self) -> usize {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows: usize = self.shape.iter().rev().skip(1).product();
        rows * self.kind.row_bytes(cols).expect("a type that divides the rows")
    }
}

/// The metadata of a file under construction.
#[derive(Default)]
pub struct Metadata {
    bytes: Vec<u8>,
    entries: u64,
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Metadata {
    fn put(&mut self, key: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.entries += 1;
    }

    pub fn count(&mut self, key: &str, value: usize) {
        self.put(key, 4, &(value as u32).to_le_bytes());
    }

    pub fn number(&mut self, key: &str, value: f64) {
        self.put(key, 6, &(value as f32).to_le_bytes());
    }

    pub fn flag(&mut self, key: &str, value: bool) {
        self.put(key, 7, &[u8::from(value)]);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.put(key, 8, &bytes);
    }

    pub fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.for_each(|value| put_text(&mut bytes, value));
        self.put(key, 9, &bytes);
    }

    pub fn integers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.put(key, 9, &bytes);
    }
}

/// Writes a file under a temporary name, syncs and renames it; its length in bytes.
///
/// # Errors
/// What the tensors or the disk refuse; then `path` is as it was.
pub fn write(path: &Path, metadata: &Metadata, tensors: &[Planned]) -> anyhow::Result<u64> {
    let temporary = path.with_extension("gguf.tmp");
    let written = File::create(&temporary).map_err(anyhow::Error::from).and_then(|file| {
        let mut out = BufWriter::new(file);
        write_to(&mut out, metadata, tensors)?;
        let file = out.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        std::fs::rename(&temporary, path)?;
        Ok(bytes)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary); // nothing half-written stays behind
    }
    written.map_err(|e| user_error!("cannot write {}: {e:#}", path.display()))
}

fn write_to(out: &mut impl Write, metadata: &Metadata, tensors: &[Planned]) -> anyhow::Result<()> {
    let mut head = MAGIC.to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend(metadata.entries.to_le_bytes());
    head.extend(&metadata.bytes);
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| head.extend((n as u64).to_le_bytes()));
        head.extend(type_number(tensor.kind).to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += tensor.len().next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)?;
    for tensor in tensors {
        let bytes = (tensor.bytes)()?;
        assert_eq!(bytes.len(), tensor.len(), "{}", tensor.name);
        out.write_all(&bytes)?;
        out.write_all(&[0; ALIGNMENT][..bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()])?;
    }
    Ok(())
}
