//! Memory traffic of the memory-bound kernels, counted: at most 1.05 times the bytes they must move, plus what they are
//! allowed to read again from a cache; and nearly every byte of a sector is one that a lane asked for.

use crate::ops::{gradients, ids, simulators, tensor};
use nanochat_gpu::device::driver::sim::SimOptions;
use nanochat_gpu::device::gpu::Gpu;
use nanochat_gpu::ops::rope::{Heads, QkNorm, Table, frequencies};
use nanochat_gpu::ops::{add, blend, embedding, grad_norm, linear, rmsnorm, rope, scale_grad, softcap, swiglu};
use nanochat_gpu::ops::{decay_gate, relu_squared, short_conv, sigmoid_gate, unit_norm};
use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, ParamId, Params, Role, Tensor};
use nanochat_gpu::train::optim::{Kind, Moments, Plan, update};
use nanochat_gpu::verify::{integers, normals};
use std::collections::BTreeMap;
use std::sync::Arc;

const N: usize = 256;
const C: usize = 512;

/// Bytes that must move, and bytes that may be read again from L1 or L2 (gains, tables, tokens).
#[derive(Clone, Copy)]
struct Budget {
    must: usize,
    cached: usize,
}

fn check(gpu: &Gpu, budgets: &BTreeMap<&str, Budget>) {
    gpu.synchronise().unwrap();
    let counts = gpu.take_counts();
    for (kernel, Budget { must, cached }) in budgets {
        let counted = &counts[*kernel];
        let (moved, asked) = (counted.global_bytes_moved as f64, counted.global_bytes_requested as f64);
        let most = 1.05 * *must as f64 + *cached as f64;
        assert!(moved <= most, "{kernel} moves {moved} bytes; it must move {must}, and may read {cached} again");
        assert!(moved >= 0.95 * *must as f64, "{kernel} moves {moved} bytes, fewer than the {must} of the formula");
        assert!(asked >= 0.95 * moved, "{kernel} asks for {asked} of {moved} bytes moved");
    }
}

/// Runs every memory-bound op in `dtype` and checks the traffic of its kernels.
fn check_ops(gpu: &'static Gpu, dtype: DType) {
    let (arena, size) = (Arena::scattered(gpu), dtype.size_bytes());
    let at = |shape: [usize; 2]| tensor(&arena, dtype, shape, &normals("traffic", shape[0] * shape[1]));
    let elems = N * C * size;
    drop(add::forward(&arena, at([N, C]), &at([N, C])));
    drop(scale_grad::backward(&arena, at([N, C]), &0.5.into()));
    let y = softcap::forward(&arena, at([N, C]), 15.0);
    drop(softcap::backward(&arena, at([N, C]), &softcap::Saved { y, cap: 15.0 }));
    let x = at([N, C]);
    drop(relu_squared::forward(&arena, &x));
    drop(relu_squared::backward(&arena, &at([N, C]), &relu_squared::Saved { x }));
    let gate_up = at([N, 2 * C]);
    drop(swiglu::forward(&arena, &gate_up));
    drop(swiglu::backward(&arena, &at([N, C]), &swiglu::Saved { gate_up }));
    let gain = tensor(&arena, dtype, [C], &normals("traffic gain", C));
    let mut grads = gradients(&arena, dtype, &[gain.shape()]);
    let (_, _, saved) = rmsnorm::forward_add(&arena, &at([N, C]), at([N, C]), &gain, 1e-5);
    let dsum = Some(at([N, C]));
    drop(rmsnorm::backward(&arena, &mut grads.view_mut(ParamId(0)), &at([N, C]), dsum, &gain, &saved));
    let (controller, bias) = (at([3, C]), tensor(&arena, dtype, [3], &normals("traffic bias", 3)));
    let weights = blend::Weights { controller: Some(&controller), bias: &bias, gain: &gain };
    let options = blend::Options { source: blend::Source::Third, lean: [0.0; 3], eps: 1e-5 };
    let (y, x, saved) = blend::forward(&arena, [at([N, C]), at([N, C]), at([N, C])], weights, options);
    let mut grads = gradients(&arena, dtype, &[controller.shape(), bias.shape(), gain.shape()]);
    let [dcontroller, dbias, dgain] = grads.disjoint_mut([0, 1, 2].map(|i| ParamId(i).into()));
    let to = blend::Gradients { controller: Some(dcontroller), bias: dbias, gain: dgain };
    drop(blend::backward(&arena, to, Some(y), Some(x), weights, &saved));
    drop(embedding::forward(&arena, &at([64, C]), &ids(&arena, &integers("traffic tokens", N, 64))));
    let heads = Heads { h: 4, g: 2, d: 64 };
    let (row, normed) = (heads.row_elems(), (heads.h + heads.g) * heads.d);
    let table = Table::new(N, &frequencies(64, 1e4, None), DType::F32).to(arena.device());
    let gains = [(); 2].map(|()| tensor(&arena, dtype, [64], &normals("traffic head gain", 64)));
    let norm = QkNorm { q_gain: &gains[0], k_gain: &gains[1], eps: 1e-5 };
    drop(rope::forward(&arena, at([N, row]), heads, N, 0, &table, Some(norm)));
    memory_ops(&arena, dtype);
    let suffix = |name: &str| -> &'static str { format!("{name}_{dtype}").leak() };
    let table_again = N * (heads.h + heads.g) * 64 * 4;
    let budgets = BTreeMap::from([
        (suffix("add_fwd_vector"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("scale_grad_bwd_vector"), Budget { must: 2 * elems, cached: 0 }),
        (suffix("softcap_fwd_vector"), Budget { must: 2 * elems, cached: 0 }),
        (suffix("softcap_bwd_vector"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("relu_squared_fwd_vector"), Budget { must: 2 * elems, cached: 0 }),
        (suffix("relu_squared_bwd_vector"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("swiglu_fwd_vector"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("swiglu_bwd_vector"), Budget { must: 5 * elems, cached: 0 }),
        // Sectors of 32 bytes for the 4 of a row's rstd, and the gain for every row.
        (suffix("rmsnorm_fwd_warp_per_row"), Budget { must: 4 * elems, cached: elems + 32 * N }),
        (suffix("rmsnorm_bwd_warp_per_row"), Budget { must: 4 * elems, cached: elems + 32 * N }),
        // Controller and gain for every row, and a sector for each of its few words: weights, scores, roots, and the bias, which all
        // 16 warps read. Backward writes its shares of dgain by words that lie 16 or 32 bytes apart.
        (suffix("blend_fwd_block_per_row"), Budget { must: 5 * elems, cached: 4 * elems + (3 * 16 + 4) * 32 * N }),
        (
            suffix("blend_bwd_block_per_row"),
            Budget { must: 8 * elems, cached: 4 * elems + 8 * 16 * 32 * N + N / 8 * (C + 3) * 32 },
        ),
        (suffix("unit_norm_fwd_lanes_per_row"), Budget { must: 2 * elems, cached: 0 }),
        (suffix("unit_norm_bwd_lanes_per_row"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("sigmoid_gate_fwd_vector"), Budget { must: 3 * elems, cached: 0 }),
        (suffix("sigmoid_gate_bwd_vector"), Budget { must: 5 * elems, cached: 0 }),
        // Offsets again for every row, and a sector of rates for every warp's two to four heads.
        (suffix("decay_gate_fwd_vector"), Budget { must: 2 * elems, cached: elems + 32 * elems / 256 }),
        // Partial sums of four parts of rows, parameters for every warp.
        (suffix("decay_gate_bwd_column_runs"), Budget { must: 3 * elems + 4 * 8 * C, cached: 4 * 8 * C * 4 }),
        // Three rows before each run of 64 forward, six (and three of the gradient) backward; weights for every run, each half of a
        // sector asked for by itself.
        (
            suffix("short_conv_fwd_channel_runs"),
            Budget { must: 2 * elems, cached: elems * 3 / 64 + 4 * 8 * C * size + 3 * C * size },
        ),
        (
            suffix("short_conv_bwd_channel_runs"),
            Budget { must: 3 * elems, cached: elems * 9 / 64 + 4 * 8 * C * size + 16 * C },
        ),
        // A word of tokens in a sector for every warp's part of a row.
        (suffix("embedding_fwd_vector"), Budget { must: 2 * elems, cached: 32 * (elems / 512) }),
        (
            suffix("rope_fwd_warp_per_head"),
            Budget { must: 2 * N * row * size, cached: table_again + N * normed * size + 32 * N * 6 },
        ),
    ]);
    check(gpu, &budgets);
}

/// The ops of a carried state whose traffic has a budget.
fn memory_ops(arena: &Arena, dtype: DType) {
    let at = |shape: [usize; 2]| tensor(arena, dtype, shape, &normals("traffic", shape[0] * shape[1]));
    let (_, saved) = unit_norm::forward(arena, &at([N, C]), 64);
    drop(unit_norm::backward(arena, &at([N, C]), 64, &saved));
    let (_, saved) = sigmoid_gate::forward(arena, Some(&at([N, C])), &at([N, C]));
    drop(sigmoid_gate::backward(arena, &at([N, C]), &saved));
    let (a, dt) = (at([1, C / 64]), at([C / 64, 64]));
    let rates = decay_gate::Rates { a: &a, dt: &dt };
    let (_, saved) = decay_gate::forward(arena, &at([N, C]), rates);
    let mut grads = gradients(arena, dtype, &[a.shape(), dt.shape()]);
    let [mut da, mut ddt] = grads.pair_mut(ParamId(0), ParamId(1));
    drop(decay_gate::backward(arena, [&mut da, &mut ddt], &at([N, C]), rates, &saved));
    let w = at([C, 4]);
    let (_, _, saved) = short_conv::forward(arena, &at([N, C]), &w, N, short_conv::Past::default());
    let mut grads = gradients(arena, dtype, &[w.shape()]);
    drop(short_conv::backward(arena, &mut grads.view_mut(ParamId(0)), &at([N, C]), &w, N, &saved));
}

/// One schedule is enough: counters do not depend on it.
fn counting() -> Option<&'static Gpu> {
    (!simulators().is_empty()).then(|| Gpu::sim(SimOptions::checked()).unwrap())
}

#[test]
fn row_wise_kernels_move_what_they_must() {
    let Some(gpu) = counting() else { return };
    check_ops(gpu, DType::F32);
    check_ops(gpu, DType::Bf16);
}

#[test]
fn optimiser_kernels_move_what_they_must() {
    let Some(gpu) = counting() else { return };
    let (arena, mut layout) = (Arena::scattered(gpu), Layout::default());
    let n = 64 * 1024;
    layout.push("w", [64, 1024], Role::Matrix);
    let plan = Plan::new(Kind::Adamw, &layout, 64, 1.0, None);
    let layout = Arc::new(layout);
    let mut params = Params::zeros(layout.clone(), DType::Bf16).to(arena.device());
    let mut grads = Grads::zeros_on(arena.device(), layout, DType::Bf16);
    grads.flat_mut().copy_from_f64(&normals("traffic gradients", n));
    let mut moments = Moments::zeros(&params);
    let sums = grad_norm::sums_of_squares(&arena, grads.flat(), std::slice::from_ref(&(0..n)));
    update(&arena, &plan, &mut params, grads.flat(), &mut moments, 1.0, 1.0);
    assert!(sums[0] > 0.9 * n as f64);
    let mut copy = Tensor::uninit(&arena, [n], DType::F32);
    params.view(ParamId(0)).reshape([n]).cast_into(&mut copy);
    let budgets = BTreeMap::from([
        ("adamw_fwd_vector_f32", Budget { must: 28 * n, cached: 0 }),
        ("cast_fwd_vector_f32_to_bf16", Budget { must: 6 * n, cached: 0 }),
        ("cast_fwd_vector_bf16_to_f32", Budget { must: 6 * n, cached: 0 }),
        ("grad_norm_fwd_listed_part_per_block_f32", Budget { must: 4 * n, cached: 0 }),
    ]);
    check(gpu, &budgets);
}

/// A residual that the product adds saves the way of the product through memory: 4 values an element move, where they were 5.
#[test]
fn a_residual_in_the_product_moves_fewer_bytes() {
    let Some(gpu) = counting() else { return };
    let (arena, i) = (Arena::scattered(gpu), 128);
    let at = |name, shape: [usize; 2]| tensor(&arena, DType::Bf16, shape, &normals(name, shape[0] * shape[1]));
    let (x, w, residual) = (at("traffic x", [N, i]), at("traffic w", [C, i]), at("traffic residual", [N, C]));
    let gain = tensor(&arena, DType::Bf16, [C], &normals("traffic gain", C));
    let moved = |work: &dyn Fn()| {
        gpu.take_counts();
        work();
        gpu.synchronise().unwrap();
        gpu.take_counts().values().map(|counted| counted.global_bytes_moved as usize).sum::<usize>()
    };
    let pending = moved(&|| {
        let delta = linear::forward(&arena, &x, &w);
        drop(rmsnorm::forward_add(&arena, &residual, delta, &gain, 1e-5));
    });
    let at_once = moved(&|| {
        let sum = linear::forward_onto(&arena, &x, &w, &residual);
        drop(rmsnorm::forward(&arena, &sum, &gain, 1e-5));
    });
    assert_eq!(pending - at_once, 2 * N * C, "{pending} bytes pending, {at_once} at once");
}
