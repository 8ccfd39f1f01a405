//! The cases of what keeps state or moves memory: optimisers, the norm of gradients, the key/value cache, casts, fills.

use super::{Cases, Extent, at, close, integers, normals, told};
use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::model::{Gpt, KvCache, ModelConfig};
use crate::ops::clip::{self, Evidence, Limits};
use crate::ops::grad_norm;
use crate::tape::Tape;
use crate::tensor::{Arena, DType, Grads, Layout, ParamId, Params, Role, Tensor};
use crate::train::optim::{Kind, Moments, Plan, update};
use std::sync::Arc;

fn arena(device: Device) -> Result<Arena, String> {
    match device {
        Device::Cpu => Arena::new(64 << 20).map_err(|error| error.to_string()),
        Device::Gpu(gpu) => Ok(Arena::scattered(gpu)),
    }
}

/// Values, rounded values and moments after three updates of tall, wide and odd parameters.
fn three_updates(kind: Kind, dtype: DType, device: Device) -> Result<[Vec<f64>; 4], String> {
    let mut layout = Layout::default();
    layout.push("embedding", [7, 5], Role::Embedding);
    layout.push("tall", [70, 33], Role::Matrix);
    layout.push("wide", [20, 97], Role::Matrix);
    layout.push("gain", [1031], Role::Gain);
    layout.push("average", [2, 39], Role::Average);
    let plan = Plan::new(kind, &layout, 64, 1.0, None);
    let (layout, arena) = (Arc::new(layout), arena(device)?);
    let mut params = Params::zeros(layout.clone(), dtype);
    params.master_mut().copy_from_f64(&normals("optim values", layout.elems()));
    params.round();
    let mut params = params.to(device);
    let (mut grads, mut moments) = (Grads::zeros_on(device, layout.clone(), dtype), Moments::zeros(&params));
    for step in 0..3 {
        grads.flat_mut().copy_from_f64(&normals(&format!("optim gradient {step}"), layout.elems()));
        update(&arena, &plan, &mut params, grads.flat(), &mut moments, 0.7, 0.9);
    }
    let rounded = params.view(ParamId(1)).to_f64();
    Ok([params.master().to_f64(), rounded, moments.first.to_f64(), moments.second.to_f64()])
}

fn optimiser(gpu: &'static Gpu, kind: Kind, dtype: DType) -> Cases {
    let host = three_updates(kind, dtype, Device::Cpu)?;
    let device = three_updates(kind, dtype, Device::Gpu(gpu))?;
    told(gpu, &format!("{kind:?} {dtype}"))?;
    for (i, (got, want)) in device.iter().zip(&host).enumerate() {
        // AdamW is the same few roundings; Muon's five rounds of products amplify theirs. A rounded copy may fall on the other
        // side of a tie.
        let bound = match (kind, dtype, i) {
            (_, DType::Bf16, 1) => 2f64.powi(-8),
            (Kind::Adamw, ..) => 2e-6,
            (Kind::Muon, ..) => 2e-4,
        };
        close(&format!("{kind:?} {dtype} {i}"), got, want, bound)?;
    }
    Ok(())
}

/// AdamW: each update as on the CPU, rounded copies included.
///
/// # Errors
/// The first element that differs, or what the device says.
pub fn adamw_on(gpu: &'static Gpu, _: Extent) -> Cases {
    optimiser(gpu, Kind::Adamw, DType::F32)?;
    optimiser(gpu, Kind::Adamw, DType::Bf16)
}

/// Muon: as [`adamw_on`].
///
/// # Errors
/// As [`adamw_on`].
pub fn muon_on(gpu: &'static Gpu, _: Extent) -> Cases {
    optimiser(gpu, Kind::Muon, DType::F32)
}

/// Sums of squares by range: of f32 values in f64, so that only the order of additions differs; what is not finite is not hidden.
///
/// # Errors
/// A sum that is wrong, or what the device says.
pub fn grad_norm_on(gpu: &'static Gpu, _: Extent) -> Cases {
    let host = arena(Device::Cpu)?;
    let ranges = [0..7, 7..40_001, 40_001..50_000];
    let mut values = at(&host, DType::F32, [50_000], &normals("grad_norm", 50_000)).to_f64();
    let sums = |values: &[f64]| {
        let flat = at(&Arena::scattered(gpu), DType::F32, [values.len()], values);
        grad_norm::sums_of_squares(&Arena::scattered(gpu), &flat, &ranges)
    };
    let want = ranges.clone().map(|range| grad_norm::reference(&values[range]));
    let got = sums(&values);
    told(gpu, "grad_norm")?;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        close(&format!("grad_norm {i}"), &[*got], &[want], 1e-12)?;
    }
    values[39_999] = f64::NAN;
    values[45_000] = 1e30; // its square overflows f32, the sum must not
    let got = sums(&values);
    told(gpu, "grad_norm")?;
    match got[..] {
        [a, b, c] if a.is_finite() && b.is_nan() && c.is_finite() && c > 0.9e60 => Ok(()),
        _ => Err(format!("grad_norm of NaN in the second range and 1e30 in the third: {got:?}")),
    }
}

/// What a step is judged by: losses, partial sums of squares, and the limits; the verdict that it must get.
struct Trial {
    losses: Vec<f64>,
    partial: Vec<f64>,
    limits: Limits,
    applies: bool,
}

/// Clipping: report and verdict are the host's, whether the step is applied or the loss or a gradient is not finite or beyond
/// its limit.
///
/// # Errors
/// What differs, or what the device says.
pub fn clip_on(gpu: &'static Gpu, _: Extent) -> Cases {
    let losses: Vec<f64> = normals("clip losses", 700).iter().map(|&x| f64::from(x as f32) + 3.0).collect();
    let partial: Vec<f64> = normals("clip partial", 1201).iter().map(|x| x * x).collect();
    // One range of many parts, one of a single part, more ranges than a block has warps.
    let firsts: Vec<u32> = [0, 1000].into_iter().chain((0..21).map(|i| 1001 + 10 * i)).collect();
    let [weight, mean] = [0.7, 1.0 / 700.0];
    let host = arena(Device::Cpu)?;
    let losses = at(&host, DType::F32, [700], &losses).to_f64();
    let loss = weight * ((0.5 + losses.iter().sum::<f64>()) * mean);
    let norm = partial.iter().sum::<f64>().sqrt();
    let free = Limits { clip: 1.0, loss: f64::INFINITY, grad_norm: f64::INFINITY };
    let trial = |applies, limits| Trial { losses: losses.clone(), partial: partial.clone(), limits, applies };
    let poisoned = |value: f64| {
        let mut trial = trial(false, free);
        trial.partial[1000] = value;
        trial
    };
    let mut trials = [
        trial(true, free),
        trial(true, Limits { clip: 1e9, ..free }),
        trial(true, Limits { loss: loss * 1.001, grad_norm: norm * 1.001, ..free }),
        trial(false, Limits { loss: loss * 0.999, ..free }),
        trial(false, Limits { grad_norm: norm * 0.999, ..free }),
        poisoned(f64::NAN),
        poisoned(f64::INFINITY),
        trial(false, free),
    ];
    trials[7].losses[699] = f64::NAN;
    trials
        .iter()
        .enumerate()
        .try_for_each(|(i, trial)| judged(gpu, &format!("clip {i}"), trial, &firsts, [weight, mean]))
}

fn judged(gpu: &'static Gpu, what: &str, trial: &Trial, firsts: &[u32], [weight, mean]: [f64; 2]) -> Cases {
    let arena = Arena::scattered(gpu);
    let mut total = Tensor::from_slice(&arena, [1], &[0.5f64]);
    clip::launch_losses(gpu, &mut total.whole_mut(), &at(&arena, DType::F32, [700], &trial.losses));
    let partial = Tensor::from_slice(&arena, [trial.partial.len()], &trial.partial);
    let knobs = Tensor::from_slice(&arena, [5], &clip::knobs(weight, mean, &trial.limits));
    let ends = Tensor::from_slice(&arena, [firsts.len()], firsts);
    let mut report = Tensor::uninit(&arena, [clip::REPORT_SQUARES + firsts.len() - 1], DType::F64);
    let mut verdict = Tensor::uninit(&arena, [2], DType::F32);
    let seen = Evidence { total: &total, partial: &partial, firsts: &ends, knobs: &knobs };
    clip::launch_verdict(gpu, &mut report.whole_mut(), &mut verdict.whole_mut(), &seen);
    let (report, verdict) = (report.to_f64(), verdict.to_f64());
    told(gpu, what)?;
    let squares = firsts.windows(2).map(|ends| trial.partial[ends[0] as usize..ends[1] as usize].iter().sum());
    let squares: Vec<f64> = squares.collect();
    let sum = 0.5 + trial.losses.iter().sum::<f64>();
    let host = clip::verdict(weight * (sum * mean), &squares, &trial.limits);
    if [host.is_some(), report[2] == 1.0, verdict[1] == 1.0] != [trial.applies; 3] {
        return Err(format!("{what}: {report:?} {verdict:?}, the host {host:?}"));
    }
    let Some(factor) = host else { return Ok(()) };
    let norm = squares.iter().sum::<f64>().sqrt();
    close(&format!("{what}, losses and norm"), &report[..2], &[sum, norm], 1e-12)?;
    close(&format!("{what}, squares"), &report[clip::REPORT_SQUARES..], &squares, 1e-12)?;
    close(&format!("{what}, factor"), &verdict[..1], &[factor], 1e-7)
}

/// Prefill, then a token at a time, with grouped heads and a window: the logits of the CPU.
///
/// # Errors
/// The first logit that differs, or what the device says.
pub fn cached_model_on(gpu: &'static Gpu, _: Extent) -> Cases {
    for dtype in [DType::F32, DType::Bf16] {
        let mut config = ModelConfig::from_depth(2, 61, 32);
        (config.width, config.heads, config.kv_heads, config.head_dim, config.ffn_width) = (24, 3, 1, 8, 40);
        (config.window_pattern, config.window, config.softcap) = ("SL".into(), 5, 9.0);
        let model = Gpt::new(config.clone(), dtype).map_err(|error| error.to_string())?;
        let mut params = model.init(dtype, 3);
        let values = normals("cached parameters", model.layout().elems());
        params.master_mut().copy_from_f64(&values.iter().map(|x| 0.2 * x).collect::<Vec<_>>());
        params.round();
        let tokens = integers("cached tokens", 13, 61);
        let run = |device: Device| -> Result<Vec<f64>, String> {
            let (model, params, arena) = (model.to(device), params.clone().to(device), arena(device)?);
            let mut cache = KvCache::on(device, &config, 13, dtype);
            let mut all = Vec::new();
            for piece in [&tokens[..9], &tokens[9..10], &tokens[10..]] {
                all.extend(model.logits_cached(&mut Tape::inference(&arena, &params), piece, &mut cache).to_f64());
            }
            Ok(all)
        };
        let (want, got) = (run(Device::Cpu)?, run(Device::Gpu(gpu))?);
        told(gpu, &format!("cached model {dtype}"))?;
        // Two layers of rounded sums: as far from the CPU's as bf16 rounds a few times over.
        close(&format!("cached model {dtype}"), &got, &want, if dtype == DType::F32 { 1e-5 } else { 6e-2 })?;
    }
    Ok(())
}

/// Lengths of flat buffers: part of a vector, whole blocks, one more.
const LENGTHS: [usize; 5] = [1, 97, 1024, 2049, 3001];

/// Both casts, aligned and not: bit for bit what the CPU rounds to.
///
/// # Errors
/// The first element that differs, or what the device says.
pub fn cast_on(gpu: &'static Gpu, _: Extent) -> Cases {
    let (host, arena) = (arena(Device::Cpu)?, Arena::scattered(gpu));
    for (n, first) in LENGTHS.into_iter().flat_map(|n| [(n, 0), (n, 1), (n, 3)]) {
        for (from, to) in [(DType::F32, DType::Bf16), (DType::Bf16, DType::F32)] {
            let values = at(&host, from, [n + first], &normals("cast", n + first)).to_f64();
            let want = at(&host, to, [n], &values[first..]).to_f64();
            let got = at(&arena, from, [n + first], &values).view(first, [n]).cast(&arena, to).to_f64();
            let what = format!("cast {from} to {to}, {n} from {first} on");
            told(gpu, &what)?;
            close(&what, &got, &want, 0.0)?;
        }
    }
    Ok(())
}

/// Fills of all and of a part: the rest stays as it is.
///
/// # Errors
/// The first element that is wrong, or what the device says.
pub fn fill_on(gpu: &'static Gpu, _: Extent) -> Cases {
    let arena = Arena::scattered(gpu);
    for (n, dtype) in LENGTHS.into_iter().flat_map(|n| [(n, DType::F32), (n, DType::Bf16)]) {
        let rest = 5;
        let mut y: Tensor = at(&arena, dtype, [n + rest], &vec![0.5; n + rest]);
        let grid = Grid::elementwise(n, dtype.size_bytes());
        match dtype {
            DType::F32 => launch::fill_fwd_vector_f32(gpu, grid, y.ptr_mut(), 2.5, n),
            _ => launch::fill_fwd_vector_bf16(gpu, grid, y.ptr_mut(), 2.5, n),
        }
        let want: Vec<f64> = (0..n + rest).map(|i| if i < n { 2.5 } else { 0.5 }).collect();
        let what = format!("fill {n} {dtype}");
        told(gpu, &what)?;
        close(&what, &y.to_f64(), &want, 0.0)?;
    }
    Ok(())
}
