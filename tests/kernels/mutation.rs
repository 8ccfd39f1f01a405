//! Every kernel that synchronises, with one barrier taken out at a time: each must be reported, or be on the list of those that
//! change nothing, with the reason.

use crate::ops::{HOPPER, gradients, ids, tensor};
use nanochat_gpu::device::Device;
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::driver::Capability;
use nanochat_gpu::device::driver::sim::SimOptions;
use nanochat_gpu::device::gemm::{Operand, gemm, gemm_naive, gemm_rows};
use nanochat_gpu::device::gpu::Gpu;
use nanochat_gpu::device::modules::{self, KERNELS, Kernel};
use nanochat_gpu::device::packed::PackedMatrix;
use nanochat_gpu::device::packed::gpu::{gemm_packed, to_gpu};
use nanochat_gpu::ops::attention::{self, Mask};
use nanochat_gpu::ops::clip::{self, Evidence};
use nanochat_gpu::ops::delta_rule::{self, Dims, Inputs, Past};
use nanochat_gpu::ops::mlp::{self, Keep, Weights};
use nanochat_gpu::ops::paged_attention::{PAGE_TOKENS, Placement};
use nanochat_gpu::ops::rope::{Heads, QkNorm, Table, frequencies};
use nanochat_gpu::ops::sample::{self, Draw};
use nanochat_gpu::ops::{
    blend, concept_loss, decay_gate, embedding, grad_norm, hypercube, lm_loss, paged_attention, rmsnorm, rope,
    short_conv,
};
use nanochat_gpu::tensor::{Arena, BlockType, DType, Layout, ParamId, Params, Role, Tensor};
use nanochat_gpu::train::optim::{Kind, Moments, Plan, update};
use nanochat_gpu::verify::{integers, made_blocks, normals};
use ptxsim::error::Error;
use ptxsim::mutation::{self, Fate};
use ptxsim::options::{AsyncPolicy, Options, Schedule, TensorMode};
use std::collections::HashMap;
use std::sync::Arc;

/// Of the kernels for compute capability 9.0, instances of one template, both layouts of each operand and both types of C: a run of
/// one takes as long as of several others.
const WGMMA: [&str; 2] = ["gemm_wgmma_ak_bk_bf16", "gemm_wgmma_am_bn_bf16_to_f32"];

/// Barriers that may go: kernel, how many, and why.
const HARMLESS: &[(&str, usize, &str)] = &[(WGMMA[0], 1, FIRST_COLUMNS), (WGMMA[1], 1, FIRST_COLUMNS)];
const FIRST_COLUMNS: &str = "before the first columns of a tile the warp has met at the products' wait, which PTX does not call an order of memory";

fn at(arena: &Arena, dtype: DType, shape: &[usize]) -> Tensor {
    tensor(arena, dtype, shape, &normals("mutation", shape.iter().product()))
}

/// One update of a matrix.
fn muon_update(arena: &Arena) -> Vec<u8> {
    let mut layout = Layout::default();
    layout.push("matrix", [40, 50], Role::Matrix);
    let (layout, plan) = (Arc::new(layout.clone()), Plan::new(Kind::Muon, &layout, 50, 1.0, None));
    let mut params = Params::zeros(layout, DType::F32).to(arena.device());
    let mut moments = Moments::zeros(&params);
    update(arena, &plan, &mut params, &at(arena, DType::F32, &[2000]), &mut moments, 1.0, 1.0);
    params.master().to_bytes()
}

/// A blend forward and back, in vector accesses and not.
fn blended(arena: &Arena, dtype: DType) -> Vec<u8> {
    let run = |c: usize| {
        let (controller, bias) = (at(arena, dtype, &[3, c]), at(arena, dtype, &[3]));
        let gain = at(arena, dtype, &[c]);
        let weights = blend::Weights { controller: Some(&controller), bias: &bias, gain: &gain };
        let options = blend::Options { source: blend::Source::First, lean: [0.0; 3], eps: 1e-5 };
        let streams = [(); 3].map(|()| at(arena, dtype, &[20, c]));
        let (y, x, saved) = blend::forward(arena, streams, weights, options);
        let mut grads = gradients(arena, dtype, &[controller.shape(), bias.shape(), gain.shape()]);
        let [controller, bias, gain] = grads.disjoint_mut([0, 1, 2].map(|i| ParamId(i).into()));
        let to = blend::Gradients { controller: Some(controller), bias, gain };
        let dh = blend::backward(arena, to, Some(y.clone()), Some(x.clone()), weights, &saved);
        let all = [&y, &x, &dh[0], &dh[1], &dh[2], grads.flat()];
        all.iter().flat_map(|tensor| tensor.to_bytes()).collect::<Vec<u8>>()
    };
    [520, 517].map(run).concat()
}

/// Losses over a vocabulary and their gradients, rows in vector accesses and not.
fn judged(arena: &Arena, dtype: DType) -> Vec<u8> {
    let run = |v: usize| {
        let (x, w) = (at(arena, dtype, &[3, 8]), at(arena, dtype, &[v, 8]));
        let mut grads = gradients(arena, dtype, &[w.shape()]);
        let wanted = lm_loss::Gradients { scale: 0.5.into(), dweight: grads.view_mut(ParamId(0)) };
        let targets = ids(arena, &[5, v as u32 - 1, 0]);
        let (losses, dx) = lm_loss::forward(arena, &x, &w, &targets, None, Some(wanted));
        [&losses, &dx.unwrap(), grads.flat()].iter().flat_map(|tensor| tensor.to_bytes()).collect::<Vec<u8>>()
    };
    [300, 299].map(run).concat()
}

fn verdict_on_a_step(arena: &Arena) -> Vec<u8> {
    let Device::Gpu(gpu) = arena.device() else { panic!("a GPU") };
    let [mut total, partial, mut report] =
        [1, 300, 5].map(|n| Tensor::from_f64(arena, [n], DType::F64, &normals("mutation", n)));
    clip::launch_losses(gpu, &mut total.whole_mut(), &at(arena, DType::F32, &[1000]));
    let knobs = Tensor::from_slice(arena, [5], &[1.0, 1.0, 0.5, f64::INFINITY, f64::INFINITY]);
    let firsts = ids(arena, &[0, 100, 300]);
    let mut verdict = Tensor::uninit(arena, [2], DType::F32);
    let seen = Evidence { total: &total, partial: &partial, firsts: &firsts, knobs: &knobs };
    clip::launch_verdict(gpu, &mut report.whole_mut(), &mut verdict.whole_mut(), &seen);
    [report.to_bytes(), verdict.to_bytes()].concat()
}

/// As [`scenario`], for the ops of parts beyond the backbone.
fn part_scenario(stem: &str, arena: &Arena, dtype: DType) -> Vec<u8> {
    let bytes = |tensors: &[&Tensor]| -> Vec<u8> { tensors.iter().flat_map(|tensor| tensor.to_bytes()).collect() };
    match stem {
        "hypercube" => {
            let (loss, du) = hypercube::entropy(arena, &at(arena, dtype, &[70, 16]), &10.0.into(), Some(&0.5.into()));
            bytes(&[&loss, &du.unwrap()])
        }
        "blend" => blended(arena, dtype),
        "concept_loss" => {
            let (x, codes) = (at(arena, dtype, &[3, 8]), at(arena, dtype, &[300, 8]));
            let [bias, idf] = [(); 2].map(|()| at(arena, DType::F32, &[300]));
            let windows = ids(arena, &[5, 5, 299, 7, 7, 0, 1, 2, 3]).reshape([3, 3]);
            let mut grads = gradients(arena, dtype, &[codes.shape()]);
            let dcodes = Some(grads.view_mut(ParamId(0)));
            let wanted = concept_loss::Gradients { scale: 0.5.into(), dcodes };
            let concepts = concept_loss::Concepts { codes: &codes, bias: &bias, idf: &idf };
            let (losses, dx) = concept_loss::forward(arena, &x, concepts, &windows, Some(wanted));
            bytes(&[&losses, &dx.unwrap(), grads.flat()])
        }
        other => unreachable!("{other} is no part's"),
    }
}

/// Runs the kernels of a file, at sizes where every barrier has something to separate; the bytes of the results.
fn scenario(kernel: &str, arena: &Arena, dtype: DType) -> Vec<u8> {
    let bytes = |tensors: &[&Tensor]| -> Vec<u8> { tensors.iter().flat_map(|tensor| tensor.to_bytes()).collect() };
    let stem = KERNELS.iter().find(|k| k.name == kernel).unwrap().stem;
    match stem {
        "rmsnorm" => {
            // Rows in vector accesses, and rows that are not: each path has barriers of its own.
            let norms = |c: usize| {
                let gain = at(arena, dtype, &[c]);
                let mut grads = gradients(arena, dtype, &[gain.shape()]);
                let (y, saved) = rmsnorm::forward(arena, &at(arena, dtype, &[34, c]), &gain, 1e-5);
                let dy = at(arena, dtype, &[34, c]);
                let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
                bytes(&[&y, &dx, grads.flat()])
            };
            let cols = if kernel.contains("block") { [1032, 1029] } else { [40, 39] };
            cols.map(norms).concat()
        }
        "rope" => {
            let heads = Heads { h: 2, g: 1, d: if kernel.contains("wide") { 136 } else { 8 } };
            let (d, row) = (heads.d, heads.row_elems());
            let table = Table::new(20, &frequencies(d, 1e4, None), DType::F32).to(arena.device());
            let gains = [(); 2].map(|()| at(arena, dtype, &[d]));
            let norm = QkNorm { q_gain: &gains[0], k_gain: &gains[1], eps: 1e-5 };
            let (y, saved) = rope::forward(arena, at(arena, dtype, &[20, row]), heads, 20, 0, &table, Some(norm));
            let mut grads = gradients(arena, dtype, &[gains[0].shape(), gains[1].shape()]);
            let dgains = grads.pair_mut(ParamId(0), ParamId(1));
            let dx =
                rope::backward(arena, at(arena, dtype, &[20, row]), heads, 20, &table, Some((norm, dgains)), &saved);
            bytes(&[&y, &dx, grads.flat()])
        }
        "embedding" => {
            let tokens = ids(arena, &integers("mutation tokens", 600, 20));
            let mut grads = gradients(arena, dtype, &[[20, 40].into()]);
            embedding::backward(&mut grads.view_mut(ParamId(0)), &at(arena, dtype, &[600, 40]), &tokens);
            bytes(&[grads.flat()])
        }
        "gemm_naive" => {
            let (a, b) = (at(arena, dtype, &[70, 40]), at(arena, dtype, &[40, 70]));
            let to = if kernel.ends_with("to_f32") { DType::F32 } else { dtype };
            let mut c = Tensor::uninit(arena, [70, 70], to);
            let (a, b) = (Operand::new(&a, 70, 40), Operand::new(&b, 40, 70));
            gemm_naive(&mut c.whole_mut(), a, b, WriteMode::Overwrite);
            bytes(&[&c])
        }
        "gemm_mma" | "gemm_mma_narrow" | "gemm_wgmma" => {
            // One block whose first warps have all their rows, and more steps along K than the pipeline has stages. Narrow
            // copies: of 4 bytes, and of single elements through registers. By wgmma two tiles, one after the other, all of whose columns are read.
            let [m, n, k] = match stem {
                "gemm_mma" => [64, 40, 136],
                "gemm_wgmma" => [136, 256, 264],
                _ => [64, 37, 134],
            };
            let (a, b) = (at(arena, dtype, &[m, k]), at(arena, dtype, &[k, n]));
            let to = if kernel.ends_with("to_f32") { DType::F32 } else { dtype };
            let mut c = Tensor::uninit(arena, [m, n], to);
            let a = if kernel.contains("_ak_") { Operand::new(&a, m, k) } else { Operand::new(&a, k, m).t() };
            let b = if kernel.contains("_bn_") { Operand::new(&b, k, n) } else { Operand::new(&b, n, k).t() };
            gemm(arena, &mut c.whole_mut(), a, b, WriteMode::Overwrite);
            bytes(&[&c])
        }
        "mlp" => {
            let [n, c, f] = [64, 136, 72];
            let (x, gate_up, down) =
                (at(arena, dtype, &[n, c]), at(arena, dtype, &[2 * f, c]), at(arena, dtype, &[c, f]));
            let weights = Weights { gate_up: &gate_up, down: &down };
            let (_, saved) = mlp::forward(arena, x, weights, None, Keep::Everything);
            let saved = saved.expect("everything is kept");
            let first = bytes(&[&saved.gate_up, &saved.hidden]);
            let mut grads = gradients(arena, dtype, &[gate_up.shape(), down.shape()]);
            let [mut dgate_up, mut ddown] = grads.pair_mut(ParamId(0), ParamId(1));
            let dy = at(arena, dtype, &[n, c]);
            let dx = mlp::backward(arena, [&mut dgate_up, &mut ddown], &dy, weights, saved);
            [first, bytes(&[&dx, grads.flat()])].concat()
        }
        "attention_naive" => {
            let (heads, t) = (Heads { h: 2, g: 1, d: 6 }, 150);
            let qkv = at(arena, dtype, &[t, heads.row_elems()]);
            let (y, saved) = attention::forward(arena, &qkv, heads, t, Mask::default());
            let d = attention::backward(arena, &at(arena, dtype, &[t, 12]), heads, t, &saved);
            bytes(&[&y, &d])
        }
        "gemm_rows" | "gemm_packed" | "paged_attention" | "sample" => inference_scenario(kernel, arena, dtype),
        "lm_loss" => judged(arena, dtype),
        "hypercube" | "blend" | "concept_loss" => part_scenario(stem, arena, dtype),
        "grad_norm" if kernel.contains("listed") => {
            let sums =
                grad_norm::sums_of_squares(arena, &at(arena, DType::F32, &[5000]), std::slice::from_ref(&(0..5000)));
            sums[0].to_le_bytes().to_vec()
        }
        "grad_norm" => muon_update(arena),
        "clip" => verdict_on_a_step(arena),
        other => memory_scenario(other, arena, dtype),
    }
}

/// [`scenario`] of what inference alone launches.
fn inference_scenario(kernel: &str, arena: &Arena, dtype: DType) -> Vec<u8> {
    if kernel.starts_with("gemm") {
        let (n, k) = (if kernel.contains("few") { 3 } else { 9 }, 160);
        let (x, mut y) = (at(arena, dtype, &[n, k]), Tensor::uninit(arena, [n, 20], dtype));
        let kinds = [("q4_0", BlockType::Q4_0), ("q4_1", BlockType::Q4_1), ("q8_0", BlockType::Q8_0)];
        match kinds.into_iter().find(|(name, _)| kernel.contains(name)) {
            None => gemm_rows(&mut y.whole_mut(), None, &x, &at(arena, dtype, &[20, k])),
            Some((name, kind)) => {
                let matrix = PackedMatrix::new(kind, [20, k], &made_blocks(name, kind, [20, k])).unwrap();
                let Device::Gpu(gpu) = arena.device() else { panic!("a kernel on the processor") };
                gemm_packed(&mut y.whole_mut(), None, &x, &[to_gpu(&matrix, gpu)]);
            }
        }
        return y.to_bytes();
    }
    if kernel.starts_with("sample") {
        // Every limit, and more tokens than threads.
        let draw = Draw { uniform: u64::MAX / 3, scale: 0.7, top_k: 200, top_p: u64::MAX / 2, least_weight: 1 };
        let drawn = sample::forward(arena, &at(arena, dtype, &[3, 1100]), &[draw; 3]);
        return format!("{drawn:?}").into_bytes();
    }
    // Six heads to a key, more than a block has warps and than share a value; a part of the keys that is full, and one that is not.
    let (d, t) = match kernel.split_once("tile_keys_d") {
        Some((_, rest)) => (rest.trim_end_matches("_bf16").parse().expect("a width"), 7),
        None => (8, 1),
    };
    let (heads, n, pages) = (Heads { h: 6, g: 1, d }, 300, (0..19).rev().collect::<Vec<u32>>());
    let placement = Placement::new(arena, [(n - t, t, pages.as_slice())], 6);
    let [k, v] = [(); 2].map(|()| at(arena, dtype, &[pages.len() * PAGE_TOKENS, d]));
    paged_attention::attend(arena, &at(arena, dtype, &[t, 6 * d]), [&k, &v], heads, &placement, None).to_bytes()
}

/// [`scenario`] of the ops of a carried state.
fn memory_scenario(stem: &str, arena: &Arena, dtype: DType) -> Vec<u8> {
    let bytes = |tensors: &[&Tensor]| -> Vec<u8> { tensors.iter().flat_map(|tensor| tensor.to_bytes()).collect() };
    match stem {
        "decay_gate" => {
            // Rows in vector accesses, and rows that are not: each path has barriers of its own.
            let decays = |d: usize| {
                let (f, a, dt) = (at(arena, dtype, &[70, 2 * d]), at(arena, dtype, &[2]), at(arena, dtype, &[2, d]));
                let rates = decay_gate::Rates { a: &a, dt: &dt };
                let (_, saved) = decay_gate::forward(arena, &f, rates);
                let mut grads = gradients(arena, dtype, &[a.shape(), dt.shape()]);
                let [mut da, mut ddt] = grads.pair_mut(ParamId(0), ParamId(1));
                decay_gate::backward(arena, [&mut da, &mut ddt], &at(arena, dtype, &[70, 2 * d]), rates, &saved);
                bytes(&[grads.flat()])
            };
            [8, 5].map(decays).concat()
        }
        "short_conv" => {
            let convolutions = |c: usize| {
                let (x, w) = (at(arena, dtype, &[140, c]), at(arena, dtype, &[c, 4]));
                let (_, _, saved) = short_conv::forward(arena, &x, &w, 70, short_conv::Past::default());
                let mut grads = gradients(arena, dtype, &[w.shape()]);
                let dy = at(arena, dtype, &[140, c]);
                short_conv::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, &w, 70, &saved);
                bytes(&[grads.flat()])
            };
            [16, 9].map(convolutions).concat()
        }
        "delta_rule" => delta_rule_scenario(arena, dtype),
        other => panic!("kernels/{other}.cu synchronises and has no scenario here"),
    }
}

/// Two chunks, two slices of channels and of columns, so that each is followed by one; and a few tokens one by one.
fn delta_rule_scenario(arena: &Arena, dtype: DType) -> Vec<u8> {
    let (t, dims) = (100, Dims { h: 1, dk: 64, dv: 64 });
    let of = |cols: usize, by: f64, shift: f64| {
        let values = normals("mutation", t * cols).iter().map(|x| by * x.abs() + shift).collect::<Vec<_>>();
        tensor(arena, dtype, [t, cols], &values)
    };
    let x = [
        at(arena, dtype, &[t, 64]),
        of(64, 0.1, 0.02),
        at(arena, dtype, &[t, 64]),
        of(64, -0.1, -0.01),
        of(1, 0.2, 0.1),
    ];
    let [q, k, v, log_alpha, beta] = &x;
    let inputs = Inputs { q, k, v, log_alpha, beta };
    let y = delta_rule::forward(arena, inputs, dims, t, Past::default(), delta_rule::Keep::Everything);
    let saved = y.saved.expect("everything is kept");
    let d = delta_rule::backward(arena, &at(arena, dtype, &[t, 64]), None, dims, t, &saved);
    let mut state = Tensor::zeros(arena, [1, 1, 64, 64], DType::F32);
    let few = x.each_ref().map(|x| x.view(0, [3, x.elems() / t]));
    let [q, k, v, log_alpha, beta] = &few;
    let o = delta_rule::recurrent(arena, Inputs { q, k, v, log_alpha, beta }, dims, 3, None, &mut state);
    let results = [y.o, y.state, saved.errors, d.q, d.k, d.v, d.log_alpha, d.beta, d.state, o, state];
    results.iter().flat_map(Tensor::to_bytes).collect()
}

/// Whether the body of an entry has a barrier.
fn synchronises(ptx: &str, entry: &str) -> bool {
    !mutation::mutants(ptx, entry).unwrap().is_empty()
}

#[test]
fn a_missing_barrier_is_reported() {
    take_out_barriers(Capability { major: 8, minor: 0 }, |kernel| kernel.only.is_empty());
}

#[test]
fn a_missing_barrier_of_a_kernel_for_hopper_is_reported() {
    take_out_barriers(HOPPER, |kernel| WGMMA.contains(&kernel.name));
}

/// Takes the barriers out of the kernels that `wanted` names, as a device of this capability runs them.
fn take_out_barriers(capability: Capability, wanted: fn(&Kernel) -> bool) {
    let (mut judged, mut failures) = (0, Vec::new());
    for kernel in KERNELS.iter().filter(|kernel| wanted(kernel)) {
        let Some(module) = modules::best(kernel.stem, capability) else { continue };
        // The flash kernels have a test of their own, in tests/ops/attention_flash.rs.
        if kernel.stem == "attention_flash" || !synchronises(module.ptx, kernel.name) {
            continue;
        }
        let dtype = if kernel.name.contains("bf16") { DType::Bf16 } else { DType::F32 };
        let run = |ptx: &str, options: &Options| {
            let substitutes = HashMap::from([(kernel.stem.to_string(), ptx.into())]);
            // One multiprocessor: a block that takes tiles in turn takes all.
            let options = SimOptions {
                capability,
                multiprocessors: 1,
                run: options.clone(),
                substitutes,
                ..SimOptions::checked()
            };
            let gpu = Gpu::sim(options).map_err(|error| Error::Host(error.to_string()))?;
            let bytes = scenario(kernel.name, &Arena::scattered(gpu), dtype);
            gpu.synchronise().map_err(|error| Error::Host(error.to_string()))?;
            Ok((Vec::new(), bytes))
        };
        // Without asynchronous work the order of warps is all there is to vary.
        let orders = [
            (Schedule::RoundRobin, AsyncPolicy::Late),
            (Schedule::Reverse, AsyncPolicy::Early),
            (Schedule::Random, AsyncPolicy::Random),
            (Schedule::Reverse, AsyncPolicy::Late),
        ];
        let runs: Vec<Options> = orders[..if module.ptx.contains("cp.async") { 4 } else { 3 }]
            .iter()
            .map(|&(schedule, asynchrony)| Options {
                schedule,
                asynchrony,
                seed: 1,
                instructions_max: 4_000_000,
                tensor: TensorMode::Fast,
                ..Options::default()
            })
            .collect();
        let verdicts = mutation::examine(module.ptx, kernel.name, &runs, run).unwrap_or_else(|e| panic!("{e}"));
        let silent = verdicts.iter().filter(|verdict| !matches!(verdict.fate, Fate::Reported(_)));
        let silent: Vec<String> = silent.map(|v| format!("line {} {}: {:?}", v.line, v.was, v.fate)).collect();
        let excused: usize = HARMLESS.iter().filter(|row| row.0 == kernel.name).map(|row| row.1).sum();
        if silent.len() != excused {
            failures.push(format!("{}: of {} barriers, nobody misses {silent:#?}", kernel.name, verdicts.len()));
        }
        judged += verdicts.len();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{judged} barriers taken out");
}
