//! Build script: compiles `kernels/*.cu`, writes a typed launcher per kernel, and tells the program its commit.
//!
//! With nvcc (`CUDA_HOME`, `PATH`, `/usr/local/cuda`, the repository's `.cuda/`) every file becomes PTX and a cubin for each
//! architecture of `NANOCHAT_CUDA_ARCHS` (`sm_80,sm_90a` where unset), one that says `// Only for sm_90a.` for that alone; only
//! what changed is compiled again. Without nvcc the launchers are the same and the tables of modules empty. The GPU of the build host is never asked.

#[path = "src/device/signature.rs"]
mod signature;

use signature::{Kind, Scalar, Signature};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const ARCHS: &str = "sm_80,sm_90a";
/// Opens the line of a `.cu` file that names the one architecture it is written for.
const ONLY_FOR: &str = "// Only for ";

/// A `.cu` file with everything that it includes.
struct Source {
    stem: String,
    kernels: Vec<Signature>,
    /// The one architecture that it is for; empty for all.
    only: String,
    /// Its text and that of its headers: what a compilation depends on.
    texts: Vec<String>,
}

/// What one compilation gave.
struct Compiled {
    stem: String,
    arch: String,
    ptx: PathBuf,
    cubin: PathBuf,
    /// What `ptxas -v` said.
    report: String,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/device/signature.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    // Not PATH: it differs between shells and editors, and each change would rebuild the crate.
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=NANOCHAT_CUDA_ARCHS");
    let git = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = git.ok().filter(|out| out.status.success()).and_then(|out| String::from_utf8(out.stdout).ok());
    println!("cargo:rustc-env=NANOCHAT_COMMIT={}", commit.map_or("unknown".into(), |text| text.trim().to_string()));

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = read_sources(Path::new("kernels"));
    let nvcc = find_nvcc();
    let version = nvcc.as_deref().map(version).unwrap_or_default();
    let compiled = match nvcc {
        Some(nvcc) => compile_all(&nvcc, &version, &sources, &out),
        None => {
            println!(
                "cargo:warning=nvcc was not found: no kernels inside this binary; it computes on the CPU, and on a card through NVRTC. Run tools/get-nvcc and touch build.rs for the kernels and the simulator"
            );
            Vec::new()
        }
    };
    for unit in &compiled {
        check_against_ptx(unit, &sources);
    }
    write_if_changed(&out.join("launch.rs"), &launchers(&sources));
    write_if_changed(&out.join("modules.rs"), &tables(&sources, &compiled, &version));
}

/// Ends the build with a message that cargo shows as it is.
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())))
}

/// A file that is the same keeps its time, so that nothing is compiled again for it.
fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::write(path, text).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
}

fn read_sources(folder: &Path) -> Vec<Source> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| fail(&format!("kernels: {error}")));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    let read_source = |path: &PathBuf| {
        let text = read(path);
        let kernels = signature::parse(&text).unwrap_or_else(|error| fail(&format!("{}, {error}", path.display())));
        let only = text.lines().find_map(|line| line.strip_prefix(ONLY_FOR)).unwrap_or_default();
        let only = only.trim_end_matches('.').to_string();
        let mut seen = BTreeMap::new();
        add_headers(path, text, &mut seen);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Source { stem, kernels, only, texts: seen.into_values().collect() }
    };
    files.iter().map(read_source).collect()
}

/// Adds a file and, once each, what it includes.
fn add_headers(path: &Path, text: String, seen: &mut BTreeMap<PathBuf, String>) {
    let folder = path.parent().unwrap_or(Path::new(""));
    let included: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#include \"")?.split('"').next())
        .map(|name| folder.join(name))
        .collect();
    seen.insert(plain(path), text);
    for header in included {
        if !seen.contains_key(&plain(&header)) {
            add_headers(&header, read(&header), seen);
        }
    }
}

/// The path without `a/..`, so that one file has one name.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() == ".." {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

fn find_nvcc() -> Option<PathBuf> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let usual = [PathBuf::from("/usr/local/cuda/bin/nvcc"), PathBuf::from(".cuda/bin/nvcc")];
    home.into_iter().chain(on_path).chain(usual).find(|candidate| candidate.is_file())
}

/// What nvcc says of itself.
fn version(nvcc: &Path) -> String {
    let said = Command::new(nvcc).arg("--version").output().map(|out| out.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).into_owned()
}

/// Compiles every file for every architecture, several at a time.
fn compile_all(nvcc: &Path, version: &str, sources: &[Source], out: &Path) -> Vec<Compiled> {
    let archs = std::env::var("NANOCHAT_CUDA_ARCHS").unwrap_or(ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).filter(|arch| !arch.is_empty()).collect();
    if let Some(wrong) = archs.iter().find(|arch| !arch.starts_with("sm_")) {
        fail(&format!("NANOCHAT_CUDA_ARCHS names {wrong}; write architectures like {ARCHS}"));
    }
    let mut jobs: Vec<(&Source, &str)> = sources.iter().flat_map(|s| archs.iter().map(move |a| (s, *a))).collect();
    jobs.retain(|(source, arch)| source.only.is_empty() || source.only == *arch);
    let queue = Mutex::new(jobs.into_iter());
    let done = Mutex::new(Vec::new());
    let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, 64);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((source, arch)) = { queue.lock().expect("queue").next() } {
                    let unit = compile(nvcc, version, source, arch, out);
                    done.lock().expect("results").push(unit);
                }
            });
        }
    });
    let mut done = done.into_inner().expect("results");
    done.sort_by(|a, b| (&a.stem, &a.arch).cmp(&(&b.stem, &b.arch)));
    done
}

/// PTX by nvcc, then a cubin of exactly that PTX by ptxas; both kept until the digest of what they come from changes.
fn compile(nvcc: &Path, version: &str, source: &Source, arch: &str, out: &Path) -> Compiled {
    let stem = &source.stem;
    let file = |extension: &str| out.join(format!("{stem}-{arch}.{extension}"));
    let (ptx, cubin, report, stamp) = (file("ptx"), file("cubin"), file("ptxas"), file("digest"));
    let cu = format!("kernels/{stem}.cu");
    let virtual_arch = format!("-arch={}", arch.replace("sm_", "compute_"));
    let flags = ["--ptx", &virtual_arch, "-std=c++17", "-lineinfo", "-Werror", "all-warnings"];
    let mut digested: Vec<&str> = source.texts.iter().map(String::as_str).collect();
    let nvcc_name = nvcc.to_string_lossy();
    digested.extend([version, &nvcc_name, arch, include_str!("build.rs")]);
    digested.extend(flags);
    let digest = format!("{:016x}", fnv1a(&digested));
    if fs::read_to_string(&stamp).is_ok_and(|old| old == digest) {
        return Compiled { stem: stem.clone(), arch: arch.into(), ptx, cubin, report: read(&report) };
    }
    let _ = fs::remove_file(&stamp);
    run(&cu, Command::new(nvcc).args(flags).arg("-o").args([&ptx, Path::new(&cu)]));
    // Line information names files from the repository's root on, whichever machine built it.
    let root = std::env::current_dir().unwrap_or_default();
    write_if_changed(&ptx, &read(&ptx).replace(&format!("\"{}/", root.display()), "\""));
    let ptxas = nvcc.with_file_name("ptxas");
    let arch_flag = format!("-arch={arch}");
    let said =
        run(&cu, Command::new(ptxas).args(["-v", &arch_flag, "--generate-line-info", "-o"]).args([&cubin, &ptx]));
    for (path, text) in [(&report, &said), (&stamp, &digest)] {
        fs::write(path, text).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
    }
    Compiled { stem: stem.clone(), arch: arch.into(), ptx, cubin, report: said }
}

/// Runs a compiler; what it said on stderr.
fn run(cu: &str, command: &mut Command) -> String {
    let shown = format!("{command:?}").replace('"', "");
    let out = command.output().unwrap_or_else(|error| fail(&format!("{cu}: cannot run {shown}: {error}")));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() {
        fail(&format!("{cu} does not compile\n  {shown}\n{said}"));
    }
    said
}

fn fnv1a(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn check_against_ptx(unit: &Compiled, sources: &[Source]) {
    let entries = signature::ptx_entries(&read(&unit.ptx));
    let kernels = sources.iter().filter(|source| source.stem == unit.stem).flat_map(|source| &source.kernels);
    let mut declared = 0;
    for kernel in kernels {
        declared += 1;
        let entry = entries.iter().find(|entry| entry.name == kernel.name);
        let verdict =
            entry.ok_or(format!("{} is not in the PTX", kernel.name)).and_then(|e| signature::agree(kernel, e));
        if let Err(what) = verdict {
            fail(&format!("kernels/{}.cu:{}, {}: {what}", unit.stem, kernel.line, unit.arch));
        }
    }
    if declared != entries.len() {
        fail(&format!("kernels/{}.cu declares {declared} kernels, its PTX has {}", unit.stem, entries.len()));
    }
}

/// `launch.rs`: a function per kernel, whose parameters have the kernel's types.
fn launchers(sources: &[Source]) -> String {
    let mut text = String::new();
    let mut index = 0;
    for source in sources {
        for kernel in &source.kernels {
            let (mut params, mut args) = (String::new(), String::new());
            for param in &kernel.params {
                let name = &param.name;
                let (kind, arg) = match param.kind {
                    Kind::Pointer(elem) => (format!("Ptr<{}>", rust(elem)), format!("{name}.arg()")),
                    Kind::PointerMut(elem) => (format!("PtrMut<{}>", rust(elem)), format!("{name}.arg()")),
                    // Dimensions are usize above the seam; one that does not fit is refused before anything runs.
                    Kind::Value(Scalar::U32) => ("usize".into(), format!("Arg::dimension({name})")),
                    Kind::Value(Scalar::U64) => ("usize".into(), format!("Arg::U64({name} as u64)")),
                    Kind::Value(value) => (rust(value).into(), format!("Arg::{value:?}({name})")),
                };
                write!(params, ", {name}: {kind}").expect("a string");
                write!(args, "{arg}, ").expect("a string");
            }
            let (name, stem, line) = (&kernel.name, &source.stem, kernel.line);
            writeln!(
                text,
                "/// `kernels/{stem}.cu`, line {line}.\n#[allow(clippy::too_many_arguments)] // as many as the kernel has\npub fn {name}(gpu: &Gpu, grid: Grid{params}) {{\n    gpu.launch(&KERNELS[{index}], grid, &[{args}]);\n}}\n"
            )
            .expect("a string");
            index += 1;
        }
    }
    text
}

fn rust(scalar: Scalar) -> &'static str {
    match scalar {
        Scalar::F32 => "f32",
        Scalar::F64 => "f64",
        Scalar::Bf16 => "bf16",
        Scalar::U32 => "u32",
        Scalar::I32 => "i32",
        Scalar::U64 => "u64",
    }
}

/// `modules.rs`: the compiler's release, the kernels, the compiled modules, what ptxas reported, and the sources for NVRTC.
fn tables(sources: &[Source], compiled: &[Compiled], version: &str) -> String {
    let root = std::env::current_dir().unwrap_or_else(|error| fail(&format!("the working folder: {error}")));
    // `Cuda compilation tools, release 13.0, V13.0.88`
    let release = version
        .split(|c: char| c.is_whitespace() || c == ',')
        .find_map(|word| word.strip_prefix('V').filter(|number| number.starts_with(|c: char| c.is_ascii_digit())));
    let mut text = format!(
        "/// The release of nvcc that compiled the kernels; empty without one.\npub static COMPILER: &str = {:?};\n\npub static KERNELS: &[Kernel] = &[\n",
        release.unwrap_or_default()
    );
    for source in sources {
        for Signature { name, line, threads, blocks_min, params } in &source.kernels {
            let params: Vec<&str> = params.iter().map(|param| &param.name[..]).collect();
            let Source { stem, only, .. } = source;
            writeln!(
                text,
                "    Kernel {{ name: {name:?}, stem: {stem:?}, only: {only:?}, line: {line}, threads: {threads}, blocks_min: {blocks_min}, params: &{params:?} }},"
            )
            .expect("a string");
        }
    }
    text += "];\n\npub static MODULES: &[Module] = &[\n";
    for Compiled { stem, arch, ptx, cubin, .. } in compiled {
        writeln!(
            text,
            "    Module {{ stem: {stem:?}, arch: {arch:?}, ptx: include_str!({ptx:?}), cubin: include_bytes!({cubin:?}) }},"
        )
        .expect("a string");
    }
    text += "];\n\npub static USAGE: &[Usage] = &[\n";
    compiled.iter().for_each(|unit| usage(&mut text, unit));
    text += "];\n\npub static SOURCES: &[Source] = &[\n";
    for folder in ["kernels", "kernels/common", "kernels/ptx"] {
        let mut files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"));
        files.sort();
        for path in files {
            writeln!(text, "    Source {{ path: {path:?}, text: include_str!({:?}) }},", root.join(&path))
                .expect("a string");
        }
    }
    text + "];\n"
}

/// The lines of `ptxas -v` about each kernel, as rows.
fn usage(text: &mut String, unit: &Compiled) {
    let number_before = |line: &str, mark: &str| -> u32 {
        let before = line.split(mark).next().unwrap_or_default();
        let digits = before.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        if line.contains(mark) { digits.parse().unwrap_or(0) } else { 0 }
    };
    let arch = &unit.arch;
    let sections: Vec<&str> = unit.report.split("Compiling entry function '").skip(1).collect();
    for section in sections {
        let kernel = section.split('\'').next().unwrap_or_default();
        let of = |mark: &str| section.lines().map(|line| number_before(line, mark)).max().unwrap_or(0);
        let notes: Vec<&str> = section.lines().filter(|line| line.contains("(C7")).map(str::trim).collect();
        writeln!(
            text,
            "    Usage {{ kernel: {kernel:?}, arch: {arch:?}, registers: {}, stack_bytes: {}, spill_bytes: {}, shared_bytes: {}, notes: &{notes:?} }},",
            // `Used 8 registers`: the number stands before the word.
            of(" registers"),
            of(" bytes stack frame"),
            of(" bytes spill stores") + of(" bytes spill loads"),
            of(" bytes smem"),
        )
        .expect("a string");
    }
}
