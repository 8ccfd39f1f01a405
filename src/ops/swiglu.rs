//! SwiGLU: `y = silu(g) * u` with `silu(g) = g / (1 + e^-g)`, over rows that hold the gate and then the up half.
//!
//! Saves its input. Backward: `du = dy silu(g)`, `dg = dy u s (1 + g (1 - s))`, `s` the sigmoid of `g`.

use crate::device::Device;
use crate::device::cpu::{grain_rows, simd};
use crate::device::launch::{Grid, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Float, Tensor};
use rayon::prelude::*;

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    /// `[N, 2F]`: gate, then up.
    pub gate_up: Tensor,
}

/// `gate_up [N, 2F] -> [N, F]`.
pub fn forward(arena: &Arena, gate_up: &Tensor) -> Tensor {
    let [n, two_f] = gate_up.shape().rows_cols();
    let (f, dtype) = (two_f / 2, gate_up.dtype());
    let mut y = Tensor::uninit(arena, [n, f], dtype);
    match gate_up.device() {
        Device::Cpu => for_dtype!(dtype, E => rows_forward::<E>(y.as_mut_slice(), gate_up.as_slice(), f)),
        Device::Gpu(gpu) => by_dtype!(
            dtype,
            swiglu_fwd_vector_f32 | swiglu_fwd_vector_bf16,
            (gpu, Grid::elementwise(n * f, dtype.size_bytes()), y.ptr_mut(), gate_up.ptr(), n, f)
        ),
    }
    y
}

fn rows_forward<E: Elem>(y: &mut [E], gate_up: &[E], f: usize) {
    let grain = grain_rows(2 * f);
    y.par_chunks_mut(grain * f).zip(gate_up.par_chunks(grain * 2 * f)).for_each(|(y, gate_up)| {
        simd(
            #[inline(always)]
            || {
                for (y, row) in y.chunks_exact_mut(f).zip(gate_up.chunks_exact(2 * f)) {
                    let (gate, up) = row.split_at(f);
                    for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                        let g = g.load();
                        *y = E::store(g * sigmoid(g) * u.load());
                    }
                }
            },
        )
    });
}

#[inline(always)]
fn sigmoid<F: Float>(x: F) -> F {
    F::ONE / (F::ONE + (-x).exp())
}

/// `dy [N, F] -> dgate_up [N, 2F]`.
pub fn backward(arena: &Arena, dy: &Tensor, saved: &Saved) -> Tensor {
    let ([n, f], dtype, gate_up) = (dy.shape().rows_cols(), dy.dtype(), &saved.gate_up);
    let mut d = Tensor::uninit(arena, gate_up.shape(), dtype);
    match dy.device() {
        Device::Cpu => {
            for_dtype!(dtype, E => rows_backward::<E>(d.as_mut_slice(), dy.as_slice(), gate_up.as_slice(), f));
        }
        Device::Gpu(gpu) => by_dtype!(
            dtype,
            swiglu_bwd_vector_f32 | swiglu_bwd_vector_bf16,
            (gpu, Grid::elementwise(n * f, dtype.size_bytes()), d.ptr_mut(), gate_up.ptr(), dy.ptr(), n, f)
        ),
    }
    d
}

fn rows_backward<E: Elem>(d: &mut [E], dy: &[E], gate_up: &[E], f: usize) {
    let grain = grain_rows(2 * f);
    let rows = d.par_chunks_mut(grain * 2 * f).zip(dy.par_chunks(grain * f)).zip(gate_up.par_chunks(grain * 2 * f));
    rows.for_each(|((d, dy), gate_up)| {
        simd(
            #[inline(always)]
            || {
                let rows = d.chunks_exact_mut(2 * f).zip(dy.chunks_exact(f)).zip(gate_up.chunks_exact(2 * f));
                for ((d, dy), row) in rows {
                    let ((gate, up), (dgate, dup)) = (row.split_at(f), d.split_at_mut(f));
                    for i in 0..f {
                        let (g, u, dy) = (gate[i].load(), up[i].load(), dy[i].load());
                        let s = sigmoid(g);
                        dup[i] = E::store(dy * g * s);
                        dgate[i] = E::store(dy * u * s * (E::Acc::ONE + g * (E::Acc::ONE - s)));
                    }
                }
            },
        )
    });
}

/// Forward in plain loops.
pub fn reference(gate_up: &[f64], f: usize) -> Vec<f64> {
    let row = |row: &[f64]| (0..f).map(|i| row[i] / (1.0 + (-row[i]).exp()) * row[f + i]).collect::<Vec<_>>();
    gate_up.chunks(2 * f).flat_map(row).collect()
}
