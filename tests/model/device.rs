//! The whole model on a GPU: loss, logits and the gradient of every parameter, against f64 on the CPU.

use super::gpt::{configs, mixed, random_params, rows};
use super::parts::{Alone, abacus, digits, each};
use crate::ops::simulators;
use nanochat_gpu::device::Device;
use nanochat_gpu::model::gpt::{Recompute, Rows};
use nanochat_gpu::model::losses::LossScales;
use nanochat_gpu::model::{Carried, Gpt, KvCache, ModelConfig, Parts};
use nanochat_gpu::tape::Tape;
use nanochat_gpu::tensor::{Arena, DType, Grads, ParamId, Params, Role, Tensor};
use nanochat_gpu::verify::{close, integers};

/// Logits, every loss, and the gradient of each parameter.
fn everything(device: Device, arena: &Arena, model: &Gpt, params: &Params, recompute: Recompute) -> Vec<Vec<f64>> {
    let (host_rows, targets) = rows(model, 16);
    let (model, params) = (model.to(device), params.clone().to(device));
    let ids = |tensor: &Tensor| Tensor::from_slice(arena, [tensor.elems()], tensor.as_slice::<u32>());
    let [doc_start, starts] = [&host_rows.doc_start, &host_rows.starts].map(|x| x.as_ref().map(ids));
    let (rows, targets) = (Rows { tokens: ids(&host_rows.tokens), doc_start, starts, ..host_rows }, ids(&targets));
    let logits = model.logits(&mut Tape::inference(arena, &params), &rows).to_f64();
    let mut grads = Grads::zeros_on(device, model.layout().clone(), params.dtype());
    let mut tape = Tape::recording(arena, &params, &mut grads);
    let scales = LossScales::all(1.0 / 32.0, 0.3);
    let losses = model.losses(&mut tape, &rows, &targets, &scales, recompute, &mut Carried::default());
    let losses: Vec<f64> = losses.iter().flat_map(|loss| loss.values.to_f64()).collect();
    tape.backward();
    drop(tape);
    let gradient = |i: usize| grads.view(ParamId(i as u32)).to_f64();
    let gradients = (0..model.layout().entries().len()).map(gradient);
    [logits, losses].into_iter().chain(gradients).collect()
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), x| (sum + x * x, n + 1));
    (sum / f64::from(n.max(1))).sqrt()
}

#[test]
fn loss_logits_and_every_gradient_are_as_near_f64_as_the_cpus() {
    for gpu in simulators() {
        let with_parts =
            each().into_iter().map(|Alone { parts, .. }| ModelConfig { parts, ..configs().swap_remove(0) });
        for config in configs().into_iter().chain(with_parts) {
            for dtype in [DType::F32, DType::Bf16] {
                let host = Arena::new(256 << 20).unwrap();
                let exact_model = Gpt::new(config.clone(), DType::F64).unwrap();
                let model = Gpt::new(config.clone(), dtype).unwrap();
                let params = random_params(&model, dtype);
                // The exact model has the values that the narrow one computes with.
                let mut exact_params = random_params(&exact_model, DType::F64);
                let used = (0..model.layout().entries().len()).flat_map(|i| params.view(ParamId(i as u32)).to_f64());
                exact_params.master_mut().copy_from_f64(&used.collect::<Vec<_>>());
                let exact = everything(Device::Cpu, &host, &exact_model, &exact_params, Recompute::Nothing);
                let cpu = everything(Device::Cpu, &host, &model, &params, Recompute::Nothing);
                let recompute = if dtype == DType::F32 { Recompute::Nothing } else { Recompute::Blocks };
                let arena = Arena::scattered(gpu);
                let device = everything(Device::Gpu(gpu), &arena, &model, &params, recompute);
                gpu.synchronise().unwrap();
                let layout = model.layout();
                let entries = layout.entries().iter().map(|entry| &entry.name[..]);
                let names = ["logits", "losses"].into_iter().chain(entries);
                let unit = if dtype == DType::F32 { 2f64.powi(-24) } else { 2f64.powi(-9) };
                let error = |got: &[f64], exact: &[f64]| rms(got.iter().zip(exact).map(|(a, b)| a - b));
                let size = |exact: &[f64]| rms(exact.iter().copied());
                // On a handful of numbers the CPU may be near f64 by luck: there its usual distance counts.
                let mut usual: Vec<f64> =
                    cpu.iter().zip(&exact).map(|(got, exact)| error(got, exact) / size(exact)).collect();
                usual.sort_by(f64::total_cmp);
                let usual = usual[usual.len() / 2];
                for (((name, exact), cpu), device) in names.zip(&exact).zip(&cpu).zip(&device) {
                    let (plain, ours, size) = (error(cpu, exact), error(device, exact), size(exact));
                    let plain = if exact.len() < 8 { plain.max(usual * size) } else { plain };
                    let bound = 2.0 * plain + 8.0 * unit * size;
                    assert!(ours <= bound, "{name} in {dtype}: {ours:e} from f64, the CPU {plain:e}, of {size:e}");
                    let is_fixed = layout.entries().iter().any(|e| e.name == name && e.role == Role::Fixed);
                    assert_eq!(size > 0.0, !is_fixed, "{name} is zero");
                }
            }
        }
    }
}

/// A prompt longer than a chunk, a token, and some more: states, convolutions and runs of digits go on as on the CPU.
#[test]
fn a_cached_sequence_goes_on_as_on_the_cpu() {
    let parts = Parts { abacus: abacus().abacus, ..digits() };
    let config = ModelConfig { document_mask: false, max_seq_len: 80, parts, ..mixed() };
    let tokens = integers("cached", 75, config.vocab_size);
    for dtype in [DType::F32, DType::Bf16] {
        let model = Gpt::new(config.clone(), dtype).unwrap();
        let params = random_params(&model, dtype);
        let run = |device: Device, arena: &Arena| {
            let (model, params) = (model.to(device), params.clone().to(device));
            let mut cache = KvCache::on(device, &config, 75, dtype);
            let pieces = [&tokens[..66], &tokens[66..67], &tokens[67..]];
            let logits =
                |piece: &&[u32]| model.logits_cached(&mut Tape::inference(arena, &params), piece, &mut cache).to_f64();
            pieces.iter().flat_map(logits).collect::<Vec<_>>()
        };
        let want = run(Device::Cpu, &Arena::new(64 << 20).unwrap());
        for gpu in simulators() {
            let got = run(Device::Gpu(gpu), &Arena::scattered(gpu));
            gpu.synchronise().unwrap();
            // Three blocks and a memory of rounded sums.
            close(&format!("{dtype}"), &got, &want, if dtype == DType::F32 { 2e-5 } else { 0.1 }).unwrap();
        }
    }
}
