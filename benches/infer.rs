//! The engine on the processor with the real SmolLM2-135M-Instruct in Q4_1: a prompt of 256 tokens, a step of one sequence behind such a
//! prompt, and a step of eight, with activations of 8 and of 16 bits.
//!
//! `cargo bench --bench infer [-- FILTER]`, after `tools/get-fixtures`; `tools/peers/compare-llama` runs it and llama.cpp in turn.
//! `NANOCHAT_BENCH_SMOKE=1` takes few samples. elem/s is tokens per second. At the end it says how long opening the model took, and the
//! memory of the process.

use criterion::{Criterion, Throughput};
use nanochat_gpu::device::packed::ActivationBits;
use nanochat_gpu::device::{Device, peak_memory_bytes, resident_memory_bytes};
use nanochat_gpu::formats::checkpoint::{LoadedModel, load_for_inference};
use nanochat_gpu::infer::{Engine, EngineOptions, Sampler, SamplerOptions, Submission};
use nanochat_gpu::tensor::{DType, Params};
use std::path::Path;
use std::time::{Duration, Instant};

const PROMPT: usize = 256;
/// Tokens that a sequence gets before it begins anew.
const TOKENS: usize = 64;

fn main() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".fixtures/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let began = Instant::now();
    let opened = load_for_inference(&path, DType::F32, Device::Cpu).expect("tools/get-fixtures fetches the model");
    let opening = began.elapsed();
    let resident = resident_memory_bytes() >> 20;
    let mut criterion = Criterion::default().sample_size(10).without_plots();
    criterion = match std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some() {
        true => {
            criterion.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(5)).nresamples(1001)
        }
        false => criterion.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5)),
    };
    let mut criterion = criterion.configure_from_args();
    for (name, bits) in [("bits 8", ActivationBits::Eight), ("bits 16", ActivationBits::Sixteen)] {
        let params = opened.params.clone().with_activation_bits(bits);
        let mut group = criterion.benchmark_group("infer_prompt_q4_1");
        group.throughput(Throughput::Elements(PROMPT as u64)).bench_function(name, |bench| {
            let mut streams = Streams::new(&opened, &params, 1);
            bench.iter_custom(|prompts| (0..prompts).map(|_| streams.begin()).sum());
        });
        group.finish();
        let mut group = criterion.benchmark_group("infer_step_q4_1");
        for streams in [1, 8] {
            group.throughput(Throughput::Elements(streams as u64)).bench_function(
                format!("{name} N{streams}"),
                |bench| {
                    let mut streams = Streams::new(&opened, &params, streams);
                    bench.iter_custom(|steps| (0..steps).map(|_| streams.step()).sum());
                },
            );
        }
        group.finish();
    }
    criterion.final_summary();
    let peak = peak_memory_bytes() >> 20;
    eprintln!("infer: opened in {opening:.2?}; {resident} MiB resident then, {peak} MiB at the peak");
}

/// Sequences that go on side by side.
struct Streams<'m> {
    engine: Engine<'m>,
    sequences: usize,
    begun: u32,
    steps: usize,
}

impl<'m> Streams<'m> {
    fn new(opened: &LoadedModel, params: &'m Params, sequences: usize) -> Streams<'m> {
        let tokens = Some(sequences * (PROMPT + 2 * TOKENS));
        let options = EngineOptions::new(opened.model.config(), DType::F32, sequences, tokens);
        let engine = Engine::new(opened.model.clone(), params, options).expect("address space");
        Streams { engine, sequences, begun: 0, steps: TOKENS }
    }

    /// Ends what goes on, and reads a prompt for each sequence that nobody read before; how long that took.
    fn begin(&mut self) -> Duration {
        while !self.engine.is_idle() {
            self.engine.step().expect("the sequences have room");
        }
        for _ in 0..self.sequences {
            let prompt = (0..PROMPT as u32).map(|i| (i * 37 + self.begun * 1001) % 49_000 + 100).collect();
            let greedy = Sampler::new(SamplerOptions::GREEDY).expect("plain options");
            self.engine.submit(Submission::new(prompt, TOKENS, greedy, vec![])).expect("the prompt fits");
            self.begun += 1;
        }
        let (began, read) = (Instant::now(), self.engine.prefilled() + (self.sequences * PROMPT) as u64);
        while self.engine.prefilled() < read {
            self.engine.step().expect("the sequences have room");
        }
        self.steps = 1;
        began.elapsed()
    }

    /// A token for every sequence; how long that took.
    fn step(&mut self) -> Duration {
        // Sequences that were read first end first.
        if self.steps + self.sequences >= TOKENS {
            self.begin();
        }
        self.steps += 1;
        let began = Instant::now();
        self.engine.step().expect("the sequences have room");
        began.elapsed()
    }
}
