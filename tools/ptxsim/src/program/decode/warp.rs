//! Decodes instructions of a whole warp: shuffles, votes, matches, reductions, matrix moves.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::front::ast::{Operand, Type};
use crate::program::op::{Collective, MatrixMove, MemorySpace, NONE, Op, ReduxOp, ShuffleMode, VoteMode};

impl<'a> Decoder<'a> {
    pub(super) fn warp(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        match form.opcode() {
            "ldmatrix" | "stmatrix" => return self.matrix(form),
            "movmatrix" => return self.movmatrix(form),
            "activemask" => {
                form.types();
                return Ok(Some(Op::ActiveMask(self.dst32(form, self.operand(form, 0)?)?)));
            }
            _ => {}
        }
        // Without `.sync` they do not exist on sm_70 and later.
        if !form.take("sync") {
            return Ok(None);
        }
        let collective = match form.opcode() {
            "shfl" => self.shuffle(form)?,
            "vote" => self.vote(form)?,
            "match" => self.matching(form)?,
            "redux" => self.redux(form)?,
            _ => self.elect(form)?,
        };
        let Some(collective) = collective else { return Ok(None) };
        let mask = form.operands().len() - 1;
        let mask = self.src32(form, &form.operands()[mask], Type::B32)?;
        Ok(Some(Op::Collective(Box::new(collective), mask)))
    }

    fn shuffle(&mut self, form: &mut Form<'a>) -> Decoded<Collective> {
        let mode = match form.take_one(&["up", "down", "bfly", "idx"]) {
            Some("up") => ShuffleMode::Up,
            Some("down") => ShuffleMode::Down,
            Some("bfly") => ShuffleMode::Butterfly,
            Some(_) => ShuffleMode::Index,
            None => return Ok(None),
        };
        if form.types() != [Type::B32] {
            return Ok(None);
        }
        self.expect_operands(form, 5..=5)?;
        let [d, a, b, c, _] = form.operands() else { return Ok(None) };
        let (a, b) = (self.src32(form, a, Type::B32)?, self.src32(form, b, Type::U32)?);
        let c = self.src32(form, c, Type::U32)?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dst32(form, d)?, self.pred_dst(form, p)?),
            d => (self.dst32(form, d)?, NONE),
        };
        Ok(Some(Collective::Shuffle { mode, d, p, a, b, c }))
    }

    fn vote(&mut self, form: &mut Form<'a>) -> Decoded<Collective> {
        let mode = match form.take_one(&["all", "any", "uni", "ballot"]) {
            Some("all") => VoteMode::All,
            Some("any") => VoteMode::Any,
            Some("uni") => VoteMode::Uniform,
            Some(_) => VoteMode::Ballot,
            None => return Ok(None),
        };
        form.types();
        self.expect_operands(form, 3..=3)?;
        let a = self.pred_src(form, &form.operands()[1])?;
        let (p, d) = match mode {
            VoteMode::Ballot => (NONE, self.dst32(form, &form.operands()[0])?),
            _ => (self.pred_dst(form, &form.operands()[0])?, NONE),
        };
        Ok(Some(Collective::Vote { mode, p, d, a }))
    }

    fn matching(&mut self, form: &mut Form<'a>) -> Decoded<Collective> {
        let Some(kind) = form.take_one(&["any", "all"]) else { return Ok(None) };
        let types = form.types();
        let [ty @ (Type::B32 | Type::B64)] = types[..] else { return Ok(None) };
        self.expect_operands(form, 3..=3)?;
        let a = self.any_src(form, &form.operands()[1], ty)?;
        let (d, p) = match &form.operands()[0] {
            Operand::Pair(d, p) => (self.dst32(form, d)?, self.pred_dst(form, p)?),
            d => (self.dst32(form, d)?, NONE),
        };
        Ok(Some(Collective::Match { all: kind == "all", d, p, a }))
    }

    fn redux(&mut self, form: &mut Form<'a>) -> Decoded<Collective> {
        let op = form.take_one(&["add", "min", "max", "and", "or", "xor"]);
        let types = form.types();
        let [ty] = types[..] else { return Ok(None) };
        let op = match (op, ty) {
            (Some("add"), Type::U32 | Type::S32) => ReduxOp::Add,
            (Some("min"), Type::S32) => ReduxOp::MinS,
            (Some("max"), Type::S32) => ReduxOp::MaxS,
            (Some("min"), Type::U32) => ReduxOp::MinU,
            (Some("max"), Type::U32) => ReduxOp::MaxU,
            (Some("and"), Type::B32) => ReduxOp::And,
            (Some("or"), Type::B32) => ReduxOp::Or,
            (Some("xor"), Type::B32) => ReduxOp::Xor,
            _ => return Ok(None),
        };
        self.expect_operands(form, 3..=3)?;
        let a = self.src32(form, &form.operands()[1], ty)?;
        Ok(Some(Collective::Redux { op, d: self.dst32(form, &form.operands()[0])?, a }))
    }

    fn elect(&mut self, form: &mut Form<'a>) -> Decoded<Collective> {
        self.expect_operands(form, 2..=2)?;
        let Operand::Pair(d, p) = &form.operands()[0] else { return Ok(None) };
        let d = if **d == Operand::Sink { NONE } else { self.dst32(form, d)? };
        Ok(Some(Collective::Elect { d, p: self.pred_dst(form, p)? }))
    }

    fn matrix(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let store = form.opcode() == "stmatrix";
        let shape = form.take("sync") & form.take("aligned") & form.take("m8n8");
        let count = match form.take_one(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            Some(_) => 4,
            None => return Ok(None),
        };
        let transposed = form.take("trans");
        if !shape || form.types() != [Type::B16] {
            return Ok(None);
        }
        self.expect_operands(form, 2..=2)?;
        let (value, place) = if store { (1, 0) } else { (0, 1) };
        let Some((space, address)) = self.location(form, &form.operands()[place])? else { return Ok(None) };
        if !matches!(space, MemorySpace::Generic | MemorySpace::Named(Space::Shared)) {
            return Ok(None);
        }
        let list = match &form.operands()[value] {
            Operand::Vector(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        if list.len() != count {
            return Err(self.fail(form.instruction, "wrong number of registers"));
        }
        let mut registers = Vec::new();
        for operand in list {
            registers.push(if store { self.src32(form, operand, Type::B32)? } else { self.dst32(form, operand)? });
        }
        Ok(Some(Op::Matrix(Box::new(MatrixMove { address, space, registers, transposed, store }))))
    }

    fn movmatrix(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let shape = form.take("sync") & form.take("aligned") & form.take("m8n8") & form.take("trans");
        if !shape || form.types() != [Type::B16] {
            return Ok(None);
        }
        self.expect_operands(form, 2..=2)?;
        let a = self.src32(form, &form.operands()[1], Type::B32)?;
        Ok(Some(Op::MoveMatrix(self.dst32(form, &form.operands()[0])?, a)))
    }
}
