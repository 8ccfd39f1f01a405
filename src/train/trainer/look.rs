//! What a trainer looks at between steps: held-out text, the gradients of each loss, what the model writes.

use super::Trainer;
use crate::eval::{Evaluation, bits_per_byte};
use crate::infer::{Request, Sampler, SamplerOptions, generate};
use crate::model::Carried;
use crate::model::gpt::{Recompute, Rows};
use crate::model::losses::{LossKind, LossScales};
use crate::ops::grad_norm::sums_of_squares;
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::tokenizer::Codec;
use crate::train::step::LossOrder;
use std::collections::BTreeMap;

/// Tokens of a sample during training.
const SAMPLE_TOKENS: usize = 96;

impl Trainer {
    /// Evaluates the model as it is on held-out text.
    ///
    /// # Errors
    /// Data that cannot be read.
    pub fn evaluate(&mut self) -> anyhow::Result<Evaluation> {
        let mut packer = self.validation.packer(None)?;
        bits_per_byte(&self.model, &self.params, &self.arena, &mut packer, self.config.train.eval_tokens)
    }

    /// The norm of each loss's gradient at the trunk over that of the language-model loss, with the weights and rhos of the step to come, on
    /// held-out rows; nothing of a model with that loss alone.
    pub(super) fn gradient_shares(&mut self) -> anyhow::Result<BTreeMap<String, f64>> {
        let kinds = self.model.loss_kinds();
        if kinds.len() < 2 {
            return Ok(BTreeMap::new());
        }
        let batch = self.validation.packer(None)?.next_batch()?;
        let (orders, trunk) = (self.loss_orders(), 0..self.model.trunk_elems());
        let counts = self.model.counts(&batch.tokens, &batch.targets, batch.seq_len, Some(&batch.doc_start));
        let mut norms = Vec::new();
        for &kind in &kinds {
            let LossOrder { weight, rho } = orders[kind.index()];
            let mut scales = LossScales::all(0.0, rho);
            scales.each[kind.index()].weight = (weight / counts[kind.index()].max(1) as f64).into();
            self.grads.clear();
            let rows = Rows::of(&self.arena, &batch);
            let targets = Tensor::from_slice(&self.arena, [batch.targets.len()], &batch.targets);
            let mut tape = Tape::recording(&self.arena, &self.params, &mut self.grads);
            drop(self.model.losses(&mut tape, &rows, &targets, &scales, Recompute::Nothing, &mut Carried::default()));
            tape.backward();
            drop((tape, rows, targets));
            let squares = sums_of_squares(&self.arena, self.grads.flat(), std::slice::from_ref(&trunk));
            self.arena.reset();
            norms.push(squares[0].sqrt());
        }
        self.grads.clear();
        let share =
            |(kind, norm): (&LossKind, &f64)| (format!("grad_share.{}", kind.name()), norm / norms[0].max(1e-30));
        Ok(kinds.iter().zip(&norms).skip(1).map(share).collect())
    }

    pub(super) fn sample(&self) -> anyhow::Result<String> {
        let options = SamplerOptions {
            temperature: 0.8,
            top_k: Some(50),
            seed: self.config.train.seed,
            ..SamplerOptions::GREEDY
        };
        let Some(bos) = self.tokenizer.bos() else { return Ok(String::new()) };
        let sampler = Sampler::new(options)?;
        let request = Request { prompt: &[bos], tokens_max: SAMPLE_TOKENS, sequence: 0, stop_ids: &[bos] };
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        let generated = generate(&self.model, &self.params, &sampler, &request, go_on)?;
        Ok(String::from_utf8_lossy(&self.tokenizer.decode(&generated.tokens)).into_owned())
    }
}
