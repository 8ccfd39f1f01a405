//! What is counted in the training data before a run begins.

use super::Packer;
use std::collections::{BTreeMap, HashSet};

/// Tokens of a window in which a token counts once.
pub const WINDOW_TOKENS: usize = 512;

/// Tokens that are looked at: one epoch, or as many as these.
pub const TOKENS_MAX: usize = 1 << 22;

/// Counts of each token id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// How often it occurs.
    pub tokens: Vec<u64>,
    /// In how many windows it occurs.
    pub windows: Vec<u64>,
    /// Windows in all.
    pub window_count: u64,
    /// How often the second follows the first.
    pub pairs: BTreeMap<(u32, u32), u64>,
}

impl Statistics {
    /// Counts the batches of `packer` from where it is, over ids below `vocab_size`.
    ///
    /// # Errors
    /// Those of the packer.
    pub fn gather(packer: &mut Packer, vocab_size: usize) -> anyhow::Result<Statistics> {
        let (tokens, windows) = (vec![0; vocab_size], vec![0; vocab_size]);
        let mut statistics = Statistics { tokens, windows, ..Statistics::default() };
        let (mut seen, mut stream) = (0, Vec::new());
        while seen < TOKENS_MAX {
            let batch = packer.next_batch()?;
            if batch.epoch > 0 && seen > 0 {
                break;
            }
            seen += batch.tokens.len();
            stream.extend(batch.tokens);
            let whole = stream.len() / WINDOW_TOKENS * WINDOW_TOKENS;
            stream.drain(..whole).collect::<Vec<u32>>().chunks(WINDOW_TOKENS).for_each(|window| statistics.add(window));
            if batch.epoch > 0 {
                break;
            }
        }
        if !stream.is_empty() {
            statistics.add(&stream);
        }
        Ok(statistics)
    }

    fn add(&mut self, window: &[u32]) {
        window.iter().for_each(|&id| self.tokens[id as usize] += 1);
        let distinct: HashSet<u32> = window.iter().copied().collect();
        distinct.into_iter().for_each(|id| self.windows[id as usize] += 1);
        self.window_count += 1;
        window.windows(2).for_each(|pair| *self.pairs.entry((pair[0], pair[1])).or_default() += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_counts_once_a_window_and_each_time() {
        let mut statistics = Statistics { tokens: vec![0; 4], windows: vec![0; 4], ..Statistics::default() };
        statistics.add(&[1, 1, 2]);
        statistics.add(&[2, 3]);
        let (tokens, windows) = (vec![0, 2, 2, 1], vec![0, 1, 2, 1]);
        let pairs = BTreeMap::from([((1, 1), 1), ((1, 2), 1), ((2, 3), 1)]);
        assert_eq!(statistics, Statistics { tokens, windows, window_count: 2, pairs });
    }
}
