//! The syntax tree: a module's variables and functions, with scopes flattened and every name resolved.

use std::collections::BTreeMap;

use crate::address::Space;

/// Fundamental types of registers, variables and instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    S16x2,
    U16x2,
    E4m3x2,
    E5m2x2,
    F32,
    F64,
    Tf32,
    Pred,
}

impl Type {
    /// The type with this name (no dot).
    pub fn parse(name: &str) -> Option<Type> {
        Some(match name {
            "b8" => Type::B8,
            "b16" => Type::B16,
            "b32" => Type::B32,
            "b64" => Type::B64,
            "b128" => Type::B128,
            "u8" => Type::U8,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "u64" => Type::U64,
            "s8" => Type::S8,
            "s16" => Type::S16,
            "s32" => Type::S32,
            "s64" => Type::S64,
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "s16x2" => Type::S16x2,
            "u16x2" => Type::U16x2,
            "e4m3x2" => Type::E4m3x2,
            "e5m2x2" => Type::E5m2x2,
            "f32" => Type::F32,
            "f64" => Type::F64,
            "tf32" => Type::Tf32,
            "pred" => Type::Pred,
            _ => return None,
        })
    }

    /// Size of a value; 0 for predicates.
    pub fn bytes(self) -> u32 {
        match self {
            Type::Pred => 0,
            Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 | Type::E4m3x2 | Type::E5m2x2 => 2,
            Type::B32 | Type::U32 | Type::S32 | Type::F32 | Type::Tf32 => 4,
            Type::F16x2 | Type::Bf16x2 | Type::S16x2 | Type::U16x2 => 4,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
        }
    }

    /// Whether it is a signed integer.
    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Whether it is a floating-point type.
    pub fn float(self) -> bool {
        matches!(self, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::F32 | Type::F64 | Type::Tf32)
    }
}

/// Index of a register in [`Function::registers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegisterId(pub u32);

/// Index of a label in [`Function::labels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LabelId(pub u32);

/// A variable: of the module or of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VariableId {
    /// Index in [`Module::variables`].
    Module(u32),
    /// Index in [`Function::variables`].
    Function(u32),
}

/// An operand as written, names resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// Register; `negated` for `!%p`.
    Register {
        /// Which.
        register: RegisterId,
        /// Written with `!`.
        negated: bool,
    },
    /// Special register with its component: `%tid.x`.
    Special(String),
    /// Integer literal.
    Integer(u64),
    /// `f32` literal.
    Float32(u32),
    /// `f64` literal.
    Float64(u64),
    /// Address of a variable plus bytes, outside brackets.
    Variable(VariableId, i64),
    /// `[base + offset]`.
    Address(Base, i64),
    /// `[base + offset, {coordinates}]` of tensor copies: the tensor map's address and the coordinates.
    TensorAddress(Base, i64, Vec<Operand>),
    /// `{a, b, ...}`.
    Vector(Vec<Operand>),
    /// `a|b`: two destinations.
    Pair(Box<Operand>, Box<Operand>),
    /// Branch target.
    Label(LabelId),
    /// Function name.
    Function(String),
    /// `(a, b)`: results or arguments of a call.
    List(Vec<Operand>),
    /// `_`.
    Sink,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Register.
    Register(RegisterId),
    /// Variable.
    Variable(VariableId),
    /// Nothing: the offset is the address.
    Zero,
}

/// Position in a CUDA source, from `.loc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Index of `.file`.
    pub file: u32,
    /// Line.
    pub line: u32,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// `@%p` (true: `@!%p`).
    pub guard: Option<(RegisterId, bool)>,
    /// First word.
    pub opcode: String,
    /// Dot words, in the order written, without dots.
    pub modifiers: Vec<String>,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// PTX line.
    pub line: u32,
    /// CUDA source.
    pub location: Option<Location>,
    /// As written, blanks made single.
    pub text: String,
}

impl Instruction {
    /// Opcode and modifiers in the order written.
    pub fn form(&self) -> String {
        let mut form = self.opcode.clone();
        for modifier in &self.modifiers {
            form.push('.');
            form.push_str(modifier);
        }
        form
    }
}

/// Declared register.
#[derive(Clone, Debug, PartialEq)]
pub struct Register {
    /// Name as written.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// State space of a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Space.
    pub space: Space,
    /// `.extern .shared x[]`: starts where the static shared memory ends.
    pub dynamic: bool,
}

/// One value of an initialiser.
#[derive(Clone, Debug, PartialEq)]
pub enum Initial {
    /// Bits of one element.
    Bits(u64),
    /// Address of a module variable plus bytes.
    Address(String, i64),
}

/// Declared variable.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Name as written.
    pub name: String,
    /// Where it lives.
    pub storage: Storage,
    /// Type of an element.
    pub ty: Type,
    /// Elements in all.
    pub elements: u64,
    /// Alignment in bytes.
    pub align: u32,
    /// Initial values in order, zero after them.
    pub initial: Vec<Initial>,
    /// Declared only; defined elsewhere.
    pub external: bool,
    /// PTX line.
    pub line: u32,
}

impl Variable {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements.saturating_mul(self.ty.bytes() as u64)
    }
}

/// Performance directives that bind a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// `.maxntid`: most threads of a CTA.
    pub threads_max: Option<u32>,
    /// `.reqntid`.
    pub threads_required: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub ctas_per_sm_min: Option<u32>,
    /// `.maxnreg`.
    pub registers_max: Option<u32>,
    /// `.reqnctapercluster`.
    pub cluster_required: Option<[u32; 3]>,
    /// `.explicitcluster`.
    pub cluster_explicit: bool,
}

/// Entry or device function.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Name.
    pub name: String,
    /// `.entry`.
    pub entry: bool,
    /// Results: indices in `variables`.
    pub results: Vec<u32>,
    /// Parameters: indices in `variables`.
    pub params: Vec<u32>,
    /// All registers of all scopes.
    pub registers: Vec<Register>,
    /// All variables of all scopes (`.param`, `.local`, `.shared`).
    pub variables: Vec<Variable>,
    /// Instruction index that each label stands before.
    pub labels: Vec<u32>,
    /// Targets of `.branchtargets` lists, by label of the list.
    pub branch_tables: BTreeMap<u32, Vec<LabelId>>,
    /// Body; `None` for a declaration.
    pub body: Option<Vec<Instruction>>,
    /// Launch bounds.
    pub bounds: Bounds,
    /// PTX line.
    pub line: u32,
}

/// A PTX file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Name of the file, for messages.
    pub file: String,
    /// `.version`, times ten: 90 for 9.0.
    pub version: u32,
    /// `.target`: "sm_90a".
    pub target: String,
    /// CUDA source files by index.
    pub files: BTreeMap<u32, String>,
    /// Variables of the module.
    pub variables: Vec<Variable>,
    /// Functions; a definition replaces its declarations.
    pub functions: Vec<Function>,
}

impl Module {
    /// The entry or function with this name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|function| function.name == name)
    }
}
