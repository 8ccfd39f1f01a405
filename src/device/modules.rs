//! The kernels inside this executable, as tables that the build script wrote.

/// A kernel, as its `.cu` file declares it.
#[derive(Debug)]
pub struct Kernel {
    /// The PTX symbol, the launcher, and the bench row.
    pub name: &'static str,
    /// Its file: `kernels/STEM.cu`.
    pub stem: &'static str,
    /// The one architecture that the file is written for; empty for all.
    pub only: &'static str,
    pub line: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor holds at least.
    pub blocks_min: u32,
    /// Names of the parameters.
    pub params: &'static [&'static str],
}

/// A file compiled for an architecture.
#[derive(Clone, Debug)]
pub struct Module {
    pub stem: &'static str,
    /// `sm_80`, `sm_90a`, ...
    pub arch: &'static str,
    pub ptx: &'static str,
    pub cubin: &'static [u8],
}

/// What ptxas reported about a kernel.
#[derive(Debug)]
pub struct Usage {
    pub kernel: &'static str,
    pub arch: &'static str,
    pub registers: u32,
    pub stack_bytes: u32,
    pub spill_bytes: u32,
    /// Static shared memory.
    pub shared_bytes: u32,
    /// Performance notes (C75xx).
    pub notes: &'static [&'static str],
}

/// A file under `kernels/`, for compilation at run time.
#[derive(Debug)]
pub struct Source {
    pub path: &'static str,
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

impl Kernel {
    /// Whether it is written for a device of this capability.
    pub fn is_for(&self, capability: super::driver::Capability) -> bool {
        self.only.is_empty() || rank(self.only, capability).is_some()
    }
}

/// How well an architecture suits a device; none where the device does not run its code. One with a letter (`sm_90a`) runs on that
/// capability alone.
fn rank(arch: &str, capability: super::driver::Capability) -> Option<(u32, bool)> {
    let device = capability.major * 10 + capability.minor;
    let digits: String = arch.chars().filter(char::is_ascii_digit).collect();
    let number: u32 = digits.parse().ok()?;
    let exact_only = arch.ends_with(|c: char| c.is_ascii_alphabetic());
    (if exact_only { number == device } else { number <= device }).then_some((number, exact_only))
}

/// The module of `stem` that a device of this capability runs best: the one made for exactly it, else the newest that it
/// still runs.
pub fn best(stem: &str, capability: super::driver::Capability) -> Option<&'static Module> {
    let fitting = MODULES.iter().filter(|module| module.stem == stem);
    let fitting = fitting.filter_map(|module| Some((rank(module.arch, capability)?, module)));
    fitting.max_by_key(|(rank, _)| *rank).map(|(_, module)| module)
}

/// The text of `kernels/STEM.cu` with its includes in place, each once: what NVRTC compiles.
///
/// # Errors
/// An include that is not in the table.
pub fn whole_source(stem: &str) -> Result<String, String> {
    let mut seen = Vec::new();
    expand(&format!("kernels/{stem}.cu"), &mut seen)
}

fn expand(path: &str, seen: &mut Vec<String>) -> Result<String, String> {
    let source =
        SOURCES.iter().find(|source| source.path == path).ok_or(format!("{path} is not in this executable"))?;
    seen.push(path.to_string());
    let mut out = String::new();
    for line in source.text.lines() {
        match line.trim().strip_prefix("#include \"").and_then(|rest| rest.split('"').next()) {
            Some(name) => {
                let header = beside(path, name);
                if !seen.contains(&header) {
                    out += &expand(&header, seen)?;
                }
            }
            None if line.trim() == "#pragma once" => {}
            None => out += line,
        }
        out.push('\n');
    }
    Ok(out)
}

/// The path that `name` means in the file `path`.
fn beside(path: &str, name: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::driver::Capability;

    #[test]
    fn a_file_with_its_headers_each_once() {
        let text = whole_source("add").unwrap();
        assert_eq!(text.matches("struct bf16 {").count(), 1);
        assert!(!text.contains("#include") && text.contains("add_fwd_vector_f32"));
        assert!(whole_source("no_such").unwrap_err().contains("kernels/no_such.cu"));
    }

    #[test]
    fn every_device_gets_the_best_module_it_can_run() {
        if MODULES.is_empty() {
            return; // built without nvcc
        }
        let arch = |major, minor| best("add", Capability { major, minor }).map(|module| module.arch);
        assert_eq!(arch(7, 5), None);
        assert_eq!(
            [arch(8, 0), arch(8, 9), arch(9, 0), arch(10, 0), arch(12, 0)].map(Option::unwrap),
            ["sm_80", "sm_80", "sm_90a", "sm_80", "sm_80"]
        );
    }

    #[test]
    fn a_file_for_one_architecture_is_for_that_alone() {
        let kernel = |stem: &str| KERNELS.iter().find(|kernel| kernel.stem == stem).unwrap();
        for (major, minor, is_for) in [(8, 0, false), (9, 0, true), (10, 0, false)] {
            let capability = Capability { major, minor };
            assert_eq!(kernel("gemm_wgmma").is_for(capability), is_for, "{capability}");
            assert!(kernel("gemm_mma").is_for(capability), "{capability}");
            assert!(is_for || best("gemm_wgmma", capability).is_none(), "{capability}");
        }
    }
}
