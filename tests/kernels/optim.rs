//! Optimisers on a GPU: each update as on the CPU, for both rules, tall and wide matrices, rounded copies included.

use crate::ops::simulators;
use nanochat_gpu::device::Device;
use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, Params, Role};
use nanochat_gpu::train::optim::{Kind, Moments, Plan, update};
use nanochat_gpu::verify::{close, normals};
use std::sync::Arc;

/// Values, rounded values and moments after three updates.
fn three_updates(kind: Kind, dtype: DType, device: Device, arena: &Arena) -> [Vec<f64>; 4] {
    let mut layout = Layout::default();
    layout.push("embedding", [7, 5], Role::Embedding);
    layout.push("tall", [70, 33], Role::Matrix);
    layout.push("wide", [20, 97], Role::Matrix);
    layout.push("gain", [1031], Role::Gain);
    let plan = Plan::new(kind, &layout, 64, 1.0, None);
    let layout = Arc::new(layout);
    let mut params = Params::zeros(layout.clone(), dtype);
    params.master_mut().copy_from_f64(&normals("optim values", layout.elems()));
    params.round();
    let mut params = params.to(device);
    let (mut grads, mut moments) = (Grads::zeros_on(device, layout.clone(), dtype), Moments::zeros(&params));
    for step in 0..3 {
        grads.flat_mut().copy_from_f64(&normals(&format!("optim gradient {step}"), layout.elems()));
        update(arena, &plan, &mut params, grads.flat(), &mut moments, 0.7, 0.9);
    }
    let rounded = params.view(nanochat_gpu::tensor::ParamId(1)).to_f64();
    [params.master().to_f64(), rounded, moments.first.to_f64(), moments.second.to_f64()]
}

#[test]
fn updates_are_those_of_the_cpu() {
    for gpu in simulators() {
        for (kind, dtype) in [(Kind::Adamw, DType::F32), (Kind::Muon, DType::F32), (Kind::Adamw, DType::Bf16)] {
            let host = three_updates(kind, dtype, Device::Cpu, &Arena::new(1 << 24).unwrap());
            let device = three_updates(kind, dtype, Device::Gpu(gpu), &Arena::scattered(gpu));
            gpu.synchronise().unwrap();
            for (i, (got, want)) in device.iter().zip(&host).enumerate() {
                // AdamW is the same few roundings; Muon's five rounds of products amplify theirs. A rounded copy may fall on
                // the other side of a tie.
                let bound = match (kind, dtype, i) {
                    (_, DType::Bf16, 1) => 2f64.powi(-8),
                    (Kind::Adamw, ..) => 2e-6,
                    (Kind::Muon, ..) => 2e-4,
                };
                close(&format!("{kind:?} {dtype} {i}"), got, want, bound).unwrap();
            }
        }
    }
}
