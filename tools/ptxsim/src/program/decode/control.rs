//! Decodes control flow, barriers, fences and `cp.async`.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::error::Result;
use crate::event::{FenceKind, Scope, Semantics};
use crate::front::ast::{Operand, Type};
use crate::program::op::{Barrier, BarrierReduction, CopyAsync, MemorySpace, Op};

impl<'a> Decoder<'a> {
    pub(super) fn control(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        match form.opcode() {
            "bra" => {
                form.take("uni");
                self.expect_operands(form, 1..=1)?;
                Ok(Some(Op::Branch(self.target(form, &form.operands()[0])?)))
            }
            "brx" => self.branch_indexed(form),
            "call" => self.call(form),
            "alloca" | "stacksave" | "stackrestore" => self.stack(form),
            "ret" => {
                form.take("uni");
                Ok(Some(Op::Return))
            }
            "exit" => Ok(Some(Op::Exit)),
            "trap" => Ok(Some(Op::Trap)),
            "brkpt" => Ok(Some(Op::Breakpoint)),
            "pmevent" => {
                form.take("mask");
                Ok(Some(Op::Nop))
            }
            "nanosleep" => {
                form.types();
                self.src32(form, self.operand(form, 0)?, Type::U32)?;
                Ok(Some(Op::Nanosleep))
            }
            "bar" | "barrier" => self.barrier(form),
            _ => self.fence(form),
        }
    }

    fn branch_indexed(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        form.take("uni");
        if !form.take("idx") {
            return Ok(None);
        }
        let [index, Operand::Label(list)] = form.operands() else { return Ok(None) };
        let Some(labels) = self.function.branch_tables.get(&list.0) else {
            return Err(self.fail(form.instruction, "no .branchtargets with this label"));
        };
        let targets = labels.iter().map(|label| self.target(form, &Operand::Label(*label))).collect::<Result<_>>()?;
        let index = self.src32(form, index, Type::U32)?;
        Ok(Some(Op::BranchIndexed(index, targets)))
    }

    fn barrier(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if form.take("cluster") {
            return self.cluster_barrier(form);
        }
        if form.opcode() == "bar" && form.take("warp") {
            if !form.take("sync") {
                return Ok(None);
            }
            return Ok(Some(Op::WarpBarrier(self.src32(form, self.operand(form, 0)?, Type::B32)?)));
        }
        form.take("cta");
        let aligned = form.take("aligned") | (form.opcode() == "bar");
        let Some(kind) = form.take_one(&["sync", "arrive", "red"]) else { return Ok(None) };
        if kind == "red" {
            return self.barrier_reduction(form, aligned);
        }
        self.expect_operands(form, if kind == "arrive" { 2..=2 } else { 1..=2 })?;
        let id = self.src32(form, &form.operands()[0], Type::U32)?;
        let threads = match form.operands().get(1) {
            Some(operand) => Some(self.src32(form, operand, Type::U32)?),
            None => None,
        };
        let waits = kind == "sync";
        Ok(Some(Op::Barrier(Box::new(Barrier { id, threads, waits, aligned, reduction: None }))))
    }

    fn barrier_reduction(&mut self, form: &mut Form<'a>, aligned: bool) -> Decoded<Op> {
        let op = form.take_one(&["popc", "and", "or"]);
        form.types();
        self.expect_operands(form, 3..=4)?;
        let (d, last) = (&form.operands()[0], form.operands().len() - 1);
        let id = self.src32(form, &form.operands()[1], Type::U32)?;
        let threads = if last == 3 { Some(self.src32(form, &form.operands()[2], Type::U32)?) } else { None };
        let source = self.pred_src(form, &form.operands()[last])?;
        let reduction = match op {
            Some("popc") => BarrierReduction::Popc(self.dst32(form, d)?, source),
            Some("and") => BarrierReduction::And(self.pred_dst(form, d)?, source),
            Some("or") => BarrierReduction::Or(self.pred_dst(form, d)?, source),
            _ => return Ok(None),
        };
        Ok(Some(Op::Barrier(Box::new(Barrier { id, threads, waits: true, aligned, reduction: Some(reduction) }))))
    }

    fn cluster_barrier(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let aligned = form.take("aligned");
        self.expect_operands(form, 0..=0)?;
        if form.take("arrive") {
            return match form.semantics().unwrap_or(Semantics::Release) {
                semantics @ (Semantics::Release | Semantics::Relaxed) => {
                    Ok(Some(Op::ClusterArrive(semantics, aligned)))
                }
                _ => Ok(None),
            };
        }
        if form.take("wait") {
            return match form.semantics().unwrap_or(Semantics::Acquire) {
                Semantics::Acquire => Ok(Some(Op::ClusterWait(aligned))),
                _ => Ok(None),
            };
        }
        Ok(None)
    }

    fn fence(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if form.take("proxy") {
            return self.proxy_fence(form);
        }
        if form.take("mbarrier_init") {
            let fine = form.take("release") & form.take("cluster");
            let fence = Op::Fence(FenceKind::MbarrierInit, Semantics::Release, Scope::Cluster);
            return Ok(fine.then_some(fence));
        }
        self.expect_operands(form, 0..=0)?;
        // Only what lies in shared memory is ordered; ordering more is no fault that could be seen.
        form.take_one(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
        let given = form.semantics();
        let Some(scope) = form.scope() else { return Ok(None) };
        let semantics = if form.opcode() == "membar" { Semantics::SeqCst } else { given.unwrap_or(Semantics::AcqRel) };
        Ok(Some(Op::Fence(FenceKind::Memory, semantics, scope)))
    }

    fn proxy_fence(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if form.take("async") {
            let space = match form.take_one(&["global", "shared::cta", "shared::cluster"]) {
                None => None,
                Some("global") => Some(Space::Global),
                Some(_) => Some(Space::Shared),
            };
            return Ok(Some(Op::Fence(FenceKind::ProxyAsync(space), Semantics::AcqRel, Scope::System)));
        }
        if form.take("async::generic") {
            let restricted = form.take_one(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
            let fits = restricted.is_some() & form.semantics().is_some() & form.take("cluster");
            let fence = Op::Fence(FenceKind::ProxyAsync(Some(Space::Shared)), Semantics::AcqRel, Scope::Cluster);
            return Ok(fits.then_some(fence));
        }
        let other = ["alias", "async.global", "tensormap::generic"];
        if form.take_one(&other).is_none() {
            return Ok(None);
        }
        let semantics = form.semantics().unwrap_or(Semantics::AcqRel);
        let scope = form.scope().unwrap_or(Scope::System);
        if let Some(operand) = form.operands().first() {
            self.address(form, operand)?;
        }
        Ok(Some(Op::Fence(FenceKind::ProxyOther, semantics, scope)))
    }

    pub(super) fn asynchronous(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        if !form.take("async") || form.has("bulk") || form.has("mbarrier") {
            return Ok(None);
        }
        if form.take("commit_group") {
            return Ok(Some(Op::CopyCommit));
        }
        if form.take("wait_all") {
            return Ok(Some(Op::CopyWait(None)));
        }
        if form.take("wait_group") {
            let [Operand::Integer(newest)] = form.operands() else { return Ok(None) };
            return Ok(Some(Op::CopyWait(Some((*newest).min(u32::MAX as u64) as u32))));
        }
        self.copy_async(form)
    }

    fn copy_async(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let bypass = form.has("cg");
        form.hints();
        let shared = form.take_one(&["shared", "shared::cta"]);
        if shared.is_none() || !form.take("global") {
            return Ok(None);
        }
        self.expect_operands(form, 3..=5)?;
        let operands = form.operands();
        let (_, to) = self.address(form, &operands[0])?;
        let (_, from) = self.address(form, &operands[1])?;
        let Operand::Integer(bytes @ (4 | 8 | 16)) = operands[2] else {
            return Err(self.fail(form.instruction, "cp-size must be 4, 8 or 16"));
        };
        if bypass && bytes != 16 {
            return Err(self.fail(form.instruction, "cp-size must be 16 with .cg"));
        }
        let (mut source_bytes, mut ignore) = (None, None);
        // A cache policy is 64 bits wide and says nothing here.
        let extras = operands.len() - form.has("L2::cache_hint") as usize;
        for operand in &operands[3..extras.max(3)] {
            match operand {
                Operand::Register { register, .. } if self.function.registers[register.0 as usize].ty == Type::Pred => {
                    ignore = Some(self.pred_src(form, operand)?);
                }
                _ => source_bytes = Some(self.src32(form, operand, Type::U32)?),
            }
        }
        if extras < operands.len() {
            self.src64(form, &operands[operands.len() - 1], Type::B64)?;
        }
        let copy = CopyAsync {
            to,
            to_space: MemorySpace::Named(Space::Shared),
            from,
            bytes: bytes as u32,
            source_bytes,
            ignore,
        };
        Ok(Some(Op::CopyAsync(Box::new(copy))))
    }
}
