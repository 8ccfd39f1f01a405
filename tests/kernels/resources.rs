//! What the kernels take of a multiprocessor, by ptxas: the table in `kernels/README.md` is that of this build.
//!
//! `NANOCHAT_WRITE_TABLES=1 cargo test --release --test suite kernels::resources` writes it.

use nanochat_gpu::device::gemm::WGMMA_SMEM_BYTES;
use nanochat_gpu::device::modules::{COMPILER, KERNELS, Kernel, MODULES, USAGE, Usage};
use nanochat_gpu::ops::attention::flash_smem_bytes;
use nanochat_gpu::ops::delta_rule::KEY_CHANNELS_SMEM_BYTES;
use std::fmt::Write as _;

const README: &str = "kernels/README.md";
const START: &str = "<!-- resources -->";
const END: &str = "<!-- /resources -->";
/// The release whose numbers the table has (`tools/get-nvcc`); another ptxas allocates otherwise.
const RELEASE: &str = "13.0.88";

/// Limits of a multiprocessor (CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability").
struct Multiprocessor {
    arch: &'static str,
    /// Shared memory for blocks, of which each takes 1 KiB more than it asks for.
    smem_bytes: u32,
}

const MULTIPROCESSORS: [Multiprocessor; 2] =
    [Multiprocessor { arch: "sm_80", smem_bytes: 164 << 10 }, Multiprocessor { arch: "sm_90a", smem_bytes: 228 << 10 }];
const WARPS_MAX: u32 = 64;
const BLOCKS_MAX: u32 = 32;
const REGISTERS: u32 = 65_536;
const SMEM_OF_A_BLOCK: u32 = 1 << 10;

impl Multiprocessor {
    /// Blocks of a kernel that it holds at the same time. Registers go to warps in units of 256, warps in fours.
    fn blocks(&self, kernel: &Kernel, usage: &Usage, smem_bytes: u32) -> u32 {
        let warps = kernel.threads.div_ceil(32);
        let of_a_warp = (usage.registers * 32).next_multiple_of(256);
        let by_registers = REGISTERS / of_a_warp / 4 * 4 / warps;
        let by_smem = self.smem_bytes / ((smem_bytes + SMEM_OF_A_BLOCK).next_multiple_of(128));
        by_registers.min(by_smem).min(WARPS_MAX / warps).min(BLOCKS_MAX)
    }
}

/// Dynamic shared memory where it is the same for every launch.
fn dynamic_bytes(kernel: &Kernel) -> u32 {
    let width = kernel.name.split("_d").nth(1).and_then(|rest| rest.split('_').next()?.parse().ok());
    match (kernel.stem, width) {
        ("attention_flash", Some(d)) => flash_smem_bytes(d)[usize::from(kernel.name.contains("key_tiles"))] as u32,
        ("paged_attention", Some(d)) => flash_smem_bytes(d)[0] as u32,
        ("delta_rule", _) if kernel.name.contains("key_channels") => KEY_CHANNELS_SMEM_BYTES as u32,
        ("gemm_wgmma", _) => WGMMA_SMEM_BYTES as u32,
        _ => 0,
    }
}

/// A row per kernel: registers, shared memory, and the share of 64 warps that a multiprocessor then holds.
fn table() -> String {
    let mut text = format!(
        "By ptxas {RELEASE}; no kernel spills or has a stack. Dynamic shared memory counts where every launch has the same.\n\
         Occupancy: blocks of a multiprocessor, and their share of its 64 warps.\n\n\
         | kernel | threads | shared bytes |"
    );
    MULTIPROCESSORS.iter().for_each(|m| write!(text, " {0} registers | {0} occupancy |", m.arch).unwrap());
    text += "\n|---|---|---|---|---|---|---|\n";
    for kernel in KERNELS {
        let used = |arch: &str| USAGE.iter().find(|u| u.kernel == kernel.name && u.arch == arch);
        let any = MULTIPROCESSORS.iter().find_map(|m| used(m.arch)).unwrap();
        let smem_bytes = any.shared_bytes + dynamic_bytes(kernel);
        write!(text, "| `{}` | {} | {smem_bytes} |", kernel.name, kernel.threads).unwrap();
        for multiprocessor in &MULTIPROCESSORS {
            let Some(usage) = used(multiprocessor.arch) else {
                text += " - | - |"; // a kernel for another architecture
                continue;
            };
            let blocks = multiprocessor.blocks(kernel, usage, smem_bytes);
            let share = 100 * blocks * kernel.threads.div_ceil(32) / WARPS_MAX;
            write!(text, " {} | {blocks} x, {share} % |", usage.registers).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_table_is_that_of_this_build() {
    let archs = || MULTIPROCESSORS.iter().map(|m| m.arch);
    if COMPILER != RELEASE || !archs().all(|arch| USAGE.iter().any(|usage| usage.arch == arch)) {
        return; // another compiler, none, or other architectures: other numbers
    }
    let readme = std::fs::read_to_string(README).unwrap();
    let (before, rest) = readme.split_once(START).expect("the table's first mark");
    let (old, after) = rest.split_once(END).expect("the table's last mark");
    let new = format!("\n{}", table());
    if std::env::var_os("NANOCHAT_WRITE_TABLES").is_some() {
        return std::fs::write(README, format!("{before}{START}{new}{END}{after}")).unwrap();
    }
    let stale = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    assert!(old == new, "the table in {README} is stale: NANOCHAT_WRITE_TABLES=1 writes it; first {stale:?}");
}

/// Nothing lies in local memory, and a block fits as often as its launch bounds say.
#[test]
fn no_kernel_spills_and_each_fits() {
    assert_eq!(USAGE.len(), MODULES.iter().map(|m| KERNELS.iter().filter(|k| k.stem == m.stem).count()).sum::<usize>());
    for usage in USAGE {
        let clean = usage.spill_bytes == 0 && usage.stack_bytes == 0 && usage.notes.is_empty();
        assert!(clean && usage.registers > 0, "{usage:?}");
        let kernel = KERNELS.iter().find(|kernel| kernel.name == usage.kernel).unwrap();
        if let Some(m) = MULTIPROCESSORS.iter().find(|m| m.arch == usage.arch) {
            let blocks = m.blocks(kernel, usage, usage.shared_bytes + dynamic_bytes(kernel));
            assert!(blocks >= kernel.blocks_min, "{}: {blocks} blocks of at least {}", kernel.name, kernel.blocks_min);
        }
    }
}
