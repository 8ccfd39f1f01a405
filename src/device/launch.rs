//! Typed launchers, one per kernel, written by the build script from the signatures in `kernels/*.cu`.
//!
//! The Rust compiler checks the element type and constness of every pointer and the number of arguments; the launch
//! checks sizes. A launcher returns nothing: what goes wrong is kept by the [`Gpu`] and told at its next synchronisation.

use super::driver::{Address, Arg};
use super::gpu::Gpu;
use super::modules::KERNELS;
use half::bf16;
use std::marker::PhantomData;

/// Elements of device memory that a kernel reads, borrowed from a tensor.
pub struct Ptr<'a, E> {
    address: Address,
    elem: PhantomData<&'a E>,
}

/// Elements of device memory that a kernel writes, borrowed from a tensor.
pub struct PtrMut<'a, E> {
    address: Address,
    elem: PhantomData<&'a mut E>,
}

impl<'a, E> Ptr<'a, E> {
    pub(crate) fn new(address: Address) -> Ptr<'a, E> {
        Ptr { address, elem: PhantomData }
    }

    /// Null, for an optional input.
    pub fn none() -> Ptr<'a, E> {
        Ptr::new(Address(0))
    }

    /// The same buffer from `elems` on.
    pub fn part(&self, elems: usize) -> Ptr<'a, E> {
        Ptr::new(self.address.offset(elems * size_of::<E>()))
    }

    /// Whether the first element lies at a multiple of `bytes`.
    pub fn is_aligned(&self, bytes: u64) -> bool {
        self.address.0.is_multiple_of(bytes)
    }

    fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }
}

impl<'a, E> PtrMut<'a, E> {
    pub(crate) fn new(address: Address) -> PtrMut<'a, E> {
        PtrMut { address, elem: PhantomData }
    }

    /// The same buffer from `elems` on: for kernels that write interleaved parts of it.
    pub fn part(&self, elems: usize) -> PtrMut<'_, E> {
        PtrMut::new(self.address.offset(elems * size_of::<E>()))
    }

    /// Null, for an optional output.
    pub fn none() -> PtrMut<'a, E> {
        PtrMut::new(Address(0))
    }

    fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }
}

/// As in `kernels/common/elementwise.cuh`.
const ELEMENTWISE_THREADS: usize = 256;

/// Blocks of a launch, and their dynamic shared memory. The threads of a block are the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: [usize; 3],
    pub smem_bytes: usize,
}

impl Grid {
    /// `blocks` along x.
    pub fn linear(blocks: usize) -> Grid {
        Grid { blocks: [blocks, 1, 1], smem_bytes: 0 }
    }

    /// For an elementwise kernel: 16-byte accesses of the widest type, of `size_bytes`.
    pub fn elementwise(elems: usize, size_bytes: usize) -> Grid {
        Grid::over(elems, ELEMENTWISE_THREADS * 16 / size_bytes)
    }

    /// Enough blocks of `per_block` items for `items`.
    pub fn over(items: usize, per_block: usize) -> Grid {
        Grid::linear(items.div_ceil(per_block))
    }
}

include!(concat!(env!("OUT_DIR"), "/launch.rs"));

/// Calls the f32 or the bf16 kernel by a tensor's storage type: `by_dtype!(x.dtype(), add_f32 | add_bf16, (gpu, ...))`.
macro_rules! by_dtype {
    ($dtype:expr, $f32:ident | $bf16:ident, $args:tt) => {
        match $dtype {
            $crate::tensor::DType::F32 => $crate::device::launch::$f32 $args,
            $crate::tensor::DType::Bf16 => $crate::device::launch::$bf16 $args,
            other => panic!("no kernel computes with {other}"),
        }
    };
}
pub(crate) use by_dtype;
