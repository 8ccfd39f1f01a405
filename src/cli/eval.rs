//! `eval`: measures a model on held-out text.

use super::output::print;
use crate::data::{Corpus, LoaderOptions, Packing, Split, VAL_FRACTION};
use crate::device::choice::{self, SimMode};
use crate::eval::{Evaluation, bits_per_byte, heads};
use crate::formats::checkpoint::load_model;
use crate::infer::{Footprint, check_vocabulary, reserve_arena};
use crate::tensor::DType;
use crate::{user_bail, user_error};
use anyhow::bail;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Longest rows when none are asked for.
const SEQ_LEN_DEFAULT: usize = 1024;

/// Measure a model on held-out text: bits per byte, and the loss per token
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu eval --checkpoint runs/first --data books/ --json\n\n\
                  Bits per byte compare models of any tokenizer; the loss compares with a training loss.")]
pub struct EvalCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    checkpoint: PathBuf,
    /// Files, folders or patterns of .txt, .jsonl, .parquet or .bin, or synthetic[:TASK]; may be given several times
    #[arg(long, value_name = "SPEC", num_args = 1.., default_value = "synthetic")]
    data: Vec<String>,
    /// Which documents; with --val-fraction 0, train is all of them
    #[arg(long, value_enum, default_value_t = Part::Validation)]
    split: Part,
    /// Share of the documents held out; as in training, or the model is measured on what it has learnt from
    #[arg(long, value_name = "X", default_value_t = VAL_FRACTION)]
    val_fraction: f64,
    /// Most tokens evaluated; less when the data end before
    #[arg(long, value_name = "N", default_value_t = 524_288)]
    tokens: usize,
    /// Rows evaluated at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    rows: usize,
    /// Tokens of a row; by default the model's context, at most 1024
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Where to compute: auto, cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    Validation,
    Train,
}

/// Runs the command. Errors: user errors for options out of range, a tokenizer that is not the model's, and those of
/// opening checkpoint and data; a loss that is not a number.
pub fn run(command: EvalCommand) -> anyhow::Result<()> {
    let mut opened = load_model(&command.checkpoint, DType::F32)?;
    let Some(tokenizer) = opened.tokenizer.take() else {
        user_bail!("{} has no tokenizer.json, so it cannot read text; copy the model's there", opened.path.display());
    };
    let config = opened.model.config();
    check_vocabulary(&tokenizer, config)?;
    let context = config.max_seq_len;
    let seq_len = command.seq_len.unwrap_or(context.min(SEQ_LEN_DEFAULT));
    if seq_len > context {
        user_bail!("--seq-len is {seq_len} and the model's context {context}; lower it");
    }
    if command.tokens == 0 || command.rows == 0 || seq_len == 0 {
        user_bail!("--tokens, --rows and --seq-len must be at least 1");
    }
    // No more rows than the tokens asked for fill.
    let rows = command.rows.min((command.tokens / seq_len).max(1));
    let tokens = rows.checked_mul(seq_len).ok_or_else(|| user_error!("--rows is {rows}; lower it"))?;
    let options = LoaderOptions {
        split: match command.split {
            Part::Validation => Split::Validation,
            Part::Train => Split::Train,
        },
        val_fraction: command.val_fraction,
        // A memory reads on from batch to batch.
        packing: if config.parts.read_on() { Packing::Stream } else { Packing::Bos },
        tokenizer_digest: Some(tokenizer.digest()),
        ..LoaderOptions::new(rows, seq_len)
    };
    let corpus = Corpus::open(&command.data, Arc::new(tokenizer), options)?;
    let device = choice::open(&command.device, SimMode::Fast)?;
    let arena = reserve_arena(device, config, Footprint::of_loss(device, config, tokens))?;
    let (model, params) = (opened.model.to(device), opened.params.clone().to(device));
    // Draws on stderr, and only when that is a terminal.
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} evaluating, {elapsed}")?);
    bar.enable_steady_tick(Duration::from_millis(100));
    let evaluation = bits_per_byte(&model, &params, &arena, &mut corpus.packer(None)?, command.tokens);
    let heads = heads::judge(&model, &params, &arena, &mut corpus.packer(None)?, command.tokens);
    bar.finish_and_clear();
    let mut evaluation = evaluation?;
    evaluation.notes.extend(heads?);
    let Evaluation { bits_per_byte, loss, tokens, bytes, ref parts, ref notes } = evaluation;
    if !(bits_per_byte.is_finite() && loss.is_finite()) {
        bail!("the loss is {loss}: the model computes no probabilities any more");
    }
    let mut text = format!("bits per byte  {bits_per_byte:.4}\nloss           {loss:.4} nats per token\n");
    for (name, loss) in parts {
        text += &format!("{:<14} {loss:.4} nats\n", format!("loss.{name}"));
    }
    for (name, value) in notes {
        text += &format!("{name:<31} {value:.4}\n");
    }
    text += &format!("over           {tokens} tokens, {bytes} bytes\n");
    if command.json {
        text += &format!("{}\n", serde_json::to_string(&evaluation)?);
    }
    print(text.as_bytes())
}
