//! Optimisers over the flat buffers: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.
//!
//! What a parameter gets is decided by its role alone ([`Plan`]), once, when the run starts.

pub mod adamw;
pub(super) mod gpu;
pub mod muon;

use crate::device::Device;
use crate::for_float;
use crate::tensor::{Arena, Float, Layout, Params, Role, Tensor};
use std::ops::Range;

/// Which optimiser a run uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Adamw,
    Muon,
}

/// How one range of the flat buffers is updated. Learning rates are multiplied by the schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub range: Range<usize>,
    pub rule: Rule,
    pub lr: f64,
    pub weight_decay: f64,
    /// It is not updated while the learning rate warms up.
    pub waits: bool,
}

/// How fast an update goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Multiplies every learning rate.
    pub lr_factor: f64,
    /// The learning rate warms up.
    pub is_warmup: bool,
}

impl From<f64> for Pace {
    /// After the warm-up.
    fn from(lr_factor: f64) -> Pace {
        Pace { lr_factor, is_warmup: false }
    }
}

impl Group {
    /// The learning rate of an update.
    fn lr_at(&self, pace: Pace) -> f64 {
        if self.waits && pace.is_warmup { 0.0 } else { self.lr * pace.lr_factor }
    }
}

/// The update rule of a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    Adamw {
        beta1: f64,
        beta2: f64,
        eps: f64,
    },
    /// `m = g`, `w = keep w + (1 - keep) m`: a running mean, whatever the learning rate.
    Average {
        keep: f64,
    },
    /// A `rows x cols` matrix.
    Muon {
        rows: usize,
        cols: usize,
        momentum: f64,
    },
}

/// What a running mean keeps at each step: it looks back over about a hundred.
const AVERAGE_KEEP: f64 = 0.99;

/// Who is updated how.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub kind: Kind,
    pub groups: Vec<Group>,
}

impl Plan {
    /// The plan for a model of `width`, with all learning rates times `lr_scale` and `weight_decay` on matrices (the
    /// optimiser's own default where none is given).
    ///
    /// AdamW: `1e-3 sqrt(256 / C)`, betas 0.9 and 0.95, eps 1e-8, decay 0.1. Muon: matrices 0.02; embeddings 0.2, head
    /// 0.004, gains and tables 0.01, the controller 0.001, each by `sqrt(768 / C)`, with AdamW at betas 0.8 and 0.95, eps 1e-10; decay 0.05.
    pub fn new(kind: Kind, layout: &Layout, width: usize, lr_scale: f64, weight_decay: Option<f64>) -> Plan {
        let group = |entry: &crate::tensor::flat::Entry| {
            let decays = matches!(entry.role, Role::Matrix | Role::Embedding | Role::Head);
            let (rule, lr, decay) = match kind {
                _ if entry.role == Role::Average => (Rule::Average { keep: AVERAGE_KEEP }, 0.0, 0.0),
                Kind::Adamw => {
                    let rule = Rule::Adamw { beta1: 0.9, beta2: 0.95, eps: 1e-8 };
                    (rule, 1e-3 * (256.0 / width as f64).sqrt(), weight_decay.unwrap_or(0.1))
                }
                Kind::Muon if entry.role == Role::Matrix => {
                    let [rows, cols] = entry.shape.dims();
                    (Rule::Muon { rows, cols, momentum: 0.95 }, 0.02, weight_decay.unwrap_or(0.05))
                }
                Kind::Muon => {
                    let base = match entry.role {
                        Role::Embedding => 0.2,
                        Role::Head => 0.004,
                        Role::Matrix | Role::Gain | Role::Table | Role::Fixed | Role::Average => 0.01,
                        // Three scores of a whole row: steps of 0.01 in each weight settle them in a few updates.
                        Role::Controller => 0.001,
                    };
                    (Rule::Adamw { beta1: 0.8, beta2: 0.95, eps: 1e-10 }, base * (768.0 / width as f64).sqrt(), 0.0)
                }
            };
            let weight_decay = if decays { decay } else { 0.0 };
            let lr = if !entry.is_learnt() { 0.0 } else { lr * lr_scale };
            Group { range: entry.range(), rule, lr, weight_decay, waits: entry.role == Role::Controller }
        };
        Plan { kind, groups: layout.entries().iter().map(group).collect() }
    }
}

/// The moments, flat like the parameters: AdamW uses both, Muon the first as its momentum.
pub struct Moments {
    pub first: Tensor,
    pub second: Tensor,
    /// Updates made so far.
    pub updates: u64,
}

impl Moments {
    /// These moments on `device`; by value, as the parameters.
    pub fn to(self, device: Device) -> Moments {
        Moments { first: self.first.to(device), second: self.second.to(device), updates: self.updates }
    }

    /// Zero moments for `params`, where they lie.
    pub fn zeros(params: &Params) -> Moments {
        let (shape, dtype) = (params.master().shape(), params.master().dtype());
        Moments {
            first: Tensor::owned_on(params.device(), shape.as_slice(), dtype),
            second: Tensor::owned_on(params.device(), shape.as_slice(), dtype),
            updates: 0,
        }
    }
}

/// One update of all parameters. `grad_factor` multiplies every gradient first (clipping). Scratch memory on a GPU comes from `arena`.
pub fn update(
    arena: &Arena,
    plan: &Plan,
    params: &mut Params,
    grads: &Tensor,
    moments: &mut Moments,
    grad_factor: f64,
    pace: impl Into<Pace>,
) {
    let pace = pace.into();
    moments.updates += 1;
    let updates = moments.updates;
    if let Device::Gpu(gpu) = grads.device() {
        let verdict = Tensor::from_slice(arena, [2], &[grad_factor as f32, 1.0]);
        let rates = gpu::rates(plan, updates, pace);
        let rates = Tensor::from_slice(arena, [rates.len()], &rates);
        gpu::launch(gpu, arena, plan, params.master_mut(), grads, moments, (&verdict, &rates));
        params.round();
        return;
    }
    for_float!(grads.dtype(), F => {
        let (grads, values) = (grads.as_slice::<F>(), params.master_mut().as_mut_slice::<F>());
        let (first, second) = (moments.first.as_mut_slice::<F>(), moments.second.as_mut_slice::<F>());
        for group in &plan.groups {
            let range = group.range.clone();
            let state = State {
                values: &mut values[range.clone()],
                grads: &grads[range.clone()],
                first: &mut first[range.clone()],
                second: &mut second[range],
            };
            let lr = group.lr_at(pace);
            match group.rule {
                Rule::Adamw { beta1, beta2, eps } => {
                    let step = adamw::Step { lr, beta1, beta2, eps, weight_decay: group.weight_decay, updates, grad_factor };
                    adamw::update(state, step);
                }
                Rule::Average { keep } => {
                    let [keep, rest, factor] = [keep, 1.0 - keep, grad_factor].map(F::from_f64);
                    for ((w, m), g) in state.values.iter_mut().zip(state.first).zip(state.grads) {
                        *m = factor * *g;
                        *w = keep * *w + rest * *m;
                    }
                }
                Rule::Muon { rows, cols, momentum } => {
                    let step = muon::Step { lr, momentum, weight_decay: group.weight_decay, grad_factor };
                    muon::update(state, rows, cols, step);
                }
            }
        }
    });
    params.round();
}

/// One range of the flat buffers.
pub struct State<'a, F> {
    pub values: &'a mut [F],
    pub grads: &'a [F],
    pub first: &'a mut [F],
    pub second: &'a mut [F],
}
