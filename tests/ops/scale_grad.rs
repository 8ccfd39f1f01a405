use super::*;
use nanochat_gpu::ops::scale_grad;

/// Not a derivative, by design: the gradient is checked against its own definition.
#[test]
fn forward_is_the_identity_and_backward_scales() {
    let arena = Arena::new(1 << 20).unwrap();
    for rho in [0.0, 0.3, 1.0] {
        let values = verify::normals("scale_grad", 201);
        let x = tensor(&arena, DType::F64, [3, 67], &values);
        assert_eq!(scale_grad::forward(&x).to_f64(), values);
        let dx = scale_grad::backward(&arena, x, &rho.into()).to_f64();
        assert_eq!(dx, scale_grad::reference(&values, rho));
    }
}

#[test]
fn on_devices() {
    check_on_all(verify::rowwise::scale_grad);
}
