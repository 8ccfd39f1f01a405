//! Attention: forward, backward, and over pages.

use super::{Row, Size, Stage, Work};
use crate::ops::attention::{self, Mask};
use crate::ops::paged_attention::{PAGE_TOKENS, Placement, attend, write};
use crate::ops::rope::{Heads, Table, frequencies};
use crate::tensor::{Arena, DType};

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let six = Heads { h: 6, g: 6, d: 64 };
    let sizes = size.of(
        vec![(2, 128, Heads { h: 2, g: 1, d: 64 })],
        vec![(8, 256, six), (1, 2048, six), (1, 2048, Heads { g: 2, ..six })],
        vec![(4, 2048, Heads { h: 12, g: 12, d: 64 }), (4, 2048, Heads { h: 6, g: 6, d: 128 })],
    );
    // The plain kernels read every key once per query: a row is enough.
    let (sizes, mechanism) = match (dtype, size) {
        (DType::F32, Size::Card) => (vec![(1, 2048, Heads { h: 12, g: 12, d: 64 })], "naive"),
        (DType::F32, _) => (sizes, "naive"),
        _ => (sizes, "flash"),
    };
    let (_, s, heads) = sizes[sizes.len() - 1];
    let mut cached = size.of(vec![(2, 1)], vec![(1, 1), (8, 1)], vec![(1, 1), (16, 1)]);
    if dtype == DType::Bf16 {
        cached.push((1, size.of(8, 256, 1024)));
    }
    let cached = cached.into_iter().flat_map(|extents| paged_rows(dtype, extents, s, heads));
    sizes.iter().flat_map(|&(b, t, heads)| both_rows(dtype, mechanism, b, t, heads)).chain(cached).collect()
}

/// Two products forward, five backward, over the keys that a causal query sees: `T (T + 1) / 2` pairs a head. Forward reads q, k
/// and v and writes the output; backward reads those and the output's gradient, and writes theirs.
fn attention_work(dtype: DType, b: usize, t: usize, heads: Heads) -> [Work; 2] {
    let product = 2 * b * heads.h * heads.d * (t * (t + 1) / 2);
    let (packed, out) = (b * t * heads.row_elems(), b * t * heads.h * heads.d);
    let bytes = [packed + out, 2 * packed + 2 * out].map(|elems| elems * dtype.size_bytes());
    [Work { bytes: bytes[0], flops: 2 * product, tokens: 0 }, Work { bytes: bytes[1], flops: 5 * product, tokens: 0 }]
}

fn both_rows(dtype: DType, mechanism: &'static str, b: usize, t: usize, heads: Heads) -> [Row; 2] {
    let Heads { h, g, d } = heads;
    let extents = [("B", b), ("H", h), ("G", g), ("T", t), ("D", d)];
    let [forward, backward] = attention_work(dtype, b, t, heads);
    [
        Row::new(["attention", "fwd", mechanism], dtype, &extents, forward, move |stage| {
            let (qkv, arena) = (stage.normals([b * t, heads.row_elems()], dtype), stage.arena.clone());
            Box::new(move || vec![attention::forward(&arena, &qkv, heads, t, Mask::default()).0])
        }),
        Row::new(["attention", "bwd", mechanism], dtype, &extents, backward, move |stage| {
            let qkv = stage.normals([b * t, heads.row_elems()], dtype);
            let (dout, arena) = (stage.normals([b * t, h * d], dtype), stage.arena.clone());
            let (_, saved) = attention::forward(&arena, &qkv, heads, t, Mask::default());
            Box::new(move || vec![attention::backward(&arena, &dout, heads, t, &saved)])
        }),
    ]
}

/// The last `T` queries of each of `N` sequences over `S` keys in pages: reads all keys and values.
fn paged_work(dtype: DType, [n, t, s]: [usize; 3], heads: Heads) -> [Work; 2] {
    let Heads { h, g, d } = heads;
    let elems = [2 * n * t * heads.row_elems(), n * (2 * s * g * d + 2 * t * h * d)];
    let flops = [0, 4 * n * h * d * (t * (s - t) + t * (t + 1) / 2)];
    [0, 1].map(|i| Work { bytes: elems[i] * dtype.size_bytes(), flops: flops[i], tokens: 0 })
}

/// What a step of decoding, or a piece of a prompt, does beside its products: keys and values to their pages, attention over them.
fn paged_rows(dtype: DType, (n, t): (usize, usize), s: usize, heads: Heads) -> [Row; 2] {
    let Heads { h, g, d } = heads;
    let extents = [("N", n), ("T", t), ("H", h), ("G", g), ("S", s), ("D", d)];
    let [writes, reads] = paged_work(dtype, [n, t, s], heads);
    let reader = if dtype == DType::Bf16 { "tile_keys" } else { "split_keys" };
    let pages = s.div_ceil(PAGE_TOKENS);
    // Pages of the sequences lie in turns, as they do when sequences grow beside each other.
    let table = move |sequence: usize| (0..pages).map(|page| (page * n + sequence) as u32).collect::<Vec<u32>>();
    let placed = move |arena: &Arena| {
        let tables: Vec<Vec<u32>> = (0..n).map(table).collect();
        Placement::new(arena, tables.iter().map(|table| (s - t, t, table.as_slice())), h / g)
    };
    let pool = move |stage: &Stage| stage.normals([n * pages * PAGE_TOKENS, g * d], dtype);
    [
        Row::new(["paged_attention", "fwd", "write_rows"], dtype, &extents, writes, move |stage| {
            let (qkv, arena, placement) =
                (stage.normals([n * t, heads.row_elems()], dtype), stage.arena.clone(), placed(&stage.arena));
            let mut pools = [(); 2].map(|()| pool(stage));
            let table = Table::new(s, &frequencies(d, 1e4, None), dtype.accumulator()).to(arena.device());
            Box::new(move || vec![write(&arena, &qkv, heads, &placement, &table, None, pools.each_mut())])
        }),
        Row::new(["paged_attention", "fwd", reader], dtype, &extents, reads, move |stage| {
            let (q, arena, placement) =
                (stage.normals([n * t, h * d], dtype), stage.arena.clone(), placed(&stage.arena));
            let [k, v] = [(); 2].map(|()| pool(stage));
            Box::new(move || vec![attend(&arena, &q, [&k, &v], heads, &placement, None)])
        }),
    ]
}
