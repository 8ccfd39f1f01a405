use super::*;
use nanochat_gpu::{ops::embedding, verify};

#[test]
fn cases() {
    for &[n, c] in verify::ROWS {
        let v = 11;
        let tokens = verify::integers("embedding tokens", n, v);
        check(OpCase {
            name: format!("embedding {n}x{c}"),
            inputs: vec![verify::normals("embedding table", v * c)],
            longest_sum: n,
            run: &|arena, dtype, inputs, dy| {
                let table = tensor(arena, dtype, [v, c], &inputs[0]);
                let y = embedding::forward(arena, &table, &ids(arena, &tokens));
                let mut grads = gradients(arena, dtype, &[table.shape()]);
                embedding::backward(
                    &mut grads.view_mut(ParamId(0)),
                    &tensor(arena, dtype, [n, c], dy),
                    &ids(arena, &tokens),
                );
                assert!(dtype != DType::F64 || close_to(&gradient(&grads, 0), dy, v, c, &tokens));
                Outcome { output: y.to_f64(), gradients: vec![gradient(&grads, 0)] }
            },
            reference: &|inputs| embedding::reference(&inputs[0], c, &tokens),
        });
    }
}

fn close_to(got: &[f64], dy: &[f64], v: usize, c: usize, tokens: &[u32]) -> bool {
    let want = embedding::reference_backward(dy, v, c, tokens);
    got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-12)
}

#[test]
#[should_panic(expected = "token beyond a vocabulary of 4")]
fn a_token_beyond_the_table_is_refused() {
    let arena = Arena::new(1 << 20).unwrap();
    embedding::forward(&arena, &tensor(&arena, DType::F32, [4, 2], &[0.0; 8]), &ids(&arena, &[4]));
}
