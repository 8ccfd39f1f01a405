use super::*;
use nanochat_gpu::ops::clip::{Limits, verdict};

#[test]
fn cases() {
    check_on_all(verify::state::clip_on);
}

#[test]
fn scales_down_to_the_limit_and_refuses_what_is_not_finite_or_beyond_it() {
    let limits = Limits { clip: 1.0, loss: 8.0, grad_norm: 100.0 };
    assert_eq!(verdict(5.0, &[9.0, 16.0], &limits), Some(0.2));
    assert_eq!(verdict(5.0, &[0.0, 0.25], &limits), Some(1.0));
    assert_eq!(verdict(5.0, &[0.0], &limits), Some(1.0));
    for (loss, squares) in [(9.0, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (5.0, 10_001.0), (5.0, f64::NAN)] {
        assert_eq!(verdict(loss, &[squares], &limits), None, "{loss} {squares}");
    }
}
