use super::*;
use nanochat_gpu::{ops::rmsnorm, verify};

const EPS: f64 = 1e-5;

#[test]
fn cases() {
    for &[n, c] in verify::ROWS {
        check(OpCase {
            name: format!("rmsnorm {n}x{c}"),
            inputs: vec![verify::normals("rmsnorm x", n * c), verify::normals("rmsnorm gain", c)],
            longest_sum: n.max(c),
            run: &|arena, dtype, inputs, dy| {
                let (x, gain) = (tensor(arena, dtype, [n, c], &inputs[0]), tensor(arena, dtype, [c], &inputs[1]));
                let (y, saved) = rmsnorm::forward(arena, &x, &gain, EPS);
                let mut grads = gradients(arena, dtype, &[gain.shape()]);
                let dy = tensor(arena, dtype, [n, c], dy);
                let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| rmsnorm::reference(&inputs[0], &inputs[1], EPS),
        });
    }
}

/// The output here is the sum and its norm behind each other, so the residual's own gradient takes part.
#[test]
fn cases_fused_with_the_residual_add() {
    for &[n, c] in verify::ROWS {
        check(OpCase {
            name: format!("add_rmsnorm {n}x{c}"),
            inputs: vec![
                verify::normals("add_rmsnorm residual", n * c),
                verify::normals("add_rmsnorm delta", n * c),
                verify::normals("add_rmsnorm gain", c),
            ],
            longest_sum: n.max(c),
            run: &|arena, dtype, inputs, dy| {
                let of = |i: usize| tensor(arena, dtype, [n, c], &inputs[i]);
                let gain = tensor(arena, dtype, [c], &inputs[2]);
                let (sum, y, saved) = rmsnorm::forward_add(arena, &of(0), of(1), &gain, EPS);
                let mut grads = gradients(arena, dtype, &[gain.shape()]);
                let (dsum, dy) = dy.split_at(n * c);
                let (dsum, dy) = (tensor(arena, dtype, [n, c], dsum), tensor(arena, dtype, [n, c], dy));
                let dx = rmsnorm::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, Some(dsum), &gain, &saved);
                let output = [sum.to_f64(), y.to_f64()].concat();
                Outcome { output, gradients: vec![dx.to_f64(), dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| {
                let sum: Vec<f64> = inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect();
                let y = rmsnorm::reference(&sum, &inputs[2], EPS);
                [sum, y].concat()
            },
        });
    }
}
