//! The modifiers of an instruction as a set: decoders take what they know, and what is left over is unsupported.

use crate::error::Result;
use crate::event::{Scope, Semantics};
use crate::front::ast::{Instruction, Operand, Type};
use crate::scalar::round::Rounding;

/// An instruction while it is decoded.
pub struct Form<'a> {
    /// As parsed.
    pub instruction: &'a Instruction,
    modifiers: Vec<(&'a str, bool)>,
}

impl<'a> Form<'a> {
    /// Nothing taken yet.
    pub fn new(instruction: &'a Instruction) -> Form<'a> {
        let modifiers = instruction.modifiers.iter().map(|modifier| (modifier.as_str(), false)).collect();
        Form { instruction, modifiers }
    }

    /// The opcode.
    pub fn opcode(&self) -> &'a str {
        &self.instruction.opcode
    }

    /// Operands.
    pub fn operands(&self) -> &'a [Operand] {
        &self.instruction.operands
    }

    /// Whether a modifier is there, taken or not.
    pub fn has(&self, name: &str) -> bool {
        self.modifiers.iter().any(|(modifier, _)| *modifier == name)
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        let found = self.modifiers.iter_mut().find(|(modifier, used)| *modifier == name && !used);
        found.map(|(_, used)| *used = true).is_some()
    }

    /// Takes the first of these that is there.
    pub fn take_one(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.take(name))
    }

    /// Takes all modifiers for which `accept` gives something.
    pub fn take_map<T>(&mut self, accept: impl Fn(&'a str) -> Option<T>) -> Vec<T> {
        let mut out = Vec::new();
        for (modifier, used) in &mut self.modifiers {
            if !*used && let Some(value) = accept(modifier) {
                *used = true;
                out.push(value);
            }
        }
        out
    }

    /// Takes the types, in order.
    pub fn types(&mut self) -> Vec<Type> {
        self.take_map(Type::parse)
    }

    /// Takes a floating-point rounding.
    pub fn rounding(&mut self) -> Option<Rounding> {
        Some(match self.take_one(&["rn", "rz", "rm", "rp", "rna"])? {
            "rn" => Rounding::Nearest,
            "rz" => Rounding::Zero,
            "rm" => Rounding::Down,
            "rp" => Rounding::Up,
            _ => Rounding::NearestAway,
        })
    }

    /// Takes the order of an access or fence.
    pub fn semantics(&mut self) -> Option<Semantics> {
        let names = ["weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio"];
        Some(match self.take_one(&names)? {
            "weak" => Semantics::Weak,
            "relaxed" => Semantics::Relaxed,
            "acquire" => Semantics::Acquire,
            "release" => Semantics::Release,
            "acq_rel" => Semantics::AcqRel,
            "sc" => Semantics::SeqCst,
            _ => Semantics::Volatile,
        })
    }

    /// Takes a scope.
    pub fn scope(&mut self) -> Option<Scope> {
        Some(match self.take_one(&["cta", "cluster", "gpu", "gl", "sys"])? {
            "cta" => Scope::Cta,
            "cluster" => Scope::Cluster,
            "gpu" | "gl" => Scope::Gpu,
            _ => Scope::System,
        })
    }

    /// Takes hints that change nothing in a simulator: caches, prefetch sizes, eviction.
    pub fn hints(&mut self) {
        self.take_map(|modifier| {
            let known = ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "level::cache_hint"];
            let prefix = ["L1::", "L2::"];
            (known.contains(&modifier) || prefix.iter().any(|p| modifier.starts_with(p))).then_some(())
        });
    }

    /// Modifiers that nobody took.
    pub fn rest(&self) -> Vec<&'a str> {
        self.modifiers.iter().filter(|(_, used)| !used).map(|(modifier, _)| *modifier).collect()
    }
}

/// Result of a decoder: `None` when the form is not one that it knows.
pub type Decoded<T> = Result<Option<T>>;
