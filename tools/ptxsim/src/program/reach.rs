//! Which functions a program consists of, and the addresses that functions have as values.

use std::collections::BTreeSet;

use crate::address::FUNCTION_WINDOW;
use crate::front::ast::{Function, Initial, Instruction, Module, Operand};

/// Bytes between the addresses of two functions; nothing lies there.
const STRIDE: u64 = 16;

/// The address of a function of the module, as pointers to it hold it.
pub fn function_address(module: &Module, name: &str) -> Option<u64> {
    let index = module.functions.iter().position(|function| function.name == name)?;
    Some(FUNCTION_WINDOW + STRIDE * (index as u64 + 1))
}

fn calls(function: &Function) -> impl Iterator<Item = &Instruction> {
    function.body.iter().flatten().filter(|instruction| instruction.opcode == "call")
}

fn names(operands: &[Operand]) -> impl Iterator<Item = &str> {
    operands.iter().filter_map(|operand| match operand {
        Operand::Function(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Functions whose addresses the module takes: in code or in initial values.
fn taken(module: &Module) -> BTreeSet<&str> {
    let bodies = module.functions.iter().flat_map(|function| function.body.iter().flatten());
    let moved = bodies.filter(|instruction| instruction.opcode == "mov").flat_map(|mov| names(&mov.operands));
    let initial = module.variables.iter().flat_map(|variable| &variable.initial);
    let initial = initial.filter_map(|value| match value {
        Initial::Address(name, 0) => Some(name.as_str()),
        _ => None,
    });
    moved.chain(initial).collect()
}

/// The entry, then the functions with bodies that it may reach, in order of discovery. A call through a pointer reaches
/// every function whose address the module takes.
pub(super) fn reachable<'a>(module: &'a Module, entry: &'a Function) -> Vec<&'a Function> {
    let mut out = vec![entry];
    let mut at = 0;
    while at < out.len() {
        let indirect = calls(out[at]).any(|call| call.operands.iter().any(|o| matches!(o, Operand::Register { .. })));
        let by_pointer = if indirect { taken(module) } else { BTreeSet::new() };
        let called = calls(out[at]).flat_map(|call| names(&call.operands));
        let found: Vec<&str> = called.chain(by_pointer).collect();
        for name in found {
            if let Some(function) = module.function(name)
                && function.body.is_some()
                && !function.entry
                && !out.iter().any(|known| known.name == function.name)
            {
                out.push(function);
            }
        }
        at += 1;
    }
    out
}
