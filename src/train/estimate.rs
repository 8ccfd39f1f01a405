//! What a run will take, before it starts: parameters, memory, operations, tokens, time.

use super::config::RunConfig;
use crate::device::cpu::{Mat, Threads, WriteMode, matmul};
use crate::device::gemm::PARTS_BYTES_MAX;
use crate::model::parts::Storage;
use crate::model::{Gpt, ModelConfig, kda};
use crate::ops::lm_loss;
use crate::tensor::Role;
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

/// Most bytes that a micro-batch's activations take: the most of what is alive in the loss and in the steps of a block's
/// backward, of which the last block's come when everything before it is still saved.
pub fn activation_bytes(config: &RunConfig) -> usize {
    let (m, train) = (&config.model, &config.train);
    let n = train.rows * train.seq_len;
    let (c, f, v) = (m.width, m.ffn_width, m.vocab_size);
    let (q, row) = (m.heads * m.head_dim, (m.heads + 2 * m.kv_heads) * m.head_dim);
    let (size, wide) = (config.device.dtype.size_bytes(), config.device.dtype.accumulator().size_bytes());
    // Products of narrow operands widen them first, into copies.
    let copy = if size == wide { 0 } else { wide };
    let blocks = (0..m.layers).map(|layer| block_bytes(m, layer, size, wide));
    let (saved, largest) = blocks.fold((0, 0), |(sum, most), block| (sum + block, most.max(block)));
    let (at_loss, at_block) = match train.recompute {
        false => (saved, saved),
        true => (m.layers * c * size, m.layers * c * size + largest),
    };
    // The stream and its norm, the gradient of the norm, a chunk of logits.
    let loss = n * (at_loss + 2 * c * size + c * wide + 2 * wide + if copy > 0 { c * (copy + size) } else { 0 })
        + lm_loss::chunk_rows(v, config.device.is_gpu()).min(n) * v * wide
        + v * c * copy;
    // Backward of `[n, i] -> [n, o]` beyond its input and the gradient that arrives.
    let linear = |o: usize, i: usize| n * (i * size + (o + i) * copy) + o * i * copy;
    // The gradient of the stream is alive in all of a block; what was saved goes once it is used.
    let held = |freed: usize, gradient: usize| n * (at_block + (c + gradient) * size - freed * size);
    let in_block = [
        held(0, 0) + linear(c, f),
        held(0, 2 * f),
        held(3 * f, 2 * f) + linear(2 * f, c),
        held(3 * f + 2 * c, 0) + linear(c, q),
        held(3 * f + 2 * c, q + row) + n * 2 * (row + q) * copy,
        held(3 * f + 2 * c + q + row, row) + linear(row, c),
    ];
    // Of a layer with a state, what the delta rule takes beside all that its mixer saved.
    let in_state = m.has_kda().then(|| {
        let [elems, wide_elems] = kda::backward_elems(m);
        held(3 * f + 2 * c, elems) + n * (wide_elems * wide + 4 * q * copy)
    });
    let most = in_block.into_iter().chain(in_state).fold(loss, usize::max);
    let parts = m.parts.held(m, n, Storage { is_narrow: copy > 0, on_gpu: config.device.is_gpu() });
    // The losses of parts come after the language model's, when its logits are gone and the gradient of the norm is there.
    let at_parts = n * (at_loss + 2 * c * size) + parts.loss_words * size_of::<f32>();
    let in_part = n * ((at_loss + 2 * c * size) + parts.passing_elems_per_token * (size + copy));
    let most = most.max(at_parts).max(in_part) + n * parts.elems_per_token * (size + copy);
    // Blocks of the arena are rounded up: 2 % and a page for small models.
    most + most / 50 + 4096
}

/// Bytes of the step arena on a GPU, where they are taken at once: the estimate with a margin, or what an update of Muon needs
/// for its largest matrix, whichever is more.
pub fn gpu_arena_bytes(config: &RunConfig, model: &Gpt) -> usize {
    let matrices = model.layout().entries().iter().filter(|entry| entry.role == Role::Matrix);
    let muon = matrices.map(|entry| {
        let [rows, cols] = entry.shape.dims();
        (3 * rows * cols + 2 * rows.min(cols).pow(2)) * size_of::<f32>()
    });
    let step = activation_bytes(config);
    (step + step / 4).max(muon.max().unwrap_or(0)) + PARTS_BYTES_MAX + (2 << 20)
}

/// Bytes that a block saves per token, of `size` and `wide` bytes an element: two sums, two norms, gate, up and their product; of attention
/// packed rows (twice with QK-norm) and the output.
fn block_bytes(m: &ModelConfig, layer: usize, size: usize, wide: usize) -> usize {
    let row = (m.heads + 2 * m.kv_heads) * m.head_dim;
    let [elems, scalars] = match (m.is_kda(layer), m.qk_norm) {
        (true, _) => kda::held_elems(m),
        (false, true) => [2 * row + m.heads * m.head_dim, 2 * m.heads + m.kv_heads],
        (false, false) => [row + m.heads * m.head_dim, m.heads],
    };
    (4 * m.width + 3 * m.ffn_width + elems) * size + (2 + scalars) * wide
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
