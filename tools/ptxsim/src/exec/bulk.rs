//! Bulk and tensor copies between global and shared memory, their groups, multicast, reductions, and the mbarriers that they tell.
//!
//! A copy is described in full when it is issued. It takes effect in two steps: its source is read, then its destination is written and
//! its mbarriers are told; between the two it holds its bytes. `cp.async.bulk.wait_group.read` forces only the first.

use super::Cluster;
use super::access::{Kind, little};
use super::copy::{Pending, Work};
use super::mbarrier::Told;
use super::warp::Warp;
use crate::address::{SHARED_STRIDE, SHARED_WINDOW, Space, resolve_generic, shared_offset, shared_rank};
use crate::error::Result;
use crate::event::{
    AccessKind, Agent, AsyncId, AsyncKind, AsyncRange, AsyncWait, Event, Interest, MbarrierStep, Proxy, Scope,
    Semantics, Site,
};
use crate::front::ast::Type;
use crate::options::AsyncPolicy;
use crate::program::hopper_op::{BulkCopy, BulkPlace, StoreAsync};
use crate::program::op::{Address, AtomicOp, MemorySpace};
use crate::scalar::lanes::{L64, each};
use crate::units::swizzle::Swizzle;
use crate::units::tensor_map::{DataType, MAP_BYTES, Row, TensorMap};

/// A copy of one thread.
#[derive(Clone, Debug)]
pub struct Bulk {
    /// Issuing lane.
    pub lane: usize,
    /// Groups that it had committed before; `None` for a copy that tells an mbarrier.
    pub group: Option<u32>,
    /// Somebody has waited for its source to be read.
    pub source_waited: bool,
    from: End,
    to: Vec<End>,
    /// mbarriers to tell.
    barriers: Vec<u64>,
    rows: Vec<Row>,
    bytes: u32,
    map: Option<Box<TensorMap>>,
    reduce: Option<(AtomicOp, Type)>,
    proxy: Proxy,
    /// What was read, once it was.
    data: Option<Vec<u8>>,
}

/// One end of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The rows' global addresses.
    Global,
    /// A box in shared memory from this address on.
    Shared(u64),
}

impl Bulk {
    fn kind(&self) -> AsyncKind {
        match (self.to == [End::Global], self.reduce) {
            (false, _) => AsyncKind::BulkLoad,
            (true, None) => AsyncKind::BulkStore,
            (true, Some(_)) => AsyncKind::BulkReduce,
        }
    }

    fn swizzle(&self) -> Swizzle {
        self.map.as_ref().map_or(Swizzle::None, |map| map.swizzle)
    }

    /// Whether the bytes of the box in shared memory are those from its start on, in whatever order.
    fn is_dense(&self, start: u64) -> bool {
        let row = self.swizzle().row_bytes().unwrap_or(1);
        shared_offset(start).is_multiple_of(row) && self.bytes.is_multiple_of(row)
    }
}

/// How many of a kind lie at once in one event.
const BATCH: usize = 32;

impl<'a> Cluster<'a> {
    /// `cp.async.bulk` and its kin: a copy per lane.
    pub(super) fn bulk(&mut self, warp: &mut Warp, site: Site, op: &BulkCopy) -> Result<()> {
        for lane in each(site.mask) {
            let site = Site { mask: 1 << lane, ..site };
            let Some(bulk) = self.describe_bulk(warp, site, op, lane)? else { continue };
            let id = self.new_async();
            self.tell_bulk_issue(site, id, &bulk);
            self.counters.bulk(site.pc, u64::from(bulk.bytes) * bulk.to.len() as u64);
            self.pending.push(Pending { id, site, landed: false, work: Work::Bulk(Box::new(bulk)) });
            if self.launch.options.asynchrony == AsyncPolicy::Early {
                self.land(self.pending.len() - 1)?;
            }
        }
        Ok(())
    }

    /// The copy of one lane; None where an address is misaligned, which is told as an access.
    fn describe_bulk(&mut self, warp: &mut Warp, site: Site, op: &BulkCopy, lane: usize) -> Result<Option<Bulk>> {
        let program = &self.launch.program;
        let source = |source: u16| program.source32(&warp.regs, source).0[lane];
        let tensor = match (&op.to, &op.from) {
            (BulkPlace::Tensor(map, list), _) | (_, BulkPlace::Tensor(map, list)) => {
                let coordinates: Vec<i32> = list.iter().map(|coordinate| source(*coordinate) as i32).collect();
                let map = self.addresses(warp, *map).0[lane];
                Some((self.tensor_map(site, map, coordinates.len())?, coordinates))
            }
            _ => None,
        };
        let address = |address| self.addresses(warp, address).0[lane];
        let global = match (&op.to, &op.from) {
            (BulkPlace::Global(place), _) | (_, BulkPlace::Global(place)) => address(*place),
            _ => 0,
        };
        let align = if tensor.is_some() { 128 } else { 16 };
        let (rows, bytes) = match &tensor {
            Some((map, coordinates)) => {
                let rows = match (&map.im2col, &op.im2col) {
                    (None, None) => map.rows(coordinates),
                    (Some(im2col), Some(offsets)) => {
                        let mut values: Vec<u16> = offsets.iter().map(|offset| source(*offset) as u16).collect();
                        values.resize(coordinates.len() - 2, 0);
                        map.pixels(im2col, coordinates, &values)
                    }
                    _ => return Err(self.error(site, "only one of the tensor map and the instruction is im2col")),
                };
                (rows, map.box_bytes())
            }
            None => {
                let bytes = op.bytes.map_or(0, source);
                if !bytes.is_multiple_of(16) {
                    return Err(self.error(site, &format!("a bulk copy of {bytes} bytes is no multiple of 16")));
                }
                (vec![Row { shared_offset: 0, bytes, global, inside_from: 0, inside_bytes: bytes }], bytes)
            }
        };
        let end = |place: &BulkPlace| match place {
            BulkPlace::Shared(place) => End::Shared(shared(address(*place))),
            BulkPlace::Global(_) | BulkPlace::Tensor(..) => End::Global,
        };
        let (from, to) = (end(&op.from), end(&op.to));
        let barrier = op.barrier.map(|barrier| shared(address(barrier)));
        let ctas = op.multicast.map(source);
        let reduce = op.reduce.map(|(op, ty)| match (ty, &tensor) {
            (Some(ty), _) => (op, ty),
            (None, Some((map, _))) => (op, element_type(map.data_type)),
            (None, None) => (op, Type::B32),
        });
        let misaligned = |address: u64, align: u64| !address.is_multiple_of(align);
        for (place, align) in [(from, align), (to, align)] {
            if let End::Shared(place) = place
                && misaligned(place, align)
            {
                let kind = Kind { align: align as u32, ..async_kind(AccessKind::Write, bytes, Agent::Threads) };
                self.test(0, site, Space::Shared, &L64([place; 32]), kind)?;
                return Ok(None);
            }
        }
        if tensor.is_none() && misaligned(global, 16) {
            let kind = Kind { align: 16, ..async_kind(AccessKind::Read, bytes, Agent::Threads) };
            self.test(0, site, Space::Global, &L64([global; 32]), kind)?;
            return Ok(None);
        }
        let (to, barriers) = self.destinations(site, to, barrier, ctas)?;
        let group = barrier.is_none().then(|| warp.bulk_committed[lane]);
        let map = tensor.map(|(map, _)| Box::new(map));
        let source_waited = false;
        let (proxy, data) = (Proxy::Async, None);
        Ok(Some(Bulk { lane, group, source_waited, from, to, barriers, rows, bytes, map, reduce, proxy, data }))
    }

    /// `st.async`, `red.async`: a few bytes of each lane, which it need not read from memory.
    pub(super) fn store_async(&mut self, warp: &mut Warp, site: Site, op: &StoreAsync) -> Result<()> {
        let (to, barriers) = (self.addresses(warp, op.to), self.addresses(warp, op.barrier));
        let bytes = op.ty.bytes() * op.values.len() as u32;
        for lane in each(site.mask) {
            let site = Site { mask: 1 << lane, ..site };
            let (to, barrier) = (shared(to.0[lane]), shared(barriers.0[lane]));
            if shared_rank(to) != shared_rank(barrier) {
                return Err(self.error(site, "the mbarrier lies in another CTA than the destination"));
            }
            let mut data = Vec::new();
            for value in &op.values {
                let value = self.launch.program.lane(&warp.regs, *value, lane);
                data.extend_from_slice(&value.to_le_bytes()[..op.ty.bytes() as usize]);
            }
            let bulk = Bulk {
                lane,
                group: None,
                source_waited: false,
                from: End::Shared(to),
                to: vec![End::Shared(to)],
                barriers: vec![barrier],
                rows: Vec::new(),
                bytes,
                map: None,
                reduce: op.reduce.map(|reduce| (reduce, op.ty)),
                proxy: Proxy::Generic,
                data: Some(data),
            };
            let id = self.new_async();
            if self.watch.wants(Interest::ASYNC) {
                // Reductions of others may land at the same time: no bytes are this one's alone.
                let writes = if op.reduce.is_some() { Vec::new() } else { ranges(&bulk, End::Shared(to)) };
                let kind = bulk.kind();
                self.watch.emit(&Event::AsyncIssue { site, id, kind, reads: &[], writes: &writes });
            }
            self.pending.push(Pending { id, site, landed: false, work: Work::Bulk(Box::new(bulk)) });
            if self.launch.options.asynchrony == AsyncPolicy::Early {
                self.land(self.pending.len() - 1)?;
            }
        }
        Ok(())
    }

    /// Destinations and mbarriers: one, or one in each CTA of a multicast.
    fn destinations(
        &self,
        site: Site,
        to: End,
        barrier: Option<u64>,
        ctas: Option<u32>,
    ) -> Result<(Vec<End>, Vec<u64>)> {
        let (End::Shared(place), Some(barrier)) = (to, barrier) else {
            return Ok((vec![to], barrier.into_iter().collect()));
        };
        if shared_rank(place) != shared_rank(barrier) {
            return Err(self.error(site, "the mbarrier of a bulk copy lies in another CTA than its destination"));
        }
        let Some(ctas) = ctas else { return Ok((vec![to], vec![barrier])) };
        let count = self.ctas.len() as u32;
        if ctas == 0 || ctas >> count != 0 {
            return Err(self.error(site, &format!("CTA mask {ctas:#x} of a multicast in a cluster of {count}")));
        }
        let at = |rank: usize, address: u64| rank as u64 * SHARED_STRIDE + u64::from(shared_offset(address));
        let places = each(ctas).map(|rank| End::Shared(at(rank, place))).collect();
        Ok((places, each(ctas).map(|rank| at(rank, barrier)).collect()))
    }

    fn tensor_map(&mut self, site: Site, generic: u64, dimensions: usize) -> Result<TensorMap> {
        let (space, address) = resolve_generic(generic);
        let mut bytes = [0u8; MAP_BYTES];
        if space == Space::Param {
            let bank = self.launch.params.get(address as usize..).and_then(|bank| bank.get(..MAP_BYTES));
            match bank {
                Some(bank) => bytes.copy_from_slice(bank),
                None => return Err(self.error(site, "the tensor map lies beyond the parameters")),
            }
        } else {
            let kind = Kind { align: 64, proxy: Proxy::TensorMap, ..Kind::plain(AccessKind::Read, MAP_BYTES as u32) };
            let tested = self.test(0, site, space, &L64([address; 32]), kind)?;
            if tested.lanes != 0 {
                self.read_bytes(space, address, &mut bytes);
            }
        }
        let map = TensorMap::decode(&bytes).map_err(|why| self.error(site, &why))?;
        if map.dims.len() != dimensions {
            let message = format!("the tensor map has {} dimensions, the instruction {dimensions}", map.dims.len());
            return Err(self.error(site, &message));
        }
        Ok(map)
    }

    fn tell_bulk_issue(&mut self, site: Site, id: AsyncId, bulk: &Bulk) {
        if !self.watch.wants(Interest::ASYNC) {
            return;
        }
        let (reads, writes) = (ranges(bulk, bulk.from), bulk.to.iter().flat_map(|end| ranges(bulk, *end)));
        let writes: Vec<AsyncRange> = writes.collect();
        self.watch.emit(&Event::AsyncIssue { site, id, kind: bulk.kind(), reads: &reads, writes: &writes });
    }

    /// `cp.async.bulk.commit_group`.
    pub(super) fn bulk_commit(&mut self, warp: &mut Warp, site: Site) {
        each(site.mask).for_each(|lane| warp.bulk_committed[lane] += 1);
        if self.watch.wants(Interest::ASYNC) {
            self.watch.emit(&Event::AsyncCommit { site, kind: AsyncKind::BulkStore });
        }
    }

    /// `cp.async.bulk.wait_group{.read}`: all but the newest groups of each lane.
    pub(super) fn bulk_wait(&mut self, warp: &mut Warp, site: Site, newest: u32, read: bool) -> Result<()> {
        for index in 0..self.pending.len() {
            let pending = &self.pending[index];
            let Work::Bulk(bulk) = &pending.work else { continue };
            let own =
                pending.site.cta == warp.cta && pending.site.warp == warp.index && site.mask >> bulk.lane & 1 == 1;
            let Some(group) = bulk.group else { continue };
            if !own || u64::from(group) + u64::from(newest) >= u64::from(warp.bulk_committed[bulk.lane]) {
                continue;
            }
            let (id, kind, waited) = (pending.id, bulk.kind(), bulk.source_waited);
            let site = Site { mask: 1 << bulk.lane, ..site };
            if !read {
                self.land(index)?;
                self.tell_step(site, id, kind, AsyncWait::Waited);
            } else if !waited {
                self.read_source(index)?;
                self.tell_step(site, id, kind, AsyncWait::SourceRead);
                if let Work::Bulk(bulk) = &mut self.pending[index].work {
                    bulk.source_waited = true;
                }
            }
        }
        if !read {
            self.forget_landed();
        }
        Ok(())
    }

    /// First step of a copy, unless it was done.
    fn read_source(&mut self, index: usize) -> Result<()> {
        let Pending { id, site, ref work, .. } = self.pending[index];
        let Work::Bulk(bulk) = work else { return Ok(()) };
        if bulk.data.is_some() {
            return Ok(());
        }
        let bulk = bulk.clone();
        let kind = async_kind(AccessKind::Read, 0, Agent::Async(id));
        let mut data = vec![0u8; bulk.bytes as usize];
        match bulk.from {
            End::Global => {
                for row in &bulk.rows {
                    let start = row.shared_offset as usize;
                    let outside = (0..row.bytes).filter(|at| at.wrapping_sub(row.inside_from) >= row.inside_bytes);
                    if let Some(map) = &bulk.map {
                        outside.for_each(|at| data[start + at as usize] = map.fill_byte(at));
                    }
                }
                self.rows_of(site, &bulk, kind, |cluster, row| {
                    let start = (row.shared_offset + row.inside_from) as usize;
                    let inside = &mut data[start..start + row.inside_bytes as usize];
                    cluster.read_bytes(Space::Global, row.global, inside);
                })?;
            }
            End::Shared(start) => {
                self.shared_box(site, &bulk, start, kind, |cluster, address, at, bytes| {
                    cluster.read_bytes(Space::Shared, address, &mut data[at..at + bytes]);
                })?;
            }
        }
        if let Work::Bulk(bulk) = &mut self.pending[index].work {
            bulk.data = Some(data);
        }
        Ok(())
    }

    /// Both steps: the copy's effects happen now.
    pub(super) fn land_bulk(&mut self, index: usize) -> Result<()> {
        self.read_source(index)?;
        let Pending { id, site, ref mut work, .. } = self.pending[index];
        let Work::Bulk(bulk) = work else { return Ok(()) };
        let data = bulk.data.take().unwrap_or_default();
        let bulk = bulk.clone();
        self.tell_step(site, id, bulk.kind(), AsyncWait::Landed);
        let kind = match bulk.reduce {
            None => async_kind(AccessKind::Write, 0, Agent::Async(id)),
            Some(_) => {
                let relaxed = async_kind(AccessKind::Atomic, 0, Agent::Async(id));
                Kind { semantics: Semantics::Relaxed, ..relaxed }
            }
        };
        let kind = Kind { proxy: bulk.proxy, ..kind };
        for end in &bulk.to {
            match end {
                End::Global => self.rows_of(site, &bulk, kind, |cluster, row| {
                    let start = (row.shared_offset + row.inside_from) as usize;
                    let inside = &data[start..start + row.inside_bytes as usize];
                    match bulk.reduce {
                        None => cluster.write_bytes(Space::Global, row.global, inside),
                        Some((op, ty)) => cluster.reduce_bytes(Space::Global, row.global, inside, op, ty),
                    }
                })?,
                End::Shared(start) => self.shared_box(site, &bulk, *start, kind, |cluster, address, at, bytes| {
                    let part = &data[at..at + bytes];
                    match bulk.reduce {
                        None => cluster.write_bytes(Space::Shared, address, part),
                        Some((op, ty)) => cluster.reduce_bytes(Space::Shared, address, part, op, ty),
                    }
                })?,
            }
        }
        for barrier in &bulk.barriers {
            let told = Told::by(site, Agent::Async(id));
            self.mbarrier_change(told, *barrier, MbarrierStep::CompleteTx(bulk.bytes))?;
        }
        if !bulk.barriers.is_empty() {
            self.tell_step(site, id, bulk.kind(), AsyncWait::Signalled);
        }
        Ok(())
    }

    /// Tests the rows' parts inside the tensor and calls `then` for those that may be touched.
    fn rows_of(&mut self, site: Site, bulk: &Bulk, kind: Kind, mut then: impl FnMut(&mut Self, &Row)) -> Result<()> {
        let inside: Vec<&Row> = bulk.rows.iter().filter(|row| row.inside_bytes > 0).collect();
        for rows in inside.chunk_by(|a, b| a.inside_bytes == b.inside_bytes).flat_map(|rows| rows.chunks(BATCH)) {
            let kind = Kind { bytes: rows[0].inside_bytes, align: 1, ..kind };
            let (addresses, mask) = lanes(rows.iter().map(|row| row.global));
            let tested = self.test(0, Site { mask, ..site }, Space::Global, &addresses, kind)?;
            each(tested.lanes).for_each(|lane| then(self, rows[lane]));
        }
        Ok(())
    }

    /// Tests the bytes of a box in shared memory and calls `then` with (address, place in the box, bytes) of its pieces, in which the
    /// swizzle leaves neighbours together.
    fn shared_box(
        &mut self,
        site: Site,
        bulk: &Bulk,
        start: u64,
        kind: Kind,
        mut then: impl FnMut(&mut Self, u64, usize, usize),
    ) -> Result<()> {
        let swizzle = bulk.swizzle();
        let place =
            |at: u32| start - u64::from(shared_offset(start)) + u64::from(swizzle.apply(shared_offset(start) + at));
        let dense = bulk.is_dense(start);
        if dense {
            let kind = Kind { bytes: bulk.bytes, align: bulk.bytes.min(16), ..kind };
            let tested = self.test(0, Site { mask: 1, ..site }, Space::Shared, &L64([start; 32]), kind)?;
            if tested.lanes == 0 {
                return Ok(());
            }
        }
        if swizzle == Swizzle::None {
            then(self, start, 0, bulk.bytes as usize);
            return Ok(());
        }
        let chunks: Vec<u32> = (0..bulk.bytes).step_by(16).collect();
        for chunks in chunks.chunks(BATCH) {
            let (addresses, mask) = lanes(chunks.iter().map(|at| place(*at)));
            let mut allowed = mask;
            if !dense {
                let kind = Kind { bytes: 16, align: 16, ..kind };
                allowed = self.test(0, Site { mask, ..site }, Space::Shared, &addresses, kind)?.lanes;
            }
            each(allowed).for_each(|lane| then(self, addresses.0[lane], chunks[lane] as usize, 16));
        }
        Ok(())
    }

    /// Combines bytes with memory, element by element; the place was tested.
    fn reduce_bytes(&mut self, space: Space, address: u64, from: &[u8], op: AtomicOp, ty: Type) {
        let size = ty.bytes();
        for at in (0..from.len()).step_by(size as usize) {
            let (value, address) = (little(from, at, size), address + at as u64);
            self.reduce_at(space, op, ty, address, value);
        }
    }

    /// `cp.async.mbarrier.arrive`: an arrival of each lane once its earlier `cp.async` have landed.
    pub(super) fn copy_arrive(
        &mut self,
        warp: &mut Warp,
        site: Site,
        (space, place): (MemorySpace, Address),
        counted: bool,
    ) -> Result<()> {
        let mut addresses = self.addresses(warp, place);
        if space == MemorySpace::Generic {
            addresses.0.iter_mut().for_each(|address| *address = address.wrapping_sub(SHARED_WINDOW));
        }
        for lane in each(site.mask) {
            let site = Site { mask: 1 << lane, ..site };
            let address = addresses.0[lane];
            if !self.in_cluster(address, 8) || !address.is_multiple_of(8) {
                self.test(0, site, Space::Shared, &addresses, Kind::plain(AccessKind::Atomic, 8))?;
                continue;
            }
            if !counted
                && let Some(state) = self.ctas[shared_rank(address) as usize].mbarriers.get_mut(&shared_offset(address))
            {
                state.pending += 1;
            }
            let id = self.new_async();
            let (kind, reads, writes) = (AsyncKind::CpAsync, &[], &[]);
            if self.watch.wants(Interest::ASYNC) {
                self.watch.emit(&Event::AsyncIssue { site, id, kind, reads, writes });
            }
            self.pending.push(Pending { id, site, landed: false, work: Work::CopyArrive(address) });
            if self.launch.options.asynchrony == AsyncPolicy::Early {
                self.land(self.pending.len() - 1)?;
            }
        }
        Ok(())
    }

    /// The arrival of [`Cluster::copy_arrive`], after the thread's earlier copies.
    pub(super) fn land_copy_arrive(&mut self, index: usize, address: u64) -> Result<()> {
        let Pending { id, site, .. } = self.pending[index];
        let same_warp = |pending: &Pending| pending.site.cta == site.cta && pending.site.warp == site.warp;
        for earlier in 0..index {
            // What an arrival waits for, the thread's later ones wait for, too: they come in their order.
            let pending = &self.pending[earlier];
            let is_arrival = matches!(pending.work, Work::CopyArrive(_)) && pending.site.mask & site.mask != 0;
            if is_arrival && !pending.landed && same_warp(pending) {
                self.land(earlier)?;
            }
        }
        for earlier in 0..index {
            let pending = &self.pending[earlier];
            let Work::Copy(copy) = &pending.work else { continue };
            if same_warp(pending) && copy.lanes & site.mask != 0 {
                let (id, issued) = (pending.id, pending.site);
                self.land(earlier)?;
                // The arrival says of each copy before it that it has landed; a step of no bytes tells that.
                self.mbarrier_change(Told::by(issued, Agent::Async(id)), address, MbarrierStep::CompleteTx(0))?;
                self.tell_step(site, id, AsyncKind::CpAsync, AsyncWait::Signalled);
            }
        }
        // It releases nothing else that the thread did.
        let told = Told { semantics: Semantics::Relaxed, scope: Scope::Cta, ..Told::by(site, Agent::Async(id)) };
        self.tell_step(site, id, AsyncKind::CpAsync, AsyncWait::Landed);
        self.mbarrier_change(told, address, MbarrierStep::Arrive { count: 1, drop: false })?;
        self.tell_step(site, id, AsyncKind::CpAsync, AsyncWait::Signalled);
        Ok(())
    }
}

/// A shared address from a generic or shared one.
fn shared(address: u64) -> u64 {
    if address >= SHARED_WINDOW { address - SHARED_WINDOW } else { address }
}

fn async_kind(kind: AccessKind, bytes: u32, agent: Agent) -> Kind {
    Kind { agent, proxy: Proxy::Async, ..Kind::plain(kind, bytes) }
}

fn element_type(data_type: DataType) -> Type {
    match data_type {
        DataType::U8 => Type::U8,
        DataType::U16 => Type::U16,
        DataType::U32 => Type::U32,
        DataType::I32 => Type::S32,
        DataType::U64 => Type::U64,
        DataType::I64 => Type::S64,
        DataType::F16 => Type::F16,
        DataType::Bf16 => Type::Bf16,
        DataType::F64 => Type::F64,
        DataType::F32 | DataType::F32Ftz | DataType::Tf32 | DataType::Tf32Ftz => Type::F32,
    }
}

/// Up to 32 addresses as lanes, with their mask.
fn lanes(addresses: impl Iterator<Item = u64>) -> (L64, u32) {
    let mut out = L64::ZERO;
    let mut mask = 0;
    for (lane, address) in addresses.enumerate() {
        out.0[lane] = address;
        mask |= 1 << lane;
    }
    (out, mask)
}

/// The bytes of one end, neighbours joined.
fn ranges(bulk: &Bulk, end: End) -> Vec<AsyncRange> {
    match end {
        End::Global => {
            let inside = bulk.rows.iter().filter(|row| row.inside_bytes > 0);
            join(inside.map(|row| (Space::Global, row.global, row.inside_bytes)))
        }
        End::Shared(start) if bulk.is_dense(start) => join([(Space::Shared, start, bulk.bytes)].into_iter()),
        End::Shared(start) => {
            let base = start - u64::from(shared_offset(start));
            let place = |at: u32| base + u64::from(bulk.swizzle().apply(shared_offset(start) + at));
            let mut chunks: Vec<u64> = (0..bulk.bytes).step_by(16).map(place).collect();
            chunks.sort_unstable();
            join(chunks.into_iter().map(|address| (Space::Shared, address, 16)))
        }
    }
}

pub(super) fn join(parts: impl Iterator<Item = (Space, u64, u32)>) -> Vec<AsyncRange> {
    let mut out: Vec<AsyncRange> = Vec::new();
    for (space, address, bytes) in parts {
        match out.last_mut() {
            Some(last) if last.address + u64::from(last.bytes) == address => last.bytes += bytes,
            _ => out.push(AsyncRange { space, address, bytes }),
        }
    }
    out
}
