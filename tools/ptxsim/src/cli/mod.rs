//! `ptxsim run LAUNCH.json`, `ptxsim mutate LAUNCH.json` and `ptxsim forms FILE.ptx...`. Exit 0: fine; 1: findings, mutants
//! that nobody noticed, or unsupported forms; 2: bad input.

mod launch_file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use launch_file::LaunchFile;
use ptxsim::checker::Finding;
use ptxsim::counters::Report;
use ptxsim::front::parser::parse;
use ptxsim::launch::Outcome;
use ptxsim::mutation::{self, Fate, Verdict};
use ptxsim::options::Options;
use ptxsim::program;
use serde::Serialize;

/// Runs PTX for sm_80 and sm_90a on a CPU, checks it and counts it.
#[derive(Parser)]
#[command(
    version,
    after_help = r#"A launch file, with paths relative to it:
  {"ptx": "k.ptx", "entry": "scale", "grid": [4, 1, 1], "block": [128, 1, 1], "dynamic_smem_bytes": 0,
   "buffers": {"x": {"bytes": 2048, "init": {"file": "x.bin"}}, "y": {"bytes": 2048, "init": "poison"}},
   "args": [{"buffer": "y"}, {"buffer": "x"}, {"f32": 2.5}, {"u32": 512}],
   "outputs": {"y": "y.bin"}, "seeds": [1, 2, 3], "mode": "exact"}

Other contents are "zero"; other arguments i32, u64, tensor_map; "cluster" is [x, y, z]; "mode" is "exact", "fast", or an
object of options (schedule, asynchrony, approximation, checks, threads, ...)."#
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a kernel as a launch file says; print findings and counters as JSON.
    Run {
        /// The launch file.
        launch: PathBuf,
    },
    /// List the instruction forms of PTX files with counts; unsupported ones are marked.
    Forms {
        /// PTX files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Take out one barrier, wait, fence, commit, arrival or expect_tx at a time; exit 1 when a mutant goes unreported.
    Mutate {
        /// The launch file; its outputs are compared.
        launch: PathBuf,
    },
}

#[derive(Serialize)]
struct MutationReport {
    reported: usize,
    of: usize,
    mutants: Vec<Verdict>,
}

#[derive(Serialize)]
struct RunReport {
    findings: Vec<Finding>,
    counters: Report,
    #[serde(skip_serializing_if = "String::is_empty")]
    printed: String,
}

/// Does what the command says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run { launch } => run_launch(&launch),
        Command::Forms { files } => forms(&files),
        Command::Mutate { launch } => mutate(&launch),
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn forms(files: &[PathBuf]) -> Result<ExitCode> {
    let mut all = BTreeMap::<String, (u64, Option<String>)>::new();
    for file in files {
        let module = parse(&file.display().to_string(), &read_text(file)?)?;
        for row in program::forms(&module)? {
            let entry = all.entry(row.form).or_default();
            entry.0 += row.count;
            entry.1 = entry.1.take().or(row.unsupported);
        }
    }
    let (mut total, mut unsupported) = (0, 0);
    for (form, (count, reason)) in &all {
        total += count;
        match reason {
            None => println!("{count:>8}  {form}"),
            Some(reason) => {
                unsupported += 1;
                println!("{count:>8}  {form}  UNSUPPORTED {reason}");
            }
        }
    }
    println!("{} forms, {total} instructions, {unsupported} forms unsupported", all.len());
    Ok(ExitCode::from((unsupported > 0) as u8))
}

fn run_launch(path: &Path) -> Result<ExitCode> {
    let file = LaunchFile::read(path)?;
    let mut findings: Vec<Finding> = Vec::new();
    let mut first = None;
    for options in file.runs() {
        let (outcome, outputs) = file.run(&file.ptx, &options)?;
        for finding in &outcome.findings {
            if !findings.iter().any(|known| known.rule == finding.rule && known.line == finding.line) {
                findings.push(finding.clone());
            }
        }
        if first.is_none() {
            file.write(&outputs)?;
            first = Some(outcome);
        }
    }
    let Outcome { counters, printed, .. } = first.unwrap_or_default();
    let code = u8::from(!findings.is_empty());
    println!("{}", serde_json::to_string_pretty(&RunReport { findings, counters, printed })?);
    Ok(ExitCode::from(code))
}

fn mutate(path: &Path) -> Result<ExitCode> {
    let file = LaunchFile::read(path)?;
    let runs: Vec<Options> = file.runs().iter().flat_map(mutation::runs).collect();
    let run = |ptx: &str, options: &Options| {
        let (outcome, outputs) = file.run(ptx, options)?;
        Ok((outcome.findings, outputs.into_values().flatten().collect()))
    };
    let mutants = mutation::examine(&file.ptx, file.entry(), &runs, run)?;
    let reported = mutants.iter().filter(|mutant| matches!(mutant.fate, Fate::Reported(_))).count();
    let code = u8::from(reported < mutants.len());
    println!("{}", serde_json::to_string_pretty(&MutationReport { reported, of: mutants.len(), mutants })?);
    Ok(ExitCode::from(code))
}
