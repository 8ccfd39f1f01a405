//! How a row is measured: counted where the driver counts, else timed by the device's events, or by the clock on a processor.
//!
//! Before the first run all memory for results holds NaN, and every element of its results must be finite. Timed runs go round several
//! sets of inputs that no cache holds together; a sample is a batch of runs, none waited for.

use super::{Row, Run, Size, Stage};
use crate::device::Device;
use crate::device::driver::{self, Counted, DeviceError};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::tensor::{Arena, DType, Tensor};
use std::collections::BTreeMap;
use std::time::Instant;

/// What came of a row.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// None where launches are counted instead.
    pub timing: Option<Timing>,
    /// What one run launches, by kernel; empty where the driver does not count.
    pub counted: BTreeMap<String, Counted>,
    /// The kernels that one run launches.
    pub kernels: Vec<&'static str>,
    /// Of the bits of the first run's results: the same for the same seed on the same device.
    pub digest: String,
}

/// Times of a row.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median_ms: f64,
    pub fastest_ms: f64,
    /// Batches measured, and runs of a batch.
    pub samples: usize,
    pub batch: usize,
    /// Sets of inputs that the runs went round.
    pub sets: usize,
}

/// How long a row is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Time of the samples together.
    pub measured_ms: f64,
    pub samples_min: usize,
    pub samples_max: usize,
}

impl Effort {
    /// Medians of many.
    pub const FULL: Effort = Effort { measured_ms: 300.0, samples_min: 5, samples_max: 100 };
    /// Enough to know that it runs.
    pub const SMOKE: Effort = Effort { measured_ms: 1.0, samples_min: 1, samples_max: 3 };
}

/// Bytes of inputs that no cache holds: 4 times the 50 MB of an H100's L2.
const COLD_BYTES: usize = 200 << 20;
const SETS_MAX: usize = 16;
/// A batch is long beside the microseconds of a launch.
const BATCH_MS: f64 = 1.0;
const WARM_UP_RUNS: usize = 2;

/// Where rows are measured.
pub struct Bench {
    arena: Arena,
    arena_bytes: usize,
    effort: Effort,
    /// Whether the driver counts, and so has no time of its own.
    counts: bool,
}

impl Bench {
    /// For rows of `size` on `device`.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn new(device: Device, size: Size, effort: Effort) -> driver::Result<Bench> {
        let free_bytes = match device {
            Device::Cpu => usize::MAX,
            Device::Gpu(gpu) => gpu.memory()?.free_bytes as usize,
        };
        let arena_bytes = size.arena_bytes().min(free_bytes / 2);
        let mut bench = Bench { arena: Arena::on(device, arena_bytes)?, arena_bytes, effort, counts: false };
        bench.poison();
        bench.counts = !take_launched(device).1.is_empty();
        Ok(bench)
    }

    /// Measures a row.
    ///
    /// # Errors
    /// What went wrong on the device, or a result that is not finite.
    pub fn measure(&self, row: &Row) -> Result<Measured, String> {
        let (device, told) = (self.arena.device(), |error: DeviceError| error.to_string());
        self.poison();
        let before = self.arena.stats().live_bytes;
        let mut sets = vec![row.prepare(&Stage::new(&self.arena, 0))];
        let set_bytes = self.arena.stats().live_bytes - before;
        device.synchronise().map_err(told)?;
        take_launched(device);
        let results = sets[0]();
        device.synchronise().map_err(told)?;
        let (kernels, counted) = take_launched(device);
        let mut measured = Measured { kernels, counted, digest: digest(&results)?, timing: None };
        drop(results);
        if self.counts {
            return Ok(measured);
        }
        // Half of the arena is for what a run makes.
        let room = self.arena_bytes / 2 / set_bytes.max(1);
        let cold = COLD_BYTES.div_ceil(set_bytes.max(1)).min(room).clamp(1, SETS_MAX);
        // A whole step has its parameters outside the arena, and more of them than any cache holds.
        let count = if row.work.tokens > 0 { 1 } else { cold };
        sets.extend((1..count).map(|set| row.prepare(&Stage::new(&self.arena, set))));
        measured.timing = Some(match device {
            Device::Cpu => time_by_clock(&mut sets, self.effort),
            Device::Gpu(gpu) => time_by_events(gpu, &mut sets, self.effort).map_err(told)?,
        });
        device.synchronise().map_err(told)?;
        Ok(measured)
    }

    /// Fills what results will be cut from with bits that are NaN in every type.
    fn poison(&self) {
        const BYTES_MAX: usize = 4 << 30;
        if let Device::Gpu(gpu) = self.arena.device() {
            let n = BYTES_MAX.min(self.arena_bytes / 2) / size_of::<f32>();
            let mut all = Tensor::uninit(&self.arena, [n], DType::F32);
            let nan = f32::from_bits(u32::MAX);
            launch::fill_fwd_vector_f32(gpu, Grid::elementwise(n, size_of::<f32>()), all.ptr_mut(), nan, n);
        }
    }
}

fn take_launched(device: Device) -> (Vec<&'static str>, BTreeMap<String, Counted>) {
    match device {
        Device::Cpu => Default::default(),
        Device::Gpu(gpu) => (gpu.take_launched(), gpu.take_counts()),
    }
}

/// A digest of the bits, when every element is finite.
fn digest(results: &[Tensor]) -> Result<String, String> {
    let mut hasher = blake3::Hasher::new();
    for (i, result) in results.iter().enumerate() {
        let bytes = result.to_bytes();
        if let Some(at) = first_not_finite(&bytes, result.dtype()) {
            return Err(format!("result {i} {result:?} is not finite at {at}"));
        }
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex()[..16].to_string())
}

fn first_not_finite(bytes: &[u8], dtype: DType) -> Option<usize> {
    match dtype {
        DType::F32 => bytes.chunks_exact(4).position(|x| !f32::from_le_bytes([x[0], x[1], x[2], x[3]]).is_finite()),
        DType::Bf16 => bytes.chunks_exact(2).position(|x| !half::bf16::from_le_bytes([x[0], x[1]]).is_finite()),
        DType::F64 => bytes.chunks_exact(8).position(|x| x[7] & 0x7f == 0x7f && x[6] & 0xf0 == 0xf0),
        DType::U32 => None,
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

/// How many samples of `once_ms` fit.
fn samples(effort: Effort, once_ms: f64) -> usize {
    ((effort.measured_ms / once_ms.max(1e-6)) as usize).clamp(effort.samples_min, effort.samples_max)
}

fn timing(mut times: Vec<f64>, batch: usize, sets: usize) -> Timing {
    let median_ms = median(&mut times);
    Timing { median_ms, fastest_ms: times[0], samples: times.len(), batch, sets }
}

/// Every run a sample; the first one more warms up.
fn time_by_clock(sets: &mut [Run], effort: Effort) -> Timing {
    let mut turn = 0;
    let mut once = || {
        let start = Instant::now();
        drop(sets[turn % sets.len()]());
        turn += 1;
        1e3 * start.elapsed().as_secs_f64()
    };
    let first = once();
    let times = (0..samples(effort, first)).map(|_| once()).collect();
    timing(times, 1, sets.len())
}

fn time_by_events(gpu: &Gpu, sets: &mut [Run], effort: Effort) -> driver::Result<Timing> {
    let (count, mut turn) = (sets.len(), 0);
    let mut batch_of = |runs: usize| {
        for _ in 0..runs {
            drop(sets[turn % count]());
            turn += 1;
        }
    };
    batch_of(WARM_UP_RUNS);
    let [start, end] = [gpu.record()?, {
        batch_of(count);
        gpu.record()?
    }];
    let once_ms = f64::from(gpu.elapsed_ms(start, end)?) / count as f64;
    let batch = ((BATCH_MS / once_ms.max(1e-6)).ceil() as usize).clamp(1, 200);
    let wanted = samples(effort, once_ms * batch as f64);
    let mut moments = vec![gpu.record()?];
    for _ in 0..wanted {
        batch_of(batch);
        moments.push(gpu.record()?);
    }
    gpu.synchronise()?;
    let of = |pair: &[_]| gpu.elapsed_ms(pair[0], pair[1]).map(|ms| f64::from(ms) / batch as f64);
    let times = moments.windows(2).map(of).collect::<driver::Result<Vec<f64>>>()?;
    Ok(timing(times, batch, count))
}
