//! Decodes mbarriers, bulk and tensor copies, `setmaxnreg`, `griddepcontrol`.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::error::Result;
use crate::event::{Scope, Semantics};
use crate::front::ast::{Operand, Type};
use crate::program::hopper_op::{BulkCopy, BulkPlace, Mbarrier, MbarrierAction, WaitPhase};
use crate::program::op::{Address, AnyDst, AtomicOp, MemorySpace, Op};

impl<'a> Decoder<'a> {
    pub(super) fn mbarrier(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if form.types() != [Type::B64] {
            return Ok(None);
        }
        let names = ["init", "inval", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count"];
        let Some(name) = form.take_one(&names).or_else(|| form.take_one(&["expect_tx", "complete_tx"])) else {
            return Ok(None);
        };
        let operands = form.operands();
        if name == "pending_count" {
            self.expect_operands(form, 2..=2)?;
            let state = self.src64(form, &operands[1], Type::B64)?;
            return Ok(Some(Op::MbarrierPending(self.dst32(form, &operands[0])?, state)));
        }
        let default = if name.ends_with("wait") { Semantics::Acquire } else { Semantics::Release };
        let semantics = form.semantics().unwrap_or(default);
        let scope = form.scope().unwrap_or(Scope::Cta);
        let results = matches!(name, "arrive" | "arrive_drop" | "test_wait" | "try_wait");
        let has_state = results && !matches!(operands.first(), Some(Operand::Address(..)));
        let place = self.operand(form, usize::from(has_state))?;
        let Some((space, address)) = self.location(form, place)? else { return Ok(None) };
        if !matches!(space, MemorySpace::Generic | MemorySpace::Named(Space::Shared)) {
            return Ok(None);
        }
        let rest = &operands[1 + usize::from(has_state)..];
        let action = match name {
            "init" => MbarrierAction::Init(self.only(form, rest)?),
            "inval" => MbarrierAction::Invalidate,
            "expect_tx" => MbarrierAction::ExpectTx(self.only(form, rest)?),
            "complete_tx" => MbarrierAction::CompleteTx(self.only(form, rest)?),
            "arrive" | "arrive_drop" => {
                form.take("noComplete");
                let state = if has_state { self.any_dst(form, &operands[0])? } else { AnyDst::Sink };
                let (mut count, mut expect_tx) = (None, None);
                if form.take("expect_tx") {
                    expect_tx = Some(self.only(form, rest)?);
                } else if !rest.is_empty() {
                    count = Some(self.only(form, rest)?);
                }
                MbarrierAction::Arrive { count, drop: name == "arrive_drop", expect_tx, state }
            }
            _ => {
                // A time limit may follow; it only says how long the hardware may sleep.
                let ([phase], true) = (&rest[..1.min(rest.len())], rest.len() <= 2) else {
                    return Err(self.fail(form.instruction, "wrong number of operands"));
                };
                let phase = match form.take("parity") {
                    true => WaitPhase::Parity(self.src32(form, phase, Type::U32)?),
                    false => WaitPhase::Token(self.src64(form, phase, Type::B64)?),
                };
                if let Some(limit) = rest.get(1) {
                    self.src32(form, limit, Type::U32)?;
                }
                let p = self.pred_dst(form, &operands[0])?;
                MbarrierAction::Test { p, phase, potentially_blocking: name == "try_wait" }
            }
        };
        Ok(Some(Op::Mbarrier(Box::new(Mbarrier { action, space, address, semantics, scope }))))
    }

    /// The one remaining operand.
    fn only(&mut self, form: &Form<'a>, rest: &[Operand]) -> Result<u16> {
        match rest {
            [operand] => self.src32(form, operand, Type::U32),
            _ => Err(self.fail(form.instruction, "wrong number of operands")),
        }
    }

    /// `cp.async.mbarrier.arrive`.
    pub(super) fn copy_arrive(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let fixed = form.take("async") & form.take("mbarrier") & form.take("arrive");
        let counted = form.take("noinc");
        if !fixed || form.types() != [Type::B64] {
            return Ok(None);
        }
        self.expect_operands(form, 1..=1)?;
        let Some((space, address)) = self.location(form, &form.operands()[0])? else { return Ok(None) };
        Ok(Some(Op::CopyArrive { space, address, counted }))
    }

    /// `cp.async.bulk` and `cp.reduce.async.bulk`, with or without `.tensor`.
    pub(super) fn bulk(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if !(form.take("async") & form.take("bulk")) {
            return Ok(None);
        }
        if form.take("commit_group") {
            return Ok(Some(Op::BulkCommit));
        }
        if form.take("wait_group") {
            let read = form.take("read");
            let [Operand::Integer(newest)] = form.operands() else { return Ok(None) };
            return Ok(Some(Op::BulkWait { newest: (*newest).min(u64::from(u32::MAX)) as u32, read }));
        }
        if form.take("prefetch") {
            return self.bulk_prefetch(form);
        }
        let reduces = form.take("reduce");
        let (mut im2col, mut pixels) = (false, false);
        let dimensions = if form.take("tensor") {
            let found = form.take_map(|modifier| modifier.strip_suffix('d')?.parse::<usize>().ok());
            let [dimensions @ 1..=5] = found[..] else { return Ok(None) };
            form.take("tile");
            im2col = form.take("im2col");
            pixels = im2col || form.take("im2col_no_offs");
            Some(dimensions)
        } else {
            None
        };
        form.hints();
        let multicasts = form.take("multicast::cluster");
        let signals = form.take("mbarrier::complete_tx::bytes");
        if signals == form.take("bulk_group") {
            return Ok(None);
        }
        let places = form.take_map(|modifier| match modifier {
            "shared::cluster" | "shared::cta" => Some(Space::Shared),
            "global" => Some(Space::Global),
            _ => None,
        });
        let [to, from] = places[..] else { return Ok(None) };
        if !signals && (to, from) != (Space::Global, Space::Shared) || signals && to != Space::Shared {
            return Ok(None);
        }
        let reduce = match reduces {
            false => None,
            true => match Self::bulk_reduction(form, dimensions.is_some()) {
                Some(reduce) => Some(reduce),
                None => return Ok(None),
            },
        };
        // Destination, source, bytes (not of tensors), mbarrier, CTAs, cache policy.
        let operands = form.operands();
        let sized = usize::from(dimensions.is_none());
        let hinted = usize::from(form.has("L2::cache_hint"));
        let count = 2 + sized + usize::from(signals) + usize::from(im2col) + usize::from(multicasts) + hinted;
        self.expect_operands(form, count..=count)?;
        let to = self.bulk_place(form, &operands[0], to, dimensions)?;
        let from = self.bulk_place(form, &operands[1], from, dimensions)?;
        let mut rest = operands[2..].iter();
        let mut next = |wanted: bool| if wanted { rest.next() } else { None };
        let (bytes, barrier) = (next(sized == 1), next(signals));
        let offsets = next(im2col);
        let (ctas, policy) = (next(multicasts), next(hinted == 1));
        let bytes = bytes.map(|operand| self.src32(form, operand, Type::U32)).transpose()?;
        let barrier = barrier.map(|operand| self.address(form, operand).map(|(_, address)| address)).transpose()?;
        let multicast = ctas.map(|operand| self.src32(form, operand, Type::U16)).transpose()?;
        policy.map(|operand| self.src64(form, operand, Type::B64)).transpose()?;
        let offsets = match (pixels, offsets, dimensions) {
            (false, ..) => None,
            (true, None, _) => Some(Vec::new()),
            (true, Some(Operand::Vector(list)), Some(dimensions)) if list.len() + 2 == dimensions => {
                let list = list.iter().map(|offset| self.src32(form, offset, Type::U16));
                Some(list.collect::<Result<Vec<u16>>>()?)
            }
            _ => return Err(self.fail(form.instruction, "an offset per spatial dimension expected")),
        };
        Ok(Some(Op::Bulk(Box::new(BulkCopy { to, from, bytes, barrier, multicast, im2col: offsets, reduce }))))
    }

    fn bulk_reduction(form: &mut Form<'a>, tensor: bool) -> Option<(AtomicOp, Option<Type>)> {
        let op = match form.take_one(&["add", "min", "max", "inc", "dec", "and", "or", "xor"])? {
            "add" => AtomicOp::Add,
            "min" => AtomicOp::Min,
            "max" => AtomicOp::Max,
            "inc" => AtomicOp::Inc,
            "dec" => AtomicOp::Dec,
            "and" => AtomicOp::And,
            "or" => AtomicOp::Or,
            _ => AtomicOp::Xor,
        };
        form.take("noftz");
        let types = form.types();
        match (tensor, &types[..]) {
            (true, []) => Some((op, None)),
            (false, [ty]) => Some((op, Some(*ty))),
            _ => None,
        }
    }

    fn bulk_place(
        &mut self,
        form: &Form<'a>,
        operand: &'a Operand,
        space: Space,
        dimensions: Option<usize>,
    ) -> Result<BulkPlace> {
        match (space, dimensions, operand) {
            (Space::Global, Some(dimensions), Operand::TensorAddress(base, offset, list)) => {
                if list.len() != dimensions {
                    return Err(self.fail(form.instruction, &format!("{dimensions} coordinates expected")));
                }
                let (_, map) = self.based(form, *base, *offset)?;
                let coordinates: Result<Vec<u16>> =
                    list.iter().map(|coordinate| self.src32(form, coordinate, Type::S32)).collect();
                Ok(BulkPlace::Tensor(map, coordinates?))
            }
            (Space::Global, Some(_), _) => Err(self.fail(form.instruction, "tensor and coordinates expected")),
            (space, _, operand) => {
                let (_, address): (_, Address) = self.address(form, operand)?;
                Ok(if space == Space::Shared { BulkPlace::Shared(address) } else { BulkPlace::Global(address) })
            }
        }
    }

    /// A hint: nothing to do. Its operands are still looked at.
    fn bulk_prefetch(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        form.take_map(|modifier| {
            let known = ["tensor", "tile", "im2col", "global", "L2"];
            let dimension = modifier.len() == 2 && modifier.ends_with('d');
            (known.contains(&modifier) || dimension || modifier.starts_with("L2::")).then_some(())
        });
        for operand in form.operands() {
            match operand {
                Operand::Address(base, offset) => drop(self.based(form, *base, *offset)?),
                Operand::TensorAddress(base, offset, _) => drop(self.based(form, *base, *offset)?),
                _ => {}
            }
        }
        Ok(Some(Op::Nop))
    }

    pub(super) fn set_max_registers(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let fixed = form.take("sync") & form.take("aligned");
        let more = match form.take_one(&["inc", "dec"]) {
            Some(direction) => direction == "inc",
            None => return Ok(None),
        };
        if !fixed || form.types() != [Type::U32] {
            return Ok(None);
        }
        match form.operands() {
            [Operand::Integer(count @ 24..=256)] if count.is_multiple_of(8) => {
                Ok(Some(Op::SetMaxRegisters { count: *count as u32, more }))
            }
            _ => Err(self.fail(form.instruction, "the count must be a multiple of 8 from 24 to 256")),
        }
    }

    pub(super) fn grid_dependency(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        self.expect_operands(form, 0..=0)?;
        Ok(form.take_one(&["wait", "launch_dependents"]).map(|which| Op::GridDependency { waits: which == "wait" }))
    }
}
