use super::*;
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::ops::self_loss::{self, Truth};

#[test]
fn cases() {
    check(verify::heads::self_loss);
}

#[test]
fn errors_and_losses_of_rows_on_devices() {
    check_on_all(verify::heads::judged_on);
}

/// By hand, in every type and on simulated devices: a row that is right, one that is far off, one that does not count.
#[test]
fn rows_by_hand() {
    let said = [[2.0, -1.0, 3.0, 0.0], [0.0, 0.0, 1.0, 2.0], [9.0, 9.0, 9.0, 9.0]].concat();
    let features = [[2.0, -1.0], [3.0, 4.0], [1.0, 1.0]].concat();
    let ln = |x: f64| x.ln();
    // Nothing but the doubt of a score of 0; |y|^2 / |y|^2, two off beyond the kink, sure of an error that was none.
    let want = [ln(2.0), 1.0 + 1.5 + ln(1.0 + 2f64.exp()), 0.0];
    let sigmoid = 1.0 / (1.0 + (-2f64).exp());
    let slopes = [[0.0, 0.0, 0.0, -0.5], [-6.0 / 25.0, -8.0 / 25.0, -1.0, sigmoid], [0.0; 4]].concat();
    let host = Arena::new(1 << 16).unwrap();
    let arenas = simulators().into_iter().map(|gpu| (Arena::scattered(gpu), DType::F32));
    for (arena, dtype) in [(host.clone(), DType::F64), (host, DType::F32)].into_iter().chain(arenas) {
        let of = |shape: &[usize], values: &[f64]| tensor(&arena, dtype, shape, values);
        let (features, losses, errors) = (of(&[3, 2], &features), of(&[3], &[3.0; 3]), of(&[3], &[1.0, 0.0, 1.0]));
        let targets = ids(&arena, &[4, 0, IGNORE]);
        let truth = Truth { features: &features, losses: &losses, errors: &errors, targets: &targets };
        let (values, ds) = self_loss::forward(&arena, &of(&[3, 4], &said), truth, Some(&2.0.into()));
        verify::close("losses", &values.to_f64(), &want, 1e-6).unwrap();
        let twice: Vec<f64> = slopes.iter().map(|d| 2.0 * d).collect();
        verify::close("slopes", &ds.unwrap().to_f64(), &twice, 1e-6).unwrap();
    }
}

#[test]
fn a_number_that_is_none_is_not_hidden() {
    let arena = Arena::new(1 << 16).unwrap();
    for at in 0..4 {
        let mut said = [0.5; 4];
        said[at] = f64::NAN;
        let of = |shape: &[usize], values: &[f64]| tensor(&arena, DType::F32, shape, values);
        let (features, losses, errors) = (of(&[1, 2], &[1.0, 2.0]), of(&[1], &[1.0]), of(&[1], &[0.0]));
        let truth = Truth { features: &features, losses: &losses, errors: &errors, targets: &ids(&arena, &[0]) };
        let (values, ds) = self_loss::forward(&arena, &of(&[1, 4], &said), truth, Some(&1.0.into()));
        assert!(values.to_f64()[0].is_nan() && ds.unwrap().to_f64()[at].is_nan(), "{at}");
    }
}
