use super::*;
use nanochat_gpu::ops::softcap;

#[test]
fn cases() {
    check(verify::rowwise::softcap);
}

#[test]
fn large_logits_saturate_without_nan() {
    let arena = Arena::new(1 << 20).unwrap();
    let y = softcap::forward(&arena, tensor(&arena, DType::F32, [3], &[-1e30, 0.0, 1e30]), 15.0);
    assert_eq!(y.to_f64(), vec![-15.0, 0.0, 15.0]);
}
