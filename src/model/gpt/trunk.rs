//! The trunk of the GPT: the blocks, and what the streams read where a stage ends, over whole rows or on from a cache.

use super::{Gpt, Recompute, Rows};
use crate::device::Device;
use crate::model::block::{Block, Context, Stream};
use crate::model::cache::{Cached, Piece};
use crate::model::carried::Carried;
use crate::model::hypercube::Coded;
use crate::model::psyche::Blended;
use crate::model::{abacus, memory};
use crate::tape::{Segment, Tape, Var};
use crate::tensor::{Arena, Tensor};
use std::sync::Arc;

/// What a pass goes over, and what it looks back on.
enum Pass<'a, 'b> {
    Rows {
        rows: &'a Rows,
        recompute: Recompute,
        carried: &'a mut Carried,
    },
    /// The next tokens of cached sequences.
    Cached(&'a mut Cached<'b>),
}

/// What comes of the blocks.
pub(super) struct Trunk {
    pub end: TrunkEnd,
    /// The codes of Id's stream.
    pub coded: Option<Coded>,
}

/// The streams after the last block that ran.
pub(super) enum TrunkEnd {
    /// Of a model without parts between the stages.
    Plain(Stream),
    /// After Id, Ego and Superego.
    Stages([Var; 3]),
    /// After Id alone, and what the head reads instead.
    Early { id: Var, blended: Blended },
}

impl TrunkEnd {
    /// The streams after Ego and Superego, where there are such.
    pub fn deeper_stages(&self) -> Option<[Var; 2]> {
        match self {
            TrunkEnd::Stages([_, ego, superego]) => Some([ego.clone(), superego.clone()]),
            TrunkEnd::Plain(_) | TrunkEnd::Early { .. } => None,
        }
    }
}

/// What was read after Id, for later.
#[derive(Default)]
struct AfterId {
    coded: Option<Coded>,
    /// Of the long-term memory.
    read: Option<Var>,
}

impl Gpt {
    /// Runs the blocks over `tokens`; a single token of a cached sequence may end after Id.
    fn trunk(&self, tape: &mut Tape, tokens: &Tensor, mut pass: Pass) -> Trunk {
        let stages = self.config.parts.needs_stages().then(|| self.config.stages().expect("checked when made"));
        let mut h = tape.embedding(self.embedding, tokens);
        if let Some(digits) = &self.digits {
            let places = self.places(tape.arena(), &mut pass);
            h = digits.forward(tape, &h, &places);
        }
        let mut stream = Stream::new(h);
        let (mut ends, mut after_id) = (Vec::new(), AfterId::default());
        for block in &self.blocks {
            stream = self.run(tape, block, stream, &mut pass);
            let Some(stages) = &stages else { continue };
            let done = block.layer() + 1;
            if [stages.id.end, stages.ego.end, stages.superego.end].contains(&done) {
                let mut h = stream.settle(tape);
                if done == stages.id.end {
                    (h, after_id) = self.after_id(tape, h, &mut pass);
                    if let (Pass::Cached(cached), Some(psyche)) = (&pass, &self.psyche)
                        && cached.placement.rows() == 1
                        && let Some(blended) = psyche.exit(tape, &h, self.final_gain)
                    {
                        return Trunk { end: TrunkEnd::Early { id: h, blended }, coded: after_id.coded };
                    }
                }
                if done == stages.ego.end {
                    h = self.after_ego(tape, h, &after_id);
                }
                ends.push(h.clone());
                stream = Stream::new(h);
            }
        }
        let end = match <[Var; 3]>::try_from(ends) {
            Ok(streams) => TrunkEnd::Stages(streams),
            Err(_) => TrunkEnd::Plain(stream),
        };
        Trunk { end, coded: after_id.coded }
    }

    /// The rows of the digits' table.
    fn places(&self, arena: &Arena, pass: &mut Pass) -> Tensor {
        let config = &self.config.parts.digits;
        let places = match pass {
            Pass::Rows { rows: Rows { places: Some(places), .. }, .. } => return places.clone(),
            Pass::Rows { rows: Rows { tokens, t, .. }, .. } => {
                config.places(tokens.to(Device::Cpu).as_slice(), *t, 0, &mut 0)
            }
            Pass::Cached(cached) => {
                let places =
                    |piece: &mut Piece| config.places(piece.tokens, piece.tokens.len(), 0, &mut piece.state.digit_run);
                cached.pieces.iter_mut().flat_map(places).collect()
            }
        };
        Tensor::from_slice(arena, [places.len()], &places)
    }

    /// Runs one block.
    fn run(&self, tape: &mut Tape, block: &Block, stream: Stream, pass: &mut Pass) -> Stream {
        let (rows, recompute) = match pass {
            Pass::Rows { rows, recompute, .. } => (rows, *recompute),
            Pass::Cached(cached) => {
                let t = cached.placement.rows();
                return block.forward(tape, &self.config, &self.table, stream, t, Context::Cached(cached));
            }
        };
        let is_masked = self.config.document_mask;
        let (t, [doc_start, starts]) =
            (rows.t, [&rows.doc_start, &rows.starts].map(|x| x.clone().filter(|_| is_masked)));
        let context = move || Context::Rows { doc_start: doc_start.clone(), starts: starts.clone() };
        match recompute {
            Recompute::Nothing => block.forward(tape, &self.config, &self.table, stream, t, context()),
            Recompute::Blocks => {
                let label = format!("block {}", block.layer());
                let (block, config, table) = (block.clone(), self.config.clone(), self.table.clone());
                let run = move |tape: &mut Tape, h: Var| {
                    block.forward(tape, &config, &table, Stream::new(h), t, context()).settle(tape)
                };
                let h = stream.settle(tape);
                Stream::new(tape.checkpoint(h, Segment { label, run: Arc::new(run) }))
            }
        }
    }

    /// What Id's stream reads at its end: the memory, the long-term memory, the hypercube.
    fn after_id(&self, tape: &mut Tape, mut h: Var, pass: &mut Pass) -> (Var, AfterId) {
        let mut after = AfterId::default();
        if let Some(abacus) = &self.abacus {
            let past = match pass {
                Pass::Rows { rows, carried, .. } => abacus::Past::Streams {
                    t: rows.segments * rows.t,
                    starts: rows.starts.as_ref(),
                    states: carried.abacus(),
                },
                Pass::Cached(cached) => {
                    let (t, state) = cached.only();
                    abacus::Past::Cached { t, state: state.abacus() }
                }
            };
            h = abacus.forward(tape, &h, past);
        }
        if let Some(memory) = &self.memory {
            let past = match pass {
                Pass::Rows { rows, carried, .. } => {
                    memory::Past::Streams { t: rows.t, segments: rows.segments, bank: carried.bank() }
                }
                Pass::Cached(cached) => {
                    let (_, state) = cached.only();
                    memory::Past::Conversation(state.memory().expect("a sequence of a model with a long-term memory"))
                }
            };
            let (with_rows, read) = memory.forward(tape, &h, past);
            (h, after.read) = (with_rows, Some(read));
        }
        if let Some(hypercube) = &self.hypercube {
            let (with_code, coded) = hypercube.forward(tape, &h);
            (h, after.coded) = (with_code, Some(coded));
        }
        (h, after)
    }

    /// What Ego's stream reads at its end: memes, and what Id read of the long-term memory.
    fn after_ego(&self, tape: &mut Tape, mut h: Var, after_id: &AfterId) -> Var {
        if let Some(memetic) = &self.memetic {
            h = memetic.forward(tape, &h);
        }
        if let (Some(memory), Some(read)) = (&self.memory, &after_id.read) {
            h = memory.forward_ego(tape, &h, read);
        }
        h
    }

    /// The trunk over whole rows.
    ///
    /// # Panics
    /// If rows are longer than `max_seq_len`.
    pub(super) fn trunk_of_rows(
        &self,
        tape: &mut Tape,
        rows: &Rows,
        recompute: Recompute,
        carried: &mut Carried,
    ) -> Trunk {
        self.trunk(tape, &rows.tokens, Pass::Rows { rows, recompute, carried })
    }

    /// The trunk over the next tokens of cached sequences; a single token may end after Id.
    pub(super) fn trunk_cached(&self, tape: &mut Tape, cached: &mut Cached) -> Trunk {
        let (ids, config) = (cached.ids.clone(), &self.config);
        let trunk = self.trunk(tape, &ids, Pass::Cached(cached));
        if let (TrunkEnd::Early { id, .. }, Some(stages)) = (&trunk.end, config.stages()) {
            for block in &self.blocks[stages.id.end..] {
                block.remember(tape, config, &self.table, id, cached);
            }
        }
        trunk
    }
}
