//! The seam between our runtime and what executes it: one small trait, a card ([`cuda`]) or the simulator ([`sim`]).
//!
//! All work goes to one stream in order. Copies out of the device and [`Driver::synchronise`] wait; nothing else does.

pub mod cuda;
pub mod sim;

use super::modules::Module;
use std::fmt;

/// Result of the device layer.
pub type Result<T> = std::result::Result<T, DeviceError>;

/// Why the device could not do something: one line with the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No driver, no card, or one that cannot be used.
    #[error("{0}")]
    Unavailable(String),
    #[error(
        "the device is out of memory: {} asked for, {} of {} free; use fewer rows, a shorter seq_len or train.recompute",
        Bytes(*.asked_bytes), Bytes(*.free_bytes), Bytes(*.total_bytes)
    )]
    OutOfMemory { asked_bytes: u64, free_bytes: u64, total_bytes: u64 },
    /// A launch that was refused or failed.
    #[error("{kernel}: {message}")]
    Launch { kernel: String, message: String },
    /// A checker of the simulator found a fault.
    #[error("the simulator found {count} faults; the first, in {kernel}: {first}")]
    Finding { kernel: String, first: String, count: usize },
    /// Any other call that failed.
    #[error("{call}: {message}")]
    Call { call: &'static str, message: String },
}

/// Bytes in words.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 => write!(f, "{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
            bytes if bytes >= 1 << 20 => write!(f, "{:.1} MiB", bytes as f64 / (1u64 << 20) as f64),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// A byte of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Address(pub u64);

impl Address {
    /// `bytes` further on.
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// Compute capability: 8.0, 9.0, ...
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Capability {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Memory of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A loaded module, an entry of one, a moment in the stream, captured work: indices into the driver's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModuleId(pub u32);
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // with the module above
pub struct FunctionId(pub u32);
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // with the module above
pub struct EventId(pub u32);
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // with the module above
pub struct GraphId(pub u32);

/// How a kernel is launched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub grid: [u32; 3],
    /// Threads of a block, along x.
    pub threads: u32,
    /// Dynamic shared memory.
    pub smem_bytes: u32,
}

/// An argument of a launch.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Arg {
    Pointer(Address),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    /// A dimension beyond 32 bits, to be refused.
    TooLarge(usize),
}

impl Arg {
    /// A dimension that the kernel takes in 32 bits.
    pub fn dimension(value: usize) -> Arg {
        u32::try_from(value).map_or(Arg::TooLarge(value), Arg::U32)
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arg::Pointer(address) => write!(f, "{:#x}", address.0),
            Arg::U32(value) => write!(f, "{value}"),
            Arg::I32(value) => write!(f, "{value}"),
            Arg::U64(value) => write!(f, "{value}"),
            Arg::F32(value) => write!(f, "{value}"),
            Arg::F64(value) => write!(f, "{value}"),
            Arg::TooLarge(value) => write!(f, "{value}"),
        }
    }
}

/// What a driver that counts has counted for one kernel, in sums over its launches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    pub launches: u64,
    /// Bytes of all 32-byte sectors that warps moved to and from global memory.
    pub global_bytes_moved: u64,
    /// Bytes that their lanes asked for.
    pub global_bytes_requested: u64,
    pub global_requests: u64,
    pub global_sectors: u64,
    /// Shared-memory wavefronts beyond the fewest possible.
    pub bank_conflicts: u64,
    pub warp_instructions: u64,
    pub tensor_macs: u64,
    pub barriers: u64,
}

/// Deliveries to the device that may be under way at once: one that is used, one that comes next.
pub const LANES: usize = 2;

/// What executes launches and holds device memory.
pub trait Driver: Send + Sync {
    /// The device in words.
    fn name(&self) -> String;

    /// What it can execute.
    fn capability(&self) -> Capability;

    /// Multiprocessors: how many blocks surely run at the same time.
    fn multiprocessors(&self) -> usize;

    /// Free and total memory.
    fn memory(&self) -> Result<Memory>;

    /// Reserves memory, 256-byte aligned; its content is undefined.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory of [`Driver::allocate`] back, after all work that was given before.
    fn free(&self, address: Address) -> Result<()>;

    /// Copies to the device; `from` may change as soon as this returns.
    fn copy_in(&self, to: Address, from: &[u8]) -> Result<()>;

    /// Copies from the device, after all work that was given before.
    fn copy_out(&self, to: &mut [u8], from: Address) -> Result<()>;

    /// Starts bringing bytes to the device beside the stream's work, from pinned memory of the driver's own; `bytes` may
    /// change as soon as this returns. A lane (below [`LANES`]) holds one delivery at a time.
    fn prefetch(&self, lane: usize, bytes: &[u8]) -> Result<()>;

    /// From here on in the stream, what the lane brought lies at `to`.
    fn deliver(&self, lane: usize, to: Address) -> Result<()>;

    /// Copies on the device.
    fn copy_within(&self, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Sets every byte.
    fn set(&self, to: Address, byte: u8, bytes: usize) -> Result<()>;

    /// Says that nobody will read these bytes before they are written again. Drivers may ignore it.
    fn forget(&self, _at: Address, _bytes: usize) {}

    /// Loads a compiled module.
    fn load(&self, module: &Module) -> Result<ModuleId>;

    /// Compiles and loads a module from CUDA C++, where the driver can.
    fn compile(&self, stem: &str, text: &str) -> Result<ModuleId>;

    /// An entry of a module.
    fn function(&self, module: ModuleId, name: &str) -> Result<FunctionId>;

    /// Starts a kernel.
    fn launch(&self, function: FunctionId, geometry: Geometry, args: &[Arg]) -> Result<()>;

    /// Marks this moment of the stream.
    fn record(&self) -> Result<EventId>;

    /// Milliseconds of device time between two moments; waits for the second.
    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32>;

    /// Waits for all work.
    ///
    /// # Errors
    /// What went wrong in it.
    fn synchronise(&self) -> Result<()>;

    /// From here on work is recorded, not done. Allocation and copies to or from the host are refused meanwhile.
    fn begin_capture(&self) -> Result<()>;

    /// Ends the recording.
    fn end_capture(&self) -> Result<GraphId>;

    /// Does recorded work again, with the same addresses.
    fn replay(&self, graph: GraphId) -> Result<()>;

    /// Frees what a recording took, after work that is under way; its number may come again.
    fn free_graph(&self, graph: GraphId) -> Result<()>;

    /// What was counted since the last call, by kernel; empty where the driver does not count.
    fn take_counts(&self) -> std::collections::BTreeMap<String, Counted> {
        Default::default()
    }
}
