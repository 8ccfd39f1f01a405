//! `doctor`: says what this machine and this executable have, and launches a kernel of each family.

use super::output::print;
use crate::device::choice::{self, SimMode};
use crate::device::driver::cuda;
use crate::device::gpu::Gpu;
use crate::device::modules::{KERNELS, Kernel, MODULES};
use crate::device::{Device, host_memory_bytes};
use crate::verify::Extent;
use crate::verify::families::{self, FAMILIES};
use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Say what is here: driver, cards, kernels, compilers, memory; and launch a kernel of each family
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu doctor\n  nanochat-gpu doctor --device sim --full --json")]
pub struct DoctorCommand {
    /// Families of kernels to launch (all where none is named)
    #[arg(value_name = "FAMILY", value_parser = family_names())]
    only: Vec<String>,
    /// Where to launch: auto (a card, else the simulator), sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Every case of every family, so that every kernel is launched; not one of each
    #[arg(long)]
    full: bool,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    cpu: Vec<&'static str>,
    cores: usize,
    memory_available_bytes: u64,
    memory_total_bytes: u64,
    /// Kernels inside this executable, and the architectures they are compiled for.
    kernels: usize,
    /// Those among them that are written for the device, where there is one.
    kernels_for_device: usize,
    architectures: Vec<&'static str>,
    nvcc: Option<PathBuf>,
    nvrtc: bool,
    /// Name and compute capability of every card, or why there are none.
    cards: Vec<String>,
    driver: Option<String>,
    device: Option<String>,
    families: Vec<Family>,
    /// Kernels for the device that no family launched.
    not_launched: Vec<&'static str>,
}

#[derive(Serialize)]
struct Family {
    name: &'static str,
    /// Kernels that its cases launched.
    kernels: Vec<&'static str>,
    seconds: f64,
    /// None where it agrees with the CPU.
    error: Option<String>,
}

/// Runs the command. Errors: user errors for a device that is not there; a kernel that computes something else than the CPU.
pub fn run(command: DoctorCommand) -> anyhow::Result<()> {
    let (available, total) = host_memory_bytes();
    let (cards, driver) = match cuda::cards() {
        Ok(cards) => (cards.iter().map(|(name, capability)| format!("{name}, {capability}")).collect(), None),
        Err(why) => (Vec::new(), Some(why.to_string())),
    };
    let mut architectures: Vec<&str> = MODULES.iter().map(|module| module.arch).collect();
    architectures.sort_unstable();
    architectures.dedup();
    let name = match &command.device[..] {
        "auto" if choice::auto() != "cpu" => Some(choice::auto()),
        "auto" => (!MODULES.is_empty()).then_some("sim"),
        given => Some(given),
    };
    let device = name.map(|name| choice::open(name, SimMode::Checked)).transpose()?;
    let extent = if command.full { Extent::All } else { Extent::One };
    let families = match device {
        Some(Device::Gpu(gpu)) => {
            gpu.take_launched();
            let asked = |name: &str| command.only.is_empty() || command.only.iter().any(|only| only == name);
            FAMILIES.iter().filter(|family| asked(family.name)).map(|family| check(family, gpu, extent)).collect()
        }
        _ => Vec::new(),
    };
    let launched: BTreeSet<&str> = families.iter().flat_map(|family: &Family| family.kernels.iter().copied()).collect();
    let capability = match device {
        Some(Device::Gpu(gpu)) => Some(gpu.driver().capability()),
        _ => None,
    };
    let is_for_device = |kernel: &&Kernel| capability.is_some_and(|capability| kernel.is_for(capability));
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("NANOCHAT_COMMIT"),
        cpu: cpu_features(),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory_available_bytes: available,
        memory_total_bytes: total,
        kernels: KERNELS.len(),
        kernels_for_device: KERNELS.iter().filter(is_for_device).count(),
        architectures,
        nvcc: find_nvcc(),
        nvrtc: cuda::nvrtc_present(),
        cards,
        driver,
        device: device.and_then(|device| match device {
            Device::Gpu(gpu) => Some(gpu.driver().name()),
            Device::Cpu => None,
        }),
        families,
        not_launched: KERNELS
            .iter()
            .filter(is_for_device)
            .map(|kernel| kernel.name)
            .filter(|name| !launched.contains(name))
            .collect(),
    };
    let mut text = describe(&report);
    if command.json {
        text += &format!("{}\n", serde_json::to_string(&report)?);
    }
    print(text.as_bytes())?;
    let wrong: Vec<&str> = report.families.iter().filter(|f| f.error.is_some()).map(|f| f.name).collect();
    if !wrong.is_empty() {
        bail!("{} of {} families of kernels are wrong here: {}", wrong.len(), report.families.len(), wrong.join(", "));
    }
    Ok(())
}

fn family_names() -> PossibleValuesParser {
    PossibleValuesParser::new(FAMILIES.iter().map(|family| family.name))
}

fn check(family: &families::Family, gpu: &'static Gpu, extent: Extent) -> Family {
    let start = Instant::now();
    let error = family.check(gpu, extent).err();
    Family { name: family.name, kernels: gpu.take_launched(), seconds: start.elapsed().as_secs_f64(), error }
}

fn describe(report: &Report) -> String {
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let mut text = format!("nanochat-gpu   {}, commit {}\n", report.version, report.commit);
    text += &format!("processor      {} cores, {}\n", report.cores, report.cpu.join(" "));
    let (available, total) = (gib(report.memory_available_bytes), gib(report.memory_total_bytes));
    text += &format!("memory         {available:.1} of {total:.1} GiB available\n");
    text += &match report.architectures.is_empty() {
        true => "kernels        none inside: built without nvcc (tools/get-nvcc)\n".to_string(),
        false => format!("kernels        {} for {}\n", report.kernels, report.architectures.join(", ")),
    };
    let nvcc = report.nvcc.as_ref().map_or("not found".to_string(), |path| path.display().to_string());
    text += &format!("nvcc           {nvcc}\nNVRTC          {}\n", if report.nvrtc { "found" } else { "not found" });
    text += &match &report.driver {
        Some(why) => format!("cards          {why}\n"),
        None => format!("cards          {}\n", report.cards.join("; ")),
    };
    if let Some(device) = &report.device {
        text += &format!("launched on    {device}\n");
    }
    for Family { name, kernels, error, .. } in &report.families {
        let verdict = error.as_deref().unwrap_or("agrees with the CPU");
        text += &format!("  {name:<16} {:>2} kernels  {verdict}\n", kernels.len());
    }
    if !report.families.is_empty() {
        let of = report.kernels_for_device;
        text += &format!("launched       {} of {of} kernels for it\n", of - report.not_launched.len());
    }
    text
}

fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features = [(std::env::consts::ARCH, true)];
    features.iter().filter(|(_, here)| *here).map(|(name, _)| *name).collect()
}

/// Where the build script would find nvcc.
fn find_nvcc() -> Option<PathBuf> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let usual = [PathBuf::from("/usr/local/cuda/bin/nvcc"), PathBuf::from(".cuda/bin/nvcc")];
    home.into_iter().chain(on_path).chain(usual).find(|candidate| candidate.is_file())
}
