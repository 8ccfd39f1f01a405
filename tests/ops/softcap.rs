use super::*;
use nanochat_gpu::{ops::softcap, verify};

#[test]
fn cases() {
    for (&[n, c], cap) in verify::ROWS.iter().zip([0.5, 2.0, 15.0, 30.0, 1.0]) {
        check(OpCase {
            name: format!("softcap {n}x{c} by {cap}"),
            inputs: vec![verify::normals("softcap", n * c)],
            longest_sum: 4,
            run: &|arena, dtype, inputs, dy| {
                let y = softcap::forward(arena, tensor(arena, dtype, [n, c], &inputs[0]), cap);
                let saved = softcap::Saved { y: y.clone(), cap };
                let dx = softcap::backward(arena, tensor(arena, dtype, [n, c], dy), &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| softcap::reference(&inputs[0], cap),
        });
    }
}

#[test]
fn large_logits_saturate_without_nan() {
    let arena = Arena::new(1 << 20).unwrap();
    let y = softcap::forward(&arena, tensor(&arena, DType::F32, [3], &[-1e30, 0.0, 1e30]), 15.0);
    assert_eq!(y.to_f64(), vec![-15.0, 0.0, 15.0]);
}
