//! Which lane and register hold which element of a matrix: the fragments of `mma`, `ldmatrix`, `stmatrix`, `wmma` and `wgmma`.
//!
//! All of them are built of blocks of 8 rows of 16 bytes: lane `l` holds word `l % 4` of row `l / 4`. Tiles here are row-major, one
//! element per `u32` (in its low bits). Lane `l`: `g = l / 4`, `t = l % 4`. [ISA 9.7.14.5, 9.7.15.5]

/// A register of a warp.
pub type Register = [u32; 32];

/// Row `g` of the block in `register`: the words of lanes 4g to 4g + 3.
#[inline(always)]
fn block_row(register: &Register, g: usize) -> &[u32; 4] {
    register[4 * g..4 * g + 4].try_into().expect("four lanes")
}

/// Two 16-bit elements per word, low half first.
#[inline(always)]
fn unpack(words: &[u32; 4], to: &mut [u32]) {
    for t in 0..4 {
        to[2 * t] = words[t] & 0xffff;
        to[2 * t + 1] = words[t] >> 16;
    }
}

#[inline(always)]
fn pack(low: u32, high: u32) -> u32 {
    low & 0xffff | high << 16
}

/// A of a warp of `wgmma` in registers, 16-bit elements, as of `mma.m16n8k16`: `k / 4` registers to 16 rows of
/// `k`. Register i holds the block of rows 8 (i % 2) and columns 8 (i / 2).
#[inline]
pub fn a_16bit(registers: &[&Register], k: usize, tile: &mut [u32]) {
    assert!(registers.len() == k / 4 && tile.len() == 16 * k);
    for (i, register) in registers.iter().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i % 2)) * k + 8 * (i / 2);
            unpack(block_row(register, g), &mut tile[at..at + 8]);
        }
    }
}

/// The same with tf32 elements, as of `mma.m16n8k8`: `k / 2` registers to 16 rows of `k`. Register i: rows 8 (i % 2), columns 4 (i / 2).
#[inline]
pub fn a_32bit(registers: &[&Register], k: usize, tile: &mut [u32]) {
    assert!(registers.len() == k / 2 && tile.len() == 16 * k);
    for (i, register) in registers.iter().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i % 2)) * k + 4 * (i / 2);
            tile[at..at + 4].copy_from_slice(block_row(register, g));
        }
    }
}

/// Accumulators of f32 (C and D): `n / 2` registers of a warp to 16 rows of `n`, rows `stride` elements apart. Register i: row
/// 8 (i / 2 % 2) + g, column 8 (i / 4) + 2t + i % 2.
#[inline]
pub fn accumulators_32bit(registers: &[Register], tile: &mut [u32], stride: usize) {
    for (i, register) in registers.iter().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i / 2 % 2)) * stride + 8 * (i / 4) + i % 2;
            let row = &mut tile[at..at + 7];
            let words = block_row(register, g);
            for t in 0..4 {
                row[2 * t] = words[t];
            }
        }
    }
}

/// The way back of [`accumulators_32bit`].
#[inline]
pub fn to_accumulators_32bit(tile: &[u32], stride: usize, registers: &mut [Register]) {
    for (i, register) in registers.iter_mut().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i / 2 % 2)) * stride + 8 * (i / 4) + i % 2;
            let row = &tile[at..at + 7];
            for t in 0..4 {
                register[4 * g + t] = row[2 * t];
            }
        }
    }
}

/// Accumulators of f16: `n / 4` registers of two. Register i: row 8 (i % 2) + g, columns 8 (i / 2) + 2t and the next.
#[inline]
pub fn accumulators_16bit(registers: &[Register], tile: &mut [u32], stride: usize) {
    for (i, register) in registers.iter().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i % 2)) * stride + 8 * (i / 2);
            unpack(block_row(register, g), &mut tile[at..at + 8]);
        }
    }
}

/// The way back of [`accumulators_16bit`].
#[inline]
pub fn to_accumulators_16bit(tile: &[u32], stride: usize, registers: &mut [Register]) {
    for (i, register) in registers.iter_mut().enumerate() {
        for g in 0..8 {
            let at = (g + 8 * (i % 2)) * stride + 8 * (i / 2);
            for t in 0..4 {
                register[4 * g + t] = pack(tile[at + 2 * t], tile[at + 2 * t + 1]);
            }
        }
    }
}

/// An 8x8 matrix of 16-bit elements as `ldmatrix` and `stmatrix` see it in memory: 8 rows of 16 bytes, as words.
pub type MatrixRows = [[u32; 4]; 8];

/// What `ldmatrix` puts into the register of one matrix.
#[inline]
pub fn ldmatrix(rows: &MatrixRows, transpose: bool) -> Register {
    let element = |row: usize, column: usize| rows[row][column / 2] >> (16 * (column % 2));
    std::array::from_fn(|lane| {
        let (g, t) = (lane / 4, lane % 4);
        if transpose { pack(element(2 * t, g), element(2 * t + 1, g)) } else { rows[g][t] }
    })
}

/// What `stmatrix` writes of the register of one matrix.
#[inline]
pub fn stmatrix(register: &Register, transpose: bool) -> MatrixRows {
    // Element (row, column) of the transposed matrix lies in lane (g = column, t = row / 2), half row % 2.
    let element = |row: usize, column: usize| register[4 * column + row / 2] >> (16 * (row % 2));
    std::array::from_fn(|row| {
        std::array::from_fn(|word| match transpose {
            true => pack(element(row, 2 * word), element(row, 2 * word + 1)),
            false => register[4 * row + word],
        })
    })
}

/// A matrix of `wmma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WmmaMatrix {
    A,
    B,
    Accumulator,
}

/// Shape of a `wmma` tile: `m` x `n` x `k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WmmaShape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// Row and column, in its matrix, of element `index` of lane `lane` of a `wmma` fragment. PTX leaves this open and only asks that loads,
/// `wmma.mma` and stores agree; this is how the hardware's `mma` blocks lie. 16-bit elements count two per register, low half first;
/// `bits` is 16, or 32 for tf32 and f32 accumulators. f16 fragments of A and B repeat their elements to fill eight registers.
pub fn wmma_element(matrix: WmmaMatrix, shape: WmmaShape, bits: u32, lane: usize, index: usize) -> (usize, usize) {
    let (g, t) = (lane / 4, lane % 4);
    let WmmaShape { m, n, k } = shape;
    let index = index % (wmma_elements(matrix, shape) / 32);
    match (matrix, bits) {
        (WmmaMatrix::Accumulator, _) => {
            let (block, within) = (index / 2, index % 2);
            let row_blocks = m / 8;
            (8 * (block % row_blocks) + g, 8 * (block / row_blocks) + 2 * t + within)
        }
        (WmmaMatrix::A, 16) => {
            let (block, within) = (index / 2, index % 2);
            let row_blocks = m / 8;
            (8 * (block % row_blocks) + g, 8 * (block / row_blocks) + 2 * t + within)
        }
        (WmmaMatrix::A, _) => (8 * (index % (m / 8)) + g, 4 * (index / (m / 8)) + t),
        (WmmaMatrix::B, 16) => {
            let (block, within) = (index / 2, index % 2);
            let column_blocks = n / 8;
            (8 * (block / column_blocks % (k / 8)) + 2 * t + within, 8 * (block % column_blocks) + g)
        }
        (WmmaMatrix::B, _) => (4 * (index / (n / 8)) + t, 8 * (index % (n / 8)) + g),
    }
}

/// Elements of a matrix of `wmma`.
pub fn wmma_elements(matrix: WmmaMatrix, shape: WmmaShape) -> usize {
    match matrix {
        WmmaMatrix::A => shape.m * shape.k,
        WmmaMatrix::B => shape.k * shape.n,
        WmmaMatrix::Accumulator => shape.m * shape.n,
    }
}
