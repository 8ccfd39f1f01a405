//! The driver that runs launches in `ptxsim`: the PTX inside this executable, checked and counted, on any machine.
//!
//! It is synchronous: a launch has ended when the call returns. Findings of the checkers are collected and become an error
//! at the next synchronisation.

use super::{
    Address, Arg, Capability, Counted, DeviceError, Driver, EventId, FunctionId, Geometry, GraphId, LANES, Memory,
    ModuleId, Result,
};
use crate::device::modules::{self, Module};
use ptxsim::checker::Finding;
use ptxsim::host;
use ptxsim::launch::Outcome;
use ptxsim::options::{Checks, Options, TensorMode};
use slab::Slab;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

/// What a simulated GPU is like, and how it is watched.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Architecture whose PTX runs: 8.0 or 9.0.
    pub capability: Capability,
    /// What it says of its multiprocessors; few, so that blocks that take tiles in turn take several in small cases.
    pub multiprocessors: usize,
    /// Memory that it has.
    pub memory_bytes: u64,
    /// Schedule, asynchrony, arithmetic, checkers, threads.
    pub run: Options,
    /// PTX instead of what the executable holds, by stem: for mutation.
    pub substitutes: HashMap<String, Arc<str>>,
}

impl SimOptions {
    /// Every checker on, tensor cores bit for bit.
    pub fn checked() -> SimOptions {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        SimOptions {
            capability: Capability { major: 8, minor: 0 },
            multiprocessors: 2,
            memory_bytes: 64 << 30,
            run: Options { threads, ..Options::default() },
            substitutes: HashMap::new(),
        }
    }

    /// No checker, no counters, plain multiply-adds in tensor cores: several times as fast.
    pub fn fast() -> SimOptions {
        let SimOptions { run, .. } = SimOptions::checked();
        let run = Options { checks: Checks::NONE, tensor: TensorMode::Fast, counters: false, ..run };
        SimOptions { run, ..SimOptions::checked() }
    }
}

/// A simulated GPU.
pub struct Sim {
    options: SimOptions,
    device: RwLock<host::Device>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modules: Vec<host::Module>,
    functions: Vec<host::Function>,
    allocations: HashMap<Address, usize>,
    used_bytes: u64,
    first_finding: Option<Finding>,
    findings: usize,
    counts: BTreeMap<String, Counted>,
    /// Work recorded so far, while a capture runs.
    capture: Option<Vec<Work>>,
    graphs: Slab<Arc<[Work]>>,
    events: Vec<Instant>,
    lanes: [Vec<u8>; LANES],
}

/// A piece of work that can be recorded.
#[derive(Clone)]
enum Work {
    Launch(FunctionId, Geometry, Vec<Arg>),
    Copy { to: Address, from: Address, bytes: usize },
    Set { to: Address, byte: u8, bytes: usize },
    Forget { at: Address, bytes: usize },
}

fn failed(call: &'static str) -> impl Fn(ptxsim::error::Error) -> DeviceError {
    move |error| match error {
        ptxsim::error::Error::Launch { kernel, message } => DeviceError::Launch { kernel, message },
        other => DeviceError::Call { call, message: other.to_string() },
    }
}

impl Sim {
    /// A GPU without allocations.
    ///
    /// # Errors
    /// When this executable holds no kernels, or none for the architecture.
    pub fn open(options: SimOptions) -> Result<Sim> {
        let runs = |module: &&Module| modules::best(module.stem, options.capability).is_some();
        if modules::MODULES.iter().find(runs).is_none() {
            return Err(DeviceError::Unavailable(
                "this executable holds no kernels for the simulator: it was built without nvcc; run tools/get-nvcc and build it again".into(),
            ));
        }
        Ok(Sim { options, device: RwLock::default(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, host::Device> {
        self.device.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, host::Device> {
        self.device.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work, or records it while a capture runs.
    fn submit(&self, work: Work) -> Result<()> {
        if let Some(recorded) = &mut self.state().capture {
            recorded.push(work);
            return Ok(());
        }
        self.perform(&work)
    }

    fn refuse_in_capture(&self, call: &'static str) -> Result<()> {
        match self.state().capture {
            None => Ok(()),
            Some(_) => Err(DeviceError::Call { call, message: "not allowed while work is recorded".into() }),
        }
    }

    fn perform(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch(function, geometry, args) => self.run(*function, *geometry, args),
            &Work::Copy { to, from, bytes } => {
                let mut staged = vec![0; bytes];
                let device = self.read();
                device.read(from.0, &mut staged).and_then(|()| device.write(to.0, &staged)).map_err(failed("copy"))
            }
            &Work::Set { to, byte, bytes } => self.read().fill(to.0, byte, bytes as u64).map_err(failed("set")),
            &Work::Forget { at, bytes } => {
                // A range that is gone already has nothing to forget.
                let _ = self.read().forget(at.0, bytes as u64);
                Ok(())
            }
        }
    }

    fn run(&self, function: FunctionId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        let function = self.state().functions[function.0 as usize].clone();
        let Geometry { grid, threads, smem_bytes } = geometry;
        let geometry =
            ptxsim::launch::Geometry { grid, block: [threads, 1, 1], cluster: None, dynamic_bytes: smem_bytes };
        let args: Vec<host::Arg> = args.iter().map(argument).collect();
        let outcome = self.read().launch(&function, &geometry, &args, &self.options.run).map_err(failed("launch"))?;
        let mut state = self.state();
        if self.options.run.counters {
            count(state.counts.entry(function.program().name.clone()).or_default(), &outcome);
        }
        state.findings += outcome.findings.iter().map(|finding| finding.count as usize).sum::<usize>();
        if state.first_finding.is_none() {
            state.first_finding = outcome.findings.into_iter().next();
        }
        Ok(())
    }
}

fn argument(arg: &Arg) -> host::Arg {
    match *arg {
        Arg::Pointer(address) => host::Arg::Pointer(address.0),
        Arg::U32(value) => host::Arg::U32(value),
        Arg::I32(value) => host::Arg::I32(value),
        Arg::U64(value) => host::Arg::U64(value),
        Arg::F32(value) => host::Arg::F32(value),
        Arg::F64(value) => host::Arg::F64(value),
        Arg::TooLarge(value) => host::Arg::U64(value as u64),
    }
}

fn count(into: &mut Counted, outcome: &Outcome) {
    let report = &outcome.counters;
    into.launches += 1;
    into.global_bytes_moved += report.global_bytes_moved;
    into.global_bytes_requested += report.total.global_bytes_requested;
    into.global_requests += report.total.global_requests;
    into.global_sectors += report.total.global_sectors;
    into.bank_conflicts += report.bank_conflicts;
    into.warp_instructions += report.total.warp_instructions;
    into.tensor_macs += report.total.tensor_macs;
    into.barriers += report.total.barriers;
}

impl Driver for Sim {
    fn name(&self) -> String {
        let checked = if self.options.run.checks == Checks::NONE { "unchecked" } else { "checked" };
        format!("simulated GPU of compute capability {} ({checked})", self.options.capability)
    }

    fn capability(&self) -> Capability {
        self.options.capability
    }

    fn multiprocessors(&self) -> usize {
        self.options.multiprocessors
    }

    fn memory(&self) -> Result<Memory> {
        let total_bytes = self.options.memory_bytes;
        Ok(Memory { free_bytes: total_bytes - self.state().used_bytes, total_bytes })
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.refuse_in_capture("allocate")?;
        let Memory { free_bytes, total_bytes } = self.memory()?;
        if bytes as u64 > free_bytes {
            return Err(DeviceError::OutOfMemory { asked_bytes: bytes as u64, free_bytes, total_bytes });
        }
        let address = Address(self.write().alloc(bytes as u64).map_err(failed("allocate"))?);
        let mut state = self.state();
        state.allocations.insert(address, bytes);
        state.used_bytes += bytes as u64;
        Ok(address)
    }

    fn free(&self, address: Address) -> Result<()> {
        self.write().free(address.0).map_err(failed("free"))?;
        let mut state = self.state();
        let bytes = state.allocations.remove(&address).unwrap_or(0);
        state.used_bytes -= bytes as u64;
        Ok(())
    }

    fn copy_in(&self, to: Address, from: &[u8]) -> Result<()> {
        self.refuse_in_capture("copy to the device")?;
        self.read().write(to.0, from).map_err(failed("copy to the device"))
    }

    fn copy_out(&self, to: &mut [u8], from: Address) -> Result<()> {
        self.refuse_in_capture("copy from the device")?;
        self.read().read(from.0, to).map_err(failed("copy from the device"))
    }

    fn prefetch(&self, lane: usize, bytes: &[u8]) -> Result<()> {
        let lane = &mut self.state().lanes[lane];
        lane.clear();
        lane.extend_from_slice(bytes);
        Ok(())
    }

    fn deliver(&self, lane: usize, to: Address) -> Result<()> {
        let bytes = std::mem::take(&mut self.state().lanes[lane]);
        self.copy_in(to, &bytes)
    }

    fn copy_within(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.submit(Work::Copy { to, from, bytes })
    }

    fn set(&self, to: Address, byte: u8, bytes: usize) -> Result<()> {
        self.submit(Work::Set { to, byte, bytes })
    }

    fn forget(&self, at: Address, bytes: usize) {
        if self.options.run.checks.uninitialised {
            // Recorded too: work that is done again must find the same memory undefined.
            let _ = self.submit(Work::Forget { at, bytes });
        }
    }

    fn load(&self, module: &Module) -> Result<ModuleId> {
        let file = format!("{}.ptx", module.stem);
        let text = self.options.substitutes.get(module.stem).map_or(module.ptx, |text| text);
        let loaded = self.write().load(&file, text).map_err(failed("load"))?;
        let mut state = self.state();
        state.modules.push(loaded);
        Ok(ModuleId(state.modules.len() as u32 - 1))
    }

    fn compile(&self, stem: &str, _text: &str) -> Result<ModuleId> {
        let message = format!("kernels/{stem}.cu is not compiled for capability {}", self.options.capability);
        Err(DeviceError::Call { call: "compile", message })
    }

    fn function(&self, module: ModuleId, name: &str) -> Result<FunctionId> {
        let mut state = self.state();
        let function = state.modules[module.0 as usize].function(name).map_err(failed("find a kernel"))?;
        state.functions.push(function);
        Ok(FunctionId(state.functions.len() as u32 - 1))
    }

    fn launch(&self, function: FunctionId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.submit(Work::Launch(function, geometry, args.to_vec()))
    }

    /// The moment on the host's clock: simulated kernels have no time of their own.
    fn record(&self) -> Result<EventId> {
        let mut state = self.state();
        state.events.push(Instant::now());
        Ok(EventId(state.events.len() as u32 - 1))
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        let state = self.state();
        let [start, end] = [start, end].map(|event| state.events[event.0 as usize]);
        Ok(end.saturating_duration_since(start).as_secs_f32() * 1e3)
    }

    fn synchronise(&self) -> Result<()> {
        let mut state = self.state();
        let count = std::mem::take(&mut state.findings);
        match state.first_finding.take() {
            None => Ok(()),
            Some(finding) => {
                Err(DeviceError::Finding { kernel: finding.kernel.clone(), first: describe(&finding), count })
            }
        }
    }

    fn begin_capture(&self) -> Result<()> {
        self.refuse_in_capture("begin a capture")?;
        self.state().capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.state();
        let Some(recorded) = state.capture.take() else {
            return Err(DeviceError::Call { call: "end a capture", message: "none was begun".into() });
        };
        Ok(GraphId(state.graphs.insert(recorded.into()) as u32))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        let works = self.state().graphs[graph.0 as usize].clone();
        works.iter().try_for_each(|work| self.perform(work))
    }

    fn free_graph(&self, graph: GraphId) -> Result<()> {
        self.state().graphs.remove(graph.0 as usize);
        Ok(())
    }

    fn take_counts(&self) -> BTreeMap<String, Counted> {
        std::mem::take(&mut self.state().counts)
    }
}

/// A finding in one paragraph.
fn describe(finding: &Finding) -> String {
    let Finding { checker, rule, message, line, block, thread, other, .. } = finding;
    let mut text = format!("{checker}/{rule}: {message}, block {block:?}");
    if let Some(thread) = thread {
        text += &format!(", thread {thread:?}");
    }
    text += &format!(", PTX line {} `{}`", line.ptx, line.text.trim());
    if let (Some(file), Some(number)) = (&line.cuda_file, line.cuda_line) {
        text += &format!(", {file}:{number}");
    }
    if let Some(other) = other {
        text += &format!(
            "; the other party: {} in block {:?}, thread {:?}, PTX line {}",
            other.what, other.block, other.thread, other.line.ptx
        );
    }
    text
}
