//! The gated delta rule: a matrix `S [dk, dv]` a head that decays, forgets what it held under a key, and takes the new value:
//! `S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T`, `o_t = S_t^T q_t`, `alpha = exp(log_alpha)`.
//!
//! Token by token ([`recurrent`], for decode): `e_t = v_t - (alpha_t S_{t-1})^T k_t`, `S_t = alpha_t S_{t-1} + beta_t k_t e_t^T`.
//! By chunks of [`CHUNK`] tokens ([`forward`], [`backward`]), with `P_ij = exp(sum of log_alpha over j+1 ..= i)` a key channel:
//!
//! - `E = (I + StrictTril(Kd) Diag(beta))^-1 (V - Kg S)`, `Kd_ij = sum_c k_ic k_jc P_ijc`, `Kg_i = k_i P_i` from the chunk's start;
//! - `O = Qg S + Tril(Qd) U`, `U = Diag(beta) E`, `Qd` and `Qg` likewise from q;
//! - `S' = Diag(P_last) S + Ke^T U`, `Ke_j = k_j P_last,j`.
//!
//! No decay is ever divided by: P is a product of factors `<= 1`, each `exp` of a sum that ends or begins between the two tokens, so
//! any decay, even `alpha = 0`, is exact. Where a document starts (`starts` is 1) the state is zero before the token: P is 0 across.
//!
//! Saves the inputs, `E` and the state before every chunk. Backward, with `dS` the gradient of the state after the chunk:
//! `dU = Tril(Qd)^T dO + Ke dS`, `dB = (I + StrictTril(Diag(beta) Kd))^-T dU`, `dV = dW = Diag(beta) dB`, `dbeta_i = <dB_i, E_i>`,
//! `dQd = Tril(dO U^T)`, `dKd = -StrictTril(dW U^T)`, `dQg = dO S^T`, `dKg = -dW S^T`, `dKe = U dS^T`,
//! the gradient of the state before the chunk `Qg^T dO - Kg^T dW + Diag(P_last) dS`; and each factor of P hands its gradient to the
//! `log_alpha` it sums.
//!
//! Learnt from: Yang et al. 2024 (the chunked delta rule), Kimi Linear (decay by key channel).

mod chunk;
mod gpu;

use crate::device::Device;
use crate::device::cpu::{SharedMut, simd};
use crate::for_float;
use crate::tensor::{Arena, DType, Float, Tensor};
use chunk::{Chunk, Gradient, Scratch};
pub use gpu::{KEY_CHANNELS_SMEM_BYTES, columns_smem_bytes};
use rayon::prelude::*;

/// Tokens of a chunk.
pub const CHUNK: usize = 64;

/// Heads, and the widths of their keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dims {
    pub h: usize,
    pub dk: usize,
    pub dv: usize,
}

/// The operands, rows of all heads of a token: `q`, `k`, `log_alpha [N, H dk]`, `v [N, H dv]`, `beta [N, H]`. `log_alpha <= 0`,
/// `beta` in (0, 1), keys of unit length (longer ones let the state grow).
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub log_alpha: &'a Tensor,
    pub beta: &'a Tensor,
}

/// What came before: where documents start, `[N]` u32, 1 at the first token of each; and the state before the first token,
/// `[B, H, dk, dv]` in the accumulator type, zero where absent.
#[derive(Clone, Copy, Default)]
pub struct Past<'a> {
    pub starts: Option<&'a Tensor>,
    pub state: Option<&'a Tensor>,
}

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub log_alpha: Tensor,
    pub beta: Tensor,
    pub starts: Option<Tensor>,
    /// `E [N, H dv]` in the accumulator type: what the state did not yet say of each value.
    pub errors: Tensor,
    /// `[B, H, chunks, dk dv]` in the accumulator type: the state before each chunk.
    pub states: Tensor,
}

impl Saved {
    fn new(inputs: Inputs, starts: Option<&Tensor>, errors: Tensor, states: Tensor) -> Saved {
        let [q, k, v, log_alpha, beta] =
            [inputs.q, inputs.k, inputs.v, inputs.log_alpha, inputs.beta].map(Tensor::clone);
        Saved { q, k, v, log_alpha, beta, starts: starts.cloned(), errors, states }
    }

    fn inputs(&self) -> Inputs<'_> {
        let Saved { q, k, v, log_alpha, beta, .. } = self;
        Inputs { q, k, v, log_alpha, beta }
    }
}

/// Whether forward keeps what backward needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    Everything,
    Nothing,
}

/// What forward computed.
pub struct Output {
    /// `[N, H dv]`.
    pub o: Tensor,
    /// After the last token, `[B, H, dk, dv]` in the accumulator type.
    pub state: Tensor,
    pub saved: Option<Saved>,
}

/// Of each operand, and of the state before the first token (accumulator type).
pub struct Gradients {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub log_alpha: Tensor,
    pub beta: Tensor,
    pub state: Tensor,
}

/// Rows and batch, checked against every operand.
fn extents(inputs: Inputs, Dims { h, dk, dv }: Dims, t: usize, past: Past) -> [usize; 2] {
    let n = inputs.q.elems() / (h * dk);
    let fits = inputs.k.elems() == n * h * dk
        && inputs.q.elems() == n * h * dk
        && inputs.log_alpha.elems() == n * h * dk
        && inputs.v.elems() == n * h * dv
        && inputs.beta.elems() == n * h
        && past.starts.is_none_or(|starts| starts.elems() == n)
        && n.is_multiple_of(t);
    assert!(fits, "delta rule of {n} rows of {t} by {h} heads of {dk} and {dv}");
    assert!(past.state.is_none_or(|state| state.elems() == n / t * h * dk * dv), "a state for each row and head");
    [n, n / t]
}

/// The operands of all heads on the host, in the type that is computed in.
#[derive(Clone, Copy)]
struct Host<'a, F> {
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    log_alpha: &'a [F],
    beta: &'a [F],
    starts: Option<&'a [u32]>,
    dims: Dims,
}

/// Widened operands, which the slices of a [`Host`] borrow.
fn widen(arena: &Arena, inputs: Inputs) -> [Tensor; 5] {
    let wide = inputs.q.dtype().accumulator();
    [inputs.q, inputs.k, inputs.v, inputs.log_alpha, inputs.beta].map(|x| x.cast(arena, wide))
}

impl<'a, F: Float> Host<'a, F> {
    fn new([q, k, v, log_alpha, beta]: &'a [Tensor; 5], starts: Option<&'a Tensor>, dims: Dims) -> Self {
        let starts = starts.map(|starts| starts.as_slice::<u32>());
        let [q, k, v, log_alpha, beta] = [q, k, v, log_alpha, beta].map(|x| x.as_slice::<F>());
        Host { q, k, v, log_alpha, beta, starts, dims }
    }

    fn starts(&self, row: usize) -> bool {
        self.starts.is_some_and(|starts| starts[row] != 0)
    }
}

/// By chunks.
pub fn forward(arena: &Arena, inputs: Inputs, dims: Dims, t: usize, past: Past, keep: Keep) -> Output {
    let ([n, b], Dims { h, dk, dv }) = (extents(inputs, dims, t, past), dims);
    if let Device::Gpu(gpu) = inputs.q.device() {
        return gpu::forward(gpu, arena, inputs, dims, t, past, keep);
    }
    let (dtype, wide) = (inputs.q.dtype(), inputs.q.dtype().accumulator());
    let (chunks, kept) = (t.div_ceil(CHUNK), keep == Keep::Everything);
    let mut o = Tensor::uninit(arena, [n, h * dv], wide);
    let mut errors = Tensor::uninit(arena, [if kept { n } else { 0 }, h * dv], wide);
    let mut states = Tensor::uninit(arena, [b, h, if kept { chunks } else { 0 }, dk * dv], wide);
    let mut state = carried(arena, past.state, [b, h, dk, dv], wide);
    let operands = widen(arena, inputs);
    for_float!(wide, F => {
        let host = Host::<F>::new(&operands, past.starts, dims);
        let (o, errors) = (SharedMut::new(o.as_mut_slice::<F>()), SharedMut::new(errors.as_mut_slice::<F>()));
        let states = SharedMut::new(states.as_mut_slice::<F>());
        state.as_mut_slice::<F>().par_chunks_mut(dk * dv).enumerate().for_each(|(i, state)| {
            let (row0, head, mut scratch) = (i / h * t, i % h, Scratch::default());
            for chunk in 0..chunks {
                let chunk_rows = row0 + chunk * CHUNK..row0 + t.min((chunk + 1) * CHUNK);
                if kept {
                    // SAFETY: this task alone writes the states of its row and head.
                    unsafe { states.slice((i * chunks + chunk) * dk * dv, dk * dv) }.copy_from_slice(state);
                }
                let chunk = Chunk::new(&host, chunk_rows.clone(), head);
                chunk.forward(state, &mut scratch);
                for (i, row) in chunk_rows.enumerate() {
                    let at = row * h * dv + head * dv;
                    // SAFETY: this task alone writes the columns of its head in the tokens of its row.
                    unsafe { o.slice(at, dv) }.copy_from_slice(&scratch.o[i * dv..][..dv]);
                    if kept {
                        // SAFETY: as above.
                        unsafe { errors.slice(at, dv) }.copy_from_slice(&scratch.e[i * dv..][..dv]);
                    }
                }
            }
        })
    });
    let saved = kept.then(|| Saved::new(inputs, past.starts, errors, states));
    Output { o: o.cast(arena, dtype), state, saved }
}

/// A state to go on from: a copy, or zeros.
fn carried(arena: &Arena, state: Option<&Tensor>, shape: [usize; 4], wide: DType) -> Tensor {
    match state {
        Some(state) => {
            assert_eq!(state.dtype(), wide, "element type of a state");
            state.copy(arena).reshape(shape)
        }
        None => Tensor::zeros(arena, shape, wide),
    }
}

/// Gradients from that of the output, `[N, H dv]`, and of the state after the last token where it was used.
pub fn backward(
    arena: &Arena,
    dout: &Tensor,
    dstate: Option<&Tensor>,
    dims: Dims,
    t: usize,
    saved: &Saved,
) -> Gradients {
    if let Device::Gpu(gpu) = dout.device() {
        return gpu::backward(gpu, arena, dout, dstate, dims, t, saved);
    }
    let (inputs, Saved { starts, errors, states, .. }) = (saved.inputs(), saved);
    let past = Past { starts: starts.as_ref(), state: dstate };
    let ([n, b], Dims { h, dk, dv }) = (extents(inputs, dims, t, past), dims);
    let (dtype, wide, chunks) = (dout.dtype(), dout.dtype().accumulator(), t.div_ceil(CHUNK));
    let mut gradients = [h * dk, h * dk, h * dv, h * dk, h].map(|cols| Tensor::uninit(arena, [n, cols], wide));
    let mut dstate = carried(arena, dstate, [b, h, dk, dv], wide);
    let (operands, dout) = (widen(arena, inputs), dout.cast(arena, wide));
    for_float!(wide, F => {
        let host = Host::<F>::new(&operands, starts.as_ref(), dims);
        let (dout, errors, states) = (dout.as_slice::<F>(), errors.as_slice::<F>(), states.as_slice::<F>());
        let [dq, dk_out, dv_out, dlog_alpha, dbeta] = gradients.each_mut().map(|x| SharedMut::new(x.as_mut_slice::<F>()));
        dstate.as_mut_slice::<F>().par_chunks_mut(dk * dv).enumerate().for_each(|(i, dstate)| {
            let (row0, head, mut gradient) = (i / h * t, i % h, Gradient::default());
            for chunk in (0..chunks).rev() {
                let rows = row0 + chunk * CHUNK..row0 + t.min((chunk + 1) * CHUNK);
                let state = &states[(i * chunks + chunk) * dk * dv..][..dk * dv];
                let of_head = |all: &[F]| -> Vec<F> {
                    rows.clone().flat_map(|row| &all[row * h * dv + head * dv..][..dv]).copied().collect()
                };
                let (dout, e) = (of_head(dout), of_head(errors));
                Chunk::new(&host, rows.clone(), head).backward(&dout, &e, state, dstate, &mut gradient);
                for (i, row) in rows.enumerate() {
                    let parts = [
                        (&dq, &gradient.q, dk),
                        (&dk_out, &gradient.k, dk),
                        (&dv_out, &gradient.v, dv),
                        (&dlog_alpha, &gradient.log_alpha, dk),
                        (&dbeta, &gradient.beta, 1),
                    ];
                    for (to, from, cols) in parts {
                        // SAFETY: this task alone writes the columns of its head in the tokens of its row; five buffers.
                        let to = unsafe { to.slice(row * h * cols + head * cols, cols) };
                        to.copy_from_slice(&from[i * cols..][..cols]);
                    }
                }
            }
        })
    });
    let [q, k, v, log_alpha, beta] = gradients.map(|x| x.cast(arena, dtype));
    Gradients { q, k, v, log_alpha, beta, state: dstate }
}

/// Token by token from `state [B, H, dk, dv]` (accumulator type), which moves on in place; -> `[N, H dv]`. What chunks compute, in
/// the order of the definition: for decode, where `t` is small.
pub fn recurrent(
    arena: &Arena,
    inputs: Inputs,
    dims: Dims,
    t: usize,
    starts: Option<&Tensor>,
    state: &mut Tensor,
) -> Tensor {
    let ([n, _], Dims { h, dk, dv }) = (extents(inputs, dims, t, Past { starts, state: Some(state) }), dims);
    if let Device::Gpu(gpu) = inputs.q.device() {
        return gpu::recurrent(gpu, arena, inputs, dims, t, starts, state);
    }
    let wide = inputs.q.dtype().accumulator();
    let mut o = Tensor::uninit(arena, [n, h * dv], wide);
    let operands = widen(arena, inputs);
    for_float!(wide, F => {
        let host = Host::<F>::new(&operands, starts, dims);
        let o = SharedMut::new(o.as_mut_slice::<F>());
        state.as_mut_slice::<F>().par_chunks_mut(dk * dv).enumerate().for_each(|(i, state)| {
            let head = i % h;
            for row in i / h * t..(i / h + 1) * t {
                // SAFETY: this task alone writes the columns of its head in the tokens of its row.
                let o = unsafe { o.slice(row * h * dv + head * dv, dv) };
                simd(
                    #[inline(always)]
                    || step(&host, row, head, state, o),
                );
            }
        })
    });
    o.cast(arena, inputs.q.dtype())
}

/// One token of one head.
#[inline(always)]
fn step<F: Float>(host: &Host<F>, row: usize, head: usize, state: &mut [F], o: &mut [F]) {
    let Dims { h, dk, dv } = host.dims;
    let keys = row * h * dk + head * dk;
    let (q, k, log_alpha) = (&host.q[keys..][..dk], &host.k[keys..][..dk], &host.log_alpha[keys..][..dk]);
    let (v, beta) = (&host.v[row * h * dv + head * dv..][..dv], host.beta[row * h + head]);
    if host.starts(row) {
        state.fill(F::ZERO);
    }
    // `o` holds u = beta (v - S^T k) until it is known.
    o.copy_from_slice(v);
    for ((s, &k), a) in state.chunks_exact_mut(dv).zip(k).zip(log_alpha) {
        let alpha = a.exp();
        for (s, o) in s.iter_mut().zip(o.iter_mut()) {
            *s *= alpha;
            *o = (-k).mul_add(*s, *o);
        }
    }
    o.iter_mut().for_each(|o| *o *= beta);
    for (s, &k) in state.chunks_exact_mut(dv).zip(k) {
        s.iter_mut().zip(o.iter()).for_each(|(s, &u)| *s = k.mul_add(u, *s));
    }
    o.fill(F::ZERO);
    for (s, &q) in state.chunks_exact(dv).zip(q) {
        o.iter_mut().zip(s).for_each(|(o, &s)| *o = q.mul_add(s, *o));
    }
}

/// The definition in plain loops: the matrices as they stand in the equation. `inputs` are q, k, v, log_alpha, beta and the state
/// before the first token; -> the output and the state after the last one.
pub fn reference(inputs: [&[f64]; 6], Dims { h, dk, dv }: Dims, t: usize, starts: Option<&[u32]>) -> [Vec<f64>; 2] {
    let [q, k, v, log_alpha, beta, state] = inputs;
    let (n, mut states) = (beta.len() / h, state.to_vec());
    let mut o = vec![0.0; n * h * dv];
    for (row, head) in (0..n).flat_map(|row| (0..h).map(move |head| (row, head))) {
        let state = &mut states[(row / t * h + head) * dk * dv..][..dk * dv];
        if starts.is_some_and(|starts| starts[row] != 0) {
            state.fill(0.0);
        }
        let (keys, values, beta) = ((row * h + head) * dk, (row * h + head) * dv, beta[row * h + head]);
        let decayed: Vec<f64> = (0..dk * dv).map(|i| log_alpha[keys + i / dv].exp() * state[i]).collect();
        for j in 0..dv {
            let held: f64 = (0..dk).map(|c| k[keys + c] * decayed[c * dv + j]).sum();
            for i in 0..dk {
                state[i * dv + j] = decayed[i * dv + j] + beta * k[keys + i] * (v[values + j] - held);
            }
        }
        for j in 0..dv {
            o[values + j] = (0..dk).map(|c| q[keys + c] * state[c * dv + j]).sum();
        }
    }
    [o, states]
}
