//! The long-term memory: a row for each finished segment of a stream, which every later token of it may read by likeness.
//!
//! Of a segment of `T` tokens with `x = n(h_I)`: `m = mean_t x`, key `k = L2(W_k m)` with `W_k` drawn once and fixed (a learnt one would get no
//! gradient and leave old keys stale), value `m`. A token reads the 5 rows of its stream whose keys are nearest to its query:
//! `a = softmax(<L2(W_q x), k_i> / 0.1)`, `o = sum a_i m_i`, `h_I <- h_I + W_m o`, and at Ego's end `h_E <- h_E + W'_m o`; both `W_m` begin at zero.
//! Rows carry no gradient; `W_q` and `W_m` learn. A row is seen by later segments of its own stream alone. The bank is a ring: the
//! newest row takes the place of the oldest.

use super::ModelConfig;
use super::parts::{Held, PartConfig, Storage};
use crate::device::Device;
use crate::ops::bank_product::Side;
use crate::ops::bank_write::{self, Banks, NEVER};
use crate::ops::top_k_softmax::{Options, Sight, TOP_MAX};
use crate::ops::{linear, segment_mean, unit_norm};
use crate::tape::{Tape, Var};
use crate::tensor::{DType, Init, Layout, ParamId, Role, Tensor};
use serde::{Deserialize, Serialize};

/// `[memory]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    pub enabled: bool,
    /// Rows that a stream keeps.
    pub rows: usize,
    /// Width of a key.
    pub key_width: usize,
    /// Rows that a token reads.
    pub top: usize,
    /// Tokens of a segment of a conversation; in training those of a row, which are this many if it is 0.
    pub segment: usize,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig { enabled: false, rows: 256, key_width: 64, top: 5, segment: 0 }
    }
}

/// Factor of cosines in the softmax.
const SHARPNESS: f64 = 10.0;
/// Most rows of a bank, and widest keys, as far as lengths are taken by the kernels.
const ROWS_MAX: usize = 1 << 16;
const KEY_WIDTH_MAX: usize = 256;

impl PartConfig for MemoryConfig {
    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn needs_stages(&self) -> bool {
        true
    }

    fn complaint(&self) -> Option<String> {
        let MemoryConfig { rows, key_width, top, .. } = *self;
        let ranges =
            [("rows", rows, ROWS_MAX), ("key_width", key_width, KEY_WIDTH_MAX), ("top", top, TOP_MAX.min(rows))];
        let bad = ranges.into_iter().find(|&(_, value, most)| value == 0 || value > most);
        bad.map(|(key, value, most)| {
            format!("memory.{key} = {value} is out of range; it must lie between 1 and {most}")
        })
    }

    fn elems_per_token(&self, model: &ModelConfig) -> u64 {
        let (c, m, d) = (model.width, self.rows, self.key_width);
        // The rows get no gradient: their products go two ways, not three.
        (c * (d + 2 * c) + 2 * m * (d + c) / 3) as u64
    }

    fn held(&self, model: &ModelConfig, _n: usize, storage: Storage) -> Held {
        let MemoryConfig { rows, key_width, top, .. } = *self;
        // The norm, two streams, what was read; the query twice; scores and weights, or their gradients.
        let elems_per_token = 5 * model.width + 3 * key_width + 4 * top;
        // Narrow: never both widened.
        let passing_elems_per_token = if storage.is_narrow { 3 * rows / 2 } else { 2 * rows };
        Held { elems_per_token, passing_elems_per_token, loss_words: 0 }
    }
}

/// The parameters.
#[derive(Clone, Debug)]
pub struct Memory {
    key: ParamId,
    query: ParamId,
    /// At the ends of Id and Ego.
    outputs: [ParamId; 2],
    options: Options,
    key_width: usize,
    eps: f64,
}

/// The banks of some streams, at addresses that stay.
pub struct Bank {
    keys: Tensor,
    values: Tensor,
    born: Tensor,
    clock: Tensor,
}

impl Bank {
    /// Empty ones of as many streams, of which a batch has as many segments each, of a model that computes in `dtype` on `device`.
    pub fn new(device: Device, config: &ModelConfig, extents: [usize; 2], dtype: DType) -> Bank {
        let MemoryConfig { rows, key_width, .. } = config.parts.memory;
        Bank::of(device, extents, rows, [key_width, config.width], dtype)
    }

    /// With room for a batch's own rows beside those that are kept.
    fn of(device: Device, [streams, segments]: [usize; 2], rows: usize, [d, c]: [usize; 2], dtype: DType) -> Bank {
        let m = rows + segments;
        let of = |width: usize| Tensor::owned_on(device, [streams, m, width], dtype);
        let mut born = Tensor::owned_on(device, [streams, m], DType::U32);
        born.copy_from_slice(&vec![NEVER; streams * m]);
        let mut clock = Tensor::owned_on(device, [streams * segments], DType::U32);
        clock.copy_from_slice(&(0..streams * segments).map(|b| (b % segments) as u32).collect::<Vec<u32>>());
        Bank { keys: of(d), values: of(c), born, clock }
    }

    /// All of it by name: what a checkpoint keeps.
    pub fn tensors(&self) -> [(&'static str, &Tensor); 4] {
        let Bank { keys, values, born, clock } = self;
        [("memory.keys", keys), ("memory.values", values), ("memory.born", born), ("memory.clock", clock)]
    }

    /// The same, to overwrite.
    pub fn tensors_mut(&mut self) -> [(&'static str, &mut Tensor); 4] {
        let Bank { keys, values, born, clock } = self;
        [("memory.keys", keys), ("memory.values", values), ("memory.born", born), ("memory.clock", clock)]
    }

    fn write(&mut self, tape: &Tape, keys: &Tensor, values: &Tensor) -> Tensor {
        let Bank { keys: to_keys, values: to_values, born, clock } = self;
        bank_write::forward(tape.arena(), Banks { keys: to_keys, values: to_values, born, clock }, keys, values)
    }
}

/// The bank of one conversation, and the segment that it is in.
pub struct Conversation {
    bank: Bank,
    /// `[1, C]`: the sum over the tokens of the segment so far.
    sums: Tensor,
    /// Tokens of the segment so far, and of a whole one.
    filled: usize,
    whole: usize,
}

impl Conversation {
    /// An empty one.
    pub fn new(device: Device, config: &ModelConfig, dtype: DType) -> Conversation {
        let whole = match config.parts.memory.segment {
            0 => config.max_seq_len,
            segment => segment,
        };
        let sums = Tensor::owned_on(device, [1, config.width], dtype.accumulator());
        Conversation { bank: Bank::new(device, config, [1, 1], dtype), sums, filled: 0, whole }
    }

    /// All that it holds, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        self.bank.tensors().into_iter().chain([("memory.sums", &self.sums)])
    }

    /// The same, to overwrite.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut Tensor)> {
        self.bank.tensors_mut().into_iter().chain([("memory.sums", &mut self.sums)])
    }

    /// Tokens of the segment that is not finished.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Says that the segment that is not finished has so many tokens; not where a whole one has no more.
    pub fn fill(&mut self, filled: usize) -> bool {
        let fits = filled < self.whole;
        if fits {
            self.filled = filled;
        }
        fits
    }

    /// Tokens that may follow before the segment ends.
    pub fn room(&self) -> usize {
        self.whole - self.filled
    }
}

/// What a read looks back on.
pub enum Past<'a> {
    /// Rows of `t` tokens, a segment each, `segments` of each stream behind each other, and the banks of the streams; without them a
    /// stream begins with its first row.
    Streams { t: usize, segments: usize, bank: Option<&'a mut Bank> },
    /// The next tokens of a conversation, inside a segment.
    Conversation(&'a mut Conversation),
}

impl Memory {
    /// Adds the parameters of a model of `width`.
    pub fn new(layout: &mut Layout, config: &MemoryConfig, width: usize, eps: f64) -> Memory {
        let MemoryConfig { key_width, top, .. } = *config;
        let mut push = |name: &str, shape: [usize; 2], role: Role, init: Init| {
            layout.push_init(format!("nanochat.memory.{name}.weight"), shape, role, init)
        };
        let key = push("key", [key_width, width], Role::Fixed, Init::Normal(1.0 / (width as f64).sqrt()));
        let query = push("query", [key_width, width], Role::Matrix, Init::fan_in(width));
        let outputs = ["output_id", "output_ego"].map(|name| push(name, [width, width], Role::Matrix, Init::ZERO));
        let options = Options { top, scale: SHARPNESS };
        Memory { key, query, outputs, options, key_width, eps }
    }

    /// The matrix that makes keys; it is never learnt.
    pub fn key(&self) -> ParamId {
        self.key
    }

    /// Adds what each token of Id's stream `h [N, C]` reads; also what was read, for Ego's end.
    pub fn forward(&self, tape: &mut Tape, h: &Var, past: Past) -> (Var, Var) {
        let x = tape.rmsnorm(h, None, self.eps);
        let o = match past {
            Past::Streams { t, bank: Some(bank), .. } => self.read_and_write(tape, &x, t, bank),
            Past::Streams { t, segments, bank: None } => {
                let [n, c] = x.value().shape().rows_cols();
                let (value, extents) = (x.value(), [n / t / segments, segments]);
                let mut bank = Bank::of(value.device(), extents, 0, [self.key_width, c], value.dtype());
                self.read_and_write(tape, &x, t, &mut bank)
            }
            Past::Conversation(conversation) => self.read_on(tape, &x, conversation),
        };
        (tape.linear_onto(&o, self.outputs[0], Some(h)), o)
    }

    /// Adds what was read after Id to Ego's stream.
    pub fn forward_ego(&self, tape: &mut Tape, h: &Var, o: &Var) -> Var {
        tape.linear_onto(o, self.outputs[1], Some(h))
    }

    /// Rows are written before they are read, so that a stream's later segments see its earlier ones.
    fn read_and_write(&self, tape: &mut Tape, x: &Var, t: usize, bank: &mut Bank) -> Var {
        let means = tape.detached(|tape| segment_mean::forward(tape.arena(), x.value(), t, t, None));
        let keys = self.keys_of(tape, &means);
        let times = bank.write(tape, &keys, &means);
        self.read(tape, x, bank, &times, t)
    }

    fn read_on(&self, tape: &mut Tape, x: &Var, conversation: &mut Conversation) -> Var {
        let t = x.value().shape().rows_cols()[0];
        let Conversation { bank, sums, filled, whole } = conversation;
        assert!(*filled + t <= *whole, "a piece inside a segment");
        let now = bank.clock.copy(tape.arena());
        let o = self.read(tape, x, bank, &now, t);
        let means = segment_mean::forward(tape.arena(), x.value(), t, *whole, Some(&mut *sums));
        *filled += t;
        if filled == whole {
            let keys = self.keys_of(tape, &means);
            bank.write(tape, &keys, &means);
            sums.clear();
            *filled = 0;
        }
        o
    }

    fn keys_of(&self, tape: &Tape, means: &Tensor) -> Tensor {
        let keys = linear::forward(tape.arena(), means, &tape.params().view(self.key));
        unit_norm::forward(tape.arena(), &keys, self.key_width).0
    }

    fn read(&self, tape: &mut Tape, x: &Var, bank: &Bank, limits: &Tensor, t: usize) -> Var {
        let q = tape.linear(x, self.query);
        let q = tape.unit_norm(&q, self.key_width);
        let scores = tape.bank_product(&q, &bank.keys, Side::Rows);
        let sight = Sight { born: &bank.born, limits, t };
        let a = tape.top_k_softmax(&scores, Some(sight), self.options, None);
        tape.bank_product(&a, &bank.values, Side::Columns)
    }
}
