//! Parses a module: directives, variables with initialisers, function headers. Bodies are in `function.rs`.

use std::collections::{HashMap, HashSet};

use super::ast::{Bounds, Function, Initial, Module, Storage, Type, Variable, VariableId};
use super::function::parse_body;
use super::lexer::{Kind, Token, tokens};
use crate::address::Space;
use crate::error::{Error, Result};

/// Nested blocks and lists deeper than this are refused, so that no text can exhaust the stack.
pub(super) const DEPTH_MAX: u32 = 64;
/// No variable is larger than this.
const VARIABLE_BYTES_MAX: u64 = 1 << 34;

/// Token stream with one token of look-ahead.
pub(super) struct Parser<'a> {
    pub file: &'a str,
    pub text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
    pub module_variables: HashMap<String, u32>,
    /// Names of functions declared so far.
    pub functions: HashSet<String>,
}

/// Parses the text of a PTX file; `file` names it in messages.
///
/// # Errors
/// [`Error::Ptx`] with file, line and what was expected.
pub fn parse(file: &str, text: &str) -> Result<Module> {
    let (module_variables, functions) = Default::default();
    let mut parser = Parser { file, text, tokens: tokens(file, text)?, at: 0, module_variables, functions };
    let mut module = Module { file: file.to_string(), ..Module::default() };
    loop {
        match parser.kind() {
            Kind::End => break,
            Kind::Dot(_) => parser.module_item(&mut module)?,
            Kind::Mark(';') => parser.advance(),
            _ => return Err(parser.unexpected("a directive")),
        }
    }
    if module.target.is_empty() {
        return Err(parser.error(1, "no .target: not a PTX file"));
    }
    Ok(module)
}

impl<'a> Parser<'a> {
    pub fn error(&self, line: u32, message: impl Into<String>) -> Error {
        Error::Ptx { file: self.file.to_string(), line, message: message.into() }
    }

    pub fn token(&self) -> &Token<'a> {
        &self.tokens[self.at]
    }

    pub fn kind(&self) -> Kind<'a> {
        self.tokens[self.at].kind.clone()
    }

    pub fn ahead(&self, by: usize) -> &Kind<'a> {
        &self.tokens[(self.at + by).min(self.tokens.len() - 1)].kind
    }

    pub fn line(&self) -> u32 {
        self.token().line
    }

    pub fn advance(&mut self) {
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
    }

    pub fn previous_end(&self) -> usize {
        self.tokens[self.at.saturating_sub(1)].end
    }

    pub fn unexpected(&self, wanted: &str) -> Error {
        let token = self.token();
        let found = if token.kind == Kind::End { "the end of the file" } else { &self.text[token.start..token.end] };
        self.error(token.line, format!("expected {wanted}, found {found:?}"))
    }

    pub fn accept(&mut self, mark: char) -> bool {
        let hit = self.token().kind == Kind::Mark(mark);
        if hit {
            self.advance();
        }
        hit
    }

    pub fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) { Ok(()) } else { Err(self.unexpected(&format!("'{mark}'"))) }
    }

    pub fn accept_dot(&mut self, word: &str) -> bool {
        let hit = self.token().kind == Kind::Dot(word);
        if hit {
            self.advance();
        }
        hit
    }

    pub fn name(&mut self, what: &str) -> Result<&'a str> {
        let Kind::Name(name) = self.kind() else { return Err(self.unexpected(what)) };
        self.advance();
        Ok(name)
    }

    pub fn integer(&mut self) -> Result<u64> {
        let negative = self.accept('-');
        let Kind::Integer(value) = self.kind() else { return Err(self.unexpected("an integer")) };
        self.advance();
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    pub fn small(&mut self) -> Result<u32> {
        let line = self.line();
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| self.error(line, format!("{value} is too large here")))
    }

    fn module_item(&mut self, module: &mut Module) -> Result<()> {
        let Kind::Dot(word) = self.kind() else { return Err(self.unexpected("a directive")) };
        match word {
            "version" => self.version(module),
            "target" => self.target(module),
            "address_size" => {
                self.advance();
                let line = self.line();
                if self.integer()? == 64 {
                    Ok(())
                } else {
                    Err(self.error(line, "only 64-bit addresses are supported"))
                }
            }
            "file" => self.source_file(module),
            "section" => self.section(),
            "pragma" | "alias" => self.skip_statement(),
            "loc" => self.location().map(drop),
            _ => self.declaration(module),
        }
    }

    fn version(&mut self, module: &mut Module) -> Result<()> {
        self.advance();
        let line = self.line();
        let version = match self.kind() {
            Kind::Float64(bits) => (f64::from_bits(bits) * 10.0).round() as u32,
            Kind::Integer(major) => (major as u32).saturating_mul(10),
            _ => return Err(self.unexpected("a version")),
        };
        self.advance();
        if !(60..=99).contains(&version) {
            return Err(self.error(line, format!("PTX version {}.{} is not supported", version / 10, version % 10)));
        }
        module.version = version;
        Ok(())
    }

    fn target(&mut self, module: &mut Module) -> Result<()> {
        self.advance();
        module.target = self.name("a target")?.to_string();
        while self.accept(',') {
            self.name("a target option")?;
        }
        Ok(())
    }

    fn source_file(&mut self, module: &mut Module) -> Result<()> {
        self.advance();
        let index = self.small()?;
        let Kind::Text(path) = self.kind() else { return Err(self.unexpected("a file name")) };
        self.advance();
        while self.accept(',') {
            self.integer()?;
        }
        module.files.insert(index, path.to_string());
        Ok(())
    }

    /// `.section .debug_x { ... }`: debug data, skipped.
    fn section(&mut self) -> Result<()> {
        let line = self.line();
        self.advance();
        while !matches!(self.kind(), Kind::Mark('{') | Kind::End) {
            self.advance();
        }
        self.expect('{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.kind() {
                Kind::Mark('{') => depth += 1,
                Kind::Mark('}') => depth -= 1,
                Kind::End => return Err(self.error(line, "section without an end")),
                _ => {}
            }
            self.advance();
        }
        Ok(())
    }

    pub fn skip_statement(&mut self) -> Result<()> {
        let line = self.line();
        loop {
            match self.kind() {
                Kind::Mark(';') => break,
                Kind::End => return Err(self.error(line, "directive without ';'")),
                _ => self.advance(),
            }
        }
        self.advance();
        Ok(())
    }

    /// `.loc file line column[, function_name label[+n], inlined_at file line column]`; gives (file, line).
    pub fn location(&mut self) -> Result<(u32, u32)> {
        self.advance();
        let (file, line) = (self.small()?, self.small()?);
        self.small()?;
        if self.accept(',') {
            self.name("function_name")?;
            self.name("a label")?;
            if self.accept('+') {
                self.integer()?;
            }
            self.expect(',')?;
            self.name("inlined_at")?;
            for _ in 0..3 {
                self.integer()?;
            }
        }
        Ok((file, line))
    }

    /// A variable or function, with its linking directives.
    fn declaration(&mut self, module: &mut Module) -> Result<()> {
        let mut external = false;
        loop {
            let Kind::Dot(word) = self.kind() else { return Err(self.unexpected("a declaration")) };
            match word {
                "extern" => external = true,
                "visible" | "weak" | "common" => {}
                "entry" | "func" => return self.function(module),
                "global" | "const" | "shared" => {
                    let variables = self.variables(external)?;
                    for variable in variables {
                        self.add_module_variable(module, variable)?;
                    }
                    return Ok(());
                }
                _ => return Err(self.unexpected("a known directive")),
            }
            self.advance();
        }
    }

    fn add_module_variable(&mut self, module: &mut Module, variable: Variable) -> Result<()> {
        if let Some(&index) = self.module_variables.get(&variable.name) {
            let known = &mut module.variables[index as usize];
            if !known.external && !variable.external {
                return Err(self.error(variable.line, format!("{} is declared twice", variable.name)));
            }
            if known.external {
                *known = variable;
            }
            return Ok(());
        }
        self.module_variables.insert(variable.name.clone(), module.variables.len() as u32);
        module.variables.push(variable);
        Ok(())
    }

    /// `.space [.align n] [.vN] .type name[dims] [= initial] {, name...};`
    pub fn variables(&mut self, external: bool) -> Result<Vec<Variable>> {
        let line = self.line();
        let space = match self.kind() {
            Kind::Dot("global") => Space::Global,
            Kind::Dot("const") => Space::Const,
            Kind::Dot("shared" | "shared::cta") => Space::Shared,
            Kind::Dot("local") => Space::Local,
            Kind::Dot("param") => Space::Param,
            _ => return Err(self.unexpected("a state space")),
        };
        self.advance();
        let (ty, vector, align) = self.variable_type()?;
        let mut out = Vec::new();
        loop {
            let mut variable = self.declarator(space, ty, vector, align, line)?;
            variable.external = external;
            variable.storage.dynamic = space == Space::Shared && external && variable.elements == 0;
            if self.accept('=') {
                if !matches!(space, Space::Global | Space::Const) {
                    return Err(self.error(line, format!("{} cannot have an initial value", variable.name)));
                }
                self.initial(&mut variable.initial, 0)?;
                if variable.elements == 0 {
                    variable.elements = variable.initial.len() as u64;
                }
                if variable.initial.len() as u64 > variable.elements {
                    return Err(self.error(line, format!("too many initial values for {}", variable.name)));
                }
            }
            out.push(variable);
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(out)
    }

    /// Type with `.align` and `.vN` before it, in any order.
    fn variable_type(&mut self) -> Result<(Type, u64, Option<u32>)> {
        let (mut vector, mut align) = (1, None);
        loop {
            let Kind::Dot(word) = self.kind() else { return Err(self.unexpected("a type")) };
            let line = self.line();
            self.advance();
            match word {
                "align" => {
                    let value = self.small()?;
                    if !value.is_power_of_two() || value > 1 << 16 {
                        return Err(self.error(line, format!("bad alignment {value}")));
                    }
                    align = Some(value);
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                "attribute" | "managed" | "ptr" | "global" | "shared" | "const" | "local" => {}
                _ => match Type::parse(word) {
                    Some(ty) => return Ok((ty, vector, align)),
                    None => return Err(self.error(line, format!("unknown type .{word}"))),
                },
            }
        }
    }

    fn declarator(&mut self, space: Space, ty: Type, vector: u64, align: Option<u32>, line: u32) -> Result<Variable> {
        let name = self.name("a variable's name")?.to_string();
        let mut elements = vector;
        while self.accept('[') {
            let length = if matches!(self.kind(), Kind::Mark(']')) { 0 } else { self.integer()? };
            elements = elements.checked_mul(length).ok_or_else(|| self.error(line, format!("{name} is too large")))?;
            self.expect(']')?;
        }
        let align = align.unwrap_or(ty.bytes().max(1) * vector as u32);
        let storage = Storage { space, dynamic: false };
        let variable = Variable { name, storage, ty, elements, align, initial: Vec::new(), external: false, line };
        if variable.bytes() > VARIABLE_BYTES_MAX {
            return Err(self.error(line, format!("{} is too large", variable.name)));
        }
        Ok(variable)
    }

    fn initial(&mut self, out: &mut Vec<Initial>, depth: u32) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.error(self.line(), "initial values are nested too deeply"));
        }
        if self.accept('{') {
            while !self.accept('}') {
                self.initial(out, depth + 1)?;
                if !self.accept(',') {
                    self.expect('}')?;
                    break;
                }
            }
            return Ok(());
        }
        let negative = self.accept('-');
        let value = match self.kind() {
            Kind::Integer(value) => Initial::Bits(if negative { value.wrapping_neg() } else { value }),
            Kind::Float32(bits) => Initial::Bits(bits as u64 ^ (negative as u64) << 31),
            Kind::Float64(bits) => Initial::Bits(bits ^ (negative as u64) << 63),
            Kind::Name("generic") => {
                self.advance();
                self.expect('(')?;
                let name = self.name("a variable")?.to_string();
                self.expect(')')?;
                out.push(self.initial_address(name)?);
                return Ok(());
            }
            Kind::Name(name) => {
                self.advance();
                out.push(self.initial_address(name.to_string())?);
                return Ok(());
            }
            _ => return Err(self.unexpected("an initial value")),
        };
        self.advance();
        out.push(value);
        Ok(())
    }

    fn initial_address(&mut self, name: String) -> Result<Initial> {
        let offset = if self.accept('+') { self.integer()? as i64 } else { 0 };
        Ok(Initial::Address(name, offset))
    }

    fn function(&mut self, module: &mut Module) -> Result<()> {
        let line = self.line();
        let entry = self.token().kind == Kind::Dot("entry");
        self.advance();
        let mut function = Function {
            name: String::new(),
            entry,
            results: Vec::new(),
            params: Vec::new(),
            registers: Vec::new(),
            variables: Vec::new(),
            labels: Vec::new(),
            branch_tables: Default::default(),
            body: None,
            bounds: Bounds::default(),
            line,
        };
        if !entry && self.accept('(') {
            function.results = self.params(&mut function.variables)?;
        }
        function.name = self.name("a function's name")?.to_string();
        self.functions.insert(function.name.clone());
        if self.accept('(') {
            function.params = self.params(&mut function.variables)?;
        }
        self.function_directives(&mut function.bounds)?;
        if self.accept(';') {
            if module.function(&function.name).is_none() {
                module.functions.push(function);
            }
            return Ok(());
        }
        parse_body(self, &mut function)?;
        match module.functions.iter_mut().find(|known| known.name == function.name) {
            Some(known) if known.body.is_none() => *known = function,
            Some(_) => return Err(self.error(line, format!("{} is defined twice", function.name))),
            None => module.functions.push(function),
        }
        Ok(())
    }

    /// Parameters up to the closing parenthesis, appended to `variables`; gives their indices.
    fn params(&mut self, variables: &mut Vec<Variable>) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        if self.accept(')') {
            return Ok(out);
        }
        loop {
            let line = self.line();
            if !self.accept_dot("param") {
                return Err(self.unexpected("'.param'"));
            }
            let (ty, vector, align) = self.variable_type()?;
            self.pointer_attributes()?;
            let variable = self.declarator(Space::Param, ty, vector, align, line)?;
            out.push(variables.len() as u32);
            variables.push(variable);
            if !self.accept(',') {
                break;
            }
        }
        self.expect(')')?;
        Ok(out)
    }

    /// `.ptr .space .align n` after a parameter's type: says what the pointer points to, not what the parameter is.
    fn pointer_attributes(&mut self) -> Result<()> {
        while let Kind::Dot(word) = self.kind() {
            if !matches!(word, "ptr" | "global" | "shared" | "const" | "local" | "align") {
                return Err(self.unexpected("a parameter's name"));
            }
            self.advance();
            if word == "align" {
                self.small()?;
            }
        }
        Ok(())
    }

    fn function_directives(&mut self, bounds: &mut Bounds) -> Result<()> {
        while let Kind::Dot(word) = self.kind() {
            let line = self.line();
            self.advance();
            match word {
                "maxntid" => {
                    let threads = self.dimensions()?.iter().map(|&n| n as u64).product::<u64>();
                    bounds.threads_max = Some(threads.min(u32::MAX as u64) as u32);
                }
                "reqntid" => bounds.threads_required = Some(self.dimensions()?),
                "minnctapersm" => bounds.ctas_per_sm_min = Some(self.small()?),
                "maxnreg" => bounds.registers_max = Some(self.small()?),
                "reqnctapercluster" => bounds.cluster_required = Some(self.dimensions()?),
                "maxclusterrank" | "maxnctapersm" => {
                    self.small()?;
                }
                "explicitcluster" => bounds.cluster_explicit = true,
                "noreturn" | "blocksareclusters" => {}
                "pragma" => self.skip_statement()?,
                _ => return Err(self.error(line, format!("unknown directive .{word}"))),
            }
        }
        Ok(())
    }

    fn dimensions(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        out[0] = self.small()?;
        for slot in &mut out[1..] {
            if !self.accept(',') {
                break;
            }
            *slot = self.small()?;
        }
        Ok(out)
    }
}

/// Finds a module variable by name.
pub(super) fn module_variable(parser: &Parser, name: &str) -> Option<VariableId> {
    parser.module_variables.get(name).map(|&index| VariableId::Module(index))
}
