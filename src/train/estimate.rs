//! What a run will take, before it starts: parameters, memory, operations, tokens, time.

use super::config::RunConfig;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul};
use crate::model::{Gpt, ModelConfig};
use crate::ops::lm_loss;
use serde::Serialize;
use std::time::Instant;

/// The estimate of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    pub parameters: usize,
    /// Master values, rounded copy, gradients and both moments.
    pub state_bytes: usize,
    /// Most bytes of the step arena.
    pub activation_bytes: usize,
    pub memory_bytes: usize,
    pub tokens: u64,
    pub flops: f64,
    /// By a matrix product timed now; 0 when it was not timed.
    pub seconds: f64,
}

/// Share of the matrix product's speed that whole training steps reach on a CPU, measured at depth 4.
const STEP_EFFICIENCY: f64 = 0.6;

/// Estimates `config` for the parameters of `model`; `timed` runs a short matrix product for the time.
pub fn estimate(config: &RunConfig, model: &Gpt, timed: bool) -> Estimate {
    let parameters = model.layout().elems();
    let dtype = config.device.dtype;
    let rounded = if dtype == dtype.accumulator() { 0 } else { dtype.size_bytes() };
    let state_bytes = parameters * (4 * dtype.accumulator().size_bytes() + rounded);
    let activation_bytes = activation_bytes(config);
    let tokens = config.train.steps * config.train.batch_tokens as u64;
    let flops = tokens as f64 * config.model.train_flops_per_token(config.train.seq_len) as f64;
    let seconds = if timed { flops / (STEP_EFFICIENCY * matmul_flops_per_second()) } else { 0.0 };
    let memory_bytes = state_bytes + activation_bytes;
    Estimate { parameters, state_bytes, activation_bytes, memory_bytes, tokens, flops, seconds }
}

/// Bytes that a micro-batch's activations take at most, saved values and the widest backward op together.
pub fn activation_bytes(config: &RunConfig) -> usize {
    let (m, rows) = (&config.model, config.train.rows);
    let n = rows * config.train.seq_len;
    let size = config.device.dtype.size_bytes();
    let wide = config.device.dtype.accumulator().size_bytes();
    let row = (m.heads + 2 * m.kv_heads) * m.head_dim;
    let block = block_elems(m, row) * size + (m.heads + 2 + m.heads + m.kv_heads) * wide;
    // Residual stream, its gradient, the norm before the head, and the loss's own chunk of logits.
    let ends = 5 * m.width * size;
    let logits = lm_loss::chunk_rows(m.vocab_size).min(n) * m.vocab_size * wide;
    // Backward of the feed-forward half holds three gradients of its width; attention two packed rows.
    let backward = (3 * m.ffn_width + 2 * row.max(m.width)) * size;
    // Matrix products widen bf16 operands: activations and weights of one layer, and the head's.
    let widened = if size == wide {
        0
    } else {
        let weights = (2 * m.ffn_width).max(row) * m.width;
        n * (2 * m.ffn_width + row + 2 * m.width) * wide + (weights + 2 * m.vocab_size * m.width) * wide
    };
    let saved = match config.train.recompute {
        false => m.layers * block,
        true => m.layers * m.width * size + block,
    };
    n * (saved + ends + backward) + logits + widened
}

/// Elements that a block saves per token: two sums, two norms, packed rows (twice with QK-norm), attention's output, gate,
/// up and their product.
fn block_elems(m: &ModelConfig, row: usize) -> usize {
    let packed = if m.qk_norm { 2 * row } else { row };
    4 * m.width + packed + m.heads * m.head_dim + 3 * m.ffn_width
}

/// Speed of a 384-cubed product on all threads: the median of a few.
fn matmul_flops_per_second() -> f64 {
    const SIDE: usize = 384;
    let (a, b) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let mut c = vec![0.0f32; SIDE * SIDE];
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            let (a, b) = (Mat::new(&a, SIDE, SIDE), Mat::new(&b, SIDE, SIDE));
            matmul(&mut c, a, b, WriteMode::Overwrite, Threads::All);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    2.0 * (SIDE * SIDE * SIDE) as f64 / seconds[seconds.len() / 2]
}
