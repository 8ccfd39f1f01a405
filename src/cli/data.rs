//! `nanochat-gpu data`: prepares token shards and tells what a data specification holds.

use super::output::print;
use crate::data::prepare::{Counts, Inventory, PrepareOptions, inventory, prepare};
use crate::data::{ENDLESS_BYTES, VAL_FRACTION};
use crate::tokenizer::{Codec, Tokenizer};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Prepare data, or look at it
#[derive(Debug, Args)]
pub struct DataCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Tokenise documents into shards, so that training need not
    #[command(after_help = "Example: nanochat-gpu data prepare --data books/ --tokenizer tok/ --out shards/")]
    Prepare(Prepare),
    /// Count documents, bytes and tokens
    #[command(after_help = "Example: nanochat-gpu data info --data books/ --tokenizer tok/")]
    Info(Info),
}

#[derive(Debug, Args)]
struct Prepare {
    /// Files, folders or patterns of .txt, .jsonl or .parquet, or synthetic[:TASK]
    #[arg(long, value_name = "SPEC", required = true)]
    data: Vec<String>,
    /// Folder with tokenizer.json
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// Folder for train_*.bin and val_*.bin
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of the documents held out
    #[arg(long, value_name = "X", default_value_t = VAL_FRACTION)]
    val_fraction: f64,
    /// Tokens per shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    shard_tokens: usize,
    /// Tokens of each split taken from built-in data, which has no end
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    synthetic_tokens: usize,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Info {
    /// Files, folders or patterns of .txt, .jsonl, .parquet or .bin, or synthetic[:TASK]
    #[arg(long, value_name = "SPEC", required = true)]
    data: Vec<String>,
    /// Folder with tokenizer.json; without it only token shards have a number of tokens
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

/// Runs the command. Errors: user errors as [`prepare`] and [`inventory`] report them, and of loading the tokenizer.
pub fn run(command: DataCommand) -> anyhow::Result<()> {
    match command.action {
        Action::Prepare(arguments) => run_prepare(&arguments),
        Action::Info(arguments) => run_info(&arguments),
    }
}

fn run_prepare(arguments: &Prepare) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::load(&arguments.tokenizer)?;
    let options = PrepareOptions {
        val_fraction: arguments.val_fraction,
        shard_tokens: arguments.shard_tokens,
        endless_tokens: arguments.synthetic_tokens,
        tokenizer_digest: Some(tokenizer.digest()),
    };
    // Draws on stderr, and only when that is a terminal.
    let style = ProgressStyle::with_template("{spinner} {human_pos} tokens in {elapsed} ({per_sec})")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    let mut show = |tokens| bar.set_position(tokens);
    let prepared = prepare(&arguments.data, &tokenizer, &arguments.out, &options, &mut show);
    bar.finish_and_clear();
    let prepared = prepared?;
    let line = |name: &str, counts: &Counts| {
        let Counts { documents, bytes, tokens } = counts;
        format!("{name:<10} {documents} documents, {bytes} bytes, {tokens} tokens\n")
    };
    let mut text = line("training", &prepared.train) + &line("validation", &prepared.validation);
    text += &format!("{} shards in {}\n", prepared.files.len(), arguments.out.display());
    if arguments.json {
        text += &format!("{}\n", serde_json::to_string(&prepared)?);
    }
    print(text.as_bytes())
}

fn run_info(arguments: &Info) -> anyhow::Result<()> {
    let tokenizer = arguments.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let codec = tokenizer.as_ref().map(|tokenizer| tokenizer as &dyn Codec);
    let digest = tokenizer.as_ref().map(Tokenizer::digest);
    let count = |spec: &String| inventory(spec, codec, digest.clone(), ENDLESS_BYTES as u64);
    let held: Vec<Inventory> = arguments.data.iter().map(count).collect::<anyhow::Result<_>>()?;
    let mut text = String::new();
    for Inventory { name, weight, endless, counts: Counts { documents, bytes, tokens } } in &held {
        let sample = if *endless { " (a sample: built-in data has no end)" } else { "" };
        let tokens = if *tokens > 0 { format!(", {tokens} tokens") } else { String::new() };
        text += &format!("{name} (weight {weight}): {documents} documents, {bytes} bytes{tokens}{sample}\n");
    }
    if arguments.json {
        text += &format!("{}\n", serde_json::json!({ "data": held }));
    }
    print(text.as_bytes())
}
