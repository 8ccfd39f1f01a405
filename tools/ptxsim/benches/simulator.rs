//! Speed of the simulator: an FP32 matrix product from shared memory with all checkers and with none, by one thread and by
//! two, the tensor-core instruction in both arithmetics, and the loading of PTX. `lanes` rows count lane instructions per second.
//!
//! With `NANOCHAT_BENCH_SMOKE` set, one small size, few samples.

#[path = "../tests/kernels/nvcc.rs"]
mod nvcc;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ptxsim::host::{Arg, Device, Function};
use ptxsim::launch::Geometry;
use ptxsim::options::{Checks, Options, TensorMode};

/// A matrix product on a device, ready to be launched again and again.
struct Product {
    device: Device,
    function: Function,
    args: Vec<Arg>,
    geometry: Geometry,
}

impl Product {
    fn new(file: &str, text: &str, kernel: &str, size: u32, tile: u32, block: [u32; 3], element_bytes: u64) -> Product {
        let mut device = Device::new();
        let elements = u64::from(size) * u64::from(size);
        let [c, a, b] = [4, element_bytes, element_bytes].map(|bytes| device.alloc(bytes * elements).expect("memory"));
        device.fill(a, 0, element_bytes * elements).expect("memory");
        device.fill(b, 0, element_bytes * elements).expect("memory");
        let module = device.load(file, text).unwrap_or_else(|error| panic!("{error}"));
        let function = module.function(kernel).expect("the kernel");
        let mut args = [c, a, b].map(Arg::Pointer).to_vec();
        args.extend([size; 3].map(|extent| Arg::I32(extent as i32)));
        let geometry = Geometry { grid: [size / tile, size / tile, 1], block, cluster: None, dynamic_bytes: 0 };
        Product { device, function, args, geometry }
    }

    /// Gives the lane instructions executed, where they are counted.
    fn run(&self, options: &Options) -> u64 {
        let outcome = self.device.launch(&self.function, &self.geometry, &self.args, options);
        let outcome = outcome.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(outcome.findings, []);
        outcome.counters.total.lane_instructions
    }
}

fn sgemm(criterion: &mut Criterion) {
    let size = if std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some() { 64 } else { 512 };
    let ptx = nvcc::ptx("sgemm", nvcc::Arch::Sm80);
    let product = Product::new("sgemm.ptx", &ptx, "sgemm_64x64x16", size, 64, [16, 16, 1], 4);
    let lanes = product.run(&Options { checks: Checks::NONE, ..Options::default() });
    let mut group = criterion.benchmark_group("sgemm_lanes");
    group.throughput(Throughput::Elements(lanes)).sample_size(10).measurement_time(Duration::from_secs(3));
    for threads in [1, 2] {
        let checked = Options { threads, ..Options::default() };
        let unchecked = Options { checks: Checks::NONE, counters: false, ..checked.clone() };
        for (name, options) in [("checked", checked), ("unchecked", unchecked)] {
            group.bench_with_input(BenchmarkId::new(name, threads), &options, |b, options| {
                b.iter(|| product.run(options))
            });
        }
    }
    group.finish();
}

/// One warp that executes `m16n8k16` in a loop, eight at a time: the loop's own instructions are a twentieth of the time at
/// most.
const MMA: &str = ".version 8.4\n.target sm_90a\n.address_size 64
    .visible .entry k(.param .u64 out, .param .u32 count) {
        .reg .b32 %r<8>; .reg .f32 %f<4>; .reg .b64 %rd<3>; .reg .pred %p<1>;
        ld.param.u64 %rd0, [out]; ld.param.u32 %r7, [count]; mov.u32 %r6, %tid.x; mul.wide.u32 %rd1, %r6, 16; add.u64 %rd0, %rd0, %rd1;
        mov.b32 %r0, 0x3f803f81; mov.b32 %r1, 0x3f903f80; mov.b32 %r2, 0xbfa03f80; mov.b32 %r3, 0x3eb03f80;
        mov.b32 %r4, 0x3fc03f80; mov.b32 %r5, 0x3fd0bf80;
        mov.f32 %f0, 0f3f800000; mov.f32 %f1, 0f40000000; mov.f32 %f2, 0f40400000; mov.f32 %f3, 0f40800000;
        LOOP:
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%f0, %f1, %f2, %f3};
        add.u32 %r7, %r7, -8; setp.ne.u32 %p0, %r7, 0; @%p0 bra LOOP;
        st.global.v4.f32 [%rd0], {%f0, %f1, %f2, %f3}; ret;
    }";

fn mma(criterion: &mut Criterion) {
    const COUNT: u32 = 1000;
    let mut device = Device::new();
    let out = device.alloc(512).expect("memory");
    let function = device.load("mma.ptx", MMA).and_then(|module| module.function("k"));
    let function = function.unwrap_or_else(|error| panic!("{error}"));
    let mut group = criterion.benchmark_group("mma_m16n8k16");
    group.throughput(Throughput::Elements(COUNT.into())).sample_size(10).measurement_time(Duration::from_secs(2));
    for (name, tensor) in [("exact", TensorMode::Exact), ("fast", TensorMode::Fast)] {
        let options = Options { tensor, checks: Checks::NONE, counters: false, ..Options::default() };
        let args = [Arg::Pointer(out), Arg::U32(COUNT)];
        group.bench_function(name, |b| {
            b.iter(|| {
                device.launch(&function, &Geometry::linear(1, 32), &args, &options).map(|outcome| outcome.findings)
            })
        });
    }
    group.finish();
}

/// Parsing and decoding of every test kernel, in bytes of PTX.
fn front_end(criterion: &mut Criterion) {
    let kernels =
        nvcc::all().into_iter().flat_map(|(stem, archs)| archs.into_iter().map(move |arch| nvcc::ptx(&stem, arch)));
    let kernels: Vec<_> = kernels.collect();
    let bytes = kernels.iter().map(|text| text.len() as u64).sum();
    let mut group = criterion.benchmark_group("front_end_bytes");
    group.throughput(Throughput::Bytes(bytes)).sample_size(10).measurement_time(Duration::from_secs(2));
    group.bench_function("load", |b| {
        b.iter(|| {
            kernels
                .iter()
                .map(|text| Device::new().load("kernel.ptx", text).map(|m| m.entries().count()))
                .collect::<Vec<_>>()
        })
    });
    group.finish();
}

criterion_group!(benches, sgemm, mma, front_end);
criterion_main!(benches);
