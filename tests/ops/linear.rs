use super::*;
use nanochat_gpu::ops::linear;

#[test]
fn cases() {
    check(verify::products::linear);
}

/// Added to a residual, in f32 and bf16, on the CPU and in the simulator: as the sum in f64.
#[test]
fn onto_a_residual() {
    for [n, i, o] in [[3, 7, 5], [65, 136, 200], [4, 1200, 24]] {
        let check = |arena: &Arena, dtype: DType, unit: f64| {
            let at = |name: &str, shape: [usize; 2]| {
                tensor(arena, dtype, shape, &verify::normals(name, shape[0] * shape[1]))
            };
            let (x, w, r) = (at("linear x", [n, i]), at("linear w", [o, i]), at("linear r", [n, o]));
            let y = linear::forward_onto(arena, &x, &w, &r);
            let mut want = linear::reference(&x.to_f64(), &w.to_f64(), i);
            want.iter_mut().zip(r.to_f64()).for_each(|(y, r)| *y += r);
            verify::close(&format!("{n} {i} {o} {dtype}"), &y.to_f64(), &want, unit * (i as f64).sqrt()).unwrap();
        };
        for (dtype, unit) in [(DType::F32, 2f64.powi(-22)), (DType::Bf16, 2f64.powi(-8))] {
            check(&Arena::new(1 << 24).unwrap(), dtype, unit);
            for gpu in simulators() {
                check(&Arena::scattered(gpu), dtype, unit);
                gpu.synchronise().unwrap();
            }
        }
    }
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
