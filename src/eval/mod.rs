//! Evaluation: how well a model predicts text, in a unit that does not depend on the tokenizer.
//! Knows models and packed batches; nothing of the command line.

pub mod heads;
pub mod scores;

use crate::data::{Batch, IGNORE, Packer};
use crate::model::gpt::{Recompute, Rows};
use crate::model::losses::{LOSSES, Loss, LossKind, LossScales};
use crate::model::{Carried, Gpt, ModelConfig};
use crate::tape::{Measure, Note, Tape};
use crate::tensor::{Arena, Params, Tensor};
use crate::user_bail;
use std::collections::BTreeMap;

/// What a model achieves on held-out text.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Nats over the targets that stand for bytes, per byte of these, in bits: `sum nats / (ln 2 * bytes)`.
    pub bits_per_byte: f64,
    /// Mean nats over all targets that are learnt, those without bytes (BOS) included, as the training loss counts.
    pub loss: f64,
    /// Targets in `loss`.
    pub tokens: usize,
    /// Bytes in `bits_per_byte`.
    pub bytes: u64,
    /// Mean of each loss beyond the language model's, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<&'static str, f64>,
    /// What else the parts report: `latent.accuracy`, ...
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<&'static str, f64>,
}

/// Evaluates `model` on the batches of `packer`, taken from its beginning (`Corpus::packer(None)`). Ends before a batch
/// that has documents of a second epoch, or that would make more than `tokens_max` targets; the first batch counts in
/// any case. What a model carries from batch to batch begins from nothing. The activations live in `arena`, which must be empty and have room for a batch.
///
/// # Errors
/// A user error for rows longer than the model's context, for ids beyond its vocabulary, and for a split without bytes;
/// those of the packer. A loss that is no number is returned, not an error.
pub fn bits_per_byte(
    model: &Gpt,
    params: &Params,
    arena: &Arena,
    packer: &mut Packer,
    tokens_max: usize,
) -> anyhow::Result<Evaluation> {
    let (mut nats, mut nats_with_bytes) = (0.0, 0.0);
    let (mut tokens, mut bytes, mut seen) = (0, 0, 0);
    let mut seen_parts = PartSums::default();
    let mut carried = None;
    loop {
        let batch = packer.next_batch()?;
        let size = batch.targets.len();
        if seen > 0 && (batch.epoch > 0 || seen + size > tokens_max) {
            break;
        }
        check_batch(model.config(), &batch)?;
        seen += size;
        let extents = [batch.rows / batch.segments, batch.segments];
        let carried =
            carried.get_or_insert_with(|| Carried::new(arena.device(), model.config(), extents, params.dtype()));
        let losses = losses(model, params, arena, &batch, &mut seen_parts, carried);
        arena.device().synchronise()?;
        for ((loss, target), length) in losses.iter().zip(&batch.targets).zip(&batch.bytes_in_targets) {
            nats += loss;
            tokens += usize::from(*target != IGNORE);
            if *length > 0 {
                nats_with_bytes += loss;
                bytes += u64::from(*length);
            }
        }
        if batch.epoch > 0 || seen >= tokens_max {
            break;
        }
    }
    if bytes == 0 {
        user_bail!("none of the {tokens} tokens evaluated stands for text; give other data");
    }
    let bits_per_byte = nats_with_bytes / (std::f64::consts::LN_2 * bytes as f64);
    let means = model.loss_kinds().into_iter().filter(|&kind| kind != LossKind::Lm).filter_map(|kind| {
        let (sum, count) = seen_parts.losses[kind.index()];
        (count > 0).then(|| (kind.name(), sum / count as f64))
    });
    let notes = seen_parts.notes.iter().filter_map(|(&name, &(of, sum, measure))| {
        let (_, count) = seen_parts.losses[of];
        (count > 0).then(|| (name, measure.of_mean(sum / count as f64)))
    });
    let (parts, notes) = (means.collect(), notes.collect());
    Ok(Evaluation { bits_per_byte, loss: nats / tokens as f64, tokens, bytes, parts, notes })
}

/// What the batches so far add up to.
#[derive(Default)]
struct PartSums {
    /// Sum and number of the values of each loss.
    losses: [(f64, usize); LOSSES],
    /// Of each name: the loss whose number counts, the sum, and what is made of the mean.
    notes: BTreeMap<&'static str, (usize, f64, Measure)>,
}

/// Nats of every target of `batch`, 0 where it is ignored; adds what the parts say to `parts`.
fn losses(
    model: &Gpt,
    params: &Params,
    arena: &Arena,
    batch: &Batch,
    parts: &mut PartSums,
    carried: &mut Carried,
) -> Vec<f64> {
    let rows = Rows::of(arena, batch);
    let targets = Tensor::from_slice(arena, [batch.targets.len()], &batch.targets);
    let mut tape = Tape::inference(arena, params);
    let all = model.losses(&mut tape, &rows, &targets, &LossScales::lm(1.0), Recompute::Nothing, carried);
    let counts = model.counts(&batch.tokens, &batch.targets, batch.seq_len, Some(&batch.doc_start));
    for ((_, count), more) in parts.losses.iter_mut().zip(counts) {
        *count += more;
    }
    for Note { name, values, of, measure } in tape.take_notes() {
        parts.notes.entry(name).or_insert((of, 0.0, measure)).1 += values.to_f64().iter().sum::<f64>();
    }
    let mut lm = Vec::new();
    for Loss { kind, values } in all {
        let values = values.to_f64();
        parts.losses[kind.index()].0 += values.iter().sum::<f64>();
        if kind == LossKind::Lm {
            lm = values;
        }
    }
    drop((tape, rows, targets));
    arena.reset();
    lm
}

fn check_batch(config: &ModelConfig, batch: &Batch) -> anyhow::Result<()> {
    let (context, vocab) = (config.max_seq_len, config.vocab_size);
    if batch.seq_len > context {
        user_bail!("rows have {} tokens and the model's context {context}; lower seq_len", batch.seq_len);
    }
    let targets = batch.targets.iter().filter(|&&id| id != IGNORE);
    if let Some(id) = batch.tokens.iter().chain(targets).find(|&&id| id as usize >= vocab) {
        user_bail!("the data has token {id} and the model's vocabulary {vocab} tokens; use the model's own tokenizer");
    }
    Ok(())
}
