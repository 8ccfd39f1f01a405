//! Whole runs in the simulator: they follow the CPU, repeat bit for bit, and resume. AdamW runs with all checkers on, Muon, of
//! which only the products differ, without.

use super::trainer::{config, go, tokenizer};
use nanochat_gpu::device::modules::MODULES;
use nanochat_gpu::tensor::DType;
use nanochat_gpu::train::run_folder::RunFolder;
use nanochat_gpu::train::trainer::Trainer;
use std::path::Path;

const SMALL: [&str; 3] = ["model.width=64", "train.rows=2", "train.seq_len=32"];

/// Losses of the first `steps` steps on `device`, of the 40 that the schedule has: neither evaluated nor sampled.
fn losses(out: &Path, device: &str, dtype: DType, optimizer: &str, steps: u64) -> Vec<f64> {
    let sim = if optimizer == "adamw" { "device.sim=checked" } else { "device.sim=fast" };
    let optimizer = format!("train.optimizer={optimizer}");
    let mut config = config(&[&SMALL[..], &[&format!("device.kind={device}"), &optimizer, sim]].concat());
    config.device.dtype = dtype;
    go(&mut Trainer::start(config, tokenizer(), out).unwrap(), Some(steps)).2.losses
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

#[test]
fn the_simulator_follows_the_cpu() {
    if MODULES.is_empty() {
        return; // built without nvcc
    }
    let folder = tempfile::tempdir().unwrap();
    for optimizer in ["adamw", "muon"] {
        let run = |device: &str, dtype: DType| {
            losses(&folder.path().join(format!("{optimizer}-{device}-{dtype}")), device, dtype, optimizer, 20)
        };
        let (exact, host, device) = (run("cpu", DType::F64), run("cpu", DType::F32), run("sim", DType::F32));
        let (host_error, device_error) = (furthest(&host, &exact), furthest(&device, &exact));
        // Both round to f32 in their own order: from f64 the simulator may be as far as the CPU, twice over, and 2^-20 of a
        // loss of 6, where the CPU happens to be nearer than its rounding.
        let bound = 2.0 * host_error + 6.0 * 2f64.powi(-20);
        assert!(device_error <= bound, "{optimizer}: {device_error:e} from f64, the CPU {host_error:e}");
        assert!(device[19] < device[0] - 0.2, "{optimizer} learns: {device:?}");
    }
}

#[test]
fn bf16_stays_near_f32_and_learns() {
    if MODULES.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |device: &str, dtype: DType| {
        losses(&folder.path().join(format!("{device}-{dtype}")), device, dtype, "adamw", 12)
    };
    let (wide, narrow, host) = (run("sim", DType::F32), run("sim", DType::Bf16), run("cpu", DType::Bf16));
    // 8 bits of mantissa: logits are off by about 2^-8 of themselves, and a loss by as much.
    assert!(furthest(&narrow, &wide) <= 0.05, "{narrow:?} {wide:?}");
    assert!(furthest(&narrow, &host) <= 0.05, "{narrow:?} {host:?}");
    assert!(narrow[11] < narrow[0] - 0.1, "{narrow:?}");
}

#[test]
fn recorded_steps_are_the_steps_as_they_are_written() {
    if MODULES.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let mut config =
            config(&[&SMALL[..], &["device.kind=sim", "device.sim=checked", "train.optimizer=muon"], more].concat());
        config.device.dtype = DType::Bf16;
        let heard = go(&mut Trainer::start(config, tokenizer(), &out).unwrap(), Some(4)).2;
        (heard.losses, bits(&out, 4))
    };
    // Two micro-batches a step: the second is recorded, all later ones are replayed.
    let two = "train.batch_tokens=128";
    let written = run("written", &[two, "device.graph=false"]);
    assert_eq!(run("recorded", &[two]), written);
    let other = run("other", &[two, "train.seed=7"]);
    assert!(other.0 != written.0 && other.1 != written.1, "another seed is another run");
}

#[test]
fn a_step_that_must_not_be_applied_changes_nothing_on_a_gpu() {
    if MODULES.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // After 40 steps, whatever is above its mean is called a spike.
    let strict = ["train.spike_sigma=0.0001", "train.bad_steps_max=99", "train.optimizer=adamw", "train.lr_scale=0.1"];
    let run = |kind: &str| {
        let kind_key = format!("device.kind={kind}");
        let mut config = config(&[&SMALL[..], &strict, &[&kind_key, "device.sim=fast", "train.steps=60"]].concat());
        config.device.dtype = DType::F32;
        let heard = go(&mut Trainer::start(config, tokenizer(), &folder.path().join(kind)).unwrap(), Some(50)).2;
        let skipped = heard.notices.iter().filter_map(|notice| notice.split_once(" skipped: "));
        (heard.losses.clone(), skipped.map(|(step, _)| step.to_string()).collect::<Vec<_>>())
    };
    let ((host, skipped_on_host), (device, skipped)) = (run("cpu"), run("sim"));
    assert!(skipped.len() > 1, "{skipped:?}");
    assert_eq!(skipped, skipped_on_host);
    // An update moves the loss by some thousandths.
    assert!(furthest(&host, &device) <= 2e-5, "{host:?} {device:?}");
}

/// Every file of the checkpoint at `step`, by its checksum.
fn bits(run: &Path, step: u64) -> String {
    std::fs::read_to_string(run.join(format!("checkpoints/step_{step:06}/checksums"))).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bits_also_when_stopped_and_resumed() {
    if MODULES.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    for optimizer in ["adamw", "muon"] {
        let whole = out(&format!("whole-{optimizer}"));
        losses(&whole, "sim", DType::Bf16, optimizer, 6);
        let stopped = out(&format!("stopped-{optimizer}"));
        losses(&stopped, "sim", DType::Bf16, optimizer, 3);
        let (run, config) = RunFolder::open(&stopped).unwrap();
        assert_eq!((&config.device.kind[..], config.device.dtype), ("sim", DType::Bf16));
        let mut trainer = Trainer::resume(run, config, 0).unwrap();
        assert_eq!(trainer.step(), 3);
        go(&mut trainer, Some(6));
        assert_eq!(bits(&whole, 6), bits(&stopped, 6), "{optimizer}");
    }
}
