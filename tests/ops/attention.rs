use super::*;
use nanochat_gpu::ops::attention::{self, Mask};

#[test]
fn cases() {
    check(verify::attention::attention);
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
