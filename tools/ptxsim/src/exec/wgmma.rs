//! `wgmma`: every warp of a warpgroup computes its own 16 rows of D, when the operation lands.
//!
//! A, B in shared memory, A's and D's registers are all read at that moment, so that a missing wait shows as wrong numbers too.
//! Operations of a warp land in order.

use super::Cluster;
use super::access::Kind;
use super::bulk::join;
use super::copy::{Pending, Work};
use super::warp::{RegFile, Warp};
use crate::address::{SHARED_STRIDE, Space};
use crate::error::Result;
use crate::event::{
    AccessKind, Agent, AsyncId, AsyncKind, AsyncRange, AsyncWait, Event, Interest, Proxy, Site, WgmmaOperands,
};
use crate::options::AsyncPolicy;
use crate::program::matrix_op::{Wgmma, WgmmaA, WgmmaOperand};
use crate::program::op::{Instr, Op};
use crate::scalar::lanes::{L64, each};
use crate::units::descriptor::{CHUNK_BYTES, Descriptor, Major};
use crate::units::fragment::{self, Register};
use crate::units::tensor_core::{Accumulator, Product, multiply_add};
use crate::units::tile;

/// A `wgmma.mma_async` of one warp.
#[derive(Clone, Debug)]
pub struct Product16 {
    /// Frame whose registers it uses.
    frame: u32,
    a: Option<Descriptor>,
    b: Descriptor,
    accumulate: bool,
    /// Groups that the warp had committed before.
    group: u32,
}

/// Rows of D that a warp computes.
const ROWS: usize = 16;

/// One 16-byte piece of an operand: its shared offset, and its first element's place.
struct Piece {
    address: u32,
    mn: usize,
    k: usize,
}

/// The pieces of `count` rows (columns of B) from `first` on.
fn pieces(descriptor: &Descriptor, major: Major, first: usize, count: usize, op: &Wgmma) -> Vec<Piece> {
    let bytes = op.operand.element_bytes();
    let per_piece = CHUNK_BYTES as usize / bytes;
    let mut out = Vec::with_capacity(count * op.k / per_piece);
    match major {
        Major::K => {
            for mn in 0..count {
                for k in (0..op.k).step_by(per_piece) {
                    let address = descriptor.k_major_chunk((first + mn) as u32, (k * bytes) as u32);
                    out.push(Piece { address, mn, k });
                }
            }
        }
        Major::Mn => {
            for k in 0..op.k {
                for mn in (0..count).step_by(per_piece) {
                    let address = descriptor.mn_major_chunk((first + mn) as u32, k as u32);
                    out.push(Piece { address, mn, k });
                }
            }
        }
    }
    out
}

impl<'a> Cluster<'a> {
    /// `wgmma.mma_async`.
    pub(super) fn wgmma(&mut self, warp: &mut Warp, site: Site, op: &Wgmma) -> Result<()> {
        let program = &self.launch.program;
        let uniform = |source: u16| -> Option<u64> {
            let values = program.source64(&warp.regs, source);
            let first = values.0[site.mask.trailing_zeros() as usize];
            each(site.mask).all(|lane| values.0[lane] == first).then_some(first)
        };
        let bits = |source: u16| uniform(source).ok_or("the matrix descriptor differs between lanes");
        let a_bits = match &op.a {
            WgmmaA::Descriptor(source, _) => Some(bits(*source)),
            WgmmaA::Registers(_) => None,
        };
        let a_bits = a_bits.transpose().map_err(|why| self.error(site, why))?;
        let b_bits = bits(op.b.0).map_err(|why| self.error(site, why))?;
        let (a, b) = (a_bits.map(Descriptor::decode), Descriptor::decode(b_bits));
        let scale = program.predicate(&warp.regs, op.accumulate) & site.mask;
        if scale != 0 && scale != site.mask {
            return Err(self.error(site, "scale-d differs between lanes"));
        }
        if self.watch.wants(Interest::REGISTERS) {
            let operands = WgmmaOperands { a: a_bits, b: b_bits, accumulate: scale != 0 };
            self.watch.emit(&Event::WgmmaOperands(site, operands));
        }
        let group = warp.wgmma_committed;
        let work = Product16 { frame: warp.frame, a, b, accumulate: scale != 0, group };
        let id = self.new_async();
        self.tell_wgmma_issue(site, id, op, &work);
        self.counters.tensor(site.pc, (ROWS * op.n * op.k) as u64);
        if self.launch.options.asynchrony == AsyncPolicy::Early {
            self.land_product(warp, site, id, &work)?;
            self.pending.push(Pending { id, site, landed: true, work: Work::Wgmma(work) });
        } else {
            self.pending.push(Pending { id, site, landed: false, work: Work::Wgmma(work) });
        }
        Ok(())
    }

    fn tell_wgmma_issue(&mut self, site: Site, id: AsyncId, op: &Wgmma, work: &Product16) {
        if self.watch.wants(Interest::ASYNC) {
            let base = u64::from(site.cta) * SHARED_STRIDE;
            let mut addresses: Vec<u64> =
                self.operand_pieces(site, op, work).iter().map(|piece| base + u64::from(piece.address)).collect();
            addresses.sort_unstable();
            addresses.dedup();
            let reads: Vec<AsyncRange> =
                join(addresses.into_iter().map(|address| (Space::Shared, address, CHUNK_BYTES)));
            self.watch.emit(&Event::AsyncIssue { site, id, kind: AsyncKind::Wgmma, reads: &reads, writes: &[] });
        }
        if self.watch.wants(Interest::REGISTERS) {
            let (reads, writes) = &self.launch.program.touched[site.pc as usize];
            let (wgmma, shape) = (Some(id), op.n as u32);
            self.watch.emit(&Event::Registers { site, reads, writes, wgmma, shape });
        }
    }

    /// Tells which registers an instruction touches; a product tells it itself, with its number.
    pub(super) fn tell_registers(&mut self, site: Site, instr: &Instr) {
        let (reads, writes) = &self.launch.program.touched[site.pc as usize];
        let touches = !reads.is_empty() || !writes.is_empty();
        if touches && !matches!(instr.op, Op::Wgmma(_)) {
            self.watch.emit(&Event::Registers { site, reads, writes, wgmma: None, shape: 0 });
        }
    }

    /// All pieces that a warp's part of the product reads from shared memory: of A, then of B.
    fn operand_pieces(&self, site: Site, op: &Wgmma, work: &Product16) -> Vec<Piece> {
        let mut all = match (&work.a, &op.a) {
            (Some(a), WgmmaA::Descriptor(_, major)) => pieces(a, *major, ROWS * (site.warp as usize % 4), ROWS, op),
            _ => Vec::new(),
        };
        all.extend(pieces(&work.b, op.b.1, 0, op.n, op));
        all
    }

    /// `wgmma.fence`.
    pub(super) fn wgmma_fence(&mut self, site: Site) {
        if self.watch.wants(Interest::REGISTERS) {
            self.watch.emit(&Event::WgmmaFence(site));
        }
    }

    /// `wgmma.commit_group`.
    pub(super) fn wgmma_commit(&mut self, warp: &mut Warp, site: Site) {
        warp.wgmma_committed += 1;
        if self.watch.wants(Interest::ASYNC) {
            self.watch.emit(&Event::AsyncCommit { site, kind: AsyncKind::Wgmma });
        }
    }

    /// `wgmma.wait_group`: all but the newest groups of this warp.
    pub(super) fn wgmma_wait(&mut self, warp: &mut Warp, site: Site, newest: u32) -> Result<()> {
        let mut index = 0;
        while index < self.pending.len() {
            let pending = &self.pending[index];
            let own = pending.site.cta == warp.cta && pending.site.warp == warp.index;
            let due = match &pending.work {
                Work::Wgmma(work) if own => u64::from(work.group) + u64::from(newest) < u64::from(warp.wgmma_committed),
                _ => false,
            };
            if !due {
                index += 1;
                continue;
            }
            let Pending { id, site: issued, landed, work } = self.pending.remove(index);
            if let (Work::Wgmma(work), false) = (work, landed) {
                self.land_product(warp, issued, id, &work)?;
            }
            self.tell_step(site, id, AsyncKind::Wgmma, AsyncWait::Waited);
        }
        Ok(())
    }

    /// Lets a warp's operations up to this one land; the warp does not run.
    pub(super) fn land_wgmma(&mut self, index: usize) -> Result<()> {
        let Site { cta, warp: number, .. } = self.pending[index].site;
        let Some(mut warp) = self.ctas[cta as usize].warps[number as usize].take() else { return Ok(()) };
        let mut result = Ok(());
        for earlier in 0..=index {
            let Pending { id, site, landed, ref work } = self.pending[earlier];
            let Work::Wgmma(work) = work else { continue };
            if !landed && site.cta == cta && site.warp == number && result.is_ok() {
                let work = work.clone();
                result = self.land_product(&mut warp, site, id, &work);
                self.pending[earlier].landed = true;
            }
        }
        self.ctas[cta as usize].warps[number as usize] = Some(warp);
        result
    }

    fn land_product(&mut self, warp: &mut Warp, site: Site, id: AsyncId, work: &Product16) -> Result<()> {
        let Op::Wgmma(op) = &self.launch.program.code[site.pc as usize].op else { return Ok(()) };
        self.tell_step(site, id, AsyncKind::Wgmma, AsyncWait::Landed);
        self.test_operands(site, id, op, work)?;
        let mut a_tile = vec![0u32; ROWS * op.k];
        let mut b_tile = vec![0u32; op.k * op.n];
        let mut d_tile = vec![0u32; ROWS * op.n];
        self.read_operand(site, op, &work.b, op.b.1, (0, op.n), |mn, k, value| b_tile[k * op.n + mn] = value);
        match (&op.a, &work.a) {
            (WgmmaA::Descriptor(_, major), Some(a)) => {
                let first = ROWS * (site.warp as usize % 4);
                self.read_operand(site, op, a, *major, (first, ROWS), |mn, k, value| a_tile[mn * op.k + k] = value);
            }
            (WgmmaA::Registers(list), _) => {
                let regs = registers(warp, work.frame);
                let list: Vec<&Register> =
                    list.iter().map(|source| &self.launch.program.source32(regs, *source).0).collect();
                match op.operand.element_bytes() {
                    4 => fragment::a_32bit(&list, op.k, &mut a_tile),
                    2 => fragment::a_16bit(&list, op.k, &mut a_tile),
                    _ => tile::a_8bit(&list, op.k, &mut a_tile),
                }
            }
            _ => {}
        }
        let sign = 1 << (8 * op.operand.element_bytes() - 1);
        for (tile, negate) in [&mut a_tile, &mut b_tile].into_iter().zip(op.negate) {
            if negate {
                tile.iter_mut().for_each(|value| *value ^= sign);
            }
        }
        let regs = registers(warp, work.frame);
        let mut d: Vec<Register> = op.d.iter().map(|slot| regs.narrow[*slot as usize].0).collect();
        if work.accumulate {
            match op.accumulator {
                Accumulator::F32 => fragment::accumulators_32bit(&d, &mut d_tile, op.n),
                Accumulator::F16 => fragment::accumulators_16bit(&d, &mut d_tile, op.n),
            }
        }
        let (accumulator, k) = (op.accumulator, op.k);
        match op.operand {
            WgmmaOperand::Float(operand) => {
                let product = Product { operand, accumulator, arithmetic: self.tensor_arithmetic(), k };
                multiply_add(self.arch, product, &a_tile, &b_tile, &mut d_tile, op.n);
            }
            WgmmaOperand::Bytes(product) => product.wgmma(k, (&a_tile, &b_tile), &mut d_tile, op.n),
        }
        match op.accumulator {
            Accumulator::F32 => fragment::to_accumulators_32bit(&d_tile, op.n, &mut d),
            Accumulator::F16 => fragment::to_accumulators_16bit(&d_tile, op.n, &mut d),
        }
        let regs = if warp.frame == work.frame { &mut warp.regs } else { &mut warp.frames[work.frame as usize].regs };
        for (slot, value) in op.d.iter().zip(d) {
            regs.narrow[*slot as usize].0 = value;
        }
        Ok(())
    }

    /// Tests the places of both operands and tells the checkers.
    fn test_operands(&mut self, site: Site, id: AsyncId, op: &Wgmma, work: &Product16) -> Result<()> {
        let base = u64::from(site.cta) * SHARED_STRIDE;
        let plain = Kind::plain(AccessKind::Read, CHUNK_BYTES);
        let kind = Kind { agent: Agent::Async(id), proxy: Proxy::Async, ..plain };
        for chunk in self.operand_pieces(site, op, work).chunks(32) {
            let addresses = L64(std::array::from_fn(|lane| base + u64::from(chunk[lane.min(chunk.len() - 1)].address)));
            let mask = if chunk.len() == 32 { u32::MAX } else { (1 << chunk.len()) - 1 };
            self.test(0, Site { mask, ..site }, Space::Shared, &addresses, kind)?;
        }
        Ok(())
    }

    /// Calls `put` with every element of an operand; what lies outside shared memory reads as zero.
    fn read_operand(
        &self,
        site: Site,
        op: &Wgmma,
        descriptor: &Descriptor,
        major: Major,
        (first, count): (usize, usize),
        mut put: impl FnMut(usize, usize, u32),
    ) {
        let shared = &self.ctas[site.cta as usize].shared;
        for Piece { address, mn, k } in pieces(descriptor, major, first, count, op) {
            let Some(bytes) = shared.get(address as usize..address as usize + CHUNK_BYTES as usize) else { continue };
            let size = op.operand.element_bytes();
            if size == 1 {
                bytes.iter().enumerate().for_each(|(i, byte)| put(mn, k + i, u32::from(*byte)));
                continue;
            }
            if size == 4 {
                for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
                    put(mn, k + i, u32::from_le_bytes(*word));
                }
                continue;
            }
            for (i, half) in bytes.as_chunks::<2>().0.iter().enumerate() {
                let value = u32::from(u16::from_le_bytes(*half));
                match major {
                    Major::K => put(mn, k + i, value),
                    Major::Mn => put(mn + i, k, value),
                }
            }
        }
    }
}

/// The registers of a frame, running or not.
fn registers(warp: &Warp, frame: u32) -> &RegFile {
    if warp.frame == frame { &warp.regs } else { &warp.frames[frame as usize].regs }
}
