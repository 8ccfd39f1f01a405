//! What a pass says of its rows.

use crate::device::Device;
use crate::model::gpt::Output;
use crate::ops::sample::{self, Draw};
use crate::tensor::{Arena, DType};

/// What comes of one row.
pub(super) enum Next {
    /// The device drew it.
    Token(u32),
    /// The device found nothing that can be drawn.
    Nothing,
    /// Nobody drew yet.
    Logits(Vec<f32>),
}

/// What the model says of one row.
pub(super) struct Said {
    pub next: Next,
    /// Weights of Id, Ego and Superego.
    pub psyche: Option<[f32; 3]>,
}

impl Said {
    /// Of each row of `output`. A GPU draws where a draw depends on the logits alone, so that these need not come here.
    pub fn of(output: &Output, arena: &Arena, draws: &[Option<Draw>]) -> Vec<Said> {
        let [n, v] = output.logits.shape().rows_cols();
        let drawn = match output.logits.device() {
            Device::Gpu(_) if draws.iter().any(Option::is_some) => {
                let all: Vec<Draw> = draws.iter().map(|draw| draw.unwrap_or(Draw::FIRST)).collect();
                sample::forward(arena, &output.logits, &all)
            }
            _ => vec![None; n],
        };
        let psyche = output.psyche.as_ref().map(|weights| weights.to_f64());
        let row = |i: usize| {
            let next = match drawn[i].filter(|_| draws[i].is_some()) {
                Some(token) => Next::Token(token),
                None => {
                    let logits = output.logits.view(i * v, [v]).cast(arena, DType::F32).to(Device::Cpu);
                    Next::Logits(logits.as_slice::<f32>().to_vec())
                }
            };
            Said { next, psyche: stage_weights(psyche.as_deref(), i) }
        };
        (0..n).map(row).collect()
    }
}

/// Those of row `i` in `weights [N, 3]`.
pub(super) fn stage_weights(weights: Option<&[f64]>, i: usize) -> Option<[f32; 3]> {
    weights.map(|w| [w[3 * i] as f32, w[3 * i + 1] as f32, w[3 * i + 2] as f32])
}
