//! Tests of the front end and the executor on PTX written here: what nvcc does not emit, or emits only by chance.

mod scalar;
mod control;
mod memory;
mod whole;
mod warp;
mod wgmma;
mod errors;
mod orders;
mod cli;

use ptxsim::host::{Arg, Device};
use ptxsim::launch::{Geometry, Outcome};
use ptxsim::options::Options;

/// A module with one entry `k` that has a pointer `out` and a pointer `in`.
pub fn module(body: &str) -> String {
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n{body}\n}}\n"
    )
}

/// A body that loads one word per thread from `in` into %r0, runs `body`, and stores %r1 to `out`.
pub fn per_thread(body: &str) -> String {
    module(&format!(
        ".reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .pred %p<10>; .reg .f32 %f<20>; .reg .b16 %rs<20>; .reg .f64 %fd<9>;
        ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [in];
        mov.u32 %r20, %tid.x; mov.u32 %r21, %ctaid.x; mov.u32 %r22, %ntid.x; mad.lo.u32 %r23, %r21, %r22, %r20;
        mul.wide.u32 %rd2, %r23, 4; add.u64 %rd3, %rd0, %rd2; add.u64 %rd4, %rd1, %rd2;
        ld.global.u32 %r0, [%rd4];
        {body}
        st.global.u32 [%rd3], %r1; ret;"
    ))
}

/// Runs a module's `k` on words; the output has as many. Gives it and the outcome.
pub fn run_words(text: &str, input: &[u32], geometry: &Geometry, options: &Options) -> (Vec<u32>, Outcome) {
    let mut device = Device::new();
    let from = device.upload(input, u32::to_le_bytes).expect("upload");
    let to = device.upload(&vec![0u32; input.len()], u32::to_le_bytes).expect("upload");
    let module = device.load("test.ptx", text).unwrap_or_else(|error| panic!("{error}"));
    let function = module.function("k").expect("entry");
    let args = [Arg::Pointer(to), Arg::Pointer(from)];
    let outcome = device.launch(&function, geometry, &args, options).unwrap_or_else(|error| panic!("{error}"));
    (device.download(to, input.len(), u32::from_le_bytes).expect("download"), outcome)
}

/// Runs the body of [`per_thread`] on some words, without findings.
pub fn map(body: &str, input: &[u32]) -> Vec<u32> {
    let block = (input.len() as u32).min(256);
    let geometry = Geometry::linear(input.len() as u32 / block, block);
    let (output, outcome) = run_words(&per_thread(body), input, &geometry, &Options::default());
    assert_eq!(outcome.findings, []);
    output
}

/// Words that look random (SplitMix64).
pub fn words(count: usize, seed: u64) -> Vec<u32> {
    let mut random = ptxsim::exec::Random::new(seed);
    (0..count).map(|_| random.below(1 << 32) as u32).collect()
}
