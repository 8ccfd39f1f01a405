//! Steps that a GPU does again from a recording: one token of each of several sequences, and the next one drawn.

use super::Engine;
use super::said::{Next, Said, stage_weights};
use crate::device::Device;
use crate::device::recording::Recording;
use crate::model::{Cached, StepInputs, StepRow};
use crate::ops::paged_attention::Placement;
use crate::ops::sample;
use crate::tape::Tape;
use crate::tensor::{DType, Tensor};
use anyhow::Context;

/// A pass over one token of each of several sequences, with the next one drawn, which a GPU does the same way every time.
pub(super) struct RecordedStep {
    inputs: StepInputs,
    /// `[n]`, what was drawn.
    tokens: Tensor,
    /// `[n, 3]`, of a model with a controller.
    psyche: Option<Tensor>,
    recording: Recording,
}

impl RecordedStep {
    /// Of `n` sequences of at most `context` tokens.
    fn new(device: Device, n: usize, context: usize) -> RecordedStep {
        let (inputs, tokens) = (StepInputs::new(device, n, context), Tensor::owned_on(device, [n], DType::U32));
        RecordedStep { inputs, tokens, psyche: None, recording: Recording::default() }
    }
}

impl Engine<'_> {
    /// The largest position of a pass that can be recorded: on a GPU, one token of each sequence, after which the next is drawn there.
    pub(super) fn last_of_step(&self, plan: &[(usize, usize)]) -> Option<usize> {
        let Device::Gpu(_) = self.params.device() else { return None };
        let is_step = |&(at, t): &(usize, usize)| {
            let sequence = &self.running[at];
            t == 1 && sequence.passed + 1 == sequence.tokens.len() && sequence.draw_alone().is_some()
        };
        let is_recorded = self.options.records && self.config().steps_are_alike() && plan.iter().all(is_step);
        is_recorded.then(|| plan.iter().map(|&(at, _)| self.running[at].passed).max()).flatten()
    }

    /// As [`Engine::pass`], where the same work was recorded, or will be.
    pub(super) fn recorded_pass(&mut self, plan: &[(usize, usize)], last: usize) -> anyhow::Result<Vec<(usize, Said)>> {
        let Device::Gpu(gpu) = self.params.device() else { panic!("the processor records nothing") };
        let (n, context) = (plan.len(), self.context());
        let last = Placement::round_up(last).min(self.config().max_seq_len - 1);
        let new = || RecordedStep::new(self.params.device(), n, context);
        let step = self.steps.entry((n, last)).or_insert_with(new);
        let rows: Vec<StepRow> = (plan.iter().map(|&(at, _)| &self.running[at]))
            .map(|sequence| StepRow {
                token: sequence.tokens[sequence.passed],
                position: sequence.passed,
                pages: sequence.table.numbers(),
                draw: sequence.draw_alone().expect("looked at before"),
            })
            .collect();
        step.inputs.fill(&rows);
        let RecordedStep { inputs, tokens, psyche, recording } = step;
        let work = || {
            let mut cached = Cached::of_step(inputs, last, &mut self.pool);
            let all: Vec<usize> = (0..n).collect();
            let output = self.model.next_of(&mut Tape::by_rows(&self.arena, self.params), &mut cached, &all);
            sample::draw_into(tokens, &output.logits, &inputs.draws());
            if let Some(weights) = &output.psyche {
                psyche
                    .get_or_insert_with(|| Tensor::owned_on(weights.device(), weights.shape(), weights.dtype()))
                    .copy_from(weights);
            }
        };
        self.replayed += u64::from(recording.run(gpu, true, work).context("recording a step")?);
        let (drawn, weights) = (sample::read(tokens), psyche.as_ref().map(Tensor::to_f64));
        self.params.device().synchronise()?;
        self.arena.reset();
        self.note_passed(plan);
        let said = plan.iter().enumerate().map(|(i, &(at, _))| {
            let next = drawn[i].map_or(Next::Nothing, Next::Token);
            (at, Said { next, psyche: stage_weights(weights.as_deref(), i) })
        });
        Ok(said.collect())
    }
}
