//! A GPU: a driver, the modules loaded so far, and the first thing that went wrong.
//!
//! Launches are asynchronous and return nothing. The first error is kept, later work becomes a no-op, and
//! [`Gpu::synchronise`] hands the error out, so that ops read like arithmetic and a step has one place that can fail.

use super::driver::cuda::Cuda;
use super::driver::sim::{Sim, SimOptions};
use super::driver::{
    Address, Arg, Counted, DeviceError, Driver, EventId, FunctionId, Geometry, Memory, ModuleId, Result,
};
use super::launch::Grid;
use super::modules::{self, Kernel};
use super::recording::Graph;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An opened GPU. It lives as long as the process.
pub struct Gpu {
    driver: Box<dyn Driver>,
    /// As the command line writes it: `cuda:0`, `sim`.
    label: String,
    loaded: Mutex<Loaded>,
    first_error: Mutex<Option<DeviceError>>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, ModuleId>,
    functions: HashMap<&'static str, FunctionId>,
    /// Names of the kernels launched since somebody asked.
    launched: BTreeSet<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens the card `index`.
    ///
    /// # Errors
    /// No driver, no such card, or one older than compute capability 8.0.
    pub fn cuda(index: usize) -> Result<&'static Gpu> {
        Ok(Gpu::open(Box::new(Cuda::open(index)?), format!("cuda:{index}")))
    }

    /// Opens a simulated GPU.
    ///
    /// # Errors
    /// When this executable holds no kernels for its architecture.
    pub fn sim(options: SimOptions) -> Result<&'static Gpu> {
        Ok(Gpu::open(Box::new(Sim::open(options)?), "sim".to_string()))
    }

    /// A GPU over any driver.
    pub fn open(driver: Box<dyn Driver>, label: String) -> &'static Gpu {
        let (loaded, first_error) = (Mutex::default(), Mutex::default());
        Box::leak(Box::new(Gpu { driver, label, loaded, first_error }))
    }

    /// What executes the work.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// Free and total memory.
    ///
    /// # Errors
    /// As the driver says.
    pub fn memory(&self) -> Result<Memory> {
        self.driver.memory()
    }

    /// Keeps the first error.
    fn keep<T: Default>(&self, result: Result<T>) -> T {
        result.unwrap_or_else(|error| {
            lock(&self.first_error).get_or_insert(error);
            T::default()
        })
    }

    /// Does something unless an error is waiting to be told.
    pub(super) fn attempt<T: Default>(&self, work: impl FnOnce(&dyn Driver) -> Result<T>) -> T {
        if lock(&self.first_error).is_some() {
            return T::default();
        }
        self.keep(work(&*self.driver))
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// The first thing that went wrong since the last call. The device may be used again after it, but what was computed
    /// since is worth nothing.
    pub fn synchronise(&self) -> Result<()> {
        let own = lock(&self.first_error).take();
        let drivers = self.driver.synchronise();
        own.map_or(drivers, Err)
    }

    /// Reserves memory; null (and an error to be told) when there is too little.
    pub fn allocate(&self, bytes: usize) -> Address {
        self.attempt(|driver| driver.allocate(bytes.max(1)))
    }

    /// Gives memory back; null is nothing.
    pub fn free(&self, address: Address) {
        if address != Address::default() {
            self.keep(self.driver.free(address));
        }
    }

    /// Copies to the device.
    pub fn copy_in(&self, to: Address, from: &[u8]) {
        self.attempt(|driver| driver.copy_in(to, from));
    }

    /// Copies from the device; leaves `to` as it is when an error is waiting to be told.
    pub fn copy_out(&self, to: &mut [u8], from: Address) {
        self.attempt(|driver| driver.copy_out(to, from));
    }

    /// Starts bringing bytes to the device beside its work; a lane (below [`LANES`](super::driver::LANES)) holds one delivery
    /// at a time.
    pub fn prefetch(&self, lane: usize, bytes: &[u8]) {
        self.attempt(|driver| driver.prefetch(lane, bytes));
    }

    /// From here on what the lane brought lies at `to`.
    pub fn deliver(&self, lane: usize, to: Address) {
        self.attempt(|driver| driver.deliver(lane, to));
    }

    /// Copies on the device.
    pub fn copy_within(&self, to: Address, from: Address, bytes: usize) {
        self.attempt(|driver| driver.copy_within(to, from, bytes));
    }

    /// Sets every byte.
    pub fn set(&self, to: Address, byte: u8, bytes: usize) {
        self.attempt(|driver| driver.set(to, byte, bytes));
    }

    /// Says that nobody will read these bytes before they are written again.
    pub fn forget(&self, at: Address, bytes: usize) {
        self.driver.forget(at, bytes);
    }

    /// Starts a kernel. Called by the launchers.
    pub(super) fn launch(&self, kernel: &'static Kernel, grid: Grid, args: &[Arg]) {
        self.attempt(|driver| {
            let geometry = geometry(kernel, grid, args)?;
            if geometry.grid.contains(&0) {
                return Ok(()); // an empty tensor
            }
            let function = self.function(kernel)?;
            driver.launch(function, geometry, args).map_err(|error| named(kernel, grid, args, error))
        });
    }

    /// The kernel's entry, its module loaded when first needed.
    fn function(&self, kernel: &'static Kernel) -> Result<FunctionId> {
        let mut loaded = lock(&self.loaded);
        loaded.launched.insert(kernel.name);
        if let Some(&function) = loaded.functions.get(kernel.name) {
            return Ok(function);
        }
        let module = match loaded.modules.get(kernel.stem) {
            Some(&module) => module,
            None => {
                let module = self.load(kernel.stem)?;
                loaded.modules.insert(kernel.stem, module);
                module
            }
        };
        let function = self.driver.function(module, kernel.name)?;
        loaded.functions.insert(kernel.name, function);
        Ok(function)
    }

    fn load(&self, stem: &str) -> Result<ModuleId> {
        match modules::best(stem, self.driver.capability()) {
            Some(module) => self.driver.load(module),
            None => {
                let text = modules::whole_source(stem);
                let text = text.map_err(|message| DeviceError::Call { call: "compile", message })?;
                self.driver.compile(stem, &text)
            }
        }
    }

    /// Marks this moment of the stream.
    ///
    /// # Errors
    /// As the driver says.
    pub fn record(&self) -> Result<EventId> {
        self.driver.record()
    }

    /// Milliseconds between two moments.
    ///
    /// # Errors
    /// As the driver says.
    pub fn elapsed_ms(&self, start: EventId, end: EventId) -> Result<f32> {
        self.driver.elapsed_ms(start, end)
    }

    /// Records what `work` launches, without doing it.
    ///
    /// # Errors
    /// When something in it cannot be recorded.
    pub fn capture(&'static self, work: impl FnOnce()) -> Result<Graph> {
        self.driver.begin_capture()?;
        work();
        let graph = self.driver.end_capture().map(|id| Graph::new(self, id));
        match lock(&self.first_error).take() {
            Some(error) => Err(error),
            None => graph,
        }
    }

    /// Names of the kernels launched since the last call, on any driver.
    pub fn take_launched(&self) -> Vec<&'static str> {
        std::mem::take(&mut lock(&self.loaded).launched).into_iter().collect()
    }

    /// What was counted since the last call, by kernel.
    pub fn take_counts(&self) -> BTreeMap<String, Counted> {
        self.driver.take_counts()
    }
}

/// Most blocks along y and z.
const BLOCKS_YZ_MAX: usize = 65_535;

fn geometry(kernel: &Kernel, grid: Grid, args: &[Arg]) -> Result<Geometry> {
    let refuse = |what: String| Err(named(kernel, grid, args, DeviceError::Call { call: "launch", message: what }));
    if let Some(i) = args.iter().position(|arg| matches!(arg, Arg::TooLarge(_))) {
        return refuse(format!("{} is beyond 32 bits; use fewer rows", kernel.params[i]));
    }
    let [x, y, z] = grid.blocks;
    if x > i32::MAX as usize || y > BLOCKS_YZ_MAX || z > BLOCKS_YZ_MAX {
        return refuse(format!("more blocks than 2147483647 x {BLOCKS_YZ_MAX} x {BLOCKS_YZ_MAX}; use fewer rows"));
    }
    let Ok(smem_bytes) = u32::try_from(grid.smem_bytes) else { return refuse("too much shared memory".into()) };
    Ok(Geometry { grid: [x as u32, y as u32, z as u32], threads: kernel.threads, smem_bytes })
}

/// The error with the kernel's name, its arguments and its grid.
fn named(kernel: &Kernel, grid: Grid, args: &[Arg], error: DeviceError) -> DeviceError {
    let message = match error {
        DeviceError::Launch { message, .. } | DeviceError::Call { message, .. } => message,
        other => return other,
    };
    let sizes = kernel.params.iter().zip(args).filter(|(_, arg)| !matches!(arg, Arg::Pointer(_)));
    let sizes: Vec<String> = sizes.map(|(name, arg)| format!("{name} = {arg}")).collect();
    let [x, y, z] = grid.blocks;
    let message = format!("{message} (with {}; {x} x {y} x {z} blocks of {})", sizes.join(", "), kernel.threads);
    DeviceError::Launch { kernel: kernel.name.to_string(), message }
}

impl PartialEq for Gpu {
    /// The same opened device.
    fn eq(&self, other: &Gpu) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Gpu {}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::launch::{self, Ptr, PtrMut};
    use ptxsim::options::{AsyncPolicy, Schedule};

    /// A simulated GPU, none where this build has no kernels.
    fn gpu(change: impl FnOnce(&mut SimOptions)) -> Option<&'static Gpu> {
        let mut options = SimOptions::checked();
        change(&mut options);
        (!modules::MODULES.is_empty()).then(|| Gpu::sim(options).unwrap())
    }

    fn upload(gpu: &Gpu, values: &[f32]) -> Address {
        let address = gpu.allocate(4 * values.len());
        gpu.copy_in(address, bytemuck::cast_slice(values));
        address
    }

    fn download(gpu: &Gpu, address: Address, n: usize) -> Vec<f32> {
        let mut values = vec![f32::NAN; n];
        gpu.copy_out(bytemuck::cast_slice_mut(&mut values), address);
        values
    }

    #[test]
    fn elementwise_kernels_at_awkward_sizes_aligned_and_not() {
        for schedule in [Schedule::RoundRobin, Schedule::Reverse, Schedule::Random] {
            let Some(gpu) = gpu(|o| o.run.schedule = schedule) else { return };
            for (n, skip) in [(1, 0), (97, 0), (1024, 0), (2049, 0), (1025, 1), (3000, 3)] {
                let of = |scale: f32| (0..n + skip).map(|i| scale * (i as f32 - 40.0)).collect::<Vec<f32>>();
                let (a, b) = (upload(gpu, &of(1.0)), upload(gpu, &of(0.37)));
                let (sum, half, wide) = (gpu.allocate(4 * (n + skip)), gpu.allocate(2 * n), gpu.allocate(4 * n));
                let at = |address: Address| address.offset(4 * skip);
                launch::add_fwd_vector_f32(
                    gpu,
                    Grid::over(n, 1024),
                    PtrMut::new(at(sum)),
                    Ptr::new(at(a)),
                    Ptr::new(at(b)),
                    n,
                );
                launch::cast_fwd_vector_f32_to_bf16(gpu, Grid::over(n, 1024), PtrMut::new(half), Ptr::new(at(sum)), n);
                launch::cast_fwd_vector_bf16_to_f32(gpu, Grid::over(n, 1024), PtrMut::new(wide), Ptr::new(half), n);
                let (sums, rounded) = (download(gpu, at(sum), n), download(gpu, wide, n));
                launch::fill_fwd_vector_f32(gpu, Grid::over(n, 1024), PtrMut::new(at(sum)), 2.5, n);
                let filled = download(gpu, at(sum), n);
                gpu.synchronise().unwrap();
                for i in 0..n {
                    let want = of(1.0)[skip + i] + of(0.37)[skip + i];
                    assert_eq!(sums[i], want, "{n} {skip} {i}");
                    assert_eq!(rounded[i], half::bf16::from_f32(want).to_f32());
                    assert_eq!(filled[i], 2.5);
                }
                [a, b, sum, half, wide].into_iter().for_each(|address| gpu.free(address));
            }
        }
    }

    #[test]
    fn a_vector_kernel_moves_what_it_must_in_ideal_sectors() {
        let Some(gpu) = gpu(|o| o.run.asynchrony = AsyncPolicy::Early) else { return };
        let n = 1 << 14;
        let (a, b, y) = (upload(gpu, &vec![1.0; n]), upload(gpu, &vec![2.0; n]), gpu.allocate(4 * n));
        launch::add_fwd_vector_f32(gpu, Grid::over(n, 1024), PtrMut::new(y), Ptr::new(a), Ptr::new(b), n);
        let counts = &gpu.take_counts()["add_fwd_vector_f32"];
        assert_eq!((counts.global_bytes_moved, counts.launches), (12 * n as u64, 1));
        // 32 lanes of 16 bytes are 16 sectors.
        assert_eq!(counts.global_sectors, 16 * counts.global_requests);
        assert!(gpu.take_counts().is_empty());
    }

    #[test]
    fn a_fault_is_told_once_and_later_work_is_not_done() {
        let Some(gpu) = gpu(|_| ()) else { return };
        let (x, y) = (upload(gpu, &[1.0; 64]), gpu.allocate(4 * 8));
        launch::add_fwd_vector_f32(gpu, Grid::over(64, 1024), PtrMut::new(y), Ptr::new(x), Ptr::new(x), 64);
        let error = gpu.synchronise().unwrap_err().to_string();
        assert!(
            error.contains("add_fwd_vector_f32")
                && error.contains("bounds/write")
                && error.contains(", kernels/common/"),
            "{error}"
        );
        gpu.synchronise().unwrap();

        launch::add_fwd_vector_f32(gpu, Grid::linear(1 << 40), PtrMut::new(y), Ptr::new(x), Ptr::new(x), 8);
        launch::fill_fwd_vector_f32(gpu, Grid::linear(1), PtrMut::new(y), 7.0, 8); // comes after the error: not done
        let error = gpu.synchronise().unwrap_err().to_string();
        assert!(error.contains("n = 8") && error.contains("fewer rows"), "{error}");
        assert!(download(gpu, y, 8).iter().all(|&v| v != 7.0));
    }

    #[test]
    fn sizes_that_no_launch_takes_are_refused_before_anything_runs() {
        let Some(gpu) = gpu(|_| ()) else { return };
        let (x, y) = (upload(gpu, &[1.0; 8]), upload(gpu, &[7.0; 8]));
        let (tall, smem) =
            (Grid { blocks: [1, 1 << 16, 1], smem_bytes: 0 }, Grid { blocks: [1; 3], smem_bytes: 1 << 20 });
        let cases = [
            (Grid::linear(1), 1 << 32, "n is beyond 32 bits; use fewer rows"),
            (tall, 2, "more blocks than"),
            (Grid { blocks: [1, 1, 1 << 16], smem_bytes: 0 }, 2, "more blocks than"),
            (smem, 2, "shared memory"),
        ];
        for (grid, n, reason) in cases {
            launch::swiglu_fwd_vector_f32(gpu, grid, PtrMut::new(y), Ptr::new(x), n, 2);
            let error = gpu.synchronise().unwrap_err().to_string();
            assert!(error.contains("swiglu_fwd_vector_f32") && error.contains(reason), "{error}");
        }
        assert!(gpu.take_counts().is_empty());
        assert_eq!(download(gpu, y, 8), [7.0; 8]);
    }

    #[test]
    fn out_of_memory_names_the_numbers_and_leaves_the_device_usable() {
        let Some(gpu) = gpu(|o| o.memory_bytes = 4 << 20) else { return };
        let big = gpu.allocate(3 << 20);
        assert_eq!(gpu.allocate(2 << 20), Address(0));
        let error = gpu.synchronise().unwrap_err().to_string();
        assert!(error.contains("2.0 MiB asked for, 1.0 MiB of 4.0 MiB free"), "{error}");
        gpu.free(big);
        let again = upload(gpu, &[4.0; 8]);
        assert_eq!(download(gpu, again, 8), [4.0; 8]);
        gpu.synchronise().unwrap();
    }

    #[test]
    fn captured_work_is_done_when_it_is_replayed() {
        let Some(gpu) = gpu(|_| ()) else { return };
        let (x, y) = (upload(gpu, &[1.0; 8]), upload(gpu, &[0.0; 8]));
        let add = || launch::add_fwd_vector_f32(gpu, Grid::linear(1), PtrMut::new(y), Ptr::new(y), Ptr::new(x), 8);
        let graph = gpu.capture(add).unwrap();
        assert_eq!(download(gpu, y, 8), [0.0; 8]);
        let first = gpu.capture(add).unwrap();
        (0..3).for_each(|_| graph.replay());
        assert_eq!(download(gpu, y, 8), [3.0; 8]);
        drop(first);
        let again = gpu.capture(add).unwrap();
        graph.replay();
        again.replay();
        assert_eq!(download(gpu, y, 8), [5.0; 8]);
        assert!(gpu.capture(|| assert_eq!(gpu.allocate(8), Address(0))).is_err());
        gpu.synchronise().unwrap();
    }
}
