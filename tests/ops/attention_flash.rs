//! Attention by tiles on tensor cores, in the simulator: every element within what rounding to bf16 can change, the same bits
//! under every order, every barrier and wait needed, no bank conflicts.

use super::*;
use nanochat_gpu::ops::rope::Heads;
use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::mutation::{self, Fate, Trial};

#[test]
fn cases() {
    let gpus = simulators();
    for case in verify::ATTENTION_FLASH {
        let results = verify::attention::flash_case(&gpus, case).unwrap_or_else(|message| panic!("{message}"));
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{case:?}: other bits under another order");
        for gpu in &gpus {
            let counts = gpu.take_counts();
            let names = ["fwd_query_tiles", "bwd_query_tiles", "bwd_key_tiles"];
            let names = names.map(|name| format!("attention_flash_{name}_d{}_bf16", case.heads.d));
            for name in names {
                let counted =
                    counts.get(&name).unwrap_or_else(|| panic!("{name} was not launched: {:?}", counts.keys()));
                assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{case:?}: {name}: {counted:?}");
            }
        }
    }
}

/// A launch of one kernel of (maybe changed) PTX over three tiles of keys, two heads and a window; results are the gradients, or
/// output and lse.
fn launch(ptx: &str, entry: &str, options: &Options) -> ptxsim::error::Result<Trial> {
    const T: usize = 140;
    let heads = Heads { h: 2, g: 1, d: 32 };
    let (row, Heads { h, g, d }) = (heads.row_elems(), heads);
    let mut device = Device::new();
    let module = device.load("attention_flash.ptx", ptx)?;
    let function = module.function(entry)?;
    let bits = |x: f64| half::bf16::from_f64(x).to_le_bytes();
    let qkv = device.upload(&verify::normals("mutants", T * row), bits)?;
    let dout = device.upload(&verify::normals("mutants gradient", T * h * d), bits)?;
    let lse = device.upload(&vec![3.0; h * T], f32::to_le_bytes)?;
    let delta = device.upload(&vec![0.25; h * T], f32::to_le_bytes)?;
    let [q, k, v] = [0, h * d, (h + g) * d].map(|first| Arg::Pointer(qkv + 2 * first as u64));
    let bytes = 2 * T * row;
    let results = device.upload(&vec![0u8; bytes], |byte| [byte])?;
    let result = |first: usize| Arg::Pointer(results + 2 * first as u64);
    let number = |x: usize| Arg::U32(x as u32);
    let (no_documents, scale, window) = (Arg::Pointer(0), Arg::F32(0.18), number(100));
    let saved = [Arg::Pointer(lse), Arg::Pointer(delta), Arg::Pointer(dout), no_documents.clone()];
    let (mut args, blocks_y) = match entry {
        _ if entry.contains("fwd") => (vec![result(0), result(T * h * d), q, k, v, no_documents], h),
        _ if entry.contains("bwd_query") => ([vec![result(0), q, k, v], saved.to_vec()].concat(), h),
        _ => ([vec![result(h * d), result((h + g) * d), q, k, v], saved.to_vec()].concat(), g),
    };
    args.push(scale);
    args.extend([number(T), number(h), number(g), number(row), window]);
    let grid = [T.div_ceil(64) as u32, blocks_y as u32, 1];
    let geometry = Geometry { grid, block: [128, 1, 1], cluster: None, dynamic_bytes: 512 * d as u32 + 768 };
    let outcome = device.launch(&function, &geometry, &args, options)?;
    let mut out = vec![0; bytes];
    device.read(results, &mut out)?;
    Ok((outcome.findings, out))
}

/// Without any one of its barriers, waits or commits each kernel is reported: none is superfluous.
#[test]
fn every_barrier_wait_and_commit_is_needed() {
    for module in MODULES.iter().filter(|module| module.stem == "attention_flash") {
        for name in ["fwd_query_tiles", "bwd_query_tiles", "bwd_key_tiles"] {
            let entry = format!("attention_flash_{name}_d32_bf16");
            let base = Options { seed: 1, ..Options::default() };
            let run = |ptx: &str, options: &Options| launch(ptx, &entry, options);
            let verdicts = mutation::examine(module.ptx, &entry, &mutation::runs(&base), run);
            let verdicts = verdicts.unwrap_or_else(|error| panic!("{entry} for {}: {error}", module.arch));
            assert!(verdicts.len() >= 6, "{entry}: {verdicts:?}");
            for verdict in verdicts {
                assert!(matches!(verdict.fate, Fate::Reported(_)), "{entry} for {}: {verdict:?}", module.arch);
            }
        }
    }
}
