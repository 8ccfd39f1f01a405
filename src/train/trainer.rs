//! The trainer: batches in, updates out; evaluates, samples, saves and resumes. It reports to an [`Observer`] and prints
//! nothing.

mod look;

pub use super::begin::{Corpora, open_data};
use super::begin::{check_same_model, initial_params, meet_tokenizer, with_new_parts};
use super::config::RunConfig;
use super::control::{Control, ControlFile};
use super::estimate;
use super::evolution::{self, Generation};
use super::guard::{Guard, Observation};
use super::metrics::{Metrics, StepRecord};
use super::optim::{Moments, Pace, Plan};
use super::run_folder::RunFolder;
use super::schedule::Schedule;
use super::state::{self, TrainState};
use super::step::{Done, LossOrder, Orders, Parts, Stepper};
use crate::data::{Batch, Corpus, Loader, LoaderState};
use crate::device::driver::Bytes;
use crate::device::{self, Device, choice};
use crate::dist::{Communicator, Single};
use crate::eval::Evaluation;
use crate::formats::checkpoint::{self, LoadedModel};
use crate::infer::check_vocabulary;
use crate::model::gpt::Recompute;
use crate::model::losses::{LOSSES, LossKind};
use crate::model::{Carried, Gpt};
use crate::ops::clip::Limits;
use crate::tensor::{Arena, Grads, Params};
use crate::tokenizer::Tokenizer;
use crate::{user_bail, user_error};
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a trainer reports.
pub enum Event<'a> {
    /// A step is done.
    Step(&'a StepRecord),
    /// The model was evaluated.
    Evaluated { step: u64, evaluation: &'a Evaluation },
    /// The model wrote this.
    Sampled { step: u64, text: &'a str },
    /// A checkpoint is on disk.
    Saved { path: &'a Path },
    /// Something the user should know: a skipped step, a change by `control.toml`.
    Notice { message: &'a str },
}

/// Who hears of it.
pub trait Observer {
    fn hear(&mut self, event: Event);
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All steps are done.
    Finished,
    /// `--stop-after` or `control.toml` said so; the state is saved.
    Stopped,
    /// The process was asked to end; the state is saved.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub train_loss: Option<f64>,
    pub val_loss: Option<f64>,
    pub val_bpb: Option<f64>,
    pub parameters: usize,
    pub peak_memory_bytes: u64,
    pub checkpoint: Option<PathBuf>,
    #[serde(skip)]
    pub sample: Option<String>,
}

/// A run, ready to go on.
pub struct Trainer {
    config: RunConfig,
    folder: RunFolder,
    model: Gpt,
    tokenizer: Arc<Tokenizer>,
    params: Params,
    grads: Grads,
    moments: Moments,
    plan: Plan,
    device: Device,
    arena: Arena,
    loader: Loader,
    validation: Corpus,
    communicator: Box<dyn Communicator>,
    guard: Guard,
    memes: evolution::Record,
    control: Control,
    control_file: ControlFile,
    metrics: Metrics,
    step: u64,
    tokens: u64,
    last_train_loss: Option<f64>,
    /// Of the training streams, after the last step.
    carried: Carried,
    stepper: Stepper,
    /// The next step's micro-batches, where they were asked for before the last one's end.
    ahead: Option<anyhow::Result<Vec<Batch>>>,
    /// The loader's position after the last step's.
    position: LoaderState,
}

/// Refuses a run that does not fit the machine's memory. Of a run on a card the host holds the parameters and moments while
/// they are made, read or saved.
///
/// # Errors
/// Both numbers and what to change.
pub fn check_memory(config: &RunConfig, model: &Gpt) -> anyhow::Result<()> {
    let estimate = estimate::estimate(config, model, false);
    let on_card = config.device.kind.starts_with("cuda");
    let need = if on_card { estimate.state_bytes } else { estimate.memory_bytes } as u64;
    let (available, _) = device::host_memory_bytes();
    if need > available {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        user_bail!(
            "this run needs about {:.1} GiB and {:.1} GiB are available; lower train.rows, train.seq_len or the depth, or set train.recompute=true",
            gib(need),
            gib(available)
        );
    }
    Ok(())
}

/// Opens the device of `config` and refuses a run that does not fit its memory.
///
/// # Errors
/// A device that is not there; both numbers and what to change.
fn open_device(config: &RunConfig, model: &Gpt) -> anyhow::Result<Device> {
    let device = choice::open(&config.device.kind, config.device.sim)?;
    if let Device::Gpu(gpu) = device {
        let state_bytes = estimate::estimate(config, model, false).state_bytes;
        let need = Bytes((state_bytes + estimate::gpu_arena_bytes(config, model)) as u64);
        let free = Bytes(gpu.memory()?.free_bytes);
        if need.0 > free.0 {
            user_bail!(
                "this run needs about {need} on {gpu} and {free} are free; lower train.rows, train.seq_len or the depth, or set train.recompute=true"
            );
        }
    }
    Ok(device)
}

impl Trainer {
    /// A run from the beginning, in a new folder, which is only made when model and data are accepted.
    ///
    /// # Errors
    /// What the folder or the data refuse, or a tokenizer that does not fit the model.
    pub fn start(mut config: RunConfig, tokenizer: Arc<Tokenizer>, path: &Path) -> anyhow::Result<Trainer> {
        meet_tokenizer(&mut config, &tokenizer)?;
        let (device, model, corpora) = Trainer::prepare(&config, &tokenizer)?;
        let folder = RunFolder::create(path, &config)?;
        Trainer::fresh(config, tokenizer, folder, device, model, corpora)
    }

    /// A run from the beginning, in a folder that has its `config.toml` already.
    ///
    /// # Errors
    /// As [`Trainer::start`].
    pub fn begin(mut config: RunConfig, tokenizer: Arc<Tokenizer>, folder: RunFolder) -> anyhow::Result<Trainer> {
        meet_tokenizer(&mut config, &tokenizer)?;
        let (device, model, corpora) = Trainer::prepare(&config, &tokenizer)?;
        Trainer::fresh(config, tokenizer, folder, device, model, corpora)
    }

    fn prepare(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> anyhow::Result<(Device, Gpt, Corpora)> {
        let model = Gpt::new(config.model.clone(), config.device.dtype)?;
        check_memory(config, &model)?;
        check_vocabulary(&**tokenizer, &config.model)?;
        Ok((open_device(config, &model)?, model, open_data(config, tokenizer)?))
    }

    fn fresh(
        config: RunConfig,
        tokenizer: Arc<Tokenizer>,
        folder: RunFolder,
        device: Device,
        model: Gpt,
        corpora: Corpora,
    ) -> anyhow::Result<Trainer> {
        let params = initial_params(&config, &model, &corpora)?;
        let control = Control::new(config.loss.clone());
        Trainer::assemble(config, folder, device, model, tokenizer, params, corpora, control, None)
    }

    /// A run that goes on in an opened folder from its newest checkpoint, or from the one `back` before it.
    ///
    /// # Errors
    /// Too few checkpoints, a damaged one, or data that changed.
    pub fn resume(folder: RunFolder, mut config: RunConfig, back: usize) -> anyhow::Result<Trainer> {
        let path = folder.path();
        let dir = folder.nth_newest(back)?;
        let LoadedModel { model, params, tokenizer, .. } = checkpoint::load_model(&dir, config.device.dtype)?;
        let Some(tokenizer) = tokenizer.map(Arc::new) else { user_bail!("{} holds no tokenizer.json", dir.display()) };
        meet_tokenizer(&mut config, &tokenizer)?;
        check_same_model(&config, &model, &dir, path)?;
        check_memory(&config, &model)?;
        let device = open_device(&config, &model)?;
        let mut moments = Moments::zeros(&params);
        let state = state::load(&dir, &model, &mut moments)?;
        if state.tokenizer_digest != tokenizer.digest() {
            user_bail!("the tokenizer in {} is not the one that the run was trained with", dir.display());
        }
        let corpora = open_data(&config, &tokenizer)?;
        let (model, params, moments) = match model.config().parts == config.model.parts {
            true => (model, params, moments),
            false => with_new_parts(&config, &corpora, model, params, moments)?,
        };
        let control = state.control.clone();
        Trainer::assemble(
            config,
            folder,
            device,
            model,
            tokenizer,
            params,
            corpora,
            control,
            Some((state, moments, dir)),
        )
    }

    #[allow(clippy::too_many_arguments)] // the one place where a run's parts come together
    fn assemble(
        config: RunConfig,
        folder: RunFolder,
        device: Device,
        model: Gpt,
        tokenizer: Arc<Tokenizer>,
        params: Params,
        corpora: Corpora,
        control: Control,
        past: Option<(TrainState, Moments, PathBuf)>,
    ) -> anyhow::Result<Trainer> {
        let dtype = config.device.dtype;
        let (model, params) = (model.to(device), params.to(device));
        let train = &config.train;
        let plan = Plan::new(train.optimizer, model.layout(), config.model.width, train.lr_scale, train.weight_decay);
        let grads = Grads::zeros_on(device, model.layout().clone(), dtype);
        let arena_bytes = match device {
            // Address space only: twice the estimate, so that a short estimate costs nothing but pages.
            Device::Cpu => 2 * estimate::activation_bytes(&config) + (64 << 20),
            Device::Gpu(_) => estimate::gpu_arena_bytes(&config, &model),
        };
        let arena = Arena::on(device, arena_bytes).map_err(|error| user_error!("{error}"))?;
        let mut carried =
            Carried::new(device, &config.model, [train.rows / config.segments(), config.segments()], dtype);
        let (state, moments) = match past {
            Some((state, moments, dir)) => {
                state::load_carried(&dir, &mut carried)?;
                (Some(state), moments.to(device))
            }
            None => (None, Moments::zeros(&params)),
        };
        device.synchronise().map_err(|error| user_error!("{error}"))?;
        let loader = corpora.train.start(state.as_ref().map(|s| &s.loader))?;
        let extents = [train.rows, train.seq_len, config.segments()];
        let stepper = Stepper::new(device, &model, &plan, extents, config.device.graph);
        let step = state.as_ref().map_or(0, |s| s.step);
        let metrics = Metrics::open(folder.path(), step)?;
        let control_file = ControlFile::create(folder.path(), &control)?;
        Ok(Trainer {
            step,
            tokens: state.as_ref().map_or(0, |s| s.tokens),
            last_train_loss: state.as_ref().and_then(|s| s.last_train_loss),
            memes: state.as_ref().map(|s| s.memes.clone()).unwrap_or_default(),
            guard: state.map(|s| s.guard).unwrap_or_default(),
            validation: corpora.validation,
            communicator: Box::new(Single),
            carried,
            stepper,
            ahead: None,
            position: loader.state().clone(),
            config,
            folder,
            model,
            tokenizer,
            params,
            grads,
            moments,
            plan,
            device,
            arena,
            loader,
            control,
            control_file,
            metrics,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Steps done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The run folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Trains until the schedule, `stop_after` (steps in all) or `interrupted` ends it; saves at the end in any case.
    ///
    /// # Errors
    /// Data that cannot be read, a checkpoint that cannot be written, or too many bad steps in a row.
    pub fn run(
        &mut self,
        stop_after: Option<u64>,
        interrupted: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> anyhow::Result<(End, Summary)> {
        let started = Instant::now();
        let first_tokens = self.tokens;
        let last = stop_after.map_or(self.config.train.steps, |n| n.min(self.config.train.steps));
        let mut saved_at = None;
        let (mut evaluation, mut sample) = (None, None);
        let end = loop {
            let stop = self.apply_control(observer)?;
            if interrupted.load(Ordering::SeqCst) {
                break End::Interrupted;
            }
            if stop {
                break End::Stopped;
            }
            if self.step >= last {
                break if self.step >= self.config.train.steps { End::Finished } else { End::Stopped };
            }
            let mut record = self.train_step()?;
            if let Some(generation) = self.evolve() {
                record.memetic = generation.metrics();
            }
            let (step, train) = (self.step, &self.config.train);
            let due = |every: u64| every > 0 && step % every == 0;
            let at_end = step >= self.config.train.steps;
            let (due_save, due_sample) = (due(train.save_every), due(train.sample_every) || at_end);
            if due(train.eval_every) || at_end || std::mem::take(&mut self.control.evaluate) {
                let result = self.evaluate()?;
                (record.val_loss, record.val_bpb) = (Some(result.loss), Some(result.bits_per_byte));
                let parts = result.parts.iter().map(|(name, loss)| (format!("val_loss.{name}"), *loss));
                record.val_parts = parts.collect();
                let notes = result.notes.iter().map(|(name, value)| (format!("val_{name}"), *value));
                record.val_parts.extend(notes);
                record.grad_shares = self.gradient_shares()?;
                observer.hear(Event::Evaluated { step, evaluation: &result });
                evaluation = Some(result);
            }
            self.metrics.append(&record)?;
            observer.hear(Event::Step(&record));
            if let Some(why) = &record.skipped {
                observer.hear(Event::Notice { message: &format!("step {step} skipped: {why}") });
                self.give_up_if_hopeless(why)?;
            }
            if due_sample {
                let text = self.sample()?;
                observer.hear(Event::Sampled { step, text: &text });
                sample = Some(text);
            }
            // In a row of skipped steps the parameters may be what is wrong: they must not push good checkpoints out.
            let sound = self.guard.bad_in_row == 0;
            if (due_save && sound) || std::mem::take(&mut self.control.save) {
                self.save(observer)?;
                saved_at = Some(step);
            }
        };
        if saved_at != Some(self.step) {
            self.save(observer)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let summary = Summary {
            steps: self.step,
            tokens: self.tokens,
            seconds,
            tokens_per_second: (self.tokens - first_tokens) as f64 / seconds.max(1e-9),
            train_loss: self.last_train_loss,
            val_loss: evaluation.as_ref().map(|e| e.loss),
            val_bpb: evaluation.as_ref().map(|e| e.bits_per_byte),
            parameters: self.model.layout().elems(),
            peak_memory_bytes: device::peak_memory_bytes(),
            checkpoint: Some(self.folder.checkpoint(self.step)),
            sample,
        };
        Ok((end, summary))
    }

    /// Takes over what `control.toml` says; true when it asks to stop.
    fn apply_control(&mut self, observer: &mut dyn Observer) -> anyhow::Result<bool> {
        match self.control_file.poll(&self.control) {
            None => return Ok(false),
            Some(Err(why)) => {
                observer.hear(Event::Notice { message: &format!("control.toml is not applied: {why}") });
                return Ok(false);
            }
            Some(Ok(control)) => {
                if control != self.control {
                    let message = format!("control.toml applied before step {}", self.step + 1);
                    observer.hear(Event::Notice { message: &message });
                }
                self.control = control;
            }
        }
        let done = Control { evaluate: false, save: false, stop: false, ..self.control.clone() };
        if done != self.control {
            self.control_file.write(&done)?;
        }
        Ok(std::mem::take(&mut self.control.stop))
    }

    /// One optimiser step over all its micro-batches.
    fn train_step(&mut self) -> anyhow::Result<StepRecord> {
        let started = Instant::now();
        let batches = match self.ahead.take() {
            Some(batches) => batches?,
            None => next_batches(&mut self.loader, self.config.accumulation())?,
        };
        self.position = self.loader.state().clone();
        let train = &self.config.train;
        let schedule = self.schedule();
        let lr = schedule.factor(self.step) * self.control.lr_scale;
        let [loss, grad_norm] = self.guard.limits(train.spike_sigma);
        let recompute = if train.recompute { Recompute::Blocks } else { Recompute::Nothing };
        let limits = Limits { clip: train.clip, loss, grad_norm };
        let pace = Pace { lr_factor: lr, is_warmup: self.step < train.warmup_steps };
        let losses = self.loss_orders();
        let tau = self.config.model.parts.hypercube.tau(self.step as f64 / train.steps as f64);
        // Every micro-batch of every rank has a seed of its own.
        let world = self.communicator.world() as u64;
        let noise = (self.step * world + self.communicator.rank() as u64) * self.config.accumulation() as u64;
        let orders = Orders { losses, tau, noise, pace, limits, recompute };
        let mut parts = Parts {
            model: &self.model,
            params: &mut self.params,
            grads: &mut self.grads,
            moments: &mut self.moments,
            arena: &self.arena,
            plan: &self.plan,
            communicator: &*self.communicator,
            carried: &mut self.carried,
        };
        self.stepper.start(&mut parts, &orders, &batches)?;
        if self.stepper.looks_ahead() {
            let batches = next_batches(&mut self.loader, self.config.accumulation());
            if let Ok([first, ..]) = batches.as_deref() {
                self.stepper.prefetch(&self.model, first);
            }
            self.ahead = Some(batches);
        }
        let Done { losses, grad_norm, squares, is_applied } = self.stepper.finish(&mut parts)?;
        self.device.synchronise()?;
        let weight = |kind: LossKind| self.control.loss.of(kind).weight;
        let loss = weight(LossKind::Lm) * losses[LossKind::Lm.index()];
        let of_part = |kind: LossKind| (kind, losses[kind.index()]);
        let parts: Vec<(LossKind, f64)> = self.model.loss_kinds().into_iter().map(of_part).collect();
        let total = parts.iter().map(|&(kind, loss)| weight(kind) * loss).sum();
        let layout = self.model.layout();
        let name = |i: usize| layout.entries()[i].name.clone();
        let seen = Observation { loss, grad_norm, squares: &squares, name: &name };
        let skipped = self.guard.judge(&seen, train.spike_sigma).err();
        debug_assert_eq!(is_applied, skipped.is_none(), "two verdicts on one step");
        let step_tokens = train.batch_tokens as u64;
        self.step += 1;
        self.tokens += step_tokens;
        self.last_train_loss = Some(loss).filter(|loss| loss.is_finite());
        let tokens_per_second = step_tokens as f64 / started.elapsed().as_secs_f64();
        let flops = self.config.model.train_flops_per_token(train.seq_len) as f64;
        Ok(StepRecord {
            step: self.step,
            tokens: self.tokens,
            loss: total,
            loss_parts: parts.into_iter().map(|(kind, loss)| (format!("loss.{}", kind.name()), loss)).collect(),
            lr: lr * train.lr_scale,
            grad_norm,
            tokens_per_second,
            gflops_per_second: tokens_per_second * flops / 1e9,
            skipped,
            ..StepRecord::default()
        })
    }

    /// Breeds memes where a period has passed, until the cooldown.
    fn evolve(&mut self) -> Option<Generation> {
        let (memetic, config) = (self.model.memetic()?, &self.config.model.parts.memetic);
        let is_due = self.step.is_multiple_of(config.period) && self.schedule().rho_factor(self.step) == 1.0;
        is_due.then(|| {
            let at = [self.config.train.seed, self.step];
            let (params, moments) = (&mut self.params, &mut self.moments);
            evolution::next_generation(memetic, config, params, moments, &mut self.memes, at)
        })
    }

    /// Weight and rho of each loss in the step to come.
    fn loss_orders(&self) -> [LossOrder; LOSSES] {
        let rho_factor = self.schedule().rho_factor(self.step);
        LossKind::ALL.map(|kind| {
            let LossOrder { weight, rho } = self.control.loss.of(kind);
            LossOrder { weight, rho: rho * if kind == LossKind::Lm { 1.0 } else { rho_factor } }
        })
    }

    fn schedule(&self) -> Schedule {
        let train = &self.config.train;
        Schedule { steps: train.steps, warmup_steps: train.warmup_steps, cooldown_fraction: train.cooldown_fraction }
    }

    fn give_up_if_hopeless(&self, why: &str) -> anyhow::Result<()> {
        let most = self.config.train.bad_steps_max;
        if self.guard.bad_in_row >= most {
            bail!(
                "training stopped at step {}: {most} steps in a row could not be applied, the last because {why}; lower train.lr_scale, or go back with --resume=-1",
                self.step
            );
        }
        Ok(())
    }

    fn save(&mut self, observer: &mut dyn Observer) -> anyhow::Result<()> {
        let path = self.folder.checkpoint(self.step);
        let state = TrainState {
            version: 1,
            program: concat!("nanochat-gpu ", env!("CARGO_PKG_VERSION")).into(),
            step: self.step,
            tokens: self.tokens,
            updates: self.moments.updates,
            tokenizer_digest: self.tokenizer.digest(),
            loader: self.position.clone(),
            guard: self.guard.clone(),
            memes: self.memes.clone(),
            control: Control { evaluate: false, save: false, stop: false, ..self.control.clone() },
            last_train_loss: self.last_train_loss,
        };
        state::save(&path, &self.model, &self.params, &self.moments, &self.carried, &self.tokenizer, &state)?;
        self.folder.prune(self.config.train.keep, self.step)?;
        self.metrics.draw()?;
        observer.hear(Event::Saved { path: &path });
        Ok(())
    }
}

fn next_batches(loader: &mut Loader, count: usize) -> anyhow::Result<Vec<Batch>> {
    (0..count).map(|_| loader.next_batch()).collect()
}
