use super::*;
use nanochat_gpu::ops::linear;
use nanochat_gpu::ops::mlp::{self, Keep, Weights};
use nanochat_gpu::ops::swiglu;
use nanochat_gpu::verify::{self, normals};

#[test]
fn cases() {
    check(verify::products::mlp);
}

/// The fused kernels round where the separate ones do, so every bit is the same, on both architectures; and they meet no bank
/// conflict.
#[test]
fn fused_is_as_in_separate_kernels() {
    for gpu in simulators().into_iter().chain(hopper()) {
        for [n, c, f] in [[131, 40, 72], [140, 72, 200]] {
            let arena = Arena::scattered(gpu);
            let at = |name, shape: [usize; 2]| tensor(&arena, DType::Bf16, shape, &normals(name, shape[0] * shape[1]));
            let (x, dy) = (at("mlp x", [n, c]), at("mlp dy", [n, c]));
            let (gate_up_weight, down) = (at("mlp gate up", [2 * f, c]), at("mlp down", [c, f]));
            let weights = Weights { gate_up: &gate_up_weight, down: &down };
            gpu.take_counts();
            let (_, saved) = mlp::forward(&arena, x.clone(), weights, None, Keep::Everything);
            let saved = saved.unwrap();
            let gate_up = linear::forward(&arena, &x, &gate_up_weight);
            assert!(saved.gate_up.to_bytes() == gate_up.to_bytes(), "{n} {c} {f}: gate and up");
            assert!(saved.hidden.to_bytes() == swiglu::forward(&arena, &gate_up).to_bytes(), "{n} {c} {f}: hidden");
            let mut grads = [(); 2].map(|()| gradients(&arena, DType::Bf16, &[gate_up_weight.shape(), down.shape()]));
            let [fused, apart] = &mut grads;
            let [mut dgate_up, mut ddown] = fused.pair_mut(ParamId(0), ParamId(1));
            let dx = mlp::backward(&arena, [&mut dgate_up, &mut ddown], &dy, weights, saved);
            let hidden = linear::Saved { x: swiglu::forward(&arena, &gate_up) };
            let d = linear::backward(&arena, &mut apart.view_mut(ParamId(1)), &dy, &down, &hidden);
            let d = swiglu::backward(&arena, &d, &swiglu::Saved { gate_up });
            let input = linear::Saved { x };
            let dx_apart = linear::backward(&arena, &mut apart.view_mut(ParamId(0)), &d, &gate_up_weight, &input);
            assert!(dx.to_bytes() == dx_apart.to_bytes(), "{n} {c} {f}: dx");
            assert!(fused.flat().to_bytes() == apart.flat().to_bytes(), "{n} {c} {f}: gradients of the weights");
            gpu.synchronise().unwrap();
            let counts = gpu.take_counts();
            for name in ["mlp_fwd_gate_up_mma_bf16", "mlp_bwd_down_mma_bf16"] {
                let counted = &counts[name];
                assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{name}: {counted:?}");
            }
        }
    }
}

/// Without backward to come gate and up are never in memory: less than half the bytes of the separate kernels.
#[test]
fn what_is_not_kept_is_not_written() {
    let Some(gpu) = simulators().pop() else { return };
    let (arena, [n, c, f]) = (Arena::scattered(gpu), [256, 64, 256]);
    let at = |name, shape: [usize; 2]| tensor(&arena, DType::Bf16, shape, &verify::normals(name, shape[0] * shape[1]));
    let (x, gate_up, down) = (at("mlp x", [n, c]), at("mlp gate up", [2 * f, c]), at("mlp down", [c, f]));
    let weights = Weights { gate_up: &gate_up, down: &down };
    let moved = |keep| {
        gpu.take_counts();
        mlp::forward(&arena, x.clone(), weights, None, keep);
        gpu.synchronise().unwrap();
        gpu.take_counts()["mlp_fwd_gate_up_mma_bf16"].global_bytes_moved as usize
    };
    let (kept, not_kept) = (moved(Keep::Everything), moved(Keep::Nothing));
    assert_eq!(kept - not_kept, 2 * n * 2 * f, "gate and up: once, in whole sectors");
    // Two rows of tiles read all of the weight, four columns of tiles all of x.
    assert_eq!(not_kept, 2 * (n * f + 2 * 2 * f * c + 4 * n * c));
}
