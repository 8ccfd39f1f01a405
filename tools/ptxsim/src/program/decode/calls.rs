//! Decodes calls, direct and through pointers, and the instructions that grow the stack.

use super::Decoder;
use super::form::{Decoded, Form};
use crate::address::Space;
use crate::error::Result;
use crate::front::ast::{Operand, Type, VariableId};
use crate::program::op::{Call, CallTarget, Op};

/// What the runtime of the device brings along.
fn builtin(name: &str) -> Option<CallTarget> {
    Some(match name {
        "vprintf" => CallTarget::Vprintf,
        "__assertfail" => CallTarget::AssertFail,
        "malloc" => CallTarget::Malloc,
        "free" => CallTarget::Free,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn call(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        form.take("uni");
        let (results, rest) = match form.operands() {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (target, arguments) = match rest {
            [target @ Operand::Function(_)] => (target, &[][..]),
            [target @ Operand::Function(_), Operand::List(arguments)] => (target, arguments.as_slice()),
            // The prototype says what the arguments' variables say, too.
            [target @ Operand::Register { .. }, Operand::Function(_)] => (target, &[][..]),
            [target @ Operand::Register { .. }, Operand::List(arguments), Operand::Function(_)] => {
                (target, arguments.as_slice())
            }
            _ => return Ok(None),
        };
        let (here_arguments, here_results) = (self.actuals(form, arguments)?, self.actuals(form, results)?);
        let Operand::Function(name) = target else {
            let target = CallTarget::Indirect(self.src64(form, target, Type::B64)?);
            let open = |list: Vec<(u32, u32)>| list.into_iter().map(|(from, bytes)| (from, 0, bytes)).collect();
            let (arguments, results) = (open(here_arguments), open(here_results));
            return Ok(Some(Op::Call(Box::new(Call { target, arguments, results }))));
        };
        let Some(callee) = self.module.function(name) else {
            return Err(self.fail(form.instruction, &format!("unknown name {name}")));
        };
        let target = match (builtin(name), self.layout.functions.get(name)) {
            (Some(builtin), _) if callee.body.is_none() => builtin,
            (_, Some(&index)) if callee.body.is_some() => CallTarget::Function(index),
            _ => return Err(self.fail(form.instruction, &format!("{name} has no body"))),
        };
        let arguments = self.matched(form, name, &here_arguments, &callee.params)?;
        let results = self.matched(form, name, &here_results, &callee.results)?;
        Ok(Some(Op::Call(Box::new(Call { target, arguments, results }))))
    }

    /// (offset in the frame, bytes) of the `.param` variables that a call names.
    fn actuals(&self, form: &Form<'a>, operands: &[Operand]) -> Result<Vec<(u32, u32)>> {
        let mut out = Vec::new();
        for operand in operands {
            let Operand::Variable(VariableId::Function(index), 0) = operand else {
                return Err(self.fail(form.instruction, "an argument must be a .param variable"));
            };
            let variable = &self.function.variables[*index as usize];
            let place = self.layout.param.get(&(self.function.name.clone(), *index));
            match (variable.storage.space, place) {
                (Space::Param, Some(place)) => out.push((*place, variable.bytes() as u32)),
                _ => return Err(self.fail(form.instruction, "an argument has no address")),
            }
        }
        Ok(out)
    }

    /// Arguments beside the parameters of a function: (offset here, offset there, bytes).
    fn matched(
        &self,
        form: &Form<'a>,
        name: &str,
        here: &[(u32, u32)],
        formals: &[u32],
    ) -> Result<Vec<(u32, u32, u32)>> {
        let callee = self.module.function(name);
        if here.len() != formals.len() {
            return Err(self.fail(form.instruction, "wrong number of arguments"));
        }
        let mut out = Vec::new();
        for (&(from, bytes), formal) in here.iter().zip(formals) {
            let there = callee.map_or(0, |callee| callee.variables[*formal as usize].bytes());
            let to = self.layout.param.get(&(name.to_string(), *formal));
            match to {
                Some(to) if there == u64::from(bytes) => out.push((from, *to, bytes)),
                _ => return Err(self.fail(form.instruction, "an argument does not fit its parameter")),
            }
        }
        Ok(out)
    }

    /// `alloca`, `stacksave`, `stackrestore`.
    pub(super) fn stack(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        let types = form.types();
        let [ty @ (Type::U32 | Type::U64)] = types[..] else { return Ok(None) };
        match (form.opcode(), form.operands()) {
            ("alloca", [d, size]) => {
                let size = self.any_src(form, size, ty)?;
                Ok(Some(Op::Alloca(self.any_dst(form, d)?, size, 8)))
            }
            ("alloca", [d, size, Operand::Integer(align)]) if align.is_power_of_two() && *align <= 4096 => {
                let size = self.any_src(form, size, ty)?;
                Ok(Some(Op::Alloca(self.any_dst(form, d)?, size, *align as u32)))
            }
            ("stacksave", [d]) => Ok(Some(Op::StackSave(self.any_dst(form, d)?))),
            ("stackrestore", [a]) => Ok(Some(Op::StackRestore(self.any_src(form, a, ty)?))),
            _ => Ok(None),
        }
    }
}
