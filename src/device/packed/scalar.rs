//! The kernels in plain Rust, which say what the vectorised ones compute, bit for bit.
//!
//! A kernel takes a panel (eight rows of weights, see [`panels`](super::panels)) and `N` rows of activations, and returns their dot
//! products `[N, 8]`. Integers within a block are summed exactly; blocks are added in order, each by fused multiply-adds.

use super::activations::{BLOCK, Quantised};
use super::panels::LANES;
use half::{bf16, f16};

/// Dot products of a tile.
pub type Sums<const N: usize> = [[f32; LANES]; N];

/// `d q + m`, or `d (q - 8)` without a minimum; `q` of four bits.
#[inline(always)]
fn nibbles<const N: usize, const HAS_MINIMUM: bool>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let (block_bytes, header) = if HAS_MINIMUM { (20, 4) } else { (18, 2) };
    let mut sums = [[0.0; LANES]; N];
    for (b, block) in panel.chunks_exact(LANES * block_bytes).enumerate() {
        let (d, quads) = (halves(block), &block[LANES * header..]);
        let minimum = if HAS_MINIMUM { halves(&block[2 * LANES..]) } else { [0.0; LANES] };
        for (n, sums) in sums.iter_mut().enumerate() {
            let (q, scale) = block_of(x, first + n, b);
            for lane in 0..LANES {
                let dot = |i: usize| {
                    let byte = i32::from(quads[i / 4 * 4 * LANES + lane * 4 + i % 4]);
                    (byte & 15) * i32::from(q[i]) + (byte >> 4) * i32::from(q[16 + i])
                };
                let dot: i32 = (0..16).map(dot).sum();
                let dot = if HAS_MINIMUM { dot } else { dot - 8 * scale.sum };
                sums[lane] = (dot as f32).mul_add(d[lane] * scale.d, sums[lane]);
                if HAS_MINIMUM {
                    sums[lane] = minimum[lane].mul_add(scale.weighted_sum, sums[lane]);
                }
            }
        }
    }
    sums
}

pub fn q4_0<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    nibbles::<N, false>(panel, x, first)
}

pub fn q4_1<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    nibbles::<N, true>(panel, x, first)
}

pub fn q8_0<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let mut sums = [[0.0; LANES]; N];
    for (b, block) in panel.chunks_exact(LANES * 34).enumerate() {
        let (d, quads) = (halves(block), &block[2 * LANES..]);
        for (n, sums) in sums.iter_mut().enumerate() {
            let (q, scale) = block_of(x, first + n, b);
            for lane in 0..LANES {
                let weight = |i: usize| i32::from(quads[i / 4 * 4 * LANES + lane * 4 + i % 4] as i8);
                let dot: i32 = (0..BLOCK).map(|i| weight(i) * i32::from(q[i])).sum();
                sums[lane] = (dot as f32).mul_add(d[lane] * scale.d, sums[lane]);
            }
        }
    }
    sums
}

pub fn q6_k<const N: usize>(panel: &[u8], x: Quantised, first: usize) -> Sums<N> {
    let mut sums = [[0.0; LANES]; N];
    for (b, block) in panel.chunks_exact(LANES * 210).enumerate() {
        let (d, scales, quads) = (halves(block), &block[2 * LANES..], &block[18 * LANES..]);
        // Element i of 32-block c of a lane: see the order of pieces in `panels`.
        let weight = |c: usize, lane: usize, i: usize| {
            let group = (c / 4 * 8 + i / 4) * 12 * LANES + lane * 4 + i % 4;
            let low = quads[group + c % 2 * 4 * LANES] >> (c % 4 / 2 * 4) & 15;
            let high = quads[group + 8 * LANES] >> (c % 4 * 2) & 3;
            i32::from(low | high << 4) - 32
        };
        for (n, sums) in sums.iter_mut().enumerate() {
            for c in 0..8 {
                let (q, scale) = block_of(x, first + n, 8 * b + c);
                for lane in 0..LANES {
                    let dot = |i: usize| {
                        let scale = i32::from(scales[(c * LANES + lane) * 2 + i / 16] as i8);
                        scale * weight(c, lane, i) * i32::from(q[i])
                    };
                    let dot: i32 = (0..BLOCK).map(dot).sum();
                    sums[lane] = (dot as f32).mul_add(d[lane] * scale.d, sums[lane]);
                }
            }
        }
    }
    sums
}

/// Single elements: those of even and of odd number are summed apart.
#[inline(always)]
fn elements<const N: usize, const BYTES: usize>(
    panel: &[u8],
    x: super::Rows,
    first: usize,
    load: impl Fn([u8; BYTES]) -> f32,
) -> Sums<N> {
    let mut sums = [[[0f32; LANES]; 2]; N];
    for (k, weights) in panel.as_chunks::<BYTES>().0.as_chunks::<LANES>().0.iter().enumerate() {
        for (n, sums) in sums.iter_mut().enumerate() {
            let x = x.row(first + n)[k];
            for (sum, &weight) in sums[k % 2].iter_mut().zip(weights) {
                *sum = load(weight).mul_add(x, *sum);
            }
        }
    }
    sums.map(|[even, odd]| std::array::from_fn(|lane| even[lane] + odd[lane]))
}

pub fn f32<const N: usize>(panel: &[u8], x: super::Rows, first: usize) -> Sums<N> {
    elements::<N, 4>(panel, x, first, f32::from_le_bytes)
}

pub fn f16<const N: usize>(panel: &[u8], x: super::Rows, first: usize) -> Sums<N> {
    elements::<N, 2>(panel, x, first, |bytes| f16::from_le_bytes(bytes).to_f32())
}

pub fn bf16<const N: usize>(panel: &[u8], x: super::Rows, first: usize) -> Sums<N> {
    elements::<N, 2>(panel, x, first, |bytes| bf16::from_le_bytes(bytes).to_f32())
}

/// Integers and scale of block `b` of row `n`.
#[inline(always)]
fn block_of<'a>(x: Quantised<'a>, n: usize, b: usize) -> (&'a [i8], super::activations::BlockScale) {
    (&x.row(n)[b * BLOCK..][..BLOCK], x.row_scales(n)[b])
}

/// Eight f16 at the start of `bytes`.
fn halves(bytes: &[u8]) -> [f32; LANES] {
    std::array::from_fn(|lane| f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32())
}
