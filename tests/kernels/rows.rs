//! Row-wise kernels beyond those of the ops: many rows, a cache, casts and fills, what no kernel takes.

use crate::ops::{check_on_all, gradients, ids, simulators, tensor};
use nanochat_gpu::ops::{embedding, rmsnorm};
use nanochat_gpu::tensor::{Arena, DType, ParamId, Tensor};
use nanochat_gpu::verify::{self, close, normals};

/// More rows than all warps of all parts of backward: every warp takes several.
#[test]
fn gains_gather_over_many_rows() {
    let Some(gpu) = simulators().pop() else { return };
    let (n, c) = (9000, 8);
    let host = Arena::new(64 << 20).unwrap();
    let run = |arena: &Arena| {
        let at = |name: &str| tensor(arena, DType::F32, [n, c], &normals(name, n * c));
        let (x, dy, gain) = (at("many x"), at("many dy"), tensor(arena, DType::F32, [c], &normals("many gain", c)));
        let (_, saved) = rmsnorm::forward(arena, &x, &gain, 1e-5);
        let mut grads = gradients(arena, DType::F32, &[gain.shape()]);
        let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
        [dx.to_f64(), grads.view(ParamId(0)).to_f64()]
    };
    for (got, want) in run(&Arena::scattered(gpu)).iter().zip(run(&host)) {
        close("many rows", got, &want, 2e-5).unwrap();
    }
    gpu.synchronise().unwrap();
}

#[test]
fn a_token_beyond_the_table_gives_nan_and_no_fault() {
    let Some(gpu) = simulators().pop() else { return };
    let arena = Arena::scattered(gpu);
    let table = tensor(&arena, DType::F32, [4, 8], &[1.0; 32]);
    let y = embedding::forward(&arena, &table, &ids(&arena, &[3, 4, u32::MAX - 1, embedding::NOTHING])).to_f64();
    gpu.synchronise().unwrap();
    assert!(y[..8].iter().all(|&x| x == 1.0) && y[8..24].iter().all(|x| x.is_nan()));
    assert!(y[24..].iter().all(|&x| x == 0.0));
}

#[test]
fn a_cached_sequence_gives_the_logits_of_the_cpu() {
    check_on_all(verify::state::cached_model_on);
}

#[test]
fn casts_and_fills_at_awkward_sizes() {
    check_on_all(verify::state::cast_on);
    check_on_all(verify::state::fill_on);
}

#[test]
#[should_panic(expected = "at most 8192")]
fn rows_that_no_kernel_takes_are_refused() {
    let Some(gpu) = simulators().pop() else { panic!("at most 8192: no kernels in this build") };
    let arena = Arena::scattered(gpu);
    let x = Tensor::zeros(&arena, [1, 8193], DType::F32);
    rmsnorm::forward(&arena, &x, &Tensor::zeros(&arena, [8193], DType::F32), 1e-5);
}
