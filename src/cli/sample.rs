//! `sample`: continues a text with a trained model.

use super::output::{note, print, stream};
use crate::device::choice::{self, SimMode};
use crate::formats::checkpoint::{LoadedModel, load_for_inference};
use crate::infer::generate::cache;
use crate::infer::{Drawn, Finish, Generation, Request, Rerank, Sampler, SamplerOptions};
use crate::infer::{Utf8Stream, check_prompt, check_vocabulary, generate_on, memory_file};
use crate::model::KvCache;
use crate::model::psyche::STAGES;
use crate::tensor::DType;
use crate::tokenizer::{Codec, Tokenizer};
use crate::user_bail;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Continue a text with a trained model
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nanochat-gpu sample --checkpoint runs/first -p 'Once upon a time' -n 3 \
                  --temperature 0.8 --top-k 50")]
pub struct SampleCommand {
    /// Folder of a checkpoint, or of a run, whose newest checkpoint is taken; or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
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
    show: Option<What>,
    /// Lean on stages of the controller, such as id=+1,superego=-0.5: added to their scores
    #[arg(long, value_name = "STAGE=X", value_delimiter = ',', allow_hyphen_values = true)]
    psyche: Vec<String>,
    /// Draw N continuations and print the best of them, with its score
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    best_of: Option<u64>,
    /// What the best is chosen by
    #[arg(long, value_name = "SCORE", value_enum, default_value_t = Rerank::Logprob, requires = "best_of")]
    rerank: Rerank,
    /// Go on from what the model's memories hold in FILE, and keep there what comes of this text; begun where there is no such file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["number", "best_of"])]
    memory: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    Psyche,
}

impl ValueEnum for Rerank {
    fn value_variants<'a>() -> &'a [Rerank] {
        &[Rerank::Energy, Rerank::Logprob]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Rerank::Energy => "the lowest mean energy of its chunks of four tokens, of a model with an energy head",
            Rerank::Logprob => "the highest mean log-probability of its tokens",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

/// What is added to the scores of the stages.
pub(super) fn lean(assignments: &[String]) -> anyhow::Result<[f64; 3]> {
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
    let sampler = Sampler::new(SamplerOptions { temperature, top_k, top_p, seed, ..SamplerOptions::GREEDY })?;
    let lean = lean(&command.psyche)?;
    let device = choice::open(&command.device, SimMode::Fast)?;
    let mut opened = load_for_inference(&command.checkpoint, DType::F32, device)?;
    if (command.show.is_some() || !command.psyche.is_empty()) && !opened.model.config().parts.psyche.enabled {
        user_bail!("{} has no PsycheController; train with --set psyche.enabled=true", opened.path.display());
    }
    let Some(tokenizer) = opened.tokenizer.take() else {
        user_bail!(
            "{} has no tokenizer.json, so it cannot read a prompt; copy the model's there",
            opened.path.display()
        );
    };
    check_vocabulary(&tokenizer, opened.model.config())?;
    command.rerank.check(opened.model.config())?;
    let mut prompt: Vec<u32> = opened.text.prefix().into_iter().collect();
    tokenizer.encode_into(command.prompt.as_bytes(), &mut prompt);
    if prompt.is_empty() {
        prompt.extend(tokenizer.bos()); // a document of its own, of a model that wants nothing before texts
    }
    check_prompt(opened.model.config(), &prompt)?;
    opened.model = opened.model.leaning(lean);
    let task = Task { opened: &opened, tokenizer: &tokenizer, sampler: &sampler, command: &command, prompt: &prompt };
    // Before anything is printed. With a memory there is one continuation.
    let mut remembering = command.memory.as_deref().map(|file| task.remembering(file)).transpose()?;
    let mut samples = Vec::new();
    for number in 0..command.number {
        let mut show = |text: &str| if command.json { Ok(ControlFlow::Continue(())) } else { stream(text.as_bytes()) };
        let separator = if number > 0 { "---\n" } else { "" };
        if show(&format!("{separator}{}", command.prompt))?.is_break() {
            return Ok(());
        }
        let sample = match command.best_of {
            None => task.draw(number, remembering.take(), &mut show)?,
            Some(candidates) => task.best(number, candidates, &mut show)?,
        };
        if show("\n")?.is_break() {
            return Ok(());
        }
        samples.push(sample);
    }
    if command.json {
        let samples: Vec<_> = samples
            .iter()
            .map(|Sample { text, generation: Generation { tokens, finish }, weights, score }| {
                let mut sample = json!({"text": text, "tokens": tokens, "finish": finish});
                if command.show.is_some() {
                    sample["psyche"] = json!(weights);
                }
                if command.best_of.is_some() {
                    sample[command.rerank.name()] = json!(score);
                }
                sample
            })
            .collect();
        let object = json!({"prompt": command.prompt, "prompt_tokens": prompt, "seed": seed, "samples": samples});
        return print(format!("{object}\n").as_bytes());
    }
    if samples.iter().any(|sample| sample.generation.finish == Finish::ContextFull) {
        let context = opened.model.config().max_seq_len;
        tracing::warn!("the model's context of {context} tokens ended before --max-tokens were generated");
    }
    Ok(())
}

/// A continuation.
struct Sample {
    text: String,
    generation: Generation,
    /// Of the stages, for each token, where the model has them.
    weights: Vec<[f32; 3]>,
    /// What it was chosen by, where it was and there is something to judge.
    score: Option<f64>,
}

/// What continuations are drawn from.
struct Task<'a> {
    opened: &'a LoadedModel,
    tokenizer: &'a Tokenizer,
    sampler: &'a Sampler,
    command: &'a SampleCommand,
    prompt: &'a [u32],
}

/// Shows a piece of text; nothing more need be shown when it breaks.
type Show<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<ControlFlow<()>>;

impl Task<'_> {
    fn request(&self, sequence: u64) -> Request<'_> {
        let Task { opened, command, prompt, .. } = *self;
        Request { prompt, tokens_max: command.max_tokens, sequence, stop_ids: &opened.text.eos }
    }

    /// A cache whose memory holds what `file` does.
    fn remembering(&self, file: &Path) -> anyhow::Result<KvCache> {
        let LoadedModel { model, params, .. } = self.opened;
        let mut cache = cache(model, params, &self.request(0));
        memory_file::load(file, model, params, cache.state())?;
        Ok(cache)
    }

    /// The best of `candidates` continuations; what it scored is said beside it.
    fn best(&self, number: u64, candidates: u64, show: Show) -> anyhow::Result<Sample> {
        let (rerank, LoadedModel { model, params, .. }) = (self.command.rerank, self.opened);
        let mut best: Option<Sample> = None;
        for candidate in 0..candidates {
            let sequence = number.wrapping_mul(candidates).wrapping_add(candidate);
            let sample = self.draw(sequence, None, &mut |_| Ok(ControlFlow::Continue(())))?;
            let score = rerank.score(model, params, self.prompt, &sample.generation.tokens)?;
            if best.as_ref().is_none_or(|best| rerank.is_better(score, best.score)) {
                best = Some(Sample { score, ..sample });
            }
        }
        let best = best.expect("one candidate at least");
        let _ = show(&best.text)?; // the caller notices a reader that went away
        if !self.command.json {
            let score = best.score.map_or("nothing to judge".to_owned(), |score| format!("{score:.4}"));
            note(&format!("best of {candidates} by {}: {score}", rerank.name()));
        }
        Ok(best)
    }

    /// One continuation, in a cache of its own unless there is one; `show` gets its text piece by piece.
    fn draw(&self, sequence: u64, ready: Option<KvCache>, show: Show) -> anyhow::Result<Sample> {
        let Task { opened, tokenizer, sampler, command, .. } = *self;
        let request = self.request(sequence);
        let (mut decoder, mut text, mut failure) = (Utf8Stream::default(), String::new(), None);
        let colours = command.show.is_some() && std::io::stdout().is_terminal();
        let mut weights = Vec::new();
        let mut on_token = |Drawn { id, psyche }| {
            // A padding row of the vocabulary has no bytes.
            let piece = decoder.push(tokenizer.token_bytes(id).unwrap_or_default());
            text.push_str(&piece);
            weights.extend(psyche);
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
        let LoadedModel { model, params, .. } = opened;
        let mut cache = ready.unwrap_or_else(|| cache(model, params, &request));
        let generation = generate_on(model, params, sampler, &request, &mut cache, &mut on_token)?;
        if let Some(error) = failure {
            return Err(error);
        }
        if let Some(file) = &command.memory {
            memory_file::save(file, model, params, cache.state())?;
        }
        let rest = decoder.finish();
        text.push_str(&rest);
        let _ = show(&rest)?; // the caller notices a reader that went away
        Ok(Sample { text, generation, weights, score: None })
    }
}
