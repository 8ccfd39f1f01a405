use super::*;
use nanochat_gpu::{ops::swiglu, verify};

#[test]
fn cases() {
    for &[n, f] in verify::ROWS {
        check(OpCase {
            name: format!("swiglu {n}x{f}"),
            inputs: vec![verify::normals("swiglu", n * 2 * f)],
            longest_sum: 4,
            run: &|arena, dtype, inputs, dy| {
                let gate_up = tensor(arena, dtype, [n, 2 * f], &inputs[0]);
                let y = swiglu::forward(arena, &gate_up);
                let dx = swiglu::backward(arena, &tensor(arena, dtype, [n, f], dy), &swiglu::Saved { gate_up });
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| swiglu::reference(&inputs[0], f),
        });
    }
}
