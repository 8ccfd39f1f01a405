//! The delta rule on a GPU: its kernels in order. The equations are in the parent file.

use super::{CHUNK, Dims, Gradients, Inputs, Keep, Output, Past, Saved, extents};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut};
use crate::tensor::{Arena, DType, Tensor};

/// Key channels and value columns that a block works on at a time, and most channels of a head.
const SLICE: usize = 32;
const KEYS_MAX: usize = 256;

/// Dynamic shared memory of the kernels over value columns: 32 columns of a head's state.
pub fn columns_smem_bytes(dk: usize) -> usize {
    SLICE * dk * size_of::<f32>()
}

/// Dynamic shared memory of the kernel over key channels: slices of three tensors over a chunk and of two states, in rows of 36 numbers,
/// and two rows of 32 factors a token.
pub const KEY_CHANNELS_SMEM_BYTES: usize = ((3 * CHUNK + 2 * SLICE) * 36 + 2 * CHUNK * SLICE) * size_of::<f32>();

fn check(Dims { dk, dv, .. }: Dims) {
    let fits = dk.is_multiple_of(SLICE) && dv.is_multiple_of(SLICE) && dk <= KEYS_MAX;
    assert!(fits, "delta rule of heads of {dk} and {dv}; the kernels take multiples of {SLICE}, keys up to {KEYS_MAX}");
}

/// Pairs of columns and fours of a state are accessed at once.
fn check_aligned(values: &Tensor, states: &[Option<&Tensor>]) {
    let fits = values.alias().is_aligned(2 * values.dtype().size_bytes() as u64)
        && states.iter().flatten().all(|state| state.alias().is_aligned(16));
    assert!(fits, "values of the delta rule begin at an even element, states at a multiple of 16 bytes");
}

/// Runs the f32 or the bf16 kernel of an operand's storage type.
macro_rules! by_type {
    ($dtype:expr, $f32:ident | $bf16:ident, $run:ident) => {
        match $dtype {
            DType::F32 => $run!($f32),
            DType::Bf16 => $run!($bf16),
            other => panic!("no kernel of the delta rule computes with {other}"),
        }
    };
}

/// What all kernels are launched with.
#[derive(Clone, Copy)]
struct Launch<'a> {
    gpu: &'a Gpu,
    x: Inputs<'a>,
    starts: Option<&'a Tensor>,
    dims: Dims,
    b: usize,
    t: usize,
}

impl Launch<'_> {
    fn dtype(&self) -> DType {
        self.x.q.dtype()
    }

    fn starts(&self) -> Ptr<'_, u32> {
        self.starts.map_or(Ptr::none(), |starts| starts.ptr())
    }

    fn chunks(&self) -> usize {
        self.t.div_ceil(CHUNK)
    }

    fn per_chunk(&self) -> Grid {
        Grid { blocks: [self.chunks(), self.dims.h, self.b], smem_bytes: 0 }
    }

    fn per_columns(&self, smem_bytes: usize) -> Grid {
        Grid { blocks: [self.dims.dv / SLICE, self.dims.h, self.b], smem_bytes }
    }

    /// The inverse that forward or backward needs, and `Qd`: `[B, H, chunks, 64 x 64]` each.
    fn pairs(&self, arena: &Arena, forward: bool) -> [Tensor; 2] {
        let shape = [self.b, self.dims.h, self.chunks(), CHUNK * CHUNK];
        let [mut inverse, mut qd] = [(); 2].map(|()| Tensor::uninit(arena, shape, DType::F32));
        let (x, Dims { h, dk, .. }) = (self.x, self.dims);
        macro_rules! run {
            ($kernel:ident) => {
                launch::$kernel(
                    self.gpu,
                    self.per_chunk(),
                    inverse.ptr_mut(),
                    qd.ptr_mut(),
                    x.q.ptr(),
                    x.k.ptr(),
                    x.log_alpha.ptr(),
                    x.beta.ptr(),
                    self.starts(),
                    self.t,
                    h,
                    dk,
                )
            };
        }
        if forward {
            by_type!(self.dtype(), delta_rule_fwd_chunk_pairs_f32 | delta_rule_fwd_chunk_pairs_bf16, run);
        } else {
            by_type!(self.dtype(), delta_rule_bwd_chunk_pairs_f32 | delta_rule_bwd_chunk_pairs_bf16, run);
        }
        [inverse, qd]
    }
}

fn state_ptr(state: Option<&Tensor>) -> Ptr<'_, f32> {
    state.map_or(Ptr::none(), |state| state.ptr())
}

pub(super) fn forward(gpu: &Gpu, arena: &Arena, x: Inputs, dims: Dims, t: usize, past: Past, keep: Keep) -> Output {
    check(dims);
    let ([n, b], Dims { h, dk, dv }) = (extents(x, dims, t, past), dims);
    check_aligned(x.v, &[past.state]);
    let launch = Launch { gpu, x, starts: past.starts, dims, b, t };
    let [inverse, qd] = launch.pairs(arena, true);
    let mut o = Tensor::uninit(arena, [n, h * dv], launch.dtype());
    let mut state = Tensor::uninit(arena, [b, h, dk, dv], DType::F32);
    let mut saved = (keep == Keep::Everything).then(|| {
        let states = Tensor::uninit(arena, [b, h, launch.chunks(), dk * dv], DType::F32);
        Saved::new(x, past.starts, Tensor::uninit(arena, [n, h * dv], DType::F32), states)
    });
    macro_rules! run {
        ($kernel:ident) => {{
            let (errors, states) = match &mut saved {
                Some(saved) => (saved.errors.ptr_mut(), saved.states.ptr_mut()),
                None => (PtrMut::none(), PtrMut::none()),
            };
            launch::$kernel(
                gpu,
                launch.per_columns(columns_smem_bytes(dk)),
                o.ptr_mut(),
                errors,
                states,
                state.ptr_mut(),
                inverse.ptr(),
                qd.ptr(),
                x.q.ptr(),
                x.k.ptr(),
                x.v.ptr(),
                x.log_alpha.ptr(),
                x.beta.ptr(),
                launch.starts(),
                state_ptr(past.state),
                t,
                h,
                dk,
                dv,
            )
        }};
    }
    by_type!(launch.dtype(), delta_rule_fwd_value_columns_f32 | delta_rule_fwd_value_columns_bf16, run);
    Output { o, state, saved }
}

pub(super) fn backward(
    gpu: &Gpu,
    arena: &Arena,
    dout: &Tensor,
    dstate: Option<&Tensor>,
    dims: Dims,
    t: usize,
    saved: &Saved,
) -> Gradients {
    check(dims);
    let (x, past) = (saved.inputs(), Past { starts: saved.starts.as_ref(), state: dstate });
    let ([n, b], Dims { h, dk, dv }) = (extents(x, dims, t, past), dims);
    check_aligned(x.v, &[dstate]);
    let launch = Launch { gpu, x, starts: past.starts, dims, b, t };
    let [inverse, qd] = launch.pairs(arena, false);
    let of = |cols: usize| Tensor::uninit(arena, [n, cols], launch.dtype());
    let mut dvalues = of(h * dv);
    let mut db = Tensor::uninit(arena, [n, h * dv], DType::F32);
    let mut dstates = Tensor::uninit(arena, saved.states.shape(), DType::F32);
    let mut dfirst = Tensor::uninit(arena, [b, h, dk, dv], DType::F32);
    macro_rules! columns {
        ($kernel:ident) => {
            launch::$kernel(
                gpu,
                launch.per_columns(columns_smem_bytes(dk)),
                dvalues.ptr_mut(),
                db.ptr_mut(),
                dstates.ptr_mut(),
                dfirst.ptr_mut(),
                inverse.ptr(),
                qd.ptr(),
                x.q.ptr(),
                x.k.ptr(),
                x.log_alpha.ptr(),
                x.beta.ptr(),
                dout.ptr(),
                launch.starts(),
                state_ptr(dstate),
                t,
                h,
                dk,
                dv,
            )
        };
    }
    by_type!(launch.dtype(), delta_rule_bwd_value_columns_f32 | delta_rule_bwd_value_columns_bf16, columns);
    let (mut dq, mut dkeys, mut dlog_alpha, mut dbeta) = (of(h * dk), of(h * dk), of(h * dk), of(h));
    let made = Made { db: &db, dstates: &dstates, dout, saved };
    key_gradients(arena, &launch, [&mut dq, &mut dkeys, &mut dlog_alpha, &mut dbeta], made);
    Gradients { q: dq, k: dkeys, v: dvalues, log_alpha: dlog_alpha, beta: dbeta, state: dfirst }
}

/// What the gradients of keys are made of.
#[derive(Clone, Copy)]
struct Made<'a> {
    db: &'a Tensor,
    dstates: &'a Tensor,
    dout: &'a Tensor,
    saved: &'a Saved,
}

fn key_gradients(arena: &Arena, launch: &Launch, [dq, dkeys, dlog_alpha, dbeta]: [&mut Tensor; 4], made: Made) {
    let (Dims { h, dk, dv }, chunks, dtype) = (launch.dims, launch.chunks(), launch.dtype());
    let mut dpairs = Tensor::uninit(arena, [launch.b, h, chunks, 2 * CHUNK * CHUNK], DType::F32);
    macro_rules! pairs {
        ($kernel:ident) => {
            launch::$kernel(
                launch.gpu,
                launch.per_chunk(),
                dpairs.ptr_mut(),
                dbeta.ptr_mut(),
                made.db.ptr(),
                made.saved.errors.ptr(),
                launch.x.beta.ptr(),
                made.dout.ptr(),
                launch.starts(),
                launch.t,
                h,
                dv,
            )
        };
    }
    by_type!(dtype, delta_rule_bwd_pair_gradients_f32 | delta_rule_bwd_pair_gradients_bf16, pairs);
    let grid = Grid { blocks: [dk / SLICE, chunks, launch.b * h], smem_bytes: KEY_CHANNELS_SMEM_BYTES };
    macro_rules! channels {
        ($kernel:ident) => {
            launch::$kernel(
                launch.gpu,
                grid,
                dq.ptr_mut(),
                dkeys.ptr_mut(),
                dlog_alpha.ptr_mut(),
                dpairs.ptr(),
                made.db.ptr(),
                made.saved.errors.ptr(),
                made.saved.states.ptr(),
                made.dstates.ptr(),
                launch.x.q.ptr(),
                launch.x.k.ptr(),
                launch.x.log_alpha.ptr(),
                launch.x.beta.ptr(),
                made.dout.ptr(),
                launch.starts(),
                launch.t,
                h,
                dk,
                dv,
            )
        };
    }
    by_type!(dtype, delta_rule_bwd_key_channels_f32 | delta_rule_bwd_key_channels_bf16, channels);
}

pub(super) fn recurrent(
    gpu: &Gpu,
    arena: &Arena,
    x: Inputs,
    dims: Dims,
    t: usize,
    starts: Option<&Tensor>,
    state: &mut Tensor,
) -> Tensor {
    check(dims);
    let ([n, b], Dims { h, dk, dv }) = (extents(x, dims, t, Past { starts, state: Some(state) }), dims);
    let launch = Launch { gpu, x, starts, dims, b, t };
    let mut o = Tensor::uninit(arena, [n, h * dv], launch.dtype());
    macro_rules! run {
        ($kernel:ident) => {
            launch::$kernel(
                gpu,
                launch.per_columns(0),
                o.ptr_mut(),
                state.ptr_mut(),
                x.q.ptr(),
                x.k.ptr(),
                x.v.ptr(),
                x.log_alpha.ptr(),
                x.beta.ptr(),
                launch.starts(),
                t,
                h,
                dk,
                dv,
            )
        };
    }
    by_type!(launch.dtype(), delta_rule_decode_state_columns_f32 | delta_rule_decode_state_columns_bf16, run);
    o
}
