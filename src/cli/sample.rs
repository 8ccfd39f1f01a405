//! `sample`: continues a text with a trained model.

use super::output::{print, stream};
use crate::device::choice::{self, SimMode};
use crate::formats::checkpoint::{LoadedModel, load_model};
use crate::infer::{Drawn, Finish, Generation, Request, Sampler, SamplerOptions};
use crate::infer::{Utf8Stream, check_prompt, check_vocabulary, end_ids, generate};
use crate::model::psyche::STAGES;
use crate::tensor::DType;
use crate::tokenizer::{Codec, Tokenizer};
use crate::user_bail;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Continue a text with a trained model
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu sample --checkpoint runs/first -p 'Once upon a time' -n 3 \
                  --temperature 0.8 --top-k 50")]
pub struct SampleCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The text to continue; without it the model begins a document of its own
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: String,
    /// Number of continuations; a line `---` is between them
    #[arg(short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    number: u64,
    /// Most tokens of a continuation
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 always takes the most probable token; higher is more varied
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the N most probable tokens
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw only from the most probable tokens that together reach this probability
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to compute: auto, cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Show how much each stage decided of each token: psyche colours Id red, Ego green, Superego blue, in a terminal
    #[arg(long, value_name = "WHAT", value_enum)]
    show: Option<Show>,
    /// Lean on stages of the controller, such as id=+1,superego=-0.5: added to their scores
    #[arg(long, value_name = "STAGE=X", value_delimiter = ',', allow_hyphen_values = true)]
    psyche: Vec<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Show {
    Psyche,
}

/// What is added to the scores of the stages.
fn lean(assignments: &[String]) -> anyhow::Result<[f64; 3]> {
    let mut lean = [0.0; 3];
    for assignment in assignments {
        let known = assignment.split_once('=').and_then(|(name, value)| {
            let stage = STAGES.iter().position(|stage| *stage == name.trim())?;
            let value = value.trim().parse::<f64>().ok().filter(|value| value.is_finite())?;
            Some((stage, value))
        });
        let Some((stage, value)) = known else {
            user_bail!("--psyche {assignment:?} names no stage and number; write id=+1, ego=0.5 or superego=-1")
        };
        lean[stage] = value;
    }
    Ok(lean)
}

/// The colour of a token: equal weights are grey, a stage that decides alone is red, green or blue.
fn colour(weights: [f32; 3]) -> [u8; 3] {
    weights.map(|w| (190.0 + 220.0 * (w - 1.0 / 3.0)).clamp(60.0, 255.0) as u8)
}

/// Runs the command. Errors: user errors for options out of range, a checkpoint without tokenizer, or a prompt longer
/// than the context, and those of opening the checkpoint.
pub fn run(command: SampleCommand) -> anyhow::Result<()> {
    let SampleCommand { temperature, top_k, top_p, seed, .. } = command;
    let sampler = Sampler::new(SamplerOptions { temperature, top_k, top_p, seed })?;
    let lean = lean(&command.psyche)?;
    let mut opened = load_model(&command.checkpoint, DType::F32)?;
    if (command.show.is_some() || !command.psyche.is_empty()) && !opened.model.config().parts.psyche.enabled {
        user_bail!("{} has no PsycheController; train with --set psyche.enabled=true", opened.dir.display());
    }
    let Some(tokenizer) = opened.tokenizer.take() else {
        user_bail!(
            "{} has no tokenizer.json, so it cannot read a prompt; copy the model's there",
            opened.dir.display()
        );
    };
    check_vocabulary(&tokenizer, opened.model.config())?;
    let mut prompt: Vec<u32> = tokenizer.bos().into_iter().collect();
    tokenizer.encode_into(command.prompt.as_bytes(), &mut prompt);
    check_prompt(opened.model.config(), &prompt)?;
    let device = choice::open(&command.device, SimMode::Fast)?;
    opened.model = opened.model.leaning(lean).to(device);
    opened.params = opened.params.to(device);
    let mut samples = Vec::new();
    for sequence in 0..command.number {
        let mut show = |text: &str| if command.json { Ok(ControlFlow::Continue(())) } else { stream(text.as_bytes()) };
        let separator = if sequence > 0 { "---\n" } else { "" };
        if show(&format!("{separator}{}", command.prompt))?.is_break() {
            return Ok(());
        }
        let sample = sample(&opened, &tokenizer, &sampler, &command, &prompt, sequence, &mut show)?;
        if show("\n")?.is_break() {
            return Ok(());
        }
        samples.push(sample);
    }
    if command.json {
        let samples: Vec<_> = samples
            .iter()
            .map(|(text, Generation { tokens, finish }, weights)| {
                let mut sample = json!({"text": text, "tokens": tokens, "finish": finish});
                if command.show.is_some() {
                    sample["psyche"] = json!(weights);
                }
                sample
            })
            .collect();
        let object = json!({"prompt": command.prompt, "prompt_tokens": prompt, "seed": seed, "samples": samples});
        return print(format!("{object}\n").as_bytes());
    }
    if samples.iter().any(|(_, generation, _)| generation.finish == Finish::ContextFull) {
        let context = opened.model.config().max_seq_len;
        tracing::warn!("the model's context of {context} tokens ended before --max-tokens were generated");
    }
    Ok(())
}

/// One continuation; `show` gets its text piece by piece.
fn sample(
    opened: &LoadedModel,
    tokenizer: &Tokenizer,
    sampler: &Sampler,
    command: &SampleCommand,
    prompt: &[u32],
    sequence: u64,
    show: &mut dyn FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<(String, Generation, Vec<[f32; 3]>)> {
    let stop_ids = end_ids(tokenizer);
    let request = Request { prompt, tokens_max: command.max_tokens, sequence, stop_ids: &stop_ids };
    let (mut decoder, mut text, mut failure) = (Utf8Stream::default(), String::new(), None);
    let colours = command.show.is_some() && std::io::stdout().is_terminal();
    let mut all_weights = Vec::new();
    let mut on_token = |Drawn { id, psyche }| {
        // A padding row of the vocabulary has no bytes.
        let piece = decoder.push(tokenizer.token_bytes(id).unwrap_or_default());
        text.push_str(&piece);
        all_weights.extend(psyche);
        let piece = match psyche {
            Some(weights) if colours && !piece.is_empty() => {
                let [r, g, b] = colour(weights);
                format!("\x1b[38;2;{r};{g};{b}m{piece}\x1b[0m")
            }
            _ => piece,
        };
        show(&piece).unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        })
    };
    let generation = generate(&opened.model, &opened.params, sampler, &request, &mut on_token)?;
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = decoder.finish();
    text.push_str(&rest);
    let _ = show(&rest)?; // the caller notices a reader that went away
    Ok((text, generation, all_weights))
}
