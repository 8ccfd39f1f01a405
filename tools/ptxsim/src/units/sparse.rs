//! `mma.sp`: A has two elements of every four along `k`, and metadata says which. 16-bit floats. [ISA 9.7.14.6]
//!
//! Two bits name the place of each stored element in its group of four. 16 bits hold 8 elements of a row: the low half of a word
//! belongs to row `g`, the high half to row `g + 8`. Of the four lanes of a row, the selector names the one (k = 16) or the pair (k = 32,
//! one lane for each 16 columns) whose words count; so CUTLASS stores them.

use super::fragment::{self, Register};
use super::tensor_core::{Accumulator, Product, multiply_add};
use pulp::Arch;

/// Rows of A.
const M: usize = 16;
/// Columns of B.
const N: usize = 8;

/// Which of four columns stored element `j` of a row is.
fn place(metadata: &Register, selector: usize, k: usize, row: usize, j: usize) -> usize {
    let (group, chunk) = (row % 8, j / 8);
    let lane = 4 * group + if k == 16 { selector } else { 2 * selector + chunk };
    (metadata[lane] >> (16 * (row / 8) + 2 * (j % 8)) & 3) as usize
}

/// `mma.sp.sync.aligned.m16n8k{k}`: `d` holds C on entry; `product.k` is `k / 2`, the elements that are stored.
///
/// # Errors
/// One sentence, when the two places of a group are not in order.
pub fn mma_sparse(
    arch: Arch,
    product: Product,
    (a, b): (&[&Register], &[&Register]),
    (metadata, selector): (&Register, usize),
    d: &mut [Register],
) -> Result<(), String> {
    let (stored, k) = (product.k, 2 * product.k);
    let mut a_tile = vec![0; M * stored];
    fragment::a_16bit(a, stored, &mut a_tile);
    let mut b_tile = vec![0; k * N];
    for (register, lanes) in b.iter().enumerate() {
        for (lane, word) in lanes.iter().enumerate() {
            let at = (8 * register + 2 * (lane % 4)) * N + lane / 4;
            (b_tile[at], b_tile[at + N]) = (word & 0xffff, word >> 16);
        }
    }
    let mut d_tile = vec![0; M * N];
    match product.accumulator {
        Accumulator::F32 => fragment::accumulators_32bit(d, &mut d_tile, N),
        Accumulator::F16 => fragment::accumulators_16bit(d, &mut d_tile, N),
    }
    // Every row has other columns of its own, and so is a product by itself, the first of eight rows.
    for row in 0..M {
        let (mut a_row, mut b_rows, mut d_rows) = (vec![0; 8 * stored], vec![0; stored * N], vec![0; 8 * N]);
        a_row[..stored].copy_from_slice(&a_tile[row * stored..][..stored]);
        for j in 0..stored {
            let at = |j: usize| place(metadata, selector, k, row, j);
            if j % 2 == 1 && at(j) <= at(j - 1) {
                return Err(format!("metadata of row {row} names columns {} and {} of a group", at(j - 1), at(j)));
            }
            let column = 4 * (j / 2) + at(j);
            b_rows[j * N..][..N].copy_from_slice(&b_tile[column * N..][..N]);
        }
        d_rows[..N].copy_from_slice(&d_tile[row * N..][..N]);
        multiply_add(arch, product, &a_row, &b_rows, &mut d_rows, N);
        d_tile[row * N..][..N].copy_from_slice(&d_rows[..N]);
    }
    match product.accumulator {
        Accumulator::F32 => fragment::to_accumulators_32bit(&d_tile, N, d),
        Accumulator::F16 => fragment::to_accumulators_16bit(&d_tile, N, d),
    }
    Ok(())
}
