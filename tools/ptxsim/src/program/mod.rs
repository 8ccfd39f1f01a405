//! A program: one entry and the functions it reaches, decoded, with registers coloured and memory laid out.

pub mod operand;
pub mod op;
pub mod matrix_op;
pub mod hopper_op;
pub mod decode;
pub mod flow;
pub mod slots;
pub mod closed;
mod heads;
mod forms;
mod reach;

pub use forms::{FormCount, forms};
pub use reach::function_address;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::address::Space;
use crate::checker::{Features, Line};
use crate::error::{Error, Result};
use crate::exec::warp::RegFile;
use crate::front::ast::{Base, Bounds, Function, Initial, Instruction, Module, Operand, Type, Variable, VariableId};
use crate::scalar::lanes::{L32, L64};
use closed::Closed;
use decode::{Constants, Decoder, Layout, Uses};
use flow::Flow;
use heads::Heads;
use op::{AnySrc, CONSTANT, CallTarget, Class, Instr, MemorySpace, Op, PredSrc};

use reach::reachable;
use slots::{Slots, colour};

/// Parameters of an entry take at most this much constant bank.
const PARAM_BYTES_MAX: u32 = 32764;
/// Local memory of a thread.
pub const LOCAL_BYTES_MAX: u32 = 512 << 10;

/// One function of a program.
#[derive(Clone, Debug)]
pub struct FunctionCode {
    /// Name.
    pub name: String,
    /// First operation.
    pub start: u32,
    /// One past the last.
    pub end: u32,
    /// Slots: narrow, wide, predicates.
    pub slots: [u16; 3],
    /// Bytes of `.param` variables in a frame.
    pub param_bytes: u32,
    /// Bytes of `.local` variables in a frame.
    pub local_bytes: u32,
    /// (offset in a frame, bytes) of parameters.
    pub params: Vec<(u32, u32)>,
    /// The same of results.
    pub results: Vec<(u32, u32)>,
}

/// A parameter of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Offset in the bank.
    pub offset: u32,
    /// Size.
    pub bytes: u32,
    /// Element type.
    pub ty: Type,
    /// An array (struct passed by value, tensor map).
    pub array: bool,
}

/// An entry ready to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Entry.
    pub name: String,
    /// File.
    pub file: String,
    /// Compute capability times ten: 80, 90.
    pub target: u32,
    /// Operations of all functions; the entry's come first.
    pub code: Vec<Instr>,
    /// The same for the loop over whole warps.
    pub closed: Vec<Closed>,
    /// Source lines.
    pub lines: Arc<[Line]>,
    /// Order of divergent groups.
    pub rank: Vec<u32>,
    /// Starts a basic block: groups meet there.
    pub leader: Vec<bool>,
    /// Class in the instruction mix.
    pub class: Vec<Class>,
    /// Slots of 32-bit registers (reads, writes), kept for kernels with `wgmma`.
    pub touched: Vec<(Vec<u16>, Vec<u16>)>,
    /// Functions; the entry is the first.
    pub functions: Vec<FunctionCode>,
    /// Indices of functions by the addresses that pointers to them hold.
    pub by_address: HashMap<u64, u16>,
    /// Constant rows.
    pub constants: Constants,
    /// Parameters.
    pub params: Vec<Param>,
    /// Size of the parameter bank.
    pub param_bytes: u32,
    /// Static shared memory, rounded up to where dynamic memory starts.
    pub shared_bytes: u32,
    /// Launch bounds.
    pub bounds: Bounds,
    /// What checkers may ask about.
    pub features: Features,
    /// Clusters may wait for each other through global memory: they run on one thread, in turns.
    pub cooperative: bool,
}

/// A source: a register of the file or a row of the constants.
#[inline(always)]
pub fn row<'r, T>(file: &'r [T], constants: &'r [T], source: u16) -> &'r T {
    match source & CONSTANT {
        0 => &file[source as usize],
        _ => &constants[(source & !CONSTANT) as usize],
    }
}

/// A predicate source, as a mask.
#[inline(always)]
pub fn predicate(predicates: &[u32], source: PredSrc) -> u32 {
    match source {
        PredSrc::Slot(slot, negated) => predicates[slot as usize] ^ if negated { u32::MAX } else { 0 },
        PredSrc::Constant(true) => u32::MAX,
        PredSrc::Constant(false) => 0,
    }
}

impl Program {
    /// A source of the 32-bit class.
    #[inline(always)]
    pub fn source32<'r>(&'r self, regs: &'r RegFile, source: u16) -> &'r L32 {
        self.narrow(&regs.narrow, source)
    }

    /// A source of the 32-bit class, from the file of that class.
    #[inline(always)]
    pub fn narrow<'r>(&'r self, file: &'r [L32], source: u16) -> &'r L32 {
        row(file, &self.constants.narrow, source)
    }

    /// A source of the 64-bit class, from the file of that class.
    #[inline(always)]
    pub fn wide<'r>(&'r self, file: &'r [L64], source: u16) -> &'r L64 {
        row(file, &self.constants.wide, source)
    }

    /// A source of the 64-bit class.
    #[inline(always)]
    pub fn source64<'r>(&'r self, regs: &'r RegFile, source: u16) -> &'r L64 {
        self.wide(&regs.wide, source)
    }

    /// A predicate source, as a mask.
    #[inline(always)]
    pub fn predicate(&self, regs: &RegFile, source: PredSrc) -> u32 {
        predicate(&regs.predicates, source)
    }

    /// A source of either class, one lane, zeros above its width.
    pub fn lane(&self, regs: &RegFile, source: AnySrc, lane: usize) -> u64 {
        match source {
            AnySrc::Narrow(slot) => self.source32(regs, slot).0[lane] as u64,
            AnySrc::Wide(slot) => self.source64(regs, slot).0[lane],
        }
    }
}

/// Reads the compute capability from `.target`.
///
/// # Errors
/// When it is no `sm_` target from 70 on.
pub fn target(module: &Module) -> Result<u32> {
    let digits = module.target.strip_prefix("sm_").unwrap_or("");
    let number = digits.trim_end_matches(['a', 'f']).parse::<u32>().ok();
    number.filter(|sm| (70..130).contains(sm)).ok_or_else(|| Error::Ptx {
        file: module.file.clone(),
        line: 1,
        message: format!("target {} is not supported", module.target),
    })
}

/// Variables of the module, and of function bodies, that live in global or constant memory: name in [`Layout::global`].
pub fn global_variables(module: &Module) -> Vec<(String, &Variable)> {
    let global = |variable: &Variable| matches!(variable.storage.space, Space::Global | Space::Const);
    let mut out = Vec::new();
    for variable in module.variables.iter().filter(|v| global(v)) {
        out.push((variable.name.clone(), variable));
    }
    for function in &module.functions {
        for variable in function.variables.iter().filter(|v| global(v)) {
            out.push((format!("{}::{}", function.name, variable.name), variable));
        }
    }
    out
}

/// Bytes of a variable's initial value.
///
/// # Errors
/// When it names a variable without an address.
pub fn initial_bytes(module: &Module, variable: &Variable, addresses: &HashMap<String, u64>) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(variable.bytes() as usize);
    let width = variable.ty.bytes() as usize;
    for value in &variable.initial {
        let bits = match value {
            Initial::Bits(bits) => *bits,
            Initial::Address(name, offset) => {
                let unknown = || Error::Ptx {
                    file: module.file.clone(),
                    line: variable.line,
                    message: format!("unknown name {name} in an initial value"),
                };
                let variable = addresses.get(name).copied();
                let address = variable.or_else(|| function_address(module, name)).ok_or_else(unknown)?;
                address.wrapping_add_signed(*offset)
            }
        };
        out.extend_from_slice(&bits.to_le_bytes()[..width.min(8)]);
    }
    Ok(out)
}

/// Decodes an entry with everything it calls. `addresses` are those of [`global_variables`].
///
/// # Errors
/// [`Error::Ptx`] for the first instruction or declaration that is not supported.
pub fn build(module: &Module, entry: &Function, addresses: &HashMap<String, u64>) -> Result<Program> {
    let functions = reachable(module, entry);
    let (layout, frames, shared_bytes) = lay_out(module, &functions, addresses)?;
    let mut program = Program {
        name: entry.name.clone(),
        file: module.file.clone(),
        target: target(module)?,
        code: Vec::new(),
        closed: Vec::new(),
        lines: Arc::default(),
        rank: Vec::new(),
        leader: Vec::new(),
        class: Vec::new(),
        touched: Vec::new(),
        functions: Vec::new(),
        by_address: HashMap::new(),
        constants: Constants::default(),
        params: Vec::new(),
        param_bytes: 0,
        shared_bytes,
        bounds: entry.bounds,
        features: Features::default(),
        cooperative: false,
    };
    let mut lines = Vec::new();
    for (function, frame) in functions.iter().zip(frames) {
        add_function(&mut program, &mut lines, module, function, &layout, frame)?;
    }
    program.lines = lines.into();
    for index in &entry.params {
        let variable = &entry.variables[*index as usize];
        let offset = layout.param[&(entry.name.clone(), *index)];
        let bytes = variable.bytes() as u32;
        program.param_bytes = program.param_bytes.max(offset + bytes);
        let array = variable.elements != 1;
        program.params.push(Param { name: variable.name.clone(), offset, bytes, ty: variable.ty, array });
    }
    program.features = features(&program.code);
    program.cooperative = program.code.iter().any(|instr| needs_order(&instr.op));
    Ok(program)
}

fn features(code: &[Instr]) -> Features {
    let has = |is: fn(&Op) -> bool| code.iter().any(|instr| is(&instr.op));
    let async_proxy = has(|op| matches!(op, Op::Bulk(_) | Op::StoreAsync(_) | Op::Wgmma(_)));
    Features { async_proxy, mbarriers: async_proxy || has(|op| matches!(op, Op::Mbarrier(_) | Op::CopyArrive { .. })) }
}

/// Whether an operation lets a cluster see what another one does in the same launch.
fn needs_order(op: &Op) -> bool {
    use crate::event::Semantics::Weak;
    let outside = |space: &MemorySpace| matches!(space, MemorySpace::Generic | MemorySpace::Named(Space::Global));
    match op {
        Op::Load(memory) => memory.semantics != Weak && outside(&memory.space),
        Op::Atomic(atomic) => atomic.result_used && outside(&atomic.space),
        Op::Atomic128(atomic) => outside(&atomic.space),
        // Addresses depend on who asks first.
        Op::Call(call) => matches!(call.target, CallTarget::Malloc | CallTarget::Free),
        _ => false,
    }
}

/// (bytes of `.param`, bytes of `.local`) of a frame.
type Frame = (u32, u32);

struct Packer {
    bytes: u64,
}

impl Packer {
    fn add(&mut self, variable: &Variable) -> u64 {
        let start = self.bytes.next_multiple_of(variable.align.max(1) as u64);
        self.bytes = start + variable.bytes();
        start
    }
}

fn lay_out(
    module: &Module,
    functions: &[&Function],
    addresses: &HashMap<String, u64>,
) -> Result<(Layout, Vec<Frame>, u32)> {
    let mut layout = Layout { global: addresses.clone(), ..Layout::default() };
    let mut frames = Vec::new();
    let limit = |bytes: u64, most: u32, what: &str, function: &Function| -> Result<u32> {
        u32::try_from(bytes).ok().filter(|bytes| *bytes <= most).ok_or_else(|| Error::Ptx {
            file: module.file.clone(),
            line: function.line,
            message: format!("{} has {bytes} bytes of {what}, more than {most}", function.name),
        })
    };
    for (index, function) in functions.iter().enumerate() {
        layout.functions.insert(function.name.clone(), index as u16);
        let (mut bank, mut params, mut locals) = (Packer { bytes: 0 }, Packer { bytes: 0 }, Packer { bytes: 0 });
        for (index, variable) in function.variables.iter().enumerate() {
            let key = (function.name.clone(), index as u32);
            let own = function.entry && function.params.contains(&(index as u32));
            match variable.storage.space {
                Space::Param if own => drop(layout.param.insert(key, bank.add(variable) as u32)),
                Space::Param => drop(layout.param.insert(key, params.add(variable) as u32)),
                Space::Local => drop(layout.local.insert(key, locals.add(variable) as u32)),
                _ => {}
            }
        }
        limit(bank.bytes, PARAM_BYTES_MAX, "parameters", function)?;
        let params = limit(params.bytes, PARAM_BYTES_MAX, "parameters of calls", function)?;
        frames.push((params, limit(locals.bytes.next_multiple_of(16), LOCAL_BYTES_MAX, "local memory", function)?));
    }
    // Declared functions without a body need offsets too: `vprintf`.
    for function in module.functions.iter().filter(|function| function.body.is_none()) {
        let mut params = Packer { bytes: 0 };
        for (index, variable) in function.variables.iter().enumerate() {
            layout.param.insert((function.name.clone(), index as u32), params.add(variable) as u32);
        }
    }
    let shared = lay_out_shared(module, functions, &mut layout);
    let shared = limit(shared, 1 << 23, "shared memory", functions[0])?;
    Ok((layout, frames, shared))
}

/// Static variables first, in order of declaration, as far as the program names them; then the dynamic ones, all at the
/// same place. Gives the offset of that place.
fn lay_out_shared(module: &Module, functions: &[&Function], layout: &mut Layout) -> u64 {
    let mut named = BTreeSet::new();
    for function in functions {
        function.body.iter().flatten().for_each(|instruction| note_variables(&instruction.operands, &mut named));
    }
    let mut packer = Packer { bytes: 0 };
    let mut dynamic_align = 16;
    let shared = |variable: &Variable| variable.storage.space == Space::Shared;
    let module_variables = module.variables.iter().enumerate().map(|(index, v)| (None, index as u32, v));
    let wanted = module_variables.filter(|(_, index, v)| shared(v) && named.contains(&VariableId::Module(*index)));
    let own = functions.iter().flat_map(|function| {
        let variables = function.variables.iter().enumerate();
        variables.map(|(index, variable)| (Some(function.name.clone()), index as u32, variable))
    });
    for (function, index, variable) in wanted.chain(own.filter(|(.., v)| shared(v))) {
        if variable.storage.dynamic {
            dynamic_align = dynamic_align.max(variable.align);
            layout.shared.insert((function, index), (0, true));
        } else {
            layout.shared.insert((function, index), (packer.add(variable) as u32, false));
        }
    }
    packer.bytes.next_multiple_of(dynamic_align as u64)
}

fn note_variables(operands: &[Operand], named: &mut BTreeSet<VariableId>) {
    for operand in operands {
        match operand {
            Operand::Variable(id, _) | Operand::Address(Base::Variable(id), _) => drop(named.insert(*id)),
            Operand::TensorAddress(base, _, list) => {
                if let Base::Variable(id) = base {
                    named.insert(*id);
                }
                note_variables(list, named);
            }
            Operand::Vector(list) | Operand::List(list) => note_variables(list, named),
            _ => {}
        }
    }
}

fn add_function(
    program: &mut Program,
    lines: &mut Vec<Line>,
    module: &Module,
    function: &Function,
    layout: &Layout,
    (param_bytes, local_bytes): Frame,
) -> Result<()> {
    let start = program.code.len() as u32;
    let Some(body) = function.body.as_ref().filter(|body| !body.is_empty()) else {
        let file = module.file.clone();
        return Err(Error::Ptx { file, line: function.line, message: format!("{} has no body", function.name) });
    };
    let mut decoder = Decoder {
        module,
        function,
        layout,
        slots: None,
        constants: &mut program.constants,
        first_pc: start,
        dead: None,
        uses: Uses::default(),
    };
    let mut first = Vec::with_capacity(body.len());
    let mut uses = Vec::with_capacity(body.len());
    for instruction in body {
        first.push(decoder.instruction(instruction)?);
        uses.push(std::mem::take(&mut decoder.uses));
    }
    let flow = Flow::new(&first, start);
    let guarded: Vec<bool> = body.iter().map(|instruction| instruction.guard.is_some()).collect();
    let slots = colour(&function.registers, &uses, &guarded, &flow, &pinned(function, body, &uses));
    let slots: Slots = slots.ok_or_else(|| Error::Ptx {
        file: module.file.clone(),
        line: function.line,
        message: format!("{} has too many registers", function.name),
    })?;
    let mut dead = vec![true; function.registers.len()];
    uses.iter().flat_map(|uses| &uses.reads).for_each(|read| dead[read.0 as usize] = false);
    let mut decoder = Decoder { slots: Some(&slots), dead: Some(&dead), ..decoder };
    let wgmma = body.iter().any(|instruction| instruction.opcode == "wgmma");
    let mut heads = Heads::default();
    for (instruction, pc) in body.iter().zip(start..) {
        let instr = decoder.instruction(instruction)?;
        let uses = std::mem::take(&mut decoder.uses);
        program.closed.push(heads.close(&instr, pc, &touched(function, &slots, &uses).1));
        program.code.push(instr);
        program.touched.push(if wgmma { touched(function, &slots, &uses) } else { Default::default() });
        lines.push(line(module, instruction));
        program.class.push(class(instruction));
    }
    // Running off the end of a body returns; the parser cannot see that, so an operation says it.
    program.code.push(Instr { guard: op::NONE, negated: false, gathers: false, straight: false, op: Op::Return });
    lines.push(Line { ptx: body[body.len() - 1].line, text: "(end of the function)".into(), ..Line::default() });
    program.class.push(Class::Control);
    program.touched.push(Default::default());
    program.closed.push(Closed::Stop);
    let mut rank = vec![flow.blocks.len() as u32; body.len() + 1];
    let mut leader = vec![false; body.len() + 1];
    leader[body.len()] = true;
    for block in &flow.blocks {
        rank[block.start..block.end].fill(block.rank);
        leader[block.start] = true;
    }
    program.rank.extend(rank);
    program.leader.extend(leader);
    let end = program.code.len() as u32;
    let name = function.name.clone();
    let places = |list: &[u32]| -> Vec<(u32, u32)> {
        let place = |index: &u32| {
            let offset = layout.param.get(&(name.clone(), *index)).copied().unwrap_or(0);
            (offset, function.variables[*index as usize].bytes() as u32)
        };
        list.iter().map(place).collect()
    };
    let (params, results) = (places(&function.params), places(&function.results));
    if let Some(address) = function_address(module, &name) {
        program.by_address.insert(address, program.functions.len() as u16);
    }
    let slots = slots.count;
    program.functions.push(FunctionCode { name, start, end, slots, param_bytes, local_bytes, params, results });
    Ok(())
}

/// Registers of `wgmma`: they are read and written after the instruction has been passed.
fn pinned(function: &Function, body: &[Instruction], uses: &[Uses]) -> Vec<bool> {
    let mut pinned = vec![false; function.registers.len()];
    for (instruction, uses) in body.iter().zip(uses) {
        if instruction.opcode == "wgmma" {
            uses.reads.iter().chain(&uses.writes).for_each(|register| pinned[register.0 as usize] = true);
        }
    }
    pinned
}

fn touched(function: &Function, slots: &Slots, uses: &Uses) -> (Vec<u16>, Vec<u16>) {
    let narrow = |list: &[crate::front::ast::RegisterId]| {
        let narrow = list.iter().map(|register| register.0 as usize);
        let narrow = narrow.filter(|&index| slots::Class::of(function.registers[index].ty) == slots::Class::Narrow);
        narrow.map(|index| slots.of[index]).collect()
    };
    (narrow(&uses.reads), narrow(&uses.writes))
}

fn line(module: &Module, instruction: &Instruction) -> Line {
    let cuda = instruction.location;
    Line {
        ptx: instruction.line,
        cuda_file: cuda.and_then(|location| module.files.get(&location.file).cloned()),
        cuda_line: cuda.map(|location| location.line),
        text: instruction.text.clone(),
    }
}

fn class(instruction: &Instruction) -> Class {
    let has = |modifier: &str| instruction.modifiers.iter().any(|m| m == modifier);
    match instruction.opcode.as_str() {
        "fma" | "mad" if has("f32") || has("f16x2") || has("bf16x2") || has("f16") || has("bf16") => Class::Fma,
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" | "rcp" | "sqrt" | "div" if !has("s32") && !has("u32") => {
            Class::Sfu
        }
        "cvt" => Class::Convert,
        "ld" | "ldu" | "ldmatrix" => Class::Load,
        "st" | "stmatrix" => Class::Store,
        "atom" | "red" => Class::Atomic,
        "mma" | "wgmma" | "wmma" => Class::Tensor,
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "nanosleep" => Class::Control,
        "bar" | "barrier" | "fence" | "membar" | "mbarrier" | "shfl" | "vote" | "match" | "redux" | "elect" => {
            Class::Sync
        }
        "cp" | "griddepcontrol" | "setmaxnreg" => Class::Async,
        "mov" | "selp" | "cvta" => Class::Move,
        _ if has("f64") => Class::Fp64,
        _ => Class::Alu,
    }
}

impl Op {
    /// Whether lanes that skip it by their guard must go on by themselves: it may block, or moves the program counter.
    pub fn gathers(&self) -> bool {
        matches!(
            self,
            Op::Collective(..)
                | Op::WarpBarrier(_)
                | Op::Barrier(_)
                | Op::ClusterArrive(..)
                | Op::ClusterWait(_)
                | Op::Matrix(_)
                | Op::MoveMatrix(..)
                | Op::Mma(_)
                | Op::WmmaMove(_)
                | Op::TileMma(_)
                | Op::SparseMma(_)
                | Op::TileMove(_)
                | Op::MapCopy(_)
                | Op::Wgmma(_)
                | Op::WgmmaFence
                | Op::WgmmaCommit
                | Op::WgmmaWait(_)
                | Op::BulkWait { .. }
                | Op::SetMaxRegisters { .. }
                | Op::GridDependency { .. }
        )
    }

    /// Whether it touches nothing but registers, in a way that `exec::straight` knows.
    pub fn is_straight(&self) -> bool {
        matches!(
            self,
            Op::A1(..)
                | Op::A2(..)
                | Op::A3(..)
                | Op::Fma(..)
                | Op::D1(..)
                | Op::D2(..)
                | Op::D3(..)
                | Op::Shift64(..)
                | Op::Widen1(..)
                | Op::Widen2(..)
                | Op::Widen3(..)
                | Op::Narrow1(..)
                | Op::Predicate(..)
                | Op::SetPredicate(_)
                | Op::Select32(..)
                | Op::Select64(..)
        )
    }

    /// Whether the whole warp must execute it together.
    pub fn aligned(&self) -> bool {
        match self {
            Op::Barrier(barrier) => barrier.aligned,
            Op::ClusterArrive(_, aligned) | Op::ClusterWait(aligned) => *aligned,
            Op::Matrix(_) | Op::MoveMatrix(..) | Op::Mma(_) | Op::WmmaMove(_) | Op::SetMaxRegisters { .. } => true,
            Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait(_) => true,
            Op::TileMma(_) | Op::SparseMma(_) | Op::TileMove(_) | Op::MapCopy(_) => true,
            _ => false,
        }
    }
}
