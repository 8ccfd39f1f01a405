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

/// A row: eight elements, two in a word.
type Row = [u32; 4];

/// The register of a matrix, a word per lane.
fn fragments(rows: &[Row; 8], transposed: bool) -> L32 {
    let mut out = L32::ZERO;
    if !transposed {
        out.0.as_chunks_mut::<4>().0.iter_mut().zip(rows).for_each(|(words, row)| *words = *row);
        return out;
    }
    for (lane, word) in out.0.iter_mut().enumerate() {
        let (column, pair) = (lane / 4, 2 * (lane % 4));
        let element = |row: usize| rows[row][column / 2] >> (16 * (column % 2)) & 0xffff;
        *word = element(pair) | element(pair + 1) << 16;
    }
    out
}

/// The matrix that a register holds.
fn rows_of(fragments: &L32, transposed: bool) -> [Row; 8] {
    let mut rows = [[0; 4]; 8];
    if !transposed {
        rows.iter_mut().zip(fragments.0.as_chunks::<4>().0).for_each(|(row, words)| *row = *words);
        return rows;
    }
    for (lane, word) in fragments.0.iter().enumerate() {
        let (column, pair) = (lane / 4, 2 * (lane % 4));
        let shift = 16 * (column % 2);
        rows[pair][column / 2] |= (word & 0xffff) << shift;
        rows[pair + 1][column / 2] |= (word >> 16) << shift;
    }
    rows
}

impl<'a> Cluster<'a> {
    pub(super) fn matrix(&mut self, warp: &mut Warp, site: Site, op: &MatrixMove) -> Result<()> {
        let count = op.registers.len();
        let rows = if count == 4 { u32::MAX } else { (1 << (8 * count)) - 1 };
        let mut addresses = self.addresses(warp, op.address);
        // At most four matrices; row r of matrix j is at 8j + r, as its address is in lane 8j + r.
        let mut all = [[0; 4]; 32];
        if op.store {
            for (rows, register) in all.as_chunks_mut::<8>().0.iter_mut().zip(&op.registers) {
                *rows = rows_of(self.launch.program.source32(&warp.regs, *register), op.transposed);
            }
        }
        let kind = Kind::plain(if op.store { AccessKind::Write } else { AccessKind::Read }, 16);
        self.by_space(op.space, &mut addresses, site.mask & rows, |cluster, space, lanes, addresses| {
            let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
            for lane in each(tested.lanes) {
                let mut bytes = [0; 16];
                if op.store {
                    let words = bytes.as_chunks_mut::<4>().0.iter_mut().zip(&all[lane]);
                    words.for_each(|(bytes, word)| *bytes = word.to_le_bytes());
                    cluster.write_bytes(space, addresses.0[lane], &bytes);
                } else {
                    cluster.read_bytes(space, addresses.0[lane], &mut bytes);
                    let words = bytes.as_chunks::<4>().0.iter().zip(&mut all[lane]);
                    words.for_each(|(bytes, word)| *word = u32::from_le_bytes(*bytes));
                }
            }
            Ok(())
        })?;
        if !op.store {
            for (rows, register) in all.as_chunks::<8>().0.iter().zip(&op.registers) {
                let values = fragments(rows, op.transposed);
                blend32(self.arch, &mut warp.regs.narrow[*register as usize], &values, site.mask);
            }
        }
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }

    pub(super) fn move_matrix(&mut self, warp: &mut Warp, site: Site, d: u16, a: u16) {
        let rows = rows_of(self.launch.program.source32(&warp.regs, a), false);
        blend32(self.arch, &mut warp.regs.narrow[d as usize], &fragments(&rows, true), site.mask);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
    }
}
