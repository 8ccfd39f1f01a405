//! The ops of a state that is carried along a sequence, on the tape: the delta rule and what makes its operands.

use super::{Node, Tape, Var, VarId};
use crate::ops::{decay_gate, delta_rule, rmsnorm, short_conv, sigmoid_gate, unit_norm};
use crate::tensor::{ParamId, Tensor};
use std::fmt;

/// The parameters of a decay: each head's rate, then the offsets of its channels, in that order in the layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecayParams {
    pub a: ParamId,
    pub dt: ParamId,
}

/// The operands of the delta rule, as in [`delta_rule::Inputs`].
#[derive(Clone, Copy, Debug)]
pub struct DeltaOperands<T> {
    pub q: T,
    pub k: T,
    pub v: T,
    pub log_alpha: T,
    pub beta: T,
}

/// One of these ops as recorded.
#[derive(Debug)]
pub enum MemoryNode {
    ShortConv { y: VarId, x: VarId, w: ParamId, t: usize, saved: short_conv::Saved },
    HeadNorm { y: VarId, x: VarId, gain: Option<ParamId>, saved: rmsnorm::Saved },
    UnitNorm { y: VarId, x: VarId, d: usize, saved: unit_norm::Saved },
    DecayGate { y: VarId, f: VarId, rates: DecayParams, saved: decay_gate::Saved },
    SigmoidGate { y: VarId, x: Option<VarId>, gate: VarId, saved: sigmoid_gate::Saved },
    DeltaRule { o: VarId, x: DeltaOperands<VarId>, dims: delta_rule::Dims, t: usize, saved: Box<delta_rule::Saved> },
}

impl MemoryNode {
    /// Its line; `name` of a parameter.
    pub(super) fn write<'n>(&self, to: &mut fmt::Formatter<'_>, name: &dyn Fn(ParamId) -> &'n String) -> fmt::Result {
        match self {
            MemoryNode::ShortConv { y, x, w, .. } => writeln!(to, "{y} = short_conv {x} {}", name(*w)),
            MemoryNode::HeadNorm { y, x, gain, .. } => {
                writeln!(to, "{y} = head_norm {x}{}", gain.map_or(String::new(), |gain| format!(" {}", name(gain))))
            }
            MemoryNode::UnitNorm { y, x, d, .. } => writeln!(to, "{y} = unit_norm {x} {d}"),
            MemoryNode::DecayGate { y, f, rates, .. } => writeln!(to, "{y} = decay_gate {f} {}", name(rates.a)),
            MemoryNode::SigmoidGate { y, x: Some(x), gate, .. } => writeln!(to, "{y} = sigmoid_gate {x} {gate}"),
            MemoryNode::SigmoidGate { y, x: None, gate, .. } => writeln!(to, "{y} = sigmoid_gate {gate}"),
            MemoryNode::DeltaRule { o, x: DeltaOperands { q, k, v, log_alpha, beta }, .. } => {
                writeln!(to, "{o} = delta_rule {q} {k} {v} {log_alpha} {beta}")
            }
        }
    }
}

impl Tape<'_> {
    fn record_memory(&mut self, node: impl FnOnce() -> MemoryNode) {
        self.record(|| Node::Memory(node()));
    }

    /// A causal convolution of 4 taps of each channel and SiLU over rows of `t` tokens; also the rows to go on from, `[B, 3, C]`.
    pub fn short_conv(&mut self, x: &Var, w: ParamId, t: usize, past: short_conv::Past) -> (Var, Tensor) {
        let (y, next, saved) = short_conv::forward(self.arena, &x.value, &self.params.view(w), t, past);
        let y = self.var(y);
        self.record_memory(|| MemoryNode::ShortConv { y: y.id, x: x.id, w, t, saved });
        (y, next)
    }

    /// RMSNorm of every `d` neighbours, the columns of a head, with a gain `[d]` or without.
    pub fn head_norm(&mut self, x: &Var, d: usize, gain: Option<ParamId>, eps: f64) -> Var {
        let (shape, value) = (x.value.shape(), gain.map(|gain| self.params.view(gain)));
        let heads = x.value.reshape([x.value.elems() / d, d]);
        let (y, saved) = rmsnorm::forward(self.arena, &heads, value.as_ref(), eps);
        let y = self.var(y.reshape(shape));
        self.record_memory(|| MemoryNode::HeadNorm { y: y.id, x: x.id, gain, saved });
        y
    }

    /// Every `d` neighbours to unit length.
    pub fn unit_norm(&mut self, x: &Var, d: usize) -> Var {
        let (y, saved) = unit_norm::forward(self.arena, &x.value, d);
        let y = self.var(y);
        self.record_memory(|| MemoryNode::UnitNorm { y: y.id, x: x.id, d, saved });
        y
    }

    /// `-exp(A) softplus(f + dt)`.
    pub fn decay_gate(&mut self, f: &Var, rates: DecayParams) -> Var {
        let (a, dt) = (self.params.view(rates.a), self.params.view(rates.dt));
        let (y, saved) = decay_gate::forward(self.arena, &f.value, decay_gate::Rates { a: &a, dt: &dt });
        let y = self.var(y);
        self.record_memory(|| MemoryNode::DecayGate { y: y.id, f: f.id, rates, saved });
        y
    }

    /// `x` times the sigmoid of `gate`; without `x` the sigmoid.
    pub fn sigmoid_gate(&mut self, x: Option<&Var>, gate: &Var) -> Var {
        let (y, saved) = sigmoid_gate::forward(self.arena, x.map(|x| &x.value), &gate.value);
        let (y, x) = (self.var(y), x.map(|x| x.id));
        self.record_memory(|| MemoryNode::SigmoidGate { y: y.id, x, gate: gate.id, saved });
        y
    }

    /// The gated delta rule over rows of `t` tokens: the output, and the state after the last token, which takes no gradient.
    pub fn delta_rule(
        &mut self,
        x: DeltaOperands<&Var>,
        dims: delta_rule::Dims,
        t: usize,
        past: delta_rule::Past,
    ) -> (Var, Tensor) {
        use delta_rule::{Inputs, Keep, Output};
        let DeltaOperands { q, k, v, log_alpha, beta } = x;
        let [q, k, v, log_alpha, beta] = [q, k, v, log_alpha, beta].map(|x| &x.value);
        let keep = if self.recording { Keep::Everything } else { Keep::Nothing };
        let inputs = Inputs { q, k, v, log_alpha, beta };
        let Output { o, state, saved } = delta_rule::forward(self.arena, inputs, dims, t, past, keep);
        let o = self.var(o);
        if let Some(saved) = saved {
            let x = DeltaOperands { q: x.q.id, k: x.k.id, v: x.v.id, log_alpha: x.log_alpha.id, beta: x.beta.id };
            self.record_memory(|| MemoryNode::DeltaRule { o: o.id, x, dims, t, saved: saved.into() });
        }
        (o, state)
    }

    /// The next `t` tokens of one sequence, on a tape that only computes: `state` moves on in place.
    pub fn delta_rule_next(
        &mut self,
        x: DeltaOperands<&Var>,
        dims: delta_rule::Dims,
        t: usize,
        state: &mut Tensor,
    ) -> Var {
        assert!(!self.recording, "a state that moves on in place has no way back");
        if t >= delta_rule::CHUNK {
            let past = delta_rule::Past { starts: None, state: Some(state) };
            let (o, after) = self.delta_rule(x, dims, t, past);
            state.copy_from(&after);
            return o;
        }
        let DeltaOperands { q, k, v, log_alpha, beta } = x;
        let [q, k, v, log_alpha, beta] = [q, k, v, log_alpha, beta].map(|x| &x.value);
        let inputs = delta_rule::Inputs { q, k, v, log_alpha, beta };
        let o = delta_rule::recurrent(self.arena, inputs, dims, t, None, state);
        self.var(o)
    }

    /// The part of [`Tape::backward`] of these ops.
    pub(super) fn backward_memory(&mut self, node: MemoryNode) {
        let (arena, params) = (self.arena, self.params);
        match node {
            MemoryNode::ShortConv { y, x, w, t, saved } => {
                if let Some(dy) = self.take(y) {
                    let value = params.view(w);
                    let dx = short_conv::backward(arena, &mut self.grads().view_mut(w), &dy, &value, t, &saved);
                    self.accumulate(x, dx);
                }
            }
            MemoryNode::HeadNorm { y, x, gain, saved } => {
                if let Some(dy) = self.take(y) {
                    let (value, shape) = (gain.map(|gain| params.view(gain)), dy.shape());
                    let mut dgain = gain.map(|gain| self.grads().view_mut(gain));
                    let dy = dy.reshape(saved.x.shape());
                    let dx = rmsnorm::backward(arena, dgain.as_mut(), &dy, None, value.as_ref(), &saved);
                    self.accumulate(x, dx.reshape(shape));
                }
            }
            MemoryNode::UnitNorm { y, x, d, saved } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, unit_norm::backward(arena, &dy, d, &saved));
                }
            }
            MemoryNode::DecayGate { y, f, rates, saved } => {
                if let Some(dy) = self.take(y) {
                    let (a, dt) = (params.view(rates.a), params.view(rates.dt));
                    let [mut da, mut ddt] = self.grads().pair_mut(rates.a, rates.dt);
                    let values = decay_gate::Rates { a: &a, dt: &dt };
                    let df = decay_gate::backward(arena, [&mut da, &mut ddt], &dy, values, &saved);
                    self.accumulate(f, df);
                }
            }
            MemoryNode::SigmoidGate { y, x, gate, saved } => {
                if let Some(dy) = self.take(y) {
                    let (dx, dgate) = sigmoid_gate::backward(arena, &dy, &saved);
                    self.accumulate(gate, dgate);
                    if let (Some(x), Some(dx)) = (x, dx) {
                        self.accumulate(x, dx);
                    }
                }
            }
            MemoryNode::DeltaRule { o, x, dims, t, saved } => {
                if let Some(dout) = self.take(o) {
                    let d = delta_rule::backward(arena, &dout, None, dims, t, &saved);
                    let to = [(x.q, d.q), (x.k, d.k), (x.v, d.v), (x.log_alpha, d.log_alpha), (x.beta, d.beta)];
                    to.into_iter().for_each(|(x, dx)| self.accumulate(x, dx));
                }
            }
        }
    }
}
