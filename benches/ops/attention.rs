//! Attention: forward, backward, and one token over a cache.

use super::{Bench, Work};
use nanochat_gpu::ops::attention::{self, Mask};
use nanochat_gpu::ops::rope::Heads;

/// Two products forward, five backward, over the keys that a causal query sees: `T (T + 1) / 2` pairs a head.
fn attention_flops(b: usize, t: usize, heads: Heads) -> [usize; 2] {
    let product = 2 * b * heads.h * heads.d * (t * (t + 1) / 2);
    [2 * product, 5 * product]
}

/// One query over `s` keys.
fn decode_flops(s: usize, heads: Heads) -> usize {
    4 * heads.h * heads.d * s
}

pub fn rows(bench: &mut Bench) {
    let arena = bench.arena.clone();
    let six = Heads { h: 6, g: 6, d: 64 };
    let sizes = bench.size(
        vec![(8, 256, six), (1, 2048, six), (1, 2048, Heads { g: 2, ..six })],
        vec![(2, 9, Heads { h: 2, g: 1, d: 8 })],
    );
    for &(b, t, heads) in &sizes {
        let Heads { h, g, d } = heads;
        let (qkv, dout) = (bench.normals("qkv", [b * t, heads.row_elems()]), bench.normals("dout", [b * t, h * d]));
        let [forward, backward] = attention_flops(b, t, heads);
        bench.row("attention", &format!("forward B{b} H{h} G{g} T{t} D{d}"), Work::Flops(forward), || {
            attention::forward(&arena, &qkv, heads, t, Mask::default())
        });
        let (_, saved) = attention::forward(&arena, &qkv, heads, t, Mask::default());
        bench.row("attention", &format!("backward B{b} H{h} G{g} T{t} D{d}"), Work::Flops(backward), || {
            attention::backward(&arena, &dout, heads, t, &saved)
        });
    }
    let (_, s, heads) = sizes[sizes.len() - 1];
    let Heads { h, g, d } = heads;
    let (q, k, v) = (bench.normals("q", [1, h * d]), bench.normals("k", [s, g * d]), bench.normals("v", [s, g * d]));
    bench.row("attention", &format!("decode H{h} G{g} S{s} D{d}"), Work::Flops(decode_flops(s, heads)), || {
        attention::forward_cached(&arena, &q, &k, &v, heads, s, None)
    });
}
