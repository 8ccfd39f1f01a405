//! Arithmetic of one lane, and the loops that apply it to a warp: a table row per instruction form.

#[macro_use]
pub mod lanes;
pub mod round;
pub mod integer;
pub mod exact;
pub mod float;
pub mod half;
pub mod compare;
pub mod convert;
pub mod fp8;
pub mod video;
