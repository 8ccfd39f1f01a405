//! Attention of the next tokens of cached sequences, whose keys and values lie in pages of [`PAGE_TOKENS`] tokens.
//!
//! [`write`] takes packed rows `[q k v]` apart: queries and keys are normed (QK-norm) and rotated as in [`rope`](super::rope), keys and
//! values go to their slots in the pools. [`attend`]: `o_t = sum_s p_ts v_s`, `p_t = softmax of <q_t, k_s> / sqrt(D)` over the keys of the
//! row's own sequence from `position + 1 - window` (0 without a window) to its position. Query head `j` reads key/value head `j / (H / G)`.
//! Nothing is saved: what is cached takes no gradient.
//!
//! The order of every sum follows from the position alone: keys come in blocks that are counted from the beginning of the sequence, on a
//! GPU in parts of [`SPLIT_KEYS`] whose results are added up one after the other. So a row has the same bits whatever else is in the pass,
//! however its sequence came in pieces, and wherever its pages lie. In bf16 and usual widths rows and heads that read the same keys meet
//! them on tensor cores, as slots of a product that do not see each other.

mod gpu;

use super::rmsnorm::norm_row;
use super::rope::{Heads, QkNorm, Table, rotate_head};
use crate::device::Device;
use crate::device::cpu::{SharedMut, grain_rows, max_of, simd, sum_zip};
use crate::device::launch::{Grid, Ptr, by_dtype};
use crate::tensor::{Arena, DType, Elem, Float, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 16;

/// Keys of a block of the CPU's online softmax: with 64 columns their 16 KiB stay in L1 for all the heads that read them.
const BLOCK_KEYS: usize = 64;
/// Keys of a part of the kernels.
const SPLIT_KEYS: usize = 256;
/// Most query heads that read one key head, and columns of a head, in the kernels: queries and scores of a part lie in shared memory.
const GROUP_MAX: usize = 16;
const HEAD_COLS: usize = 256;
/// Query heads in rows of a block on tensor cores.
const TILE_SLOTS: usize = 64;
/// Rows and heads of a block of the writing and of the combining kernel: a warp each.
const BLOCK_WARPS: usize = 8;
/// Below so many multiply-adds one thread is done before another has woken.
const ALONE_MAX: usize = 1 << 17;

/// Runs `$body` with `$E` bound to the type of rows and `$P` to that of the pools: narrower ones are the CPU's own.
macro_rules! for_types {
    ($rows:expr, $pools:expr, $E:ident, $P:ident => $body:expr) => {
        for_types!(@ $rows, $pools, $E, $P, $body, (F32, f32, F32, f32), (F32, f32, Bf16, bf16), (Bf16, bf16, F32, f32),
            (Bf16, bf16, Bf16, bf16), (F64, f64, F64, f64))
    };
    (@ $rows:expr, $pools:expr, $E:ident, $P:ident, $body:expr, $(($row:ident, $e:ty, $pool:ident, $p:ty)),+) => {
        match ($rows, $pools) {
            $((DType::$row, DType::$pool) => {
                type $E = $e;
                type $P = $p;
                $body
            })+
            (rows, pools) => panic!("rows of {rows} over a pool of {pools}"),
        }
    };
}

/// The row of the pools that takes key and value of a position, in a sequence with these pages.
///
/// # Panics
/// If it has too few.
pub fn slot(pages: &[u32], position: usize) -> u32 {
    pages[position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32
}

/// Where the rows of a pass belong.
#[derive(Clone, Debug)]
pub struct Placement {
    /// `[N]` u32 each: the sequence of a row, its position there, and the row of the pools that takes its key and value.
    sequences: Tensor,
    positions: Tensor,
    slots: Tensor,
    /// `[sequences, P]` u32: the pages of each.
    tables: Tensor,
    /// The largest position.
    last: usize,
    /// Keys that all rows see together, without a window.
    seen: usize,
    /// `[T, 2]` u32: the first row of a block of rows of one sequence that follow each other, and how many; none where each row is one.
    tiles: Option<Tensor>,
}

impl Placement {
    /// Of pieces behind each other: the position of the first token, tokens, and the pages of the sequence. `shared` query heads read a key
    /// head.
    ///
    /// # Panics
    /// If there is no token, or a sequence has too few pages.
    pub fn new<'a>(
        arena: &Arena,
        pieces: impl IntoIterator<Item = (usize, usize, &'a [u32])>,
        shared: usize,
    ) -> Placement {
        let pieces: Vec<(usize, usize, &[u32])> = pieces.into_iter().collect();
        let [mut sequences, mut positions, mut slots] = [(); 3].map(|()| Vec::new());
        let pages = pieces.iter().map(|(start, t, _)| (start + t).div_ceil(PAGE_TOKENS)).max().unwrap_or(0);
        let mut tables = Vec::with_capacity(pieces.len() * pages);
        for (sequence, (start, t, table)) in pieces.iter().enumerate() {
            let used = (start + t).div_ceil(PAGE_TOKENS);
            assert!(used <= table.len(), "{used} pages of tokens in a table of {}", table.len());
            tables.extend_from_slice(&table[..used]);
            tables.resize((sequence + 1) * pages, 0);
            for position in *start..start + t {
                sequences.push(sequence as u32);
                positions.push(position as u32);
                slots.push(slot(table, position));
            }
        }
        let tiles = (arena.device().is_gpu() && pieces.iter().any(|(_, t, _)| *t > 1)).then(|| {
            let (most, mut tiles, mut row) = ((TILE_SLOTS / shared).max(1), Vec::new(), 0);
            for (_, t, _) in &pieces {
                tiles
                    .extend((0..*t).step_by(most).flat_map(|first| [(row + first) as u32, most.min(t - first) as u32]));
                row += t;
            }
            Tensor::from_slice(arena, [tiles.len() / 2, 2], &tiles)
        });
        let last = *positions.iter().max().expect("a token") as usize;
        let seen = positions.iter().map(|&position| position as usize + 1).sum();
        let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
        Placement {
            sequences: ids(&sequences),
            positions: ids(&positions),
            slots: ids(&slots),
            tables: Tensor::from_slice(arena, [pieces.len(), pages], &tables),
            last,
            seen,
            tiles,
        }
    }

    /// Of one row of each of `n` sequences, from tensors on a GPU: positions, slots, and tables of pages `[n, P]`; no position is beyond `last`.
    /// What they hold may change from pass to pass.
    pub fn of_rows([sequences, positions, slots]: [Tensor; 3], tables: Tensor, last: usize) -> Placement {
        let seen = (last + 1) * positions.elems();
        Placement { sequences, positions, slots, tables, last, seen, tiles: None }
    }

    /// The largest position that passes with the kernels of `last` take: those of whole parts, twice as many from one to the next.
    pub fn round_up(last: usize) -> usize {
        (last / SPLIT_KEYS + 1).next_power_of_two() * SPLIT_KEYS - 1
    }

    /// Rows of the pass.
    pub fn rows(&self) -> usize {
        self.positions.elems()
    }
}

/// `qkv [N, (H + 2G) D]` -> `q [N, H D]`, normed and rotated; keys and values go to the pools `[slots, G D]`, which on the CPU may store
/// narrower.
///
/// # Panics
/// If a position lies beyond the table, or a slot beyond the pools.
pub fn write(
    arena: &Arena,
    qkv: &Tensor,
    heads: Heads,
    placement: &Placement,
    table: &Table,
    norm: Option<QkNorm>,
    [k, v]: [&mut Tensor; 2],
) -> Tensor {
    let ([n, row], Heads { h, g, d }) = (qkv.shape().rows_cols(), heads);
    assert!(row == heads.row_elems() && n == placement.rows(), "{n} rows of {row} for {heads:?}");
    let (last, positions) = (placement.last, table.positions());
    assert!(last < positions, "position {last} beyond a table of {positions}");
    assert_eq!(k.shape(), v.shape(), "pools of keys and of values");
    let mut q = Tensor::uninit(arena, [n, h * d], qkv.dtype());
    if let Device::Gpu(gpu) = qkv.device() {
        assert!(k.dtype() == qkv.dtype() && d <= HEAD_COLS, "a pool of {} for heads of {d}", k.dtype());
        let eps = norm.map_or(0.0, |norm| norm.eps as f32);
        by_dtype!(
            qkv.dtype(),
            paged_attention_fwd_write_rows_f32 | paged_attention_fwd_write_rows_bf16,
            (
                gpu,
                Grid::over(n * (h + 2 * g), BLOCK_WARPS),
                q.ptr_mut(),
                k.ptr_mut(),
                v.ptr_mut(),
                qkv.ptr(),
                placement.positions.ptr(),
                placement.slots.ptr(),
                table.cos.ptr(),
                table.sin.ptr(),
                norm.map_or(Ptr::none(), |norm| norm.q_gain.ptr()),
                norm.map_or(Ptr::none(), |norm| norm.k_gain.ptr()),
                eps,
                n,
                h,
                g,
                d
            )
        );
        return q;
    }
    for_types!(qkv.dtype(), k.dtype(), E, P => {
        let rows = Rows::<E> { qkv: qkv.as_slice(), heads, placement, table, norm };
        rows.write::<P>(q.as_mut_slice(), &[k, v].map(|pool| SharedMut::new(pool.as_mut_slice())));
    });
    q
}

/// What [`write`] reads on the CPU.
struct Rows<'a, E> {
    qkv: &'a [E],
    heads: Heads,
    placement: &'a Placement,
    table: &'a Table,
    norm: Option<QkNorm<'a>>,
}

impl<E: Elem> Rows<'_, E> {
    /// Takes all rows apart.
    fn write<P: Elem<Acc = E::Acc>>(&self, q: &mut [E], pools: &[SharedMut<P>; 2]) {
        let Heads { h, g, d } = self.heads;
        let row = self.heads.row_elems();
        let (positions, slots) = (self.placement.positions.as_slice::<u32>(), self.placement.slots.as_slice::<u32>());
        let grain = grain_rows(row);
        let task = |(task, (q, x)): (usize, (&mut [E], &[E]))| {
            let mut head = vec![E::store(E::Acc::ZERO); d];
            for (i, (q, x)) in q.chunks_exact_mut(h * d).zip(x.chunks_exact(row)).enumerate() {
                let (position, slot) = (positions[task * grain + i] as usize, slots[task * grain + i] as usize);
                // SAFETY: a slot belongs to one token of one sequence, so to one row: nobody else writes it, and nobody reads meanwhile.
                let [k, v] = pools.each_ref().map(|pool| unsafe { pool.slice(slot * g * d, g * d) });
                simd(
                    #[inline(always)]
                    || {
                        for (index, x) in x.chunks_exact(d).enumerate() {
                            if index < h {
                                self.rotated(&mut q[index * d..][..d], x, index, position);
                                continue;
                            }
                            let (to, from): (&mut [P], &[E]) = if index < h + g {
                                self.rotated(&mut head, x, index, position);
                                (&mut k[(index - h) * d..][..d], &head)
                            } else {
                                (&mut v[(index - h - g) * d..][..d], x)
                            };
                            to.iter_mut().zip(from).for_each(|(to, from)| *to = P::store(from.load()));
                        }
                    },
                )
            }
        };
        let tasks = (q.chunks_mut(grain * h * d)).zip(self.qkv.chunks(grain * row)).enumerate();
        match positions.len() <= grain {
            true => tasks.for_each(task),
            false => tasks.collect::<Vec<_>>().into_par_iter().for_each(task),
        }
    }

    /// One head of one row, normed where there is a norm, and rotated.
    #[inline(always)]
    fn rotated(&self, y: &mut [E], x: &[E], index: usize, position: usize) {
        match self.norm {
            Some(QkNorm { q_gain, k_gain, eps }) => {
                let gain = if index < self.heads.h { q_gain } else { k_gain };
                norm_row(y, x, gain.as_slice::<E>(), eps);
            }
            None => y.copy_from_slice(x),
        }
        let half = self.heads.d / 2;
        let [cos, sin] = [&self.table.cos, &self.table.sin].map(|t| &t.as_slice::<E::Acc>()[position * half..][..half]);
        let (low, high) = y.split_at_mut(half);
        rotate_head(low, high, cos, sin, |x| x);
    }
}

/// `q [N, H D]` -> `[N, H D]`: each row attends to what its sequence has in the pools `[slots, G D]`, its own key included.
pub fn attend(
    arena: &Arena,
    q: &Tensor,
    [k, v]: [&Tensor; 2],
    heads: Heads,
    placement: &Placement,
    window: Option<usize>,
) -> Tensor {
    let ([n, row], Heads { h, g, d }) = (q.shape().rows_cols(), heads);
    assert!(row == h * d && h % g == 0 && n == placement.rows(), "{n} rows of {row} for {heads:?}");
    if let Device::Gpu(gpu) = q.device() {
        return gpu::attend(gpu, arena, q, [k, v], heads, placement, window);
    }
    let mut out = Tensor::uninit(arena, [n, h * d], q.dtype());
    for_types!(q.dtype(), k.dtype(), E, P => {
        let attention = Attention::<E, P> {
            q: q.as_slice(),
            k: k.as_slice(),
            v: v.as_slice(),
            heads,
            sequences: placement.sequences.as_slice(),
            positions: placement.positions.as_slice(),
            tables: placement.tables.as_slice(),
            pages: placement.tables.dims::<2>()[1],
            window,
        };
        let to = SharedMut::new(out.as_mut_slice::<E>());
        let task = |i: usize| simd(
            #[inline(always)]
            || attention.row_and_group(&to, i / g, i % g),
        );
        match placement.seen * h * d <= ALONE_MAX {
            true => (0..n * g).for_each(task),
            false => (0..n * g).into_par_iter().for_each(task),
        }
    });
    out
}

/// What [`attend`] reads on the CPU.
struct Attention<'a, E, P> {
    q: &'a [E],
    k: &'a [P],
    v: &'a [P],
    heads: Heads,
    sequences: &'a [u32],
    positions: &'a [u32],
    tables: &'a [u32],
    /// Pages of a row of `tables`.
    pages: usize,
    window: Option<usize>,
}

impl<E: Elem, P: Elem<Acc = E::Acc>> Attention<'_, E, P> {
    /// The query heads of row `i` that read key/value head `group`.
    #[inline(always)]
    fn row_and_group(&self, out: &SharedMut<E>, i: usize, group: usize) {
        let Heads { h, g, d } = self.heads;
        let (shared, at) = (h / g, i * h * d + group * (h / g) * d);
        // SAFETY: this task alone writes these heads of this row.
        let out = unsafe { out.slice(at, shared * d) };
        let heads = self.q[at..at + shared * d].chunks(HEADS * d).zip(out.chunks_mut(HEADS * d));
        for (q, out) in heads {
            match q.len() / d {
                1 => self.heads::<1>(out, q, i, group),
                2 => self.heads::<2>(out, q, i, group),
                3 => self.heads::<3>(out, q, i, group),
                _ => self.heads::<HEADS>(out, q, i, group),
            }
        }
    }

    /// Some of these heads: `q` and `out` `[SHARED, D]`.
    #[inline(always)]
    fn heads<const SHARED: usize>(&self, out: &mut [E], q: &[E], i: usize, group: usize) {
        let (Heads { g, d, .. }, position) = (self.heads, self.positions[i] as usize);
        let table = &self.tables[self.sequences[i] as usize * self.pages..][..self.pages];
        let scale = E::Acc::from_f64(1.0 / (d as f64).sqrt());
        let mut queries = vec![[[E::Acc::ZERO; VECTOR]; SHARED]; d.div_ceil(VECTOR)];
        for (head, q) in q.chunks_exact(d).enumerate() {
            for (k, q) in q.iter().enumerate() {
                queries[k / VECTOR][head][k % VECTOR] = q.load() * scale;
            }
        }
        let mut sums = vec![[[E::Acc::ZERO; VECTOR]; SHARED]; queries.len()];
        let mut peaks_and_weights = [(E::Acc::NEG_INFINITY, E::Acc::ZERO); SHARED];
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut rows = [0; BLOCK_KEYS];
        for block in first / BLOCK_KEYS..=position / BLOCK_KEYS {
            let keys = first.max(block * BLOCK_KEYS)..(position + 1).min((block + 1) * BLOCK_KEYS);
            let rows = &mut rows[..keys.len()];
            for (row, key) in rows.iter_mut().zip(keys) {
                let slot = table[key / PAGE_TOKENS] as usize * PAGE_TOKENS + key % PAGE_TOKENS;
                *row = (slot * g + group) * d;
            }
            self.block(&mut sums, &mut peaks_and_weights, &queries, rows);
        }
        for (head, out) in out.chunks_exact_mut(d).enumerate() {
            let inverse = E::Acc::ONE / peaks_and_weights[head].1;
            for (k, out) in out.iter_mut().enumerate() {
                *out = E::store(sums[k / VECTOR][head][k % VECTOR] * inverse);
            }
        }
    }

    /// Scaled queries meet a block of keys, which begin at `rows` of the pool: of each its running sum of values, and its peak and sum of
    /// weights.
    #[inline(always)]
    fn block<const SHARED: usize>(
        &self,
        sums: &mut [[[E::Acc; VECTOR]; SHARED]],
        peaks_and_weights: &mut [(E::Acc, E::Acc); SHARED],
        queries: &[[[E::Acc; VECTOR]; SHARED]],
        rows: &[usize],
    ) {
        let d = self.heads.d;
        let mut parts = [[[E::Acc::ZERO; VECTOR]; SHARED]; BLOCK_KEYS];
        for (parts, &row) in parts.iter_mut().zip(rows) {
            dot_parts(parts, queries, &self.k[row..row + d]);
        }
        let mut scores = [[E::Acc::ZERO; BLOCK_KEYS]; SHARED];
        for (head, (peak, weight)) in peaks_and_weights.iter_mut().enumerate() {
            let scores = &mut scores[head][..rows.len()];
            for (score, parts) in scores.iter_mut().zip(&parts) {
                let p = &parts[head];
                *score = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
            }
            let new_peak = peak.max(max_of(scores));
            let correction = (*peak - new_peak).exp();
            scores.iter_mut().for_each(|score| *score = (*score - new_peak).exp());
            *weight = *weight * correction + sum_zip(scores, scores, |score, _, sum: E::Acc| sum + score);
            *peak = new_peak;
            sums.iter_mut().flat_map(|vector| &mut vector[head]).for_each(|sum| *sum *= correction);
        }
        let value = |row: usize| &self.v[row..row + d];
        let (fours, rest) = rows.as_chunks::<4>();
        for (i, &[r0, r1, r2, r3]) in fours.iter().enumerate() {
            add_values(sums, &scores, 4 * i, [value(r0), value(r1), value(r2), value(r3)]);
        }
        for (i, &row) in rest.iter().enumerate() {
            add_values(sums, &scores, 4 * fours.len() + i, [value(row)]);
        }
    }
}

/// A vector of f32.
const VECTOR: usize = 8;
/// Query heads that meet a key or a value together: their sums and what they meet fill the registers.
const HEADS: usize = 4;

/// The products of a key `[D]` with queries, each in eight parts to be added up. What is behind the end of the queries is zero.
#[inline(always)]
fn dot_parts<const SHARED: usize, F: Float, P: Elem<Acc = F>>(
    parts: &mut [[F; VECTOR]; SHARED],
    queries: &[[[F; VECTOR]; SHARED]],
    key: &[P],
) {
    // Plain loops over arrays, and sums that end in memory: `map` is not always inlined, and a sum across them would tear the vectors.
    let mut sums = [[F::ZERO; VECTOR]; SHARED];
    let (vectors, rest) = key.as_chunks::<VECTOR>();
    for (queries, key) in queries.iter().zip(vectors) {
        for head in 0..SHARED {
            for lane in 0..VECTOR {
                sums[head][lane] = queries[head][lane].mul_add(key[lane].load(), sums[head][lane]);
            }
        }
    }
    *parts = sums;
    if !rest.is_empty() {
        let queries = &queries[vectors.len()];
        for (parts, queries) in parts.iter_mut().zip(queries) {
            parts.iter_mut().zip(queries).zip(rest).for_each(|((sum, &q), k)| *sum = q.mul_add(k.load(), *sum));
        }
    }
}

/// Adds the values `[KEYS, D]` of the keys of a block from `first` on, one after the other, to the sums of heads that gave them these
/// weights.
#[inline(always)]
fn add_values<const SHARED: usize, const KEYS: usize, F: Float, P: Elem<Acc = F>>(
    sums: &mut [[[F; VECTOR]; SHARED]],
    weights: &[[F; BLOCK_KEYS]; SHARED],
    first: usize,
    values: [&[P]; KEYS],
) {
    let mut of_keys = [[F::ZERO; KEYS]; SHARED];
    for (of_keys, weights) in of_keys.iter_mut().zip(weights) {
        of_keys.copy_from_slice(&weights[first..first + KEYS]);
    }
    let whole = values[0].len() / VECTOR;
    for (i, sums) in sums.iter_mut().enumerate().take(whole) {
        let mut now = *sums;
        for key in 0..KEYS {
            let value = &values[key].as_chunks::<VECTOR>().0[i];
            for head in 0..SHARED {
                for lane in 0..VECTOR {
                    now[head][lane] = of_keys[head][key].mul_add(value[lane].load(), now[head][lane]);
                }
            }
        }
        *sums = now;
    }
    for sums in &mut sums[whole..] {
        for (sums, weights) in sums.iter_mut().zip(of_keys) {
            for (value, weight) in values.iter().zip(weights) {
                let rest = &value[whole * VECTOR..];
                sums.iter_mut().zip(rest).for_each(|(sum, v)| *sum = weight.mul_add(v.load(), *sum));
            }
        }
    }
}

/// [`attend`] in plain loops, all rows of one sequence from its beginning: `q [N, H D]`, `k`, `v [N, G D]` -> `[N, H D]`.
pub fn reference(q: &[f64], [k, v]: [&[f64]; 2], heads: Heads, window: Option<usize>) -> Vec<f64> {
    let Heads { h, g, d } = heads;
    let n = q.len() / (h * d);
    let mut out = vec![0.0; n * h * d];
    for (i, head) in (0..n).flat_map(|i| (0..h).map(move |head| (i, head))) {
        let (q, group) = (&q[(i * h + head) * d..][..d], head / (h / g));
        let row = |of: &'_ [f64], key: usize| of[(key * g + group) * d..][..d].to_vec();
        let keys = window.map_or(0, |window| (i + 1).saturating_sub(window))..i + 1;
        let score = |key| row(k, key).iter().zip(q).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
        let scores: Vec<f64> = keys.clone().map(score).collect();
        let peak = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - peak).exp()).sum();
        for (key, score) in keys.zip(scores) {
            let p = (score - peak).exp() / total;
            let to = out[(i * h + head) * d..][..d].iter_mut();
            to.zip(row(v, key)).for_each(|(out, v)| *out += p * v);
        }
    }
    out
}
