//! The driver that runs launches on an NVIDIA card, through the CUDA driver API, which is found at run time: the one
//! executable starts on machines without it.
//!
//! One context (the device's primary one), one stream, and a second one that brings batches while the first computes. Every
//! call makes the context current first, so that any thread may call. Code without a module for the card is compiled by NVRTC
//! where that library is present.

use super::{
    Address, Arg, Capability, DeviceError, Driver, EventId, FunctionId, Geometry, GraphId, LANES, Memory, ModuleId,
    Result,
};
use crate::device::modules::Module;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute};
use slab::Slab;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Oldest capability that the kernels are written for: bf16 tensor cores and `cp.async`.
pub const CAPABILITY_MIN: Capability = Capability { major: 8, minor: 0 };

const WAIT_DEFAULT: sys::CUevent_wait_flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;

/// A card.
pub struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Brings deliveries beside `stream`.
    copies: sys::CUstream,
    name: String,
    capability: Capability,
    multiprocessors: usize,
    handles: Mutex<Handles>,
    lanes: [Mutex<Option<Lane>>; LANES],
    /// Work is recorded, not done.
    is_capturing: AtomicBool,
}

/// Memory that a delivery goes through, and when each part of it may be used again.
struct Lane {
    /// Pinned memory of the host, and the card's.
    host: *mut u8,
    card: sys::CUdeviceptr,
    /// Room in both.
    capacity_bytes: usize,
    /// Bytes of the delivery.
    bytes: usize,
    /// The delivery lies in the card's part.
    arrived: sys::CUevent,
    /// The stream has taken it from there.
    taken: sys::CUevent,
}

#[derive(Default)]
struct Handles {
    modules: Vec<sys::CUmodule>,
    functions: Vec<sys::CUfunction>,
    events: Vec<sys::CUevent>,
    graphs: Slab<sys::CUgraphExec>,
}

// SAFETY: the raw handles name objects inside the driver, which any thread may use once the context is current there
// (`bind`); the tables of handles are behind a mutex.
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver API is thread-safe.
unsafe impl Sync for Cuda {}

fn failed(call: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
        let message = format!("{} ({:?})", text.unwrap_or("an error without a name".into()), error.0);
        DeviceError::Call { call, message }
    }
}

fn unavailable(message: impl Into<String>) -> DeviceError {
    DeviceError::Unavailable(message.into())
}

/// Cards that the driver sees, in words, with their capability.
///
/// # Errors
/// When there is no driver, or it does not start.
pub fn cards() -> Result<Vec<(String, Capability)>> {
    start()?;
    let count = result::device::get_count().map_err(failed("count the cards"))?;
    (0..count).map(|index| card(index).map(|(_, name, capability)| (name, capability))).collect()
}

/// Whether NVRTC, which compiles kernels at run time, is here.
pub fn nvrtc_present() -> bool {
    // SAFETY: only opens the library to see whether it is there.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// Finds and starts the driver.
fn start() -> Result<()> {
    // SAFETY: only opens the library to see whether it is there; loading NVIDIA's driver has no precondition.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "no NVIDIA driver was found (libcuda.so.1); install one, or use --device cpu or --device sim",
        ));
    }
    result::init().map_err(|error| {
        let why = failed("init")(error);
        unavailable(format!("the NVIDIA driver does not start ({why}); is a card present, and may this user open it?"))
    })
}

fn attribute(device: sys::CUdevice, what: CUdevice_attribute) -> Result<i32> {
    // SAFETY: `device` was returned by `device::get`; the attributes are plain integers.
    unsafe { result::device::get_attribute(device, what) }.map_err(failed("ask the card"))
}

fn card(index: i32) -> Result<(sys::CUdevice, String, Capability)> {
    let device = result::device::get(index).map_err(failed("open the card"))?;
    let name = result::device::get_name(device).map_err(failed("name the card"))?;
    let major = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
    let minor = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
    Ok((device, name, Capability { major, minor }))
}

impl Cuda {
    /// Opens the card `index`.
    ///
    /// # Errors
    /// No driver, no such card, or one that is too old.
    pub fn open(index: usize) -> Result<Cuda> {
        start()?;
        let count = result::device::get_count().map_err(failed("count the cards"))? as usize;
        if index >= count {
            let what = if count == 0 {
                "the NVIDIA driver sees no card".to_string()
            } else {
                format!("there is no card {index}, the last is {}", count - 1)
            };
            return Err(unavailable(format!("{what}; use --device cpu, --device sim or another index")));
        }
        let (device, name, capability) = card(index as i32)?;
        if capability < CAPABILITY_MIN {
            return Err(unavailable(format!(
                "{name} has compute capability {capability}; the kernels need {CAPABILITY_MIN} (Ampere) or newer; use --device cpu"
            )));
        }
        // SAFETY: `device` was returned by `device::get`. The primary context is kept for the life of the process.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("make a context"))?;
        // SAFETY: `context` was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(failed("enter the context"))?;
        let stream =
            || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("make a stream"));
        Ok(Cuda {
            device,
            context,
            stream: stream()?,
            copies: stream()?,
            name,
            capability,
            multiprocessors: attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            handles: Mutex::default(),
            lanes: Default::default(),
            is_capturing: AtomicBool::new(false),
        })
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context was retained in `open` and is never released.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("enter the context"))
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Recorded copies would read the host's memory when the work is done again, long after it may have gone.
    fn refuse_in_capture(&self, call: &'static str) -> Result<()> {
        match self.is_capturing.load(Ordering::SeqCst) {
            true => Err(DeviceError::Call { call, message: "not allowed while work is recorded".into() }),
            false => Ok(()),
        }
    }

    /// A lane with room for so many bytes; what it had before is given back.
    fn make_lane(&self, old: Option<Lane>, bytes: usize) -> Result<Lane> {
        if let Some(Lane { host, card, arrived, taken, .. }) = old {
            // SAFETY: `host`, `card` and the events were made below and are given back once: nobody else holds them, and
            // no copy that uses them is under way in either stream.
            unsafe {
                result::stream::synchronize(self.copies)
                    .and_then(|()| result::stream::synchronize(self.stream))
                    .and_then(|()| result::free_host(host.cast()))
                    .and_then(|()| result::free_sync(card))
                    .and_then(|()| result::event::destroy(arrived))
                    .and_then(|()| result::event::destroy(taken))
            }
            .map_err(failed("give a delivery's memory back"))?;
        }
        let event =
            || result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("make an event"));
        let capacity_bytes = bytes.next_power_of_two().max(4096);
        // SAFETY: plain allocations; both parts are written before they are read.
        let host = unsafe { result::malloc_host(capacity_bytes, 0) }.map_err(failed("pin memory"))?.cast();
        let Address(card) = self.allocate(capacity_bytes)?;
        Ok(Lane { host, card, capacity_bytes, bytes: 0, arrived: event()?, taken: event()? })
    }

    /// Lets a kernel have all of a block's shared memory: unasked, its static and dynamic parts together get 48 KiB.
    fn allow_shared_memory(&self, function: sys::CUfunction) -> Result<()> {
        let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let fixed = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let dynamic = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let most = attribute(self.device, most)?;
        // SAFETY: the function belongs to a module that is never unloaded.
        unsafe {
            result::function::get_function_attribute(function, fixed)
                .and_then(|fixed| result::function::set_function_attribute(function, dynamic, most - fixed))
        }
        .map_err(failed("ask for shared memory"))
    }

    fn load_image(&self, image: *const c_void) -> std::result::Result<ModuleId, DriverError> {
        // SAFETY: callers pass a whole cubin, or PTX that ends in a zero byte; the driver copies what it needs.
        let module = unsafe { result::module::load_data(image) }?;
        let mut handles = self.handles();
        handles.modules.push(module);
        Ok(ModuleId(handles.modules.len() as u32 - 1))
    }

    fn load_ptx(&self, ptx: &str) -> Result<ModuleId> {
        let text = CString::new(ptx).map_err(|error| DeviceError::Call { call: "load", message: error.to_string() })?;
        self.load_image(text.as_ptr().cast()).map_err(failed("load PTX: is the driver as new as CUDA 13.0 (580)?"))
    }
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn memory(&self) -> Result<Memory> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(failed("ask for free memory"))?;
        Ok(Memory { free_bytes: free as u64, total_bytes: total as u64 })
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.refuse_in_capture("allocate")?;
        self.bind()?;
        // SAFETY: the memory is handed out as undefined; tensors write it before they read it.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Address(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let Memory { free_bytes, total_bytes } = self.memory()?;
                Err(DeviceError::OutOfMemory { asked_bytes: bytes as u64, free_bytes, total_bytes })
            }
            Err(error) => Err(failed("allocate")(error)),
        }
    }

    fn free(&self, address: Address) -> Result<()> {
        self.synchronise()?; // work in the stream may still use it
        // SAFETY: the address came from `allocate`, whose owner frees it once; no work is left that uses it.
        unsafe { result::free_sync(address.0) }.map_err(failed("free"))
    }

    fn copy_in(&self, to: Address, from: &[u8]) -> Result<()> {
        self.refuse_in_capture("copy to the card")?;
        self.bind()?;
        // SAFETY: `to` is inside an allocation with room for `from` (tensors check their extents). The memory is pageable, so
        // the driver has staged all of `from` before the call returns.
        unsafe { result::memcpy_htod_async(to.0, from, self.stream) }.map_err(failed("copy to the card"))
    }

    fn copy_out(&self, to: &mut [u8], from: Address) -> Result<()> {
        self.refuse_in_capture("copy from the card")?;
        self.bind()?;
        // SAFETY: as in `copy_in`, the other way; `to` is borrowed until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(to, from.0, self.stream) }.map_err(failed("copy from the card"))?;
        self.synchronise()
    }

    fn prefetch(&self, lane: usize, bytes: &[u8]) -> Result<()> {
        self.refuse_in_capture("bring a batch")?;
        self.bind()?;
        let mut place = self.lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
        let mut lane = match place.take() {
            Some(lane) if lane.capacity_bytes >= bytes.len() => lane,
            old => self.make_lane(old, bytes.len())?,
        };
        // SAFETY: waits until the delivery before has left the pinned memory; an event never recorded is over.
        unsafe { result::event::synchronize(lane.arrived) }.map_err(failed("wait for a delivery"))?;
        lane.bytes = bytes.len();
        // SAFETY: `host` has room for `capacity_bytes`, no copy reads it (above), and nobody else has its address.
        let pinned = unsafe { std::slice::from_raw_parts_mut(lane.host, bytes.len()) };
        pinned.copy_from_slice(bytes);
        // SAFETY: the card's part has as much room. It is written when the stream has taken the delivery before (`taken`; never
        // recorded, nothing is waited for), and the pinned part stays as it is until `arrived`.
        unsafe {
            result::stream::wait_event(self.copies, lane.taken, WAIT_DEFAULT)
                .and_then(|()| result::memcpy_htod_async(lane.card, pinned, self.copies))
                .and_then(|()| result::event::record(lane.arrived, self.copies))
        }
        .map_err(failed("bring a batch"))?;
        *place = Some(lane);
        Ok(())
    }

    fn deliver(&self, lane: usize, to: Address) -> Result<()> {
        self.refuse_in_capture("take a batch")?;
        self.bind()?;
        let place = self.lanes[lane].lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lane) = &*place else { return Ok(()) };
        // SAFETY: `to` is inside an allocation with room for the delivery (tensors check their extents); the lane's memory
        // and events live until both streams have been waited for (`make_lane`).
        unsafe {
            result::stream::wait_event(self.stream, lane.arrived, WAIT_DEFAULT)
                .and_then(|()| result::memcpy_dtod_async(to.0, lane.card, lane.bytes, self.stream))
                .and_then(|()| result::event::record(lane.taken, self.stream))
        }
        .map_err(failed("take a batch"))
    }

    fn copy_within(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: both ranges are inside allocations (tensors check their extents).
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }.map_err(failed("copy on the card"))
    }

    fn set(&self, to: Address, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: the range is inside an allocation.
        unsafe { result::memset_d8_async(to.0, byte, bytes, self.stream) }.map_err(failed("set memory"))
    }

    fn load(&self, module: &Module) -> Result<ModuleId> {
        self.bind()?;
        // The cubin needs no compilation, but runs on its own generation only; PTX runs on all later ones.
        // Embedded bytes lie anywhere; an ELF image must be aligned.
        let words = module.cubin.chunks(8).map(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        });
        let image: Vec<u64> = words.collect();
        match self.load_image(image.as_ptr().cast()) {
            Ok(loaded) => Ok(loaded),
            Err(_) => self.load_ptx(module.ptx),
        }
    }

    fn compile(&self, stem: &str, text: &str) -> Result<ModuleId> {
        self.bind()?;
        if !nvrtc_present() {
            return Err(unavailable(format!(
                "this executable has no code of kernels/{stem}.cu for {}, and NVRTC (libnvrtc.so) was not found to compile it; build with nvcc (tools/get-nvcc), or use --device cpu",
                self.name
            )));
        }
        let Capability { major, minor } = self.capability;
        let options = cudarc::nvrtc::CompileOptions {
            options: vec![format!("--gpu-architecture=compute_{major}{minor}"), "--std=c++17".into()],
            name: Some(format!("{stem}.cu")),
            ..Default::default()
        };
        let ptx = cudarc::nvrtc::compile_ptx_with_opts(text, options)
            .map_err(|error| DeviceError::Call { call: "compile", message: format!("kernels/{stem}.cu: {error:?}") })?;
        self.load_ptx(&ptx.to_src())
    }

    fn function(&self, module: ModuleId, name: &str) -> Result<FunctionId> {
        self.bind()?;
        let symbol =
            CString::new(name).map_err(|e| DeviceError::Call { call: "find a kernel", message: e.to_string() })?;
        let module = self.handles().modules[module.0 as usize];
        // SAFETY: modules are never unloaded.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(failed("find a kernel"))?;
        self.allow_shared_memory(function)?;
        let mut handles = self.handles();
        handles.functions.push(function);
        Ok(FunctionId(handles.functions.len() as u32 - 1))
    }

    fn launch(&self, function: FunctionId, geometry: Geometry, args: &[Arg]) -> Result<()> {
        self.bind()?;
        let function = self.handles().functions[function.0 as usize];
        let Geometry { grid: [x, y, z], threads, smem_bytes } = geometry;
        let mut values: Vec<u64> = args.iter().map(bits).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
        // SAFETY: number and sizes of the arguments were held against the PTX by the build script and the launcher's types
        // (little-endian: a narrow value is the first bytes of its word); the driver copies them before the call returns. The
        // pointers are borrowed from tensors whose memory is freed only after the stream has been waited for.
        unsafe { result::launch_kernel(function, (x, y, z), (threads, 1, 1), smem_bytes, self.stream, &mut pointers) }
            .map_err(failed("launch"))
    }

    fn record(&self) -> Result<EventId> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("make an event"))?;
        // SAFETY: the event was just made, in the stream's context.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("record an event"))?;
        let mut handles = self.handles();
        handles.events.push(event);
        Ok(EventId(handles.events.len() as u32 - 1))
    }

    fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        self.bind()?;
        let [start, end] = [start, end].map(|event| self.handles().events[event.0 as usize]);
        // SAFETY: both events were made by `record` and are never destroyed.
        unsafe { result::event::synchronize(end).and_then(|()| result::event::elapsed(start, end)) }
            .map_err(failed("read an event"))
    }

    fn synchronise(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream was made in `open` and is never destroyed.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("wait for the card"))
    }

    fn begin_capture(&self) -> Result<()> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream was made in `open`.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("begin a capture"))?;
        self.is_capturing.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        self.bind()?;
        self.is_capturing.store(false, Ordering::SeqCst);
        // SAFETY: the stream was made in `open`; the graph is instantiated once and not needed afterwards.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(failed("end a capture"))?;
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).and(made).map_err(failed("make a graph"))?
        };
        Ok(GraphId(self.handles().graphs.insert(executable) as u32))
    }

    fn replay(&self, graph: GraphId) -> Result<()> {
        self.bind()?;
        let graph = self.handles().graphs[graph.0 as usize];
        // SAFETY: the graph was instantiated by `end_capture`; what `free_graph` destroys is no longer in the table.
        unsafe { result::graph::launch(graph, self.stream) }.map_err(failed("replay"))
    }

    fn free_graph(&self, graph: GraphId) -> Result<()> {
        self.bind()?;
        let graph = self.handles().graphs.remove(graph.0 as usize);
        // SAFETY: as in `replay`; the driver frees a graph that is under way when it is done.
        unsafe { result::graph::exec_destroy(graph) }.map_err(failed("free a graph"))
    }
}

/// The bytes of an argument at the start of a word.
fn bits(arg: &Arg) -> u64 {
    match *arg {
        Arg::Pointer(address) => address.0,
        Arg::U32(value) => value.into(),
        Arg::I32(value) => (value as u32).into(),
        Arg::U64(value) => value,
        Arg::F32(value) => value.to_bits().into(),
        Arg::F64(value) => value.to_bits(),
        Arg::TooLarge(value) => value as u64,
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: `device` is the one whose primary context `open` retained, once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
