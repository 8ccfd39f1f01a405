//! Attention: forward, backward, and one token over a cache.

use super::{Row, Size, Work};
use crate::ops::attention::{self, Mask};
use crate::ops::rope::Heads;
use crate::tensor::DType;

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
    let decode = decode_row(dtype, mechanism, s, heads);
    sizes.iter().flat_map(|&(b, t, heads)| both_rows(dtype, mechanism, b, t, heads)).chain([decode]).collect()
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

/// One query over `S` keys: two products; reads all keys and values.
fn decode_work(dtype: DType, s: usize, heads: Heads) -> Work {
    let elems = 2 * s * heads.g * heads.d + 2 * heads.h * heads.d;
    Work { bytes: elems * dtype.size_bytes(), flops: 0, tokens: 0 }
}

fn decode_row(dtype: DType, mechanism: &'static str, s: usize, heads: Heads) -> Row {
    let Heads { h, g, d } = heads;
    let extents = [("H", h), ("G", g), ("S", s), ("D", d)];
    Row::new(["attention", "decode", mechanism], dtype, &extents, decode_work(dtype, s, heads), move |stage| {
        let [k, v] = [(); 2].map(|()| stage.normals([s, g * d], dtype));
        let (q, arena) = (stage.normals([1, h * d], dtype), stage.arena.clone());
        Box::new(move || vec![attention::forward_cached(&arena, &q, &k, &v, heads, s, None)])
    })
}
