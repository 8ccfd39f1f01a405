use super::*;
use nanochat_gpu::ops::unit_norm;

#[test]
fn cases() {
    check(verify::memory::unit_norm);
}

/// A row of zeros stays one, and hands back a finite gradient.
#[test]
fn nothing_has_no_direction() {
    let arena = Arena::new(1 << 20).unwrap();
    let (y, saved) = unit_norm::forward(&arena, &Tensor::zeros(&arena, [1, 4], DType::F32), 4);
    assert_eq!(y.to_f64(), [0.0; 4]);
    let dx = unit_norm::backward(&arena, &tensor(&arena, DType::F32, [1, 4], &[1.0, -2.0, 0.0, 3.0]), 4, &saved);
    for (dx, want) in dx.to_f64().iter().zip([1e3, -2e3, 0.0, 3e3]) {
        assert!((dx - want).abs() <= 1e-3, "{dx}, {want} expected");
    }
}
