use super::*;
use nanochat_gpu::ops::attention::{self, Mask};
use nanochat_gpu::verify::{self, AttentionCase};

/// The mask of a case, in `arena`.
pub fn mask(arena: &Arena, case: &AttentionCase) -> Mask {
    let starts = |i: usize| ((i % case.t) / case.document * case.document) as u32;
    let doc_start = (case.document > 0).then(|| ids(arena, &(0..case.b * case.t).map(starts).collect::<Vec<_>>()));
    Mask { window: case.window, doc_start }
}

#[test]
fn cases() {
    for case in verify::ATTENTION {
        let AttentionCase { b, t, heads, .. } = *case;
        let n = b * t;
        check(OpCase {
            name: format!("attention {case:?}"),
            inputs: vec![verify::normals("attention", n * heads.row_elems())],
            longest_sum: t + heads.d,
            run: &|arena, dtype, inputs, dy| {
                let qkv = tensor(arena, dtype, [n, heads.row_elems()], &inputs[0]);
                let (y, saved) = attention::forward(arena, &qkv, heads, t, mask(arena, case));
                let dy = tensor(arena, dtype, [n, heads.h * heads.d], dy);
                let dqkv = attention::backward(arena, &dy, heads, t, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dqkv.to_f64()] }
            },
            reference: &|inputs| {
                let arena = Arena::new(1 << 20).unwrap();
                attention::reference(&inputs[0], heads, t, &mask(&arena, case))
            },
        });
    }
}

/// Scores far beyond the range of `exp` must not overflow.
#[test]
fn large_scores_stay_finite() {
    let arena = Arena::new(1 << 24).unwrap();
    let case = verify::ATTENTION[2];
    let values: Vec<f64> = verify::normals("large", case.t * case.heads.row_elems()).iter().map(|x| 60.0 * x).collect();
    let qkv = tensor(&arena, DType::F32, [case.t, case.heads.row_elems()], &values);
    let (y, saved) = attention::forward(&arena, &qkv, case.heads, case.t, Mask::default());
    let want = attention::reference(&qkv.to_f64(), case.heads, case.t, &Mask::default());
    verify::close("large scores", &y.to_f64(), &want, 2e-3).unwrap();
    let dqkv = attention::backward(&arena, &y, case.heads, case.t, &saved);
    assert!(dqkv.to_f64().iter().all(|x| x.is_finite()));
}
