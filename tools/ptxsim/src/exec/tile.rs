//! `mma` and `wmma` of integers, bits, f64 and 8-bit floats.

use super::Cluster;
use super::access::Kind;
use super::warp::Warp;
use crate::error::Result;
use crate::event::{AccessKind, Site, WarpSync};
use crate::program::matrix_op::{TileMma, TileMove};
use crate::program::op::{AnyDst, AnySrc};
use crate::scalar::lanes::{L32, L64, each};
use crate::units::fragment::WmmaMatrix;
use crate::units::tile::{Lanes, a_place, b_place, c_place};

impl<'a> Cluster<'a> {
    pub(super) fn tile_mma(&mut self, warp: &mut Warp, site: Site, op: &TileMma) {
        let program = &self.launch.program;
        let read = |list: &[AnySrc]| -> Vec<Lanes> {
            list.iter().map(|source| std::array::from_fn(|lane| program.lane(&warp.regs, *source, lane))).collect()
        };
        let [a, b, mut d] = [0, 1, 2].map(|matrix| read(&op.sources[matrix]));
        op.product.multiply(self.tensor_arithmetic(), op.shape, &a, &b, &mut d);
        for (to, lanes) in op.d.iter().zip(&d) {
            each(site.mask).for_each(|lane| self.write(warp, *to, lane, lanes[lane]));
        }
        self.counters.tensor(site.pc, (op.shape.m * op.shape.n * op.shape.k) as u64);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
    }

    /// Every lane reads or writes its fragment: whole words where `k` is contiguous, else one element after the other.
    pub(super) fn tile_move(&mut self, warp: &mut Warp, site: Site, op: &TileMove) -> Result<()> {
        let program = &self.launch.program;
        let start = self.addresses(warp, op.address);
        let shape = op.shape;
        let along_k = match op.matrix {
            WmmaMatrix::A => op.row_major,
            WmmaMatrix::B => !op.row_major,
            WmmaMatrix::Accumulator => false,
        };
        let (height, width) = match op.matrix {
            WmmaMatrix::A => (shape.m, shape.k),
            WmmaMatrix::B => (shape.k, shape.n),
            WmmaMatrix::Accumulator => (shape.m, shape.n),
        };
        let dense = if op.row_major { width } else { height } as u32;
        let strides = op.stride.map_or(L32([dense; 32]), |stride| *program.source32(&warp.regs, stride));
        let per_register = if op.bits >= 32 { 1 } else { 32 / op.bits };
        let steps = if along_k { 1 } else { per_register };
        let bytes = (op.bits * (per_register / steps) / 8) as u32;
        for (register, slot) in op.registers.iter().enumerate() {
            let mut words = [0u64; 32];
            if op.store {
                words = std::array::from_fn(|lane| program.lane(&warp.regs, *slot, lane));
            }
            for index in 0..steps {
                let mut addresses = L64(std::array::from_fn(|lane| {
                    let (row, column) = match op.matrix {
                        WmmaMatrix::A => a_place(shape.m, per_register, register, lane, index),
                        WmmaMatrix::B => b_place(shape.k, per_register, register, lane, index),
                        WmmaMatrix::Accumulator => c_place(shape.m, register, lane),
                    };
                    let (slow, fast) = if op.row_major { (row, column) } else { (column, row) };
                    let element = slow as u64 * u64::from(strides.0[lane]) + fast as u64;
                    start.0[lane].wrapping_add(element * op.bits as u64 / 8)
                }));
                let shift = index * op.bits;
                let kind = Kind::plain(if op.store { AccessKind::Write } else { AccessKind::Read }, bytes);
                self.by_space(op.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
                    let site = Site { mask: lanes, ..site };
                    let tested = cluster.test(warp.local_bytes, site, space, addresses, kind)?;
                    cluster.turn_before_access(&tested);
                    for lane in each(tested.lanes) {
                        match op.store {
                            true => cluster.poke(warp, &tested, lane, addresses.0[lane], bytes, words[lane]),
                            false => {
                                words[lane] |= cluster.peek(warp, &tested, lane, addresses.0[lane], bytes) << shift
                            }
                        }
                    }
                    Ok(())
                })?;
            }
            if !op.store {
                let to = match *slot {
                    AnySrc::Narrow(slot) => AnyDst::Narrow(slot),
                    AnySrc::Wide(slot) => AnyDst::Wide(slot),
                };
                each(site.mask).for_each(|lane| self.write(warp, to, lane, words[lane]));
            }
        }
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }
}
