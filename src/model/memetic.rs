//! The memetic bank: memes, each a key and a value, that every token reads after Ego.
//!
//! `s = K W_q n(h_E) / sqrt(d)`, `a = softmax` over the 8 highest of `s`, `h_E <- h_E + W_o V a`; `W_o` begins at zero. Gradients teach keys and
//! values; what each meme is worth comes out of the same backward pass ([`top_k_softmax`](crate::ops::top_k_softmax)) into running means, by
//! which the trainer replaces memes that nobody misses by offspring of others (`train::evolution`).

use super::ModelConfig;
use super::parts::{Held, PartConfig, Storage};
use crate::ops::top_k_softmax::{Options, TOP_MAX};
use crate::tape::{Tape, Var};
use crate::tensor::{Init, Layout, ParamId, Role};
use serde::{Deserialize, Serialize};

/// `[memetic]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemeticConfig {
    pub enabled: bool,
    /// Number of memes, `M`.
    pub memes: usize,
    /// Width of a key, `d`.
    pub key_width: usize,
    /// Memes that a token reads.
    pub top: usize,
    /// Steps from one generation to the next.
    pub period: u64,
    /// Largest share of the memes that a generation replaces.
    pub share: f64,
    /// Ranges of memes whose parents come from the same range; the fittest of each migrate.
    pub islands: usize,
    pub selection: Selection,
}

/// By what memes are replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    Fitness,
    /// As many as by fitness, any of them, by offspring of any: a control.
    Random,
    /// By the fitness of another: a control.
    Shuffled,
}

impl Default for MemeticConfig {
    fn default() -> MemeticConfig {
        MemeticConfig {
            enabled: false,
            memes: 1024,
            key_width: 64,
            top: 8,
            period: 500,
            share: 0.05,
            islands: 1,
            selection: Selection::Fitness,
        }
    }
}

/// Most memes.
const MEMES_MAX: usize = 1 << 16;

impl PartConfig for MemeticConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn controls(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("random replacement", "memetic.selection=random"),
            ("shuffled fitness", "memetic.selection=shuffled"),
            ("no replacement", "memetic.share=0"),
        ]
    }

    fn complaint(&self) -> Option<String> {
        let MemeticConfig { memes, key_width, top, period, share, islands, .. } = *self;
        let ranges = [
            ("memes", memes, 8, MEMES_MAX),
            ("key_width", key_width, 1, 1024),
            ("top", top, 1, TOP_MAX.min(memes)),
            ("period", period as usize, 1, usize::MAX),
            ("islands", islands, 1, memes),
        ];
        if let Some((key, value, least, most)) =
            ranges.into_iter().find(|(_, value, least, most)| !(least..=most).contains(&value))
        {
            return Some(format!("memetic.{key} = {value} is out of range; it must lie between {least} and {most}"));
        }
        if !(0.0..=0.5).contains(&share) {
            return Some(format!("memetic.share = {share} is out of range; it must lie between 0 and 0.5"));
        }
        let of_an_island = memes / islands;
        (!memes.is_multiple_of(islands) || of_an_island < 4).then(|| {
            format!("memetic.islands = {islands} must divide memetic.memes = {memes} into ranges of 4 or more; choose another divisor")
        })
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let (c, m, d) = (model.width, self.memes, self.key_width);
        (d * (c + m) + c * (m + c)) as u64
    }

    fn held(&self, model: &ModelConfig, _n: usize, _storage: Storage) -> Held {
        // The norm, the query, weights, what was read, the sum; beside the weights scores, or a gradient.
        let elems_per_token = 3 * model.width + 2 * self.key_width + self.memes + 4 * self.top;
        Held { elems_per_token, passing_elems_per_token: self.memes, loss_words: 0 }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Memetic {
    query: ParamId,
    /// `[M, d]`.
    pub keys: ParamId,
    /// `[C, M]`: a meme's value is a column, so that a read is a product.
    pub values: ParamId,
    /// `[2, M]`: running means of what the removal of each would cost, and of its weights.
    pub statistics: ParamId,
    output: ParamId,
    options: Options,
    eps: f64,
}

impl Memetic {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &MemeticConfig, width: usize, eps: f64) -> Memetic {
        let MemeticConfig { memes, key_width, top, .. } = *config;
        let mut push = |name: &str, shape: [usize; 2], role: Role, init: Init| {
            layout.push_init(format!("nanochat.memetic.{name}.weight"), shape, role, init)
        };
        let query = push("query", [key_width, width], Role::Matrix, Init::fan_in(width));
        let keys = push("keys", [memes, key_width], Role::Table, Init::Normal(1.0));
        let values = push("values", [width, memes], Role::Table, Init::Normal(1.0));
        let output = push("output", [width, width], Role::Matrix, Init::ZERO);
        let statistics = push("statistics", [2, memes], Role::Average, Init::ZERO);
        let options = Options { top, scale: 1.0 / (key_width as f64).sqrt() };
        Memetic { query, keys, values, statistics, output, options, eps }
    }

    /// Adds what each token reads to Ego's stream.
    pub fn forward(&self, tape: &mut Tape, h: &Var) -> Var {
        let x = tape.rmsnorm(h, None, self.eps);
        let q = tape.linear(&x, self.query);
        let scores = tape.linear(&q, self.keys);
        let a = tape.top_k_softmax(&scores, None, self.options, Some(self.statistics));
        drop((x, q, scores));
        let o = tape.linear(&a, self.values);
        tape.linear_onto(&o, self.output, Some(h))
    }
}
