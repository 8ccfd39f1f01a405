//! `ablate`: trains with and without parts, at equal tokens, over seeds, and shows what each part is worth.

use super::output::{note, print};
use super::train::{human_time, set_threads, train_tokenizer};
use crate::model::parts::TABLES;
use crate::tokenizer::Tokenizer;
use crate::train::ablation::{Ablation, Arm, PLAIN, arms};
use crate::train::config::{Layers, RunConfig};
use crate::user_bail;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use toml::Value;

/// Train with and without each part of the model, and compare
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nanochat-gpu ablate --data books/ --depth 4 --steps 200 --seeds 3 --out runs/ablation

Arms: the plain model; each part alone, as a probe, and beside its controls; all parts; all but one. Writes table.md, report.json and
bits-per-byte.svg into --out. Runs that are finished there are not done again.")]
pub struct AblateCommand {
    /// Text, folders, globs (.txt, .jsonl, .parquet, .bin) or built-in data such as synthetic; SPEC@weight to mix
    #[arg(long, num_args = 1.., value_name = "SPEC")]
    data: Vec<String>,
    /// Layers; width, heads and learning rates follow from it
    #[arg(long, value_name = "N", default_value_t = 4)]
    depth: u32,
    /// Optimiser steps of each run
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u32,
    /// Runs of each arm
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u32,
    /// Parts, separated by commas; all without it
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    parts: Vec<String>,
    /// Only arms whose name contains this, and those that they are held against; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Folder with a tokenizer.json; without it one is trained on the data
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Set any key of the configuration, such as train.seq_len=128; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Folder of the ablation
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the report as one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Runs the command; the exit code is 0, or 130 after an interruption.
///
/// # Errors
/// What the user gave wrong, or what failed while training.
pub fn run(command: AblateCommand) -> anyhow::Result<u8> {
    let ablation = prepare(&command)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130); // the second time: at once
        }
    })?;
    let (runs, started) = (ablation.runs(), Instant::now());
    let mut waiting = Vec::new();
    for run in &runs {
        if ablation.finished(*run)?.is_none() {
            waiting.push(*run);
        }
    }
    if waiting.len() < runs.len() {
        note(&format!(
            "{} of {} runs are finished in {}",
            runs.len() - waiting.len(),
            runs.len(),
            command.out.display()
        ));
    }
    for (i, run) in waiting.iter().enumerate() {
        let began = Instant::now();
        let Some(outcome) = ablation.run(*run, &interrupted)? else {
            note("interrupted; the same command goes on with the runs that are not finished");
            return Ok(130);
        };
        let left = started.elapsed().as_secs_f64() / (i + 1) as f64 * (waiting.len() - i - 1) as f64;
        note(&format!(
            "{}/{} {}, seed {}: {:.4} bits per byte in {}, {} left",
            i + 1,
            waiting.len(),
            ablation.name(*run),
            run.seed,
            outcome.val_bpb,
            human_time(began.elapsed().as_secs_f64()),
            human_time(left)
        ));
    }
    let report = ablation.report()?;
    let title = format!("depth {}, {} steps, {} seeds", command.depth, command.steps, command.seeds);
    report.draw(&command.out.join("bits-per-byte.svg"), &title)?;
    let (table, json) = (report.table(), serde_json::to_string(&report)?);
    std::fs::write(command.out.join("table.md"), &table)?;
    std::fs::write(command.out.join("report.json"), &json)?;
    print(if command.json { json + "\n" } else { table }.as_bytes())?;
    Ok(0)
}

fn prepare(command: &AblateCommand) -> anyhow::Result<Ablation> {
    if command.seeds == 0 {
        user_bail!("--seeds 0 runs nothing; give at least 1");
    }
    let parts = match command.parts.is_empty() {
        true => TABLES.iter().map(|name| name.to_string()).collect(),
        false => command.parts.clone(),
    };
    let mut arms = arms(&parts)?;
    if !command.only.is_empty() {
        let is_wanted = |arm: &Arm| command.only.iter().any(|text| arm.name.contains(&text[..]));
        let beside: Vec<&str> = arms.iter().filter(|arm| is_wanted(arm)).map(|arm| arm.against).collect();
        if beside.is_empty() {
            user_bail!("no arm's name contains {}", command.only.join(" or "));
        }
        // The plain one for the noise, whatever else.
        arms.retain(|arm| is_wanted(arm) || arm.name == PLAIN || beside.contains(&&arm.name[..]));
    }
    let mut layers = Layers::default();
    // The packing that memories need is every arm's.
    layers.set("data.packing=stream")?;
    for set in &command.sets {
        layers.set(set)?;
    }
    let integer = |n: u32| Value::Integer(n.into());
    layers.value("model.depth", integer(command.depth), "--depth")?;
    layers.value("train.steps", integer(command.steps), "--steps")?;
    if !command.data.is_empty() {
        let sources = command.data.iter().cloned().map(Value::String).collect();
        layers.value("data.sources", Value::Array(sources), "--data")?;
    }
    if let Some(dir) = &command.tokenizer {
        layers.value("data.tokenizer", Value::String(dir.display().to_string()), "--tokenizer")?;
    }
    let data = layers.data()?;
    // Refuse a bad configuration before a tokenizer is trained for it.
    let configs: Vec<RunConfig> = arms.iter().map(|arm| arm.config(&layers, 1, 1)).collect::<anyhow::Result<_>>()?;
    set_threads(configs[0].train.threads);
    // One for all arms, kept beside the runs, so that an ablation that goes on has the same.
    let kept = command.out.join("tokenizer");
    let tokenizer = match &data.tokenizer {
        Some(dir) => Tokenizer::load(Path::new(dir))?,
        None if kept.exists() => Tokenizer::load(&kept)?,
        None => {
            // As it must be for the arm that asks the most of it.
            let config = configs.iter().find(|config| config.model.parts.digits.enabled).unwrap_or(&configs[0]);
            let tokenizer = train_tokenizer(config, true)?;
            std::fs::create_dir_all(&kept)?;
            tokenizer.save(&kept)?;
            tokenizer
        }
    };
    Ok(Ablation::new(layers, Arc::new(tokenizer), arms, command.seeds.into(), command.out.clone()))
}
