//! `ldmatrix`, `stmatrix` and `movmatrix`: 8x8 matrices of 16-bit elements between shared memory and a warp's registers.
//!
//! Matrix j's row r has its address in lane 8j + r. Lane l holds, of each matrix, row l / 4, columns 2 (l % 4) and the next
//! (PTX ISA 9.7.14.5.15); transposed, rows and columns change places.

use super::Cluster;
use super::access::Kind;
use super::warp::Warp;
use crate::error::Result;
use crate::event::{AccessKind, Site, WarpSync};
use crate::program::op::MatrixMove;
use crate::scalar::lanes::{L32, blend32, each};

/// A matrix as rows of elements.
type Matrix = [[u16; 8]; 8];

/// The two elements of a lane, first in the low half.
fn fragment(matrix: &Matrix, lane: usize, transposed: bool) -> u32 {
    let (row, column) = (lane / 4, 2 * (lane % 4));
    let [low, high] = if transposed {
        [matrix[column][row], matrix[column + 1][row]]
    } else {
        [matrix[row][column], matrix[row][column + 1]]
    };
    low as u32 | (high as u32) << 16
}

/// The matrix that the fragments of 32 lanes make.
fn gather(fragments: &L32, transposed: bool) -> Matrix {
    let mut matrix = [[0; 8]; 8];
    for lane in 0..32 {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        let value = fragments.0[lane];
        for (offset, element) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
            if transposed {
                matrix[column + offset][row] = element;
            } else {
                matrix[row][column + offset] = element;
            }
        }
    }
    matrix
}

impl<'a> Cluster<'a> {
    pub(super) fn matrix(&mut self, warp: &mut Warp, site: Site, op: &MatrixMove) -> Result<()> {
        let count = op.registers.len();
        let rows = if count == 4 { u32::MAX } else { (1 << (8 * count)) - 1 };
        let mut addresses = self.addresses(warp, op.address);
        let mut matrices: Vec<Matrix> = vec![[[0; 8]; 8]; count];
        if op.store {
            for (matrix, register) in matrices.iter_mut().zip(&op.registers) {
                *matrix = gather(self.launch.program.source32(&warp.regs, *register), op.transposed);
            }
        }
        let kind = Kind::plain(if op.store { AccessKind::Write } else { AccessKind::Read }, 16);
        self.by_space(op.space, &mut addresses, site.mask & rows, |cluster, space, lanes, addresses| {
            let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
            for lane in each(tested.lanes) {
                let row = &mut matrices[lane / 8][lane % 8];
                for (column, element) in row.iter_mut().enumerate() {
                    let address = addresses.0[lane] + 2 * column as u64;
                    if op.store {
                        cluster.poke(warp, &tested, lane, address, 2, *element as u64);
                    } else {
                        *element = cluster.peek(warp, &tested, lane, address, 2) as u16;
                    }
                }
            }
            Ok(())
        })?;
        if !op.store {
            for (matrix, register) in matrices.iter().zip(&op.registers) {
                let values = L32(std::array::from_fn(|lane| fragment(matrix, lane, op.transposed)));
                blend32(self.arch, &mut warp.regs.narrow[*register as usize], &values, site.mask);
            }
        }
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }

    pub(super) fn move_matrix(&mut self, warp: &mut Warp, site: Site, d: u16, a: u16) {
        let matrix = gather(self.launch.program.source32(&warp.regs, a), false);
        let values = L32(std::array::from_fn(|lane| fragment(&matrix, lane, true)));
        blend32(self.arch, &mut warp.regs.narrow[d as usize], &values, site.mask);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
    }
}
