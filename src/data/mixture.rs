//! Weighted mixtures: which source is next, so that the weights are shares of the tokens. Pure bookkeeping.

/// Tokens drawn from each source against its weight. The source that is furthest behind is next, so after any number of
/// tokens every share is off by no more than about one document per source.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    weights: Vec<f64>,
    emitted: Vec<u64>,
}

impl Shares {
    /// Shares of sources with these weights (positive and finite), nothing drawn yet.
    pub fn new(weights: Vec<f64>) -> Shares {
        assert!(
            weights.iter().all(|weight| weight.is_finite() && *weight > 0.0),
            "weights must be positive and finite"
        );
        let emitted = vec![0; weights.len()];
        Shares { weights, emitted }
    }

    /// The same with `emitted` tokens drawn already, to resume.
    pub fn resume(weights: Vec<f64>, emitted: Vec<u64>) -> Shares {
        assert_eq!(weights.len(), emitted.len(), "a count for every weight");
        Shares { emitted, ..Shares::new(weights) }
    }

    /// The weights.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Tokens drawn from each source.
    pub fn emitted(&self) -> &[u64] {
        &self.emitted
    }

    /// The sources, the one furthest behind first; among equals the earlier one.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.weights.len()).collect();
        let behind = |i: usize| self.emitted[i] as f64 / self.weights[i];
        order.sort_by(|&a, &b| behind(a).total_cmp(&behind(b)));
        order
    }

    /// Notes that `tokens` came from `source`.
    pub fn charge(&mut self, source: usize, tokens: usize) {
        self.emitted[source] += tokens as u64;
    }
}
