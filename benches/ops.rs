//! The rows of `src/bench/` under criterion: every op forward and backward, the optimisers and whole training steps, on the CPU, and
//! on the first card where there is one.
//!
//! `cargo bench --bench ops [-- FILTER]`. `NANOCHAT_BENCH_SMOKE=1` takes tiny sizes. A group is a row's name, a function its extents.
//! GiB/s is bytes that must move, Gelem/s is GFLOP/s (for `train_step` elem/s is tokens per second). The command `bench` measures the
//! same rows on a card with cold caches, and counts them in the simulator.

use criterion::{Criterion, Throughput};
use nanochat_gpu::bench::{Row, Size, Stage, rows};
use nanochat_gpu::device::{Device, choice, driver, peak_memory_bytes, resident_memory_bytes};
use nanochat_gpu::tensor::Arena;
use std::time::Duration;

fn main() {
    let is_smoke = std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some();
    let mut criterion = Criterion::default().sample_size(10).without_plots();
    criterion = match is_smoke {
        true => {
            criterion.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(5)).nresamples(1001)
        }
        false => criterion.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)),
    };
    let mut criterion = criterion.configure_from_args();
    let size = if is_smoke { Size::Smoke } else { Size::Host };
    let arena = Arena::new(size.arena_bytes()).expect("address space");
    rows(size, None).iter().for_each(|row| on_the_cpu(&mut criterion, row, &arena));
    let size = if is_smoke { Size::Smoke } else { Size::Card };
    match driver::cuda::cards() {
        Err(why) => eprintln!("{} rows of kernels could not run: {why}", rows(size, None).len()),
        Ok(cards) if cards.is_empty() => eprintln!("{} rows of kernels could not run: no card", rows(size, None).len()),
        Ok(cards) => {
            let device = choice::open("cuda:0", choice::SimMode::default()).expect("the first card opens");
            let arena = Arena::on(device, size.arena_bytes()).expect("memory of the card");
            rows(size, Some(cards[0].1)).iter().for_each(|row| on_a_card(&mut criterion, row, &arena));
        }
    }
    criterion.final_summary();
}

fn throughput(row: &Row) -> Throughput {
    match row.work {
        work if work.tokens > 0 => Throughput::Elements(work.tokens as u64),
        work if work.flops > 0 => Throughput::Elements(work.flops as u64),
        work => Throughput::Bytes(work.bytes as u64),
    }
}

fn on_the_cpu(criterion: &mut Criterion, row: &Row, arena: &Arena) {
    let before = resident_memory_bytes();
    let (mut group, mut has_run) = (criterion.benchmark_group(row.name()), false);
    group.throughput(throughput(row)).bench_function(row.extents(), |bench| {
        let mut run = row.prepare(&Stage::new(arena, 0));
        has_run = true;
        bench.iter(&mut run);
    });
    group.finish();
    if row.work.tokens > 0 && has_run {
        // True for a row that runs alone, as `tools/peers/compare-cpu` runs it: the peak is the process's.
        let peak = peak_memory_bytes().saturating_sub(before);
        eprintln!("{} {}: peak {} MiB above the process before the model", row.name(), row.extents(), peak >> 20);
    }
}

fn on_a_card(criterion: &mut Criterion, row: &Row, arena: &Arena) {
    let Device::Gpu(gpu) = arena.device() else { return };
    let mut group = criterion.benchmark_group(format!("{gpu}: {}", row.name()));
    group.throughput(throughput(row)).bench_function(row.extents(), |bench| {
        let mut run = row.prepare(&Stage::new(arena, 0));
        bench.iter_custom(|times| {
            let start = gpu.record().expect("an event");
            (0..times).for_each(|_| drop(run()));
            let end = gpu.record().expect("an event");
            gpu.synchronise().expect("the row runs");
            Duration::from_secs_f32(gpu.elapsed_ms(start, end).expect("two events") / 1e3)
        });
    });
    group.finish();
}
