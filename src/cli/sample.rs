//! `sample`: continues a text with a trained model.

use super::output::{note, print, stream};
use crate::device::choice::{self, SimMode};
use crate::formats::checkpoint::{LoadedModel, load_for_inference};
use crate::infer::{
    Engine, EngineOptions, Event, Finish, Held, RequestId, Rerank, Sampler, SamplerOptions, Submission, Utf8Stream,
    check_prompt, check_vocabulary, for_engine, memory_file,
};
use crate::model::psyche::STAGES;
use crate::ops::paged_attention::PAGE_TOKENS;
use crate::tensor::DType;
use crate::tokenizer::{Codec, Tokenizer};
use crate::user_bail;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

/// Most continuations that are drawn at the same time.
const SIDE_BY_SIDE: u64 = 8;

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
    let LoadedModel { model, params, text, .. } = opened;
    let (model, params) = (model.leaning(lean), for_engine(model.config(), params));
    let draws = command.number.saturating_mul(command.best_of.unwrap_or(1));
    let side_by_side = draws.min(SIDE_BY_SIDE) as usize;
    let room = prompt.len().saturating_add(command.max_tokens).min(model.config().max_seq_len);
    let tokens = side_by_side * room.next_multiple_of(PAGE_TOKENS);
    let options = EngineOptions::new(model.config(), params.dtype(), side_by_side, Some(tokens));
    let engine = Engine::new(model, &params, options)?;
    let eos = &text.eos;
    let mut task = Task { engine, tokenizer: &tokenizer, sampler, command: &command, prompt: &prompt, eos };
    let mut show = |text: &str| if command.json { Ok(ControlFlow::Continue(())) } else { stream(text.as_bytes()) };
    let samples = match command.best_of {
        None => task.draw(0..command.number, &mut show)?,
        Some(candidates) => task.best(candidates, &mut show)?,
    };
    let Some(samples) = samples else { return Ok(()) };
    if command.json {
        let samples: Vec<_> = samples
            .iter()
            .map(|Sample { text, tokens, finish, weights, score }| {
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
    if samples.iter().any(|sample| sample.finish == Finish::ContextFull) {
        let context = task.engine.config().max_seq_len;
        tracing::warn!("the model's context of {context} tokens ended before --max-tokens were generated");
    }
    Ok(())
}

/// A continuation.
struct Sample {
    text: String,
    tokens: Vec<u32>,
    finish: Finish,
    /// Of the stages, for each token, where the model has them.
    weights: Vec<[f32; 3]>,
    /// What it was chosen by, where it was and there is something to judge.
    score: Option<f64>,
}

/// A continuation that is being drawn.
struct Draft {
    id: RequestId,
    decoder: Utf8Stream,
    sample: Sample,
    /// What follows on the terminal.
    unshown: String,
    is_over: bool,
}

impl Draft {
    /// Nothing yet, to be shown behind `head`.
    fn new(id: RequestId, head: String) -> Draft {
        let sample =
            Sample { text: String::new(), tokens: vec![], finish: Finish::Stopped, weights: vec![], score: None };
        Draft { id, decoder: Utf8Stream::default(), sample, unshown: head, is_over: false }
    }

    /// Takes what a token says, perhaps in the colour of `weights`.
    fn push(&mut self, token: u32, bytes: &[u8], weights: Option<[f32; 3]>, colours: bool) {
        let piece = self.decoder.push(bytes);
        self.unshown += &match weights {
            Some(weights) if colours && !piece.is_empty() => {
                let [r, g, b] = colour(weights);
                format!("\x1b[38;2;{r};{g};{b}m{piece}\x1b[0m")
            }
            _ => piece.clone(),
        };
        self.sample.text += &piece;
        self.sample.tokens.push(token);
        self.sample.weights.extend(weights);
    }

    fn end(&mut self, finish: Finish) {
        let rest = self.decoder.finish();
        self.unshown += &rest;
        self.unshown.push('\n');
        self.sample.text += &rest;
        (self.sample.finish, self.is_over) = (finish, true);
    }
}

/// The one that an event is about.
fn draft(drafts: &mut VecDeque<Draft>, id: RequestId) -> &mut Draft {
    drafts.iter_mut().find(|draft| draft.id == id).expect("a continuation that is being drawn")
}

/// What continuations are drawn from.
struct Task<'a> {
    engine: Engine<'a>,
    tokenizer: &'a Tokenizer,
    sampler: Sampler,
    command: &'a SampleCommand,
    prompt: &'a [u32],
    /// What ends a continuation.
    eos: &'a [u32],
}

/// Shows a piece of text; nothing more need be shown when it breaks.
type Show<'a> = &'a mut dyn FnMut(&str) -> anyhow::Result<ControlFlow<()>>;

impl Task<'_> {
    /// What stands before continuation `number`.
    fn head(&self, number: u64) -> String {
        format!("{}{}", if number > 0 { "---\n" } else { "" }, self.command.prompt)
    }

    /// The best of `candidates` for each continuation; what it scored is said beside it. None where nobody reads on.
    fn best(&mut self, candidates: u64, show: Show) -> anyhow::Result<Option<Vec<Sample>>> {
        let rerank = self.command.rerank;
        let mut all = Vec::new();
        for number in 0..self.command.number {
            let first = number.wrapping_mul(candidates);
            let unseen = &mut |_: &str| Ok(ControlFlow::Continue(()));
            let drawn = self.draw(first..first.saturating_add(candidates), unseen)?;
            let mut best: Option<Sample> = None;
            for sample in drawn.into_iter().flatten() {
                let score = rerank.score(self.engine.model(), self.engine.params(), self.prompt, &sample.tokens)?;
                if best.as_ref().is_none_or(|best| rerank.is_better(score, best.score)) {
                    best = Some(Sample { score, ..sample });
                }
            }
            let best = best.expect("one candidate at least");
            if show(&format!("{}{}\n", self.head(number), best.text))?.is_break() {
                return Ok(None);
            }
            if !self.command.json {
                let score = best.score.map_or("nothing to judge".to_owned(), |score| format!("{score:.4}"));
                note(&format!("best of {candidates} by {}: {score}", rerank.name()));
            }
            all.push(best);
        }
        Ok(Some(all))
    }

    /// Draws these sequences, some side by side, shown one after the other as they come. None where nobody reads on.
    fn draw(&mut self, numbers: Range<u64>, show: Show) -> anyhow::Result<Option<Vec<Sample>>> {
        let colours = self.command.show.is_some() && std::io::stdout().is_terminal();
        let (mut numbers, mut drafts, mut samples) = (numbers, VecDeque::new(), Vec::new());
        loop {
            while (drafts.len() as u64) < SIDE_BY_SIDE
                && let Some(number) = numbers.next()
            {
                drafts.push_back(Draft::new(self.submit(number)?, self.head(number)));
            }
            while let Some(draft) = drafts.front_mut() {
                if !draft.unshown.is_empty() && show(&std::mem::take(&mut draft.unshown))?.is_break() {
                    let held = self.engine.cancel(draft.id);
                    self.keep(held)?;
                    return Ok(None);
                }
                if !draft.is_over {
                    break;
                }
                samples.extend(drafts.pop_front().map(|draft| draft.sample));
            }
            if drafts.is_empty() && numbers.is_empty() {
                return Ok(Some(samples));
            }
            for event in self.engine.step()? {
                match event {
                    Event::Token { id, token, psyche, .. } => {
                        // A padding row of the vocabulary has no bytes.
                        let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
                        draft(&mut drafts, id).push(token, bytes, psyche, colours);
                    }
                    Event::Finished { id, finish, held } => {
                        draft(&mut drafts, id).end(finish);
                        self.keep(held)?;
                    }
                    Event::Failed { error, .. } => return Err(error),
                }
            }
        }
    }

    /// Asks for a continuation; with a file of memories, which is of one continuation, from what they hold.
    fn submit(&mut self, number: u64) -> anyhow::Result<RequestId> {
        let SampleCommand { max_tokens, memory, .. } = self.command;
        let from = memory.as_deref().map(|file| memory_file::recall(file, &self.engine)).transpose()?;
        self.engine.submit(Submission {
            sequence: number,
            from,
            hold: memory.is_some(),
            ..Submission::new(self.prompt.to_vec(), *max_tokens, self.sampler, self.eos.to_vec())
        })
    }

    /// Writes what the memories hold, where that is wanted.
    fn keep(&mut self, held: Option<Held>) -> anyhow::Result<()> {
        match (&self.command.memory, held) {
            (Some(file), Some(mut held)) => memory_file::keep(file, &self.engine, &mut held),
            _ => Ok(()),
        }
    }
}
