//! What ptxas made of the kernels: tensor-core instructions where they are meant, and nowhere else.

use nanochat_gpu::device::modules::{KERNELS, MODULES};
use std::path::PathBuf;
use std::process::Command;

/// Files whose kernels multiply on tensor cores.
const TENSOR_CORES: &[&str] =
    &["attention_flash", "gemm_mma", "gemm_mma_narrow", "gemm_packed", "gemm_rows", "mlp", "paged_attention"];
/// Of these the files that read operands as they lie in global memory.
const WITHOUT_SHARED: &[&str] = &["gemm_packed", "gemm_rows"];
/// Files that multiply by whole warpgroups instead, out of shared memory.
const WARPGROUPS: &[&str] = &["gemm_wgmma"];
/// How the names of kernels among them begin that multiply elsewhere or not at all.
const PLAIN: &[&str] = &[
    "attention_flash_bwd_delta_rows_bf16",
    "paged_attention_fwd_write_rows",
    "paged_attention_fwd_split_keys",
    "paged_attention_fwd_combine",
];

/// The disassembler beside the compiler, in the order in which the build looks for that.
fn disassembler() -> PathBuf {
    let home = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(std::env::split_paths(&path));
    let usual = ["/usr/local/cuda/bin", ".cuda/bin"].map(PathBuf::from);
    let found = folders.chain(usual).map(|folder| folder.join("nvdisasm")).find(|file| file.is_file());
    found.expect("no nvdisasm beside nvcc; tools/get-nvcc fetches it")
}

/// Names and texts of the functions of a cubin.
fn functions(cubin: &[u8]) -> Vec<(String, String)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), cubin).unwrap();
    let out = Command::new(disassembler()).arg("-c").arg(file.path()).output().unwrap();
    assert!(out.status.success(), "nvdisasm: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let sections = text.split(".section\t.text.").skip(1);
    sections.map(|section| (section.split(',').next().unwrap().to_string(), section.to_string())).collect()
}

#[test]
fn tensor_cores_where_they_are_meant() {
    for module in MODULES {
        let functions = functions(module.cubin);
        for kernel in KERNELS.iter().filter(|kernel| kernel.stem == module.stem) {
            let function = functions.iter().find(|(name, _)| name == kernel.name);
            let (_, text) = function.unwrap_or_else(|| panic!("{} is not in its cubin", kernel.name));
            let meant =
                TENSOR_CORES.contains(&kernel.stem) && !PLAIN.iter().any(|start| kernel.name.starts_with(start));
            let count = text.matches(" HMMA.16816.F32.BF16").count();
            let of_warpgroups = text.matches(" HGMMA.64x256x16.F32.BF16").count();
            assert!(text.contains("EXIT"), "{}: no code", kernel.name);
            assert_eq!(count > 0, meant, "{} for {}: {count} HMMA", kernel.name, module.arch);
            let by_warpgroups = WARPGROUPS.contains(&kernel.stem);
            assert_eq!(of_warpgroups >= 4, by_warpgroups, "{} for {}: {of_warpgroups} HGMMA", kernel.name, module.arch);
            assert_eq!(text.contains("USETMAXREG"), by_warpgroups, "{} for {}: registers", kernel.name, module.arch);
            let through_shared = meant && !WITHOUT_SHARED.contains(&kernel.stem);
            assert_eq!(text.contains("LDSM"), through_shared, "{} for {}: ldmatrix", kernel.name, module.arch);
            let local = ["LDL", "STL"].iter().any(|op| text.contains(&format!(" {op}")));
            assert!(!local, "{} for {} goes to local memory", kernel.name, module.arch);
        }
    }
}
