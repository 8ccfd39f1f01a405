//! Training: the optimisers, the trainer, and what a run leaves behind.

mod abacus;
mod device;
mod digits;
mod kda;
mod learning;
mod memetic;
mod optim;
mod parts;
mod plot;
mod trainer;

use nanochat_gpu::device::modules::MODULES;
use nanochat_gpu::tensor::DType;

/// The losses of each step of `run(folder, more settings, type)`: in the simulator as near f64 as twice the CPU, and the same bits whether
/// steps are replayed or written out. Nothing where this build has no kernels.
fn the_simulator_follows_the_cpu(run: impl Fn(&str, &[&str], DType) -> Vec<Vec<f64>>) {
    if MODULES.is_empty() {
        return; // built without nvcc
    }
    let sim = ["device.kind=sim", "device.sim=checked"];
    let (exact, host) = (run("exact", &[], DType::F64), run("host", &[], DType::F32));
    let device = run("device", &sim, DType::F32);
    assert_eq!(device, run("written", &[&sim[..], &["device.graph=false"]].concat(), DType::F32));
    for (step, ((exact, host), device)) in exact.iter().zip(&host).zip(&device).enumerate() {
        for (k, ((exact, host), device)) in exact.iter().zip(host).zip(device).enumerate() {
            let (host, device) = ((host - exact).abs(), (device - exact).abs());
            let bound = 2.0 * host + 2f64.powi(-18) * exact.abs().max(1.0);
            assert!(device <= bound, "step {step}, loss {k}: {device:e} from f64, the CPU {host:e}");
        }
    }
}
