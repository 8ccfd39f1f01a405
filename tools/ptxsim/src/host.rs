//! The host's side: a device with memory, modules, and launches with arguments.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::address::Space;
use crate::dependents::{self, Request};
use crate::error::{Error, Result};
use crate::front::parser::parse;
use crate::launch::{self, Geometry, Outcome};
use crate::memory::GlobalMemory;
use crate::options::Options;
use crate::program::{self, Param, Program};

/// A device: memory and nothing else.
#[derive(Debug, Default)]
pub struct Device {
    memory: GlobalMemory,
}

/// A loaded PTX file.
#[derive(Clone, Debug)]
pub struct Module {
    entries: BTreeMap<String, Arc<Program>>,
    variables: HashMap<String, (u64, u64)>,
    file: String,
}

/// An entry of a module.
#[derive(Clone, Debug)]
pub struct Function {
    program: Arc<Program>,
}

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Arg {
    /// Device address.
    Pointer(u64),
    U8(u8),
    U16(u16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    /// A structure passed by value, or a tensor map.
    Bytes(Vec<u8>),
}

impl Arg {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::Pointer(value) | Arg::U64(value) => value.to_le_bytes().to_vec(),
            Arg::U8(value) => vec![*value],
            Arg::U16(value) => value.to_le_bytes().to_vec(),
            Arg::U32(value) => value.to_le_bytes().to_vec(),
            Arg::I32(value) => value.to_le_bytes().to_vec(),
            Arg::I64(value) => value.to_le_bytes().to_vec(),
            Arg::F32(value) => value.to_le_bytes().to_vec(),
            Arg::F64(value) => value.to_le_bytes().to_vec(),
            Arg::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Device {
    /// A device without allocations.
    pub fn new() -> Device {
        Device::default()
    }

    /// Reserves memory; its contents count as uninitialised.
    ///
    /// # Errors
    /// On zero or absurd sizes.
    pub fn alloc(&mut self, bytes: u64) -> Result<u64> {
        self.memory.allocate(bytes, "", false)
    }

    /// The same, with a name for messages.
    ///
    /// # Errors
    /// On zero or absurd sizes.
    pub fn alloc_named(&mut self, bytes: u64, name: &str) -> Result<u64> {
        self.memory.allocate(bytes, name, false)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// When the address is not the start of a live one.
    pub fn free(&mut self, address: u64) -> Result<()> {
        self.memory.free(address)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write(address, bytes)
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.read(address, bytes)
    }

    /// Fills bytes.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn fill(&self, address: u64, byte: u8, bytes: u64) -> Result<()> {
        let block = vec![byte; bytes.min(1 << 16) as usize];
        let mut done = 0;
        while done < bytes {
            let count = (bytes - done).min(block.len() as u64);
            self.memory.write(address + done, &block[..count as usize])?;
            done += count;
        }
        Ok(())
    }

    /// From here on the bytes count as never written: a host that hands parts of an allocation out again says so here.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn forget(&self, address: u64, bytes: u64) -> Result<()> {
        self.memory.forget(address, bytes)
    }

    /// Allocates memory for `f32` values and copies them.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn upload<T: Copy, const N: usize>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; N]) -> Result<u64> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| to_bytes(*value)).collect();
        let address = self.alloc(bytes.len() as u64)?;
        self.write(address, &bytes)?;
        Ok(address)
    }

    /// Copies `count` values from the device.
    ///
    /// # Errors
    /// When the range is not inside one allocation.
    pub fn download<T, const N: usize>(
        &self,
        address: u64,
        count: usize,
        from_bytes: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let mut bytes = vec![0; count * N];
        self.read(address, &mut bytes)?;
        let chunks = bytes.as_chunks::<N>().0;
        Ok(chunks.iter().map(|chunk| from_bytes(*chunk)).collect())
    }

    /// Loads a PTX file: allocates its variables and decodes all entries.
    ///
    /// # Errors
    /// [`Error::Ptx`] for anything that is not understood or not supported.
    pub fn load(&mut self, file: &str, text: &str) -> Result<Module> {
        let module = parse(file, text)?;
        program::target(&module)?;
        let variables = program::global_variables(&module);
        let mut addresses = HashMap::new();
        let mut places = HashMap::new();
        for (name, variable) in &variables {
            if variable.external && variable.elements == 0 {
                continue;
            }
            let bytes = variable.bytes().max(1);
            let constant = variable.storage.space == Space::Const;
            let address = self.memory.allocate(bytes.next_multiple_of(variable.align as u64), name, constant)?;
            addresses.insert(name.clone(), address);
            places.insert(name.clone(), (address, bytes));
        }
        for (name, variable) in &variables {
            let Some(&(address, bytes)) = places.get(name) else { continue };
            // Variables without a value are zero.
            let mut value = program::initial_bytes(&module, variable, &addresses)?;
            value.resize(bytes.next_multiple_of(variable.align as u64) as usize, 0);
            self.memory.write(address, &value)?;
        }
        let mut entries = BTreeMap::new();
        for function in module.functions.iter().filter(|function| function.entry && function.body.is_some()) {
            entries.insert(function.name.clone(), Arc::new(program::build(&module, function, &addresses)?));
        }
        Ok(Module { entries, variables: places, file: file.to_string() })
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// [`Error::Launch`] for wrong arguments or geometry, [`Error::Execution`] when it traps or breaks a rule whose checker
    /// is off.
    pub fn launch(&self, function: &Function, geometry: &Geometry, args: &[Arg], options: &Options) -> Result<Outcome> {
        let bank = parameter_bank(&function.program, args)?;
        launch::run(&function.program, &self.memory, geometry, bank, options, 0)
    }

    /// Runs a kernel all of whose CTAs are on the device at once, so that `grid.sync()` may be used.
    ///
    /// # Errors
    /// As [`Device::launch`], and for a grid that the device does not hold at once.
    pub fn launch_cooperative(
        &mut self,
        function: &Function,
        geometry: &Geometry,
        args: &[Arg],
        options: &Options,
    ) -> Result<Outcome> {
        let bank = parameter_bank(&function.program, args)?;
        let workspace = self.memory.allocate(WORKSPACE_BYTES, "the workspace of a cooperative launch", false)?;
        self.memory.write(workspace, &[0; WORKSPACE_BYTES as usize])?;
        let outcome = launch::run(&function.program, &self.memory, geometry, bank, options, workspace);
        self.memory.free(workspace)?;
        outcome
    }

    /// Runs two kernels, the second launched so that it may start before the first has ended: it starts as early as
    /// `griddepcontrol` allows. What it touches before its `griddepcontrol.wait`, and the first one writes or reads, is a finding.
    ///
    /// # Errors
    /// As [`Device::launch`], for either kernel.
    pub fn launch_dependent(
        &self,
        first: (&Function, &Geometry, &[Arg]),
        second: (&Function, &Geometry, &[Arg]),
        options: &Options,
    ) -> Result<[Outcome; 2]> {
        let bank = |(function, _, args): (&Function, &Geometry, &[Arg])| parameter_bank(&function.program, args);
        let (one, two) = (bank(first)?, bank(second)?);
        let first = Request { program: &first.0.program, geometry: first.1, params: one };
        let second = Request { program: &second.0.program, geometry: second.1, params: two };
        dependents::run(first, second, &self.memory, options)
    }

    /// Where an address lies, in words.
    pub fn describe(&self, address: u64) -> String {
        self.memory.describe(address)
    }
}

/// Bytes that the driver hands to a cooperative launch.
const WORKSPACE_BYTES: u64 = 64;

/// The arguments as the kernel finds them.
fn parameter_bank(program: &Program, args: &[Arg]) -> Result<Vec<u8>> {
    let refuse = |message: String| Err(Error::Launch { kernel: program.name.clone(), message });
    if args.len() != program.params.len() {
        return refuse(format!("{} arguments for {} parameters", args.len(), program.params.len()));
    }
    let mut bank = vec![0; program.param_bytes as usize];
    for (index, (arg, param)) in args.iter().zip(&program.params).enumerate() {
        let bytes = arg.bytes();
        if bytes.len() != param.bytes as usize {
            let (given, wanted) = (bytes.len(), param.bytes);
            return refuse(format!("argument {index} has {given} bytes, parameter {} has {wanted}", param.name));
        }
        bank[param.offset as usize..param.offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(bank)
}

impl Module {
    /// An entry.
    ///
    /// # Errors
    /// When the module has none of this name.
    pub fn function(&self, name: &str) -> Result<Function> {
        let program = self.entries.get(name).cloned();
        let known = || self.entries.keys().cloned().collect::<Vec<_>>().join(", ");
        program
            .map(|program| Function { program })
            .ok_or_else(|| Error::Host(format!("{} has no entry {name}; it has: {}", self.file, known())))
    }

    /// Names of all entries.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Address and size of a module variable.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.get(name).copied()
    }
}

impl Function {
    /// Parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.program.params
    }

    /// The decoded program.
    pub fn program(&self) -> &Program {
        &self.program
    }
}
