//! `bench`: times every row of [`crate::bench`] on a card or the processor, or counts what its kernels do in the simulator.

use super::output::{note, print};
use crate::bench::measure::{Bench, Effort, Measured};
use crate::bench::{Row, Size, Work, rows};
use crate::device::driver::Counted;
use crate::device::driver::sim::SimOptions;
use crate::device::gpu::Gpu;
use crate::device::{Device, choice};
use crate::tensor::DType;
use crate::user_error;
use anyhow::{anyhow, bail};
use clap::Args;
use ptxsim::options::Checks;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Time every op, forward and backward, f32 and bf16, and whole training steps; in the simulator count what kernels do
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu bench rmsnorm --device cpu\n  nanochat-gpu bench --device sim --json")]
pub struct BenchCommand {
    /// Only rows whose name and extents hold this
    filter: Option<String>,
    /// Where: auto (a card, else the processor), cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Tiny sizes, few runs; the simulator takes no others
    #[arg(long)]
    smoke: bool,
    /// Start no further row once so many seconds have passed
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Name the rows without running them
    #[arg(long)]
    list: bool,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// What came of all rows.
#[derive(Serialize)]
struct Report {
    commit: &'static str,
    device: String,
    size: Size,
    /// Bytes read and written by a copy on the device.
    copy_gb_per_s: Option<f64>,
    /// Of dense products by type, as the maker names it; empty for devices not listed here.
    peak_tflops: BTreeMap<String, f64>,
    /// Rows that `--seconds` left out.
    rows_not_reached: usize,
    rows: Vec<RowReport>,
}

#[derive(Serialize)]
struct RowReport {
    name: String,
    op: &'static str,
    direction: &'static str,
    mechanism: &'static str,
    dtype: String,
    extents: BTreeMap<&'static str, usize>,
    /// The extents in words, in their order.
    shape: String,
    #[serde(flatten)]
    work: Work,
    #[serde(flatten)]
    result: Option<Outcome>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    times: Option<Times>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Counts>,
    kernels: Vec<&'static str>,
    digest: String,
}

#[derive(Serialize)]
struct Times {
    ms: f64,
    fastest_ms: f64,
    samples: usize,
    batch: usize,
    sets: usize,
    gb_per_s: f64,
    share_of_copy: Option<f64>,
    tflops: f64,
    share_of_peak: Option<f64>,
    tokens_per_s: f64,
}

/// Sums over the kernels of a row.
#[derive(Serialize)]
struct Counts {
    launches: u64,
    bytes_moved: u64,
    /// Bytes moved by those that must.
    moved_of_must: Option<f64>,
    /// Sectors of a request, and the fewest that its bytes fit in.
    sectors_per_request: f64,
    fewest_sectors_per_request: f64,
    bank_conflicts: u64,
    tensor_macs: u64,
    barriers: u64,
    warp_instructions: u64,
}

/// Runs the command. Errors: user errors for a device that is not there or a filter that fits no row; rows that failed.
pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    let name = choice::resolve(&command.device)?;
    let size = match &name[..] {
        _ if command.smoke => Size::Smoke,
        "sim" => Size::Smoke,
        "cpu" => Size::Host,
        _ => Size::Card,
    };
    let all = rows(size, choice::capability(&name));
    let wanted: Vec<&Row> = all.iter().filter(|row| fits(row, command.filter.as_deref())).collect();
    if wanted.is_empty() {
        return Err(user_error!("no row holds {:?}; --list names them", command.filter.unwrap_or_default()));
    }
    let mut report = Report {
        commit: env!("NANOCHAT_COMMIT"),
        device: name.clone(),
        size,
        copy_gb_per_s: None,
        peak_tflops: BTreeMap::new(),
        rows_not_reached: 0,
        rows: wanted.iter().map(|row| unmeasured(row)).collect(),
    };
    if command.list {
        let names = report.rows.iter().map(|row| format!("{} {}\n", row.name, row.shape));
        print(names.collect::<String>().as_bytes())?;
        return finish(&command, &report);
    }
    let device = open(&name)?;
    if let Device::Gpu(gpu) = device {
        report.device = gpu.driver().name();
        report.peak_tflops = peaks(&report.device);
    }
    let effort = if size == Size::Smoke { Effort::SMOKE } else { Effort::FULL };
    let bench = Bench::new(device, size, effort)?;
    let copy = all.iter().find(|row| row.op == "copy").ok_or_else(|| anyhow!("no row copies"))?;
    let timing = bench.measure(copy).map_err(|why| anyhow!("a copy: {why}"))?.timing;
    report.copy_gb_per_s = timing.map(|timing| copy.work.bytes as f64 / timing.median_ms / 1e6);
    print(format!("{}, {} sizes\n", report.device, format!("{size:?}").to_lowercase()).as_bytes())?;
    let start = Instant::now();
    for (i, row) in wanted.iter().enumerate() {
        if command.seconds.is_some_and(|most| start.elapsed().as_secs_f64() >= most) {
            report.rows_not_reached += 1;
            continue;
        }
        match bench.measure(row) {
            Ok(measured) => report.rows[i].result = Some(outcome(row, measured, &report)),
            Err(why) => report.rows[i].error = Some(why),
        }
        print(line(&report.rows[i]).as_bytes())?;
    }
    finish(&command, &report)?;
    let failed: Vec<&str> = report.rows.iter().filter(|row| row.error.is_some()).map(|row| &row.name[..]).collect();
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("{} of {} rows failed: {}", failed.len(), report.rows.len(), failed.join(", ")),
    }
}

fn finish(command: &BenchCommand, report: &Report) -> anyhow::Result<()> {
    match command.json {
        true => print(format!("{}\n", serde_json::to_string(report)?).as_bytes()),
        false => Ok(()),
    }
}

fn fits(row: &Row, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| format!("{} {}", row.name(), row.extents()).contains(filter))
}

/// The simulator counts and computes bit for bit, and checks nothing: `doctor` does.
fn open(name: &str) -> anyhow::Result<Device> {
    if name != "sim" {
        return Ok(choice::open(name, choice::SimMode::Fast)?);
    }
    let mut options = SimOptions::checked();
    options.run.checks = Checks::NONE;
    Ok(Device::Gpu(Gpu::sim(options).map_err(|error| user_error!("--device sim: {error}"))?))
}

/// TFLOP/s of dense products with sums in f32, from the makers' data sheets: bf16 on tensor cores, f32 on plain cores.
fn peaks(device: &str) -> BTreeMap<String, f64> {
    let table = [("A100", 312.0, 19.5), ("H100 PCIe", 756.0, 51.0), ("H100", 989.0, 67.0), ("H200", 989.0, 67.0)];
    let found = table.iter().find(|(name, ..)| device.contains(name));
    let of = |&(_, narrow, wide): &(&str, f64, f64)| {
        BTreeMap::from([(DType::Bf16.to_string(), narrow), (DType::F32.to_string(), wide)])
    };
    found.map(of).unwrap_or_default()
}

fn unmeasured(row: &Row) -> RowReport {
    RowReport {
        name: row.name(),
        op: row.op,
        direction: row.direction,
        mechanism: row.mechanism,
        dtype: row.dtype.to_string(),
        extents: row.extents.iter().copied().collect(),
        shape: row.extents(),
        work: row.work,
        result: None,
        error: None,
    }
}

fn outcome(row: &Row, measured: Measured, report: &Report) -> Outcome {
    let times = measured.timing.map(|timing| {
        let per_s = |amount: usize| amount as f64 * 1e3 / timing.median_ms;
        let (gb_per_s, tflops) = (per_s(row.work.bytes) / 1e9, per_s(row.work.flops) / 1e12);
        let share = |rate: f64, most: Option<f64>| most.filter(|_| rate > 0.0).map(|most| rate / most);
        Times {
            ms: timing.median_ms,
            fastest_ms: timing.fastest_ms,
            samples: timing.samples,
            batch: timing.batch,
            sets: timing.sets,
            gb_per_s,
            share_of_copy: share(gb_per_s, report.copy_gb_per_s),
            tflops,
            share_of_peak: share(tflops, report.peak_tflops.get(&row.dtype.to_string()).copied()),
            tokens_per_s: per_s(row.work.tokens),
        }
    });
    let counts = (!measured.counted.is_empty()).then(|| counts(row.work, measured.counted.values()));
    Outcome { times, counts, kernels: measured.kernels, digest: measured.digest }
}

fn counts<'a>(work: Work, kernels: impl Iterator<Item = &'a Counted> + Clone) -> Counts {
    let sum = |of: fn(&Counted) -> u64| kernels.clone().map(of).sum::<u64>();
    let (requests, moved) = (sum(|c| c.global_requests).max(1) as f64, sum(|c| c.global_bytes_moved));
    Counts {
        launches: sum(|c| c.launches),
        bytes_moved: moved,
        moved_of_must: (work.bytes > 0).then(|| moved as f64 / work.bytes as f64),
        sectors_per_request: sum(|c| c.global_sectors) as f64 / requests,
        fewest_sectors_per_request: sum(|c| c.global_bytes_requested) as f64 / 32.0 / requests,
        bank_conflicts: sum(|c| c.bank_conflicts),
        tensor_macs: sum(|c| c.tensor_macs),
        barriers: sum(|c| c.barriers),
        warp_instructions: sum(|c| c.warp_instructions),
    }
}

fn line(row: &RowReport) -> String {
    let head = format!("{:<44} {:<36}", row.name, row.shape);
    let Some(result) = &row.result else {
        let why = row.error.as_deref().unwrap_or("not measured");
        note(&format!("{}: {why}", row.name));
        return format!("{head} {why}\n");
    };
    let (mut text, percent) =
        (head, |share: Option<f64>| share.map_or(String::new(), |s| format!(" ({:.0} %)", 100.0 * s)));
    if let Some(times) = &result.times {
        text += &format!(" {:>10.4} ms", times.ms);
        text += &match row.work {
            work if work.tokens > 0 => {
                format!(
                    "  {:.0} tokens/s, {:.3} TFLOP/s{}",
                    times.tokens_per_s,
                    times.tflops,
                    percent(times.share_of_peak)
                )
            }
            work if work.flops > 0 => format!("  {:.3} TFLOP/s{}", times.tflops, percent(times.share_of_peak)),
            _ => format!("  {:.1} GB/s{}", times.gb_per_s, percent(times.share_of_copy)),
        };
    }
    if let Some(counts) = &result.counts {
        let moved = counts.moved_of_must.map_or(String::new(), |ratio| format!("{ratio:.2} x the bytes, "));
        text += &format!(
            " {moved}{:.1} sectors a request (fewest {:.1}), {} bank conflicts, {} tensor MACs, {} warp instructions",
            counts.sectors_per_request,
            counts.fewest_sectors_per_request,
            counts.bank_conflicts,
            counts.tensor_macs,
            counts.warp_instructions
        );
    }
    text + "\n"
}
