use super::*;
use nanochat_gpu::{ops::linear, verify};

#[test]
fn cases() {
    for [n, i, o] in [[1, 1, 1], [1, 40, 3], [3, 7, 5], [17, 97, 33], [65, 130, 200]] {
        check(OpCase {
            name: format!("linear {n}x{i} to {o}"),
            inputs: vec![verify::normals("linear x", n * i), verify::normals("linear w", o * i)],
            longest_sum: n.max(i).max(o),
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (tensor(arena, dtype, [n, i], &inputs[0]), tensor(arena, dtype, [o, i], &inputs[1]));
                let y = linear::forward(arena, &x, &w);
                let mut grads = gradients(arena, dtype, &[w.shape()]);
                let dy = tensor(arena, dtype, [n, o], dy);
                let saved = linear::Saved { x };
                let dx = linear::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| linear::reference(&inputs[0], &inputs[1], i),
        });
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
