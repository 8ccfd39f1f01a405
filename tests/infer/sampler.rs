//! The sampler: frequencies, exact restriction by top-k and top-p, greedy choice, addressing by seed and position.

use nanochat_gpu::infer::{Sampler, SamplerOptions};
use std::collections::BTreeSet;

const LOGITS: [f32; 7] = [1.0, -0.5, 2.0, f32::NEG_INFINITY, 2.0, 0.25, -3.0];

fn options() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, seed: 11, ..SamplerOptions::GREEDY }
}

fn sampler(options: SamplerOptions) -> Sampler {
    Sampler::new(options).unwrap()
}

fn drawn(options: SamplerOptions, logits: &[f32]) -> BTreeSet<u32> {
    let sampler = sampler(options);
    (0..4000).map(|position| sampler.pick(logits, 0, position).unwrap()).collect()
}

/// Chi-squared of `draws` against softmax(logits / temperature) over the ids in `kept`; nothing else may be drawn.
fn chi_squared(draws: &[u32], logits: &[f32], temperature: f64, kept: &[u32]) -> f64 {
    let weight = |id: u32| (f64::from(logits[id as usize]) / temperature).exp();
    let total: f64 = kept.iter().map(|&id| weight(id)).sum();
    assert!(draws.iter().all(|id| kept.contains(id)));
    let term = |id: u32| {
        let expected = draws.len() as f64 * weight(id) / total;
        let seen = draws.iter().filter(|&&drawn| drawn == id).count() as f64;
        (seen - expected).powi(2) / expected
    };
    kept.iter().map(|&id| term(id)).sum()
}

#[test]
fn frequencies_are_the_softmax() {
    let finite = [0, 1, 2, 4, 5, 6];
    for (temperature, top_k, top_p, kept) in [
        (1.0, None, None, &finite[..]),
        (0.7, None, None, &finite),
        (2.5, None, None, &finite),
        (1.0, Some(3), None, &[0, 2, 4]),
        (1.0, None, Some(0.8), &[0, 2, 4]),
        (1.3, Some(100), Some(1.0), &finite),
    ] {
        let sampler = sampler(SamplerOptions { temperature, top_k, top_p, ..options() });
        let positions: Vec<u32> = (0..40_000).map(|position| sampler.pick(&LOGITS, 3, position).unwrap()).collect();
        let sequences: Vec<u32> = (0..40_000).map(|sequence| sampler.pick(&LOGITS, sequence, 3).unwrap()).collect();
        for draws in [positions, sequences] {
            // The 99.99th percentile of chi-squared with 5 degrees of freedom is 25.7.
            let chi = chi_squared(&draws, &LOGITS, temperature, kept);
            assert!(chi <= 25.7, "{chi} at temperature {temperature}, {top_k:?}, {top_p:?}");
        }
    }
}

#[test]
fn top_k_and_top_p_restrict_exactly() {
    let ids = |ids: &[u32]| ids.iter().copied().collect::<BTreeSet<u32>>();
    let logits = [1.0f32, 3.0, 2.0, 3.0, 2.0, 2.0].map(f32::ln);
    let of = |top_k, top_p| drawn(SamplerOptions { top_k, top_p, ..options() }, &logits);
    // Ranks: 1, 3 (weight 3), 2, 4, 5 (weight 2), 0 (weight 1); 13 in all.
    assert_eq!(of(Some(1), None), ids(&[1]));
    assert_eq!(of(Some(2), None), ids(&[1, 3]));
    assert_eq!(of(Some(4), None), ids(&[1, 2, 3, 4]));
    assert_eq!(of(Some(6), None), ids(&[0, 1, 2, 3, 4, 5]));
    assert_eq!(of(None, Some(1e-9)), ids(&[1]));
    assert_eq!(of(None, Some(2.9 / 13.0)), ids(&[1]));
    assert_eq!(of(None, Some(3.1 / 13.0)), ids(&[1, 3]));
    assert_eq!(of(None, Some(6.1 / 13.0)), ids(&[1, 2, 3]));
    assert_eq!(of(None, Some(11.9 / 13.0)), ids(&[1, 2, 3, 4, 5]));
    assert_eq!(of(None, Some(1.0)), ids(&[0, 1, 2, 3, 4, 5]));
    // top-p counts within what top-k left: 3 of 6 is half.
    assert_eq!(of(Some(2), Some(0.49)), ids(&[1]));
    assert_eq!(of(Some(2), Some(0.51)), ids(&[1, 3]));
}

#[test]
fn a_wide_nucleus_is_found_too() {
    // Equal weights: the nucleus of 1,000 tokens at 0.7 is 700 ids, more than are sorted at first.
    let sampler = sampler(SamplerOptions { top_p: Some(0.6995), ..options() });
    let drawn: BTreeSet<u32> = (0..20_000).map(|i| sampler.pick(&[0.5; 1000], 0, i).unwrap()).collect();
    assert_eq!(drawn, (0..700).collect());
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let greedy = sampler(SamplerOptions::GREEDY);
    assert!((0..100).all(|position| greedy.pick(&LOGITS, position, position).unwrap() == 2));
    assert_eq!(greedy.pick(&[-1.0, -0.5, -0.5], 0, 0).unwrap(), 1);
    assert_eq!(greedy.pick(&[f32::NEG_INFINITY, f32::MIN], 0, 0).unwrap(), 1);
    assert_eq!(greedy.pick(&[-0.0, 0.0], 0, 0).unwrap(), 0);
    // A temperature near zero is nearly greedy, and nothing overflows.
    assert_eq!(drawn(SamplerOptions { temperature: f64::MIN_POSITIVE, ..options() }, &[1.0, 2.0, 1.5]), [1].into());
    assert_eq!(drawn(SamplerOptions { temperature: 1e300, ..options() }, &[1.0, f32::MAX]), [0, 1].into());
}

#[test]
fn a_draw_depends_on_seed_sequence_and_position_alone() {
    let draws = |seed, sequence, order: &mut dyn Iterator<Item = u64>| {
        let sampler = sampler(SamplerOptions { seed, ..options() });
        let mut draws: Vec<(u64, u32)> =
            order.map(|position| (position, sampler.pick(&LOGITS, sequence, position).unwrap())).collect();
        draws.sort_unstable();
        draws
    };
    let first = draws(5, 2, &mut (0..200));
    assert_eq!(first, draws(5, 2, &mut (0..200).rev()));
    assert_ne!(first, draws(6, 2, &mut (0..200)));
    assert_ne!(first, draws(5, 3, &mut (0..200)));
    assert_ne!(
        first[..100].iter().map(|d| d.1).collect::<Vec<_>>(),
        first[100..].iter().map(|d| d.1).collect::<Vec<_>>()
    );
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for options in [options(), SamplerOptions::GREEDY, SamplerOptions { top_k: Some(1), ..options() }] {
        for (logits, said) in [
            (&[1.0, f32::NAN, 5.0][..], "token 1 is NaN"),
            (&[1.0, 2.0, -f32::NAN], "token 2 is NaN"),
            (&[f32::INFINITY, 2.0], "token 0 is inf"),
            (&[f32::NEG_INFINITY; 2], "all of 2 logits"),
            (&[], "all of 0 logits"),
        ] {
            let error = sampler(options).pick(logits, 0, 0).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let good = options();
    for (bad, said) in [
        (SamplerOptions { temperature: -0.1, ..good }, "temperature is -0.1"),
        (SamplerOptions { temperature: f64::NAN, ..good }, "temperature is NaN"),
        (SamplerOptions { temperature: f64::INFINITY, ..good }, "temperature is inf"),
        (SamplerOptions { top_k: Some(0), ..good }, "top-k is 0"),
        (SamplerOptions { top_p: Some(0.0), ..good }, "top-p is 0"),
        (SamplerOptions { top_p: Some(1.01), ..good }, "top-p is 1.01"),
        (SamplerOptions { top_p: Some(f64::NAN), ..good }, "top-p is NaN"),
    ] {
        let error = Sampler::new(bad).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
