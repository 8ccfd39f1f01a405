use super::*;
use nanochat_gpu::ops::add;

#[test]
fn cases() {
    check(verify::rowwise::add);
}

#[test]
fn a_shared_operand_is_not_overwritten() {
    let arena = Arena::new(1 << 20).unwrap();
    let a = tensor(&arena, DType::F32, [3], &[1.0, 2.0, 3.0]);
    let y = add::forward(&arena, a.clone(), &a);
    assert_eq!((a.to_f64(), y.to_f64()), (vec![1.0, 2.0, 3.0], vec![2.0, 4.0, 6.0]));
}
