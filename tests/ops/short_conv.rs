use super::*;
use nanochat_gpu::ops::short_conv::{self, BEFORE, Past};
use nanochat_gpu::verify::normals;

#[test]
fn cases() {
    check(verify::memory::short_conv);
}

/// In pieces of one to five tokens, the rows handed from each to the next, every output is that of one call, bit for bit; a document
/// may start in any of them.
#[test]
fn pieces_are_the_whole() {
    let (t, c) = (23, 12);
    let arenas = || std::iter::once(Arena::new(1 << 20).unwrap()).chain(simulators().into_iter().map(Arena::scattered));
    for (dtype, arena) in [DType::F32, DType::Bf16].into_iter().flat_map(|dtype| arenas().map(move |a| (dtype, a))) {
        let (x, w) = (normals("pieces x", t * c), normals("pieces w", c * 4));
        let w = tensor(&arena, dtype, [c, 4], &w);
        let flags: Vec<u32> = (0..t).map(|i| u32::from([5, 6, 14].contains(&i))).collect();
        let (whole, starts) = (tensor(&arena, dtype, [t, c], &x), ids(&arena, &flags));
        let want = short_conv::forward(&arena, &whole, &w, t, Past { starts: Some(&starts), rows: None });
        let mut rows = Tensor::zeros(&arena, [1, BEFORE, c], dtype);
        let (mut got, mut first) = (Vec::new(), 0);
        for piece in [1, 1, 2, 5, 1, 3, 4, 2, 4] {
            let part = tensor(&arena, dtype, [piece, c], &x[first * c..(first + piece) * c]);
            let starts = ids(&arena, &flags[first..first + piece]);
            let past = Past { starts: Some(&starts), rows: Some(&rows) };
            let (y, next, _) = short_conv::forward(&arena, &part, &w, piece, past);
            got.extend(y.to_f64());
            (rows, first) = (next, first + piece);
        }
        assert_eq!(first, t);
        assert!(got == want.0.to_f64() && got.iter().any(|&y| y != 0.0), "{dtype}");
        assert_eq!(rows.to_f64(), want.1.to_f64(), "{dtype}");
        assert_eq!(rows.to_f64(), whole.to_f64()[(t - BEFORE) * c..], "{dtype}");
    }
}
