//! Attention over pages: against whole rows in f64, and the same bits however sequences come in pieces, on whatever pages, in whatever
//! company.

use super::{Cases, Extent, normals, pick, told};
use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::ops::paged_attention::{PAGE_TOKENS, Placement, attend, write};
use crate::ops::rope::{self, Heads, QkNorm, Table};
use crate::tensor::{Arena, DType, Tensor};

/// Sequences of a pass.
#[derive(Clone, Copy, Debug)]
pub struct PagedCase {
    pub heads: Heads,
    pub window: Option<usize>,
    pub qk_norm: bool,
    /// Of each sequence the tokens that are cached, and those that follow.
    pub pieces: &'static [(usize, usize)],
}

/// First tokens, single ones behind few and behind many, pieces that cross pages, blocks of 64 and parts of 256 keys, grouped heads, windows.
pub const PAGED: &[PagedCase] = &[
    PagedCase { heads: Heads { h: 1, g: 1, d: 2 }, window: None, qk_norm: false, pieces: &[(0, 1)] },
    PagedCase {
        heads: Heads { h: 6, g: 2, d: 8 },
        window: Some(5),
        qk_norm: true,
        pieces: &[(0, 9), (30, 1), (15, 17)],
    },
    PagedCase {
        heads: Heads { h: 4, g: 2, d: 64 },
        window: None,
        qk_norm: true,
        pieces: &[(299, 1), (0, 20), (250, 13)],
    },
    PagedCase { heads: Heads { h: 10, g: 1, d: 6 }, window: Some(40), qk_norm: false, pieces: &[(141, 3), (256, 1)] },
    // Tiles on tensor cores of each width: whole ones, parts, one row of many heads, windows that begin inside a tile and a part.
    PagedCase { heads: Heads { h: 3, g: 1, d: 32 }, window: Some(100), qk_norm: true, pieces: &[(330, 25), (0, 3)] },
    PagedCase { heads: Heads { h: 2, g: 2, d: 96 }, window: None, qk_norm: false, pieces: &[(190, 70), (40, 1)] },
    PagedCase { heads: Heads { h: 16, g: 1, d: 128 }, window: Some(7), qk_norm: true, pieces: &[(255, 6), (0, 1)] },
    PagedCase {
        heads: Heads { h: 3, g: 3, d: 160 },
        window: Some(300),
        qk_norm: true,
        pieces: &[(560, 2), (63, 2), (0, 1)],
    },
];

/// What lies in a test's pools: rows of all sequences, and where.
struct Setup<'a> {
    case: &'a PagedCase,
    arena: &'a Arena,
    dtype: DType,
    table: Table,
    gains: [Tensor; 2],
    /// Packed rows of each sequence, from its beginning.
    rows: Vec<Tensor>,
    pools: [Tensor; 2],
    /// Pages of each sequence.
    pages: Vec<Vec<u32>>,
}

const THETA: f64 = 1e4;
const EPS: f64 = 1e-5;

impl Setup<'_> {
    /// Pools full of NaN; pages lie in no order, and nowhere side by side, `shift` further on.
    fn new<'a>(arena: &'a Arena, [dtype, pool_dtype]: [DType; 2], case: &'a PagedCase, shift: u32) -> Setup<'a> {
        let (Heads { g, d, .. }, row) = (case.heads, case.heads.row_elems());
        let lengths: Vec<usize> = case.pieces.iter().map(|(start, t)| start + t).collect();
        let longest = *lengths.iter().max().expect("a sequence");
        let count = lengths.iter().map(|n| n.div_ceil(PAGE_TOKENS)).sum::<usize>() as u32;
        let mut taken = 0;
        let mut next = |_| {
            taken += 1;
            // Odd numbers in falling order, turned round by `shift`.
            2 * ((2 * count - taken + shift) % count) + 1
        };
        let pages = lengths.iter().map(|n| (0..n.div_ceil(PAGE_TOKENS)).map(&mut next).collect()).collect();
        let slots = (2 * count as usize + 1) * PAGE_TOKENS;
        let pool = || {
            let mut pool = Tensor::owned_on(arena.device(), [slots, g * d], pool_dtype);
            pool.whole_mut().copy_from_f64(&vec![f64::NAN; slots * g * d]);
            pool
        };
        let of = |shape: [usize; 2], name: String| {
            Tensor::from_f64(arena, shape, dtype, &normals(&name, shape[0] * shape[1]))
        };
        let rows = lengths.iter().enumerate().map(|(i, n)| of([*n, row], format!("paged {i}"))).collect();
        let gains = ["q gain", "k gain"].map(|name| of([1, d], name.into()).reshape([d]));
        let table = Table::new(longest, &rope::frequencies(d, THETA, None), dtype.accumulator()).to(arena.device());
        Setup { case, arena, dtype, table, gains, rows, pools: [pool(), pool()], pages }
    }

    /// Writes and attends to the tokens from `start` on of some sequences: queries and outputs `[N, H D]` of all of them.
    fn pass(&mut self, pieces: &[(usize, usize, usize)]) -> [Tensor; 2] {
        let (heads, row) = (self.case.heads, self.case.heads.row_elems());
        let placed = pieces.iter().map(|&(sequence, start, t)| (start, t, self.pages[sequence].as_slice()));
        let placement = Placement::new(self.arena, placed, self.case.heads.h / self.case.heads.g);
        let packed =
            pieces.iter().flat_map(|&(sequence, start, t)| self.rows[sequence].view(start * row, [t, row]).to_f64());
        let packed: Vec<f64> = packed.collect();
        let qkv = Tensor::from_f64(self.arena, [packed.len() / row, row], self.dtype, &packed);
        let norm = QkNorm { q_gain: &self.gains[0], k_gain: &self.gains[1], eps: EPS };
        let norm = self.case.qk_norm.then_some(norm);
        let q = write(self.arena, &qkv, heads, &placement, &self.table, norm, self.pools.each_mut());
        let [k, v] = &self.pools;
        let out = attend(self.arena, &q, [k, v], heads, &placement, self.case.window);
        [q, out]
    }

    /// Keys and values of a sequence as they are cached.
    fn cached(&self, sequence: usize) -> [Vec<f64>; 2] {
        let (Heads { g, d, .. }, n) = (self.case.heads, self.rows[sequence].shape().rows_cols()[0]);
        self.pools.each_ref().map(|pool| {
            let row = |i: usize| {
                let slot = self.pages[sequence][i / PAGE_TOKENS] as usize * PAGE_TOKENS + i % PAGE_TOKENS;
                pool.view(slot * g * d, [g * d]).to_f64()
            };
            (0..n).flat_map(row).collect()
        })
    }

    /// The packed rows of a sequence, normed and rotated, in f64.
    fn rotated(&self, sequence: usize) -> Vec<f64> {
        let (rows, [q_gain, k_gain]) = (self.rows[sequence].to_f64(), self.gains.each_ref().map(Tensor::to_f64));
        let n = rows.len() / self.case.heads.row_elems();
        let norm = self.case.qk_norm.then_some((&q_gain[..], &k_gain[..], EPS));
        rope::reference(&rows, self.case.heads, n, &rope::frequencies(self.case.heads.d, THETA, None), norm)
    }
}

/// Every element of `got` as near to `want` as rounding to a type allows, `relative` to the value, and `absolute`.
fn near(what: &str, got: &[f64], want: &[f64], relative: f64, absolute: f64) -> Cases {
    if got.len() != want.len() {
        return Err(format!("{what}: {} elements, {} expected", got.len(), want.len()));
    }
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let holds = (got - want).abs() <= relative * want.abs() + absolute;
        if !holds {
            return Err(format!("{what}[{i}]: {got}, {want} expected"));
        }
    }
    Ok(())
}

/// The most that rounding changes, relative to the value, or what f64 loses in sums.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-12,
        // Eight bits of significand.
        DType::Bf16 => 2f64.powi(-8),
        _ => super::unit(dtype),
    }
}

/// A case with rows of one type over pools of another: all pieces in one pass behind what was cached before, then the same otherwise.
///
/// # Errors
/// The first element beyond its bound; bits that depend on what they must not.
pub fn paged_case(arena: &Arena, dtypes: [DType; 2], case: &PagedCase) -> Cases {
    let (Heads { h, g, d }, [dtype, pool]) = (case.heads, dtypes);
    let what = format!("{case:?} of {dtype} over {pool}");
    let mut setup = Setup::new(arena, dtypes, case, 0);
    for (sequence, &(start, _)) in case.pieces.iter().enumerate().filter(|(_, (start, _))| *start > 0) {
        setup.pass(&[(sequence, 0, start)]);
    }
    let all: Vec<(usize, usize, usize)> =
        case.pieces.iter().enumerate().map(|(i, &(start, t))| (i, start, t)).collect();
    let [q, out] = setup.pass(&all).map(|tensor| (tensor.to_bytes(), tensor.to_f64()));
    // Rows of the norm and of the rotation: products and sums of a few numbers near 1.
    let (f32_sums, mut first) = ((d + 8) as f64 * unit(dtype.accumulator()) * 8.0, 0);
    for &(sequence, start, t) in &all {
        let (rotated, [keys, values]) = (setup.rotated(sequence), setup.cached(sequence));
        let columns = |part: usize, heads: usize, from: usize| {
            let rows = rotated.chunks_exact(case.heads.row_elems()).skip(from);
            rows.flat_map(|row| row[part * d..(part + heads) * d].to_vec()).collect::<Vec<f64>>()
        };
        let q = &q.1[first * h * d..(first + t) * h * d];
        // On the CPU rows are rounded after the norm and after the rotation.
        let [of_q, of_k] = [unit(dtype) * 4.0, unit(dtype) * 4.0 + unit(pool)];
        near(&format!("{what}, queries"), q, &columns(0, h, start), of_q, of_q + f32_sums)?;
        near(&format!("{what}, keys"), &keys, &columns(h, g, 0), of_k, of_k + f32_sums)?;
        near(&format!("{what}, values"), &values, &columns(h + g, g, 0), unit(pool) + unit(dtype), 0.0)?;
        // Attention by the very queries, keys and values, over all tokens; the last ones are those of this pass.
        let queries = [vec![0.0; start * h * d], q.to_vec()].concat();
        let want = crate::ops::paged_attention::reference(&queries, [&keys, &values], case.heads, case.window);
        let largest = values.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        // On tensor cores weights are rounded to bf16, each by half a unit at most.
        let is_rounded = arena.device().is_gpu() && dtype == DType::Bf16 && [32, 64, 96, 128].contains(&d);
        let rounding = if is_rounded { unit(dtype) / 2.0 * largest } else { 0.0 };
        let sums = (start + t + d) as f64 * unit(dtype.accumulator()) * largest * 4.0 + rounding;
        let got = &out.1[first * h * d..(first + t) * h * d];
        near(&format!("{what}, outputs"), got, &want[start * h * d..], 2.0 * unit(dtype), sums)?;
        first += t;
    }
    // In pieces of seven, then token by token, each sequence alone, on other pages.
    let mut setup = Setup::new(arena, dtypes, case, 1);
    let mut again = [Vec::new(), Vec::new()];
    for &(sequence, start, t) in &all {
        (0..start).step_by(7).for_each(|token| drop(setup.pass(&[(sequence, token, 7.min(start - token))])));
        for token in start..start + t {
            let [q, out] = setup.pass(&[(sequence, token, 1)]);
            again[0].extend(q.to_bytes());
            again[1].extend(out.to_bytes());
        }
    }
    if again != [q.0, out.0] {
        return Err(format!("{what}: token by token the bits are others"));
    }
    Ok(())
}

/// Every case on the CPU, in each pair of types that it has.
///
/// # Errors
/// As [`paged_case`].
pub fn paged_on_host() -> Cases {
    let arena = Arena::new(256 << 20).map_err(|error| error.to_string())?;
    let pairs =
        [[DType::F64; 2], [DType::F32; 2], [DType::F32, DType::Bf16], [DType::Bf16, DType::F32], [DType::Bf16; 2]];
    PAGED.iter().try_for_each(|case| {
        pairs.iter().try_for_each(|&pair| {
            arena.reset();
            paged_case(&arena, pair, case)
        })
    })
}

/// The kernels, in f32 and bf16.
///
/// # Errors
/// As [`paged_case`], or what the device says.
pub fn paged_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    assert_eq!(Device::Gpu(gpu), Arena::scattered(gpu).device());
    pick(PAGED, 1, extent).try_for_each(|case| {
        [DType::F32, DType::Bf16].into_iter().try_for_each(|dtype| {
            let verdict = paged_case(&Arena::scattered(gpu), [dtype; 2], case);
            told(gpu, &format!("{case:?}"))?;
            verdict
        })
    })
}
