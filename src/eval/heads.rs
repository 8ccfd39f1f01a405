//! What the heads of a model are worth on held-out text, each beside its control: the self-model beside the model's own doubt, the energy
//! beside the log-probability, the generator of chunks beside chunks that the language model draws.
//!
//! Reported, where there is the head (a control has its name behind a second point):
//!
//! ```text
//! self_model.auroc                 whether the probability of an error tells wrong tokens from right ones; .entropy of the logits
//! self_model.calibration_error     of that probability, over ten bins; .lm of one minus the highest probability
//! self_model.loss_r2               share of the variance of the loss that is told; .entropy of the logits
//! self_model.features_r2           the same of the features of Superego's stream
//! energy.auroc                     whether -E tells true chunks from those drawn by the language model; .logprob of the chunk
//! energy.brier_lm                  of two generated chunks; .lm of two chunks drawn by the language model
//! ```
//!
//! A chunk is judged in each row, at a place drawn for it, after a row that goes on from nothing.

use super::check_batch;
use super::scores::{Continuation, auroc, brier_lm, calibration_error, r_squared};
use crate::data::{Batch, IGNORE, Packer};
use crate::model::gpt::{LOGIT_ROWS, Look, Rows, log_sum};
use crate::model::self_model::{FEATURES, introspections};
use crate::model::{Carried, Gpt};
use crate::ops::latent::{CHUNK, Chunks};
use crate::tape::Tape;
use crate::tensor::random::Philox;
use crate::tensor::{Arena, Params};
use std::collections::BTreeMap;

/// Most tokens that the self-model is asked of, and most chunks.
const TOKENS_MAX: usize = 4096;
const CHUNKS_MAX: usize = 256;
/// Bins of the calibration error.
const BINS: usize = 10;

/// Judges the heads of `model` on the batches of `packer`, taken from its beginning, of about `tokens_max` tokens at most; nothing where it has
/// none. The activations live in `arena`, which must be empty and have room for a batch.
///
/// # Errors
/// As [`bits_per_byte`](super::bits_per_byte).
pub fn judge(
    model: &Gpt,
    params: &Params,
    arena: &Arena,
    packer: &mut Packer,
    tokens_max: usize,
) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let parts = &model.config().parts;
    let [mut asks_self, mut asks_chunks] = [parts.self_model.enabled, parts.energy.enabled];
    let (mut tokens, mut chunks, mut seen) = (Told::default(), Vec::new(), 0);
    while asks_self || asks_chunks {
        let batch = packer.next_batch()?;
        let size = batch.tokens.len();
        if seen > 0 && (batch.epoch > 0 || seen + size > tokens_max) {
            break;
        }
        check_batch(model.config(), &batch)?;
        seen += size;
        let judge = Judge { model, params, arena, batch: &batch };
        judge.look(&batch.tokens, |tape, look| {
            if asks_self {
                judge.tokens(tape, look, &mut tokens);
            }
        });
        if asks_chunks {
            let first = chunks.len();
            chunks.extend(judge.chunks(first));
        }
        asks_self &= tokens.losses.len() < TOKENS_MAX;
        asks_chunks &= chunks.len() < CHUNKS_MAX;
        if batch.epoch > 0 || seen >= tokens_max {
            break;
        }
    }
    let scores = tokens.scores().into_iter().chain(scores_of_chunks(&chunks));
    Ok(scores.filter_map(|(name, score)| Some((name, score?))).collect())
}

/// What is said and true of tokens.
#[derive(Default)]
struct Told {
    losses: Vec<f64>,
    said_losses: Vec<f64>,
    entropies: Vec<f64>,
    is_wrong: Vec<bool>,
    said_errors: Vec<f64>,
    /// One minus the highest probability.
    doubts: Vec<f64>,
    features: Vec<f64>,
    said_features: Vec<f64>,
}

impl Told {
    fn scores(&self) -> Vec<(&'static str, Option<f64>)> {
        let tells = |scores: &[f64]| {
            let of = |wrong: bool| {
                let which = scores.iter().zip(&self.is_wrong).filter(move |(_, is_wrong)| **is_wrong == wrong);
                which.map(|(score, _)| *score).collect::<Vec<f64>>()
            };
            auroc(&of(true), &of(false))
        };
        let calibrated = |said: &[f64]| {
            let said: Vec<(f64, bool)> = said.iter().copied().zip(self.is_wrong.iter().copied()).collect();
            calibration_error(&said, BINS)
        };
        vec![
            ("self_model.auroc", tells(&self.said_errors)),
            ("self_model.auroc.entropy", tells(&self.entropies)),
            ("self_model.calibration_error", calibrated(&self.said_errors)),
            ("self_model.calibration_error.lm", calibrated(&self.doubts)),
            ("self_model.loss_r2", r_squared(&self.said_losses, &self.losses, 1)),
            ("self_model.loss_r2.entropy", r_squared(&self.entropies, &self.losses, 1)),
            ("self_model.features_r2", r_squared(&self.said_features, &self.features, FEATURES)),
        ]
    }
}

/// A chunk after its context.
struct Judged {
    /// Energy and log-probability of the true chunk and of one that the language model drew.
    energies: [f64; 2],
    logprobs: [f64; 2],
    generated: Continuation,
    drawn: Continuation,
}

fn scores_of_chunks(chunks: &[Judged]) -> [(&'static str, Option<f64>); 4] {
    let of = |score: &dyn Fn(&Judged) -> f64| chunks.iter().map(score).collect::<Vec<f64>>();
    let [belongs, drawn] = [0, 1].map(|i| of(&|chunk| -chunk.energies[i]));
    let [likely, drawn_likely] = [0, 1].map(|i| of(&|chunk| chunk.logprobs[i]));
    let brier = |of: &dyn Fn(&Judged) -> Continuation| {
        (!chunks.is_empty()).then(|| brier_lm(&chunks.iter().map(of).collect::<Vec<_>>()))
    };
    [
        ("energy.auroc", auroc(&belongs, &drawn)),
        ("energy.auroc.logprob", auroc(&likely, &drawn_likely)),
        ("energy.brier_lm", brier(&|chunk| chunk.generated)),
        ("energy.brier_lm.lm", brier(&|chunk| chunk.drawn)),
    ]
}

/// The id at `uniform` of the probabilities.
fn draw(logits: &[f64], uniform: f64) -> u32 {
    let total = log_sum(logits);
    let mut left = uniform;
    let passes = |l: &f64| {
        left -= (l - total).exp();
        left < 0.0
    };
    logits.iter().position(passes).unwrap_or(logits.len() - 1) as u32
}

struct Judge<'a> {
    model: &'a Gpt,
    params: &'a Params,
    arena: &'a Arena,
    batch: &'a Batch,
}

impl Judge<'_> {
    /// What `ask` wants to know of the batch with these tokens.
    fn look<T>(&self, tokens: &[u32], ask: impl FnOnce(&mut Tape, &Look) -> T) -> T {
        let rows = Rows::of(self.arena, &Batch { tokens: tokens.to_vec(), ..self.batch.clone() });
        let mut tape = Tape::inference(self.arena, self.params);
        let look = self.model.look(&mut tape, &rows, &mut Carried::default());
        let answer = ask(&mut tape, &look);
        drop((tape, look, rows));
        self.arena.reset();
        answer
    }

    /// Rows of logits of the tokens numbered `at`.
    fn logits(&self, tape: &mut Tape, look: &Look, at: &[u32]) -> Vec<Vec<f64>> {
        let v = self.model.config().vocab_size;
        let piece = |at: &[u32]| self.model.logits_at(tape, look, at).to_f64();
        at.chunks(LOGIT_ROWS)
            .map(piece)
            .flat_map(|all| all.chunks(v).map(<[f64]>::to_vec).collect::<Vec<_>>())
            .collect()
    }

    /// Adds what the self-model says of tokens that have a target, as long as there is room.
    fn tokens(&self, tape: &mut Tape, look: &Look, told: &mut Told) {
        let Some(seen) = self.model.introspect(tape, look) else { return };
        let room = TOKENS_MAX.saturating_sub(told.losses.len());
        let has_target = |&i: &u32| self.batch.targets[i as usize] != IGNORE;
        let at: Vec<u32> = (0..self.batch.targets.len() as u32).filter(has_target).take(room).collect();
        let (said, features, said_features) =
            (introspections(&seen.said), seen.features.to_f64(), seen.said_features());
        for piece in at.chunks(LOGIT_ROWS) {
            for (logits, i) in self.logits(tape, look, piece).into_iter().zip(piece.iter().map(|&i| i as usize)) {
                let (total, target) = (log_sum(&logits), self.batch.targets[i] as usize);
                let peak = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                told.losses.push(total - logits[target]);
                told.entropies.push(logits.iter().map(|l| (l - total).exp() * (total - l)).sum());
                told.is_wrong.push(peak > logits[target]);
                told.doubts.push(1.0 - (peak - total).exp());
                told.said_losses.push(said[i].loss);
                told.said_errors.push(said[i].error);
                told.features.extend(&features[i * FEATURES..][..FEATURES]);
                told.said_features.extend(&said_features[i * FEATURES..][..FEATURES]);
            }
        }
    }

    /// For each row with a chunk that has a context, the token before it, among all. `first` is the number of the first in the evaluation.
    fn places(&self, first: usize) -> Vec<u32> {
        let Batch { seq_len: t, rows, ref doc_start, .. } = *self.batch;
        let chunks = Chunks { t, first: 0, every: 1 };
        let (slots, stream) = (chunks.per_row(), Philox::new(0, "judged chunks"));
        let place = |row: usize| {
            let starts = (row * slots..(row + 1) * slots).filter_map(|m| chunks.start(m, Some(doc_start)));
            let starts: Vec<usize> = starts.filter(|&start| start % t > doc_start[start] as usize).collect();
            let pick = stream.below((first + row) as u64, starts.len().max(1) as u64) as usize;
            starts.get(pick).map(|&start| start as u32 - 1)
        };
        (0..if slots == 0 { 0 } else { rows }).filter_map(place).collect()
    }

    /// A chunk in each row that has one, the first of them the one numbered `first` of the evaluation.
    fn chunks(&self, first: usize) -> Vec<Judged> {
        let at = self.places(first);
        let chunk = |tokens: &[u32], at: u32| -> [u32; CHUNK] { std::array::from_fn(|i| tokens[at as usize + 1 + i]) };
        let of = |tokens: &[u32]| at.iter().map(|&at| chunk(tokens, at)).collect::<Vec<_>>();
        let drawn = [0, 1].map(|sample| self.drawn(&at, 2 * first as u64 + sample));
        let [real, one, other] = [&self.batch.tokens, &drawn[0].0, &drawn[1].0].map(|tokens| of(tokens));
        let before: Vec<u32> = at.iter().flat_map(|&at| at..at + CHUNK as u32).collect();
        let (logprobs, energies, generated) = self.look(&self.batch.tokens, |tape, look| {
            let nats = self.model.logprobs(tape, look, &before, &real.concat());
            let logprobs: Vec<f64> = nats.chunks(CHUNK).map(|nats| nats.iter().sum()).collect();
            let mut energies = |chunks: &[[u32; CHUNK]]| {
                self.model.energies(tape, look, &at, &chunks.concat()).expect("a model with an energy head")
            };
            let energies = [energies(&real), energies(&one)];
            let generated = [0, 1].map(|sample| {
                let piece = |at: &[u32]| {
                    let seed = 2 * (first as u64 + u64::from(at[0])) + sample;
                    self.model.generated(tape, look, at, seed).expect("a model with a generator")
                };
                at.chunks(LOGIT_ROWS / CHUNK).flat_map(piece).collect::<Vec<u32>>()
            });
            (logprobs, energies, generated)
        });
        let judged = |i: usize| Judged {
            energies: [energies[0][i], energies[1][i]],
            logprobs: [logprobs[i], drawn[0].1[i]],
            generated: Continuation {
                samples: [0, 1].map(|s| std::array::from_fn(|k| generated[s][i * CHUNK + k])),
                truth: real[i],
            },
            drawn: Continuation { samples: [one[i], other[i]], truth: real[i] },
        };
        (0..at.len()).map(judged).collect()
    }

    /// The batch's tokens with the chunk after each token numbered in `at` drawn by the language model, and the log-probability of each chunk.
    fn drawn(&self, at: &[u32], seed: u64) -> (Vec<u32>, Vec<f64>) {
        let stream = Philox::new(seed, "drawn chunks");
        let (mut tokens, mut logprobs) = (self.batch.tokens.clone(), vec![0.0; at.len()]);
        for i in 0..CHUNK {
            let now: Vec<u32> = at.iter().map(|&at| at + i as u32).collect();
            let rows = self.look(&tokens, |tape, look| self.logits(tape, look, &now));
            for (k, (logits, &now)) in rows.iter().zip(&now).enumerate() {
                let id = draw(logits, stream.uniform((k * CHUNK + i) as u64));
                logprobs[k] += logits[id as usize] - log_sum(logits);
                tokens[now as usize + 1] = id;
            }
        }
        (tokens, logprobs)
    }
}
