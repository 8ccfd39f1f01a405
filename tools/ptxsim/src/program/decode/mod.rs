//! Turns parsed instructions into operations: registers to slots, variables to addresses, literals to constants.
//!
//! A function is decoded twice: first to learn which registers every instruction reads and writes, then, once they are
//! coloured, with their slots. What no family knows is an error that names the instruction.

pub mod form;
mod arithmetic;
mod conversion;
mod calls;
mod control;
mod memory;
mod warp;
mod tensor;
mod tiles;
mod hopper;
mod maps;

use std::collections::HashMap;

use super::op::{Address, AddressBase, AnyDst, AnySrc, CONSTANT, Instr, NONE, Op, PredSrc};
use super::slots::{Class, Slots};
use crate::address::Space;
use crate::error::{Error, Result};
use crate::front::ast::{Base, Function, Instruction, LabelId, Module, Operand, RegisterId, Type, VariableId};
use crate::scalar::lanes::{L32, L64};
use form::{Decoded, Form};

/// Broadcast constants of a program.
#[derive(Clone, Debug, Default)]
pub struct Constants {
    /// 32-bit rows.
    pub narrow: Vec<L32>,
    /// 64-bit rows.
    pub wide: Vec<L64>,
    narrow_index: HashMap<u32, u16>,
    wide_index: HashMap<u64, u16>,
}

impl Constants {
    fn narrow(&mut self, value: u32) -> Option<u16> {
        if let Some(&row) = self.narrow_index.get(&value) {
            return Some(row);
        }
        let row = u16::try_from(self.narrow.len()).ok().filter(|row| *row < CONSTANT - 1)? | CONSTANT;
        self.narrow.push(L32([value; 32]));
        self.narrow_index.insert(value, row);
        Some(row)
    }

    fn wide(&mut self, value: u64) -> Option<u16> {
        if let Some(&row) = self.wide_index.get(&value) {
            return Some(row);
        }
        let row = u16::try_from(self.wide.len()).ok().filter(|row| *row < CONSTANT - 1)? | CONSTANT;
        self.wide.push(L64([value; 32]));
        self.wide_index.insert(value, row);
        Some(row)
    }
}

/// Where variables lie, for one entry and the functions that it reaches.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Device addresses of `.global` and `.const` variables of the module, by name.
    pub global: HashMap<String, u64>,
    /// Offsets of `.shared` variables: (function, or none for the module; index), and whether dynamic.
    pub shared: HashMap<(Option<String>, u32), (u32, bool)>,
    /// Offsets of a function's `.local` variables in its frame.
    pub local: HashMap<(String, u32), u32>,
    /// Offsets of parameters: in the entry's bank, or in a frame.
    pub param: HashMap<(String, u32), u32>,
    /// Index of each function of the program.
    pub functions: HashMap<String, u16>,
}

/// Registers of one instruction.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// Read (guards too).
    pub reads: Vec<RegisterId>,
    /// Written.
    pub writes: Vec<RegisterId>,
}

/// Decodes the instructions of one function.
pub struct Decoder<'a> {
    /// The module.
    pub module: &'a Module,
    /// The function.
    pub function: &'a Function,
    /// Addresses.
    pub layout: &'a Layout,
    /// Slots of registers; `None` in the first pass.
    pub slots: Option<&'a Slots>,
    /// Constant table.
    pub constants: &'a mut Constants,
    /// First operation of the function in the program.
    pub first_pc: u32,
    /// Registers that nobody reads, after the first pass: an `atom` into one of them is a `red`.
    pub dead: Option<&'a [bool]>,
    /// Registers of the instruction being decoded.
    pub uses: Uses,
}

impl<'a> Decoder<'a> {
    /// An error that names the instruction.
    pub fn fail(&self, instruction: &Instruction, message: &str) -> Error {
        let file = self.module.file.clone();
        Error::Ptx { file, line: instruction.line, message: format!("{message}: {}", instruction.text) }
    }

    /// Decodes one instruction.
    ///
    /// # Errors
    /// [`Error::Ptx`] when the form is not supported or an operand does not fit.
    pub fn instruction(&mut self, instruction: &'a Instruction) -> Result<Instr> {
        self.uses = Uses::default();
        let (mut guard, mut negated) = (NONE, false);
        if let Some((register, negative)) = instruction.guard {
            guard = self.slot(register, true);
            negated = negative;
        }
        let mut form = Form::new(instruction);
        let op = self.op(&mut form)?;
        let rest = form.rest();
        match op {
            Some(op) if rest.is_empty() => {
                Ok(Instr { guard, negated, gathers: op.gathers(), straight: op.is_straight(), op })
            }
            Some(_) => Err(self.fail(instruction, &format!("unsupported modifier .{}", rest.join(".")))),
            None => Err(self.fail(instruction, "unsupported instruction")),
        }
    }

    fn op(&mut self, form: &mut Form<'a>) -> Decoded<Op> {
        match form.opcode() {
            "st" | "red" if form.has("async") => self.store_async(form),
            "tensormap" => self.tensor_map(form),
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch" | "prefetchu" | "discard"
            | "applypriority" | "mapa" | "getctarank" | "createpolicy" => self.memory(form),
            "cvt" => self.conversion(form),
            "mov" => self.mov(form),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "bar" | "barrier" | "fence"
            | "membar" | "pmevent" | "alloca" | "stacksave" | "stackrestore" => self.control(form),
            "shfl" | "vote" | "match" | "redux" | "elect" | "activemask" | "ldmatrix" | "stmatrix" | "movmatrix" => {
                self.warp(form)
            }
            "cp" if form.has("bulk") => self.bulk(form),
            "cp" if form.has("mbarrier") => self.copy_arrive(form),
            "cp" => self.asynchronous(form),
            "mma" => self.mma(form),
            "wmma" => self.wmma(form),
            "wgmma" => self.wgmma(form),
            "mbarrier" => self.mbarrier(form),
            "setmaxnreg" => self.set_max_registers(form),
            "griddepcontrol" => self.grid_dependency(form),
            _ => self.arithmetic(form),
        }
    }

    /// Slot of a register; notes that it is read or written.
    pub fn slot(&mut self, register: RegisterId, read: bool) -> u16 {
        let list = if read { &mut self.uses.reads } else { &mut self.uses.writes };
        list.push(register);
        self.slots.map_or(0, |slots| slots.of[register.0 as usize])
    }

    fn class(&self, register: RegisterId) -> Class {
        Class::of(self.function.registers[register.0 as usize].ty)
    }

    /// A literal's bits in a type.
    fn literal(&self, operand: &Operand, ty: Type) -> Option<u64> {
        let mask = if ty.bytes() >= 8 { u64::MAX } else { (1 << (8 * ty.bytes())) - 1 };
        Some(match (operand, ty) {
            (Operand::Integer(value), _) if !matches!(ty, Type::F32 | Type::F64) => value & mask,
            (Operand::Float32(bits), Type::F64) => (f32::from_bits(*bits) as f64).to_bits(),
            (Operand::Float32(bits), _) => *bits as u64,
            (Operand::Float64(bits), Type::F32) => (f64::from_bits(*bits) as f32).to_bits() as u64,
            (Operand::Float64(bits), _) => *bits,
            _ => return None,
        })
    }

    /// A source of the 32-bit class.
    pub fn src32(&mut self, form: &Form, operand: &Operand, ty: Type) -> Result<u16> {
        match self.any_src(form, operand, ty)? {
            AnySrc::Narrow(slot) => Ok(slot),
            AnySrc::Wide(_) => Err(self.fail(form.instruction, "operand is too wide")),
        }
    }

    /// A source of the 64-bit class.
    pub fn src64(&mut self, form: &Form, operand: &Operand, ty: Type) -> Result<u16> {
        match self.any_src(form, operand, ty)? {
            AnySrc::Wide(slot) => Ok(slot),
            AnySrc::Narrow(_) => Err(self.fail(form.instruction, "operand is too narrow")),
        }
    }

    /// A source of either class: a register as declared, a literal by `ty`.
    pub fn any_src(&mut self, form: &Form, operand: &Operand, ty: Type) -> Result<AnySrc> {
        if let Operand::Register { register, negated: false } = operand {
            return match self.class(*register) {
                Class::Narrow => Ok(AnySrc::Narrow(self.slot(*register, true))),
                Class::Wide => Ok(AnySrc::Wide(self.slot(*register, true))),
                Class::Predicate => Err(self.fail(form.instruction, "a predicate is no value")),
            };
        }
        let Some(bits) = self.literal(operand, ty) else {
            return Err(self.fail(form.instruction, "bad source operand"));
        };
        let row = match ty.bytes() {
            8 => self.constants.wide(bits).map(AnySrc::Wide),
            _ => self.constants.narrow(bits as u32).map(AnySrc::Narrow),
        };
        row.ok_or_else(|| self.fail(form.instruction, "too many constants in one kernel"))
    }

    /// A constant row.
    pub fn constant32(&mut self, form: &Form, value: u32) -> Result<u16> {
        self.constants.narrow(value).ok_or_else(|| self.fail(form.instruction, "too many constants in one kernel"))
    }

    /// A destination of either class, or `_`.
    pub fn any_dst(&mut self, form: &Form, operand: &Operand) -> Result<AnyDst> {
        match operand {
            Operand::Sink => Ok(AnyDst::Sink),
            Operand::Register { register, negated: false } => match self.class(*register) {
                Class::Narrow => Ok(AnyDst::Narrow(self.slot(*register, false))),
                Class::Wide => Ok(AnyDst::Wide(self.slot(*register, false))),
                Class::Predicate => Err(self.fail(form.instruction, "a predicate cannot take this result")),
            },
            _ => Err(self.fail(form.instruction, "bad destination operand")),
        }
    }

    /// A destination of the 32-bit class.
    pub fn dst32(&mut self, form: &Form, operand: &Operand) -> Result<u16> {
        match self.any_dst(form, operand)? {
            AnyDst::Narrow(slot) => Ok(slot),
            _ => Err(self.fail(form.instruction, "destination has the wrong width")),
        }
    }

    /// A destination of the 64-bit class.
    pub fn dst64(&mut self, form: &Form, operand: &Operand) -> Result<u16> {
        match self.any_dst(form, operand)? {
            AnyDst::Wide(slot) => Ok(slot),
            _ => Err(self.fail(form.instruction, "destination has the wrong width")),
        }
    }

    /// A predicate that is read.
    pub fn pred_src(&mut self, form: &Form, operand: &Operand) -> Result<PredSrc> {
        match operand {
            Operand::Register { register, negated } if self.class(*register) == Class::Predicate => {
                Ok(PredSrc::Slot(self.slot(*register, true), *negated))
            }
            Operand::Integer(value) => Ok(PredSrc::Constant(*value != 0)),
            _ => Err(self.fail(form.instruction, "predicate expected")),
        }
    }

    /// A predicate that is written; [`NONE`] for `_`.
    pub fn pred_dst(&mut self, form: &Form, operand: &Operand) -> Result<u16> {
        match operand {
            Operand::Sink => Ok(NONE),
            Operand::Register { register, negated: false } if self.class(*register) == Class::Predicate => {
                Ok(self.slot(*register, false))
            }
            _ => Err(self.fail(form.instruction, "predicate expected")),
        }
    }

    /// Operand number `index`.
    pub fn operand(&self, form: &Form<'a>, index: usize) -> Result<&'a Operand> {
        form.operands().get(index).ok_or_else(|| self.fail(form.instruction, "too few operands"))
    }

    /// Checks the number of operands.
    pub fn expect_operands(&self, form: &Form, counts: std::ops::RangeInclusive<usize>) -> Result<()> {
        if counts.contains(&form.operands().len()) {
            return Ok(());
        }
        Err(self.fail(form.instruction, "wrong number of operands"))
    }

    /// Where a branch goes.
    pub fn target(&self, form: &Form, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Label(LabelId(label)) => Ok(self.first_pc + self.function.labels[*label as usize]),
            _ => Err(self.fail(form.instruction, "label expected")),
        }
    }

    fn variable(&self, id: VariableId) -> (&'a crate::front::ast::Variable, Option<String>, u32) {
        match id {
            VariableId::Module(index) => (&self.module.variables[index as usize], None, index),
            VariableId::Function(index) => {
                (&self.function.variables[index as usize], Some(self.function.name.clone()), index)
            }
        }
    }

    /// Address of a variable in its space.
    pub fn variable_address(&self, form: &Form, id: VariableId, offset: i64) -> Result<(Space, Address)> {
        let (variable, function, index) = self.variable(id);
        let missing = || self.fail(form.instruction, &format!("{} has no address", variable.name));
        let space = variable.storage.space;
        let (base, start) = match space {
            Space::Global | Space::Const => {
                // Variables of a function body are entered under the function's name.
                let name = match &function {
                    Some(function) => format!("{function}::{}", variable.name),
                    None => variable.name.clone(),
                };
                (AddressBase::Zero, *self.layout.global.get(&name).ok_or_else(missing)? as i64)
            }
            Space::Shared => {
                let &(start, dynamic) = self.layout.shared.get(&(function, index)).ok_or_else(missing)?;
                (if dynamic { AddressBase::SharedDynamic } else { AddressBase::SharedStatic }, start as i64)
            }
            Space::Local => {
                let key = (function.unwrap_or_default(), index);
                (AddressBase::LocalFrame, *self.layout.local.get(&key).ok_or_else(missing)? as i64)
            }
            Space::Param => {
                let key = (function.unwrap_or_default(), index);
                (AddressBase::Zero, *self.layout.param.get(&key).ok_or_else(missing)? as i64)
            }
        };
        Ok((space, Address { base, offset: start.wrapping_add(offset) }))
    }

    /// `[base + offset]`: the address, and the space of its variable if it starts from one.
    pub fn address(&mut self, form: &Form, operand: &Operand) -> Result<(Option<Space>, Address)> {
        let Operand::Address(base, offset) = operand else {
            return Err(self.fail(form.instruction, "address expected"));
        };
        self.based(form, *base, *offset)
    }

    /// An address from its parts.
    pub fn based(&mut self, form: &Form, base: Base, offset: i64) -> Result<(Option<Space>, Address)> {
        match base {
            Base::Zero => Ok((None, Address { base: AddressBase::Zero, offset })),
            Base::Variable(id) => {
                let (space, address) = self.variable_address(form, id, offset)?;
                Ok((Some(space), address))
            }
            Base::Register(register) => {
                let base = match self.class(register) {
                    Class::Narrow => AddressBase::Register32(self.slot(register, true)),
                    Class::Wide => AddressBase::Register64(self.slot(register, true)),
                    Class::Predicate => return Err(self.fail(form.instruction, "a predicate is no address")),
                };
                Ok((None, Address { base, offset }))
            }
        }
    }

    /// Whether an operand is a register of 16 bits or fewer.
    pub fn holds_16_bits(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Register { register, .. } => {
                matches!(self.function.registers[register.0 as usize].ty.bytes(), 1 | 2)
            }
            _ => false,
        }
    }

    /// Whether a destination is read by nobody.
    pub fn is_dead(&self, operand: &Operand) -> bool {
        match operand {
            Operand::Sink => true,
            Operand::Register { register, .. } => self.dead.is_some_and(|dead| dead[register.0 as usize]),
            Operand::Vector(elements) => elements.iter().all(|element| self.is_dead(element)),
            _ => false,
        }
    }
}
