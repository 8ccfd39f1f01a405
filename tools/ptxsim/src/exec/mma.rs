//! `mma.sync`, `wmma.mma`, and the loads and stores of `wmma` fragments.

use pulp::Arch;

use super::Cluster;
use super::access::Kind;
use super::warp::Warp;
use crate::error::Result;
use crate::event::{AccessKind, Site, WarpSync};
use crate::options::TensorMode;
use crate::program::matrix_op::{Mma, MmaRegisters, SparseMma, WmmaMove};
use crate::program::op::CONSTANT;
use crate::scalar::lanes::{L32, L64, blend32, each};
use crate::units::fragment::{self, Register, WmmaMatrix};
use crate::units::mma::{self, Sums};
use crate::units::sparse;
use crate::units::tensor_core::{Arithmetic, Generation, Product};

impl<'a> Cluster<'a> {
    /// How this launch's tensor cores add.
    pub(super) fn tensor_arithmetic(&self) -> Arithmetic {
        match self.launch.options.tensor {
            TensorMode::Fast => Arithmetic::Fast,
            TensorMode::Exact if self.launch.program.target < 90 => Arithmetic::Exact(Generation::Ampere),
            TensorMode::Exact => Arithmetic::Exact(Generation::Hopper),
        }
    }

    pub(super) fn mma(&mut self, warp: &mut Warp, site: Site, op: &Mma) {
        let program = self.launch.program;
        let product =
            Product { operand: op.operand, accumulator: op.accumulator, arithmetic: self.tensor_arithmetic(), k: op.k };
        if let Some(registers) = &op.registers
            && site.mask == u32::MAX
            && in_registers(self.arch, product, &mut warp.regs.narrow, &program.constants.narrow, registers)
        {
            return self.mma_done(site, 16 * 8 * op.k);
        }
        let register = |source: &u16| &program.source32(&warp.regs, *source).0;
        // At most eight registers, as `wmma` has; four of an `mma` of f32.
        let (mut four, mut eight);
        let d: &mut [[u32; 32]] = match op.d.len() {
            ..=4 => {
                four = [[0; 32]; 4];
                &mut four[..op.d.len()]
            }
            count => {
                eight = [[0; 32]; 8];
                &mut eight[..count]
            }
        };
        op.sources[2].iter().zip(&mut *d).for_each(|(source, value)| *value = *register(source));
        let list = |sources: &[u16]| {
            let mut list = [register(&sources[0]); 8];
            sources.iter().zip(&mut list).for_each(|(source, place)| *place = register(source));
            list
        };
        let (a, b) = (list(&op.sources[0]), list(&op.sources[1]));
        let (a, b) = (&a[..op.sources[0].len()], &b[..op.sources[1].len()]);
        let (m, n) = op.wmma.map_or((16, 8), |shape| (shape.m, shape.n));
        match op.wmma {
            None => mma::mma_m16n8(self.arch, product, a, b, d),
            Some(shape) => mma::wmma(self.arch, product, shape, a, b, d),
        }
        for (slot, value) in op.d.iter().zip(d) {
            blend32(self.arch, &mut warp.regs.narrow[*slot as usize], &L32(*value), site.mask);
        }
        self.mma_done(site, m * n * op.k);
    }

    fn mma_done(&mut self, site: Site, macs: usize) {
        self.counters.tensor(site.pc, macs as u64);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
    }

    pub(super) fn sparse_mma(&mut self, warp: &mut Warp, site: Site, op: &SparseMma) -> Result<()> {
        let program = self.launch.program;
        let (operand, accumulator, arithmetic) = (op.operand, op.accumulator, self.tensor_arithmetic());
        let product = Product { operand, accumulator, arithmetic, k: op.k / 2 };
        let list = |sources: &[u16]| -> Vec<&Register> {
            sources.iter().map(|source| &program.source32(&warp.regs, *source).0).collect()
        };
        let [a, b, c] = [0, 1, 2].map(|matrix| list(&op.sources[matrix]));
        let metadata = &program.source32(&warp.regs, op.metadata).0;
        let mut d: Vec<Register> = c.into_iter().copied().collect();
        sparse::mma_sparse(self.arch, product, (&a, &b), (metadata, op.selector), &mut d)
            .map_err(|why| self.error(site, &why))?;
        for (slot, value) in op.d.iter().zip(d) {
            blend32(self.arch, &mut warp.regs.narrow[*slot as usize], &L32(value), site.mask);
        }
        self.counters.tensor(site.pc, (16 * 8 * op.k / 2) as u64);
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }

    /// Every lane reads or writes the elements of its fragment, one after the other.
    pub(super) fn wmma_move(&mut self, warp: &mut Warp, site: Site, op: &WmmaMove) -> Result<()> {
        let program = &self.launch.program;
        let start = self.addresses(warp, op.address);
        let tile = op.shape;
        let (height, width) = match op.matrix {
            WmmaMatrix::A => (tile.m, tile.k),
            WmmaMatrix::B => (tile.k, tile.n),
            WmmaMatrix::Accumulator => (tile.m, tile.n),
        };
        let dense = if op.row_major { width } else { height } as u32;
        let strides = op.stride.map_or(L32([dense; 32]), |stride| *program.source32(&warp.regs, stride));
        let bytes = op.bits / 8;
        let per_register = if op.bits == 16 { 2 } else { 1 };
        for index in 0..op.registers.len() * per_register {
            let slot = op.registers[index / per_register];
            let shift = 16 * (index % per_register);
            let mut addresses = L64(std::array::from_fn(|lane| {
                let (row, column) = fragment::wmma_element(op.matrix, tile, op.bits, lane, index);
                let (slow, fast) = if op.row_major { (row, column) } else { (column, row) };
                start.0[lane].wrapping_add((slow as u64 * u64::from(strides.0[lane]) + fast as u64) * u64::from(bytes))
            }));
            let mut values = [0u64; 32];
            if op.store {
                let source = program.source32(&warp.regs, slot);
                (0..32).for_each(|lane| values[lane] = u64::from(source.0[lane] >> shift));
            }
            let kind = Kind::plain(if op.store { AccessKind::Write } else { AccessKind::Read }, bytes);
            self.by_space(op.space, &mut addresses, site.mask, |cluster, space, lanes, addresses| {
                let tested = cluster.test(warp.local_bytes, Site { mask: lanes, ..site }, space, addresses, kind)?;
                for lane in each(tested.lanes) {
                    match op.store {
                        true => cluster.poke(warp, &tested, lane, addresses.0[lane], bytes, values[lane]),
                        false => values[lane] = cluster.peek(warp, &tested, lane, addresses.0[lane], bytes),
                    }
                }
                Ok(())
            })?;
            if !op.store {
                let register = &mut warp.regs.narrow[slot as usize];
                for lane in each(site.mask) {
                    let kept = if shift == 0 { 0 } else { register.0[lane] & 0xffff };
                    register.0[lane] = kept | (values[lane] as u32) << shift;
                }
            }
        }
        self.warp_sync(site, WarpSync::Matrix, u32::MAX, 0);
        Ok(())
    }
}

/// A product from registers to registers; false if it was not done.
fn in_registers(
    arch: Arch,
    product: Product,
    rows: &mut [L32],
    constants: &[L32],
    MmaRegisters { a, b, c, d }: &MmaRegisters,
) -> bool {
    let (first, count) = (rows.as_mut_ptr(), rows.len());
    let row = |slot: u16| -> *mut Register {
        assert!((slot as usize) < count);
        // SAFETY: a place inside `rows`.
        unsafe { &raw mut (*first.add(slot as usize)).0 }
    };
    let source = |source: u16| match source & CONSTANT {
        0 => row(source).cast_const(),
        _ => &raw const constants[(source & !CONSTANT) as usize].0,
    };
    // Written out: a call per register is a tenth of the fast product's time.
    let c = [source(c[0]), source(c[1]), source(c[2]), source(c[3])];
    let sums = Sums { c, d: [row(d[0]), row(d[1]), row(d[2]), row(d[3])] };
    // SAFETY: `rows` is borrowed exclusively; registers of D are none of A and B, and of C only those at their places.
    unsafe {
        let a = [&*source(a[0]), &*source(a[1]), &*source(a[2]), &*source(a[3])];
        let b = [&*source(b[0]), &*source(b[1])];
        mma::in_registers(arch, product, a, b, sums)
    }
}
