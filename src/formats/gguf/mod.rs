//! GGUF, the file format of llama.cpp: metadata, then tensors in plain types or blocks, all in one file that is mapped.
//!
//! A file is `GGUF`, a version, the numbers of tensors and of metadata; the metadata as key, type and value; of each tensor
//! the name, extents (fastest first), type and offset; padding to the alignment; the tensors. Everything is checked against
//! the length of the file before it is believed.

mod cursor;
mod export;
mod model;
mod tokenizer;
mod write;

pub use cursor::Value;
pub use export::{Exported, export};
pub use model::{Checkpoint, RowOrder};

use crate::tensor::BlockType;
use crate::{user_bail, user_error};
use cursor::Cursor;
use memmap2::Mmap;
use rustc_hash::FxHashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// What every GGUF file begins with.
const MAGIC: &[u8; 4] = b"GGUF";
/// The version written; 2 differs only in what big-endian machines write.
const VERSION: u32 = 3;
/// Where tensors begin unless `general.alignment` says otherwise.
const ALIGNMENT: usize = 32;
/// Most extents of a tensor.
const DIMS_MAX: u32 = 4;

/// Types by their number in the file, for messages: what is not read has a name all the same.
const TYPE_NAMES: [&str; 40] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
];

/// The number of a type in the file.
fn type_number(kind: BlockType) -> u32 {
    TYPE_NAMES.iter().position(|name| *name == kind.name()).expect("every type has a number") as u32
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub name: String,
    /// As others count: rows first, columns last.
    pub shape: Vec<usize>,
    pub kind: BlockType,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows: all extents but the last together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }
}

/// A GGUF file, mapped into memory.
#[derive(Debug)]
pub struct Gguf {
    map: Arc<Mmap>,
    file: String,
    metadata: FxHashMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: FxHashMap<String, usize>,
}

impl Gguf {
    /// Opens `path` and checks that all it says of itself lies inside the file.
    ///
    /// # Errors
    /// What is no GGUF file, truncated, damaged, or in types that are not read, in one line.
    pub fn open(path: &Path) -> anyhow::Result<Gguf> {
        let file = path.display().to_string();
        let handle = std::fs::File::open(path).map_err(|e| user_error!("cannot open {file}: {e}"))?;
        // SAFETY: the map is only read; a file that another process truncates meanwhile would fault, which weight files,
        // never changed once they are there, do not do.
        let map = unsafe { Mmap::map(&handle) }.map_err(|e| user_error!("cannot read {file}: {e}"))?;
        let mut gguf = Gguf {
            map: Arc::new(map),
            file,
            metadata: FxHashMap::default(),
            tensors: Vec::new(),
            by_name: FxHashMap::default(),
        };
        gguf.parse().map_err(|problem| user_error!("{}: {problem}", gguf.file))?;
        Ok(gguf)
    }

    fn parse(&mut self) -> Result<(), String> {
        let map = self.map.clone();
        let mut cursor = Cursor::new(&map);
        if map.get(..4) != Some(MAGIC) {
            return Err("is not a GGUF file (it does not begin with GGUF); name a .gguf file or a folder".into());
        }
        cursor.take(4)?;
        match cursor.u32()? {
            2 | VERSION => {}
            big if matches!(big.swap_bytes(), 1..=VERSION) => {
                return Err("is a big-endian GGUF file, which is not read; convert it to little-endian".into());
            }
            other => return Err(format!("has version {other} of GGUF; versions 2 and 3 are read: convert it anew")),
        }
        let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
        // A key of no letters, a type and a byte; a tensor's name, number of extents, one extent, type and offset.
        cursor.could_hold(entries, 8 + 4 + 1, "metadata")?;
        cursor.could_hold(tensors, 8 + 4 + 8 + 4 + 8, "tensors")?;
        for _ in 0..entries {
            let key = cursor.string()?.to_owned();
            let value = cursor.value(&key)?;
            if self.metadata.contains_key(&key) {
                return Err(format!("holds the key {key:?} twice: it is damaged"));
            }
            self.metadata.insert(key, value);
        }
        let alignment = match self.metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n as usize,
            Some(_) => return Err("general.alignment is not a power of two: it is damaged".into()),
        };
        for _ in 0..tensors {
            let tensor = tensor_info(&mut cursor, alignment)?;
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(format!("holds the tensor {} twice: it is damaged", tensor.name));
            }
            self.tensors.push(tensor);
        }
        let start = cursor.at().next_multiple_of(alignment);
        place(&mut self.tensors, start, map.len())
    }

    /// The file's name, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The mapped file, to be shared by who reads weights in place; [`TensorInfo::range`] says where they lie.
    pub fn map(&self) -> &Arc<Mmap> {
        &self.map
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A tensor by its name in the file.
    ///
    /// # Errors
    /// A missing tensor.
    pub fn tensor(&self, name: &str) -> anyhow::Result<&TensorInfo> {
        let index = self.by_name.get(name).copied();
        Ok(&self.tensors[index.ok_or_else(|| user_error!("{} holds no tensor {name}", self.file))?])
    }

    /// The bytes of one of its tensors: rows of blocks.
    pub fn bytes(&self, tensor: &TensorInfo) -> &[u8] {
        &self.map[tensor.range.clone()]
    }

    /// Lets the system take back the memory of a tensor's bytes; they are read from the file again where they are wanted again.
    pub fn release(&self, tensor: &TensorInfo) {
        // SAFETY: the mapping is of a file and only read: what is dropped comes back as it was.
        #[cfg(unix)]
        let _ = unsafe {
            let (start, len) = (tensor.range.start, tensor.range.len());
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len)
        };
    }

    /// The metadata under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// A whole number, if there is one under `key`.
    ///
    /// # Errors
    /// A value of another kind, or below 0.
    pub fn count(&self, key: &str) -> anyhow::Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(*n as u64)),
            Some(_) => user_bail!("{}: {key} is not a whole number; the file is damaged", self.file),
        }
    }

    /// A number, if there is one under `key`: an f32 as the shortest decimal that it is nearest to, as it was written.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn number(&self, key: &str) -> anyhow::Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(x.to_string().parse().unwrap_or(f64::from(*x)))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(_) => user_bail!("{}: {key} is not a number; the file is damaged", self.file),
        }
    }

    /// Yes or no, if `key` says it.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn flag(&self, key: &str) -> anyhow::Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(_) => user_bail!("{}: {key} is not true or false; the file is damaged", self.file),
        }
    }

    /// A text, if there is one under `key`.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn text(&self, key: &str) -> anyhow::Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => Ok(Some(cursor::text(&self.map, range))),
            Some(_) => user_bail!("{}: {key} is not a text; the file is damaged", self.file),
        }
    }

    /// A list of texts, if there is one under `key`.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn texts(&self, key: &str) -> anyhow::Result<Option<Vec<&str>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(cursor::texts(&self.map, list))),
            Some(_) => user_bail!("{}: {key} is not a list of texts; the file is damaged", self.file),
        }
    }

    /// A list of 32-bit integers, if there is one under `key`.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn integers(&self, key: &str) -> anyhow::Result<Option<Vec<i32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integers(range)) => {
                let words = self.map[range.clone()].chunks_exact(4);
                Ok(Some(words.map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
            }
            Some(_) => user_bail!("{}: {key} is not a list of 32-bit integers; the file is damaged", self.file),
        }
    }
}

/// What the file says of one tensor; its range counts from where tensors begin.
fn tensor_info(cursor: &mut Cursor, alignment: usize) -> Result<TensorInfo, String> {
    let name = cursor.string()?.to_owned();
    let dims = cursor.u32()?;
    if !(1..=DIMS_MAX).contains(&dims) {
        return Err(format!("tensor {name} has {dims} dimensions, 1 to {DIMS_MAX} were expected: it is damaged"));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        shape.push(cursor.u64()?);
    }
    let (number, offset) = (cursor.u32()?, cursor.u64()?);
    let Some(kind) = BlockType::ALL.into_iter().find(|kind| type_number(*kind) == number) else {
        let kind =
            TYPE_NAMES.get(number as usize).map_or(format!("unknown type {number}"), |name| format!("type {name}"));
        return Err(format!(
            "tensor {name} has {kind}, which is not supported; F32, F16, BF16, Q8_0, Q4_0, Q4_1 and Q6_K are: take another file of this model"
        ));
    };
    let too_large = || format!("tensor {name} has extents {shape:?}, beyond the file: it is damaged or truncated");
    let extents: Option<Vec<usize>> = shape.iter().rev().map(|&n| usize::try_from(n).ok().filter(|n| *n > 0)).collect();
    let extents = extents.ok_or_else(too_large)?;
    let cols = extents[extents.len() - 1];
    if !cols.is_multiple_of(kind.block_elems()) {
        return Err(format!(
            "tensor {name} has rows of {cols}, which blocks of {} do not divide: it is damaged",
            kind.name()
        ));
    };
    let row_bytes = kind.row_bytes(cols).ok_or_else(too_large)?;
    let bytes = extents.iter().rev().skip(1).try_fold(row_bytes, |bytes, &n| bytes.checked_mul(n));
    let bytes = bytes.ok_or_else(too_large)?;
    let start = usize::try_from(offset).ok().ok_or_else(too_large)?;
    let end = start.checked_add(bytes).ok_or_else(too_large)?;
    if !start.is_multiple_of(alignment) {
        return Err(format!("tensor {name} lies at {start}, no multiple of {alignment}: it is damaged"));
    }
    Ok(TensorInfo { name, shape: extents, kind, range: start..end })
}

/// Moves ranges to where tensors begin; none may reach beyond the file or into another.
fn place(tensors: &mut [TensorInfo], start: usize, len: usize) -> Result<(), String> {
    for tensor in tensors.iter_mut() {
        let end = tensor.range.end.checked_add(start).filter(|end| *end <= len).ok_or_else(|| {
            format!("tensor {} reaches beyond the end of the file: it is truncated, fetch it again", tensor.name)
        })?;
        tensor.range = tensor.range.start + start..end;
    }
    let mut sorted: Vec<&TensorInfo> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.range.start);
    match sorted.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        Some(pair) => Err(format!("tensors {} and {} overlap: it is damaged", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}
