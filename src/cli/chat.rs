//! `chat`: talks with a model, a turn at a time, or answers once.

mod commands;

use super::output::{note, print, stream};
use crate::device::choice::{self, SimMode};
use crate::device::packed::ActivationBits;
use crate::formats::checkpoint::{LoadedModel, load_for_inference};
use crate::infer::rules::{All, Banned, GrammarSpec, Grammars, Rules};
use crate::infer::{
    Answer, ChatFormat, Engine, EngineOptions, Event, Finish, Held, Sampler, SamplerOptions, Submission,
    check_vocabulary, for_engine, memory_file,
};
use crate::tensor::DType;
use crate::tokenizer::{Message, Tokenizer};
use crate::{user_bail, user_error};
use clap::Args;
use serde_json::json;
use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Talk with a model
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nanochat-gpu chat --checkpoint SmolLM2-135M-Instruct.Q4_1.gguf -p 'What is the capital of France?' \
                  --temperature 0\n\nWithout -p it reads messages from the terminal; /help says what else it understands."
)]
pub struct ChatCommand {
    /// Folder of a checkpoint or of a run, or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    checkpoint: PathBuf,
    /// One message: its answer goes to standard output
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    limits: Limits,
    /// Keep at most so many tokens of the conversation, for which memory is taken; without it as many as the model can read
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    context: Option<u32>,
    /// Leave the oldest turns out where a conversation outgrows the context, instead of ending it
    #[arg(long)]
    drop_oldest: bool,
    /// How finely quantised weights see what they multiply, on the CPU; 8 is faster, and turns answers that are close
    #[arg(long, value_name = "BITS", default_value = "16", value_parser = ["8", "16"])]
    activations: String,
    /// Go on from what the model's memories hold in FILE, and keep there after each answer what came of it; begun where there is no such file
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Where to compute: auto, cpu, sim or cuda[:i]
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// What to compute with: bf16 on a card, where quantised weights then stay as they are, and f32 elsewhere
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = ["auto", "f32", "bf16"])]
    dtype: String,
    /// Print one JSON object instead of text; needs -p
    #[arg(long, requires = "prompt")]
    json: bool,
}

/// How tokens are drawn.
#[derive(Clone, Debug, Args)]
struct Drawing {
    /// 0 always takes the most probable token; higher is more varied
    #[arg(long, value_name = "X", default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the N most probable tokens
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw only from the most probable tokens that together reach this probability
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw only tokens at least this many times as probable as the most probable one
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Above 1 makes tokens that are there already less probable
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// The same seed gives the same answers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Drawing {
    fn sampler(&self) -> anyhow::Result<Sampler> {
        let Drawing { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *self;
        Ok(Sampler::new(SamplerOptions { temperature, top_k, top_p, min_p, repetition_penalty, seed })?)
    }
}

/// What an answer may be.
#[derive(Clone, Debug, Args)]
struct Limits {
    /// Answer with JSON that this schema accepts: JSON, or @FILE
    #[arg(long, value_name = "SCHEMA", conflicts_with_all = ["regex", "choice"])]
    json_schema: Option<String>,
    /// Answer with what this regular expression matches
    #[arg(long, value_name = "REGEX", conflicts_with = "choice")]
    regex: Option<String>,
    /// Answer with one of these; may be given several times
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// Never say this; may be given several times
    #[arg(long, value_name = "TEXT")]
    ban: Vec<String>,
    /// End before this; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl Limits {
    fn grammar(&self) -> anyhow::Result<Option<GrammarSpec>> {
        Ok(match (&self.json_schema, &self.regex, &self.choice[..]) {
            (Some(schema), ..) => Some(GrammarSpec::JsonSchema(match schema.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file)
                    .map_err(|error| user_error!("cannot read the schema {file}: {error}"))?,
                None => schema.clone(),
            })),
            (None, Some(regex), _) => Some(GrammarSpec::Regex(regex.clone())),
            (None, None, []) => None,
            (None, None, choices) => Some(GrammarSpec::Choice(choices.to_vec())),
        })
    }
}

impl ChatCommand {
    /// The simulator stands in for the processor, not for a card: its answers are to be the same.
    fn dtype(&self) -> anyhow::Result<DType> {
        let is_card = choice::resolve(&self.device)?.starts_with("cuda");
        Ok(if self.dtype == "bf16" || self.dtype == "auto" && is_card { DType::Bf16 } else { DType::F32 })
    }
}

/// Runs the command. Errors: user errors for options out of range, a checkpoint without tokenizer or template, a message that is too
/// long, and those of opening the checkpoint.
pub fn run(command: ChatCommand) -> anyhow::Result<u8> {
    let began = Instant::now();
    let sampler = command.drawing.sampler()?;
    let device = choice::open(&command.device, SimMode::Fast)?;
    let mut opened = load_for_inference(&command.checkpoint, command.dtype()?, device)?;
    let Some(tokenizer) = opened.tokenizer.take() else {
        user_bail!("{} has no tokenizer, so it cannot read a message; bring its tokenizer.json", opened.path.display());
    };
    check_vocabulary(&tokenizer, opened.model.config())?;
    let text = &opened.text;
    let format = ChatFormat::new(&tokenizer, text.template.as_deref(), [text.bos, text.eos.first().copied()])?;
    let LoadedModel { model, params, text, .. } = opened;
    let params = for_engine(model.config(), params).with_activation_bits(match command.activations.as_str() {
        "8" => ActivationBits::Eight,
        _ => ActivationBits::Sixteen,
    });
    let options = EngineOptions::new(model.config(), params.dtype(), 1, command.context.map(|tokens| tokens as usize));
    let grammars = match (command.limits.grammar()?, text.eos.first()) {
        (None, _) => None,
        (Some(_), None) => {
            user_bail!("the tokenizer has no token that ends a text, which a grammar needs; leave the grammar out")
        }
        (Some(spec), Some(&end)) => Some((Grammars::new(&tokenizer, end)?, spec)),
    };
    let stop_ids = text.eos.clone();
    let mut chat = Chat {
        engine: Engine::new(model, &params, options)?,
        tokenizer: &tokenizer,
        format,
        stop_ids,
        grammars,
        command: &command,
        sampler,
        messages: Vec::new(),
        held: None,
        answers: 0,
        interrupted: Arc::default(),
        last: None,
    };
    chat.rules()?; // what cannot be met is told before anything is read
    chat.begin(command.system.as_deref())?;
    match &command.prompt {
        Some(prompt) => chat.once(prompt, began),
        None => chat.converse(),
    }
}

/// A conversation under way.
struct Chat<'a> {
    engine: Engine<'a>,
    tokenizer: &'a Tokenizer,
    format: ChatFormat,
    stop_ids: Vec<u32>,
    grammars: Option<(Grammars, GrammarSpec)>,
    command: &'a ChatCommand,
    sampler: Sampler,
    messages: Vec<Message>,
    /// What the engine keeps of the conversation.
    held: Option<Held>,
    answers: u64,
    interrupted: Arc<AtomicBool>,
    /// Numbers of the last answer.
    last: Option<Stats>,
}

/// Numbers of an answer.
#[derive(Clone, Copy)]
struct Stats {
    prompt_tokens: usize,
    read_tokens: u64,
    tokens: usize,
    first_seconds: f64,
    seconds: f64,
}

impl Stats {
    fn tokens_per_second(&self) -> f64 {
        self.tokens.saturating_sub(1) as f64 / (self.seconds - self.first_seconds).max(1e-9)
    }
}

/// Why an answer ended, beside the engine's reasons.
enum End {
    Finished(Finish),
    Interrupted,
    /// Nobody reads it any more.
    Unread,
}

impl Chat<'_> {
    /// Begins anew with what the model is told first, and what its memories hold.
    fn begin(&mut self, system: Option<&str>) -> anyhow::Result<()> {
        self.messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        self.hold_memories()
    }

    /// Lets nothing stay of the text so far, of which the file of the memories has what they kept.
    fn hold_memories(&mut self) -> anyhow::Result<()> {
        if let Some(held) = self.held.take() {
            self.engine.forget(held);
        }
        if let Some(file) = &self.command.memory {
            self.held = Some(memory_file::recall(file, &self.engine)?);
        }
        Ok(())
    }

    /// Writes what the memories hold of the text so far.
    fn keep_memories(&mut self) -> anyhow::Result<()> {
        match (&self.command.memory, &mut self.held) {
            (Some(file), Some(held)) => memory_file::keep(file, &self.engine, held),
            _ => Ok(()),
        }
    }

    fn rules(&self) -> anyhow::Result<Option<Box<dyn Rules>>> {
        let mut all: Vec<Box<dyn Rules>> = Vec::new();
        if let Some((grammars, spec)) = &self.grammars {
            all.push(Box::new(grammars.rules(spec)?));
        }
        if !self.command.limits.ban.is_empty() {
            all.push(Box::new(Banned::new(self.tokenizer, &self.command.limits.ban)?));
        }
        Ok((!all.is_empty()).then(|| Box::new(All(all)) as Box<dyn Rules>))
    }

    /// Answers `text`; `show` gets the pieces. The conversation is as it was where that fails.
    fn answer(
        &mut self,
        text: &str,
        show: &mut dyn FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<(Answer, End)> {
        self.messages.push(Message::new("user", text));
        let answered = self.answer_last(show);
        match &answered {
            Ok((answer, _)) => {
                self.messages.push(Message { role: "assistant".into(), content: answer.content() });
            }
            Err(_) => drop(self.messages.pop()),
        }
        answered
    }

    fn answer_last(
        &mut self,
        show: &mut dyn FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<(Answer, End)> {
        let began = Instant::now();
        let context = self.engine.context();
        let room = context.saturating_sub(1);
        let prompt = match self.command.drop_oldest {
            true => {
                let (prompt, left_out) = self.format.prompt_within(self.tokenizer, &self.messages, room)?;
                if left_out > 0 {
                    note(&format!("(the context is full: the oldest {left_out} messages are left out)"));
                }
                prompt
            }
            false => self.format.prompt(self.tokenizer, &self.messages)?,
        };
        if prompt.len() > room {
            let tokens = prompt.len();
            user_bail!(
                "the conversation takes {tokens} tokens, the context has {context}; /reset it, or begin with --drop-oldest"
            );
        }
        if !self.held.as_ref().is_some_and(|held| held.is_before(&prompt)) {
            self.hold_memories()?;
        }
        let (read_before, prompt_tokens) = (self.engine.prefilled(), prompt.len());
        let id = self.engine.submit(Submission {
            sequence: self.answers,
            rules: self.rules()?,
            from: self.held.take(),
            hold: true,
            ..Submission::new(prompt, self.command.max_tokens, self.sampler, self.stop_ids.clone())
        })?;
        self.answers += 1;
        let mut answer = Answer::new(self.tokenizer, &self.command.limits.stop);
        let mut first_seconds = 0.0;
        let end = 'answer: loop {
            if self.interrupted.swap(false, Ordering::Relaxed) {
                break End::Interrupted;
            }
            for event in self.engine.step()? {
                match event {
                    Event::Token { token, .. } => {
                        let said = answer.token(self.tokenizer, token);
                        if answer.tokens() == 1 {
                            first_seconds = began.elapsed().as_secs_f64();
                        }
                        if !said.forced.is_empty() {
                            self.engine.force(id, &said.forced);
                        }
                        let calculated = said.calculated.map(|[asked, value]| format!("[{asked} = {value}]"));
                        if show(&(said.text + &calculated.unwrap_or_default()))?.is_break() {
                            break 'answer End::Unread;
                        }
                        if said.is_over {
                            break 'answer End::Finished(Finish::Stopped);
                        }
                    }
                    Event::Finished { finish, held, .. } => {
                        self.held = held;
                        break 'answer End::Finished(finish);
                    }
                    Event::Failed { error, .. } => return Err(error),
                }
            }
        };
        if self.held.is_none() {
            self.held = self.engine.cancel(id);
        }
        self.keep_memories()?;
        let _ = show(&answer.finish())?; // a reader that went away is noticed by the next answer
        self.last = Some(Stats {
            prompt_tokens,
            read_tokens: self.engine.prefilled() - read_before,
            tokens: answer.tokens(),
            first_seconds,
            seconds: began.elapsed().as_secs_f64(),
        });
        Ok((answer, end))
    }

    /// One answer to standard output.
    fn once(&mut self, prompt: &str, began: Instant) -> anyhow::Result<u8> {
        let ready = began.elapsed().as_secs_f64();
        let json = self.command.json;
        let mut show = |text: &str| if json { Ok(ControlFlow::Continue(())) } else { stream(text.as_bytes()) };
        let (answer, end) = self.answer(prompt, &mut show)?;
        if let (true, Some(stats)) = (json, self.last) {
            let finish = match end {
                End::Finished(finish) => json!(finish),
                End::Interrupted | End::Unread => json!("interrupted"),
            };
            let object = json!({
                "text": answer.text(),
                "tokens": stats.tokens,
                "prompt_tokens": stats.prompt_tokens,
                "finish": finish,
                "ready_seconds": ready,
                "first_token_seconds": stats.first_seconds,
                "tokens_per_second": stats.tokens_per_second(),
            });
            print(format!("{object}\n").as_bytes())?;
        } else {
            print(b"\n")?;
            if let End::Finished(Finish::ContextFull) = end {
                note("(the context is full: the answer ends here)");
            }
        }
        Ok(0)
    }

    /// Reads messages until there are no more.
    fn converse(&mut self) -> anyhow::Result<u8> {
        let interrupted = self.interrupted.clone();
        // Where there is a handler already, Ctrl-C ends the program as it always did.
        let _ = ctrlc::set_handler(move || interrupted.store(true, Ordering::Relaxed));
        if !std::io::stdin().is_terminal() {
            for line in std::io::stdin().lock().lines() {
                let line = line.map_err(|error| user_error!("standard input is no text: {error}; send UTF-8"))?;
                if self.turn(line.trim())?.is_break() {
                    break;
                }
            }
            return Ok(0);
        }
        note("A conversation: /help says what can be done, Ctrl-C stops an answer, Ctrl-D ends.");
        let mut editor = rustyline::DefaultEditor::new()?;
        while let Some(text) = read_message(&mut editor)? {
            let _ = editor.add_history_entry(&text);
            if self.turn(text.trim())?.is_break() {
                break;
            }
        }
        Ok(0)
    }

    /// A message or a command. What goes wrong with it is said, and the conversation goes on.
    fn turn(&mut self, text: &str) -> anyhow::Result<ControlFlow<()>> {
        if text.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if let Some(command) = text.strip_prefix('/') {
            return Ok(match self.command(command) {
                Ok(flow) => flow,
                Err(error) => {
                    note(&format!("{error:#}"));
                    ControlFlow::Continue(())
                }
            });
        }
        self.interrupted.store(false, Ordering::Relaxed);
        match self.answer(text, &mut |text| stream(text.as_bytes())) {
            Ok((_, End::Unread)) => return Ok(ControlFlow::Break(())),
            Ok((_, end)) => {
                print(b"\n")?;
                match end {
                    End::Interrupted => note("(stopped)"),
                    End::Finished(Finish::ContextFull) => note("(the context is full; /reset begins anew)"),
                    End::Finished(Finish::MaxTokens) => note("(ended after --max-tokens; say something to go on)"),
                    _ => {}
                }
            }
            Err(error) if crate::error::is_user_error(&error) => note(&format!("{error:#}")),
            Err(error) => return Err(error),
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A message: a line, or several; none at the end of input.
fn read_message(editor: &mut rustyline::DefaultEditor) -> anyhow::Result<Option<String>> {
    use rustyline::error::ReadlineError;
    let mut text = String::new();
    let mut is_block = false;
    loop {
        let prompt = if text.is_empty() && !is_block { "> " } else { ". " };
        match editor.readline(prompt) {
            Ok(line) if is_block || line.trim_start().starts_with("\"\"\"") => {
                let begins = !is_block;
                let line = if begins { line.trim_start().trim_start_matches("\"\"\"").to_owned() } else { line };
                is_block = true;
                if let Some(last) = line.trim_end().strip_suffix("\"\"\"") {
                    return Ok(Some(text + last));
                }
                if !(begins && line.is_empty()) {
                    text += &line;
                    text.push('\n');
                }
            }
            Ok(line) => match line.strip_suffix('\\') {
                Some(line) => {
                    text += line;
                    text.push('\n');
                }
                None => return Ok(Some(text + &line)),
            },
            // Whatever was typed is taken back.
            Err(ReadlineError::Interrupted) => (text, is_block) = (String::new(), false),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
