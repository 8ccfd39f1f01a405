//! Where memory and work live. Ops ask their tensors for the device and run there; nothing above asks which one it is.

pub mod choice;
pub mod cpu;
pub mod driver;
pub mod gemm;
pub mod gpu;
pub mod launch;
pub mod modules;
pub mod packed;
pub mod recording;
pub mod signature;
#[cfg(target_arch = "x86_64")]
mod gemm_avx2;

use gpu::Gpu;
use std::fmt;

/// The device that memory lies on and ops run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Device {
    /// This machine's processor: vectorised by run-time detection, threaded by rayon.
    #[default]
    Cpu,
    /// A card, or the simulator.
    Gpu(&'static Gpu),
}

impl Device {
    /// Whether it is a card or the simulator.
    pub fn is_gpu(self) -> bool {
        matches!(self, Device::Gpu(_))
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// What went wrong on a GPU since the last call.
    pub fn synchronise(self) -> driver::Result<()> {
        match self {
            Device::Cpu => Ok(()),
            Device::Gpu(gpu) => gpu.synchronise(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(gpu) => gpu.fmt(f),
        }
    }
}

/// Bytes of memory of the machine: `(available now, total)`; a container's limit counts. `u64::MAX` where the
/// system does not tell.
pub fn host_memory_bytes() -> (u64, u64) {
    let Ok(mut system) = sysinfo::System::new() else { return (u64::MAX, u64::MAX) };
    system.refresh_memory();
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 && limits.total_memory < system.total_memory() => {
            (limits.free_memory.min(system.available_memory()), limits.total_memory)
        }
        _ => (system.available_memory(), system.total_memory()),
    }
}

/// Most bytes of memory this process ever held (`VmHWM`), 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// Bytes of memory this process holds now (`VmRSS`), 0 where the system does not tell.
pub fn resident_memory_bytes() -> u64 {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
