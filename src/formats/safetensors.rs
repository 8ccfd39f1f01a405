//! Safetensors files: written to a temporary name, synced and renamed; read through a memory map.

use crate::tensor::{DType, Shape, Tensor};
use crate::{user_bail, user_error};
use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors, View};
use std::borrow::Cow;
use std::collections::HashMap;
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

/// A file of tensors, mapped into memory.
pub struct Reader {
    map: memmap2::Mmap,
    file: String,
}

impl Reader {
    /// Opens and checks `path`.
    ///
    /// # Errors
    /// A missing, truncated or malformed file, named in one line.
    pub fn open(path: &Path) -> anyhow::Result<Reader> {
        let file = path.display().to_string();
        let handle = std::fs::File::open(path).map_err(|e| user_error!("cannot open {file}: {e}"))?;
        // SAFETY: the map is only read; a file that another process truncates meanwhile would fault, which checkpoints,
        // never changed after their rename, do not do.
        let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(|e| user_error!("cannot read {file}: {e}"))?;
        SafeTensors::deserialize(&map)
            .map_err(|e| user_error!("{file} is not a whole safetensors file ({e}); it may be truncated"))?;
        Ok(Reader { map, file })
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.map).expect("checked when opened")
    }

    /// The names it holds, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().names().into_iter().map(str::to_string).collect();
        names.sort();
        names
    }

    /// Whether it holds `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    /// Extents of a tensor.
    ///
    /// # Errors
    /// A missing tensor.
    pub fn shape(&self, name: &str) -> anyhow::Result<Vec<usize>> {
        Ok(self.tensor(name)?.shape().to_vec())
    }

    /// Elements of a 32- or 64-bit integer tensor.
    ///
    /// # Errors
    /// A missing tensor or another type.
    pub fn integers(&self, name: &str) -> anyhow::Result<Vec<i64>> {
        let view = self.tensor(name)?;
        Ok(match view.dtype() {
            Dtype::I64 => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8"))).collect(),
            Dtype::I32 => {
                view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("4")) as i64).collect()
            }
            Dtype::U32 => {
                view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4")) as i64).collect()
            }
            other => user_bail!("{}: {name} has type {other:?}, integers were expected", self.file),
        })
    }

    /// Shape and elements of a floating-point tensor, widened to f32; f64 and f16 are converted.
    ///
    /// # Errors
    /// A missing tensor, or a type that is no floating point.
    pub fn floats(&self, name: &str) -> anyhow::Result<(Shape, Vec<f32>)> {
        let view = self.tensor(name)?;
        let data = view.data();
        let values = match view.dtype() {
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
        if view.shape().len() > crate::tensor::shape::DIMS_MAX {
            user_bail!("{}: {name} has {} dimensions", self.file, view.shape().len());
        }
        Ok((Shape::from(view.shape()), values))
    }

    fn tensor(&self, name: &str) -> anyhow::Result<safetensors::tensor::TensorView<'_>> {
        self.tensors().tensor(name).map_err(|_| user_error!("{} holds no tensor {name}", self.file))
    }
}
