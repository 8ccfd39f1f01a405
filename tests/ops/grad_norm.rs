use super::*;
use nanochat_gpu::ops::grad_norm;

#[test]
fn sums_by_range_and_names_what_is_not_finite() {
    let arena = Arena::new(1 << 24).unwrap();
    let mut values = verify::normals("grad_norm", 50_000);
    let flat = tensor(&arena, DType::F64, [50_000], &values);
    let ranges = [0..7, 7..40_001, 40_001..50_000];
    for (range, sum) in ranges.clone().into_iter().zip(grad_norm::sums_of_squares(&arena, &flat, &ranges)) {
        let want = grad_norm::reference(&values[range]);
        assert!((sum - want).abs() <= 1e-12 * want);
    }
    values[39_999] = f64::NAN;
    values[45_000] = 1e30; // its square overflows f32, the sum must not
    let flat = tensor(&arena, DType::F32, [50_000], &values);
    let sums = grad_norm::sums_of_squares(&arena, &flat, &ranges);
    assert!(sums[0].is_finite() && sums[1].is_nan() && sums[2].is_finite() && sums[2] > 0.9e60);
}

#[test]
fn on_devices() {
    check_on_all(verify::state::grad_norm_on);
}
