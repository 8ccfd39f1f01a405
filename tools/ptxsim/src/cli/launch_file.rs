//! Launch files: a kernel, its geometry, buffers and arguments as JSON; paths are relative to the file's folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ptxsim::error;
use ptxsim::host::{Arg, Device};
use ptxsim::launch::{Geometry, Outcome};
use ptxsim::options::{Options, TensorMode};
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, TensorMap};
use serde::Deserialize;

/// A launch file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    ptx: PathBuf,
    entry: String,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: Option<[u32; 3]>,
    #[serde(default)]
    dynamic_smem_bytes: u32,
    #[serde(default)]
    buffers: BTreeMap<String, Buffer>,
    #[serde(default)]
    args: Vec<ArgFile>,
    #[serde(default)]
    outputs: BTreeMap<String, PathBuf>,
    /// One run per seed; the first run's outputs are written.
    #[serde(default)]
    seeds: Vec<u64>,
    #[serde(default)]
    mode: Mode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Buffer {
    bytes: u64,
    init: Init,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Init {
    /// Nobody wrote it: reading it is a finding.
    Poison,
    Zero,
    /// From a file of that size, or of a smaller one for a part.
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ArgFile {
    Buffer(String),
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    TensorMap(MapFile),
}

/// A tensor map over a buffer, innermost dimension first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    buffer: String,
    dtype: String,
    dims: Vec<u64>,
    /// Of dimensions 1 and up.
    #[serde(default)]
    strides_bytes: Vec<u64>,
    #[serde(rename = "box")]
    box_dims: Vec<u32>,
    #[serde(default)]
    swizzle: SwizzleFile,
    #[serde(default)]
    fill: FillFile,
}

#[derive(Clone, Copy, Default, Deserialize)]
enum SwizzleFile {
    #[default]
    #[serde(rename = "none")]
    None,
    #[serde(rename = "32B")]
    B32,
    #[serde(rename = "64B")]
    B64,
    #[serde(rename = "128B")]
    B128,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FillFile {
    #[default]
    Zero,
    Nan,
}

/// `"exact"`, `"fast"`, or every option by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Mode {
    Tensor(TensorMode),
    Options(Box<Options>),
}

impl Default for Mode {
    fn default() -> Mode {
        Mode::Tensor(TensorMode::default())
    }
}

/// A launch file with the files that it names.
pub struct LaunchFile {
    content: Content,
    folder: PathBuf,
    /// Text of the PTX file.
    pub ptx: String,
    /// What every buffer holds before a launch, where it holds anything.
    initial: BTreeMap<String, Option<Vec<u8>>>,
}

impl LaunchFile {
    /// Reads a launch file, its PTX and the contents of its buffers.
    ///
    /// # Errors
    /// A file that cannot be read or understood, or does not fit its buffer.
    pub fn read(path: &Path) -> Result<LaunchFile> {
        let text = super::read_text(path)?;
        let content: Content =
            serde_json::from_str(&text).with_context(|| format!("{} is no launch file", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        let ptx = super::read_text(&folder.join(&content.ptx))?;
        let mut initial = BTreeMap::new();
        for (name, buffer) in &content.buffers {
            let bytes = match &buffer.init {
                Init::Poison => None,
                Init::Zero => Some(vec![0; buffer.bytes as usize]),
                Init::File(file) => {
                    let file = folder.join(file);
                    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
                    if bytes.len() as u64 > buffer.bytes {
                        let (have, file) = (bytes.len(), file.display());
                        bail!("buffer {name} has {} bytes, too small for its file {file} of {have}", buffer.bytes);
                    }
                    Some(bytes)
                }
            };
            initial.insert(name.clone(), bytes);
        }
        if let Some(name) = content.outputs.keys().find(|name| !content.buffers.contains_key(*name)) {
            bail!("outputs: no buffer is called {name}");
        }
        Ok(LaunchFile { content, folder, ptx, initial })
    }

    /// The kernel's name.
    pub fn entry(&self) -> &str {
        &self.content.entry
    }

    /// The options of each run: one per seed.
    pub fn runs(&self) -> Vec<Options> {
        let base = match &self.content.mode {
            Mode::Tensor(tensor) => Options { tensor: *tensor, ..Options::default() },
            Mode::Options(options) => (**options).clone(),
        };
        match self.content.seeds.as_slice() {
            [] => vec![base],
            seeds => seeds.iter().map(|&seed| Options { seed, ..base.clone() }).collect(),
        }
    }

    /// Runs the kernel of this PTX text on a fresh device: what it gave, and the bytes of every output.
    ///
    /// # Errors
    /// What the device refuses: the module, the entry, the arguments or the launch.
    pub fn run(&self, ptx: &str, options: &Options) -> error::Result<(Outcome, BTreeMap<String, Vec<u8>>)> {
        let mut device = Device::new();
        let mut addresses = BTreeMap::new();
        for (name, buffer) in &self.content.buffers {
            let address = device.alloc_named(buffer.bytes, name)?;
            if let Some(Some(bytes)) = self.initial.get(name) {
                device.write(address, bytes)?;
            }
            addresses.insert(name.as_str(), address);
        }
        let file = self.folder.join(&self.content.ptx);
        let module = device.load(&file.display().to_string(), ptx)?;
        let function = module.function(&self.content.entry)?;
        let args = self.content.args.iter().map(|arg| arg.value(&addresses)).collect::<error::Result<Vec<_>>>()?;
        let Content { grid, block, cluster, dynamic_smem_bytes, .. } = self.content;
        let geometry = Geometry { grid, block, cluster, dynamic_bytes: dynamic_smem_bytes };
        let outcome = device.launch(&function, &geometry, &args, options)?;
        let mut outputs = BTreeMap::new();
        for name in self.content.outputs.keys() {
            let mut bytes = vec![0; self.content.buffers[name].bytes as usize];
            device.read(addresses[name.as_str()], &mut bytes)?;
            outputs.insert(name.clone(), bytes);
        }
        Ok((outcome, outputs))
    }

    /// Writes outputs to the files that they are for.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, outputs: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        for (name, path) in &self.content.outputs {
            let path = self.folder.join(path);
            std::fs::write(&path, &outputs[name]).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn address(addresses: &BTreeMap<&str, u64>, name: &str) -> error::Result<u64> {
    let known = || addresses.keys().copied().collect::<Vec<_>>().join(", ");
    let unknown = || error::Error::Host(format!("args: no buffer is called {name}; there are: {}", known()));
    addresses.get(name).copied().ok_or_else(unknown)
}

impl ArgFile {
    fn value(&self, addresses: &BTreeMap<&str, u64>) -> error::Result<Arg> {
        Ok(match self {
            ArgFile::Buffer(name) => Arg::Pointer(address(addresses, name)?),
            ArgFile::U8(value) => Arg::U8(*value),
            ArgFile::U16(value) => Arg::U16(*value),
            ArgFile::U32(value) => Arg::U32(*value),
            ArgFile::I32(value) => Arg::I32(*value),
            ArgFile::U64(value) => Arg::U64(*value),
            ArgFile::I64(value) => Arg::I64(*value),
            ArgFile::F32(value) => Arg::F32(*value),
            ArgFile::F64(value) => Arg::F64(*value),
            ArgFile::TensorMap(map) => Arg::Bytes(map.encode(addresses)?),
        })
    }
}

impl MapFile {
    fn encode(&self, addresses: &BTreeMap<&str, u64>) -> error::Result<Vec<u8>> {
        let refuse = |why: String| error::Error::Host(format!("tensor map of {}: {why}", self.buffer));
        let map = TensorMap {
            data_type: data_type(&self.dtype).ok_or_else(|| refuse(format!("{} is no data type", self.dtype)))?,
            address: address(addresses, &self.buffer)?,
            dims: self.dims.clone(),
            strides_bytes: self.strides_bytes.clone(),
            box_dims: self.box_dims.clone(),
            element_strides: vec![1; self.dims.len()],
            swizzle: match self.swizzle {
                SwizzleFile::None => Swizzle::None,
                SwizzleFile::B32 => Swizzle::B32,
                SwizzleFile::B64 => Swizzle::B64,
                SwizzleFile::B128 => Swizzle::B128,
            },
            fill: match self.fill {
                FillFile::Zero => Fill::Zero,
                FillFile::Nan => Fill::Nan,
            },
            im2col: None,
        };
        map.encode().map(|bytes| bytes.to_vec()).map_err(refuse)
    }
}

fn data_type(name: &str) -> Option<DataType> {
    Some(match name {
        "u8" => DataType::U8,
        "u16" => DataType::U16,
        "u32" => DataType::U32,
        "i32" => DataType::I32,
        "u64" => DataType::U64,
        "i64" => DataType::I64,
        "f16" => DataType::F16,
        "f32" => DataType::F32,
        "f64" => DataType::F64,
        "bf16" => DataType::Bf16,
        "tf32" => DataType::Tf32,
        _ => return None,
    })
}
