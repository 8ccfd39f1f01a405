//! Pipelines that are right, with one barrier, wait, fence, commit, arrival or `expect_tx` taken out at a time: each must be reported, or
//! be on the list of those that change nothing, with the reason.

use crate::gpu::{geometry, random_values, random_words};
use crate::nvcc::{self, Arch};
use half::bf16;
use ptxsim::error::Result;
use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::mutation::{self, Fate, How, Trial, Verdict};
use ptxsim::options::Options;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, TensorMap};

/// A launch of a mutant: buffers and arguments made on a fresh device; the last `bytes` bytes allocated are the results.
fn trial(
    ptx: &str,
    entry: &str,
    options: &Options,
    geometry: Geometry,
    make: impl Fn(&mut Device) -> Result<(Vec<Arg>, u64, usize)>,
) -> Result<Trial> {
    let mut device = Device::new();
    let module = device.load("mutant.ptx", ptx)?;
    let function = module.function(entry)?;
    let (args, results, bytes) = make(&mut device)?;
    let outcome = device.launch(&function, &geometry, &args, options)?;
    let mut out = vec![0; bytes];
    device.read(results, &mut out)?;
    Ok((outcome.findings, out))
}

fn bf16s(device: &mut Device, values: &[f32]) -> Result<u64> {
    device.upload(values, |value| bf16::from_f32(value).to_le_bytes())
}

fn matrix(data_type: DataType, address: u64, rows: u64, columns: u64, box_dims: [u32; 2], swizzle: Swizzle) -> Arg {
    let map = TensorMap {
        data_type,
        address,
        dims: vec![columns, rows],
        strides_bytes: vec![columns * u64::from(data_type.bytes())],
        box_dims: box_dims.to_vec(),
        element_strides: vec![1, 1],
        swizzle,
        fill: Fill::Zero,
        im2col: None,
    };
    Arg::Bytes(map.encode().expect("a valid map").to_vec())
}

fn gemm_cp_async(ptx: &str, options: &Options) -> Result<Trial> {
    let (m, n, k) = (64, 64, 192);
    trial(ptx, "gemm_bf16_mma", options, geometry([1, 1, 1], [128, 1, 1], 0), |device| {
        let (a, b) = (bf16s(device, &random_values(m * k, 1))?, bf16s(device, &random_values(n * k, 2))?);
        let c = device.alloc(4 * (m * n) as u64)?;
        let mut args = [a, b, c].map(Arg::Pointer).to_vec();
        args.extend([m, n, k].map(|extent| Arg::I32(extent as i32)));
        Ok((args, c, 4 * m * n))
    })
}

fn gemm_wgmma_tma(ptx: &str, options: &Options) -> Result<Trial> {
    let (m, n, k) = (64u64, 32u64, 15 * 64u64);
    let shared = 3 * (64 + 32) * 64 * 2 + 64 * 32 * 4 + 6 * 8;
    trial(ptx, "gemm_wgmma_tma", options, geometry([1, 1, 1], [256, 1, 1], shared), |device| {
        let a = bf16s(device, &random_values((m * k) as usize, 1))?;
        let b = bf16s(device, &random_values((n * k) as usize, 2))?;
        let c = device.alloc(4 * m * n)?;
        let args = vec![
            matrix(DataType::Bf16, a, m, k, [64, 64], Swizzle::B128),
            matrix(DataType::Bf16, b, n, k, [64, 32], Swizzle::B128),
            matrix(DataType::F32, c, m, n, [32, 64], Swizzle::None),
            Arg::I32(k as i32 / 64),
        ];
        Ok((args, c, (4 * m * n) as usize))
    })
}

fn cluster_multicast(ptx: &str, options: &Options) -> Result<Trial> {
    let tiles = 6;
    trial(ptx, "cluster_multicast", options, geometry([2, 1, 1], [128, 1, 1], 0), |device| {
        let x = device.upload(&random_values(tiles * 1024, 3), f32::to_le_bytes)?;
        let out = device.alloc(8 * 1024 * tiles as u64)?;
        let map = matrix(DataType::F32, x, 32 * tiles as u64, 32, [32, 16], Swizzle::None);
        Ok((vec![map, Arg::Pointer(out), Arg::I32(tiles as i32)], out, 8 * 1024 * tiles))
    })
}

fn ping_pong(ptx: &str, options: &Options) -> Result<Trial> {
    let rounds = 11;
    trial(ptx, "ping_pong", options, geometry([1, 1, 1], [64, 1, 1], 0), |device| {
        let input = device.upload(&random_words(32 * rounds, 5), u32::to_le_bytes)?;
        let out = device.alloc(128)?;
        Ok((vec![Arg::Pointer(input), Arg::Pointer(out), Arg::I32(rounds as i32)], out, 128))
    })
}

/// Mutants that change nothing: opening of the instruction, how many, and the reason.
type Harmless = (&'static str, usize, &'static str);

/// Every mutant is reported, but for these.
fn examine(
    stem: &str,
    arch: Arch,
    entry: &str,
    run: impl Fn(&str, &Options) -> Result<Trial>,
    harmless: &[Harmless],
) -> Vec<Verdict> {
    let base = Options { seed: 1, instructions_max: 2_000_000, ..Options::default() };
    let verdicts = mutation::examine(&nvcc::ptx(stem, arch), entry, &mutation::runs(&base), run);
    let verdicts = verdicts.unwrap_or_else(|error| panic!("{error}"));
    let reported = verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Reported(_))).count();
    println!("{entry} for {arch:?}: {reported} of {} mutants reported", verdicts.len());
    for Verdict { line, was, how, fate } in &verdicts {
        println!("  {line:4} {how:?} {was}: {fate:?}");
    }
    for (opening, count, reason) in harmless {
        let survivors = verdicts.iter().filter(|verdict| verdict.fate == Fate::Survived);
        let survivors = survivors.filter(|verdict| verdict.was.trim_start().starts_with(opening)).count();
        assert_eq!(survivors, *count, "{entry}: {opening} is harmless there ({reason})");
    }
    for Verdict { line, was, how, fate } in &verdicts {
        let excused = harmless.iter().any(|(opening, ..)| was.trim_start().starts_with(opening));
        let noticed = matches!(fate, Fate::Reported(_)) || *fate == Fate::Survived && excused;
        assert!(noticed, "{entry}, line {line}: {how:?} {was}: {fate:?}");
    }
    verdicts
}

#[test]
fn gemm_with_cp_async() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let verdicts = examine("matrix", arch, "gemm_bf16_mma", gemm_cp_async, &[]);
        assert!(verdicts.len() >= 4);
    }
}

const HARMLESS_WITH_WGMMA: [Harmless; 2] = [
    (
        "wgmma.fence",
        2,
        "nothing but wgmma of the same shape has touched the accumulators since the fence of the first tile",
    ),
    ("mbarrier.arrive.shared", 1, "it frees the stage of the last tile, which is not filled again"),
];

#[test]
fn gemm_with_tensor_copies_and_wgmma() {
    let verdicts = examine("gemm_wgmma_tma", Arch::Sm90a, "gemm_wgmma_tma", gemm_wgmma_tma, &HARMLESS_WITH_WGMMA);
    assert!(verdicts.iter().any(|verdict| verdict.how == How::ExpectsNothing));
}

#[test]
fn multicast_in_a_cluster() {
    let verdicts = examine("cluster", Arch::Sm90a, "cluster_multicast", cluster_multicast, &[]);
    assert!(verdicts.len() >= 8);
}

#[test]
fn ping_pong_through_named_barriers() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let verdicts = examine("blockwise", arch, "ping_pong", ping_pong, &[]);
        assert!(verdicts.len() >= 4);
    }
}
