//! Embedding: `y_n = table[token_n]`, zeros where the token is [`NOTHING`]; backward `dtable[token_n] += dy_n`, in the order of `n` for every element.

use crate::device::Device;
use crate::device::cpu::{SharedMut, simd};
use crate::device::launch::{Grid, by_dtype};
use crate::device::packed::{self, PackedMatrix};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// A token that has no row.
pub const NOTHING: u32 = u32::MAX;

/// `table [V, C]`, `tokens [N]` below `V`, or [`NOTHING`] -> `[N, C]`. On a GPU the row of any other token is NaN.
///
/// # Panics
/// On the CPU, if a token is neither.
pub fn forward(arena: &Arena, table: &Tensor, tokens: &Tensor) -> Tensor {
    let ([v, c], n, dtype) = (table.dims(), tokens.elems(), table.dtype());
    let mut y = Tensor::uninit(arena, [n, c], dtype);
    if let Device::Gpu(gpu) = table.device() {
        by_dtype!(
            dtype,
            embedding_fwd_vector_f32 | embedding_fwd_vector_bf16,
            (gpu, Grid::elementwise(n * c, dtype.size_bytes()), y.ptr_mut(), table.ptr(), tokens.ptr(), n, v, c)
        );
        return y;
    }
    let tokens = tokens.as_slice::<u32>();
    assert!(tokens.iter().all(|&t| (t as usize) < v || t == NOTHING), "token beyond a vocabulary of {v}");
    for_dtype!(table.dtype(), E => {
        let table = table.as_slice::<E>();
        y.as_mut_slice::<E>().par_chunks_mut(c).with_min_len(64).zip(tokens).for_each(|(y, &token)| {
            match token {
                NOTHING => y.fill(E::store(<E as Elem>::Acc::ZERO)),
                token => y.copy_from_slice(&table[token as usize * c..][..c]),
            }
        })
    });
    y
}

/// As [`forward`] from a packed table; `[N, C]` in `dtype`, which on a GPU is bf16.
///
/// # Panics
/// As [`forward`].
pub fn forward_packed(arena: &Arena, table: &PackedMatrix, tokens: &Tensor, dtype: DType) -> Tensor {
    match (table.device(), table.dense_rows()) {
        (Device::Cpu, _) => {}
        (Device::Gpu(_), Some(rows)) => return forward(arena, rows, tokens),
        (Device::Gpu(_), None) => return packed::gpu::look_up(arena, table, tokens),
    }
    let ([v, c], tokens) = (table.dims(), tokens.as_slice::<u32>());
    assert!(tokens.iter().all(|&t| (t as usize) < v || t == NOTHING), "token beyond a vocabulary of {v}");
    let mut y = Tensor::uninit(arena, [tokens.len(), c], DType::F32);
    y.as_mut_slice::<f32>().par_chunks_mut(c).with_min_len(64).zip(tokens).for_each(|(y, &token)| match token {
        NOTHING => y.fill(0.0),
        token => table.dequantise_row(token as usize, y),
    });
    y.cast(arena, dtype)
}

/// Columns that one task of backward owns: tasks split columns, not rows, so that no two add to one element.
const COLUMNS: usize = 64;

/// Rows of the table that a block of the backward kernel owns.
const TABLE_ROWS: usize = 16;

/// `dtable [V, C] += dy [N, C]` by token.
pub fn backward(dtable: &mut TensorMut, dy: &Tensor, tokens: &Tensor) {
    let [v, c] = dtable.shape().dims();
    if let Device::Gpu(gpu) = dy.device() {
        by_dtype!(
            dy.dtype(),
            embedding_bwd_table_rows_f32 | embedding_bwd_table_rows_bf16,
            (gpu, Grid::over(v, TABLE_ROWS), dtable.ptr_mut(), tokens.ptr(), dy.ptr(), tokens.elems(), v, c)
        );
        return;
    }
    let tokens = tokens.as_slice::<u32>();
    for_dtype!(dy.dtype(), E => {
        let dy = dy.as_slice::<E>();
        type F = <E as Elem>::Acc;
        let shared = SharedMut::new(dtable.as_mut_slice::<F>());
        (0..c.div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
            let (start, end) = (block * COLUMNS, ((block + 1) * COLUMNS).min(c));
            simd(
                #[inline(always)]
                || {
                    for (dy, &token) in dy.chunks_exact(c).zip(tokens).filter(|(_, token)| **token != NOTHING) {
                        // SAFETY: writes columns start..end of a row; no other task has these columns.
                        let row = unsafe { shared.slice(token as usize * c + start, end - start) };
                        for (d, dy) in row.iter_mut().zip(&dy[start..end]) {
                            *d += dy.load();
                        }
                    }
                },
            )
        })
    });
}

/// Forward in plain loops, any type.
pub fn reference(table: &[f64], c: usize, tokens: &[u32]) -> Vec<f64> {
    let row = |&t: &u32| if t == NOTHING { vec![0.0; c] } else { table[t as usize * c..][..c].to_vec() };
    tokens.iter().flat_map(row).collect()
}

/// Backward in plain loops: `dtable` of `v` rows.
pub fn reference_backward(dy: &[f64], v: usize, c: usize, tokens: &[u32]) -> Vec<f64> {
    let mut dtable = vec![0.0; v * c];
    for (n, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != NOTHING) {
        for i in 0..c {
            dtable[token as usize * c + i] += dy[n * c + i];
        }
    }
    dtable
}
