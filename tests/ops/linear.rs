use super::*;
use nanochat_gpu::ops::linear;

#[test]
fn cases() {
    check(verify::products::linear);
}

#[test]
fn the_weight_gradient_is_added_to_not_overwritten() {
    let arena = Arena::new(1 << 20).unwrap();
    let (x, w) = (tensor(&arena, DType::F32, [1, 2], &[1.0, 2.0]), tensor(&arena, DType::F32, [1, 2], &[3.0, 4.0]));
    let mut grads = gradients(&arena, DType::F32, &[w.shape()]);
    for _ in 0..2 {
        let saved = linear::Saved { x: x.clone() };
        let dy = tensor(&arena, DType::F32, [1, 1], &[1.0]);
        linear::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved);
    }
    assert_eq!(gradient(&grads, 0), vec![2.0, 4.0]);
}
