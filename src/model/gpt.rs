//! The GPT: embedding, blocks in three stages, final norm, LM head; its parameter layout and initial values.
//!
//! `h_0 = E[x]`, `h_{l+1} = block_l(h_l)`, `logits = cap(W_lm n(y))`, `y` the last stream, or the blend of three. Tied models use
//! `E` as `W_lm`.

mod look;
mod trunk;

use super::abacus::Abacus;
use super::block::{Block, Stream};
use super::carried::Carried;
use super::concept::Concept;
use super::digits::Digits;
use super::energy::Energy;
use super::hypercube::{Coded, Hypercube};
use super::latent::Latent;
use super::losses::{LOSSES, Loss, LossKind, LossScales};
use super::memetic::Memetic;
use super::memory::Memory;
use super::psyche::{Blended, Psyche};
use super::self_model::{Seen, SelfModel};
use super::{Cached, KvCache, ModelConfig};
use crate::data::Batch;
use crate::data::statistics::Statistics;
use crate::device::Device;
use crate::error::UserError;
use crate::ops::lm_loss::{IGNORE, Report};
use crate::ops::rope::{Table, frequencies};
use crate::ops::{embedding, linear};
use crate::tape::{HeadOperands, Tape, Var};
use crate::tensor::random::Philox;
use crate::tensor::{Arena, DType, Init, Layout, ParamId, Params, Role, Scale, Tensor};
pub use look::{LOGIT_ROWS, Look, log_sum};
use std::sync::Arc;
use trunk::{Trunk, TrunkEnd};

/// A model: what its parameters are and how they are used. The values are in [`Params`].
#[derive(Clone)]
pub struct Gpt {
    config: Arc<ModelConfig>,
    layout: Arc<Layout>,
    embedding: ParamId,
    blocks: Vec<Block>,
    final_gain: ParamId,
    head: ParamId,
    psyche: Option<Psyche>,
    concept: Option<Concept>,
    hypercube: Option<Hypercube>,
    memetic: Option<Memetic>,
    self_model: Option<SelfModel>,
    latent: Option<Latent>,
    abacus: Option<Abacus>,
    memory: Option<Memory>,
    energy: Option<Energy>,
    digits: Option<Digits>,
    table: Table,
}

/// Tokens of a forward pass over whole rows.
#[derive(Clone, Debug)]
pub struct Rows {
    /// `[B T]`.
    pub tokens: Tensor,
    /// `T`.
    pub t: usize,
    /// `[B T]`: where in its row each token's document begins; used where the model masks documents.
    pub doc_start: Option<Tensor>,
    /// `[B T]` u32: 1 where a document begins, none where that is not known. The first token of a row may go on with the last
    /// one of another.
    pub starts: Option<Tensor>,
    /// Rows that go on with each other, one behind the other: segments of a stream. 1 where each stands alone.
    pub segments: usize,
    /// `[B T]` u32: the rows of the digits' table, of a training batch; found from the tokens where there are none.
    pub places: Option<Tensor>,
}

impl Rows {
    /// Rows of `t` tokens each, none of which goes on with another, brought to the device of `arena`.
    pub fn new(arena: &Arena, tokens: &[u32], t: usize, doc_start: Option<&[u32]>) -> Rows {
        let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
        let starts = |(i, &start): (usize, &u32)| u32::from(start as usize == i % t);
        let starts = doc_start.map(|doc_start| ids(&doc_start.iter().enumerate().map(starts).collect::<Vec<u32>>()));
        Rows { tokens: ids(tokens), t, doc_start: doc_start.map(ids), starts, segments: 1, places: None }
    }

    /// The rows of a batch.
    pub fn of(arena: &Arena, batch: &Batch) -> Rows {
        let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
        let Batch { tokens, seq_len: t, doc_start, begins, segments, .. } = batch;
        let [doc_start, starts] = [doc_start, begins].map(|values| Some(ids(values)));
        Rows { tokens: ids(tokens), t: *t, doc_start, starts, segments: *segments, places: None }
    }
}

/// Whether backward recomputes each block instead of having its activations saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Recompute {
    #[default]
    Nothing,
    Blocks,
}

impl Gpt {
    /// The model of `config`, to be computed in `dtype`.
    ///
    /// # Errors
    /// What [`ModelConfig::validate`] refuses.
    pub fn new(config: ModelConfig, dtype: DType) -> Result<Gpt, UserError> {
        config.validate()?;
        let mut layout = Layout::default();
        let (c, v) = (config.width, config.vocab_size);
        let scale = if config.tie_embeddings { 1.0 / c as f64 } else { 1.0 };
        let embedding = layout.push_init("model.embed_tokens.weight", [v, c], Role::Embedding, Init::Normal(scale));
        let blocks = (0..config.layers).map(|layer| Block::new(&mut layout, &config, layer)).collect();
        let final_gain = layout.push_init("model.norm.weight", [c], Role::Gain, Init::Constant(1.0));
        let head = match config.tie_embeddings {
            true => embedding,
            false => layout.push_init("lm_head.weight", [v, c], Role::Head, Init::Normal(0.001)),
        };
        let parts = &config.parts;
        let psyche = (parts.psyche.enabled).then(|| Psyche::new(&mut layout, &parts.psyche, c, config.norm_eps));
        let concept = (parts.concept.enabled).then(|| Concept::new(&mut layout, &parts.concept, c, config.norm_eps));
        let hypercube =
            (parts.hypercube.enabled).then(|| Hypercube::new(&mut layout, &parts.hypercube, c, config.norm_eps));
        let memetic = (parts.memetic.enabled).then(|| Memetic::new(&mut layout, &parts.memetic, c, config.norm_eps));
        let self_model =
            (parts.self_model.enabled).then(|| SelfModel::new(&mut layout, &parts.self_model, c, config.norm_eps));
        let latent = (parts.latent.enabled).then(|| Latent::new(&mut layout, &parts.latent, &config, embedding));
        let abacus = (parts.abacus.enabled).then(|| Abacus::new(&mut layout, &parts.abacus, c, config.norm_eps));
        let memory = (parts.memory.enabled).then(|| Memory::new(&mut layout, &parts.memory, c, config.norm_eps));
        let energy = (parts.energy.enabled).then(|| Energy::new(&mut layout, &parts.energy, c, config.norm_eps));
        let digits = (parts.digits.enabled).then(|| Digits::new(&mut layout, c));
        let frequencies = match config.has_kda() {
            // Angles of 0: positions are not turned.
            true => vec![0.0; config.head_dim / 2],
            false => frequencies(config.head_dim, config.rope_theta, config.rope_scaling),
        };
        let table = Table::new(config.max_seq_len, &frequencies, dtype.accumulator());
        let (config, layout) = (Arc::new(config), Arc::new(layout));
        Ok(Gpt {
            config,
            layout,
            embedding,
            blocks,
            final_gain,
            head,
            psyche,
            concept,
            hypercube,
            memetic,
            self_model,
            latent,
            abacus,
            memory,
            energy,
            digits,
            table,
        })
    }

    /// This model on `device`: its position table moves, its parameters are apart.
    pub fn to(&self, device: Device) -> Gpt {
        Gpt { table: self.table.to(device), ..self.clone() }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and places of the parameters.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Elements of the trunk, which come first: the token table and the blocks.
    pub fn trunk_elems(&self) -> usize {
        self.layout.entry(self.final_gain).offset_elems
    }

    /// The token table.
    pub fn embedding(&self) -> ParamId {
        self.embedding
    }

    /// The parameter that makes logits.
    pub fn head(&self) -> ParamId {
        self.head
    }

    /// Initial values: embeddings `N(0, 1)` untied, `N(0, 1/C)` tied; `U(+-sqrt(3/C))` for q, k, v, gate and up; zero for
    /// the two output matrices of a block and for the last matrix of each part; head `N(0, 0.001)`; gains 1. Each parameter
    /// draws from a stream of its own name, so adding one changes no other.
    pub fn init(&self, dtype: DType, seed: u64) -> Params {
        let mut params = Params::zeros(self.layout.clone(), dtype);
        for (i, entry) in self.layout.entries().iter().enumerate() {
            let stream = Philox::new(seed, &entry.name);
            let value: Box<dyn Fn(u64) -> f64> = match entry.init {
                Init::Constant(0.0) => continue,
                Init::Constant(value) => Box::new(move |_| value),
                Init::Normal(deviation) => Box::new(move |i| stream.normal(i) * deviation),
                Init::Uniform(bound) => Box::new(move |i| (2.0 * stream.uniform(i) - 1.0) * bound),
                Init::HalfLives { shortest, longest } => {
                    let n = entry.shape.elems();
                    Box::new(move |i| Init::half_life_offset(shortest, longest, i, n))
                }
            };
            let mut target = params.master_entry_mut(ParamId(i as u32));
            crate::for_float!(dtype.accumulator(), F => {
                use crate::tensor::Float as _;
                for (i, x) in target.as_mut_slice::<F>().iter_mut().enumerate() {
                    *x = F::from_f64(value(i as u64));
                }
            });
        }
        params.round();
        params
    }

    /// This model with a constant added to the scores of Id, Ego and Superego; as it is where it has no controller.
    pub fn leaning(&self, lean: [f64; 3]) -> Gpt {
        Gpt { psyche: self.psyche.as_ref().map(|psyche| psyche.leaning(lean)), ..self.clone() }
    }

    /// What the head reads, and the weights of the stages where there is a controller.
    fn integrate(&self, tape: &mut Tape, end: TrunkEnd) -> Integrated {
        match (end, &self.psyche) {
            (TrunkEnd::Early { blended, .. }, _) => blended.into(),
            (TrunkEnd::Stages([id, ego, superego]), Some(psyche)) => {
                psyche.forward(tape, [&id, &ego, &superego], self.final_gain).into()
            }
            (TrunkEnd::Stages([.., superego]), None) => self.integrate(tape, TrunkEnd::Plain(Stream::new(superego))),
            (TrunkEnd::Plain(stream), _) => {
                let (y, x) = stream.norm(tape, self.final_gain, self.config.norm_eps);
                Integrated { y, x, psyche: None }
            }
        }
    }

    /// Cross-entropy of every token, `[B T]` in nats (0 where the target is ignored); each counts by `grad_scale` in the
    /// total loss when the tape records.
    pub fn loss(
        &self,
        tape: &mut Tape,
        rows: &Rows,
        targets: &Tensor,
        grad_scale: impl Into<Scale>,
        recompute: Recompute,
    ) -> Tensor {
        let trunk = self.trunk_of_rows(tape, rows, recompute, &mut Carried::default());
        let Integrated { y, x, .. } = self.integrate(tape, trunk.end);
        let feedback = self.feedback(tape, &y);
        tape.lm_loss(self.head_operands(&x, &feedback), targets, grad_scale)
    }

    /// Every loss that the model has, the language model's first; each counts as `scales` say when the tape records. The rows go on from
    /// what is carried, and what is carried goes on from them.
    pub fn losses(
        &self,
        tape: &mut Tape,
        rows: &Rows,
        targets: &Tensor,
        scales: &LossScales,
        recompute: Recompute,
        carried: &mut Carried,
    ) -> Vec<Loss> {
        let Trunk { end, coded } = self.trunk_of_rows(tape, rows, recompute, carried);
        let observed = self.self_model.as_ref().zip(end.deeper_stages());
        let Integrated { y, x, .. } = self.integrate(tape, end);
        let lm = scales.of(LossKind::Lm).weight.clone();
        let report = if observed.is_some() { Report::LossesAndErrors } else { Report::Losses };
        let feedback = self.feedback(tape, &y);
        let (values, errors) = tape.judged_loss(self.head_operands(&x, &feedback), targets, lm, report);
        drop((x, feedback));
        let of_self = observed.zip(errors).map(|((self_model, [ego, superego]), errors)| {
            let seen = Seen { superego: &superego, losses: &values, errors: &errors, targets };
            self_model.loss(tape, &ego, seen, scales.of(LossKind::SelfModel))
        });
        let concept = self.concept.as_ref();
        let concept = concept.and_then(|concept| concept.loss(tape, &y, rows, scales.of(LossKind::Concept)));
        let scale = scales.of(LossKind::Reconstruction);
        let latent = self.latent.iter().flat_map(|latent| latent.loss(tape, rows, scales.noise.as_ref(), scale));
        let latent: Vec<Loss> = latent.collect();
        let foretold = self.energy.as_ref().zip(self.latent.as_ref());
        let energy = foretold.map_or(vec![], |(energy, latent)| energy.losses(tape, &y, rows, latent, scales));
        let coded = self.hypercube.as_ref().zip(coded.as_ref());
        let entropy = coded.map(|(hypercube, coded)| hypercube.loss(tape, coded, scales));
        [Some(Loss { kind: LossKind::Lm, values }), concept, entropy, of_self]
            .into_iter()
            .flatten()
            .chain(latent)
            .chain(energy)
            .collect()
    }

    /// The number of values of each loss that count, over rows of `t` tokens on the host.
    pub fn counts(&self, tokens: &[u32], targets: &[u32], t: usize, doc_start: Option<&[u32]>) -> [usize; LOSSES] {
        let mut counts = [0; LOSSES];
        counts[LossKind::Lm.index()] = targets.iter().filter(|&&target| target != IGNORE).count();
        counts[LossKind::Concept.index()] =
            self.concept.as_ref().map_or(0, |concept| concept.counted(tokens, t, doc_start));
        // A mean already: one for the rows together.
        counts[LossKind::Entropy.index()] = usize::from(self.hypercube.is_some());
        if self.self_model.is_some() {
            counts[LossKind::SelfModel.index()] = counts[LossKind::Lm.index()];
        }
        counts[LossKind::Reconstruction.index()] =
            self.latent.as_ref().map_or(0, |latent| latent.counted(tokens, t, doc_start));
        let foretold = self.energy.as_ref().zip(self.latent.as_ref());
        let foretold = foretold.map_or(0, |(energy, latent)| energy.counted(latent, tokens, t, doc_start));
        counts[LossKind::Score.index()] = foretold;
        counts[LossKind::Energy.index()] = foretold;
        counts
    }

    /// Its memes, where it has any.
    pub fn memetic(&self) -> Option<&Memetic> {
        self.memetic.as_ref()
    }

    /// The matrix that makes the keys of what a memory holds, of a model that has one: that of the long-term memory, which is never
    /// learnt, or of the state memory.
    pub fn memory_key(&self) -> Option<ParamId> {
        self.memory.as_ref().map(Memory::key).or_else(|| self.abacus.as_ref().map(Abacus::key))
    }

    /// The losses that the model has.
    pub fn loss_kinds(&self) -> Vec<LossKind> {
        let concept = self.concept.as_ref().map(|_| LossKind::Concept);
        let entropy = self.hypercube.as_ref().map(|_| LossKind::Entropy);
        let of_self = self.self_model.as_ref().map(|_| LossKind::SelfModel);
        let latent = self.latent.as_ref().map(|_| LossKind::Reconstruction);
        let energy = self.energy.iter().flat_map(|_| [LossKind::Score, LossKind::Energy]);
        [Some(LossKind::Lm), concept, entropy, of_self, latent].into_iter().flatten().chain(energy).collect()
    }

    /// Whether something in it is counted in the training data before a run begins.
    pub fn wants_statistics(&self) -> bool {
        self.concept.is_some()
    }

    /// Fills in what is counted in the training data.
    pub fn count(&self, params: &mut Params, statistics: &Statistics) {
        if let Some(concept) = &self.concept {
            concept.count(params, statistics);
        }
        params.round();
    }

    /// Logits of every token of whole rows, `[B T, V]`: for small inputs, since all of them are in memory.
    pub fn logits(&self, tape: &mut Tape, rows: &Rows) -> Tensor {
        self.output(tape, rows, &mut Carried::default()).logits
    }

    /// Logits of every token of whole rows, and what the parts say of each. The rows go on from what is carried, and what is carried
    /// goes on from them.
    pub fn output(&self, tape: &mut Tape, rows: &Rows, carried: &mut Carried) -> Output {
        let Trunk { end, coded } = self.trunk_of_rows(tape, rows, Recompute::Nothing, carried);
        self.head_output(tape, end, coded.map(|coded| coded.code))
    }

    /// Appends tokens to a cached sequence; the logits `[V]` of what follows the last of them.
    ///
    /// # Panics
    /// If there is no token, or the cache or the position table is too short.
    pub fn next_logits(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Tensor {
        self.next(tape, tokens, cache).logits.view(0, [self.config.vocab_size])
    }

    /// As [`Gpt::next_logits`], with what the parts say of the last token: one row each.
    ///
    /// # Panics
    /// As [`Gpt::next_logits`].
    pub fn next(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Output {
        let mut tokens = tokens;
        while cache.piece(tokens.len()) < tokens.len() {
            let (piece, rest) = tokens.split_at(cache.piece(tokens.len()));
            self.trunk_cached(tape, &mut cache.advance(tape.arena(), piece));
            tokens = rest;
        }
        self.next_of(tape, &mut cache.advance(tape.arena(), tokens), &[tokens.len() - 1])
    }

    /// Appends tokens to cached sequences, each inside a segment of its long-term memory if it has one; what the model says at `rows` of
    /// the pass, one row each.
    ///
    /// # Panics
    /// If there is no row, or the position table is too short.
    pub fn next_of(&self, tape: &mut Tape, cached: &mut Cached, rows: &[usize]) -> Output {
        let trunk = self.trunk_cached(tape, cached);
        let rows = match trunk.end {
            TrunkEnd::Early { .. } => None,
            _ => Some(Selection::new(tape.arena(), rows, cached.placement.rows())),
        };
        let select = |tape: &mut Tape, h: &Var| {
            let selected = rows.as_ref().expect("not of an early end").of(tape.arena(), h.value());
            tape.input(selected)
        };
        let end = match trunk.end {
            early @ TrunkEnd::Early { .. } => early,
            TrunkEnd::Stages(streams) => TrunkEnd::Stages(streams.map(|h| select(tape, &h))),
            TrunkEnd::Plain(stream) => {
                let h = stream.settle(tape);
                TrunkEnd::Plain(Stream::new(select(tape, &h)))
            }
        };
        let coded = trunk.coded.map(|Coded { code, .. }| match &rows {
            Some(rows) => rows.of(tape.arena(), &code),
            None => code,
        });
        self.head_output(tape, end, coded)
    }

    /// Appends tokens to cached sequences of which nothing is wanted yet.
    ///
    /// # Panics
    /// If the position table is too short.
    pub fn pass(&self, tape: &mut Tape, cached: &mut Cached) {
        self.trunk_cached(tape, cached);
    }

    /// Logits `[t, V]` of the next tokens of a cached sequence: for small inputs, since they go through the host.
    ///
    /// # Panics
    /// If the cache or the position table is too short.
    pub fn logits_cached(&self, tape: &mut Tape, tokens: &[u32], cache: &mut KvCache) -> Tensor {
        let (v, mut at) = (self.config.vocab_size, 0);
        let mut logits = Tensor::uninit(tape.arena(), [tokens.len(), v], tape.params().dtype());
        while at < tokens.len() {
            let t = cache.piece(tokens.len() - at);
            let trunk = self.trunk_cached(tape, &mut cache.advance(tape.arena(), &tokens[at..at + t]));
            let piece = self.head_output(tape, trunk.end, None).logits;
            logits.view_mut(at * v, [t, v]).copy_from_f64(&piece.to_f64());
            at += t;
        }
        logits
    }

    fn head_output(&self, tape: &mut Tape, end: TrunkEnd, code: Option<Tensor>) -> Output {
        let is_early = matches!(end, TrunkEnd::Early { .. });
        let observed = self.self_model.as_ref().zip(end.deeper_stages());
        let said = observed.map(|(self_model, [ego, _])| self_model.forward(tape, &ego).value().clone());
        let Integrated { y, x, psyche } = self.integrate(tape, end);
        Output { logits: self.head_logits(tape, &y, &x), psyche, code, said, is_early }
    }

    /// What the concept head adds to the logits of states `y [N, C]`, where it does: `[N, r]`, and the table of the other factor.
    fn feedback(&self, tape: &mut Tape, y: &Var) -> Option<(Var, ParamId)> {
        self.concept.as_ref().and_then(|concept| concept.feedback(tape, y))
    }

    fn head_operands<'a>(&self, x: &'a Var, feedback: &'a Option<(Var, ParamId)>) -> HeadOperands<'a> {
        let low_rank = feedback.as_ref().map(|(x, codes)| (x, *codes));
        HeadOperands { x, weight: self.head, low_rank, softcap: self.config.softcap() }
    }

    /// Logits `[N, V]` of states `y [N, C]`, whose norm is `x`; they take no gradient.
    fn head_logits(&self, tape: &mut Tape, y: &Var, x: &Var) -> Tensor {
        let mut logits = tape.linear(x, self.head);
        if let Some((x, codes)) = self.feedback(tape, y) {
            let codes = tape.params().first_rows(codes, self.config.vocab_size);
            let sum = linear::forward_by(tape.arena(), x.value(), &tape.weight_of(codes), Some(logits.value()));
            logits = tape.input(sum);
        }
        match self.config.softcap() {
            Some(cap) => tape.softcap(logits, cap).value().clone(),
            None => logits.value().clone(),
        }
    }
}

/// Rows of a pass that something is wanted of.
enum Selection {
    All,
    One(usize),
    /// Their numbers, u32.
    Several(Tensor),
}

impl Selection {
    /// Of a pass of `n` rows.
    fn new(arena: &Arena, rows: &[usize], n: usize) -> Selection {
        match *rows {
            _ if rows.iter().copied().eq(0..n) => Selection::All,
            [row] => Selection::One(row),
            _ => {
                let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
                Selection::Several(Tensor::from_slice(arena, [rows.len()], &rows))
            }
        }
    }

    /// These rows of `x`.
    fn of(&self, arena: &Arena, x: &Tensor) -> Tensor {
        let [_, cols] = x.shape().rows_cols();
        match self {
            Selection::All => x.clone(),
            Selection::One(row) => x.view(row * cols, [1, cols]),
            Selection::Several(rows) => embedding::forward(arena, x, rows),
        }
    }
}

/// What the head reads.
struct Integrated {
    y: Var,
    /// The norm of `y`.
    x: Var,
    psyche: Option<Tensor>,
}

impl From<Blended> for Integrated {
    fn from(blended: Blended) -> Integrated {
        Integrated { y: blended.y, x: blended.x, psyche: Some(blended.weights) }
    }
}

/// What a model says of `N` tokens.
pub struct Output {
    /// `[N, V]`.
    pub logits: Tensor,
    /// `[N, 3]`: weights of Id, Ego and Superego, where there is a controller.
    pub psyche: Option<Tensor>,
    /// `[N, K]`: the vertex of each token, where there is a hypercube.
    pub code: Option<Tensor>,
    /// `[N, 66]`: what the self-model says of each token, where there is one and the pass reached Ego
    /// ([`introspections`](super::self_model::introspections)).
    pub said: Option<Tensor>,
    /// The pass ended after Id.
    pub is_early: bool,
}

/// Sum of losses `[N]` in f64.
pub fn sum_losses(losses: &Tensor) -> f64 {
    losses.to_f64().iter().sum()
}
