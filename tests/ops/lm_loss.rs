use super::*;
use nanochat_gpu::ops::lm_loss::{self, Gradients, IGNORE, forward_in_chunks as forward};
use nanochat_gpu::verify;

#[test]
fn cases() {
    // Chunks of all rows, of a part that divides them, and of one that does not.
    let shapes = [
        (1, 1, 2, None, 16),
        (5, 7, 13, Some(2.0), 16),
        (33, 20, 97, None, 11),
        (70, 3, 130, Some(15.0), 32),
        (9, 5, 1025, None, 4),
    ];
    for (n, c, v, cap, rows) in shapes {
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
                let mut grads = gradients(arena, dtype, &[w.shape()]);
                let gradients = Gradients { scale: factor * dy[0], dweight: grads.view_mut(ParamId(0)) };
                let (losses, dx) = forward(arena, &x, &w, &ids(arena, &targets), cap, Some(gradients), rows);
                let (plain, none) = forward(arena, &x, &w, &ids(arena, &targets), cap, None, rows);
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
    let (losses, _) = lm_loss::forward(&arena, &x, &w, &ids(&arena, &[1]), None, None);
    assert!(losses.to_f64()[0].is_nan());
}

/// More than one chunk at the size that training uses.
#[test]
fn chunks_of_the_real_size_join() {
    let arena = Arena::new(256 << 20).unwrap();
    let (n, c, v) = (70, 3, 40_000);
    assert!(lm_loss::chunk_rows(v) < n);
    let [x, w] = [("lm x", [n, c]), ("lm w", [v, c])]
        .map(|(name, shape)| tensor(&arena, DType::F32, shape, &verify::normals(name, shape[0] * shape[1])));
    let targets = ids(&arena, &verify::integers("lm targets", n, v));
    let run = |rows: Option<usize>| {
        let mut grads = gradients(&arena, DType::F32, &[w.shape()]);
        let wanted = Gradients { scale: 1.0, dweight: grads.view_mut(ParamId(0)) };
        let (losses, dx) = match rows {
            None => lm_loss::forward(&arena, &x, &w, &targets, None, Some(wanted)),
            Some(rows) => forward(&arena, &x, &w, &targets, None, Some(wanted), rows),
        };
        [losses.to_f64(), dx.unwrap().to_f64(), gradient(&grads, 0)]
    };
    for (got, want) in run(None).iter().zip(run(Some(n))) {
        verify::close("in chunks", got, &want, 1e-5).unwrap();
    }
}
