//! Matrix products on registers: `mma.sync` of a warp, `wmma.mma`, and the product of `wgmma` on tiles read from shared memory.

use pulp::Arch;

use super::fragment::{self, Register, WmmaMatrix, WmmaShape};
use super::tensor_core::{Accumulator, Arithmetic, Operand, Product, multiply_add};
use super::{exact_mma, fast_mma};

/// `mma.sync.aligned.m16n8k{k}.row.col`: D = A B + C.
///
/// Registers: A `k / 4` and B `k / 8` of 16-bit operands, `k / 2` and `k / 4` of tf32; C and D 4 of f32, 2 of f16 pairs. `d` holds C on
/// entry.
///
/// The tiles take rows, columns and `k` in the order in which registers hold them, so that most of them are copied by whole words of
/// four lanes: of eight columns the even ones come first, and of eight 16-bit elements along `k`, too. No sum depends on that within a
/// step of the tensor core.
pub fn mma_m16n8(arch: Arch, product: Product, a: &[&Register], b: &[&Register], d: &mut [Register]) {
    if let ([a0, a1, a2, a3], [b0, b1], [d0, d1, d2, d3]) = (a, b, &mut *d) {
        let d = [d0, d1, d2, d3].map(|d| &raw mut *d);
        let sums = Sums { c: d.map(|d| d.cast_const()), d };
        // SAFETY: four registers, borrowed exclusively, each of which is its own C.
        if unsafe { in_registers(arch, product, [a0, a1, a2, a3], [b0, b1], sums) } {
            return;
        }
    }
    by_tiles(arch, product, a, b, d);
}

/// Where C is read and D written: registers that can be read, and written, while nobody else reads or writes D. A register
/// of D may be that of C at the same place, and is no other.
#[derive(Clone, Copy)]
pub struct Sums {
    pub c: [*const Register; 4],
    pub d: [*mut Register; 4],
}

/// The same where four registers of A, two of B and four of `f32` sums make the product; false if it was not done.
///
/// # Safety
/// As [`Sums`] says.
pub unsafe fn in_registers(arch: Arch, product: Product, a: [&Register; 4], b: [&Register; 2], sums: Sums) -> bool {
    if product.accumulator != Accumulator::F32 || product.k != 16 {
        return false;
    }
    // SAFETY: the caller's.
    match product.arithmetic {
        Arithmetic::Fast => unsafe { fast_mma::m16n8k16(arch, product.operand, a, b, sums) },
        Arithmetic::Exact(generation) => unsafe {
            exact_mma::m16n8k16(arch, (product.operand, generation), a, b, sums)
        },
    }
}

/// The same for all kinds of products, by tiles.
fn by_tiles(arch: Arch, product: Product, a: &[&Register], b: &[&Register], d: &mut [Register]) {
    let k = product.k;
    let (mut a_tile, mut b_tile, mut d_tile) = ([0; 16 * 16], [0; 16 * 8], [[0; 8]; 16]);
    let (a_tile, b_tile) = (&mut a_tile[..16 * k], &mut b_tile[..8 * k]);
    let halves = product.operand != Operand::Tf32;
    for (i, register) in a.iter().enumerate() {
        let (words, _) = register.as_chunks::<4>();
        for (g, words) in words.iter().enumerate() {
            let row = (g + 8 * (i % 2)) * k;
            match halves {
                true => split(words, &mut a_tile[row + 8 * (i / 2)..][..8]),
                false => a_tile[row + 4 * (i / 2)..][..4].copy_from_slice(words),
            }
        }
    }
    for (j, register) in b.iter().enumerate() {
        let rows = &mut b_tile[if halves { 64 * j..64 * (j + 1) } else { 32 * j..32 * (j + 1) }];
        let (words, _) = register.as_chunks::<4>();
        for (n, words) in words.iter().enumerate() {
            let column = n / 2 + 4 * (n % 2);
            for t in 0..4 {
                if halves {
                    rows[8 * t + column] = words[t] & 0xffff;
                    rows[32 + 8 * t + column] = words[t] >> 16;
                } else {
                    rows[8 * t + column] = words[t];
                }
            }
        }
    }
    let wide = product.accumulator == Accumulator::F32;
    for (i, register) in d.iter().enumerate() {
        let (words, _) = register.as_chunks::<4>();
        for (g, words) in words.iter().enumerate() {
            match wide {
                true => d_tile[g + 8 * (i / 2)][4 * (i % 2)..][..4].copy_from_slice(words),
                false => split(words, &mut d_tile[g + 8 * i]),
            }
        }
    }
    multiply_add(arch, product, a_tile, b_tile, d_tile.as_flattened_mut(), 8);
    for (i, register) in d.iter_mut().enumerate() {
        let (words, _) = register.as_chunks_mut::<4>();
        for (g, words) in words.iter_mut().enumerate() {
            match wide {
                true => words.copy_from_slice(&d_tile[g + 8 * (i / 2)][4 * (i % 2)..][..4]),
                false => {
                    let row = &d_tile[g + 8 * i];
                    (0..4).for_each(|t| words[t] = row[t] & 0xffff | row[4 + t] << 16);
                }
            }
        }
    }
}

/// Low halves of four words, then high halves.
#[inline(always)]
fn split(words: &[u32; 4], to: &mut [u32]) {
    for t in 0..4 {
        to[t] = words[t] & 0xffff;
        to[4 + t] = words[t] >> 16;
    }
}

/// Bits of an element of a `wmma` fragment.
fn element_bits(operand: Operand) -> u32 {
    if operand == Operand::Tf32 { 32 } else { 16 }
}

/// Element `index` of lane `lane` of a fragment.
fn read(registers: &[&Register], bits: u32, lane: usize, index: usize) -> u32 {
    if bits == 32 { registers[index][lane] } else { registers[index / 2][lane] >> (16 * (index % 2)) & 0xffff }
}

/// `wmma.mma.sync.aligned.{m16n16,m8n32,m32n8}k{k}`: `d` holds C on entry. Layouts as [`fragment::wmma_element`] gives them.
pub fn wmma(arch: Arch, product: Product, shape: WmmaShape, a: &[&Register], b: &[&Register], d: &mut [Register]) {
    let WmmaShape { m, n, k } = shape;
    let bits = element_bits(product.operand);
    let accumulator_bits = if product.accumulator == Accumulator::F32 { 32 } else { 16 };
    let gather = |matrix, bits, registers: &[&Register], width: usize, tile: &mut [u32]| {
        for lane in 0..32 {
            for index in 0..fragment::wmma_elements(matrix, shape) / 32 {
                let (row, column) = fragment::wmma_element(matrix, shape, bits, lane, index);
                tile[row * width + column] = read(registers, bits, lane, index);
            }
        }
    };
    let (mut a_tile, mut b_tile, mut d_tile) = (vec![0; m * k], vec![0; k * n], vec![0; m * n]);
    gather(WmmaMatrix::A, bits, a, k, &mut a_tile);
    gather(WmmaMatrix::B, bits, b, n, &mut b_tile);
    let c: Vec<&Register> = d.iter().collect();
    gather(WmmaMatrix::Accumulator, accumulator_bits, &c, n, &mut d_tile);
    multiply_add(arch, product, &a_tile, &b_tile, &mut d_tile, n);
    for lane in 0..32 {
        for index in 0..m * n / 32 {
            let (row, column) = fragment::wmma_element(WmmaMatrix::Accumulator, shape, accumulator_bits, lane, index);
            let value = d_tile[row * n + column];
            match (accumulator_bits, index % 2) {
                (32, _) => d[index][lane] = value,
                (_, 0) => d[index / 2][lane] = value,
                _ => d[index / 2][lane] |= value << 16,
            }
        }
    }
}
