//! The energy heads: a generator of the next chunk's latent, and two scores of how well a latent goes on from a context.
//!
//! The context of a chunk is the integrated state `y~` at the token before it, in its document; the chunk's latent (`mu`, `sigma` of an
//! encoder that sees every token, detached) is what comes. With `eps ~ U(-1/2, 1/2)^64`:
//!
//! ```text
//! a = A n(y~) + N eps          a += mlp(n(a))            zhat = G n(a)         G begins at zero
//! E(y, z) = -<W_q n(y~), W_k n(z)> / sqrt(128) - b       W_q begins at zero    low: this continuation belongs here
//! R(y, z) =  <W_q' n(y~), W_k' n(z)> / sqrt(128)         W_q' begins at zero
//! L_score  = energy score of 4 samples zhat against 16 draws z
//! L_energy = softplus(E(y, z)) + softplus(-E(y, sg zhat)), the mean of 4 pairs, + InfoNCE of R among latents of other documents
//! ```
//!
//! The losses are in [`crate::ops::energy_score`] and [`crate::ops::energy_contrast`]. Each reads `y~` with a rho of its own; nothing
//! reads the heads.

use super::ModelConfig;
use super::gpt::Rows;
use super::latent::{LATENT, Latent, LatentConfig};
use super::losses::{Loss, LossKind, LossScales};
use super::parts::{Held, PartConfig, Storage};
use crate::ops::energy_contrast::{KEY_MAX, Pair};
use crate::ops::energy_score::{self, SAMPLES, Truth};
use crate::ops::select_rows::Stride;
use crate::tape::{MlpParams, Tape, Var};
use crate::tensor::{DType, Init, Layout, ParamId, Role, Scale, Span, Tensor};
use serde::{Deserialize, Serialize};

/// `[energy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnergyConfig {
    pub enabled: bool,
    /// Width of the generator.
    pub width: usize,
}

impl Default for EnergyConfig {
    fn default() -> EnergyConfig {
        EnergyConfig { enabled: false, width: 256 }
    }
}

/// Widest generator.
const WIDTH_MAX: usize = 1 << 14;

/// Width of queries and keys.
const KEY: usize = KEY_MAX;

impl EnergyConfig {
    fn hidden(&self) -> usize {
        ModelConfig::default_ffn_width(self.width)
    }

    /// Tokens for each chunk that is worked on.
    fn tokens_per_chunk(model: &ModelConfig) -> usize {
        let LatentConfig { every, .. } = model.parts.latent;
        crate::ops::latent::CHUNK * every
    }
}

impl PartConfig for EnergyConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn losses(&self) -> &'static [LossKind] {
        &[LossKind::Score, LossKind::Energy]
    }

    fn requires(&self) -> &'static [&'static str] {
        &["latent"]
    }

    fn complaint(&self) -> Option<String> {
        let width = self.width;
        (!(1..=WIDTH_MAX).contains(&width))
            .then(|| format!("energy.width = {width} is out of range; it must lie between 1 and {WIDTH_MAX}"))
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let (c, w, f) = (model.width, self.width, self.hidden());
        // Four samples and four queries and pairs of keys of a chunk; one query and key of the retrieval.
        let sample = w * (c + 2 * LATENT) + 3 * w * f + KEY * (c + 2 * LATENT);
        let chunk = SAMPLES * sample + KEY * (c + LATENT);
        // The encoder again, without a way back.
        let LatentConfig { width: w, .. } = model.parts.latent;
        let encoder = 4 * (w * c + 3 * w * ModelConfig::default_ffn_width(w) + 2 * LATENT * w) / 3;
        ((chunk + encoder) / EnergyConfig::tokens_per_chunk(model)) as u64
    }

    fn held(&self, model: &ModelConfig, n: usize, storage: Storage) -> Held {
        let (c, w, f) = (model.width, self.width, self.hidden());
        // Contexts and two norms; the generator's streams and norms, gate and up and their product, with a gradient; latents; keys.
        let sample = 3 * c + 5 * w + 5 * f + 8 * LATENT + 7 * KEY;
        let rows = SAMPLES * n.div_ceil(EnergyConfig::tokens_per_chunk(model));
        // Beside what the latent keeps; in the end the gradient of the integrated state alone.
        let kept = model.parts.latent.kept_elems(model, n) + (rows * sample).max(n * c);
        let loss_words = match storage.is_narrow {
            false => kept,
            true => kept / 2 + 2 * f * w + rows * (2 * w + 2 * f),
        };
        // Gradients of draws and of what was generated wait for the end.
        Held { elems_per_token: LATENT, loss_words, ..Held::default() }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Energy {
    condition: ParamId,
    noise: ParamId,
    mlp: MlpParams,
    output: ParamId,
    query: ParamId,
    key: ParamId,
    bias: ParamId,
    retrieval: [ParamId; 2],
    eps: f64,
}

impl Energy {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &EnergyConfig, width: usize, eps: f64) -> Energy {
        let (w, f) = (config.width, config.hidden());
        let mut matrix = |name: &str, shape: [usize; 2], init: Init| {
            layout.push_init(format!("nanochat.energy.{name}.weight"), shape, Role::Matrix, init)
        };
        let condition = matrix("generator.condition", [w, width], Init::fan_in(width));
        let noise = matrix("generator.noise", [w, LATENT], Init::fan_in(LATENT));
        let gate_up = matrix("generator.gate_up", [2 * f, w], Init::fan_in(w));
        let down = matrix("generator.down", [w, f], Init::fan_in(f));
        let output = matrix("generator.output", [LATENT, w], Init::ZERO);
        let query = matrix("query", [KEY, width], Init::ZERO);
        let key = matrix("key", [KEY, LATENT], Init::fan_in(LATENT));
        let retrieval_query = matrix("retrieval.query", [KEY, width], Init::ZERO);
        let retrieval_key = matrix("retrieval.key", [KEY, LATENT], Init::fan_in(LATENT));
        let bias = layout.push_init("nanochat.energy.bias", [1, 1], Role::Table, Init::ZERO);
        let (mlp, retrieval) = (MlpParams { gate_up: Span::from(gate_up), down }, [retrieval_query, retrieval_key]);
        Energy { condition, noise, mlp, output, query, key, bias, retrieval, eps }
    }

    /// Chunks that count in the losses of these rows on the host.
    pub fn counted(&self, latent: &Latent, tokens: &[u32], t: usize, doc_start: Option<&[u32]>) -> usize {
        let chunks = latent.chunks(t);
        if chunks.per_row() == 0 { 0 } else { energy_score::counted(chunks, tokens.len(), doc_start) }
    }

    /// Samples of latents, `[R, l]`, from normed contexts `[R, C]` and noise `[R, l]`.
    fn generate(&self, tape: &mut Tape, context: &Var, noise: &Var) -> Var {
        let a = tape.linear(context, self.condition);
        let a = tape.linear_onto(noise, self.noise, Some(&a));
        let normed = tape.rmsnorm(&a, None, self.eps);
        let a = tape.mlp(normed, self.mlp, Some(&a));
        let a = tape.rmsnorm(&a, None, self.eps);
        tape.linear(&a, self.output)
    }

    /// The losses of these rows, whose integrated state is `y [B T, C]`; none where rows are too short for a chunk.
    pub fn losses(&self, tape: &mut Tape, y: &Var, rows: &Rows, latent: &Latent, scales: &LossScales) -> Vec<Loss> {
        let chunks = latent.chunks(rows.t);
        if chunks.per_row() == 0 {
            return Vec::new();
        }
        let (arena, n) = (tape.arena(), rows.tokens.elems());
        let contexts = energy_score::contexts(arena, chunks, n, rows.doc_start.as_ref());
        let h = latent.truths(tape, rows);
        let seed = scales.noise.clone().unwrap_or(Scale::Value(0.0));
        let [eps, z] = energy_score::draws(arena, &h, &seed);
        let contexts_of = tape.gather_rows(y, &contexts.rows);
        let read = |tape: &mut Tape, kind: LossKind| {
            let x = tape.scale_grad(&contexts_of, scales.of(kind).rho.clone());
            tape.rmsnorm(&x, None, self.eps)
        };
        let x = read(tape, LossKind::Score);
        let eps = tape.input(eps);
        let zhat = self.generate(tape, &x, &eps);
        let truth = Truth { h: &h, documents: &contexts.documents, noise: &seed };
        let values = tape.energy_score(&zhat, truth, scales.of(LossKind::Score).weight.clone());
        let score = Loss { kind: LossKind::Score, values };
        let x = read(tape, LossKind::Energy);
        let generated = tape.detached(|_| zhat.value().clone());
        let [true_z, generated] = [z, generated].map(|z| {
            let z = tape.input(z);
            tape.rmsnorm(&z, None, self.eps)
        });
        let losses =
            self.judge(tape, &x, [&true_z, &generated], &contexts.documents, &scales.of(LossKind::Energy).weight);
        [score].into_iter().chain(losses.map(|values| Loss { kind: LossKind::Energy, values })).collect()
    }

    /// A latent that comes after each context `y [R, C]`, `[R, l]`, from noise `[R, l]`.
    pub fn sample(&self, tape: &mut Tape, y: &Var, noise: Tensor) -> Var {
        let (context, noise) = (tape.rmsnorm(y, None, self.eps), tape.input(noise));
        self.generate(tape, &context, &noise)
    }

    /// `E` of each context `y [R, C]` with the latent `z [R, l]`.
    pub fn energies(&self, tape: &mut Tape, y: &Var, z: &Var) -> Vec<f64> {
        let keys = |tape: &mut Tape, x: &Var, weight: ParamId| {
            let x = tape.rmsnorm(x, None, self.eps);
            tape.linear(&x, weight).value().to_f64()
        };
        let (q, k) = (keys(tape, y, self.query), keys(tape, z, self.key));
        let [bias] = tape.params().view(self.bias).to_f64()[..] else { panic!("one bias") };
        let energy =
            |(q, k): (&[f64], &[f64])| -q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (KEY as f64).sqrt() - bias;
        q.chunks(KEY).zip(k.chunks(KEY)).map(energy).collect()
    }

    /// The losses of both scores of normed contexts `x [R, C]` with normed latents, true and generated, `[R, l]`.
    fn judge(
        &self,
        tape: &mut Tape,
        x: &Var,
        [z, generated]: [&Var; 2],
        documents: &Tensor,
        weight: &Scale,
    ) -> [Tensor; 2] {
        let r = x.value().shape().rows_cols()[0];
        let q = tape.linear(x, self.query);
        let [good, bad] = [z, generated].map(|z| tape.linear(z, self.key));
        let zeros = Tensor::zeros(tape.arena(), [r], DType::U32);
        let bias = tape.embedding(self.bias, &zeros);
        let pair = Pair { q: &q, good: &good, bad: &bad, bias: &bias };
        let contrast = tape.energy_contrast(pair, documents, 1.0 / SAMPLES as f64, weight.clone());
        // One of a chunk's four rows.
        let firsts = Stride { t: r, first: 0, every: SAMPLES };
        let [query, key] = self.retrieval;
        let (x, z) = (tape.select_rows(x, firsts), tape.select_rows(z, firsts));
        let (q, k) = (tape.linear(&x, query), tape.linear(&z, key));
        [contrast, tape.energy_retrieve(&q, &k, documents, weight.clone())]
    }
}
