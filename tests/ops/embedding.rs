use super::*;
use nanochat_gpu::ops::embedding;

#[test]
fn cases() {
    check(verify::rowwise::embedding);
}

#[test]
fn gradients_gather_by_token() {
    let (arena, [n, v, c]) = (Arena::new(1 << 20).unwrap(), [131, 11, 7]);
    let (mut tokens, dy) = (verify::integers("embedding tokens", n, v), verify::normals("embedding dy", n * c));
    tokens[17] = embedding::NOTHING;
    let mut grads = gradients(&arena, DType::F64, &[[v, c].into()]);
    let at = tensor(&arena, DType::F64, [n, c], &dy);
    embedding::backward(&mut grads.view_mut(ParamId(0)), &at, &ids(&arena, &tokens));
    let want = embedding::reference_backward(&dy, v, c, &tokens);
    verify::close("embedding backward", &gradient(&grads, 0), &want, 1e-12).unwrap();
}

#[test]
#[should_panic(expected = "token beyond a vocabulary of 4")]
fn a_token_beyond_the_table_is_refused() {
    let arena = Arena::new(1 << 20).unwrap();
    embedding::forward(&arena, &tensor(&arena, DType::F32, [4, 2], &[0.0; 8]), &ids(&arena, &[4]));
}
