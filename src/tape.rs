//! The explicit tape: what was computed, as data, and the walk back over it.
//!
//! A [`Node`] names the op, its operands by id and what backward keeps. A value lives as long as somebody holds it: the
//! model while it still uses it, a node that saved it, nobody else; so activations go back to the arena early, in forward
//! and, node by node, in backward. Losses are leaves that carry their factor, so [`Tape::backward`] takes no root.
//! The tape knows ops and parameters; it knows no model. Ops of parts beyond the backbone are in `tape/parts.rs`, those of a state that is
//! carried along in `tape/memory.rs`.

mod aside;
mod memory;
mod parts;

use crate::ops::rope::{Heads, QkNorm, Table};
use crate::ops::{add, attention, embedding, linear, lm_loss, mlp, rmsnorm, rope, scale_grad, softcap};
use crate::tensor::{Arena, Grads, ParamId, Params, Scale, Span, Tensor, Weight};
use std::fmt;
use std::sync::Arc;

pub use aside::{Frozen, Measure, Note};
pub use memory::{DecayParams, DeltaOperands, MemoryNode};
pub use parts::{BlendParams, ConceptParams, PartNode};

/// Which value of the tape.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct VarId(u32);

/// A value on the tape. Passing it by value lets the next op reuse its bytes.
#[derive(Clone, Debug)]
pub struct Var {
    id: VarId,
    value: Tensor,
}

impl Var {
    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
}

/// QK-norm of a block: the gains of queries and keys, in that order in the layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNormParams {
    pub q_gain: ParamId,
    pub k_gain: ParamId,
    pub eps: f64,
}

/// The matrices of a feed-forward layer: gate and up together, then down, in that order in the layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpParams {
    pub gate_up: Span,
    pub down: ParamId,
}

/// What makes logits: `cap(x W^T)`, or `cap(x W^T + x' U^T)` where there is a product of low rank, `U` the first rows of a table. One that the
/// layout calls fixed gets no gradient.
#[derive(Clone, Copy, Debug)]
pub struct HeadOperands<'a> {
    /// `[N, C]`.
    pub x: &'a Var,
    /// `W [V, C]`.
    pub weight: ParamId,
    /// `x' [N, r]`, and the table `[.., r]` of `V` rows or more.
    pub low_rank: Option<(&'a Var, ParamId)>,
    pub softcap: Option<f64>,
}

/// A stretch of a model that is computed again in backward instead of being saved.
#[derive(Clone)]
pub struct Segment {
    /// What it is, for printing.
    pub label: String,
    #[allow(clippy::type_complexity)] // a function from value to value on a tape
    pub run: Arc<dyn Fn(&mut Tape, Var) -> Var + Send + Sync>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// One recorded op: operands, result, and what backward needs.
#[derive(Debug)]
pub enum Node {
    Embedding { y: VarId, table: ParamId, tokens: Tensor },
    Linear { y: VarId, x: VarId, weight: Span, residual: Option<VarId>, saved: linear::Saved },
    RmsNorm { y: VarId, x: VarId, gain: Option<ParamId>, saved: rmsnorm::Saved },
    AddRmsNorm { sum: VarId, y: VarId, residual: VarId, delta: VarId, gain: ParamId, saved: rmsnorm::Saved },
    Rope { y: VarId, x: VarId, heads: Heads, t: usize, table: Table, norm: Option<QkNormParams>, saved: rope::Saved },
    Attention { y: VarId, qkv: VarId, heads: Heads, t: usize, saved: attention::Saved },
    Mlp { y: VarId, x: VarId, weights: MlpParams, residual: Option<VarId>, saved: mlp::Saved },
    Add { y: VarId, a: VarId, b: VarId },
    Softcap { y: VarId, x: VarId, saved: softcap::Saved },
    Memory(MemoryNode),
    ScaleGrad { y: VarId, x: VarId, rho: Scale },
    Checkpoint { y: VarId, x: VarId, input: Tensor, segment: Segment },
    Part(PartNode),
    Loss { name: &'static str, x: VarId, dx: Tensor },
}

/// Records ops and walks back over them. Without gradients to add to, it records nothing.
pub struct Tape<'a> {
    arena: &'a Arena,
    params: &'a Params,
    grads: Option<&'a mut Grads>,
    recording: bool,
    /// No row of a product depends on how many there are.
    by_rows: bool,
    nodes: Vec<Node>,
    adjoints: Vec<Option<Tensor>>,
    frozen: Option<&'a mut Frozen>,
    notes: Vec<Note>,
}

impl<'a> Tape<'a> {
    /// A tape that records; [`Tape::backward`] adds to `grads`.
    pub fn recording(arena: &'a Arena, params: &'a Params, grads: &'a mut Grads) -> Tape<'a> {
        Tape { grads: Some(grads), recording: true, ..Tape::inference(arena, params) }
    }

    /// A tape that only computes.
    pub fn inference(arena: &'a Arena, params: &'a Params) -> Tape<'a> {
        let (nodes, adjoints, notes) = (Vec::new(), Vec::new(), Vec::new());
        let (grads, frozen, recording, by_rows) = (None, None, false, false);
        Tape { arena, params, grads, recording, by_rows, nodes, adjoints, frozen, notes }
    }

    /// A tape that only computes, every row as if it were alone: for sequences that must not notice each other.
    pub fn by_rows(arena: &'a Arena, params: &'a Params) -> Tape<'a> {
        Tape { by_rows: true, ..Tape::inference(arena, params) }
    }

    /// The same, its stop-gradients gathered in `frozen` or given from there.
    pub fn freezing(self, frozen: &'a mut Frozen) -> Tape<'a> {
        Tape { frozen: Some(frozen), ..self }
    }

    /// Where activations live.
    pub fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// The parameters.
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// What was recorded, oldest first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn var(&mut self, value: Tensor) -> Var {
        self.adjoints.push(None);
        Var { id: VarId(self.adjoints.len() as u32 - 1), value }
    }

    fn record(&mut self, node: impl FnOnce() -> Node) {
        if self.recording {
            self.nodes.push(node());
        }
    }

    /// A value from outside: it has no gradient to pass on.
    pub fn input(&mut self, value: Tensor) -> Var {
        self.var(value)
    }

    /// A weight to multiply by.
    ///
    /// # Panics
    /// If it is packed while the tape records: what is packed has no gradient.
    fn weight(&self, span: impl Into<Span>) -> Weight<'a> {
        match self.params.weight(span) {
            Weight::Dense(values) => self.weight_of(values),
            packed => {
                assert!(!self.recording, "packed weights do not learn");
                packed
            }
        }
    }

    /// Values to multiply by as this tape multiplies.
    pub fn weight_of(&self, values: Tensor) -> Weight<'a> {
        if self.by_rows { Weight::ByRows(values) } else { Weight::Dense(values) }
    }

    /// Rows of a table: `tokens [N]` -> `[N, C]`.
    pub fn embedding(&mut self, table: ParamId, tokens: &Tensor) -> Var {
        let y = match self.weight(table) {
            Weight::Dense(values) | Weight::ByRows(values) => embedding::forward(self.arena, &values, tokens),
            Weight::Packed(values) => {
                embedding::forward_packed(self.arena, &values.matrices[0], tokens, self.params.dtype())
            }
        };
        let y = self.var(y);
        self.record(|| Node::Embedding { y: y.id, table, tokens: tokens.clone() });
        y
    }

    /// `x W^T`, with several matrices as one where `weight` spans them.
    pub fn linear(&mut self, x: &Var, weight: impl Into<Span>) -> Var {
        self.linear_onto(x, weight, None)
    }

    /// `residual + x W^T`; without a residual as [`Tape::linear`].
    pub fn linear_onto(&mut self, x: &Var, weight: impl Into<Span>, residual: Option<&Var>) -> Var {
        let weight = weight.into();
        let y = linear::forward_by(self.arena, &x.value, &self.weight(weight), residual.map(|r| &r.value));
        let (y, residual) = (self.var(y), residual.map(|r| r.id));
        let saved = || linear::Saved { x: x.value.clone() };
        self.record(|| Node::Linear { y: y.id, x: x.id, weight, residual, saved: saved() });
        y
    }

    /// RMSNorm, with a gain or without.
    pub fn rmsnorm(&mut self, x: &Var, gain: impl Into<Option<ParamId>>, eps: f64) -> Var {
        let gain = gain.into();
        let value = gain.map(|gain| self.params.view(gain));
        let (y, saved) = rmsnorm::forward(self.arena, &x.value, value.as_ref(), eps);
        let y = self.var(y);
        self.record(|| Node::RmsNorm { y: y.id, x: x.id, gain, saved });
        y
    }

    /// `residual + delta` and its RMSNorm.
    pub fn add_rmsnorm(&mut self, residual: &Var, delta: Var, gain: ParamId, eps: f64) -> (Var, Var) {
        let gain_value = self.params.view(gain);
        let (sum, y, saved) = rmsnorm::forward_add(self.arena, &residual.value, delta.value, &gain_value, eps);
        let (sum, y) = (self.var(sum), self.var(y));
        let (residual, delta) = (residual.id, delta.id);
        self.record(|| Node::AddRmsNorm { sum: sum.id, y: y.id, residual, delta, gain, saved });
        (sum, y)
    }

    /// QK-norm and rotation of packed rows; row `n` is at position `start + n % t`.
    pub fn rope(
        &mut self,
        x: Var,
        heads: Heads,
        t: usize,
        start: usize,
        table: &Table,
        norm: Option<QkNormParams>,
    ) -> Var {
        let gains = norm.map(|n| (self.params.view(n.q_gain), self.params.view(n.k_gain), n.eps));
        let qk_norm = gains.as_ref().map(|(q_gain, k_gain, eps)| QkNorm { q_gain, k_gain, eps: *eps });
        let (y, saved) = rope::forward(self.arena, x.value, heads, t, start, table, qk_norm);
        let y = self.var(y);
        assert!(!self.recording || start == 0, "recorded rows start at position 0");
        self.record(|| Node::Rope { y: y.id, x: x.id, heads, t, table: table.clone(), norm, saved });
        y
    }

    /// Attention over packed, rotated rows of `t` tokens.
    pub fn attention(&mut self, qkv: Var, heads: Heads, t: usize, mask: attention::Mask) -> Var {
        let (y, saved) = attention::forward(self.arena, &qkv.value, heads, t, mask);
        let y = self.var(y);
        self.record(|| Node::Attention { y: y.id, qkv: qkv.id, heads, t, saved });
        y
    }

    /// The feed-forward layer, added to a residual where there is one.
    pub fn mlp(&mut self, x: Var, weights: MlpParams, residual: Option<&Var>) -> Var {
        let keep = if self.recording { mlp::Keep::Everything } else { mlp::Keep::Nothing };
        let value = residual.map(|r| &r.value);
        let (y, saved) = match (self.weight(weights.gate_up), self.weight(weights.down)) {
            (Weight::Dense(gate_up), Weight::Dense(down)) => {
                let values = mlp::Weights { gate_up: &gate_up, down: &down };
                mlp::forward(self.arena, x.value, values, value, keep)
            }
            (gate_up, down) => (mlp::forward_by(self.arena, x.value, &gate_up, &down, value), None),
        };
        let (y, residual) = (self.var(y), residual.map(|r| r.id));
        if let Some(saved) = saved {
            self.record(|| Node::Mlp { y: y.id, x: x.id, weights, residual, saved });
        }
        y
    }

    /// `a + b`.
    pub fn add(&mut self, a: Var, b: &Var) -> Var {
        let y = add::forward(self.arena, a.value, &b.value);
        let y = self.var(y);
        self.record(|| Node::Add { y: y.id, a: a.id, b: b.id });
        y
    }

    /// `cap * tanh(x / cap)`.
    pub fn softcap(&mut self, x: Var, cap: f64) -> Var {
        let y = softcap::forward(self.arena, x.value, cap);
        let y = self.var(y);
        self.record(|| Node::Softcap { y: y.id, x: x.id, saved: softcap::Saved { y: y.value.clone(), cap } });
        y
    }

    /// The same value, its gradient scaled by `rho`.
    pub fn scale_grad(&mut self, x: &Var, rho: impl Into<Scale>) -> Var {
        let rho = rho.into();
        let y = self.var(scale_grad::forward(&x.value));
        self.record(|| Node::ScaleGrad { y: y.id, x: x.id, rho });
        y
    }

    /// Something for a report, where nothing is recorded.
    pub fn note(&mut self, note: impl FnOnce() -> Note) {
        if !self.recording {
            self.notes.push(note());
        }
    }

    /// What was noted so far.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// A stop-gradient: what `work` computes, nothing of which is recorded.
    pub fn detached(&mut self, work: impl FnOnce(&mut Tape<'a>) -> Tensor) -> Tensor {
        let recording = std::mem::replace(&mut self.recording, false);
        let value = work(self);
        self.recording = recording;
        match &mut self.frozen {
            Some(frozen) => frozen.pass(value),
            None => value,
        }
    }

    /// Runs `segment` without saving anything inside it; backward runs it again.
    pub fn checkpoint(&mut self, x: Var, segment: Segment) -> Var {
        if !self.recording {
            return (segment.run)(self, x);
        }
        self.recording = false;
        let inside = self.var(x.value.clone());
        let y = (segment.run)(self, inside);
        self.recording = true;
        let y = self.var(y.value);
        self.record(|| Node::Checkpoint { y: y.id, x: x.id, input: x.value, segment });
        y
    }

    /// Cross-entropy of the logits that `head` makes: losses `[N]` in nats. Each row enters the total loss by the factor `grad_scale`; the
    /// gradients of the matrices are added at once.
    pub fn lm_loss(&mut self, head: HeadOperands, targets: &Tensor, grad_scale: impl Into<Scale>) -> Tensor {
        self.judged_loss(head, targets, grad_scale, lm_loss::Report::Losses).0
    }

    /// As [`Tape::lm_loss`], with whether the likeliest token is wrong, `[N]`, where `report` asks for it.
    pub fn judged_loss(
        &mut self,
        head: HeadOperands,
        targets: &Tensor,
        grad_scale: impl Into<Scale>,
        report: lm_loss::Report,
    ) -> (Tensor, Option<Tensor>) {
        let HeadOperands { x, weight, low_rank, softcap } = head;
        let matrix = match self.weight(weight) {
            Weight::Dense(matrix) | Weight::ByRows(matrix) => matrix,
            Weight::Packed(head) => {
                assert!(low_rank.is_none(), "a packed head with a product of low rank");
                let judged = lm_loss::judge_packed(self.arena, &x.value, head, targets, softcap, report);
                return (judged.losses, judged.errors);
            }
        };
        let [v, _] = matrix.dims();
        let codes = low_rank.map(|(_, codes)| self.params.first_rows(codes, v));
        let learnt = low_rank.map(|(_, codes)| codes).filter(|&codes| self.params.layout().entry(codes).is_learnt());
        let (mut gradients, mut dcodes) = (None, None);
        if let Some(grads) = self.grads.as_mut().filter(|_| self.recording) {
            let dweight = match learnt {
                Some(codes) => {
                    let [dweight, of_codes] = grads.with_first_rows_mut(weight, codes, v);
                    dcodes = Some(of_codes);
                    dweight
                }
                None => grads.view_mut(weight),
            };
            gradients = Some(lm_loss::Gradients { scale: grad_scale.into(), dweight });
        }
        let low = low_rank.zip(codes.as_ref());
        let low = low.map(|((x, _), codes)| lm_loss::LowRank { x: &x.value, codes, dcodes });
        let operands = lm_loss::Operands { x: &x.value, weight: &matrix, low_rank: low, softcap };
        let rows = lm_loss::chunk_rows(v, x.value.device().is_gpu());
        let judged = lm_loss::judge(self.arena, operands, targets, gradients, rows, report);
        let leaves = [(Some(x.id), judged.dx), (low_rank.map(|(x, _)| x.id), judged.dx_low)];
        for (x, dx) in leaves.into_iter().filter_map(|(x, dx)| x.zip(dx)) {
            self.record(|| Node::Loss { name: "lm_loss", x, dx });
        }
        (judged.losses, judged.errors)
    }

    /// Adds `gradient` to the gradient of `x` from outside the tape, before [`Tape::backward`].
    pub fn seed(&mut self, x: &Var, gradient: Tensor) {
        self.accumulate(x.id, gradient);
    }

    /// The gradient that has arrived at `x`, after [`Tape::backward`] (a value from [`Tape::input`] keeps its own).
    pub fn take_gradient(&mut self, x: &Var) -> Option<Tensor> {
        self.take(x.id)
    }

    /// Walks back over everything recorded, adding to the gradients of the parameters; the tape is empty afterwards.
    pub fn backward(&mut self) {
        self.backward_to(0);
    }

    fn backward_to(&mut self, len: usize) {
        while self.nodes.len() > len {
            let node = self.nodes.pop().expect("longer than len");
            self.backward_node(node);
        }
    }

    fn take(&mut self, id: VarId) -> Option<Tensor> {
        self.adjoints[id.0 as usize].take()
    }

    fn accumulate(&mut self, id: VarId, gradient: Tensor) {
        let sum = match self.take(id) {
            Some(before) => add::forward(self.arena, before, &gradient),
            None => gradient,
        };
        self.adjoints[id.0 as usize] = Some(sum);
    }

    /// The gradient of what was added to a product is that of the sum.
    fn accumulate_residual(&mut self, residual: Option<VarId>, dsum: Tensor) {
        if let Some(residual) = residual {
            self.accumulate(residual, dsum);
        }
    }

    /// Dispatches to the op's backward. A value that nothing read has no gradient, and its node is skipped.
    fn backward_node(&mut self, node: Node) {
        let (arena, params) = (self.arena, self.params);
        match node {
            Node::Embedding { y, table, tokens } => {
                if let Some(dy) = self.take(y) {
                    embedding::backward(&mut self.grads().view_mut(table), &dy, &tokens);
                }
            }
            Node::Linear { y, x, weight, residual, saved } => {
                if let Some(dy) = self.take(y) {
                    let value = params.view(weight);
                    let dx = linear::backward(arena, &mut self.grads().view_mut(weight), &dy, &value, &saved);
                    self.accumulate(x, dx);
                    self.accumulate_residual(residual, dy);
                }
            }
            Node::RmsNorm { y, x, gain, saved } => {
                if let Some(dy) = self.take(y) {
                    let (value, own) = (gain.map(|gain| params.view(gain)), self.take(x));
                    let mut dgain = gain.map(|gain| self.grads().view_mut(gain));
                    let dx = rmsnorm::backward(arena, dgain.as_mut(), &dy, own, value.as_ref(), &saved);
                    self.accumulate(x, dx);
                }
            }
            Node::AddRmsNorm { sum, y, residual, delta, gain, saved } => {
                let dsum = self.take(sum);
                let dx = match self.take(y) {
                    Some(dy) => {
                        let (value, mut dgain) = (params.view(gain), self.grads().view_mut(gain));
                        rmsnorm::backward(arena, &mut dgain, &dy, dsum, &value, &saved)
                    }
                    None => match dsum {
                        Some(dsum) => dsum,
                        None => return,
                    },
                };
                drop(saved);
                self.accumulate(delta, dx.clone());
                self.accumulate(residual, dx);
            }
            Node::Rope { y, x, heads, t, table, norm, saved } => {
                if let Some(dy) = self.take(y) {
                    let gains = norm.map(|n| (params.view(n.q_gain), params.view(n.k_gain), n));
                    let norm = gains.as_ref().map(|(q_gain, k_gain, n)| {
                        (QkNorm { q_gain, k_gain, eps: n.eps }, self.grads().pair_mut(n.q_gain, n.k_gain))
                    });
                    let dx = rope::backward(arena, dy, heads, t, &table, norm, &saved);
                    self.accumulate(x, dx);
                }
            }
            Node::Attention { y, qkv, heads, t, saved } => {
                if let Some(dy) = self.take(y) {
                    let dqkv = attention::backward(arena, &dy, heads, t, &saved);
                    self.accumulate(qkv, dqkv);
                }
            }
            Node::Mlp { y, x, weights, residual, saved } => {
                if let Some(dy) = self.take(y) {
                    let (gate_up, down) = (params.view(weights.gate_up), params.view(weights.down));
                    let [mut dgate_up, mut ddown] = self.grads().pair_mut(weights.gate_up, weights.down);
                    let values = mlp::Weights { gate_up: &gate_up, down: &down };
                    let dx = mlp::backward(arena, [&mut dgate_up, &mut ddown], &dy, values, saved);
                    self.accumulate(x, dx);
                    self.accumulate_residual(residual, dy);
                }
            }
            Node::Add { y, a, b } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(a, dy.clone());
                    self.accumulate(b, dy);
                }
            }
            Node::Softcap { y, x, saved } => {
                if let Some(dy) = self.take(y) {
                    let dx = softcap::backward(arena, dy, &saved);
                    self.accumulate(x, dx);
                }
            }
            Node::Memory(node) => self.backward_memory(node),
            Node::ScaleGrad { y, x, rho } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, scale_grad::backward(arena, dy, &rho));
                }
            }
            Node::Checkpoint { y, x, input, segment } => {
                if let Some(dy) = self.take(y) {
                    self.backward_again(x, input, &segment, dy);
                }
            }
            Node::Part(node) => self.backward_part(node),
            Node::Loss { x, dx, .. } => self.accumulate(x, dx),
        }
    }

    /// Runs a segment again, recording it, and walks back over it.
    fn backward_again(&mut self, x: VarId, input: Tensor, segment: &Segment, dy: Tensor) {
        let (start, inside) = (self.nodes.len(), self.var(input));
        let inside_id = inside.id;
        let again = (segment.run)(self, inside);
        self.accumulate(again.id, dy);
        drop(again);
        self.backward_to(start);
        if let Some(dx) = self.take(inside_id) {
            self.accumulate(x, dx);
        }
    }

    fn grads(&mut self) -> &mut Grads {
        self.grads.as_mut().expect("only a recording tape has nodes")
    }
}

impl fmt::Display for Tape<'_> {
    /// A line per node: `%3 = linear %2 model.layers.0.mlp.down_proj.weight`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id: ParamId| &self.params.layout().entry(id).name;
        let span = |s: Span| match s.count {
            1 => name(s.first).to_string(),
            n => format!("{} (+{})", name(s.first), n - 1),
        };
        let onto = |residual: &Option<VarId>| residual.map_or(String::new(), |r| format!(" + {r}"));
        for node in &self.nodes {
            match node {
                Node::Embedding { y, table, .. } => writeln!(f, "{y} = embedding {}", name(*table)),
                Node::Linear { y, x, weight, residual, .. } => {
                    writeln!(f, "{y} = linear {x} {}{}", span(*weight), onto(residual))
                }
                Node::RmsNorm { y, x, gain, .. } => {
                    writeln!(f, "{y} = rmsnorm {x}{}", gain.map_or(String::new(), |gain| format!(" {}", name(gain))))
                }
                Node::AddRmsNorm { sum, y, residual, delta, gain, .. } => {
                    writeln!(f, "{sum}, {y} = add_rmsnorm {residual} {delta} {}", name(*gain))
                }
                Node::Rope { y, x, norm, .. } => {
                    writeln!(f, "{y} = rope {x}{}", norm.map_or(String::new(), |n| format!(" {}", name(n.q_gain))))
                }
                Node::Attention { y, qkv, .. } => writeln!(f, "{y} = attention {qkv}"),
                Node::Mlp { y, x, weights: MlpParams { gate_up, down }, residual, .. } => {
                    writeln!(f, "{y} = mlp {x} {} {}{}", span(*gate_up), name(*down), onto(residual))
                }
                Node::Add { y, a, b } => writeln!(f, "{y} = add {a} {b}"),
                Node::Softcap { y, x, saved } => writeln!(f, "{y} = softcap {x} {}", saved.cap),
                Node::Memory(node) => node.write(f, &name),
                Node::ScaleGrad { y, x, .. } => writeln!(f, "{y} = scale_grad {x}"),
                Node::Checkpoint { y, x, segment, .. } => writeln!(f, "{y} = checkpoint {x} {segment:?}"),
                Node::Part(node) => node.write(f),
                Node::Loss { name, x, .. } => writeln!(f, "{name} {x}"),
            }?;
        }
        Ok(())
    }
}

impl fmt::Display for VarId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}
