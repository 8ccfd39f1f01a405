//! The engine: many sequences through one model, a step at a time (continuous batching).
//!
//! In a step every sequence that is being continued gets its next token, and prompts that came in are read in pieces beside them, the one
//! that waited longest first, at most [`EngineOptions::prefill_tokens`] in all. Sequences join and leave between steps. Keys and values lie in
//! pages; what prompts begin with alike is read once. Where pages run out, the sequence that came last gives its own back and is read
//! again later.
//!
//! A sequence comes out the same whatever goes on beside it: draws are functions of seed, sequence and position, and no sum of the model
//! depends on the other rows of a pass, on pieces, or on what was found in the index of prefixes. Models whose sequences have states of
//! their own ([`ModelConfig::sequences_mix`]) take them one at a time, in pieces that end at multiples of [`PIECE_TOKENS`], and share no prefixes.

mod recorded;
mod said;

use super::pages::{OutOfPages, PageCopy, PageTable, Pages};
use super::rules::Rules;
use super::{Finish, Footprint, Sampler, check_prompt, reserve_arena};
use crate::device::Device;
use crate::model::{Cached, Gpt, KvPool, ModelConfig, Piece, SequenceState};
use crate::ops::paged_attention::PAGE_TOKENS;
use crate::ops::sample::Draw;
use crate::tape::Tape;
use crate::tensor::{Arena, DType, Params};
use crate::user_bail;
use anyhow::{Context, bail};
use recorded::RecordedStep;
use said::{Next, Said};
use std::collections::{BTreeMap, VecDeque};

/// Most tokens of one sequence in a pass.
pub const PIECE_TOKENS: usize = 256;

/// What the engine may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Pages of keys and values.
    pub pages: usize,
    /// Type that they are stored in; on a GPU that of the model.
    pub kv_dtype: DType,
    /// Most tokens of prompts in a step.
    pub prefill_tokens: usize,
    /// Most sequences at the same time; others wait.
    pub sequences: usize,
    /// On a GPU, record steps in which every sequence gets a token, and replay them.
    pub records: bool,
}

impl EngineOptions {
    /// For `sequences` at a time, with pages for `tokens` tokens in all, or one whole context where nobody says how many.
    pub fn new(config: &ModelConfig, dtype: DType, sequences: usize, tokens: Option<usize>) -> EngineOptions {
        let pages = tokens.unwrap_or(config.max_seq_len).div_ceil(PAGE_TOKENS);
        EngineOptions { pages, kv_dtype: dtype, prefill_tokens: PIECE_TOKENS, sequences, records: true }
    }
}

/// What is wanted.
pub struct Submission {
    /// At least one id.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; the context may end it earlier.
    pub tokens_max: usize,
    pub sampler: Sampler,
    /// Number of the sequence: others of the same seed draw other tokens.
    pub sequence: u64,
    /// Ids that end it; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// Say of each token how probable it was, and which were the likeliest, this many.
    pub logprobs: Option<usize>,
    /// What may be drawn.
    pub rules: Option<Box<dyn Rules>>,
    /// Goes on from here, where the prompt begins with what it holds; else from the beginning.
    pub from: Option<Held>,
    /// Hand back what the sequence holds when it ends.
    pub hold: bool,
}

impl Submission {
    /// A prompt to go on with until `stop_ids`, by `sampler`.
    pub fn new(prompt: Vec<u32>, tokens_max: usize, sampler: Sampler, stop_ids: Vec<u32>) -> Submission {
        let (sequence, logprobs, rules, from, hold) = (0, None, None, None, false);
        Submission { prompt, tokens_max, sampler, sequence, stop_ids, logprobs, rules, from, hold }
    }
}

/// What an ended sequence leaves, to be gone on with: its tokens that passed through the model, their pages, and its states.
pub struct Held {
    tokens: Vec<u32>,
    table: PageTable,
    state: SequenceState,
}

impl Held {
    /// The tokens that passed through the model.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether `prompt` goes on from here.
    pub fn is_before(&self, prompt: &[u32]) -> bool {
        self.tokens.len() < prompt.len() && prompt.starts_with(&self.tokens)
    }

    /// The states of the memories.
    pub fn state(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

/// Which request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestId(pub u64);

/// How probable a token was by the model alone, before temperature and rules.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// In nats.
    pub drawn: f32,
    /// The likeliest tokens and theirs, falling.
    pub likeliest: Vec<(u32, f32)>,
}

/// What a step brings.
#[allow(clippy::large_enum_variant)] // a few in a step, which are taken apart at once
pub enum Event {
    /// A token was drawn.
    Token {
        id: RequestId,
        token: u32,
        logprobs: Option<LogProbs>,
        /// Weights of Id, Ego and Superego, of a model that has them.
        psyche: Option<[f32; 3]>,
    },
    /// A sequence is over.
    Finished { id: RequestId, finish: Finish, held: Option<Held> },
    /// A sequence could not go on.
    Failed { id: RequestId, error: anyhow::Error },
}

/// A sequence under way.
struct Sequence {
    id: RequestId,
    what: Submission,
    /// Prompt and what was drawn.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Most tokens in all, and why there are no more.
    end: (usize, Finish),
    /// Tokens that passed through the model.
    passed: usize,
    table: PageTable,
    state: SequenceState,
    /// Whether its states can be made again from its tokens.
    began_empty: bool,
}

/// The engine. Requests are taken at any time; nothing happens but in [`Engine::step`].
pub struct Engine<'m> {
    model: Gpt,
    params: &'m Params,
    options: EngineOptions,
    arena: Arena,
    pool: KvPool,
    pages: Pages,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    next_id: u64,
    prefilled: u64,
    /// By the number of sequences and the largest position.
    steps: BTreeMap<(usize, usize), RecordedStep>,
    replayed: u64,
}

impl<'m> Engine<'m> {
    /// An engine for `model`, whose parameters lie where it shall compute.
    ///
    /// # Errors
    /// The device refuses the memory.
    pub fn new(model: Gpt, params: &'m Params, options: EngineOptions) -> anyhow::Result<Engine<'m>> {
        let (config, device) = (model.config(), params.device());
        let tokens = options.prefill_tokens + options.sequences;
        let arena = reserve_arena(device, config, Footprint { tokens, logit_rows: options.sequences, layers: 1 })?;
        let pool = KvPool::new(device, config, options.pages, options.kv_dtype);
        device.synchronise().context("reserving pages of keys and values")?;
        let (waiting, running) = (VecDeque::new(), Vec::new());
        let pages = Pages::new(options.pages);
        let (next_id, prefilled, steps, replayed) = (0, 0, BTreeMap::new(), 0);
        Ok(Engine { model, params, options, arena, pool, pages, waiting, running, next_id, prefilled, steps, replayed })
    }

    /// The model.
    pub fn model(&self) -> &Gpt {
        &self.model
    }

    /// What it multiplies by.
    pub fn params(&self) -> &'m Params {
        self.params
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// Most tokens of a sequence: those of the model's context, as far as there are pages.
    pub fn context(&self) -> usize {
        self.config().max_seq_len.min(self.options.pages * PAGE_TOKENS)
    }

    /// Adds a constant to the scores of Id, Ego and Superego from the next token on, of a model that has a controller.
    pub fn lean(&mut self, lean: [f64; 3]) {
        self.model = self.model.leaning(lean);
        self.steps.clear();
    }

    /// A state of a sequence that has not begun, for who fills in a memory before.
    pub fn empty_state(&self) -> SequenceState {
        SequenceState::new(self.params.device(), self.config(), self.params.dtype())
    }

    /// What a sequence would leave that has these states and no token.
    pub fn held_of(&self, state: SequenceState) -> Held {
        Held { tokens: Vec::new(), table: PageTable::default(), state }
    }

    /// Takes a request; it begins in one of the next steps.
    ///
    /// # Errors
    /// What [`check_prompt`] refuses; a prompt that needs more pages than there are.
    pub fn submit(&mut self, mut what: Submission) -> anyhow::Result<RequestId> {
        let (config, context) = (self.model.config(), self.context());
        let from = what.from.take();
        if let Err(error) = check_room(config, &what.prompt, context) {
            from.into_iter().for_each(|held| self.forget(held));
            return Err(error);
        }
        let asked = what.prompt.len().saturating_add(what.tokens_max);
        let end = match asked <= context {
            true => (asked, Finish::MaxTokens),
            false => (context, Finish::ContextFull),
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let (tokens, prompt_len) = (what.prompt.clone(), what.prompt.len());
        let (passed, table, state, began_empty) = match from {
            Some(held) if held.is_before(&tokens) => (held.tokens.len(), held.table, held.state, false),
            Some(held) => {
                self.pages.release(held.table);
                (0, PageTable::default(), self.empty_state(), true)
            }
            None => (0, PageTable::default(), self.empty_state(), true),
        };
        self.waiting.push_back(Sequence { id, what, tokens, prompt_len, end, passed, table, state, began_empty });
        Ok(id)
    }

    /// Puts tokens behind what a sequence under way has, which nobody drew: the answer of a tool. Fewer where its end is reached.
    pub fn force(&mut self, id: RequestId, tokens: &[u32]) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) {
            let room = sequence.end.0.saturating_sub(sequence.tokens.len() + 1);
            sequence.tokens.extend_from_slice(&tokens[..tokens.len().min(room)]);
        }
    }

    /// Ends a request at once; what it holds where that is wanted. None where it is not under way.
    pub fn cancel(&mut self, id: RequestId) -> Option<Held> {
        let is_it = |sequence: &Sequence| sequence.id == id;
        let sequence = match self.running.iter().position(is_it) {
            Some(at) => self.running.remove(at),
            None => self.waiting.iter().position(is_it).and_then(|at| self.waiting.remove(at))?,
        };
        self.end(sequence)
    }

    /// Gives back what nobody goes on from.
    pub fn forget(&mut self, held: Held) {
        self.pages.release(held.table);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Requests that wait, and that are under way.
    pub fn load(&self) -> [usize; 2] {
        [self.waiting.len(), self.running.len()]
    }

    /// Tokens that passed through the model so far, beside those that were drawn: what shared prefixes saved is not among them.
    pub fn prefilled(&self) -> u64 {
        self.prefilled
    }

    /// Steps that a GPU did again from a recording.
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// The allocator of pages, for its numbers.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Whether what is kept of pages agrees with what the sequences have; the caller names the tables that are [`Held`].
    ///
    /// # Errors
    /// What does not agree.
    pub fn check_invariants<'a>(&'a self, held: impl IntoIterator<Item = &'a Held>) -> Result<(), String> {
        let ours = self.running.iter().chain(&self.waiting).map(|sequence| &sequence.table);
        self.pages.check_invariants(ours.chain(held.into_iter().map(|held| &held.table)))
    }

    /// One step: every sequence that is being continued gets a token, and prompts are read on. What came of it, in the order of the requests.
    ///
    /// # Errors
    /// What the device says; sequences that fail by themselves are among the events.
    pub fn step(&mut self) -> anyhow::Result<Vec<Event>> {
        match self.params.device() {
            // From a thread of the pool its small tasks begin at once; from another each would wait until a thread woke.
            Device::Cpu => rayon::scope(|_| self.step_here()),
            Device::Gpu(_) => self.step_here(),
        }
    }

    fn step_here(&mut self) -> anyhow::Result<Vec<Event>> {
        self.admit();
        let plan = self.plan();
        if plan.is_empty() {
            return Ok(self.fail_for_want_of_pages());
        }
        let passes: Vec<&[(usize, usize)]> = match self.config().sequences_mix() {
            true => vec![&plan],
            false => plan.chunks(1).collect(),
        };
        let mut said = Vec::new();
        for pass in passes {
            said.extend(match self.last_of_step(pass) {
                Some(last) => self.recorded_pass(pass, last)?,
                None => self.pass(pass)?,
            });
        }
        Ok(self.draw(said))
    }

    /// Ends the sequence that came first where nobody finds pages: those that are held take them.
    fn fail_for_want_of_pages(&mut self) -> Vec<Event> {
        if self.running.is_empty() {
            return Vec::new();
        }
        let mut sequence = self.running.remove(0);
        sequence.what.hold = false;
        let (id, error) = (sequence.id, OutOfPages { pages: self.options.pages }.into());
        self.end(sequence);
        vec![Event::Failed { id, error }]
    }

    /// Lets those that wait begin, as long as there is room.
    fn admit(&mut self) {
        while self.running.len() < self.options.sequences {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if sequence.passed == 0 && sequence.table.tokens() == 0 && self.model.config().sequences_mix() {
                sequence.table = self.pages.begin(&sequence.tokens);
                sequence.passed = sequence.table.tokens();
            }
            self.running.push(sequence);
        }
    }

    /// Which of the running sequences pass how many tokens. Those have room; others wait for the next step.
    fn plan(&mut self) -> Vec<(usize, usize)> {
        let mut plan = Vec::new();
        let mut budget = self.options.prefill_tokens;
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &self.running[at];
            let is_read = sequence.tokens.len() - sequence.passed > 1;
            let whole = sequence.piece(self.config().sequences_mix(), self.options.prefill_tokens);
            // Where states depend on how a prompt is cut, it waits until its piece can come whole.
            let t = match self.config().sequences_mix() {
                true if is_read => whole.min(budget),
                false if is_read && whole > budget => 0,
                _ => whole,
            };
            // Who finds no pages waits: others may end meanwhile.
            if t > 0 && self.make_room(at, t) {
                budget -= if is_read { t } else { 0 };
                plan.push((at, t));
            }
            at += 1;
        }
        plan
    }

    /// Gives the sequence at `at` pages for `t` tokens, if need be those of the ones that came last; whether it has them.
    fn make_room(&mut self, at: usize, t: usize) -> bool {
        loop {
            let sequence = &mut self.running[at];
            match self.pages.grow(&mut sequence.table, t) {
                Ok(copy) => {
                    if let Some(PageCopy { from, to }) = copy {
                        self.pool.copy_page(from.0, to.0);
                    }
                    return true;
                }
                Err(OutOfPages { .. }) => {
                    let last = self.running.iter().rposition(|sequence| sequence.began_empty);
                    let Some(last) = last.filter(|&last| last > at) else { return false };
                    let mut sequence = self.running.remove(last);
                    self.pages.release(std::mem::take(&mut sequence.table));
                    (sequence.passed, sequence.state) = (0, self.empty_state());
                    self.waiting.push_front(sequence);
                }
            }
        }
    }

    /// Counts what passed, and lets others share it.
    fn note_passed(&mut self, plan: &[(usize, usize)]) {
        for &(at, t) in plan {
            let sequence = &mut self.running[at];
            self.prefilled += if sequence.passed < sequence.prompt_len { t as u64 } else { 0 };
            sequence.passed += t;
            if self.model.config().sequences_mix() {
                self.pages.publish(&mut sequence.table, &sequence.tokens[..sequence.passed]);
            }
        }
    }

    /// Lets tokens pass through the model; what it says after those that were the last of their sequence, by its place.
    fn pass(&mut self, plan: &[(usize, usize)]) -> anyhow::Result<Vec<(usize, Said)>> {
        let (mut pieces, mut rows, mut row) = (Vec::new(), Vec::new(), 0);
        let (mut speakers, mut draws) = (Vec::new(), Vec::new());
        let mut steps = plan.iter().peekable();
        for (place, sequence) in self.running.iter_mut().enumerate() {
            let Some(&(_, t)) = steps.next_if(|(at, _)| *at == place) else { continue };
            let (start, end) = (sequence.passed, sequence.passed + t);
            row += t;
            if end == sequence.tokens.len() {
                rows.push(row - 1);
                speakers.push(place);
                draws.push(sequence.draw_alone());
            }
            let (tokens, pages) = (&sequence.tokens[start..end], sequence.table.numbers());
            pieces.push(Piece { tokens, start, pages, state: &mut sequence.state });
        }
        let mut cached = Cached::new(&self.arena, pieces, &mut self.pool);
        let tape = &mut Tape::by_rows(&self.arena, self.params);
        let said = match rows.is_empty() {
            true => {
                self.model.pass(tape, &mut cached);
                Vec::new()
            }
            false => {
                let output = self.model.next_of(tape, &mut cached, &rows);
                Said::of(&output, &self.arena, &draws)
            }
        };
        drop(cached);
        self.params.device().synchronise()?;
        self.arena.reset();
        self.note_passed(plan);
        Ok(speakers.into_iter().zip(said).collect())
    }

    /// Draws the next token of each that spoke, and ends those that are done.
    fn draw(&mut self, said: Vec<(usize, Said)>) -> Vec<Event> {
        let (mut events, mut over) = (Vec::new(), Vec::new());
        for (at, said) in said {
            let sequence = &mut self.running[at];
            let id = sequence.id;
            match sequence.draw(said, &mut events) {
                Ok(None) => {}
                Ok(Some(finish)) => over.push((at, Ok(finish))),
                Err(error) => over.push((at, Err((id, error)))),
            }
        }
        for (at, end) in over.into_iter().rev() {
            let sequence = self.running.remove(at);
            let id = sequence.id;
            let held = self.end(sequence);
            events.push(match end {
                Ok(finish) => Event::Finished { id, finish, held },
                Err((id, error)) => Event::Failed { id, error },
            });
        }
        events
    }

    fn end(&mut self, sequence: Sequence) -> Option<Held> {
        let Sequence { what, mut tokens, passed, table, state, .. } = sequence;
        if !what.hold {
            self.pages.release(table);
            return None;
        }
        tokens.truncate(passed);
        Some(Held { tokens, table, state })
    }
}

fn check_room(config: &ModelConfig, prompt: &[u32], room: usize) -> anyhow::Result<()> {
    check_prompt(config, prompt)?;
    if prompt.len() > room {
        let given = prompt.len();
        user_bail!("the prompt has {given} tokens and there are pages for {room}; shorten it or give more memory");
    }
    Ok(())
}

impl Sequence {
    /// The tokens that pass next when nothing else is in the step, at most `most` of a prompt. Pieces end at the same places whatever happens
    /// beside them; tokens that were drawn come one by one again where sequences do not mix.
    fn piece(&self, mixes: bool, most: usize) -> usize {
        let pending = self.tokens.len() - self.passed;
        let of_prompt = self.prompt_len.saturating_sub(self.passed);
        let pending = if mixes { pending } else { of_prompt.max(1) };
        self.state.piece(pending.min(PIECE_TOKENS - self.passed % PIECE_TOKENS).min(most.max(1)))
    }

    /// How the next token is drawn where that takes nothing but the logits.
    fn draw_alone(&self) -> Option<Draw> {
        let Submission { sampler, sequence, logprobs, rules, .. } = &self.what;
        let is_alone = logprobs.is_none() && rules.is_none() && sampler.options().repetition_penalty == 1.0;
        is_alone.then(|| sampler.draw(*sequence, self.tokens.len() as u64))
    }

    /// Draws a token; why the sequence is over, if it is.
    fn draw(&mut self, said: Said, events: &mut Vec<Event>) -> anyhow::Result<Option<Finish>> {
        let Said { next, psyche } = said;
        let position = self.tokens.len();
        if position >= self.end.0 {
            return Ok(Some(self.end.1));
        }
        let (token, plain) = match next {
            Next::Token(token) => (token, None),
            Next::Nothing => bail!(
                "drawing the token at position {position}: a logit is NaN or plus infinity, or all are minus infinity; the model computes no \
                 probabilities any more"
            ),
            Next::Logits(mut logits) => {
                let plain = self.what.logprobs.map(|_| logits.clone());
                self.what.sampler.penalise(&mut logits, &self.tokens);
                if let Some(rules) = &mut self.what.rules {
                    rules.mask(&mut logits)?;
                }
                let token = self.what.sampler.pick(&logits, self.what.sequence, position as u64);
                (token.with_context(|| format!("drawing the token at position {position}"))?, plain)
            }
        };
        if self.what.stop_ids.contains(&token) {
            return Ok(Some(Finish::Stopped));
        }
        let logprobs = plain.zip(self.what.logprobs).map(|(logits, most)| log_probs(&logits, token, most));
        self.tokens.push(token);
        events.push(Event::Token { id: self.id, token, logprobs, psyche });
        let is_done = match &mut self.what.rules {
            Some(rules) => rules.accept(token)?,
            None => false,
        };
        Ok(if is_done { Some(Finish::Stopped) } else { (position + 1 >= self.end.0).then_some(self.end.1) })
    }
}

/// Log-probabilities by the logits `[V]`: of `token`, and of the `most` likeliest, the lower ids first among equals.
pub fn log_probs(logits: &[f32], token: u32, most: usize) -> LogProbs {
    let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - peak).exp()).sum();
    let of = |id: u32| (f64::from(logits[id as usize] - peak) - sum.ln()) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if most < ids.len() && most > 0 {
        ids.select_nth_unstable_by(most - 1, by_rank);
    }
    ids.truncate(most);
    ids.sort_unstable_by(by_rank);
    LogProbs { drawn: of(token), likeliest: ids.into_iter().map(|id| (id, of(id))).collect() }
}
