//! The rows that are timed: their names, what they count in the simulator, and the command.

use crate::cli::{last_object, refused, succeed};
use crate::ops::HOPPER;
use nanochat_gpu::bench::measure::{Bench, Effort};
use nanochat_gpu::bench::{Row, Size, rows};
use nanochat_gpu::device::driver::Capability;
use nanochat_gpu::device::driver::sim::SimOptions;
use nanochat_gpu::device::gpu::Gpu;
use nanochat_gpu::device::modules::{KERNELS, MODULES};
use nanochat_gpu::device::{Device, choice};
use nanochat_gpu::tensor::DType;
use std::collections::BTreeSet;

/// A simulated GPU that counts and does not check: that is for the cases of `verify`.
fn counting(capability: Capability) -> Option<&'static Gpu> {
    let mut options = SimOptions { capability, ..SimOptions::fast() };
    options.run.counters = true;
    (!MODULES.is_empty()).then(|| Gpu::sim(options).unwrap())
}

const AMPERE: Capability = Capability { major: 8, minor: 0 };

fn key(row: &Row) -> String {
    format!("{} {}", row.name(), row.extents())
}

#[test]
fn names_are_unique_and_every_op_has_both_types() {
    for size in [Size::Smoke, Size::Host, Size::Card] {
        let rows = rows(size, Some(HOPPER));
        let keys: BTreeSet<String> = rows.iter().map(key).collect();
        assert_eq!(keys.len(), rows.len(), "{size:?}");
        let ops = |dtype| rows.iter().filter(|row| row.dtype == dtype).map(|row| row.op).collect::<BTreeSet<_>>();
        let (wide, narrow) = (ops(DType::F32), ops(DType::Bf16));
        assert_eq!(wide.difference(&narrow).copied().collect::<Vec<_>>(), ["copy", "grad_norm"], "{size:?}");
        assert_eq!(narrow.difference(&wide).copied().collect::<Vec<_>>(), ["gemm_packed"], "{size:?}");
        assert!(narrow.len() >= 14, "{size:?} {narrow:?}");
        for row in &rows {
            assert!(row.work.bytes > 0 || row.work.tokens > 0, "{}", key(row));
        }
    }
}

/// Every row launches the kernel that its name tells, in its type; together they launch all but those of what is not timed.
#[test]
fn rows_launch_the_kernels_of_their_names_and_are_counted() {
    let Some(gpu) = counting(AMPERE) else { return };
    let bench = Bench::new(Device::Gpu(gpu), Size::Smoke, Effort::SMOKE).unwrap();
    let mut launched = BTreeSet::new();
    for row in rows(Size::Smoke, Some(AMPERE)) {
        let measured = bench.measure(&row).unwrap_or_else(|why| panic!("{}: {why}", key(&row)));
        assert!(measured.timing.is_none() && measured.digest.len() == 16, "{}", key(&row));
        if row.op == "copy" {
            assert!(measured.kernels.is_empty() && measured.counted.is_empty());
            continue;
        }
        let any = |part: &str| measured.kernels.iter().any(|name| name.contains(part));
        assert!(any(row.mechanism), "{}: {:?}", key(&row), measured.kernels);
        assert!(any("bf16") == (row.dtype == DType::Bf16) || row.op == "cast", "{}: {:?}", key(&row), measured.kernels);
        assert!(measured.kernels.iter().all(|name| measured.counted.contains_key(*name)), "{}", key(&row));
        let moved: u64 = measured.counted.values().map(|counted| counted.global_bytes_moved).sum();
        // Tables, gains and gradients of gains are small beside the rows even here; rows of a gradient that no token names are
        // not moved.
        assert!(moved as f64 >= 0.5 * row.work.bytes as f64, "{}: {moved} of {}", key(&row), row.work.bytes);
        let macs: u64 = measured.counted.values().map(|counted| counted.tensor_macs).sum();
        assert!(!row.mechanism.contains("mma") || 2 * macs as usize >= row.work.flops, "{}: {macs} MACs", key(&row));
        launched.extend(measured.kernels);
    }
    let untimed =
        |name: &str| ["fill_", "clip_fwd_losses", "embedding_packed"].iter().any(|stem| name.starts_with(stem));
    // Twins of what is chosen in bf16.
    let twin = |name: &str| {
        let names = ["attention_naive", "gemm_naive_tiled_bf16", "paged_attention_fwd_split_keys_bf16"];
        names.iter().any(|twin| name.contains(twin))
    };
    // Widths that no row has, and narrow products into f32, of which a step has some.
    let other = |name: &str| {
        (name.starts_with("attention_flash") || name.contains("tile_keys")) && !name.contains("_d64_")
            || name.starts_with("rope_bwd_wide")
            || name.contains("_to_f32")
            || name == "gemm_split_sum_f32"
    };
    let here = KERNELS.iter().filter(|kernel| kernel.is_for(AMPERE)).map(|kernel| kernel.name);
    let missed: Vec<&str> = here.filter(|name| !launched.contains(name)).collect();
    assert!(missed.iter().all(|name| untimed(name) || other(name) || twin(name)), "{missed:?}");
}

/// A device of capability 9.0 has rows of its own for products, and those of `mma` beside them.
#[test]
fn rows_of_products_name_their_kernels_on_hopper() {
    let Some(gpu) = counting(HOPPER) else { return };
    let bench = Bench::new(Device::Gpu(gpu), Size::Smoke, Effort::SMOKE).unwrap();
    let rows = rows(Size::Smoke, Some(HOPPER));
    let products = |mechanism: &str| rows.iter().filter(|row| row.mechanism.starts_with(mechanism)).collect::<Vec<_>>();
    let [by_wgmma, by_mma] = [products("wgmma_"), products("mma_a")];
    assert_eq!([by_wgmma.len(), by_mma.len()], [8, 8]);
    for row in by_wgmma.into_iter().chain(by_mma) {
        let measured = bench.measure(row).unwrap_or_else(|why| panic!("{}: {why}", key(row)));
        let kernel = format!("gemm_{}_bf16", row.mechanism);
        assert!(measured.kernels.iter().any(|name| name.starts_with(&kernel)), "{}: {:?}", key(row), measured.kernels);
    }
}

/// The same row twice gives the same bits, on the processor and in the simulator.
#[test]
fn a_row_repeats_its_bits() {
    let mut devices = vec![Device::Cpu];
    devices.extend(counting(AMPERE).map(Device::Gpu));
    for device in devices {
        let bench = Bench::new(device, Size::Smoke, Effort::SMOKE).unwrap();
        for row in rows(Size::Smoke, None).iter().filter(|row| ["linear", "rmsnorm", "train_step"].contains(&row.op)) {
            let [first, second] = [(); 2].map(|()| bench.measure(row).unwrap());
            assert_eq!(first.digest, second.digest, "{device} {}", key(row));
            assert_eq!(first.timing.is_some(), device == Device::Cpu, "{device} {}", key(row));
        }
    }
}

#[test]
fn the_command_lists_times_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let list = last_object(&succeed(folder, "bench --list --device cuda --json"));
    let rows = list["rows"].as_array().unwrap();
    let gemm = rows.iter().find(|row| row["name"] == "gemm_fwd_mma_ak_bk_bf16").unwrap();
    assert_eq!((&list["size"], &gemm["extents"]["M"], &gemm["ms"]), (&"card".into(), &4096.into(), &().into()));
    assert!(rows.iter().any(|row| row["op"] == "train_step" && row["extents"]["T"] == 1024));

    let out = succeed(folder, "bench rmsnorm_fwd --device cpu --smoke --json");
    let report = last_object(&out);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() >= 6 && out.contains("GB/s") && report["copy_gb_per_s"].as_f64().unwrap() > 0.0, "{out}");
    for row in rows {
        let rate = row["bytes"].as_f64().unwrap() / row["ms"].as_f64().unwrap() / 1e6;
        assert!((rate - row["gb_per_s"].as_f64().unwrap()).abs() <= 1e-9 * rate, "{row}");
        assert!(row["share_of_copy"].as_f64().unwrap() > 0.0 && row["error"].is_null(), "{row}");
    }
    // A row whose runs hold much beside their inputs: as many sets of those as leave room for a run.
    let report = last_object(&succeed(folder, "bench delta_rule_bwd --device cpu --smoke --json"));
    assert!(report["rows"].as_array().unwrap().iter().all(|row| row["ms"].as_f64() > Some(0.0)), "{report}");
    let none = last_object(&succeed(folder, "bench --device cpu --smoke --seconds 0 --json"));
    assert_eq!(none["rows_not_reached"].as_u64().unwrap() as usize, none["rows"].as_array().unwrap().len());
    refused(folder, "bench no_such_row", &["no_such_row", "--list"]);
    refused(folder, "bench --device tpu", &["tpu", "auto, cpu, sim and cuda[:i]"]);
    if choice::open("sim", choice::SimMode::Fast).is_err() {
        return; // built without nvcc
    }
    let report = last_object(&succeed(folder, "bench gemm_fwd_mma --device sim --json"));
    for row in report["rows"].as_array().unwrap() {
        let counts = &row["counts"];
        assert!(row["ms"].is_null() && counts["tensor_macs"].as_u64() > Some(0), "{row}");
        assert!(counts["sectors_per_request"].as_f64() >= counts["fewest_sectors_per_request"].as_f64(), "{row}");
    }
}
