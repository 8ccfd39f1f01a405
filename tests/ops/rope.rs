use super::*;
use nanochat_gpu::ops::rope::{self, Heads, Table};

#[test]
fn cases() {
    check(verify::rowwise::rope);
}

#[test]
fn scores_depend_on_the_distance_only() {
    let (arena, heads) = (Arena::new(1 << 20).unwrap(), Heads { h: 1, g: 1, d: 8 });
    let table = Table::new(200, &rope::frequencies(8, 500_000.0, None), DType::F64);
    let row = verify::normals("relative", 24);
    let rotated = |position: usize| {
        let x = tensor(&arena, DType::F64, [1, 24], &row);
        rope::forward(&arena, x, heads, 1, position, &table, None).0.to_f64()
    };
    let score = |p: usize, q: usize| (0..8).map(|i| rotated(p)[i] * rotated(q)[8 + i]).sum::<f64>();
    assert!((score(10, 3) - score(187, 180)).abs() < 1e-9);
    assert!((score(10, 3) - score(10, 4)).abs() > 1e-3);
}
