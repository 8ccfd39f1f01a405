//! One optimiser step: the gradients of all micro-batches, the verdict on them, the update.
//!
//! On a GPU nothing waits for the host in between: losses, norm, verdict and the numbers that change from step to step stay in
//! its memory, so that the work is recorded once and replayed, while the next batch comes beside it. The host reads one short
//! report at the end.

use super::optim::{self, Moments, Pace, Plan};
use crate::data::Batch;
use crate::device::Device;
use crate::device::driver::LANES;
use crate::device::gpu::Gpu;
use crate::device::recording::Recording;
use crate::dist::Communicator;
use crate::model::gpt::{Recompute, Rows, sum_losses};
use crate::model::losses::{LOSSES, Loss, LossKind, LossScale, LossScales};
use crate::model::{Carried, Gpt};
use crate::ops::clip::{self, Evidence, Limits};
use crate::ops::grad_norm;
use crate::tape::Tape;
use crate::tensor::flat::Entry;
use crate::tensor::noise::SEEDS;
use crate::tensor::{Arena, DType, Grads, Params, Scale, Tensor};
use anyhow::Context;
use std::ops::Range;

/// What a step works on.
pub struct Parts<'a> {
    pub model: &'a Gpt,
    pub params: &'a mut Params,
    pub grads: &'a mut Grads,
    pub moments: &'a mut Moments,
    pub arena: &'a Arena,
    pub plan: &'a Plan,
    pub communicator: &'a dyn Communicator,
    /// Where the parameters lie; at the same address in every step.
    pub carried: &'a mut Carried,
}

/// How a step is done.
#[derive(Clone, Copy)]
pub struct Orders {
    /// Of each loss.
    pub losses: [LossOrder; LOSSES],
    /// Sharpness of the hypercube's codes.
    pub tau: f64,
    /// The seed of the noise of the first micro-batch; the others have those that follow.
    pub noise: u64,
    pub pace: Pace,
    pub limits: Limits,
    pub recompute: Recompute,
}

/// How a loss enters a step's total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossOrder {
    pub weight: f64,
    /// Factor of its gradient into the trunk.
    pub rho: f64,
}

impl Orders {
    /// The factor of each value of each loss in a micro-batch, with `means` of 1 over their number.
    fn scales(&self, means: &[f64; LOSSES], micro_batch: usize) -> LossScales {
        let each = std::array::from_fn(|i| {
            let LossOrder { weight, rho } = self.losses[i];
            LossScale { weight: (weight * means[i]).into(), rho: rho.into() }
        });
        let noise = (self.noise + micro_batch as u64) % SEEDS;
        LossScales { each, tau: self.tau.into(), noise: Some((noise as f64).into()) }
    }

    fn lm_weight(&self) -> f64 {
        self.losses[LossKind::Lm.index()].weight
    }
}

/// What a step came to.
pub struct Done {
    /// Mean of each loss over its values, not weighted; 0 of those that the model does not have.
    pub losses: [f64; LOSSES],
    /// Of the whole gradient, and the sum of squares of each parameter's.
    pub grad_norm: f64,
    pub squares: Vec<f64>,
    /// The parameters were updated.
    pub is_applied: bool,
}

/// Does steps, where the parameters lie.
pub enum Stepper {
    Host { done: Option<Done> },
    Gpu(Box<GpuStep>),
}

impl Stepper {
    /// For micro-batches of `rows` x `seq_len` tokens, of which `segments` rows each go on with each other. `graph`: a GPU's work is
    /// recorded and replayed.
    pub fn new(device: Device, model: &Gpt, plan: &Plan, extents: [usize; 3], graph: bool) -> Stepper {
        match device {
            Device::Cpu => Stepper::Host { done: None },
            Device::Gpu(gpu) => Stepper::Gpu(Box::new(GpuStep::new(gpu, model, plan, extents, graph))),
        }
    }

    /// Starts a step over these micro-batches; [`Stepper::finish`] ends it.
    ///
    /// # Errors
    /// When a GPU's work cannot be recorded.
    pub fn start(&mut self, parts: &mut Parts, orders: &Orders, batches: &[Batch]) -> anyhow::Result<()> {
        let means = means(parts.model, batches, parts.communicator);
        match self {
            Stepper::Host { done } => *done = Some(step_on_host(parts, orders, batches, &means)),
            Stepper::Gpu(step) => step.start(parts, orders, batches, means)?,
        }
        Ok(())
    }

    /// Whether there is something to gain from knowing the next step's first micro-batch before this one's end.
    pub fn looks_ahead(&self) -> bool {
        matches!(self, Stepper::Gpu(_))
    }

    /// Brings the next step's first micro-batch while this one runs.
    pub fn prefetch(&mut self, model: &Gpt, batch: &Batch) {
        if let Stepper::Gpu(step) = self {
            step.bring(model, batch);
            step.is_ahead = true;
        }
    }

    /// Waits for the step.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn finish(&mut self, parts: &mut Parts) -> anyhow::Result<Done> {
        match self {
            Stepper::Host { done } => Ok(done.take().expect("a step was started")),
            Stepper::Gpu(step) => step.finish(parts),
        }
    }
}

/// The places of digits in a training batch, of a model that has them.
fn places(model: &Gpt, batch: &Batch) -> Option<Vec<u32>> {
    let digits = &model.config().parts.digits;
    digits.enabled.then(|| digits.shifted_places(&batch.tokens, batch.seq_len, batch.index))
}

/// 1 / values of each loss, over all ranks.
fn means(model: &Gpt, batches: &[Batch], communicator: &dyn Communicator) -> [f64; LOSSES] {
    let mut all = [0; LOSSES];
    for batch in batches {
        let counts = model.counts(&batch.tokens, &batch.targets, batch.seq_len, Some(&batch.doc_start));
        all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    all.map(|count| 1.0 / (count.max(1) * communicator.world()) as f64)
}

/// Where each parameter's gradient lies; nowhere for what has none.
fn ranges(model: &Gpt) -> Vec<Range<usize>> {
    let of = |entry: &Entry| if entry.is_learnt() { entry.range() } else { entry.offset_elems..entry.offset_elems };
    model.layout().entries().iter().map(of).collect()
}

fn step_on_host(parts: &mut Parts, orders: &Orders, batches: &[Batch], means: &[f64; LOSSES]) -> Done {
    let Parts { model, params, grads, moments, arena, plan, communicator, carried } = parts;
    grads.clear();
    let mut totals = [0.0; LOSSES];
    for (i, batch) in batches.iter().enumerate() {
        let scales = orders.scales(means, i);
        let places = places(model, batch).map(|places| Tensor::from_slice(arena, [places.len()], &places));
        let rows = Rows { places, ..Rows::of(arena, batch) };
        let targets = Tensor::from_slice(arena, [batch.targets.len()], &batch.targets);
        let mut tape = Tape::recording(arena, params, grads);
        let losses = model.losses(&mut tape, &rows, &targets, &scales, orders.recompute, carried);
        for Loss { kind, values } in losses {
            totals[kind.index()] += sum_losses(&values) * means[kind.index()];
        }
        tape.backward();
        drop((tape, rows, targets));
        arena.reset();
    }
    communicator.all_reduce_sum(grads.flat_mut());
    let squares = grad_norm::sums_of_squares(arena, grads.flat(), &ranges(model));
    let factor = clip::verdict(orders.lm_weight() * totals[LossKind::Lm.index()], &squares, &orders.limits);
    if let Some(factor) = factor {
        optim::update(arena, plan, params, grads.flat(), moments, factor, orders.pace);
    }
    Done { losses: totals, grad_norm: squares.iter().sum::<f64>().sqrt(), squares, is_applied: factor.is_some() }
}

/// What is said where a recording fails.
const UNRECORDED: &str = "a step could not be recorded; --set device.graph=false does without";

/// Steps on a GPU. All of its tensors lie there.
pub struct GpuStep {
    gpu: &'static Gpu,
    records: bool,
    gradients: Recording,
    update: Recording,
    /// Which of the driver's lanes brings the next micro-batch.
    lane: usize,
    /// It has been sent for.
    is_ahead: bool,
    seq_len: usize,
    /// Rows that go on with each other.
    segments: usize,
    means: [f64; LOSSES],
    tensors: Tensors,
}

struct Tensors {
    /// `[4, N]` u32: tokens, targets, where each one's document begins, and whether one does; a fifth of digits' places where the model
    /// has them.
    batch: Tensor,
    /// `[2 losses + 2]` f32: factor of every value of each loss, then rho of each, then tau, then the seed of the noise.
    scales: Tensor,
    /// `[losses]` f64: sum of each.
    totals: Tensor,
    /// `[5]` f64, see [`clip::knobs`].
    knobs: Tensor,
    /// f64 and f32, see [`clip::launch_verdict`].
    report: Tensor,
    verdict: Tensor,
    /// f32, see [`optim::gpu::rates`].
    rates: Tensor,
    /// f64 and u32, see [`grad_norm::parts`].
    partial: Tensor,
    parts: Tensor,
    firsts: Tensor,
}

impl GpuStep {
    fn new(
        gpu: &'static Gpu,
        model: &Gpt,
        plan: &Plan,
        [rows, seq_len, segments]: [usize; 3],
        records: bool,
    ) -> GpuStep {
        let ranges = ranges(model);
        let (parts, firsts) = grad_norm::parts(&ranges);
        let zeros = |elems: usize, dtype| Tensor::owned_on(Device::Gpu(gpu), [elems], dtype);
        let mut tensors = Tensors {
            batch: zeros((4 + usize::from(model.config().parts.digits.enabled)) * rows * seq_len, DType::U32),
            scales: zeros(2 * LOSSES + 2, DType::F32),
            totals: zeros(LOSSES, DType::F64),
            knobs: zeros(5, DType::F64),
            report: zeros(clip::REPORT_SQUARES + ranges.len(), DType::F64),
            verdict: zeros(2, DType::F32),
            rates: zeros(optim::gpu::RATES * plan.groups.len(), DType::F32),
            partial: zeros(parts.len() / 3, DType::F64),
            parts: zeros(parts.len(), DType::U32),
            firsts: zeros(firsts.len(), DType::U32),
        };
        tensors.parts.copy_from_slice(&parts);
        tensors.firsts.copy_from_slice(&firsts);
        let (gradients, update) = (Recording::default(), Recording::default());
        let means = [0.0; LOSSES];
        GpuStep { gpu, records, gradients, update, lane: 0, is_ahead: false, seq_len, segments, means, tensors }
    }

    /// Starts the transfer of a micro-batch.
    fn bring(&mut self, model: &Gpt, batch: &Batch) {
        let places = places(model, batch).unwrap_or_default();
        let words = [&batch.tokens[..], &batch.targets, &batch.doc_start, &batch.begins, &places].concat();
        self.gpu.prefetch(self.lane, bytemuck::cast_slice(&words));
    }

    fn start(
        &mut self,
        parts: &mut Parts,
        orders: &Orders,
        batches: &[Batch],
        means: [f64; LOSSES],
    ) -> anyhow::Result<()> {
        self.means = means;
        let tensors = &mut self.tensors;
        parts.grads.clear();
        tensors.totals.clear();
        let lm_mean = means[LossKind::Lm.index()];
        tensors.knobs.copy_from_slice(&clip::knobs(orders.lm_weight(), lm_mean, &orders.limits));
        tensors.rates.copy_from_slice(&optim::gpu::rates(parts.plan, parts.moments.updates + 1, orders.pace));
        for (i, batch) in batches.iter().enumerate() {
            if !std::mem::take(&mut self.is_ahead) {
                self.bring(parts.model, batch);
            }
            self.tensors.batch.deliver(self.lane);
            self.lane = (self.lane + 1) % LANES;
            if let Some(next) = batches.get(i + 1) {
                self.bring(parts.model, next);
                self.is_ahead = true;
            }
            let (gpu, extents, tensors) = (self.gpu, [self.seq_len, self.segments], &mut self.tensors);
            tensors.scales.copy_from_slice(&numbers(&orders.scales(&means, i)));
            let work = || gradients(gpu, parts, orders.recompute, extents, tensors);
            self.gradients.run(gpu, self.records, work).context(UNRECORDED)?;
            parts.arena.reset();
        }
        parts.communicator.all_reduce_sum(parts.grads.flat_mut());
        let (gpu, tensors) = (self.gpu, &mut self.tensors);
        self.update.run(gpu, self.records, || update(gpu, parts, tensors)).context(UNRECORDED)?;
        parts.arena.reset();
        Ok(())
    }

    fn finish(&mut self, parts: &mut Parts) -> anyhow::Result<Done> {
        let (mut report, totals) = (self.tensors.report.to_f64(), self.tensors.totals.to_f64());
        self.gpu.synchronise()?;
        let squares = report.split_off(clip::REPORT_SQUARES);
        let is_applied = report[2] != 0.0;
        parts.moments.updates += u64::from(is_applied);
        let losses = std::array::from_fn(|i| totals[i] * self.means[i]);
        Ok(Done { losses, grad_norm: report[1], squares, is_applied })
    }
}

/// As they lie in a GPU's memory.
fn numbers(LossScales { each, tau, noise }: &LossScales) -> Vec<f32> {
    let (weights, rhos) = (each.iter().map(|scale| &scale.weight), each.iter().map(|scale| &scale.rho));
    weights.chain(rhos).chain([tau]).chain(noise).map(|scale| scale.value() as f32).collect()
}

/// Adds the gradients of the micro-batch, and its losses to the total.
fn gradients(gpu: &Gpu, parts: &mut Parts, recompute: Recompute, [t, segments]: [usize; 2], tensors: &mut Tensors) {
    let digits = parts.model.config().parts.digits.enabled;
    let n = tensors.batch.elems() / (4 + usize::from(digits));
    let part = |i: usize| tensors.batch.view(i * n, [n]);
    let places = digits.then(|| part(4));
    let rows = Rows { tokens: part(0), t, doc_start: Some(part(2)), starts: Some(part(3)), segments, places };
    let mut tape = Tape::recording(parts.arena, parts.params, parts.grads);
    let number = |i: usize| Scale::at(&tensors.scales, i);
    let each = std::array::from_fn(|i| LossScale { weight: number(i), rho: number(LOSSES + i) });
    let scales = LossScales { each, tau: number(2 * LOSSES), noise: Some(number(2 * LOSSES + 1)) };
    for Loss { kind, values } in parts.model.losses(&mut tape, &rows, &part(1), &scales, recompute, parts.carried) {
        clip::launch_losses(gpu, &mut tensors.totals.view_mut(kind.index(), [1]), &values);
    }
    tape.backward();
}

/// The verdict on the gradients, and the update.
fn update(gpu: &Gpu, parts: &mut Parts, tensors: &mut Tensors) {
    let Tensors { totals, knobs, report, verdict, rates, partial, parts: list, firsts, .. } = tensors;
    let grads = parts.grads.flat();
    grad_norm::launch_listed(gpu, &mut partial.whole_mut(), grads, list);
    let total = totals.view(LossKind::Lm.index(), [1]);
    let seen = Evidence { total: &total, partial, firsts, knobs };
    clip::launch_verdict(gpu, &mut report.whole_mut(), &mut verdict.whole_mut(), &seen);
    let (values, moments) = (parts.params.master_mut(), &mut *parts.moments);
    optim::gpu::launch(gpu, parts.arena, parts.plan, values, grads, moments, (verdict, rates));
    parts.params.round();
}
