use super::*;
use nanochat_gpu::ops::decay_gate::{self, Rates};

#[test]
fn cases() {
    check(verify::memory::decay_gate);
}

/// Half-lives of a few and of ten million tokens, in f32: the logarithm keeps its digits where `1 + e^x` rounds to 1.
#[test]
fn long_half_lives_keep_their_digits() {
    let arena = Arena::new(1 << 20).unwrap();
    let f = [-30.0, -16.5, -9.0, -1.0, 0.0, 2.0, 30.0, 200.0];
    let (a, dt) = (tensor(&arena, DType::F32, [1], &[0.0]), tensor(&arena, DType::F32, [1, 8], &[0.0; 8]));
    let (y, _) = decay_gate::forward(&arena, &tensor(&arena, DType::F32, [1, 8], &f), Rates { a: &a, dt: &dt });
    for (y, f) in y.to_f64().iter().zip(f) {
        let want = -(f.max(0.0) + (-f.abs()).exp().ln_1p());
        assert!((y - want).abs() <= 4e-7 * want.abs(), "{f}: {y}, {want} expected");
    }
}
