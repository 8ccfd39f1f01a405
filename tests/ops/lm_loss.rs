use super::*;
use nanochat_gpu::ops::lm_loss::{self, Gradients, IGNORE};
use nanochat_gpu::verify;

#[test]
fn cases() {
    // 40,000 entries make more than one chunk of rows.
    for (n, c, v, cap) in [(1, 1, 2, None), (5, 7, 13, Some(2.0)), (33, 20, 97, None), (70, 3, 40_000, Some(15.0))] {
        let mut targets = verify::integers("lm targets", n, v);
        if n > 2 {
            targets[1] = IGNORE;
        }
        let factor = 0.37;
        check(OpCase {
            name: format!("lm_loss {n}x{c} of {v} cap {cap:?}"),
            inputs: vec![verify::normals("lm x", n * c), verify::normals("lm w", v * c)],
            longest_sum: v,
            // The gradients come with one factor for all rows, so the output is the total and its weight goes into it.
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (tensor(arena, dtype, [n, c], &inputs[0]), tensor(arena, dtype, [v, c], &inputs[1]));
                let mut grads = gradients(dtype, &[w.shape()]);
                let gradients = Gradients { scale: factor * dy[0], dweight: grads.view_mut(ParamId(0)) };
                let (losses, dx) = lm_loss::forward(arena, &x, &w, &targets, cap, Some(gradients));
                let (plain, none) = lm_loss::forward(arena, &x, &w, &targets, cap, None);
                assert!(none.is_none());
                verify::close("losses with and without gradients", &plain.to_f64(), &losses.to_f64(), 1e-5).unwrap();
                let total = losses.to_f64().iter().sum::<f64>() * factor;
                Outcome { output: vec![total], gradients: vec![dx.unwrap().to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| {
                vec![lm_loss::reference(&inputs[0], &inputs[1], c, &targets, cap).iter().sum::<f64>() * factor]
            },
        });
    }
}

#[test]
fn an_infinite_logit_is_not_hidden() {
    let arena = Arena::new(1 << 20).unwrap();
    let x = tensor(&arena, DType::F32, [1, 1], &[f64::NAN]);
    let w = tensor(&arena, DType::F32, [3, 1], &[1.0, 2.0, 3.0]);
    let (losses, _) = lm_loss::forward(&arena, &x, &w, &[1], None, None);
    assert!(losses.to_f64()[0].is_nan());
}
