//! The concept head: from every eighth token, the bag of concepts that come soon.
//!
//! `logits = b + U P n(y~)`: `P` begins at zero, so the head begins at the unigram `b`, which is counted in the training data and
//! fixed, as `idf` is. Codes `U` are learnt rows, or fixed vertices of a hypercube over `sqrt(K)`, laid out once so that tokens with alike
//! neighbours in the training data share bits. A token's concept is its id modulo the number of concepts. The head reads the
//! integrated state with its gradient scaled by rho. Nothing reads the head, unless `concept.feedback` is on: then the logits of the next token
//! have `gamma U P n(y)` in them, `gamma` a number that begins at 0, and `y` gets the gradient of the language model in full.

use super::ModelConfig;
use super::gpt::Rows;
use super::hypercube::geometry::{bisect, to_bits};
use super::losses::{Loss, LossKind, LossScale};
use super::parts::{Held, PartConfig, Storage};
use crate::data::statistics::Statistics;
use crate::ops::concept_loss::{WINDOW_MAX, Windows};
use crate::ops::hypercube::BITS_MAX;
use crate::ops::lm_loss::chunk_rows;
use crate::ops::select_rows::Stride;
use crate::tape::{ConceptParams, Tape, Var};
use crate::tensor::random::Philox;
use crate::tensor::{Init, Layout, ParamId, Params, Role};
use serde::{Deserialize, Serialize};

/// `[concept]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConceptConfig {
    pub enabled: bool,
    /// Number of concepts.
    pub count: usize,
    pub codes: ConceptCodes,
    /// Width of a learnt code.
    pub rank: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one prediction to the next.
    pub every: usize,
    /// Whether the scores of concepts add to the logits of the next token, by a factor that is learnt.
    pub feedback: bool,
}

impl Default for ConceptConfig {
    fn default() -> ConceptConfig {
        ConceptConfig {
            enabled: false,
            count: 50_257,
            codes: ConceptCodes::Learned,
            rank: 64,
            window: 16,
            every: 8,
            feedback: false,
        }
    }
}

/// What a concept's code is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConceptCodes {
    Learned,
    /// A fixed vertex of 16 bits.
    Hypercube,
}

/// Most concepts, and widest codes.
pub const CONCEPTS_MAX: usize = 1 << 20;
const RANK_MAX: usize = 1024;

impl ConceptConfig {
    /// Width of a code.
    pub fn code_width(&self) -> usize {
        match self.codes {
            ConceptCodes::Learned => self.rank,
            ConceptCodes::Hypercube => BITS_MAX,
        }
    }
}

impl PartConfig for ConceptConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn losses(&self) -> &'static [LossKind] {
        &[LossKind::Concept]
    }

    fn controls(&self) -> &'static [(&'static str, &'static str)] {
        &[("hypercube codes", "concept.codes=hypercube")]
    }

    fn complaint(&self) -> Option<String> {
        let ranges = [
            ("count", self.count, CONCEPTS_MAX),
            ("rank", self.rank, RANK_MAX),
            ("window", self.window, WINDOW_MAX),
            ("every", self.every, 1 << 20),
        ];
        if self.codes == ConceptCodes::Hypercube && self.count > 1 << BITS_MAX {
            let (count, most) = (self.count, 1 << BITS_MAX);
            return Some(format!(
                "concept.count = {count} is more than the {most} vertices of a hypercube; lower it or use concept.codes = \"learned\""
            ));
        }
        let bad = ranges.into_iter().find(|&(_, value, most)| value == 0 || value > most);
        bad.map(|(key, value, most)| {
            format!("concept.{key} = {value} is out of range; it must lie between 1 and {most}")
        })
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let head = (self.code_width() * (model.width + self.count)).div_ceil(self.every);
        let feedback = if self.feedback { self.code_width() * (model.width + model.vocab_size) } else { 0 };
        (head + feedback) as u64
    }

    fn held(&self, model: &ModelConfig, n: usize, storage: Storage) -> Held {
        let (ConceptConfig { count, window, every, .. }, rank) = (*self, self.code_width());
        let m = n.div_ceil(every);
        // The norm and its gradient, the product before and after the factor, and their gradients.
        let feedback = if self.feedback { 2 * model.width + 4 * rank } else { 0 };
        // Narrow: the codes widened, and gradients of logits beside the logits.
        let logits = chunk_rows(count, storage.on_gpu).min(m) * count;
        let logits = if storage.is_narrow { logits + logits / 2 + count * rank } else { logits };
        Held {
            elems_per_token: (3 * model.width + 3 * rank).div_ceil(every) + feedback,
            loss_words: m * (window + 2) + logits,
            ..Held::default()
        }
    }
}

/// Width of the vectors that codes are laid out by.
const VECTOR_DIMS: usize = 64;

/// A vector of each concept: how much more often than by chance it stands beside each other one (positive pointwise mutual
/// information), projected at random. `[count, VECTOR_DIMS]`.
fn neighbour_vectors(statistics: &Statistics, count: usize) -> Vec<f32> {
    let signs = Philox::new(0, "concept neighbours");
    let total = statistics.pairs.values().sum::<u64>() as f64;
    let mut beside = vec![0.0f64; count];
    let concept = |id: u32| id as usize % count;
    for (&(a, b), &n) in &statistics.pairs {
        beside[concept(a)] += n as f64;
        beside[concept(b)] += n as f64;
    }
    let mut vectors = vec![0.0f32; count * VECTOR_DIMS];
    let mut add = |to: usize, of: usize, weight: f64| {
        let [low, high, ..] = signs.block(of as u64);
        let bits = u64::from(high) << 32 | u64::from(low);
        let row = vectors[to * VECTOR_DIMS..][..VECTOR_DIMS].iter_mut().enumerate();
        row.for_each(|(d, x)| *x += (if bits >> d & 1 == 1 { weight } else { -weight }) as f32);
    };
    for (&(a, b), &n) in &statistics.pairs {
        let (a, b) = (concept(a), concept(b));
        // Of 2 N places beside a token, b's share is beside[b]; each pair is seen from both of its tokens.
        let information = (2.0 * n as f64 * total / (beside[a] * beside[b])).ln();
        if information > 0.0 {
            add(a, b, information);
            add(b, a, information);
        }
    }
    vectors
}

/// The head's parameters.
#[derive(Clone, Debug)]
pub struct Concept {
    config: ConceptConfig,
    projection: ParamId,
    params: ConceptParams,
    /// `gamma [1, 1]`.
    feedback: Option<ParamId>,
    eps: f64,
}

impl Concept {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &ConceptConfig, width: usize, eps: f64) -> Concept {
        let (count, rank) = (config.count, config.code_width());
        let mut push = |name: &str, shape: &[usize], role: Role, init: Init| {
            layout.push_init(format!("nanochat.concept.{name}"), shape, role, init)
        };
        let projection = push("projection.weight", &[rank, width], Role::Matrix, Init::ZERO);
        let (role, init) = match config.codes {
            ConceptCodes::Learned => (Role::Table, Init::Normal(1.0 / (rank as f64).sqrt())),
            ConceptCodes::Hypercube => (Role::Fixed, Init::ZERO),
        };
        let codes = push("codes.weight", &[count, rank], role, init);
        let bias = push("bias", &[count], Role::Fixed, Init::ZERO);
        let idf = push("idf", &[count], Role::Fixed, Init::Constant(1.0));
        let feedback = config.feedback.then(|| push("feedback.weight", &[1, 1], Role::Table, Init::ZERO));
        Concept { config: *config, projection, params: ConceptParams { codes, bias, idf }, feedback, eps }
    }

    /// The windows of rows of `t` tokens: the first prediction is in the middle of the first stride, where there is a context.
    fn windows(&self, t: usize) -> Windows {
        let ConceptConfig { every, window, count, .. } = self.config;
        Windows { stride: Stride { t, first: every / 2, every }, window, concepts: count }
    }

    /// Values that count in the loss of these rows on the host.
    pub fn counted(&self, tokens: &[u32], t: usize, doc_start: Option<&[u32]>) -> usize {
        self.windows(t).counted(tokens, doc_start)
    }

    /// The loss of the integrated state `y [B T, C]`; none where rows are too short for a prediction.
    pub fn loss(&self, tape: &mut Tape, y: &Var, rows: &Rows, scale: &LossScale) -> Option<Loss> {
        let windows = self.windows(rows.t);
        if windows.stride.per_row() == 0 {
            return None;
        }
        let x = tape.select_rows(y, windows.stride);
        let x = tape.scale_grad(&x, scale.rho.clone());
        let x = tape.rmsnorm(&x, None, self.eps);
        let x = tape.linear(&x, self.projection);
        let soon = windows.gather(tape.arena(), &rows.tokens, rows.doc_start.as_ref());
        let values = tape.concept_loss(&x, self.params, &soon, scale.weight.clone());
        Some(Loss { kind: LossKind::Concept, values })
    }

    /// What it adds to the logits of states `y [N, C]`, where it does: `gamma P n(y)`, `[N, r]`, to be multiplied with the codes of tokens,
    /// which are the first rows of that table.
    pub fn feedback(&self, tape: &mut Tape, y: &Var) -> Option<(Var, ParamId)> {
        let gamma = self.feedback?;
        let x = tape.rmsnorm(y, None, self.eps);
        let x = tape.linear(&x, self.projection);
        let [n, r] = x.value().shape().rows_cols();
        let column = tape.reshape(x, [n * r, 1]);
        let scaled = tape.linear(&column, gamma);
        Some((tape.reshape(scaled, [n, r]), self.params.codes))
    }

    /// Fills in what is counted in the training data: `idf = log((N + 1) / (n_c + 1)) + 1` over the windows of the statistics, and
    /// `b`, the logarithm of the idf-weighted share with half a token more of each concept.
    pub fn count(&self, params: &mut Params, statistics: &Statistics) {
        let count = self.config.count;
        let (mut tokens, mut windows) = (vec![0u64; count], vec![0u64; count]);
        for (id, (&in_tokens, &in_windows)) in statistics.tokens.iter().zip(&statistics.windows).enumerate() {
            tokens[id % count] += in_tokens;
            windows[id % count] += in_windows;
        }
        let all = (statistics.window_count + 1) as f64;
        let idf: Vec<f64> =
            windows.iter().map(|&n| (all / (n.min(statistics.window_count) + 1) as f64).ln() + 1.0).collect();
        let weights: Vec<f64> = idf.iter().zip(&tokens).map(|(idf, &n)| idf * (n as f64 + 0.5)).collect();
        let total: f64 = weights.iter().sum();
        let bias: Vec<f64> = weights.iter().map(|w| (w / total).ln()).collect();
        for (id, values) in [(self.params.idf, idf), (self.params.bias, bias)] {
            params.set_master(id, &values);
        }
        if self.config.codes == ConceptCodes::Hypercube {
            let vertices = bisect(&neighbour_vectors(statistics, count), VECTOR_DIMS, BITS_MAX);
            let height = 1.0 / (BITS_MAX as f64).sqrt();
            let row = |vertex| to_bits(vertex, BITS_MAX).into_iter().map(|bit| height * f64::from(bit));
            params.set_master(self.params.codes, &vertices.into_iter().flat_map(row).collect::<Vec<f64>>());
        }
    }
}
