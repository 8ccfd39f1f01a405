//! Parses a function's body: nested scopes with shadowing, registers, labels, instructions and their operands.

use std::collections::HashMap;

use super::ast::{
    Base, Function, Instruction, LabelId, Location, Operand, Register, RegisterId, Type, Variable, VariableId,
};
use super::lexer::Kind;
use super::parser::{DEPTH_MAX, Parser, module_variable};
use crate::error::Result;

/// A function may declare this many registers (ptxas gives up long before).
const REGISTERS_MAX: usize = 1 << 17;

#[derive(Clone, Copy)]
enum Symbol {
    Register(RegisterId),
    /// Two registers of 64 bits that a `.b128` register is made of: this one and the next.
    Pair(RegisterId),
    Variable(u32),
}

/// Names of one `{ }`.
struct Scope {
    parent: Option<usize>,
    symbols: HashMap<String, Symbol>,
    /// Labels defined here.
    labels: HashMap<String, LabelId>,
}

struct Body<'p, 'a> {
    parser: &'p mut Parser<'a>,
    function: &'p mut Function,
    scopes: Vec<Scope>,
    current: usize,
    depth: u32,
    instructions: Vec<Instruction>,
    location: Option<Location>,
    /// The instruction being parsed is a call: bare names are functions.
    in_call: bool,
    /// Uses of labels: (scope of the use, name, line), by provisional id; resolved at the end.
    references: Vec<(usize, String, u32)>,
    /// Where each defined label stands.
    positions: Vec<u32>,
}

/// Parses `{ ... }` into `function.body`.
pub(super) fn parse_body(parser: &mut Parser, function: &mut Function) -> Result<()> {
    let mut symbols = HashMap::new();
    for (index, variable) in function.variables.iter().enumerate() {
        symbols.insert(variable.name.clone(), Symbol::Variable(index as u32));
    }
    let scopes = vec![Scope { parent: None, symbols, labels: HashMap::new() }];
    let mut body = Body {
        parser,
        function,
        scopes,
        current: 0,
        depth: 0,
        instructions: Vec::new(),
        location: None,
        in_call: false,
        references: Vec::new(),
        positions: Vec::new(),
    };
    body.block()?;
    body.resolve_labels()?;
    let instructions = std::mem::take(&mut body.instructions);
    function.body = Some(instructions);
    Ok(())
}

impl<'a> Body<'_, 'a> {
    fn block(&mut self) -> Result<()> {
        let line = self.parser.line();
        self.parser.expect('{')?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.parser.error(line, "blocks are nested too deeply"));
        }
        let outer = self.current;
        self.current = self.scopes.len();
        self.scopes.push(Scope { parent: Some(outer), symbols: HashMap::new(), labels: HashMap::new() });
        loop {
            match self.parser.kind() {
                Kind::Mark('}') => break,
                Kind::Mark('{') => self.block()?,
                Kind::Mark(';') => self.parser.advance(),
                Kind::Dot(word) => self.directive(word)?,
                Kind::Name(name) if *self.parser.ahead(1) == Kind::Mark(':') => self.label(name)?,
                Kind::Name(_) | Kind::Mark('@') => self.instruction()?,
                Kind::End => return Err(self.parser.error(line, "block without '}'")),
                _ => return Err(self.parser.unexpected("an instruction")),
            }
        }
        self.parser.advance();
        self.current = outer;
        self.depth -= 1;
        Ok(())
    }

    fn directive(&mut self, word: &str) -> Result<()> {
        match word {
            "reg" => self.registers(),
            "local" | "shared" | "param" | "global" | "const" => {
                for variable in self.parser.variables(false)? {
                    self.declare_variable(variable)?;
                }
                Ok(())
            }
            "loc" => {
                let (file, line) = self.parser.location()?;
                // Line 0 marks code without a source line: the one before stays.
                if line > 0 {
                    self.location = Some(Location { file, line });
                }
                Ok(())
            }
            "pragma" => self.parser.skip_statement(),
            _ => Err(self.parser.unexpected("a known directive")),
        }
    }

    fn declare_variable(&mut self, variable: Variable) -> Result<()> {
        let index = self.function.variables.len() as u32;
        let (name, line) = (variable.name.clone(), variable.line);
        self.function.variables.push(variable);
        self.declare(name, Symbol::Variable(index), line)
    }

    fn declare(&mut self, name: String, symbol: Symbol, line: u32) -> Result<()> {
        let symbols = &mut self.scopes[self.current].symbols;
        if symbols.contains_key(&name) {
            return Err(self.parser.error(line, format!("{name} is declared twice in one scope")));
        }
        symbols.insert(name, symbol);
        Ok(())
    }

    /// `.reg .type a, b<n>;`
    fn registers(&mut self) -> Result<()> {
        self.parser.advance();
        let line = self.parser.line();
        let Kind::Dot(word) = self.parser.kind() else { return Err(self.parser.unexpected("a register type")) };
        let Some(ty) = Type::parse(word) else {
            return Err(self.parser.error(line, format!("registers of type .{word} are not supported")));
        };
        self.parser.advance();
        loop {
            let name = self.parser.name("a register's name")?;
            if self.parser.accept('<') {
                let count = self.parser.small()?;
                self.parser.expect('>')?;
                for index in 0..count {
                    self.declare_register(format!("{name}{index}"), ty, line)?;
                }
            } else {
                self.declare_register(name.to_string(), ty, line)?;
            }
            if !self.parser.accept(',') {
                break;
            }
        }
        self.parser.expect(';')
    }

    fn declare_register(&mut self, name: String, ty: Type, line: u32) -> Result<()> {
        if self.function.registers.len() >= REGISTERS_MAX {
            return Err(self.parser.error(line, format!("more than {REGISTERS_MAX} registers")));
        }
        let register = RegisterId(self.function.registers.len() as u32);
        if ty == Type::B128 {
            for half in ["low", "high"] {
                self.function.registers.push(Register { name: format!("{name}.{half}"), ty: Type::B64 });
            }
            return self.declare(name, Symbol::Pair(register), line);
        }
        self.function.registers.push(Register { name: name.clone(), ty });
        self.declare(name, Symbol::Register(register), line)
    }

    fn label(&mut self, name: &str) -> Result<()> {
        let line = self.parser.line();
        self.parser.advance();
        self.parser.advance();
        let label = LabelId(self.positions.len() as u32);
        self.positions.push(self.instructions.len() as u32);
        if self.scopes[self.current].labels.insert(name.to_string(), label).is_some() {
            return Err(self.parser.error(line, format!("label {name} is defined twice in one scope")));
        }
        if matches!(self.parser.kind(), Kind::Dot("branchtargets")) {
            self.parser.advance();
            let mut targets = Vec::new();
            loop {
                let target = self.parser.name("a label")?.to_string();
                targets.push(self.reference(target));
                if !self.parser.accept(',') {
                    break;
                }
            }
            self.parser.expect(';')?;
            self.function.branch_tables.insert(label.0, targets);
        } else if matches!(self.parser.kind(), Kind::Dot("callprototype" | "calltargets")) {
            self.parser.skip_statement()?;
        }
        Ok(())
    }

    fn reference(&mut self, name: String) -> LabelId {
        let id = LabelId(self.references.len() as u32);
        self.references.push((self.current, name, self.parser.line()));
        id
    }

    fn find<T: Copy>(&self, mut scope: usize, get: impl Fn(&Scope) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = get(&self.scopes[scope]) {
                return Some(found);
            }
            scope = self.scopes[scope].parent?;
        }
    }

    fn lookup(&self, name: &str) -> Option<Symbol> {
        self.find(self.current, |scope| scope.symbols.get(name).copied())
    }

    /// Replaces provisional label ids by definitions: `Function::labels[reference]` is the position it stands for.
    fn resolve_labels(&mut self) -> Result<()> {
        let references = std::mem::take(&mut self.references);
        let mut definitions = Vec::with_capacity(references.len());
        for (scope, name, line) in &references {
            let Some(definition) = self.find(*scope, |scope| scope.labels.get(name).copied()) else {
                return Err(self.parser.error(*line, format!("unknown name {name}")));
            };
            definitions.push(definition);
        }
        self.function.labels = definitions.iter().map(|definition| self.positions[definition.0 as usize]).collect();
        // Tables were entered under the id of their definition; instructions know them by reference.
        let tables = std::mem::take(&mut self.function.branch_tables);
        for (reference, definition) in definitions.iter().enumerate() {
            if let Some(targets) = tables.get(&definition.0) {
                self.function.branch_tables.insert(reference as u32, targets.clone());
            }
        }
        Ok(())
    }

    fn instruction(&mut self) -> Result<()> {
        let (start, line) = (self.parser.token().start, self.parser.line());
        let mut guard = None;
        if self.parser.accept('@') {
            let negated = self.parser.accept('!');
            let name = self.parser.name("a predicate")?;
            match self.lookup(name) {
                Some(Symbol::Register(register)) if self.function.registers[register.0 as usize].ty == Type::Pred => {
                    guard = Some((register, negated));
                }
                _ => return Err(self.parser.error(line, format!("{name} is not a predicate"))),
            }
        }
        let opcode = self.parser.name("an opcode")?.to_string();
        self.in_call = opcode == "call";
        let mut modifiers = Vec::new();
        while let Kind::Dot(word) = self.parser.kind() {
            modifiers.push(word.to_string());
            self.parser.advance();
        }
        let mut operands = Vec::new();
        if !matches!(self.parser.kind(), Kind::Mark(';')) {
            loop {
                operands.push(self.operand(0)?);
                if !self.parser.accept(',') {
                    break;
                }
            }
        }
        self.parser.expect(';')?;
        let text = &self.parser.text[start..self.parser.previous_end()];
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.instructions.push(Instruction { guard, opcode, modifiers, operands, line, location: self.location, text });
        Ok(())
    }

    fn operand(&mut self, depth: u32) -> Result<Operand> {
        let line = self.parser.line();
        if depth > DEPTH_MAX {
            return Err(self.parser.error(line, "operands are nested too deeply"));
        }
        let first = match self.parser.kind() {
            Kind::Mark('{') => {
                self.parser.advance();
                Operand::Vector(self.operands_until('}', depth)?)
            }
            Kind::Mark('(') => {
                self.parser.advance();
                Operand::List(self.operands_until(')', depth)?)
            }
            Kind::Mark('[') => self.address(depth)?,
            Kind::Mark('!') => {
                self.parser.advance();
                match self.operand(depth + 1)? {
                    Operand::Register { register, negated } => Operand::Register { register, negated: !negated },
                    _ => return Err(self.parser.error(line, "'!' needs a predicate")),
                }
            }
            Kind::Mark('-') => {
                self.parser.advance();
                match self.literal()? {
                    Operand::Integer(value) => Operand::Integer(value.wrapping_neg()),
                    Operand::Float32(bits) => Operand::Float32(bits ^ 1 << 31),
                    Operand::Float64(bits) => Operand::Float64(bits ^ 1 << 63),
                    _ => return Err(self.parser.unexpected("a number")),
                }
            }
            Kind::Integer(_) | Kind::Float32(_) | Kind::Float64(_) => self.literal()?,
            Kind::Name(name) => self.named(name)?,
            _ => return Err(self.parser.unexpected("an operand")),
        };
        if self.parser.accept('|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn operands_until(&mut self, end: char, depth: u32) -> Result<Vec<Operand>> {
        let mut out = Vec::new();
        if self.parser.accept(end) {
            return Ok(out);
        }
        loop {
            out.push(self.operand(depth + 1)?);
            if !self.parser.accept(',') {
                self.parser.expect(end)?;
                return Ok(out);
            }
        }
    }

    fn literal(&mut self) -> Result<Operand> {
        let operand = match self.parser.kind() {
            Kind::Integer(value) => Operand::Integer(value),
            Kind::Float32(bits) => Operand::Float32(bits),
            Kind::Float64(bits) => Operand::Float64(bits),
            _ => return Err(self.parser.unexpected("a number")),
        };
        self.parser.advance();
        Ok(operand)
    }

    fn named(&mut self, name: &'a str) -> Result<Operand> {
        self.parser.advance();
        if name == "_" {
            return Ok(Operand::Sink);
        }
        match self.lookup(name) {
            Some(Symbol::Register(register)) => return Ok(Operand::Register { register, negated: false }),
            Some(Symbol::Pair(low)) => {
                let half = |by: u32| Operand::Register { register: RegisterId(low.0 + by), negated: false };
                return Ok(Operand::Vector(vec![half(0), half(1)]));
            }
            Some(Symbol::Variable(index)) => {
                let offset = self.offset()?;
                return Ok(Operand::Variable(VariableId::Function(index), offset));
            }
            None => {}
        }
        if let Some(variable) = module_variable(self.parser, name) {
            let offset = self.offset()?;
            return Ok(Operand::Variable(variable, offset));
        }
        if let Some(special) = name.strip_prefix('%') {
            if matches!(special, "WARP_SZ") {
                return Ok(Operand::Integer(32));
            }
            let mut full = special.to_string();
            if let Kind::Dot(component @ ("x" | "y" | "z" | "w")) = self.parser.kind() {
                self.parser.advance();
                full.push('.');
                full.push_str(component);
            }
            return Ok(Operand::Special(full));
        }
        if name == "WARP_SZ" {
            return Ok(Operand::Integer(32));
        }
        // A name that is neither declared nor special is a function, a prototype (call) or a label (bra).
        if self.in_call || self.parser.functions.contains(name) {
            return Ok(Operand::Function(name.to_string()));
        }
        Ok(Operand::Label(self.reference(name.to_string())))
    }

    fn offset(&mut self) -> Result<i64> {
        if self.parser.accept('+') {
            return Ok(self.parser.integer()? as i64);
        }
        if matches!(self.parser.kind(), Kind::Mark('-')) {
            return Ok(self.parser.integer()? as i64);
        }
        Ok(0)
    }

    fn address(&mut self, depth: u32) -> Result<Operand> {
        self.parser.expect('[')?;
        let line = self.parser.line();
        let (base, offset) = match self.parser.kind() {
            Kind::Name(name) => {
                self.parser.advance();
                let base = match self.lookup(name) {
                    Some(Symbol::Register(register)) => Base::Register(register),
                    Some(Symbol::Variable(index)) => Base::Variable(VariableId::Function(index)),
                    Some(Symbol::Pair(_)) => return Err(self.parser.error(line, format!("{name} is no address"))),
                    None => match module_variable(self.parser, name) {
                        Some(variable) => Base::Variable(variable),
                        None => return Err(self.parser.error(line, format!("unknown name {name}"))),
                    },
                };
                (base, self.offset()?)
            }
            _ => (Base::Zero, self.parser.integer()? as i64),
        };
        if self.parser.accept(',') {
            let coordinates = match self.operand(depth + 1)? {
                Operand::Vector(coordinates) => coordinates,
                _ => return Err(self.parser.error(line, "tensor coordinates must be a vector")),
            };
            self.parser.expect(']')?;
            return Ok(Operand::TensorAddress(base, offset, coordinates));
        }
        self.parser.expect(']')?;
        Ok(Operand::Address(base, offset))
    }
}
