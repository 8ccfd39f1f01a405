//! A device with one CUDA file loaded, and the orders under which every test runs.

use crate::nvcc::{self, Arch};
use half::bf16;
use ptxsim::checker::Finding;
use ptxsim::error::Error;
use ptxsim::host::{Arg, Device, Module};
use ptxsim::launch::{Geometry, Outcome};
use ptxsim::options::{Approximation, AsyncPolicy, Options, Schedule};

pub struct Gpu {
    pub device: Device,
    pub options: Options,
    pub arch: Arch,
    module: Module,
}

/// Schedules and moments of asynchronous work; the last two are random and waits fail now and then.
fn orders() -> Vec<Options> {
    let order = |schedule, asynchrony, seed, spurious_wait_one_in| {
        let approximation = if seed == 0 { Approximation::Ideal } else { Approximation::Perturbed };
        Options { schedule, asynchrony, seed, spurious_wait_one_in, approximation, threads: 2, ..Options::default() }
    };
    vec![
        order(Schedule::RoundRobin, AsyncPolicy::Late, 0, 0),
        order(Schedule::Reverse, AsyncPolicy::Early, 0, 0),
        order(Schedule::Random, AsyncPolicy::Random, 1, 3),
        order(Schedule::Random, AsyncPolicy::Late, 2, 2),
    ]
}

/// Runs a test of `STEM.cu` for every architecture that it is for, under every order, each on a fresh device.
pub fn everywhere(stem: &str, test: impl Fn(&mut Gpu)) {
    let archs = nvcc::all().into_iter().find(|(name, _)| name == stem).expect("the file").1;
    for arch in archs {
        for options in orders() {
            test(&mut Gpu::new(stem, arch, options));
        }
    }
}

impl Gpu {
    pub fn new(stem: &str, arch: Arch, options: Options) -> Gpu {
        let mut device = Device::new();
        let module = device.load(&format!("{stem}.ptx"), &nvcc::ptx(stem, arch));
        let module = module.unwrap_or_else(|error| panic!("{error}"));
        Gpu { device, options, arch, module }
    }

    /// Launches a kernel; whatever a checker finds fails the test.
    pub fn run(&mut self, kernel: &str, geometry: Geometry, args: &[Arg]) -> Outcome {
        let function = self.module.function(kernel).expect("an entry");
        let outcome = self.device.launch(&function, &geometry, args, &self.options);
        let outcome = outcome.unwrap_or_else(|error| panic!("{:?} {:?}: {error}", self.arch, self.options));
        if let Some(finding) = outcome.findings.first() {
            panic!("{:?} {:?}: {} findings, first {finding:#?}", self.arch, self.options, outcome.findings.len());
        }
        outcome
    }

    /// The same on a device that holds the whole grid.
    pub fn run_cooperative(&mut self, kernel: &str, geometry: Geometry, args: &[Arg]) -> Outcome {
        let function = self.module.function(kernel).expect("an entry");
        let outcome = self.device.launch_cooperative(&function, &geometry, args, &self.options);
        outcome.unwrap_or_else(|error| panic!("{:?} {:?}: {error}", self.arch, self.options))
    }

    /// Two kernels of one geometry, the second of which may start before the first has ended.
    pub fn run_dependent(
        &mut self,
        (first, first_args): (&str, &[Arg]),
        (second, second_args): (&str, &[Arg]),
        geometry: Geometry,
    ) -> [Outcome; 2] {
        let [one, two] = [first, second].map(|kernel| self.module.function(kernel).expect("an entry"));
        let (one, two) = ((&one, &geometry, first_args), (&two, &geometry, second_args));
        let outcomes = self.device.launch_dependent(one, two, &self.options);
        outcomes.unwrap_or_else(|error| panic!("{:?} {:?}: {error}", self.arch, self.options))
    }

    /// What a launch finds.
    pub fn findings(&mut self, kernel: &str, geometry: Geometry, args: &[Arg]) -> Vec<Finding> {
        let function = self.module.function(kernel).expect("an entry");
        self.device.launch(&function, &geometry, args, &self.options).expect("a launch").findings
    }

    /// The error of a launch that cannot end.
    pub fn fails(&mut self, kernel: &str, geometry: Geometry, args: &[Arg]) -> Error {
        let function = self.module.function(kernel).expect("an entry");
        self.device.launch(&function, &geometry, args, &self.options).expect_err("an error")
    }

    pub fn words(&mut self, values: &[u32]) -> u64 {
        self.device.upload(values, u32::to_le_bytes).expect("memory")
    }

    pub fn floats(&mut self, values: &[f32]) -> u64 {
        self.device.upload(values, f32::to_le_bytes).expect("memory")
    }

    pub fn bf16s(&mut self, values: &[f32]) -> u64 {
        self.device.upload(values, |value| bf16::from_f32(value).to_le_bytes()).expect("memory")
    }

    /// Memory that nobody has written.
    pub fn space(&mut self, bytes: usize) -> u64 {
        self.device.alloc(bytes as u64).expect("memory")
    }

    pub fn zeros(&mut self, bytes: usize) -> u64 {
        let address = self.space(bytes);
        self.device.fill(address, 0, bytes as u64).expect("memory");
        address
    }

    pub fn read_words(&self, address: u64, count: usize) -> Vec<u32> {
        self.device.download(address, count, u32::from_le_bytes).expect("memory")
    }

    pub fn read_floats(&self, address: u64, count: usize) -> Vec<f32> {
        self.device.download(address, count, f32::from_le_bytes).expect("memory")
    }

    pub fn read_bf16s(&self, address: u64, count: usize) -> Vec<f32> {
        self.device.download(address, count, |bytes| bf16::from_le_bytes(bytes).to_f32()).expect("memory")
    }
}

pub fn geometry(grid: [u32; 3], block: [u32; 3], dynamic_bytes: u32) -> Geometry {
    Geometry { grid, block, cluster: None, dynamic_bytes }
}

/// Random words (SplitMix64).
pub fn random_words(count: usize, seed: u64) -> Vec<u32> {
    let mut random = ptxsim::exec::Random::new(seed);
    (0..count).map(|_| random.below(1 << 32) as u32).collect()
}

/// Random values between -1 and 1, on a grid of 2^-7 (exact in bf16).
pub fn random_values(count: usize, seed: u64) -> Vec<f32> {
    random_words(count, seed).into_iter().map(|word| (word % 257) as f32 / 128.0 - 1.0).collect()
}

/// Every value within `tolerance`; NaN fails.
#[track_caller]
pub fn assert_near(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - expected).abs() <= tolerance, "element {i}: {got}, expected {expected}");
    }
}
