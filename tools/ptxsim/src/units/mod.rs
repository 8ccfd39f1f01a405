//! What single instructions compute, as plain functions of numbers and slices: no warps, no memory, no scheduling.

// Loops over lanes index several arrays at once; a zip of them hides that.
#![allow(clippy::needless_range_loop)]

pub mod approx;
pub mod tensor_core;
pub mod fragment;
mod fast_mma;
mod exact_mma;
pub mod mma;
pub mod tile;
pub mod sparse;
pub mod swizzle;
pub mod descriptor;
pub mod tensor_map;
pub mod mbarrier;
