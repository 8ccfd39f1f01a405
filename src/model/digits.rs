//! The abacus embedding: each digit of a number is told its place (McLeish et al. 2024).
//!
//! `i_t` counts the tokens of the run of single-digit tokens that ends with t, 0 where t is none; `h_0 <- h_0 + A[min(i_t + k, 127)]` where
//! `i_t > 0`. `A: 128 x C` begins at zero. `k` is drawn from 0 to 99 for each batch in training, so that longer numbers than those seen
//! find trained rows, and is 0 otherwise. A run begins with its row at the earliest; in a cached sequence it goes on from call to call.

use super::ModelConfig;
use super::parts::{Held, PartConfig, Storage};
use crate::ops::embedding::NOTHING;
use crate::tape::{Tape, Var};
use crate::tensor::random::Philox;
use crate::tensor::{Init, Layout, ParamId, Role, Tensor};
use serde::{Deserialize, Serialize};

/// `[digits]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DigitsConfig {
    pub enabled: bool,
    /// The tokens that are one digit; found in the tokenizer when a run begins.
    pub ids: Vec<u32>,
}

/// Rows of the table.
const PLACES: usize = 128;
/// Values of `k` in training.
const SHIFTS: u32 = 100;

impl PartConfig for DigitsConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn complaint(&self) -> Option<String> {
        None
    }

    fn elems_per_token(&self, _model: &ModelConfig) -> u64 {
        0
    }

    fn held(&self, model: &ModelConfig, _n: usize, _storage: Storage) -> Held {
        Held { elems_per_token: model.width, ..Held::default() }
    }
}

impl DigitsConfig {
    /// The row of the table of each token, [`NOTHING`] where it is no digit, shifted by `k`; a row of text has `t` tokens. `run` is the length of
    /// the run that each row goes on with, and at the end that of the last row.
    pub fn places(&self, tokens: &[u32], t: usize, k: u32, run: &mut u32) -> Vec<u32> {
        let before = *run;
        let place = |(i, token): (usize, &u32)| {
            let so_far = if i % t == 0 { before } else { *run };
            *run = if self.ids.contains(token) { so_far.saturating_add(1) } else { 0 };
            if *run == 0 { NOTHING } else { run.saturating_add(k).min(PLACES as u32 - 1) }
        };
        tokens.iter().enumerate().map(place).collect()
    }

    /// The places in a training batch, the `index`-th of its run.
    pub fn shifted_places(&self, tokens: &[u32], t: usize, index: u64) -> Vec<u32> {
        let k = (Philox::new(0, "places of digits").uniform(index) * f64::from(SHIFTS)) as u32;
        self.places(tokens, t, k, &mut 0)
    }
}

/// The parameter.
#[derive(Clone, Debug)]
pub struct Digits {
    table: ParamId,
}

impl Digits {
    /// Adds the table of a model of `width`.
    pub fn new(layout: &mut Layout, width: usize) -> Digits {
        Digits { table: layout.push_init("nanochat.digits.weight", [PLACES, width], Role::Table, Init::ZERO) }
    }

    /// Adds the places `[N]` to the embedding `h [N, C]`.
    pub fn forward(&self, tape: &mut Tape, h: &Var, places: &Tensor) -> Var {
        let rows = tape.embedding(self.table, places);
        tape.add(rows, h)
    }
}
