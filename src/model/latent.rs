//! The continuous latent: an autoencoder of chunks of 4 tokens beside the trunk, which it never moves.
//!
//! Chunks are counted from the start of their document; every fourth slot is worked on. `e_i = sg(E[x_i])`, some dropped in training:
//!
//! ```text
//! a_i = A n(e_i)                a_i += mlp(n(a_i))           4 rows of width w
//! (mu, log sigma) = B n([a_1 .. a_4])                        l = 64 each
//! z = mu + sigma eps            some dropped in training     z = mu in evaluation
//! [g_1 .. g_4] = D z            g_i += mlp(n(g_i))           4 rows of width w
//! logits_i = U n(g_i)           U: V x w, begins at zero
//! L_rec = mean cross-entropy of the tokens + 1e-3 mean over chunks of sum_i max(KL_i, 0.5)
//! ```
//!
//! (CALM, arXiv 2510.27688.) Bits per token and the share of tokens that come back are reported by evaluations.

use super::ModelConfig;
use super::gpt::Rows;
use super::losses::{Loss, LossKind, LossScale};
use super::parts::{Held, PartConfig, Storage};
use crate::ops::latent::{CHUNK, Chunks, Gathered, Options};
use crate::ops::lm_loss::{Report, chunk_rows};
use crate::tape::{HeadOperands, Measure, MlpParams, Note, Tape, Var};
use crate::tensor::{Init, Layout, ParamId, Role, Scale, Span, Tensor};
use serde::{Deserialize, Serialize};

/// `[latent]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatentConfig {
    pub enabled: bool,
    /// Width of encoder and decoder, `w`.
    pub width: usize,
    /// Slots from one chunk that is worked on to the next.
    pub every: usize,
    /// Share of tokens, and of latents, that are dropped in training.
    pub dropout: f64,
}

impl Default for LatentConfig {
    fn default() -> LatentConfig {
        LatentConfig { enabled: false, width: 256, every: 4, dropout: 0.15 }
    }
}

/// Width of a latent.
pub const LATENT: usize = 64;

/// Widest encoder, and most slots from one chunk to the next.
const WIDTH_MAX: usize = 1 << 14;
const EVERY_MAX: usize = 1 << 10;

/// Of the divergence in the loss, and the least that a latent's counts, in nats.
const KL_WEIGHT: f64 = 1e-3;
const KL_FLOOR: f64 = 0.5;

impl LatentConfig {
    /// Width of a layer's hidden part.
    pub fn hidden(&self) -> usize {
        ModelConfig::default_ffn_width(self.width)
    }

    /// Elements that backward needs of a micro-batch of `n` tokens, with the gradients of one stream and of a hidden part.
    pub fn kept_elems(&self, model: &ModelConfig, n: usize) -> usize {
        let (w, f) = (self.width, self.hidden());
        // Embedding and norm; of each layer the stream, its norm, the sum and that one's norm, gate and up and their product.
        n.div_ceil(self.every) * (2 * model.width + 10 * w + 7 * f + 2 * LATENT)
    }
}

impl PartConfig for LatentConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn losses(&self) -> &'static [LossKind] {
        &[LossKind::Reconstruction]
    }

    fn complaint(&self) -> Option<String> {
        let bad = [("width", self.width, WIDTH_MAX), ("every", self.every, EVERY_MAX)];
        if let Some((key, value, most)) = bad.into_iter().find(|&(_, value, most)| value == 0 || value > most) {
            return Some(format!("latent.{key} = {value} is out of range; it must lie between 1 and {most}"));
        }
        let dropout = self.dropout;
        (!(0.0..=0.9).contains(&dropout))
            .then(|| format!("latent.dropout = {dropout} is out of range; it must lie between 0 and 0.9"))
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let (w, f) = (self.width, self.hidden());
        // Into the encoder, two layers, to and from the latent, the vocabulary.
        let token = w * model.width + 2 * 3 * w * f + 3 * LATENT * w + model.vocab_size * w;
        (token / self.every) as u64
    }

    fn held(&self, model: &ModelConfig, n: usize, storage: Storage) -> Held {
        let (w, f, v) = (self.width, self.hidden(), model.vocab_size);
        let m = n.div_ceil(self.every);
        let (kept, logits) = (self.kept_elems(model, n), chunk_rows(v, storage.on_gpu).min(m) * v);
        let loss_words = match storage.is_narrow {
            false => kept + logits,
            // Half as wide, but either the vocabulary is widened, and gradients stand beside the logits, or a layer is widened.
            true => kept / 2 + (logits + logits / 2 + v * w).max(2 * f * w + m * (2 * w + 2 * f)),
        };
        // The gradient of what was embedded waits for the end.
        Held { elems_per_token: model.width.div_ceil(self.every), loss_words, ..Held::default() }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Latent {
    config: LatentConfig,
    embedding: ParamId,
    encoder: Layers,
    decoder: Layers,
    head: ParamId,
    eps: f64,
}

/// The way in, a residual feed-forward layer, and, of the encoder, the way out.
#[derive(Clone, Copy, Debug)]
struct Layers {
    input: ParamId,
    mlp: MlpParams,
    output: Option<ParamId>,
}

impl Latent {
    /// Adds the parameters; `embedding` is the trunk's table of the model.
    pub fn new(layout: &mut Layout, config: &LatentConfig, model: &ModelConfig, embedding: ParamId) -> Latent {
        let (c, w, f) = (model.width, config.width, config.hidden());
        let mut push = |name: &str, shape: [usize; 2], role: Role, init: Init| {
            layout.push_init(format!("nanochat.latent.{name}.weight"), shape, role, init)
        };
        let mut layers = |side: &str, [rows, cols]: [usize; 2], output: Option<[usize; 2]>| {
            let mut matrix = |name: &str, shape: [usize; 2]| {
                push(&format!("{side}.{name}"), shape, Role::Matrix, Init::fan_in(shape[1]))
            };
            let input = matrix("input", [rows, cols]);
            let (gate_up, down) = (matrix("gate_up", [2 * f, w]), matrix("down", [w, f]));
            let mlp = MlpParams { gate_up: Span::from(gate_up), down };
            Layers { input, mlp, output: output.map(|shape| matrix("output", shape)) }
        };
        let encoder = layers("encoder", [w, c], Some([2 * LATENT, CHUNK * w]));
        let decoder = layers("decoder", [CHUNK * w, LATENT], None);
        let head = push("decoder.head", [model.vocab_size, w], Role::Head, Init::ZERO);
        Latent { config: config.clone(), embedding, encoder, decoder, head, eps: model.norm_eps }
    }

    /// The chunks that are worked on, of rows of `t` tokens: the first is in the middle of the first stride.
    pub fn chunks(&self, t: usize) -> Chunks {
        let every = self.config.every;
        Chunks { t, first: every / 2, every }
    }

    /// Tokens that count in the loss of these rows on the host.
    pub fn counted(&self, tokens: &[u32], t: usize, doc_start: Option<&[u32]>) -> usize {
        let chunks = self.chunks(t);
        if chunks.per_row() == 0 { 0 } else { CHUNK * chunks.counted(tokens.len(), doc_start) }
    }

    /// `x + mlp(n(x))`, and its norm.
    fn layer(&self, tape: &mut Tape, x: Var, mlp: MlpParams) -> Var {
        let normed = tape.rmsnorm(&x, None, self.eps);
        let x = tape.mlp(normed, mlp, Some(&x));
        tape.rmsnorm(&x, None, self.eps)
    }

    /// `mu` and `log sigma` of each chunk, `[M, 2 l]`; tokens that are not kept are not seen.
    fn encode(&self, tape: &mut Tape, gathered: &Gathered) -> Var {
        let m = gathered.tokens.dims::<2>()[0];
        let rows = gathered.tokens.reshape([m * CHUNK]);
        let e = tape.detached(|tape| tape.embedding(self.embedding, &rows).value().clone());
        let x = tape.input(e);
        let x = tape.rmsnorm(&x, None, self.eps);
        let x = tape.linear(&x, self.encoder.input);
        let x = tape.mask_rows(&x, &gathered.kept);
        let x = self.layer(tape, x, self.encoder.mlp);
        let x = tape.reshape(x, [m, CHUNK * self.config.width]);
        tape.linear(&x, self.encoder.output.expect("the encoder's way out"))
    }

    /// `mu` and `log sigma` of each chunk, `[M, 2 l]`, every token seen; they take no gradient.
    pub fn truths(&self, tape: &mut Tape, rows: &Rows) -> Tensor {
        let gathered = self.chunks(rows.t).gather(tape.arena(), &rows.tokens, rows.doc_start.as_ref(), None, 0.0);
        tape.detached(|tape| self.encode(tape, &gathered).value().clone())
    }

    /// `mu` of each chunk of `chunks [M, 4]`, `[M, l]`, every token seen.
    pub fn means(&self, tape: &mut Tape, chunks: &[u32]) -> Var {
        let m = chunks.len() / CHUNK;
        let tokens = Tensor::from_slice(tape.arena(), [m, CHUNK], chunks);
        let gathered = Gathered { targets: tokens.clone(), kept: tokens.clone(), tokens };
        let h = self.encode(tape, &gathered).value().to_f64();
        let mu: Vec<f64> = h.chunks(2 * LATENT).flat_map(|h| h[..LATENT].to_vec()).collect();
        let mu = Tensor::from_f64(tape.arena(), [m, LATENT], tape.params().dtype(), &mu);
        tape.input(mu)
    }

    /// Logits of each token of the chunks that latents `[M, l]` stand for, `[4 M, V]`.
    pub fn logits(&self, tape: &mut Tape, z: &Var) -> Tensor {
        let x = self.decode(tape, z);
        tape.linear(&x, self.head).value().clone()
    }

    /// The stream of each of a chunk's tokens, `[4 M, w]`, from its latent.
    fn decode(&self, tape: &mut Tape, z: &Var) -> Var {
        let m = z.value().shape().rows_cols()[0];
        let x = tape.linear(z, self.decoder.input);
        let x = tape.reshape(x, [m * CHUNK, self.config.width]);
        self.layer(tape, x, self.decoder.mlp)
    }

    /// The loss of these rows, in two: of the tokens, and of the latents' divergence; none where rows are too short for a chunk. With
    /// `noise` tokens and latents are dropped and latents drawn.
    pub fn loss(&self, tape: &mut Tape, rows: &Rows, noise: Option<&Scale>, scale: &LossScale) -> Vec<Loss> {
        let (chunks, kind) = (self.chunks(rows.t), LossKind::Reconstruction);
        if chunks.per_row() == 0 {
            return Vec::new();
        }
        let rate = self.config.dropout;
        let gathered = chunks.gather(tape.arena(), &rows.tokens, rows.doc_start.as_ref(), noise, rate);
        let h = self.encode(tape, &gathered);
        // Each loss is divided by the number of tokens, of which a chunk has four.
        let options = Options { rate, floor: KL_FLOOR, weight: CHUNK as f64 * KL_WEIGHT };
        let (z, kl) = tape.latent_sample(&h, &gathered.targets, noise, options, scale.weight.clone());
        let x = self.decode(tape, &z);
        drop((h, z));
        let targets = gathered.targets.reshape([gathered.targets.elems()]);
        let head = HeadOperands { x: &x, weight: self.head, low_rank: None, softcap: None };
        let (losses, errors) = tape.judged_loss(head, &targets, scale.weight.clone(), Report::LossesAndErrors);
        let note = |name, values, measure| Note { name, values, of: kind.index(), measure };
        tape.note(|| note("latent.bits", losses.clone(), Measure::Bits));
        tape.note(|| note("latent.accuracy", errors.expect("asked for"), Measure::Accuracy));
        vec![Loss { kind, values: losses }, Loss { kind, values: kl }]
    }
}
