//! How weights lie for the kernels: rows in panels of eight, whose blocks interleave, so that one vector holds the same place of eight rows.
//!
//! A block is cut in pieces: scales, then four bytes at a time. A panel holds block after block; of a block, piece after piece; of a
//! piece, row after row. Nothing is converted, so no bit is lost and no byte gained, but for the rows that fill up the last panel.

use crate::tensor::BlockType;
use rayon::prelude::*;

/// Rows of a panel.
pub const LANES: usize = 8;

/// Bytes of panels of `rows` rows of `row_bytes`.
pub fn panels_bytes(rows: usize, row_bytes: usize) -> usize {
    rows.div_ceil(LANES) * LANES * row_bytes
}

/// Pieces `(first byte, bytes)` of a block, in the order in which they lie in a panel.
fn pieces(kind: BlockType) -> Vec<(usize, usize)> {
    let quads = |first: usize, end: usize| (first..end).step_by(4).map(|at| (at, 4));
    match kind {
        BlockType::F32 => vec![(0, 4)],
        BlockType::F16 | BlockType::Bf16 => vec![(0, 2)],
        BlockType::Q8_0 => std::iter::once((0, 2)).chain(quads(2, 34)).collect(),
        BlockType::Q4_0 => std::iter::once((0, 2)).chain(quads(2, 18)).collect(),
        BlockType::Q4_1 => [(0, 2), (2, 2)].into_iter().chain(quads(4, 20)).collect(),
        BlockType::Q6K => {
            // The scale; the two scales of each 32; of each half, what the same bytes of high bits belong to.
            let scales = (192..208).step_by(2).map(|at| (at, 2));
            let group =
                |(half, l): (usize, usize)| [(64 * half + l, 4), (64 * half + 32 + l, 4), (128 + 32 * half + l, 4)];
            let groups = (0..2).flat_map(|half| (0..32).step_by(4).map(move |l| (half, l)));
            std::iter::once((208, 2)).chain(scales).chain(groups.flat_map(group)).collect()
        }
    }
}

/// Lays `rows` rows of `row_bytes`, which `row` knows, into panels that are zeros.
///
/// # Panics
/// If the sizes do not fit.
pub fn interleave<'a>(
    panels: &mut [u8],
    rows: usize,
    row: impl Fn(usize) -> &'a [u8] + Sync,
    row_bytes: usize,
    kind: BlockType,
) {
    assert_eq!(panels.len(), panels_bytes(rows, row_bytes), "bytes of panels");
    let pieces = pieces(kind);
    panels.par_chunks_exact_mut(LANES * row_bytes).enumerate().for_each(|(number, panel)| {
        for lane in 0..LANES.min(rows - number * LANES) {
            let row = row(number * LANES + lane);
            let blocks = row.chunks_exact(kind.block_bytes());
            for (block, to) in blocks.zip(panel.chunks_exact_mut(LANES * kind.block_bytes())) {
                let mut start = 0;
                for &(at, bytes) in &pieces {
                    let to = &mut to[start + lane * bytes..][..bytes];
                    match bytes {
                        2 => to.copy_from_slice(&block[at..at + 2]),
                        _ => to.copy_from_slice(&block[at..at + 4]),
                    }
                    start += LANES * bytes;
                }
            }
        }
    });
}

/// The blocks of row `row`, as they were before [`interleave`].
pub fn row_of(panels: &[u8], row: usize, row_bytes: usize, kind: BlockType) -> Vec<u8> {
    let (pieces, mut out) = (pieces(kind), vec![0; row_bytes]);
    let (panel, lane) = (&panels[row / LANES * LANES * row_bytes..][..LANES * row_bytes], row % LANES);
    let blocks = panel.chunks_exact(LANES * kind.block_bytes());
    for (from, block) in blocks.zip(out.chunks_exact_mut(kind.block_bytes())) {
        let mut start = 0;
        for &(at, bytes) in &pieces {
            block[at..at + bytes].copy_from_slice(&from[start + lane * bytes..][..bytes]);
            start += LANES * bytes;
        }
    }
    out
}
