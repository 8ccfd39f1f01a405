//! Writes a row for each finished segment into the bank of its stream: a ring, in which the newest takes the place of the oldest.
//!
//! Segment `b` of stream `s = b / segments` has the time `clock[b]`: it is written at `clock[b] mod M`, and sees what was born before that
//! time. The clock goes on by the segments of a stream in a batch. Must move `2 B (d + C)` elements.

use crate::device::Device;
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Tensor};

/// The banks of `S` streams, of `M` rows each.
pub struct Banks<'a> {
    /// `[S, M, d]`.
    pub keys: &'a mut Tensor,
    /// `[S, M, C]`.
    pub values: &'a mut Tensor,
    /// `[S, M]` u32: the time of each row, [`NEVER`] where there is none.
    pub born: &'a mut Tensor,
    /// `[B]` u32: the time of each segment of the next batch, a stream's one after the other.
    pub clock: &'a mut Tensor,
}

/// The time of a row that is not there.
pub const NEVER: u32 = u32::MAX;

/// Rows `keys [B, d]`, `values [B, C]` -> the times `[B]` of their segments.
pub fn forward(arena: &Arena, banks: Banks, keys: &Tensor, values: &Tensor) -> Tensor {
    let Banks { keys: to_keys, values: to_values, born, clock } = banks;
    let ([streams, m, d], [b, c]) = (to_keys.dims(), values.dims());
    let segments = b / streams;
    assert!(b == segments * streams && clock.elems() == b && keys.elems() == b * d, "rows for banks");
    assert!(to_values.elems() == streams * m * c && born.elems() == streams * m, "banks of one size");
    let mut times = Tensor::uninit(arena, [b], DType::U32);
    if let Device::Gpu(gpu) = keys.device() {
        by_dtype!(
            keys.dtype(),
            bank_write_fwd_warp_per_row_f32 | bank_write_fwd_warp_per_row_bf16,
            (
                gpu,
                Grid::linear(b),
                to_keys.ptr_mut(),
                to_values.ptr_mut(),
                born.ptr_mut(),
                clock.ptr_mut(),
                times.ptr_mut(),
                keys.ptr(),
                values.ptr(),
                segments,
                m,
                d,
                c
            )
        );
        return times;
    }
    for_dtype!(keys.dtype(), E => {
        let (keys, values) = (keys.as_slice::<E>(), values.as_slice::<E>());
        let (to_keys, to_values) = (to_keys.as_mut_slice::<E>(), to_values.as_mut_slice::<E>());
        let (born, clock) = (born.as_mut_slice::<u32>(), clock.as_mut_slice::<u32>());
        for (b, (time, clock)) in times.as_mut_slice::<u32>().iter_mut().zip(clock).enumerate() {
            let row = b / segments * m + *clock as usize % m;
            to_keys[row * d..][..d].copy_from_slice(&keys[b * d..][..d]);
            to_values[row * c..][..c].copy_from_slice(&values[b * c..][..c]);
            (born[row], *time) = (*clock, *clock);
            *clock += segments as u32;
        }
    });
    times
}
