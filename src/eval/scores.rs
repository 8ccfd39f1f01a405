//! Scores of what heads say of a model: how well a number tells two kinds apart, how honest a probability is, how good a sampler is
//! whose probabilities nobody can ask.

/// The area under the receiver operating curve: how often a score of `positive` is above one of `negative`, ties by half; 0.5 tells
/// nothing, 1 tells all. `None` where one of them is empty or a score is no number.
pub fn auroc(positive: &[f64], negative: &[f64]) -> Option<f64> {
    let mut all: Vec<(f64, bool)> =
        positive.iter().map(|&x| (x, true)).chain(negative.iter().map(|&x| (x, false))).collect();
    if positive.is_empty() || negative.is_empty() || all.iter().any(|(x, _)| x.is_nan()) {
        return None;
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Negatives below the run of equal scores, and pairs won so far.
    let (mut below, mut won) = (0.0, 0.0);
    for run in all.chunk_by(|a, b| a.0 == b.0) {
        let ours = run.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
        let theirs = run.len() as f64 - ours;
        won += ours * (below + 0.5 * theirs);
        below += theirs;
    }
    Some(won / (positive.len() as f64 * negative.len() as f64))
}

/// The expected calibration error of probabilities of events: over equal bins of probability, the mean distance, weighted by their
/// number, from the bin's mean probability to the share of events that happened. `None` without any.
pub fn calibration_error(said: &[(f64, bool)], bins: usize) -> Option<f64> {
    let mut sums = vec![(0.0, 0.0); bins];
    for &(p, happened) in said {
        let (probability, events) = &mut sums[((p * bins as f64) as usize).min(bins - 1)];
        *probability += p;
        *events += f64::from(u8::from(happened));
    }
    let apart = sums.iter().map(|(probability, events): &(f64, f64)| (probability - events).abs()).sum::<f64>();
    (!said.is_empty()).then(|| apart / said.len() as f64)
}

/// The share of the variance of `truth [N, d]` about the mean of each column that `said [N, d]` tells: 1 all, 0 as much as the means, below 0
/// less. `None` where nothing varies.
pub fn r_squared(said: &[f64], truth: &[f64], d: usize) -> Option<f64> {
    let n = truth.len() / d;
    let means: Vec<f64> = (0..d).map(|k| truth.chunks(d).map(|row| row[k]).sum::<f64>() / n as f64).collect();
    let squares = |x: &mut dyn Iterator<Item = &f64>| x.zip(truth).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    let (missed, all) = (squares(&mut said.iter()), squares(&mut means.iter().cycle()));
    (all > 0.0).then(|| 1.0 - missed / all)
}

/// Longest n-gram of [`brier_lm`].
pub const GRAMS: usize = 4;

/// Two samples of what a model says next, and what came: the first [`GRAMS`] tokens of each, after one context.
#[derive(Clone, Copy, Debug)]
pub struct Continuation {
    pub samples: [[u32; GRAMS]; 2],
    pub truth: [u32; GRAMS],
}

/// The mean over contexts of `1{x1 = y} + 1{x2 = y} - 1{x1 = x2}` for the n-grams of each length 1 .. [`GRAMS`]: an estimate without
/// bias of `2 sum p q - sum p^2 = sum q^2 - sum (p - q)^2`, `p` the model's distribution, `q` the true one. Highest at `p = q`.
pub fn brier(continuations: &[Continuation]) -> [f64; GRAMS] {
    std::array::from_fn(|i| {
        let of = |Continuation { samples: [a, b], truth }: &Continuation| {
            let same = |x: &[u32; GRAMS], y: &[u32; GRAMS]| f64::from(u8::from(x[..=i] == y[..=i]));
            same(a, truth) + same(b, truth) - same(a, b)
        };
        continuations.iter().map(of).sum::<f64>() / continuations.len().max(1) as f64
    })
}

/// BrierLM: the geometric mean of the scores of [`brier`] (CALM, arXiv 2510.27688), higher is better; 0 where one of them is not above 0.
pub fn brier_lm(continuations: &[Continuation]) -> f64 {
    brier(continuations).iter().map(|score| score.max(0.0)).product::<f64>().powf(1.0 / GRAMS as f64)
}
