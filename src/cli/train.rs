//! `train`: resolves the configuration, trains or resumes, and shows how it goes.

use super::output::{note, print};
use super::tokenizer::train_on;
use crate::data::Spec;
use crate::tensor::DType;
use crate::tokenizer::{Codec, Pattern, Tokenizer, TrainSpec};
use crate::train::config::{Layers, PRESETS, RunConfig};
use crate::train::estimate::{Estimate, estimate};
use crate::train::run_folder::RunFolder;
use crate::train::trainer::{End, Event, Observer, Summary, Trainer, check_memory};
use crate::{model::Gpt, user_bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use toml::Value;

/// Train a model from nothing, or go on with a run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nanochat-gpu train                                       a small model on built-in data, about two minutes on two cores
  nanochat-gpu train --data books/ --depth 4 --steps 1000 --out runs/books
  nanochat-gpu train --resume --out runs/books             go on from the newest checkpoint
  nanochat-gpu train --depth 12 --data books/ --dry-run    what it would take

Every flag is also a key of the configuration file and of --set. While it trains, edit control.toml in the run folder.")]
pub struct TrainCommand {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set any key of the configuration, such as train.clip=0.5; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Layers; width, heads and learning rates follow from it
    #[arg(long, value_name = "N", conflicts_with = "preset")]
    depth: Option<u64>,
    /// Named configuration: demo, full (every part of the model), shakespeare
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Text, folders, globs (.txt, .jsonl, .parquet, .bin) or built-in data such as synthetic; SPEC@weight to mix
    #[arg(long, num_args = 1.., value_name = "SPEC")]
    data: Vec<String>,
    /// Folder with a tokenizer.json; without it one is trained on the data
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<String>,
    /// Size of the tokenizer that is trained
    #[arg(long, value_name = "N")]
    vocab_size: Option<u64>,
    /// Length of the schedule in optimiser steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Tokens of an optimiser step
    #[arg(long, value_name = "N")]
    batch_tokens: Option<u64>,
    /// Rows of a micro-batch
    #[arg(long, value_name = "N")]
    rows: Option<u64>,
    /// Tokens of a row
    #[arg(long, value_name = "N")]
    seq_len: Option<u64>,
    /// Where to train: auto, cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// How activations and weights are stored: auto, f32 or bf16
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// adamw or muon
    #[arg(long, value_name = "NAME")]
    optimizer: Option<String>,
    /// Threads, 0 for all cores
    #[arg(long, value_name = "N")]
    threads: Option<u64>,
    /// Seed of initial values and data order
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Save and end after this many steps in all; --resume goes on
    #[arg(long, value_name = "N")]
    stop_after: Option<u64>,
    /// Run folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out, or with --resume=-K from the one K before it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "0", allow_negative_numbers = true, value_name = "-K")]
    resume: Option<i64>,
    /// Say what the run would take and end
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Runs the command; the exit code is 0, or 130 after an interruption.
///
/// # Errors
/// What the user gave wrong, or what failed while training.
pub fn run(command: TrainCommand) -> anyhow::Result<u8> {
    let mut trainer = match command.resume {
        Some(back) => resume(&command, back)?,
        None => match start(&command)? {
            Some(trainer) => trainer,
            None => return Ok(0),
        },
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130); // the second time: at once, without saving
        }
    })?;
    let mut display = Display::new(&trainer, command.json);
    let (end, summary) = trainer.run(command.stop_after, &interrupted, &mut display)?;
    display.finish(end, &summary, trainer.path());
    if command.json {
        print(format!("{}\n", serde_json::to_string(&summary)?).as_bytes())?;
    }
    Ok(if end == End::Interrupted { 130 } else { 0 })
}

fn resume(command: &TrainCommand, back: i64) -> anyhow::Result<Trainer> {
    if back > 0 {
        user_bail!("--resume={back}: write --resume for the newest checkpoint, --resume=-{back} for an earlier one");
    }
    let others = [
        ("--config", command.config.is_some()),
        ("--set", !command.sets.is_empty()),
        ("--preset", command.preset.is_some()),
        ("--dry-run", command.dry_run),
    ];
    let given = others.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag);
    let given: Vec<&str> = given.chain(flag_values(command).into_iter().map(|(_, _, flag)| flag)).collect();
    if !given.is_empty() {
        user_bail!(
            "--resume goes on with the run's own config.toml, without {}; give only --out, --stop-after and --json",
            given.join(", ")
        );
    }
    let Some(out) = &command.out else { user_bail!("--resume needs --out with the run folder") };
    let (folder, config) = RunFolder::open(out)?;
    set_threads(config.train.threads);
    if back == 0 && folder.is_fresh() {
        say(command.json, &format!("{} has no checkpoint yet: from the beginning", out.display()));
        let tokenizer = match &config.data.tokenizer {
            Some(dir) => Tokenizer::load(Path::new(dir))?,
            None => train_tokenizer(&config, command.json)?,
        };
        return Trainer::begin(config, Arc::new(tokenizer), folder);
    }
    Trainer::resume(folder, config, back.unsigned_abs() as usize)
}

/// The flags that are configuration keys, with their values.
fn flag_values(command: &TrainCommand) -> Vec<(&'static str, Value, &'static str)> {
    let integer = |n: Option<u64>| n.map(|n| Value::Integer(n.min(i64::MAX as u64) as i64));
    let string = |s: &Option<String>| s.clone().map(Value::String);
    let sources = Value::Array(command.data.iter().cloned().map(Value::String).collect());
    let all = [
        ("model.depth", integer(command.depth), "--depth"),
        ("data.sources", (!command.data.is_empty()).then_some(sources), "--data"),
        ("data.tokenizer", string(&command.tokenizer), "--tokenizer"),
        ("data.vocab_size", integer(command.vocab_size), "--vocab-size"),
        ("train.steps", integer(command.steps), "--steps"),
        ("train.batch_tokens", integer(command.batch_tokens), "--batch-tokens"),
        ("train.rows", integer(command.rows), "--rows"),
        ("train.seq_len", integer(command.seq_len), "--seq-len"),
        ("device.kind", string(&command.device), "--device"),
        ("device.dtype", string(&command.dtype), "--dtype"),
        ("train.optimizer", string(&command.optimizer), "--optimizer"),
        ("train.threads", integer(command.threads), "--threads"),
        ("train.seed", integer(command.seed), "--seed"),
    ];
    all.into_iter().filter_map(|(key, value, flag)| value.map(|value| (key, value, flag))).collect()
}

fn layers(command: &TrainCommand) -> anyhow::Result<Layers> {
    let mut layers = Layers::default();
    let bare =
        command.config.is_none() && command.sets.is_empty() && command.depth.is_none() && command.data.is_empty();
    match &command.preset {
        Some(name) => layers.preset(name)?,
        None if bare => layers.preset(PRESETS[0].0)?,
        None => {}
    }
    if let Some(file) = &command.config {
        layers.file(file)?;
    }
    for set in &command.sets {
        layers.set(set)?;
    }
    for (key, value, flag) in flag_values(command) {
        layers.value(key, value, flag)?;
    }
    Ok(layers)
}

fn start(command: &TrainCommand) -> anyhow::Result<Option<Trainer>> {
    let layers = layers(command)?;
    let data = layers.data()?;
    // Refuse a bad configuration before a tokenizer is trained for it.
    let mut planned = layers.resolve(1)?;
    set_threads(planned.train.threads);
    let given = data.tokenizer.as_ref().map(|dir| Tokenizer::load(Path::new(dir))).transpose()?;
    if command.dry_run {
        Spec::parse_all(&data.sources)?;
        let config = layers.resolve(given.as_ref().map_or(data.vocab_size, Codec::vocab_size))?;
        let model = Gpt::new(config.model.clone(), DType::F32)?;
        show_estimate(&config, &estimate(&config, &model, true), command.json)?;
        check_memory(&config, &model)?;
        return Ok(None);
    }
    let out = command.out.clone().unwrap_or_else(free_folder);
    if out.join("config.toml").exists() {
        user_bail!("{} already holds a run; go on with it by --resume, or choose another --out", out.display());
    }
    // So is a run that does not fit the memory.
    let tokens = given.as_ref().map_or(data.vocab_size, Codec::vocab_size);
    planned.model.vocab_size = planned.model.vocab_size.max(tokens);
    check_memory(&planned, &Gpt::new(planned.model.clone(), planned.device.dtype)?)?;
    let tokenizer = Arc::new(match given {
        Some(tokenizer) => tokenizer,
        None => train_tokenizer(&planned, command.json)?,
    });
    let config = layers.resolve(tokenizer.vocab_size())?;
    Trainer::start(config, tokenizer, &out).map(Some)
}

pub(super) fn train_tokenizer(config: &RunConfig, json: bool) -> anyhow::Result<Tokenizer> {
    let data = &config.data;
    let pattern = if config.model.parts.digits.enabled { Pattern::Gpt4SingleDigit } else { Pattern::Gpt4 };
    let started = Instant::now();
    let (tokenizer, report) = train_on(&data.sources, &TrainSpec { pattern, ..TrainSpec::new(data.vocab_size) })?;
    let seconds = started.elapsed().as_secs_f64();
    say(
        json,
        &format!(
            "tokenizer: {} tokens from {:.1} MB in {seconds:.1} s",
            tokenizer.vocab_size(),
            report.bytes as f64 / 1e6
        ),
    );
    if report.ran_out_of_pairs() {
        say(json, &format!("the text has too few different pairs for {} tokens", data.vocab_size));
    }
    Ok(tokenizer)
}

/// The first of runs/train-1, runs/train-2, ... that does not exist.
fn free_folder() -> PathBuf {
    (1..).map(|i| PathBuf::from(format!("runs/train-{i}"))).find(|path| !path.exists()).expect("endless")
}

pub(super) fn set_threads(threads: usize) {
    // Fails when a pool exists already, as when this function was called before: then that one stays.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// Human output: to stdout, or to stderr when stdout is for JSON. A run does not end because it cannot be written.
fn say(json: bool, line: &str) {
    if json { note(line) } else { drop(print(format!("{line}\n").as_bytes())) }
}

fn show_estimate(config: &RunConfig, estimate: &Estimate, json: bool) -> anyhow::Result<()> {
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    let m = &config.model;
    say(
        json,
        &format!(
            "model       {} layers, width {}, {} heads of {}, {} key/value heads, feed-forward {}, vocabulary {}",
            m.layers, m.width, m.heads, m.head_dim, m.kv_heads, m.ffn_width, m.vocab_size
        ),
    );
    say(json, &format!("parameters  {:.2} M", estimate.parameters as f64 / 1e6));
    say(
        json,
        &format!(
            "memory      {:.2} GiB: {:.2} parameters, gradients and moments, {:.2} activations",
            gib(estimate.memory_bytes),
            gib(estimate.state_bytes),
            gib(estimate.activation_bytes)
        ),
    );
    say(
        json,
        &format!(
            "work        {} steps of {} tokens, {:.2} M tokens, {:.3e} floating-point operations",
            config.train.steps,
            config.train.batch_tokens,
            estimate.tokens as f64 / 1e6,
            estimate.flops
        ),
    );
    say(json, &format!("time        about {} on this machine", human_time(estimate.seconds)));
    if json {
        print(format!("{}\n", serde_json::to_string(estimate)?).as_bytes())?;
    }
    Ok(())
}

pub(super) fn human_time(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// Progress for a person: a bar on a terminal, plain lines elsewhere.
struct Display {
    json: bool,
    bar: Option<ProgressBar>,
    steps: u64,
    started: Instant,
    first_step: u64,
    first_loss: Option<f64>,
    /// Smoothed, so that the figure can be read.
    tokens_per_second: f64,
    last_line: Option<Instant>,
}

impl Display {
    fn new(trainer: &Trainer, json: bool) -> Display {
        let (config, steps) = (trainer.config(), trainer.config().train.steps);
        let m = &config.model;
        say(
            json,
            &format!(
                "{}: depth {}, width {}, vocabulary {}; {} steps of {} tokens; {}",
                trainer.path().display(),
                m.layers,
                m.width,
                m.vocab_size,
                steps,
                config.train.batch_tokens,
                config.data.sources.join(", ")
            ),
        );
        if trainer.step() > 0 {
            say(json, &format!("resumed after step {}", trainer.step()));
        }
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps).with_position(trainer.step());
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed} < {eta}");
            bar.set_style(style.expect("a valid template"));
            bar.reset_eta();
            bar
        });
        let (first_step, started) = (trainer.step(), Instant::now());
        Display { json, bar, steps, started, first_step, first_loss: None, tokens_per_second: 0.0, last_line: None }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(self.json, text)),
            None => say(self.json, text),
        }
    }

    fn finish(&mut self, end: End, summary: &Summary, path: &Path) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let word = match end {
            End::Finished => "done",
            End::Stopped => "stopped",
            End::Interrupted => "interrupted, state saved",
        };
        self.line(&format!(
            "{word} after step {} in {}: {:.2} M tokens, {:.0} tokens/s, {:.2} M parameters, peak memory {:.0} MB",
            summary.steps,
            human_time(summary.seconds),
            summary.tokens as f64 / 1e6,
            summary.tokens_per_second,
            summary.parameters as f64 / 1e6,
            summary.peak_memory_bytes as f64 / 1e6
        ));
        if let (Some(first), Some(last)) = (self.first_loss, summary.train_loss) {
            let held_out = match (summary.val_loss, summary.val_bpb) {
                (Some(loss), Some(bpb)) => format!("; on held-out text {loss:.3} nats, {bpb:.3} bits per byte"),
                _ => String::new(),
            };
            self.line(&format!("learnt: training loss {first:.3} -> {last:.3} nats a token{held_out}"));
        }
        if let Some(sample) = &summary.sample {
            self.line(&format!("it now writes:\n{}", indent(sample)));
        }
        let path = path.display();
        self.line(&format!("curve {path}/loss.svg, metrics {path}/metrics.jsonl, model {path}/checkpoints"));
        match end {
            End::Finished => self.line(&format!("try: nanochat-gpu sample --checkpoint {path} -p \"Once\"")),
            _ => self.line(&format!("go on: nanochat-gpu train --resume --out {path}")),
        }
    }
}

impl Observer for Display {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Step(record) => {
                self.first_loss.get_or_insert(record.loss);
                let fresh = if self.tokens_per_second == 0.0 { 1.0 } else { 0.1 };
                self.tokens_per_second += fresh * (record.tokens_per_second - self.tokens_per_second);
                let message = format!(
                    "loss {:.4} lr {:.3} grad {:.2} {:.0} tok/s {:.0} GFLOP/s",
                    record.loss, record.lr, record.grad_norm, self.tokens_per_second, record.gflops_per_second
                );
                if let Some(bar) = &self.bar {
                    bar.set_position(record.step);
                    bar.set_message(message);
                    return;
                }
                let quiet = self.last_line.is_some_and(|at| at.elapsed() < Duration::from_secs(2));
                if !quiet || record.step == self.steps {
                    self.last_line = Some(Instant::now());
                    let done = (record.step - self.first_step) as f64;
                    let left = self.started.elapsed().as_secs_f64() / done * (self.steps - record.step) as f64;
                    self.line(&format!("step {}/{} {message}, {} left", record.step, self.steps, human_time(left)));
                }
            }
            Event::Evaluated { step, evaluation } => self.line(&format!(
                "step {step}: held-out loss {:.4} nats, {:.4} bits per byte",
                evaluation.loss, evaluation.bits_per_byte
            )),
            Event::Sampled { step, text } => {
                if step < self.steps {
                    self.line(&format!("step {step} writes:\n{}", indent(text)));
                }
            }
            Event::Saved { path } => self.line(&format!("saved {}", path.display())),
            Event::Notice { message } => self.line(message),
        }
    }
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("    {line}\n")).collect::<String>().trim_end_matches('\n').to_string()
}
