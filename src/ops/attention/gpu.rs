//! Attention on a GPU: the one place that chooses its kernels. The equations are in the parent file.

use super::{Mask, Saved};
use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr};
use crate::ops::rope::Heads;
use crate::tensor::{Arena, DType, Tensor};
use half::bf16;

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

/// Queries or keys of a block of the flash kernels.
const FLASH_TILE: usize = 64;
/// Rows of a block that sums delta.
const FLASH_DELTA_ROWS: usize = 32;
/// lse, delta and first key of two tiles of 32 passing queries.
const FLASH_NUMBERS_BYTES: usize = 2 * 3 * 32 * size_of::<f32>();

/// Dynamic shared memory of the flash kernels for heads of width `d`: of those over tiles of queries, and over tiles of keys.
pub fn flash_smem_bytes(d: usize) -> [usize; 2] {
    let tiles = 4 * FLASH_TILE * d * size_of::<bf16>();
    [tiles, tiles + FLASH_NUMBERS_BYTES]
}

/// The head width of the flash kernels where they serve: bf16 rows that start at multiples of 16 bytes.
pub fn flash_width(d: usize, stride: usize, tensors: &[&Tensor]) -> Option<usize> {
    let fits = |x: &&Tensor| x.dtype() == DType::Bf16 && x.ptr::<bf16>().is_aligned(16);
    let serves = [32, 64, 96, 128].contains(&d) && stride.is_multiple_of(8) && tensors.iter().all(fits);
    serves.then_some(d)
}

pub(super) fn forward(arena: &Arena, qkv: &Tensor, heads: Heads, t: usize, mask: Mask) -> (Tensor, Saved) {
    let (Heads { h, g, d }, [n, row], dtype, gpu) = (heads, qkv.shape().rows_cols(), qkv.dtype(), gpu_of(qkv));
    let (b, window) = (n / t, mask.window.unwrap_or(0));
    let mut out = Tensor::uninit(arena, [n, h * d], dtype);
    let mut lse = Tensor::uninit(arena, [b, h, t], DType::F32);
    let [k, v] = &parts(qkv, heads);
    let starts = || mask.doc_start.as_ref().map_or(Ptr::none(), |starts| starts.ptr());
    let tiles = Grid { blocks: [t.div_ceil(FLASH_TILE), h, b], smem_bytes: flash_smem_bytes(d)[0] };
    let rows = Grid { blocks: [t, h, b], smem_bytes: t * size_of::<f32>() };
    macro_rules! run {
        ($kernel:ident, $grid:ident $(, $width:ident)?) => {
            launch::$kernel(
                gpu,
                $grid,
                out.ptr_mut(),
                lse.ptr_mut(),
                qkv.ptr(),
                k.ptr(),
                v.ptr(),
                starts(),
                scale(d),
                t,
                h,
                g,
                $($width,)?
                row,
                window,
            )
        };
    }
    match (flash_width(d, row, &[&out, qkv, k, v]), dtype) {
        (Some(32), _) => run!(attention_flash_fwd_query_tiles_d32_bf16, tiles),
        (Some(64), _) => run!(attention_flash_fwd_query_tiles_d64_bf16, tiles),
        (Some(96), _) => run!(attention_flash_fwd_query_tiles_d96_bf16, tiles),
        (Some(_), _) => run!(attention_flash_fwd_query_tiles_d128_bf16, tiles),
        (None, dtype) => {
            check(t, d);
            match dtype {
                DType::F32 => run!(attention_naive_fwd_query_rows_f32, rows, d),
                DType::Bf16 => run!(attention_naive_fwd_query_rows_bf16, rows, d),
                other => panic!("no kernel attends in {other}"),
            }
        }
    }
    (out.clone(), Saved { qkv: qkv.clone(), out, lse, mask })
}

/// The packed rows from their first key, and from their first value on.
fn parts(qkv: &Tensor, Heads { h, g, d }: Heads) -> [Tensor; 2] {
    [h * d, (h + g) * d].map(|first| qkv.view(first, [qkv.elems() - first]))
}

pub(super) fn backward(arena: &Arena, dout: &Tensor, heads: Heads, t: usize, saved: &Saved) -> Tensor {
    let Saved { qkv, out, lse, mask } = saved;
    let (Heads { h, g, d }, [n, row], gpu) = (heads, qkv.shape().rows_cols(), gpu_of(dout));
    let b = n / t;
    let mut dqkv = Tensor::uninit(arena, [n, row], qkv.dtype());
    let mut delta = Tensor::uninit(arena, [b, h, t], DType::F32);
    let [k, v] = parts(qkv, heads);
    if flash_width(d, row, &[qkv, &k, &v, out, dout, &dqkv]).is_some() {
        backward_flash(&mut dqkv, &mut delta, dout, [&k, &v], heads, t, saved);
        return dqkv;
    }
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

/// Delta, then dQ by tiles of queries, then dK and dV by tiles of keys: each block owns what it sums.
fn backward_flash(
    dqkv: &mut Tensor,
    delta: &mut Tensor,
    dout: &Tensor,
    [k, v]: [&Tensor; 2],
    heads: Heads,
    t: usize,
    saved: &Saved,
) {
    let Saved { qkv, out, lse, mask } = saved;
    let (Heads { h, g, d }, [n, row], gpu) = (heads, qkv.shape().rows_cols(), gpu_of(dout));
    let (b, tiles, window, scale) = (n / t, t.div_ceil(FLASH_TILE), mask.window.unwrap_or(0), scale(d));
    let [queries_bytes, keys_bytes] = flash_smem_bytes(d);
    let queries = Grid { blocks: [tiles, h, b], smem_bytes: queries_bytes };
    let keys = Grid { blocks: [tiles, g, b], smem_bytes: keys_bytes };
    let per_head = n * h;
    let delta_rows = Grid::over(per_head, FLASH_DELTA_ROWS);
    launch::attention_flash_bwd_delta_rows_bf16(
        gpu,
        delta_rows,
        delta.ptr_mut(),
        out.ptr(),
        dout.ptr(),
        t,
        h,
        d,
        per_head,
    );
    // Three parts of one buffer: the columns of the queries, of the keys and of the values.
    let whole = dqkv.ptr_mut();
    macro_rules! run {
        ($kernel:ident, $grid:ident, $($gradient:expr),+) => {
            launch::$kernel(
                gpu,
                $grid,
                $($gradient,)+
                qkv.ptr(),
                k.ptr(),
                v.ptr(),
                lse.ptr(),
                delta.ptr(),
                dout.ptr(),
                mask.doc_start.as_ref().map_or(Ptr::none(), |starts| starts.ptr()),
                scale,
                t,
                h,
                g,
                row,
                window,
            )
        };
    }
    macro_rules! both {
        ($query_tiles:ident, $key_tiles:ident) => {{
            run!($query_tiles, queries, whole.part(0));
            run!($key_tiles, keys, whole.part(h * d), whole.part((h + g) * d));
        }};
    }
    match d {
        32 => both!(attention_flash_bwd_query_tiles_d32_bf16, attention_flash_bwd_key_tiles_d32_bf16),
        64 => both!(attention_flash_bwd_query_tiles_d64_bf16, attention_flash_bwd_key_tiles_d64_bf16),
        96 => both!(attention_flash_bwd_query_tiles_d96_bf16, attention_flash_bwd_key_tiles_d96_bf16),
        128 => both!(attention_flash_bwd_query_tiles_d128_bf16, attention_flash_bwd_key_tiles_d128_bf16),
        other => panic!("no flash kernel for heads of {other}"),
    }
}
