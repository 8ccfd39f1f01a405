//! Row-wise kernels beyond the cases of `verify`: rows that take a block, many rows, a cache, what no kernel takes.

use crate::ops::{gradients, ids, simulators, tensor};
use nanochat_gpu::device::Device;
use nanochat_gpu::model::{Gpt, KvCache, ModelConfig};
use nanochat_gpu::ops::{embedding, rmsnorm};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, ParamId, Tensor};
use nanochat_gpu::verify::{OpCase, Outcome, close, integers, normals};

/// Rows above 1024 columns take the kernels with a block per row; 2,500 is no multiple of anything.
#[test]
fn norms_of_wide_rows() {
    for [n, c] in [[9, 2500], [3, 8192]] {
        let case = OpCase {
            name: format!("add_rmsnorm {n}x{c}"),
            inputs: vec![normals("wide residual", n * c), normals("wide delta", n * c), normals("wide gain", c)],
            longest_sum: c,
            run: &|arena, dtype, inputs, dy| {
                let of = |i: usize| tensor(arena, dtype, [n, c], &inputs[i]);
                let gain = tensor(arena, dtype, [c], &inputs[2]);
                let (_, y, saved) = rmsnorm::forward_add(arena, &of(0), of(1), &gain, 1e-5);
                let mut grads = gradients(arena, dtype, &[gain.shape()]);
                let dy = tensor(arena, dtype, [n, c], dy);
                let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), grads.view(ParamId(0)).to_f64()] }
            },
            reference: &|inputs| {
                let sum: Vec<f64> = inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect();
                rmsnorm::reference(&sum, &inputs[2], 1e-5)
            },
        };
        for gpu in simulators() {
            case.check_on(gpu).unwrap();
        }
    }
}

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
    let y = embedding::forward(&arena, &table, &ids(&arena, &[3, 4, u32::MAX])).to_f64();
    gpu.synchronise().unwrap();
    assert!(y[..8].iter().all(|&x| x == 1.0) && y[8..].iter().all(|x| x.is_nan()));
}

/// Prefill, then a token at a time, in f32 and bf16, with grouped heads and a window: as on the CPU.
#[test]
fn a_cached_sequence_gives_the_logits_of_the_cpu() {
    for gpu in simulators() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut config = ModelConfig::from_depth(2, 61, 32);
            (config.width, config.heads, config.kv_heads, config.head_dim, config.ffn_width) = (24, 3, 1, 8, 40);
            (config.window_pattern, config.window, config.softcap) = ("SL".into(), 5, 9.0);
            let model = Gpt::new(config.clone(), dtype).unwrap();
            let mut params = model.init(dtype, 3);
            let values = normals("cached parameters", model.layout().elems());
            params.master_mut().copy_from_f64(&values.iter().map(|x| 0.2 * x).collect::<Vec<_>>());
            params.round();
            let tokens = integers("cached tokens", 13, 61);
            let run = |device: Device, arena: Arena| {
                let (model, params) = (model.to(device), params.clone().to(device));
                let mut cache = KvCache::on(device, &config, 13, dtype);
                let mut all = Vec::new();
                for piece in [&tokens[..9], &tokens[9..10], &tokens[10..]] {
                    all.extend(model.logits_cached(&mut Tape::inference(&arena, &params), piece, &mut cache).to_f64());
                }
                all
            };
            let want = run(Device::Cpu, Arena::new(64 << 20).unwrap());
            let got = run(Device::Gpu(gpu), Arena::scattered(gpu));
            gpu.synchronise().unwrap();
            // Two layers of rounded sums: as far from the CPU's as bf16 rounds a few times over.
            close(&format!("{dtype}"), &got, &want, if dtype == DType::F32 { 1e-5 } else { 6e-2 }).unwrap();
        }
    }
}

#[test]
#[should_panic(expected = "at most 8192")]
fn rows_that_no_kernel_takes_are_refused() {
    let Some(gpu) = simulators().pop() else { panic!("at most 8192: no kernels in this build") };
    let arena = Arena::scattered(gpu);
    let x = Tensor::zeros(&arena, [1, 8193], DType::F32);
    rmsnorm::forward(&arena, &x, &Tensor::zeros(&arena, [8193], DType::F32), 1e-5);
}
