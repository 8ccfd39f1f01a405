//! Compiles the CUDA files beside this one with the real nvcc: PTX with source lines, kept in the target folder by its sources' digest.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

/// Virtual architecture of a compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    Sm80,
    Sm90a,
}

impl Arch {
    fn flag(self) -> &'static str {
        match self {
            Arch::Sm80 => "compute_80",
            Arch::Sm90a => "compute_90a",
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// nvcc as the build script looks for it: `CUDA_HOME`, `PATH`, the repository's `.cuda/`.
fn nvcc() -> PathBuf {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cuda/bin/nvcc");
    let found = home.into_iter().chain(on_path).chain([own]).find(|candidate| candidate.is_file());
    found.expect("nvcc is missing; run tools/get-nvcc")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// FNV-1a.
fn digest(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// PTX by stem and architecture.
type Compiled = HashMap<(String, Arch), Arc<str>>;

/// The PTX of `STEM.cu`.
pub fn ptx(stem: &str, arch: Arch) -> Arc<str> {
    static DONE: LazyLock<Mutex<Compiled>> = LazyLock::new(Mutex::default);
    // Held while nvcc runs: one compilation at a time, and none twice.
    let mut done = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let entry = done.entry((stem.to_string(), arch)).or_insert_with(|| compile(stem, arch).into());
    Arc::clone(entry)
}

fn compile(stem: &str, arch: Arch) -> String {
    let nvcc = nvcc();
    let source = folder().join(format!("{stem}.cu"));
    let headers = [read(&folder().join("ptx.cuh")), read(&folder().join("hopper.cuh"))];
    let version = nvcc.to_string_lossy();
    let digest = digest(&[&read(&source), &headers[0], &headers[1], &version, arch.flag()]);
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}-{}-{digest:016x}.ptx", arch.flag()));
    if out.is_file() {
        return read(&out);
    }
    let unfinished = out.with_extension(format!("{}.tmp", std::process::id()));
    let arch_flag = format!("-arch={}", arch.flag());
    let result = Command::new(&nvcc)
        .args(["--ptx", &arch_flag, "-std=c++17", "-lineinfo", "-o"])
        .args([&unfinished, &source])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    let said = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "nvcc cannot compile {stem}.cu for {}:\n{said}", arch.flag());
    std::fs::rename(&unfinished, &out).expect("a place in the target folder");
    read(&out)
}

/// Every CUDA file with the architectures that it is for: a file that includes `hopper.cuh` needs sm_90a.
pub fn all() -> Vec<(String, Vec<Arch>)> {
    let mut files: Vec<(String, Vec<Arch>)> = std::fs::read_dir(folder())
        .expect("the folder of the kernels")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .map(|path| {
            let stem = path.file_stem().expect("a file").to_string_lossy().into_owned();
            let hopper = read(&path).contains("hopper.cuh");
            (stem, if hopper { vec![Arch::Sm90a] } else { vec![Arch::Sm80, Arch::Sm90a] })
        })
        .collect();
    files.sort();
    files
}
