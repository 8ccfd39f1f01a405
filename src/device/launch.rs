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

    fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }
}

impl<'a, E> PtrMut<'a, E> {
    pub(crate) fn new(address: Address) -> PtrMut<'a, E> {
        PtrMut { address, elem: PhantomData }
    }

    /// Null, for an optional output.
    pub fn none() -> PtrMut<'a, E> {
        PtrMut::new(Address(0))
    }

    fn arg(&self) -> Arg {
        Arg::Pointer(self.address)
    }
}

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

    /// Enough blocks of `per_block` items for `items`.
    pub fn over(items: usize, per_block: usize) -> Grid {
        Grid::linear(items.div_ceil(per_block))
    }
}

include!(concat!(env!("OUT_DIR"), "/launch.rs"));
