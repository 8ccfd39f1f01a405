//! The ops of parts beyond the backbone, on the tape: the blend of stages, the concept head, the hypercube, reads of banks,
//! the self-model, the latent, the energy heads.

use super::{Node, Tape, Var, VarId};
use crate::ops::bank_product::{self, Side};
use crate::ops::energy_contrast::{self, Pair};
use crate::ops::select_rows::{self, Stride};
use crate::ops::{
    blend, concept_loss, embedding, energy_score, hypercube, latent, relu_squared, self_loss, top_k_softmax,
};
use crate::tensor::{ParamId, Role, Scale, Shape, Tensor};
use std::fmt;

/// A blend of three streams: the controller where there is a source, the bias, and the gain of the norm that follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlendParams {
    pub controller: Option<ParamId>,
    pub bias: ParamId,
    pub gain: ParamId,
}

/// The tables of a concept head; codes that the layout calls fixed get no gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConceptParams {
    pub codes: ParamId,
    pub bias: ParamId,
    pub idf: ParamId,
}

/// One of these ops as recorded.
#[derive(Debug)]
pub enum PartNode {
    Blend { y: VarId, x: VarId, streams: [VarId; 3], weights: BlendParams, saved: Box<blend::Saved> },
    HypercubeCode { y: VarId, x: VarId, saved: hypercube::Saved },
    SelectRows { y: VarId, x: VarId, n: usize, stride: Stride },
    BankProduct { y: VarId, x: VarId, bank: Tensor, side: Side },
    TopK { a: VarId, scores: VarId, statistics: Option<ParamId>, saved: top_k_softmax::Saved },
    LatentSample { z: VarId, h: VarId, factor: Scale, saved: Box<latent::Saved> },
    MaskRows { y: VarId, x: VarId, kept: Tensor },
    GatherRows { y: VarId, x: VarId, n: usize, rows: Tensor },
    Reshape { y: VarId, x: VarId, from: Shape },
    ReluSquared { y: VarId, x: VarId, saved: relu_squared::Saved },
}

impl PartNode {
    /// Its line.
    pub(super) fn write(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartNode::Blend { y, x, streams: [a, b, c], .. } => writeln!(to, "{y}, {x} = blend {a} {b} {c}"),
            PartNode::HypercubeCode { y, x, .. } => writeln!(to, "{y} = hypercube_code {x}"),
            PartNode::SelectRows { y, x, stride, .. } => writeln!(to, "{y} = select_rows {x} every {}", stride.every),
            PartNode::BankProduct { y, x, side, .. } => writeln!(to, "{y} = bank_product {x} {side:?}"),
            PartNode::TopK { a, scores, .. } => writeln!(to, "{a} = top_k_softmax {scores}"),
            PartNode::LatentSample { z, h, .. } => writeln!(to, "{z} = latent_sample {h}"),
            PartNode::MaskRows { y, x, .. } => writeln!(to, "{y} = mask_rows {x}"),
            PartNode::GatherRows { y, x, .. } => writeln!(to, "{y} = gather_rows {x}"),
            PartNode::Reshape { y, x, .. } => writeln!(to, "{y} = reshape {x}"),
            PartNode::ReluSquared { y, x, .. } => writeln!(to, "{y} = relu_squared {x}"),
        }
    }
}

impl Tape<'_> {
    fn record_part(&mut self, node: impl FnOnce() -> PartNode) {
        self.record(|| Node::Part(node()));
    }

    /// Three streams blended by weights of each row: the blend, its norm, and the weights `[N, 3]`.
    pub fn blend(&mut self, streams: [&Var; 3], weights: BlendParams, options: blend::Options) -> (Var, Var, Tensor) {
        let BlendParams { controller, bias, gain } = weights;
        let controller = controller.map(|controller| self.params.view(controller));
        let (bias, gain) = (self.params.view(bias), self.params.view(gain));
        let values = blend::Weights { controller: controller.as_ref(), bias: &bias, gain: &gain };
        let (y, x, saved) = blend::forward(self.arena, streams.map(|h| h.value.clone()), values, options);
        let (y, x, shares) = (self.var(y), self.var(x), saved.weights.clone());
        self.record_part(|| PartNode::Blend {
            y: y.id,
            x: x.id,
            streams: streams.map(|h| h.id),
            weights,
            saved: Box::new(saved),
        });
        (y, x, shares)
    }

    /// Cross-entropy of the logits `b + x U^T` against the bags in `windows [M, W]`: losses `[M]` in nats. Each enters the total loss by the
    /// factor `grad_scale`; the gradient of the codes is added at once.
    pub fn concept_loss(
        &mut self,
        x: &Var,
        tables: ConceptParams,
        windows: &Tensor,
        grad_scale: impl Into<Scale>,
    ) -> Tensor {
        let is_learnt = self.params.layout().entry(tables.codes).role != Role::Fixed;
        let gradients = match &mut self.grads {
            Some(grads) if self.recording => {
                let dcodes = is_learnt.then(|| grads.view_mut(tables.codes));
                Some(concept_loss::Gradients { scale: grad_scale.into(), dcodes })
            }
            _ => None,
        };
        let codes = self.params.view(tables.codes);
        let (bias, idf) = (self.params.master_view(tables.bias), self.params.master_view(tables.idf));
        let concepts = concept_loss::Concepts { codes: &codes, bias: &bias, idf: &idf };
        let (losses, dx) = concept_loss::forward(self.arena, &x.value, concepts, windows, gradients);
        if let Some(dx) = dx {
            self.record(|| Node::Loss { name: "concept_loss", x: x.id, dx });
        }
        losses
    }

    /// The nearest vertex of the hypercube of each row, straight through.
    pub fn hypercube_code(&mut self, x: Var) -> Var {
        let y = self.var(hypercube::forward(self.arena, &x.value));
        self.record_part(|| PartNode::HypercubeCode { y: y.id, x: x.id, saved: hypercube::Saved { u: x.value } });
        y
    }

    /// The entropy of codes less that of their mean: the loss `[1]`, which enters the total by `grad_scale`.
    pub fn code_entropy(&mut self, x: &Var, tau: impl Into<Scale>, grad_scale: impl Into<Scale>) -> Tensor {
        let factor = self.recording.then(|| grad_scale.into());
        let (loss, dx) = hypercube::entropy(self.arena, &x.value, &tau.into(), factor.as_ref());
        if let Some(dx) = dx {
            self.record(|| Node::Loss { name: "code_entropy", x: x.id, dx });
        }
        loss
    }

    /// Every so manieth row.
    pub fn select_rows(&mut self, x: &Var, stride: Stride) -> Var {
        let n = x.value.shape().rows_cols()[0];
        let y = self.var(select_rows::forward(self.arena, &x.value, stride));
        self.record_part(|| PartNode::SelectRows { y: y.id, x: x.id, n, stride });
        y
    }

    /// Rows multiplied with banks `[S, M, D]` that get no gradient and stay as they are until [`Tape::backward`].
    pub fn bank_product(&mut self, x: &Var, bank: &Tensor, side: Side) -> Var {
        let y = self.var(bank_product::forward(self.arena, &x.value, bank, side));
        self.record_part(|| PartNode::BankProduct { y: y.id, x: x.id, bank: bank.clone(), side });
        y
    }

    /// Softmax over the highest scores of each row `[N, M]` of those that it sees. What each entry is worth is added to the gradient of
    /// `statistics [2, M]` (see [`top_k_softmax`]).
    pub fn top_k_softmax(
        &mut self,
        scores: &Var,
        sight: Option<top_k_softmax::Sight>,
        options: top_k_softmax::Options,
        statistics: Option<ParamId>,
    ) -> Var {
        let (a, saved) = top_k_softmax::forward(self.arena, &scores.value, sight, options);
        let a = self.var(a);
        self.record_part(|| PartNode::TopK { a: a.id, scores: scores.id, statistics, saved });
        a
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Var, shape: impl Into<Shape>) -> Var {
        let y = self.var(x.value.reshape(shape));
        self.record_part(|| PartNode::Reshape { y: y.id, x: x.id, from: x.value.shape() });
        y
    }

    /// Rows that are kept; the others are 0.
    pub fn mask_rows(&mut self, x: &Var, kept: &Tensor) -> Var {
        let y = self.var(latent::mask_rows(self.arena, &x.value, kept));
        self.record_part(|| PartNode::MaskRows { y: y.id, x: x.id, kept: kept.clone() });
        y
    }

    /// Latents drawn from `h`, `mu` then `log sigma`, and the weighted divergence of each chunk, which enters the total loss by the factor
    /// `grad_scale`.
    pub fn latent_sample(
        &mut self,
        h: &Var,
        targets: &Tensor,
        noise: Option<&Scale>,
        options: latent::Options,
        grad_scale: impl Into<Scale>,
    ) -> (Var, Tensor) {
        let saved = latent::Saved { h: h.value.clone(), targets: targets.clone(), noise: noise.cloned(), options };
        let (z, kl) = latent::sample(self.arena, &saved);
        let z = self.var(z);
        let factor = grad_scale.into();
        self.record_part(|| PartNode::LatentSample { z: z.id, h: h.id, factor, saved: Box::new(saved) });
        (z, kl)
    }

    /// Rows of `x [N, C]` by number: `rows [M]` below `N` -> `[M, C]`.
    pub fn gather_rows(&mut self, x: &Var, rows: &Tensor) -> Var {
        let n = x.value.shape().rows_cols()[0];
        let y = self.var(embedding::forward(self.arena, &x.value, rows));
        self.record_part(|| PartNode::GatherRows { y: y.id, x: x.id, n, rows: rows.clone() });
        y
    }

    /// The energy score of samples against draws: losses of chunks, each of which enters the total loss by the factor `grad_scale`.
    pub fn energy_score(&mut self, zhat: &Var, truth: energy_score::Truth, grad_scale: impl Into<Scale>) -> Tensor {
        let factor = self.recording.then(|| grad_scale.into());
        let (losses, dzhat) = energy_score::score(self.arena, &zhat.value, truth, factor.as_ref());
        if let Some(dzhat) = dzhat {
            self.record(|| Node::Loss { name: "energy_score", x: zhat.id, dx: dzhat });
        }
        losses
    }

    /// The contrast of true with generated latents: losses of rows, each by its weight, which enter the total loss by `grad_scale`.
    pub fn energy_contrast(
        &mut self,
        pair: Pair<&Var>,
        documents: &Tensor,
        weight: f64,
        grad_scale: impl Into<Scale>,
    ) -> Tensor {
        let Pair { q, good, bad, bias } = pair;
        let factor = self.recording.then(|| grad_scale.into());
        let values = Pair { q: &q.value, good: &good.value, bad: &bad.value, bias: &bias.value };
        let (losses, to) = energy_contrast::contrast(self.arena, values, documents, weight, factor.as_ref());
        if let Some(to) = to {
            for (x, dx) in [(q, to.q), (good, to.good), (bad, to.bad), (bias, to.bias)] {
                self.record(|| Node::Loss { name: "energy_contrast", x: x.id, dx });
            }
        }
        losses
    }

    /// The retrieval of each chunk's key among those of other documents: losses of chunks, which enter the total loss by `grad_scale`.
    pub fn energy_retrieve(&mut self, q: &Var, k: &Var, documents: &Tensor, grad_scale: impl Into<Scale>) -> Tensor {
        let factor = self.recording.then(|| grad_scale.into());
        let (losses, to) = energy_contrast::retrieve(self.arena, [&q.value, &k.value], documents, factor.as_ref());
        for (x, dx) in [q, k].into_iter().zip(to.into_iter().flatten()) {
            self.record(|| Node::Loss { name: "energy_retrieve", x: x.id, dx });
        }
        losses
    }

    /// `max(x, 0)^2`.
    pub fn relu_squared(&mut self, x: Var) -> Var {
        let y = self.var(relu_squared::forward(self.arena, &x.value));
        self.record_part(|| PartNode::ReluSquared { y: y.id, x: x.id, saved: relu_squared::Saved { x: x.value } });
        y
    }

    /// The loss of what a self-model says: losses `[N]`, each of which enters the total loss by the factor `grad_scale`.
    pub fn self_loss(&mut self, s: &Var, truth: self_loss::Truth, grad_scale: impl Into<Scale>) -> Tensor {
        let factor = self.recording.then(|| grad_scale.into());
        let (losses, ds) = self_loss::forward(self.arena, &s.value, truth, factor.as_ref());
        if let Some(ds) = ds {
            self.record(|| Node::Loss { name: "self_loss", x: s.id, dx: ds });
        }
        losses
    }

    /// Dispatches to the op's backward.
    pub(super) fn backward_part(&mut self, node: PartNode) {
        let arena = self.arena;
        match node {
            PartNode::Blend { y, x, streams, weights, saved } => {
                let (dy, dx) = (self.take(y), self.take(x));
                if dy.is_some() || dx.is_some() {
                    let dstreams = self.blend_backward(dy, dx, weights, &saved);
                    drop(saved);
                    streams.into_iter().zip(dstreams).for_each(|(stream, d)| self.accumulate(stream, d));
                }
            }
            PartNode::HypercubeCode { y, x, saved } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, hypercube::backward(arena, &dy, &saved));
                }
            }
            PartNode::LatentSample { z, h, factor, saved } => {
                let dz = self.take(z);
                self.accumulate(h, latent::backward(arena, dz.as_ref(), &factor, &saved));
            }
            PartNode::MaskRows { y, x, kept } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, latent::mask_rows(arena, &dy, &kept));
                }
            }
            PartNode::GatherRows { y, x, n, rows } => {
                if let Some(dy) = self.take(y) {
                    let [_, c] = dy.shape().rows_cols();
                    let mut dx = Tensor::zeros(arena, [n, c], dy.dtype().accumulator());
                    embedding::backward(&mut dx.whole_mut(), &dy, &rows);
                    self.accumulate(x, dx.cast(arena, dy.dtype()));
                }
            }
            PartNode::Reshape { y, x, from } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, dy.reshape(from));
                }
            }
            PartNode::ReluSquared { y, x, saved } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, relu_squared::backward(arena, &dy, &saved));
                }
            }
            PartNode::SelectRows { y, x, n, stride } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, select_rows::backward(arena, &dy, n, stride));
                }
            }
            PartNode::BankProduct { y, x, bank, side } => {
                if let Some(dy) = self.take(y) {
                    self.accumulate(x, bank_product::forward(arena, &dy, &bank, side.other()));
                }
            }
            PartNode::TopK { a, scores, statistics, saved } => {
                if let Some(da) = self.take(a) {
                    let statistics = statistics.map(|id| self.grads().view_mut(id));
                    let dscores = top_k_softmax::backward(arena, &da, &saved, statistics);
                    self.accumulate(scores, dscores);
                }
            }
        }
    }

    fn blend_backward(
        &mut self,
        dy: Option<Tensor>,
        dx: Option<Tensor>,
        weights: BlendParams,
        saved: &blend::Saved,
    ) -> [Tensor; 3] {
        let (arena, params, BlendParams { controller, bias, gain }) = (self.arena, self.params, weights);
        let value = controller.map(|controller| params.view(controller));
        let (bias_value, gain_value) = (params.view(bias), params.view(gain));
        let values = blend::Weights { controller: value.as_ref(), bias: &bias_value, gain: &gain_value };
        let grads = self.grads();
        let gradients = match controller {
            Some(controller) => {
                let [controller, bias, gain] = grads.disjoint_mut([controller.into(), bias.into(), gain.into()]);
                blend::Gradients { controller: Some(controller), bias, gain }
            }
            None => {
                let [bias, gain] = grads.disjoint_mut([bias.into(), gain.into()]);
                blend::Gradients { controller: None, bias, gain }
            }
        };
        blend::backward(arena, gradients, dy, dx, values, saved)
    }
}
