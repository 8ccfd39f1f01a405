//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011), the same on every device.
//!
//! A number is a pure function of (seed, stream, index), so nothing has to be saved to resume, and the order in which
//! threads draw does not matter.

/// A stream of random numbers addressed by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
    stream: [u32; 2],
}

impl Philox {
    /// The stream named `stream` of `seed`; different names give independent numbers.
    pub fn new(seed: u64, stream: &str) -> Philox {
        let digest = blake3::hash(stream.as_bytes());
        let word = |i: usize| u32::from_le_bytes(digest.as_bytes()[4 * i..4 * i + 4].try_into().expect("four bytes"));
        Philox { key: [seed as u32, (seed >> 32) as u32], stream: [word(0), word(1)] }
    }

    /// Four random words for `index`.
    pub fn block(&self, index: u64) -> [u32; 4] {
        philox4x32_10([index as u32, (index >> 32) as u32, self.stream[0], self.stream[1]], self.key)
    }

    /// A uniform number in [0, 1) with 53 random bits.
    pub fn uniform(&self, index: u64) -> f64 {
        let [a, b, ..] = self.block(index);
        unit_interval(a, b)
    }

    /// A standard normal number (Box-Muller).
    pub fn normal(&self, index: u64) -> f64 {
        let [a, b, c, d] = self.block(index);
        let (u, v) = (1.0 - unit_interval(a, b), unit_interval(c, d));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// A uniform integer in `0..bound` (bias below `bound / 2^64`).
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        let [a, b, ..] = self.block(index);
        let word = (a as u128) << 32 | b as u128;
        ((word * bound as u128) >> 64) as u64
    }
}

fn unit_interval(high: u32, low: u32) -> f64 {
    let bits = ((high as u64) << 32 | low as u64) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The words of a counter under a key.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = 0xD251_1F53_u64 * counter[0] as u64;
        let b = 0xCD9E_8D57_u64 * counter[2] as u64;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution for zero and all-ones input.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn moments() {
        let stream = Philox::new(7, "moments");
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        assert!((0..1000).all(|i| stream.below(i, 7) < 7 && (0.0..1.0).contains(&stream.uniform(i))));
        assert_ne!(stream.block(1), Philox::new(7, "other").block(1));
    }
}
