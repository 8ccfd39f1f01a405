//! Fragments of `ldmatrix`, `stmatrix`, `wmma` and `wgmma` accumulators.

use ptxsim::units::fragment::{self, MatrixRows, Register, WmmaMatrix, WmmaShape};
use std::collections::HashSet;

/// Element (r, c) has the value 8 r + c.
fn numbered() -> MatrixRows {
    std::array::from_fn(|row| {
        std::array::from_fn(|word| (8 * row + 2 * word) as u32 | ((8 * row + 2 * word + 1) as u32) << 16)
    })
}

#[test]
fn ldmatrix_as_the_manual_says() {
    let (plain, transposed) = (fragment::ldmatrix(&numbered(), false), fragment::ldmatrix(&numbered(), true));
    for lane in 0..32u32 {
        let (g, t) = (lane / 4, lane % 4);
        assert_eq!(plain[lane as usize], (8 * g + 2 * t) | (8 * g + 2 * t + 1) << 16);
        assert_eq!(transposed[lane as usize], (8 * (2 * t) + g) | (8 * (2 * t + 1) + g) << 16);
    }
}

#[test]
fn stmatrix_is_the_way_back() {
    for transpose in [false, true] {
        assert_eq!(fragment::stmatrix(&fragment::ldmatrix(&numbered(), transpose), transpose), numbered());
    }
}

#[test]
fn accumulators_of_wgmma() {
    // Warp w of the group holds rows 16 w + ...; here one warp.
    for n in [8usize, 64, 256] {
        let registers: Vec<Register> = (0..n / 2).map(|i| std::array::from_fn(|lane| (i * 32 + lane) as u32)).collect();
        let mut tile = vec![u32::MAX; 16 * n];
        fragment::accumulators_32bit(&registers, &mut tile, n);
        for lane in 0..32 {
            for i in 0..n / 2 {
                let (row, column) = (lane / 4 + 8 * ((i >> 1) & 1), 8 * (i >> 2) + 2 * (lane % 4) + (i & 1));
                assert_eq!(tile[row * n + column], (i * 32 + lane) as u32);
            }
        }
        let mut back: Vec<Register> = vec![[0; 32]; n / 2];
        fragment::to_accumulators_32bit(&tile, n, &mut back);
        assert_eq!(back, registers);
    }
}

#[test]
fn accumulators_of_f16() {
    let registers: Vec<Register> =
        (0..4).map(|i| std::array::from_fn(|lane| (i * 32 + lane) as u32 * 0x2_0002 + 0x1_0000)).collect();
    let mut tile = vec![u32::MAX; 16 * 16];
    fragment::accumulators_16bit(&registers, &mut tile, 16);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = (lane / 4 + 8 * (i % 2), 8 * (i / 2) + 2 * (lane % 4));
            assert_eq!(tile[row * 16 + column], (i * 32 + lane) as u32 * 2);
            assert_eq!(tile[row * 16 + column + 1], (i * 32 + lane) as u32 * 2 + 1);
        }
    }
    let mut back: Vec<Register> = vec![[0; 32]; 4];
    fragment::to_accumulators_16bit(&tile, 16, &mut back);
    assert_eq!(back, registers);
}

/// Every element of a `wmma` matrix is held exactly once by a lane.
#[test]
fn wmma_fragments_are_bijections() {
    let shapes = [(16, 16, 16), (8, 32, 16), (32, 8, 16), (16, 16, 8)].map(|(m, n, k)| WmmaShape { m, n, k });
    for shape in shapes {
        for matrix in [WmmaMatrix::A, WmmaMatrix::B, WmmaMatrix::Accumulator] {
            let bits = if shape.k == 8 || matrix == WmmaMatrix::Accumulator { 32 } else { 16 };
            let (rows, columns) = match matrix {
                WmmaMatrix::A => (shape.m, shape.k),
                WmmaMatrix::B => (shape.k, shape.n),
                WmmaMatrix::Accumulator => (shape.m, shape.n),
            };
            let per_lane = rows * columns / 32;
            let held: HashSet<(usize, usize)> = (0..32)
                .flat_map(|lane| (0..per_lane).map(move |i| fragment::wmma_element(matrix, shape, bits, lane, i)))
                .inspect(|(row, column)| assert!(*row < rows && *column < columns, "{shape:?} {matrix:?}"))
                .collect();
            assert_eq!(held.len(), rows * columns, "{shape:?} {matrix:?}");
        }
    }
}
