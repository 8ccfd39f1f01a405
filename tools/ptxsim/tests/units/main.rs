//! The units (what single instructions compute) against independent computations and against recorded hardware.

// Loops over lanes index several arrays at once.
#![allow(clippy::needless_range_loop)]

mod card;
mod tensor_core;
mod fast_mma;
mod exact_mma;
mod tile;
mod rounding;
mod exact;
mod approx;
mod fragment;
mod descriptor;
mod tensor_map;
mod mbarrier;

/// The generator of the recorded inputs (xorshift32).
pub struct Rng(pub u32);

impl Rng {
    pub fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}
