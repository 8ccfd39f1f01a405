//! Swizzles and `wgmma` descriptors against the worked examples of the manual and against each other.

use ptxsim::units::descriptor::{Descriptor, Major};
use ptxsim::units::swizzle::Swizzle;
use std::collections::HashSet;

#[test]
fn swizzles_are_the_tables_of_the_manual() {
    for (swizzle, mask) in [(Swizzle::None, 0), (Swizzle::B32, 1), (Swizzle::B64, 3), (Swizzle::B128, 7)] {
        for row in 0..16u32 {
            for chunk in 0..8u32 {
                let (address, to) = (row * 128 + chunk * 16 + 5, row * 128 + (chunk ^ row & mask) * 16 + 5);
                assert_eq!(swizzle.apply(address), to, "{swizzle:?} row {row} chunk {chunk}");
                assert_eq!(swizzle.apply(to), address);
            }
        }
        assert_eq!(
            swizzle.period_bytes(),
            [16, 256, 512, 1024][[0, 1, 3, 7].iter().position(|m| *m == mask).expect("mask")]
        );
    }
}

#[test]
fn descriptors_decode_what_they_encode() {
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let descriptor = Descriptor { start: 0x1_2340, leading: 128, stride: 1024, swizzle, base_offset: 0 };
        assert_eq!(Descriptor::decode(descriptor.encode()), descriptor);
    }
    // As CUTLASS writes it for a 128-byte swizzle: start, no leading offset (1), stride 1024, layout 1.
    let bits = (0x400u64 >> 4) | 1 << 16 | (1024 >> 4) << 32 | 1 << 62;
    let expected = Descriptor { start: 0x400, leading: 16, stride: 1024, swizzle: Swizzle::B128, base_offset: 0 };
    assert_eq!(Descriptor::decode(bits), expected);
    assert_eq!(Descriptor::decode(bits | 3 << 49), Descriptor { base_offset: 3, ..expected });
}

/// All chunks of an operand lie apart, inside the tile, and a tile written by a tensor copy with the same swizzle (rows of `W` bytes,
/// one after the other, XOR on the address) is found again.
#[test]
fn swizzled_operands_are_what_a_tensor_copy_writes() {
    for swizzle in [Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let row = swizzle.row_bytes().expect("a swizzle");
        // K-major: row mn of the copy holds the k of mn.
        let descriptor = Descriptor { start: 4096, leading: 16, stride: 8 * row, swizzle, base_offset: 0 };
        for chunk in descriptor.chunks(Major::K, 64, 16, 2) {
            assert_eq!(chunk.address, swizzle.apply(4096 + chunk.mn as u32 * row + chunk.k as u32 * 2));
        }
        // MN-major: row k of the copy holds W / 2 of mn; blocks of the next mn follow after all k.
        let elements = row / 2;
        let descriptor = Descriptor { start: 4096, leading: 16 * row, stride: 8 * row, swizzle, base_offset: 0 };
        for chunk in descriptor.chunks(Major::Mn, 64, 16, 2) {
            let (mn, k) = (chunk.mn as u32, chunk.k as u32);
            let block = mn / elements * 16 * row;
            assert_eq!(chunk.address, swizzle.apply(4096 + block + k * row + mn % elements * 2));
        }
    }
}

#[test]
fn operands_without_swizzle_are_core_matrices() {
    // 8x8 core matrices of 128 bytes; along k 128 bytes on, along mn 256.
    let descriptor = Descriptor { start: 0, leading: 128, stride: 256, swizzle: Swizzle::None, base_offset: 0 };
    for (major, expected) in [
        (Major::K, (|mn, k| mn / 8 * 256 + k / 8 * 128 + mn % 8 * 16) as fn(u32, u32) -> u32),
        (Major::Mn, |mn, k| mn / 8 * 256 + k / 8 * 128 + k % 8 * 16),
    ] {
        let chunks: Vec<_> = descriptor.chunks(major, 64, 16, 2).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.address).collect::<HashSet<_>>().len(), 128);
        for chunk in chunks {
            assert_eq!(chunk.address, expected(chunk.mn as u32, chunk.k as u32), "{major:?}");
        }
    }
    // tf32: four elements per chunk, k = 8 is two chunks.
    let chunks: Vec<_> = descriptor.chunks(Major::K, 8, 8, 4).map(|chunk| (chunk.mn, chunk.k, chunk.address)).collect();
    assert_eq!(chunks[..4], [(0, 0, 0), (0, 4, 128), (1, 0, 16), (1, 4, 144)]);
}
