//! Softmax over the `k` highest scores of each row, zero elsewhere: how a bank of entries is read.
//!
//! `a = softmax(scale s)` over the top `k` of `s [N, M]` (of equal scores the earlier entry comes first), or over all visible entries
//! where they are fewer; a row that sees nothing is zero. The result is dense, so that `o = a V` and the gradient of `V` are products.
//! Saves the `k` indices and weights of each row. Backward: `ds = scale a (da - sum a da)`. Must move 2 `N M` elements forward, `N M`
//! backward.
//!
//! What each entry is worth comes out of the same pass: to first order the loss would rise by
//! `f_i = sum_t a_ti / (1 - a_ti) <dL/do_t, o_t - v_i>` were entry `i` removed and the other weights of its rows renormalised. With
//! `da_ti = <dL/do_t, v_i>` that is `sum_t a_ti sum_j a_tj (da_tj - da_ti) / sum_{j != i} a_tj`; a row with one entry tells nothing of it.

use super::rmsnorm::sum_parts;
use crate::device::Device;
use crate::device::cpu::grain_rows;
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Tensor, TensorMut};
use rayon::prelude::*;

/// Most entries of a read: a lane of a warp each.
pub const TOP_MAX: usize = 32;

/// Stands for no entry.
const NONE: u32 = u32::MAX;

/// How a bank is read.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// Entries of a read, `k`.
    pub top: usize,
    /// Factor of the scores.
    pub scale: f64,
}

/// Which entries a row sees: those that were there before it.
#[derive(Clone, Copy)]
pub struct Sight<'a> {
    /// `[S, M]` u32: when each entry of each of `S` banks came. The rows fall to the banks in equal shares, in order.
    pub born: &'a Tensor,
    /// `[N / t]` u32: `t` rows each see the entries that came before this.
    pub limits: &'a Tensor,
    pub t: usize,
}

/// What backward needs.
#[derive(Debug)]
pub struct Saved {
    /// `[N, k]` u32, the highest score first.
    pub index: Tensor,
    /// `[N, k]` in the accumulator type.
    pub weight: Tensor,
    entries: usize,
    options: Options,
}

/// Whether a score comes before another, later one: NaN first, so that it is seen.
fn is_above<F: Float>(a: F, b: F) -> bool {
    let is_nan = |x: F| x.partial_cmp(&x).is_none();
    a > b || (is_nan(a) && !is_nan(b))
}

/// Scores `[N, M]` -> weights `[N, M]`. Rows see what `sight` says, all entries without it.
pub fn forward(arena: &Arena, scores: &Tensor, sight: Option<Sight>, options: Options) -> (Tensor, Saved) {
    let ([n, m], dtype, top) = (scores.shape().rows_cols(), scores.dtype(), options.top);
    assert!((1..=TOP_MAX).contains(&top), "a read of {top} entries");
    let banks = sight.map_or(1, |sight| sight.born.elems() / m);
    if let Some(Sight { born, limits, t }) = sight {
        assert!(born.elems() == banks * m && n.is_multiple_of(banks) && limits.elems() * t == n, "what rows see");
    }
    let mut y = Tensor::uninit(arena, [n, m], dtype);
    let mut index = Tensor::uninit(arena, [n, top], DType::U32);
    let mut weight = Tensor::uninit(arena, [n, top], dtype.accumulator());
    if let Device::Gpu(gpu) = scores.device() {
        by_dtype!(
            dtype,
            top_k_softmax_fwd_warp_per_row_f32 | top_k_softmax_fwd_warp_per_row_bf16,
            (
                gpu,
                Grid::over(n, BLOCK_ROWS),
                y.ptr_mut(),
                index.ptr_mut(),
                weight.ptr_mut(),
                scores.ptr(),
                sight.map_or(Ptr::none(), |sight| sight.born.ptr()),
                sight.map_or(Ptr::none(), |sight| sight.limits.ptr()),
                options.scale as f32,
                n,
                m,
                top,
                n / banks,
                sight.map_or(1, |sight| sight.t)
            )
        );
        return (y, Saved { index, weight, entries: m, options });
    }
    let sight = sight.map(|Sight { born, limits, t }| (born.as_slice::<u32>(), limits.as_slice::<u32>(), t));
    for_dtype!(dtype, E => {
        let grain = grain_rows(m);
        let rows = y.as_mut_slice::<E>().par_chunks_mut(grain * m).zip(scores.as_slice::<E>().par_chunks(grain * m));
        let chosen = index.as_mut_slice::<u32>().par_chunks_mut(grain * top);
        let chosen = chosen.zip(weight.as_mut_slice::<<E as Elem>::Acc>().par_chunks_mut(grain * top));
        rows.zip(chosen).enumerate().for_each(|(i, ((y, scores), (index, weight)))| {
            let rows = y.chunks_exact_mut(m).zip(scores.chunks_exact(m));
            let chosen = index.chunks_exact_mut(top).zip(weight.chunks_exact_mut(top));
            for (row, ((y, scores), (index, weight))) in rows.zip(chosen).enumerate() {
                let row = i * grain + row;
                let is_seen = |entry: usize| {
                    sight.is_none_or(|(born, limits, t)| born[row / (n / banks) * m + entry] < limits[row / t])
                };
                read_row(y, scores, is_seen, index, weight, <E as Elem>::Acc::from_f64(options.scale));
            }
        })
    });
    (y, Saved { index, weight, entries: m, options })
}

fn read_row<E: Elem>(
    y: &mut [E],
    scores: &[E],
    is_seen: impl Fn(usize) -> bool,
    index: &mut [u32],
    weight: &mut [E::Acc],
    scale: E::Acc,
) {
    type Acc<E> = <E as Elem>::Acc;
    index.fill(NONE);
    let mut held = 0;
    for (i, score) in scores.iter().enumerate() {
        let score = score.load();
        if !is_seen(i) || (held == index.len() && !is_above(score, weight[held - 1])) {
            continue;
        }
        held = (held + 1).min(index.len());
        let mut at = held - 1;
        while at > 0 && is_above(score, weight[at - 1]) {
            (index[at], weight[at]) = (index[at - 1], weight[at - 1]);
            at -= 1;
        }
        (index[at], weight[at]) = (i as u32, score);
    }
    weight[held..].fill(Acc::<E>::ZERO);
    y.fill(E::store(Acc::<E>::ZERO));
    let Some(&peak) = weight[..held].first() else { return };
    weight[..held].iter_mut().for_each(|w| *w = (scale * (*w - peak)).exp());
    let sum = weight[..held].iter().fold(Acc::<E>::ZERO, |sum, w| sum + *w);
    for (w, i) in weight[..held].iter_mut().zip(&*index) {
        *w = *w / sum;
        y[*i as usize] = E::store(*w);
    }
}

/// `da [N, M]` -> `ds [N, M]`. To `statistics [2, M]`, where they are wanted, is added what the removal of each entry would cost, and the sum of its
/// weights.
pub fn backward(arena: &Arena, da: &Tensor, saved: &Saved, statistics: Option<TensorMut>) -> Tensor {
    let (dtype, m, Options { top, scale }) = (da.dtype(), saved.entries, saved.options);
    let [n, _] = saved.index.dims();
    let mut ds = Tensor::uninit(arena, [n, m], dtype);
    if let Device::Gpu(gpu) = da.device() {
        launch_backward(gpu, arena, &mut ds, da, saved, statistics);
        return ds;
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (index, weight) = (saved.index.as_slice::<u32>(), saved.weight.as_slice::<F>());
        let mut cost = vec![F::ZERO; n * top];
        let grain = grain_rows(m);
        let tasks = ds.as_mut_slice::<E>().par_chunks_mut(grain * m).zip(da.as_slice::<E>().par_chunks(grain * m));
        let chosen = index.par_chunks(grain * top).zip(weight.par_chunks(grain * top));
        tasks.zip(chosen).zip(cost.par_chunks_mut(grain * top)).for_each(|(((ds, da), (index, weight)), cost)| {
            ds.fill(E::store(F::ZERO));
            let rows = ds.chunks_exact_mut(m).zip(da.chunks_exact(m)).zip(cost.chunks_exact_mut(top));
            for (((ds, da), cost), (index, weight)) in rows.zip(index.chunks_exact(top).zip(weight.chunks_exact(top))) {
                let held = index.iter().position(|&i| i == NONE).unwrap_or(top);
                let da: [F; TOP_MAX] = std::array::from_fn(|k| if k < held { da[index[k] as usize].load() } else { F::ZERO });
                for k in 0..held {
                    let (mut rise, mut others) = (F::ZERO, F::ZERO);
                    for j in 0..held {
                        rise = weight[j].mul_add(da[j] - da[k], rise);
                        others += if j == k { F::ZERO } else { weight[j] };
                    }
                    ds[index[k] as usize] = E::store(-F::from_f64(scale) * weight[k] * rise);
                    cost[k] = if others > F::ZERO { weight[k] * rise / others } else { F::ZERO };
                }
            }
        });
        if let Some(mut statistics) = statistics {
            let (costs, uses) = statistics.as_mut_slice::<F>().split_at_mut(m);
            for ((&i, cost), weight) in index.iter().zip(&cost).zip(weight).filter(|((i, _), _)| **i != NONE) {
                costs[i as usize] += *cost;
                uses[i as usize] += *weight;
            }
        }
    });
    ds
}

/// Rows of a block; and rows whose statistics one block adds up, for so many entries.
const BLOCK_ROWS: usize = 8;
const PART_ROWS: usize = 256;
const PART_ENTRIES: usize = 256;

fn launch_backward(
    gpu: &Gpu,
    arena: &Arena,
    ds: &mut Tensor,
    da: &Tensor,
    saved: &Saved,
    statistics: Option<TensorMut>,
) {
    let Saved { index, weight, entries: m, options } = saved;
    let [n, top] = index.dims();
    let mut cost = statistics.is_some().then(|| Tensor::uninit(arena, [n, top], DType::F32));
    by_dtype!(
        da.dtype(),
        top_k_softmax_bwd_warp_per_row_f32 | top_k_softmax_bwd_warp_per_row_bf16,
        (
            gpu,
            Grid::over(n, BLOCK_ROWS),
            ds.ptr_mut(),
            cost.as_mut().map_or(PtrMut::none(), |cost| cost.ptr_mut()),
            index.ptr(),
            weight.ptr(),
            da.ptr(),
            options.scale as f32,
            n,
            *m,
            top
        )
    );
    let (Some(mut statistics), Some(cost)) = (statistics, cost) else { return };
    let parts = n.div_ceil(PART_ROWS);
    let mut partial = Tensor::uninit(arena, [parts, 2 * m], DType::F32);
    let grid = Grid { blocks: [m.div_ceil(PART_ENTRIES), parts, 1], smem_bytes: 0 };
    launch::top_k_softmax_bwd_entry_per_thread_f32(
        gpu,
        grid,
        partial.ptr_mut(),
        index.ptr(),
        weight.ptr(),
        cost.ptr(),
        n,
        *m,
        top,
    );
    sum_parts(gpu, &mut statistics, &partial, 0);
}

/// Forward in plain loops; `is_seen(row, entry)`.
pub fn reference(
    scores: &[f64],
    m: usize,
    is_seen: impl Fn(usize, usize) -> bool,
    Options { top, scale }: Options,
) -> Vec<f64> {
    let row = |(row, scores): (usize, &[f64])| {
        let mut order: Vec<usize> = (0..m).filter(|&entry| is_seen(row, entry)).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(top);
        let total: f64 = order.iter().map(|&i| (scale * scores[i]).exp()).sum();
        let mut weights = vec![0.0; m];
        order.iter().for_each(|&i| weights[i] = (scale * scores[i]).exp() / total);
        weights
    };
    scores.chunks(m).enumerate().flat_map(row).collect()
}
