use super::*;
use nanochat_gpu::ops::sample::{Draw, WEIGHT_OF_FIRST, most_probable};

#[test]
fn a_simulated_gpu_draws_what_the_processor_draws() {
    check_on_all(verify::sample::sample_on);
}

/// A nucleus ends where its share is reached, not passed; the least weight is one that may be drawn.
#[test]
fn limits_are_met_exactly() {
    let logits = [0.0f32, -1.0, 0.0, -2.0];
    let draws = |draw: Draw| {
        let mut seen: Vec<u32> = (0..64u64)
            .map(|i| Draw { uniform: i << 58, ..draw }.pick(&logits, most_probable(&logits).unwrap()))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    // Weights 1, 1/2, 1, 1/4 of the first.
    let all = Draw { uniform: 0, scale: 1.0, top_k: u32::MAX, top_p: 0, least_weight: 0 };
    assert_eq!(draws(all), [0, 1, 2, 3]);
    assert_eq!(draws(Draw { top_k: 2, top_p: 1 << 63, ..all }), [0]);
    assert_eq!(draws(Draw { top_k: 2, top_p: (1 << 63) + (1 << 40), ..all }), [0, 2]);
    assert_eq!(draws(Draw { top_k: 3, ..all }), [0, 1, 2]);
    assert_eq!(draws(Draw { least_weight: WEIGHT_OF_FIRST / 2, ..all }), [0, 1, 2]);
    assert_eq!(draws(Draw { least_weight: WEIGHT_OF_FIRST / 2 + 1, ..all }), [0, 2]);
    assert_eq!(draws(Draw::FIRST), [0]);
}
