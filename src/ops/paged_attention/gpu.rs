//! The launches of attention over pages.

use super::{BLOCK_WARPS, GROUP_MAX, HEAD_COLS, Placement, SPLIT_KEYS};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, by_dtype};
use crate::ops::attention::{flash_smem_bytes, flash_width};
use crate::ops::rope::Heads;
use crate::tensor::{Arena, DType, Tensor};

/// Parts of the keys by themselves, then their sums.
pub(super) fn attend(
    gpu: &Gpu,
    arena: &Arena,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    heads: Heads,
    placement: &Placement,
    window: Option<usize>,
) -> Tensor {
    let (Heads { h, g, d }, n, dtype) = (heads, placement.rows(), q.dtype());
    let shared = h / g;
    assert!(k.dtype() == dtype && v.dtype() == dtype, "queries of {dtype} over a pool of {}", k.dtype());
    assert!(
        shared <= GROUP_MAX && d <= HEAD_COLS,
        "{shared} heads of {d} to a key; at most {GROUP_MAX} of {HEAD_COLS}"
    );
    let splits = placement.last / SPLIT_KEYS + 1;
    let [_, pages] = placement.tables.dims();
    let window = window.unwrap_or(0);
    let mut out = Tensor::uninit(arena, [n, h * d], dtype);
    // Of each row, head and part: the sum of values, the largest score, the sum of weights.
    let mut partial = Tensor::uninit(arena, [n * h * splits, d + 2], DType::F32);
    let scale = (1.0 / (d as f64).sqrt()) as f32;
    let Placement { sequences, positions, tables, tiles, .. } = placement;
    let blocks = tiles.as_ref().map_or(n, |tiles| tiles.dims::<2>()[0]);
    let of_tiles = Grid { blocks: [blocks, g, splits], smem_bytes: flash_smem_bytes(d)[0] };
    let of_rows = Grid { blocks: [n, g, splits], smem_bytes: shared * (d + SPLIT_KEYS) * size_of::<f32>() };
    let tiles = || tiles.as_ref().map_or(Ptr::none(), Tensor::ptr);
    macro_rules! run {
        ($kernel:ident, $grid:ident, [$($tiles:expr)?], [$($width:ident)?]) => {
            launch::$kernel(
                gpu,
                $grid,
                partial.ptr_mut(),
                q.ptr(),
                k.ptr(),
                v.ptr(),
                sequences.ptr(),
                positions.ptr(),
                tables.ptr(),
                $($tiles,)?
                scale,
                h,
                g,
                $($width,)?
                pages,
                splits,
                window,
            )
        };
    }
    match (flash_width(d, g * d, &[q, k, v]), dtype) {
        (Some(32), _) => run!(paged_attention_fwd_tile_keys_d32_bf16, of_tiles, [tiles()], []),
        (Some(64), _) => run!(paged_attention_fwd_tile_keys_d64_bf16, of_tiles, [tiles()], []),
        (Some(96), _) => run!(paged_attention_fwd_tile_keys_d96_bf16, of_tiles, [tiles()], []),
        (Some(_), _) => run!(paged_attention_fwd_tile_keys_d128_bf16, of_tiles, [tiles()], []),
        (None, DType::F32) => run!(paged_attention_fwd_split_keys_f32, of_rows, [], [d]),
        (None, DType::Bf16) => run!(paged_attention_fwd_split_keys_bf16, of_rows, [], [d]),
        (None, other) => panic!("no kernel attends in {other}"),
    }
    by_dtype!(
        dtype,
        paged_attention_fwd_combine_f32 | paged_attention_fwd_combine_bf16,
        (gpu, Grid::over(n * h, BLOCK_WARPS), out.ptr_mut(), partial.ptr(), positions.ptr(), n, h, d, splits, window)
    );
    out
}
