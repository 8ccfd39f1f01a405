//! Safetensors files: written to a temporary name, synced and renamed; read through memory maps, from one file or from several with an index.

use super::weights::Weights;
use crate::tensor::{DType, Shape, Tensor};
use crate::{user_bail, user_error};
use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::ops::Range;
use std::path::Path;

/// A tensor under a name, to be written.
pub struct Named<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

impl<'a> Named<'a> {
    /// `tensor` as `name`.
    pub fn new(name: impl Into<String>, tensor: &'a Tensor) -> Named<'a> {
        let (shape, dtype) = (tensor.shape().as_slice().to_vec(), file_dtype(tensor.dtype()));
        Named { name: name.into(), shape, dtype, bytes: tensor.as_bytes() }
    }
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::F64 => Dtype::F64,
        DType::U32 => Dtype::U32,
    }
}

impl View for &Named<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes `tensors` to `path` at once or not at all.
///
/// # Errors
/// When the file cannot be written, a full disk included; then `path` is as it was.
pub fn write(path: &Path, tensors: &[Named]) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let result = (|| {
        safetensors::serialize_to_file(tensors.iter().map(|t| (&t.name, t)), Some(metadata), &temporary)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, path)?;
        anyhow::Ok(())
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary); // nothing half-written stays behind
    }
    result.with_context(|| format!("writing {}", path.display()))
}

/// Where a tensor lies.
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// One file of tensors or several that make a model, mapped into memory.
pub struct Reader {
    maps: Vec<memmap2::Mmap>,
    tensors: BTreeMap<String, Entry>,
    file: String,
}

impl Reader {
    /// Opens and checks `path`.
    ///
    /// # Errors
    /// A missing, truncated or malformed file, named in one line.
    pub fn open(path: &Path) -> anyhow::Result<Reader> {
        let mut reader = Reader { maps: Vec::new(), tensors: BTreeMap::new(), file: path.display().to_string() };
        reader.add(path)?;
        Ok(reader)
    }

    /// Opens the files that `index` (`model.safetensors.index.json`) names, which lie beside it.
    ///
    /// # Errors
    /// A malformed index, a file that is missing or malformed, and a tensor that is not where the index says.
    pub fn open_sharded(index: &Path) -> anyhow::Result<Reader> {
        let file = index.display().to_string();
        let text = std::fs::read(index).map_err(|e| user_error!("cannot open {file}: {e}"))?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| user_error!("{file} is not valid JSON: {e}"))?;
        let Some(places) = value["weight_map"].as_object().filter(|places| !places.is_empty()) else {
            user_bail!("{file} has no weight_map; it does not say where the tensors are");
        };
        let mut reader = Reader { maps: Vec::new(), tensors: BTreeMap::new(), file: file.clone() };
        let mut shards: Vec<&str> = Vec::new();
        for (name, place) in places {
            match place.as_str().filter(|place| Path::new(place).file_name() == Some(OsStr::new(place))) {
                Some(shard) => shards.push(shard),
                None => user_bail!("{file}: {name} lies in {place}, which is no file beside it"),
            }
        }
        shards.sort_unstable();
        shards.dedup();
        for shard in &shards {
            reader.add(&index.with_file_name(shard))?;
        }
        for (name, place) in places {
            let found = reader.tensors.get(name).map(|entry| shards[entry.file]);
            if found != place.as_str() {
                user_bail!("{file} says that {name} lies in {place}, which does not hold it; fetch the model again");
            }
        }
        Ok(reader)
    }

    /// Takes in the tensors of one more file.
    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let file = path.display().to_string();
        let handle = std::fs::File::open(path).map_err(|e| user_error!("cannot open {file}: {e}"))?;
        // SAFETY: the map is only read; a file that another process truncates meanwhile would fault, which checkpoints,
        // never changed after their rename, do not do.
        let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(|e| user_error!("cannot read {file}: {e}"))?;
        let tensors = SafeTensors::deserialize(&map)
            .map_err(|e| user_error!("{file} is not a whole safetensors file ({e}); it may be truncated"))?;
        for (name, view) in tensors.tensors() {
            let start = view.data().as_ptr().addr() - map.as_ptr().addr();
            let range = start..start + view.data().len();
            let entry = Entry { file: self.maps.len(), dtype: view.dtype(), shape: view.shape().to_vec(), range };
            if self.tensors.insert(name.clone(), entry).is_some() {
                user_bail!("{file}: {name} lies in another file of the model, too; fetch the model again");
            }
        }
        self.maps.push(map);
        Ok(())
    }

    /// The names it holds, sorted.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Whether it holds `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Extents of a tensor.
    ///
    /// # Errors
    /// A missing tensor.
    pub fn shape(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        Ok(self.tensor(name)?.0.shape.clone())
    }

    /// Elements of a 32- or 64-bit integer tensor.
    ///
    /// # Errors
    /// A missing tensor or another type.
    pub fn integers(&self, name: &str) -> anyhow::Result<Vec<i64>> {
        let (entry, data) = self.tensor(name)?;
        Ok(match entry.dtype {
            Dtype::I64 => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8"))).collect(),
            Dtype::I32 => data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("4")) as i64).collect(),
            Dtype::U32 => data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4")) as i64).collect(),
            other => user_bail!("{}: {name} has type {other:?}, integers were expected", self.file),
        })
    }

    /// Shape and elements of a floating-point tensor, widened to f32; f64 and f16 are converted.
    ///
    /// # Errors
    /// A missing tensor, or a type that is no floating point.
    pub fn floats(&self, name: &str) -> anyhow::Result<(Shape, Vec<f32>)> {
        let (entry, data) = self.tensor(name)?;
        let values = match entry.dtype {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4"))).collect(),
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8")) as f32).collect(),
            Dtype::BF16 => {
                data.chunks_exact(2).map(|b| half::bf16::from_le_bytes(b.try_into().expect("2")).to_f32()).collect()
            }
            Dtype::F16 => {
                data.chunks_exact(2).map(|b| half::f16::from_le_bytes(b.try_into().expect("2")).to_f32()).collect()
            }
            other => user_bail!("{}: {name} has type {other:?}, floating point was expected", self.file),
        };
        if entry.shape.len() > crate::tensor::shape::DIMS_MAX {
            user_bail!("{}: {name} has {} dimensions", self.file, entry.shape.len());
        }
        Ok((Shape::from(entry.shape.as_slice()), values))
    }

    fn tensor(&self, name: &str) -> anyhow::Result<(&Entry, &[u8])> {
        let entry = self.tensors.get(name).ok_or_else(|| user_error!("{} holds no tensor {name}", self.file))?;
        Ok((entry, &self.maps[entry.file][entry.range.clone()]))
    }
}

impl Weights for Reader {
    fn names(&self) -> Vec<String> {
        Reader::names(self)
    }

    fn shape(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        Reader::shape(self, name)
    }

    fn floats(&self, name: &str) -> anyhow::Result<(Shape, Vec<f32>)> {
        Reader::floats(self, name)
    }
}
