//! Attention on a GPU: the one place that chooses its kernels. The equations are in the parent file.

use super::{Mask, Saved};
use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut, by_dtype};
use crate::ops::rope::Heads;
use crate::tensor::{Arena, DType, Tensor};

/// Longest row and widest head of the naive kernels: scores of a row lie in shared memory.
const KEYS_MAX: usize = 40_000;
const HEAD_COLS: usize = 512;

fn gpu_of(tensor: &Tensor) -> &'static Gpu {
    match tensor.device() {
        Device::Gpu(gpu) => gpu,
        Device::Cpu => panic!("the parent sends tensors on a GPU only"),
    }
}

fn check(keys: usize, d: usize) {
    assert!(keys <= KEYS_MAX && d <= HEAD_COLS, "attention over {keys} keys of {d}; at most {KEYS_MAX} of {HEAD_COLS}");
}

fn scale(d: usize) -> f32 {
    (1.0 / (d as f64).sqrt()) as f32
}

pub(super) fn forward(arena: &Arena, qkv: &Tensor, heads: Heads, t: usize, mask: Mask) -> (Tensor, Saved) {
    let (Heads { h, g, d }, [n, row], dtype) = (heads, qkv.shape().rows_cols(), qkv.dtype());
    let (gpu, b) = (gpu_of(qkv), n / t);
    check(t, d);
    let mut out = Tensor::uninit(arena, [n, h * d], dtype);
    let mut lse = Tensor::uninit(arena, [b, h, t], DType::F32);
    let [k, v] = parts(qkv, heads);
    let grid = Grid { blocks: [t, h, b], smem_bytes: t * size_of::<f32>() };
    let (window, starts) = (mask.window.unwrap_or(0), || mask.doc_start.as_ref().map_or(Ptr::none(), |s| s.ptr()));
    by_dtype!(
        dtype,
        attention_naive_fwd_query_rows_f32 | attention_naive_fwd_query_rows_bf16,
        (
            gpu,
            grid,
            out.ptr_mut(),
            lse.ptr_mut(),
            qkv.ptr(),
            k.ptr(),
            v.ptr(),
            starts(),
            scale(d),
            t,
            t,
            h,
            g,
            d,
            row,
            row,
            window,
            0
        )
    );
    (out.clone(), Saved { qkv: qkv.clone(), out, lse, mask })
}

/// The packed rows from their first key, and from their first value on.
fn parts(qkv: &Tensor, Heads { h, g, d }: Heads) -> [Tensor; 2] {
    [h * d, (h + g) * d].map(|first| qkv.view(first, [qkv.elems() - first]))
}

pub(super) fn forward_cached(
    arena: &Arena,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    heads: Heads,
    s_len: usize,
    window: Option<usize>,
) -> Tensor {
    let (Heads { h, g, d }, [t, _], dtype, gpu) = (heads, q.shape().rows_cols(), q.dtype(), gpu_of(q));
    check(s_len, d);
    let mut out = Tensor::uninit(arena, [t, h * d], dtype);
    let grid = Grid { blocks: [t, h, 1], smem_bytes: s_len * size_of::<f32>() };
    let (window, past) = (window.unwrap_or(0), s_len - t);
    by_dtype!(
        dtype,
        attention_naive_fwd_query_rows_f32 | attention_naive_fwd_query_rows_bf16,
        (
            gpu,
            grid,
            out.ptr_mut(),
            PtrMut::none(),
            q.ptr(),
            k.ptr(),
            v.ptr(),
            Ptr::none(),
            scale(d),
            t,
            s_len,
            h,
            g,
            d,
            h * d,
            g * d,
            window,
            past
        )
    );
    out
}

pub(super) fn backward(arena: &Arena, dout: &Tensor, heads: Heads, t: usize, saved: &Saved) -> Tensor {
    let Saved { qkv, out, lse, mask } = saved;
    let (Heads { h, g, d }, [n, row], gpu) = (heads, qkv.shape().rows_cols(), gpu_of(dout));
    let b = n / t;
    let mut dqkv = Tensor::uninit(arena, [n, row], qkv.dtype());
    let mut delta = Tensor::uninit(arena, [b, h, t], DType::F32);
    let [k, v] = parts(qkv, heads);
    let (window, scale) = (mask.window.unwrap_or(0), scale(d));
    let queries = Grid { blocks: [t, h, b], smem_bytes: t * size_of::<f32>() };
    let keys = Grid { blocks: [t, g, b], smem_bytes: 0 };
    macro_rules! run {
        ($query_rows:ident, $key_rows:ident) => {{
            let starts = || mask.doc_start.as_ref().map_or(Ptr::none(), |s| s.ptr());
            launch::$query_rows(
                gpu,
                queries,
                dqkv.ptr_mut(),
                delta.ptr_mut(),
                qkv.ptr(),
                k.ptr(),
                v.ptr(),
                out.ptr(),
                lse.ptr(),
                dout.ptr(),
                starts(),
                scale,
                t,
                h,
                g,
                d,
                row,
                window,
            );
            // Two parts of one buffer: the columns of the keys and of the values.
            let [dk, dv] = [h * d, (h + g) * d];
            let whole = dqkv.ptr_mut();
            launch::$key_rows(
                gpu,
                keys,
                whole.part(dk),
                whole.part(dv),
                qkv.ptr(),
                k.ptr(),
                v.ptr(),
                lse.ptr(),
                delta.ptr(),
                dout.ptr(),
                starts(),
                scale,
                t,
                h,
                g,
                d,
                row,
                window,
            );
        }};
    }
    match qkv.dtype() {
        DType::F32 => run!(attention_naive_bwd_query_rows_f32, attention_naive_bwd_key_rows_f32),
        DType::Bf16 => run!(attention_naive_bwd_query_rows_bf16, attention_naive_bwd_key_rows_bf16),
        other => panic!("no kernel attends in {other}"),
    }
    dqkv
}
