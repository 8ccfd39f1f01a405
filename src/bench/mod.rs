//! What is timed: a row for each op, direction, mechanism and type, at sizes for a test, a processor and a card.
//!
//! One list for `cargo bench --bench ops`, the command `bench` and, through its `--list`, the scripts in `tools/peers/`. Bytes and
//! operations stand beside each row: what it must at least move and do, whatever the device does.

mod attention;
mod heads;
pub mod measure;
mod memory;
mod optim;
mod packed;
mod parts;
mod products;
mod rowwise;
mod train_step;

use crate::device::driver::Capability;
use crate::device::{Device, modules};
use crate::tensor::{Arena, DType, Grads, Layout, Role, Shape, Tensor};
use crate::verify;
use half::bf16;
use std::cell::Cell;
use std::sync::{Arc, OnceLock};

/// How large rows are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// Tiny: for tests and the simulator.
    Smoke,
    /// What a small model on a processor computes.
    Host,
    /// What a model of about 124 million parameters on a card computes.
    Card,
}

impl Size {
    /// One of three, by size.
    fn of<T>(self, smoke: T, host: T, card: T) -> T {
        match self {
            Size::Smoke => smoke,
            Size::Host => host,
            Size::Card => card,
        }
    }

    /// Bytes that the tensors of a row may take. On a processor only what is written takes memory.
    pub fn arena_bytes(self) -> usize {
        self.of(16 << 20, 8 << 30, 40 << 30)
    }
}

/// What one run of a row must at least do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Work {
    /// Bytes to and from memory, every operand once; 0 where nobody counts them (whole steps).
    pub bytes: usize,
    /// Floating-point operations of matrix products, two per multiply-add; 0 where memory bounds the row.
    pub flops: usize,
    /// Tokens of a training step.
    pub tokens: usize,
}

impl Work {
    fn bytes(bytes: usize) -> Work {
        Work { bytes, ..Work::default() }
    }
}

/// One run; returns what it computed.
pub type Run = Box<dyn FnMut() -> Vec<Tensor>>;

/// Something to time.
pub struct Row {
    /// Stem of the op's file.
    pub op: &'static str,
    /// `fwd`, `bwd`, ... or nothing.
    pub direction: &'static str,
    /// Part of the name of the kernel that does most of the work on a card of capability 8.0.
    pub mechanism: &'static str,
    pub dtype: DType,
    /// Extents by letter, as in `kernels/README.md`.
    pub extents: Vec<(&'static str, usize)>,
    pub work: Work,
    make: Box<dyn Fn(&Stage) -> Run>,
}

impl Row {
    fn new(
        [op, direction, mechanism]: [&'static str; 3],
        dtype: DType,
        extents: &[(&'static str, usize)],
        work: Work,
        make: impl Fn(&Stage) -> Run + 'static,
    ) -> Row {
        Row { op, direction, mechanism, dtype, extents: extents.to_vec(), work, make: Box::new(make) }
    }

    /// Op, direction, mechanism, type: `rmsnorm_bwd_warp_per_row_bf16`.
    pub fn name(&self) -> String {
        let dtype = self.dtype.to_string();
        let parts = [self.op, self.direction, self.mechanism, &dtype];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_")
    }

    /// The extents in words: `N2048 C384`.
    pub fn extents(&self) -> String {
        self.extents.iter().map(|(letter, extent)| format!("{letter}{extent}")).collect::<Vec<_>>().join(" ")
    }

    /// Makes a set of inputs and what runs on it.
    pub fn prepare(&self, stage: &Stage) -> Run {
        (self.make)(stage)
    }
}

/// Every row of a size for a GPU of capability `on`, or none, bf16 first, which matters most where time is short. Kernels for newer
/// devices alone have rows where this executable has them for this one.
pub fn rows(size: Size, on: Option<Capability>) -> Vec<Row> {
    let of = |dtype: DType| {
        let ops: [fn(Size, DType) -> Vec<Row>; 6] =
            [rowwise::rows, products::rows, attention::rows, memory::rows, parts::rows, heads::rows];
        ops.into_iter().chain([optim::rows, train_step::rows]).flat_map(move |rows| rows(size, dtype))
    };
    let has_wgmma = on.is_some_and(|capability| modules::best("gemm_wgmma", capability).is_some());
    let wgmma = if has_wgmma { products::wgmma_rows(size) } else { Vec::new() };
    let packed = if on.is_none() { packed::rows(size) } else { packed::card_rows(size) };
    of(DType::Bf16).chain(wgmma).chain(of(DType::F32)).chain(packed).collect()
}

/// Length of the pool of random numbers: no multiple of 2, so that long rows do not repeat each other.
const POOL_ELEMS: usize = (1 << 20) - 3;

fn pool() -> &'static [f32] {
    static POOL: OnceLock<Vec<f32>> = OnceLock::new();
    POOL.get_or_init(|| verify::normals("bench", POOL_ELEMS).iter().map(|&x| x as f32).collect())
}

/// Where the inputs of a row are made.
pub struct Stage {
    pub arena: Arena,
    /// Tensors made so far: each starts elsewhere in the pool.
    drawn: Cell<usize>,
}

impl Stage {
    /// A stage whose inputs are those of the `set`-th of several.
    pub fn new(arena: &Arena, set: usize) -> Stage {
        Stage { arena: arena.clone(), drawn: Cell::new(64 * set) }
    }

    fn device(&self) -> Device {
        self.arena.device()
    }

    /// Standard normal values, out of a pool that repeats.
    fn normals(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let (shape, at) = (shape.into(), self.drawn.get());
        self.drawn.set(at + 1);
        let values = pool().iter().cycle().skip(at * 7919 % POOL_ELEMS).take(shape.elems());
        match dtype {
            DType::Bf16 => {
                let values: Vec<bf16> = values.map(|&x| bf16::from_f32(x)).collect();
                Tensor::from_slice(&self.arena, shape, &values)
            }
            _ => Tensor::from_slice(&self.arena, shape, &values.copied().collect::<Vec<f32>>()),
        }
    }

    /// `n` integers below `bound`.
    fn ids(&self, n: usize, bound: usize) -> Tensor {
        self.drawn.set(self.drawn.get() + 1);
        let name = format!("bench {}", self.drawn.get());
        Tensor::from_slice(&self.arena, [n], &verify::integers(&name, n, bound))
    }

    /// Zeroed gradients of parameters of these shapes, which are computed with in `dtype`.
    fn grads(&self, dtype: DType, shapes: &[&[usize]]) -> Grads {
        let mut layout = Layout::default();
        for (i, &shape) in shapes.iter().enumerate() {
            layout.push(format!("{i}"), shape, Role::Matrix);
        }
        Grads::zeros_on(self.device(), Arc::new(layout), dtype)
    }
}

/// Runs an op that takes its operand and returns it, on its own last result: so no copy is timed.
fn in_place(value: &mut Option<Tensor>, op: impl FnOnce(Tensor) -> Tensor) -> Vec<Tensor> {
    let taken = value.take().expect("put back by the call before");
    let result = op(taken);
    *value = Some(result.clone());
    vec![result]
}
