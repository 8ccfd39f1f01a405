//! Dispatch of an operation: arithmetic here, every other family in its own file.

use super::Cluster;
use super::step::After;
use super::straight::{self, write_predicate};
use super::warp::Warp;
use crate::address::{self, Space};
use crate::error::Result;
use crate::event::{Event, FenceKind, Interest, MbarrierState, Scope, Semantics, Site};
use crate::options::Approximation;
use crate::program::op::{Address, AddressBase, AnyDst, AnySrc, Carry, CarryOp, Comparison, Instr, Op, Set, Special};
use crate::scalar::lanes::{L32, L64, blend32, blend64, each};
use crate::units::approx;

impl<'a> Cluster<'a> {
    /// Executes one operation for the lanes of `site.mask`; `mask` is the whole group, `index` its place in the warp.
    pub(super) fn execute(
        &mut self,
        warp: &mut Warp,
        site: Site,
        mask: u32,
        index: usize,
        instr: &'a Instr,
    ) -> Result<After> {
        let program = &self.launch.program;
        let (arch, active) = (self.arch, site.mask);
        if instr.op.is_straight() {
            straight::one(arch, program, &mut warp.regs, &instr.op, active);
            return Ok(After::Next);
        }
        match &instr.op {
            Op::Nop => {}
            Op::Set(set) => self.set_value(warp, active, set),
            Op::Load(memory) => self.load(warp, site, memory)?,
            Op::Store(memory) => self.store(warp, site, memory)?,
            Op::Branch(target) => return Ok(self.branch(warp, site, mask, index, *target)),
            Op::Mma(mma) => self.mma(warp, site, mma),
            _ => return self.execute_more(warp, site, mask, index, instr),
        }
        Ok(After::Next)
    }

    fn execute_more(
        &mut self,
        warp: &mut Warp,
        site: Site,
        mask: u32,
        index: usize,
        instr: &'a Instr,
    ) -> Result<After> {
        match &instr.op {
            Op::Rare(_) | Op::Carry(_) | Op::Approximate(..) | Op::Convert(..) | Op::Video(..) => {
                self.slow(warp, site.mask, &instr.op)
            }
            Op::Pack(..) | Op::Unpack(..) | Op::MovePair(..) => self.moves(warp, site.mask, &instr.op),
            Op::SpecialPredicate(special, p) => {
                let value = if self.special(warp, *special).0[0] != 0 { u32::MAX } else { 0 };
                write_predicate(&mut warp.regs, *p, value, site.mask);
            }
            Op::Special(special, d) => {
                let value = self.special(warp, *special);
                blend32(self.arch, &mut warp.regs.narrow[*d as usize], &value, site.mask);
            }
            Op::Special64(special, d) => self.special64(warp, site.mask, *special, *d),
            Op::AddressOf(d, address) => {
                let value = self.variable_address(warp, *address);
                self.write_all(warp, site.mask, *d, |_| value);
            }
            Op::ToGeneric(space, d, a) => self.map(warp, site.mask, *d, *a, |value| address::to_generic(*space, value)),
            Op::FromGeneric(space, d, a) => {
                let base = address::to_generic(*space, 0);
                self.map(warp, site.mask, *d, *a, |value| value.wrapping_sub(base));
            }
            Op::IsSpace(space, p, a) => {
                let program = &self.launch.program;
                let is = |lane: &usize| is_space(*space, program.lane(&warp.regs, *a, *lane));
                let result = each(site.mask).filter(is).fold(0u32, |all, lane| all | 1 << lane);
                write_predicate(&mut warp.regs, *p, result, site.mask);
            }
            Op::Mapa(d, a, rank, generic) => self.mapa(warp, site.mask, (*d, *a, *rank), *generic),
            Op::GetCtaRank(d, a, generic) => {
                let base = if *generic { address::SHARED_WINDOW } else { 0 };
                let rank = |value: u64| address::shared_rank(value.wrapping_sub(base)) as u64;
                self.map(warp, site.mask, AnyDst::Narrow(*d), *a, rank);
            }
            Op::Atomic(atomic) => self.atomic(warp, site, atomic)?,
            Op::Atomic128(atomic) => self.atomic128(warp, site, atomic)?,
            Op::Matrix(matrix) => self.matrix(warp, site, matrix)?,
            Op::MoveMatrix(d, a) => self.move_matrix(warp, site, *d, *a),
            Op::Collective(collective, members) => self.collective(warp, site, collective, *members),
            Op::ActiveMask(d) => {
                blend32(self.arch, &mut warp.regs.narrow[*d as usize], &L32([site.mask; 32]), site.mask)
            }
            Op::WarpBarrier(members) => return Ok(self.warp_barrier(warp, site, *members)),
            Op::Barrier(barrier) => return self.barrier(warp, site, barrier),
            Op::ClusterArrive(semantics, aligned) => self.cluster_arrive(warp, site, *semantics, *aligned),
            Op::ClusterWait(_) => return Ok(self.cluster_wait(warp, site)),
            Op::Fence(kind, semantics, scope) => self.fence(site, *kind, *semantics, *scope),
            Op::CopyAsync(copy) => self.copy_async(warp, site, copy)?,
            Op::CopyCommit => self.copy_commit(warp, site),
            Op::CopyWait(newest) => self.copy_wait(warp, site, *newest)?,
            Op::BranchIndexed(..) => return self.branch_indexed(warp, site, mask, index, instr),
            Op::Call(call) => return self.call(warp, site, mask, index, call),
            Op::Alloca(d, size, align) => self.alloca(warp, site, *d, *size, *align)?,
            Op::StackSave(d) => {
                let value = u64::from(warp.frames[warp.frame as usize].stack_bytes);
                self.write_all(warp, site.mask, *d, |_| value);
            }
            Op::StackRestore(saved) => self.stack_restore(warp, site, *saved),
            Op::Return => return Ok(self.ret(warp, site, mask, index)),
            Op::Exit => return Ok(self.exit(warp, site, mask, index)),
            Op::Trap => return Err(self.error(site, "trap")),
            Op::Breakpoint => return Err(self.error(site, "breakpoint")),
            Op::Nanosleep => return Ok(After::Yield),
            _ => return self.execute_tensor(warp, site, instr),
        }
        Ok(After::Next)
    }

    /// Tensor cores, and what came with sm_90.
    fn execute_tensor(&mut self, warp: &mut Warp, site: Site, instr: &'a Instr) -> Result<After> {
        match &instr.op {
            Op::WmmaMove(tile) => self.wmma_move(warp, site, tile)?,
            Op::SparseMma(mma) => self.sparse_mma(warp, site, mma)?,
            Op::TileMma(mma) => self.tile_mma(warp, site, mma),
            Op::TileMove(tile) => self.tile_move(warp, site, tile)?,
            Op::Wgmma(wgmma) => self.wgmma(warp, site, wgmma)?,
            Op::WgmmaFence => self.wgmma_fence(site),
            Op::WgmmaCommit => self.wgmma_commit(warp, site),
            Op::WgmmaWait(newest) => self.wgmma_wait(warp, site, *newest)?,
            Op::Mbarrier(mbarrier) => return self.mbarrier(warp, site, mbarrier),
            Op::MbarrierPending(d, token) => {
                let pending = |token: u64| MbarrierState::token_pending(token) as u64;
                self.map(warp, site.mask, AnyDst::Narrow(*d), AnySrc::Wide(*token), pending);
            }
            Op::CopyArrive { space, address, counted } => self.copy_arrive(warp, site, (*space, *address), *counted)?,
            Op::StoreAsync(store) => self.store_async(warp, site, store)?,
            Op::MapReplace(replace) => self.map_replace(warp, site, replace)?,
            Op::MapCopy(copy) => self.map_copy(warp, site, copy)?,
            Op::Bulk(bulk) => self.bulk(warp, site, bulk)?,
            Op::BulkCommit => self.bulk_commit(warp, site),
            Op::BulkWait { newest, read } => self.bulk_wait(warp, site, *newest, *read)?,
            Op::SetMaxRegisters { count, more } => return self.set_max_registers(warp, site, *count, *more),
            // Grids run one after the other: the one before this has ended.
            Op::GridDependency { waits } => return Ok(self.grid_dependency(warp, *waits)),
            _ => return Err(self.error(site, "operation without an executor")),
        }
        Ok(After::Next)
    }

    pub(super) fn fence(&mut self, site: Site, kind: FenceKind, semantics: Semantics, scope: Scope) {
        if self.watch.wants(Interest::FENCE) {
            self.watch.emit(&Event::Fence { site, kind, semantics, scope });
        }
    }

    fn set_value(&mut self, warp: &mut Warp, active: u32, set: &Set) {
        let (first, second) =
            straight::compare(self.arch, self.launch.program, &warp.regs, &set.comparison, set.combine);
        let pair = matches!(set.comparison, Comparison::Pair(..));
        for lane in each(active) {
            let half = |mask: u32, field: u32| if mask >> lane & 1 == 1 { set.yes & field } else { 0 };
            let value = if pair { half(first, 0xffff) | half(second, 0xffff_0000) } else { half(first, u32::MAX) };
            warp.regs.narrow[set.d as usize].0[lane] = value;
        }
    }

    /// Writes one lane of a destination; a narrow one takes the low half.
    pub(super) fn write(&self, warp: &mut Warp, d: AnyDst, lane: usize, value: u64) {
        match d {
            AnyDst::Narrow(slot) => warp.regs.narrow[slot as usize].0[lane] = value as u32,
            AnyDst::Wide(slot) => warp.regs.wide[slot as usize].0[lane] = value,
            AnyDst::Sink => {}
        }
    }

    fn write_all(&self, warp: &mut Warp, active: u32, d: AnyDst, value: impl Fn(usize) -> u64) {
        each(active).for_each(|lane| self.write(warp, d, lane, value(lane)));
    }

    fn map(&self, warp: &mut Warp, active: u32, d: AnyDst, a: AnySrc, f: impl Fn(u64) -> u64) {
        for lane in each(active) {
            let value = f(self.launch.program.lane(&warp.regs, a, lane));
            self.write(warp, d, lane, value);
        }
    }

    fn mapa(&self, warp: &mut Warp, active: u32, (d, a, rank): (AnyDst, AnySrc, u16), generic: bool) {
        let base = if generic { address::SHARED_WINDOW } else { 0 };
        for lane in each(active) {
            let value = self.launch.program.lane(&warp.regs, a, lane).wrapping_sub(base);
            let rank = self.launch.program.source32(&warp.regs, rank).0[lane] as u64;
            let offset = address::shared_offset(value) as u64;
            self.write(warp, d, lane, base + rank * address::SHARED_STRIDE + offset);
        }
    }

    /// Forms that are computed lane by lane.
    fn slow(&mut self, warp: &mut Warp, active: u32, op: &Op) {
        let program = &self.launch.program;
        match op {
            Op::Rare(rare) => {
                for lane in each(active) {
                    let mut sources = [0; 4];
                    rare.sources.iter().zip(&mut sources).for_each(|(s, v)| *v = program.lane(&warp.regs, *s, lane));
                    self.write(warp, rare.d, lane, (rare.f)(sources));
                }
            }
            Op::Carry(carry) => self.carry(warp, active, carry),
            Op::Approximate(function, d, a, b, ftz) => {
                let approximation = match self.launch.options.approximation {
                    Approximation::Ideal => approx::Approximation::Ideal,
                    Approximation::Perturbed => approx::Approximation::Perturbed(self.launch.options.seed),
                };
                for lane in each(active) {
                    let a = program.source32(&warp.regs, *a).0[lane];
                    let b = program.source32(&warp.regs, *b).0[lane];
                    warp.regs.narrow[*d as usize].0[lane] = function.apply(a, b, *ftz, approximation);
                }
            }
            Op::Convert(convert, d, a, half) => {
                // A 16-bit register has zeros above it; signed results are extended in wider ones only.
                for lane in each(active) {
                    let value = convert.apply(program.lane(&warp.regs, *a, lane));
                    self.write(warp, *d, lane, if *half { value & 0xffff } else { value });
                }
            }
            Op::Video(video, d, sources) => {
                for lane in each(active) {
                    let [a, b, c] = sources.map(|source| program.source32(&warp.regs, source).0[lane]);
                    warp.regs.narrow[*d as usize].0[lane] = video.apply(a, b, c);
                }
            }
            _ => {}
        }
    }

    /// `mov` between registers of different widths.
    fn moves(&mut self, warp: &mut Warp, active: u32, op: &Op) {
        let program = &self.launch.program;
        match op {
            Op::Pack(d, parts, bits) => {
                for lane in each(active) {
                    let field = |part: &AnySrc| program.lane(&warp.regs, *part, lane) & ((1 << bits) - 1);
                    let value = parts.iter().rev().fold(0, |all, part| all << bits | field(part));
                    self.write(warp, *d, lane, value);
                }
            }
            Op::MovePair(to, from) => {
                for lane in each(active) {
                    let values = from.map(|source| program.lane(&warp.regs, source, lane));
                    to.iter().zip(values).for_each(|(d, value)| self.write(warp, *d, lane, value));
                }
            }
            Op::Unpack(parts, a, bits) => {
                for lane in each(active) {
                    let value = program.lane(&warp.regs, *a, lane);
                    for (place, part) in parts.iter().enumerate() {
                        self.write(warp, *part, lane, value >> (bits * place as u32) & ((1 << bits) - 1));
                    }
                }
            }
            _ => {}
        }
    }

    fn carry(&mut self, warp: &mut Warp, active: u32, carry: &Carry) {
        let bits = if carry.wide { 64 } else { 32 };
        let limit = 1u128 << bits;
        for lane in each(active) {
            let source = |index: usize| self.launch.program.lane(&warp.regs, carry.sources[index], lane) as u128;
            let carry_in = (carry.carry_in && warp.regs.carry >> lane & 1 == 1) as u128;
            let extend = |x: u128| ((x << (128 - bits)) as i128) >> (128 - bits);
            let product = |high: bool, signed: bool| {
                let (a, b) = (source(0), source(1));
                let full = if signed { extend(a).wrapping_mul(extend(b)) as u128 } else { a.wrapping_mul(b) };
                if high { full >> bits & (limit - 1) } else { full & (limit - 1) }
            };
            let (result, overflow) = match carry.op {
                CarryOp::Add => sum(source(0), source(1), carry_in, limit),
                // A borrow is kept as the carry flag of the subtraction.
                CarryOp::Sub => sum(source(0) + limit, 2 * limit - source(1), 2 * limit - carry_in, limit),
                CarryOp::MadLow { signed } => sum(product(false, signed), source(2), carry_in, limit),
                CarryOp::MadHigh { signed } => sum(product(true, signed), source(2), carry_in, limit),
            };
            let borrow = source(0) < source(1) + carry_in;
            let flag = if carry.op == CarryOp::Sub { borrow } else { overflow };
            if carry.carry_out {
                warp.regs.carry = warp.regs.carry & !(1 << lane) | (flag as u32) << lane;
            }
            self.write(warp, carry.d, lane, result as u64);
        }
    }

    fn special(&self, warp: &Warp, special: Special) -> L32 {
        let info = &self.launch.info;
        let cta = &self.ctas[warp.cta as usize];
        let rank = warp.cta;
        let [cx, cy, cz] = info.cluster;
        let per_lane = |f: fn(u32) -> u32| L32(std::array::from_fn(|lane| f(lane as u32)));
        let clusters = [info.grid[0] / cx, info.grid[1] / cy, info.grid[2] / cz];
        let value = match special {
            Special::Tid(axis) => return warp.tid[axis as usize],
            Special::Laneid => return per_lane(|lane| lane),
            Special::LanemaskEq => return per_lane(|lane| 1 << lane),
            Special::LanemaskLt => return per_lane(|lane| (1 << lane) - 1),
            Special::LanemaskLe => return per_lane(|lane| ((1u64 << (lane + 1)) - 1) as u32),
            Special::LanemaskGt => return per_lane(|lane| !((1u64 << (lane + 1)) - 1) as u32),
            Special::LanemaskGe => return per_lane(|lane| !((1 << lane) - 1)),
            Special::Ntid(axis) => info.block[axis as usize],
            Special::Ctaid(axis) => cta.index[axis as usize],
            Special::Nctaid(axis) => info.grid[axis as usize],
            Special::Warpid => warp.index,
            Special::Nwarpid => 64,
            Special::Smid => self.number % 132,
            Special::Nsmid => 132,
            Special::Gridid | Special::Zero => 0,
            Special::WorkspaceLow => self.launch.workspace as u32,
            Special::WorkspaceHigh => (self.launch.workspace >> 32) as u32,
            Special::Clock | Special::GlobaltimerLow => warp.executed as u32,
            Special::ClockHigh | Special::GlobaltimerHigh => (warp.executed >> 32) as u32,
            Special::DynamicSharedBytes => self.launch.dynamic_bytes,
            Special::TotalSharedBytes | Special::AggregateSharedBytes => info.shared_bytes,
            Special::Clusterid(axis) => cta.index[axis as usize] / info.cluster[axis as usize],
            Special::Nclusterid(axis) => clusters[axis as usize],
            Special::ClusterCtaid(axis) => [rank % cx, rank / cx % cy, rank / cx / cy][axis as usize],
            Special::ClusterNctaid(axis) => info.cluster[axis as usize],
            Special::ClusterCtarank => rank,
            Special::ClusterNctarank => info.cluster_ctas(),
            Special::IsExplicitCluster => self.launch.explicit_cluster as u32,
        };
        L32([value; 32])
    }

    fn special64(&self, warp: &mut Warp, active: u32, special: Special, d: u16) {
        let narrow = self.special(warp, special);
        let time = matches!(special, Special::Clock | Special::GlobaltimerLow);
        let value = |lane: usize| if time { warp.executed } else { narrow.0[lane] as u64 };
        let values = L64(std::array::from_fn(value));
        blend64(self.arch, &mut warp.regs.wide[d as usize], &values, active);
    }

    /// Address of a variable in its space.
    pub(super) fn variable_address(&self, warp: &Warp, address: Address) -> u64 {
        let base = match address.base {
            AddressBase::SharedStatic => warp.cta as u64 * address::SHARED_STRIDE,
            AddressBase::SharedDynamic => {
                warp.cta as u64 * address::SHARED_STRIDE + self.launch.program.shared_bytes as u64
            }
            AddressBase::LocalFrame => warp.frames[warp.frame as usize].local_base as u64,
            _ => 0,
        };
        base.wrapping_add_signed(address.offset)
    }
}

/// `a + b + c` reduced by `limit`, and whether a carry left the top.
fn sum(a: u128, b: u128, c: u128, limit: u128) -> (u128, bool) {
    let total = a + b + c;
    (total % limit, total >= limit)
}

fn is_space(space: Space, address: u64) -> bool {
    let (found, _) = address::resolve_generic(address);
    // Constant memory has no window of its own here: it is told apart by its allocation, which a kernel cannot ask.
    found == space
}
