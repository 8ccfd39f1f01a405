//! Scores of heads, against what they mean counted out.

use nanochat_gpu::eval::scores::{Continuation, auroc, brier, brier_lm, calibration_error, r_squared};
use nanochat_gpu::tensor::random::Philox;
use nanochat_gpu::verify::{integers, normals};

#[test]
fn auroc_is_the_share_of_pairs_that_are_won() {
    let coarse =
        |name: &str, n: usize, shift: f64| normals(name, n).iter().map(|x| (3.0 * x + shift).round()).collect();
    let [positive, negative]: [Vec<f64>; 2] = [coarse("positive", 57, 2.0), coarse("negative", 31, 0.0)];
    let won = |a: f64, b: f64| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 };
    let pairs = positive.iter().flat_map(|&a| negative.iter().map(move |&b| won(a, b)));
    let want = pairs.sum::<f64>() / (57.0 * 31.0);
    let got = auroc(&positive, &negative).unwrap();
    assert!((got - want).abs() < 1e-12 && got > 0.6, "{got} {want}");
    assert!((auroc(&negative, &positive).unwrap() + got - 1.0).abs() < 1e-12);
    assert_eq!(auroc(&[1.0], &[1.0]), Some(0.5));
    assert_eq!(auroc(&[2.0, 3.0], &[1.0]), Some(1.0));
    assert!(auroc(&[], &[1.0]).is_none() && auroc(&[f64::NAN], &[1.0]).is_none());
}

#[test]
fn calibration_is_the_distance_of_said_from_seen() {
    // Ten at 0.8, of which five happened, and ten at 0.1, of which one did.
    let said: Vec<(f64, bool)> = (0..20).map(|i| if i < 10 { (0.8, i < 5) } else { (0.1, i == 10) }).collect();
    assert!((calibration_error(&said, 10).unwrap() - 0.15).abs() < 1e-12);
    assert_eq!(calibration_error(&[(1.0, true), (0.0, false)], 4), Some(0.0));
    assert!(calibration_error(&[], 4).is_none());
}

#[test]
fn the_share_of_the_variance_is_of_each_column_by_itself() {
    // Columns about 0 and about 100, of variance 1 and 4.
    let truth = [-1.0, 98.0, 1.0, 102.0];
    assert_eq!(r_squared(&truth, &truth, 2), Some(1.0));
    assert_eq!(r_squared(&[0.0, 100.0, 0.0, 100.0], &truth, 2), Some(0.0));
    // Of squares 10 in all, one of 4 is missed.
    assert_eq!(r_squared(&[-1.0, 98.0, 1.0, 100.0], &truth, 2), Some(1.0 - 4.0 / 10.0));
    assert!(r_squared(&[0.0; 4], &truth, 2).unwrap() < -1000.0);
    assert!(r_squared(&[f64::NAN; 4], &truth, 2).unwrap().is_nan());
    assert!(r_squared(&[1.0], &[5.0], 1).is_none() && r_squared(&[], &[], 1).is_none());
}

/// All pairs of samples and truths of a small alphabet, each as often as its probability says: the score is `sum q^2 - sum (p - q)^2`.
#[test]
fn the_brier_estimate_is_what_it_stands_for() {
    // In sixteenths.
    let (p, q) = ([8u32, 4, 4], [2u32, 6, 8]);
    let spread =
        |weights: [u32; 3]| (0..3u32).flat_map(|id| vec![id; weights[id as usize] as usize]).collect::<Vec<_>>();
    let (model, truths) = (spread(p), spread(q));
    let mut all = Vec::new();
    for &a in &model {
        for &b in &model {
            for &y in &truths {
                // What follows the first token is always the same.
                all.push(Continuation { samples: [[a, 7, 7, 7], [b, 7, 7, 7]], truth: [y, 7, 7, 7] });
            }
        }
    }
    let [p, q] = [p, q].map(|weights| weights.map(|n| f64::from(n) / 16.0));
    let want: f64 = (0..3).map(|i| q[i] * q[i] - (p[i] - q[i]).powi(2)).sum();
    assert!(brier(&all).iter().all(|score| (score - want).abs() < 1e-12), "{:?} {want}", brier(&all));
    assert!((brier_lm(&all) - want).abs() < 1e-12);
}

/// Drawn, not counted: a sampler of the true distribution beats one that is too sure and one that is too flat.
#[test]
fn the_true_distribution_has_the_best_brier_score() {
    let (n, stream) = (40_000u64, Philox::new(5, "brier"));
    let score = |sharpness: f64| {
        let weights: Vec<f64> = [0.5f64, 0.3, 0.2].iter().map(|p| p.powf(sharpness)).collect();
        let draw = |weights: &[f64], at: u64| {
            let mut left = stream.uniform(at) * weights.iter().sum::<f64>();
            weights
                .iter()
                .position(|w| {
                    left -= w;
                    left < 0.0
                })
                .unwrap_or(0) as u32
        };
        let row = |weights: &[f64], at: u64| std::array::from_fn(|k| draw(weights, 16 * at + k as u64));
        let of = |i: u64| Continuation {
            samples: [row(&weights, 3 * i), row(&weights, 3 * i + 1)],
            truth: row(&[0.5, 0.3, 0.2], 3 * i + 2),
        };
        brier_lm(&(0..n).map(of).collect::<Vec<_>>())
    };
    let [flat, right, sharp] = [0.0, 1.0, 3.0].map(score);
    assert!(right > flat + 0.01 && right > sharp + 0.01, "{flat} {right} {sharp}");
    let nothing = integers("nothing", 4, 9);
    let off = Continuation { samples: [[50; 4], [50; 4]], truth: [nothing[0], nothing[1], nothing[2], nothing[3]] };
    assert_eq!(brier_lm(&[off]), 0.0);
}
