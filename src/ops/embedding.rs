//! Embedding: `y_n = table[token_n]`; backward `dtable[token_n] += dy_n`, in the order of `n` for every element.

use crate::device::Device;
use crate::device::cpu::{SharedMut, simd};
use crate::for_dtype;
use crate::tensor::{Arena, Elem, Tensor, TensorMut};
use rayon::prelude::*;

/// `table [V, C]`, `tokens [N]` below `V` -> `[N, C]`.
pub fn forward(arena: &Arena, table: &Tensor, tokens: &[u32]) -> Tensor {
    let Device::Cpu = table.device();
    let [v, c] = table.dims();
    assert!(tokens.iter().all(|&t| (t as usize) < v), "token beyond a vocabulary of {v}");
    let mut y = Tensor::uninit(arena, [tokens.len(), c], table.dtype());
    for_dtype!(table.dtype(), E => {
        let table = table.as_slice::<E>();
        y.as_mut_slice::<E>().par_chunks_mut(c).with_min_len(64).zip(tokens).for_each(|(y, &token)| {
            y.copy_from_slice(&table[token as usize * c..][..c]);
        })
    });
    y
}

/// Columns that one task of backward owns: tasks split columns, not rows, so that no two add to one element.
const COLUMNS: usize = 64;

/// `dtable [V, C] += dy [N, C]` by token.
pub fn backward(dtable: &mut TensorMut, dy: &Tensor, tokens: &[u32]) {
    let Device::Cpu = dy.device();
    let [_, c] = dtable.shape().dims();
    for_dtype!(dy.dtype(), E => {
        let dy = dy.as_slice::<E>();
        type F = <E as Elem>::Acc;
        let shared = SharedMut::new(dtable.as_mut_slice::<F>());
        (0..c.div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
            let (start, end) = (block * COLUMNS, ((block + 1) * COLUMNS).min(c));
            simd(
                #[inline(always)]
                || {
                    for (dy, &token) in dy.chunks_exact(c).zip(tokens) {
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
    tokens.iter().flat_map(|&t| table[t as usize * c..][..c].to_vec()).collect()
}

/// Backward in plain loops: `dtable` of `v` rows.
pub fn reference_backward(dy: &[f64], v: usize, c: usize, tokens: &[u32]) -> Vec<f64> {
    let mut dtable = vec![0.0; v * c];
    for (n, &token) in tokens.iter().enumerate() {
        for i in 0..c {
            dtable[token as usize * c + i] += dy[n * c + i];
        }
    }
    dtable
}
