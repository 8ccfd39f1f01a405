//! Seeded draws, permutations and content identities: the only randomness `data` has. Knows of nothing else.

/// A bijective mix of 64 bits (the finaliser of splitmix64, Steele, Lea and Flood 2014).
pub fn mix64(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of draws that is a pure function of its parts (splitmix64).
#[derive(Debug, Clone)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The stream of `parts`, for example seed, task and index; their order matters.
    pub fn new(parts: &[u64]) -> Draw {
        let state = parts.iter().fold(0x243f_6a88_85a3_08d3, |state: u64, &part| {
            mix64(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix64(part.wrapping_add(0x1319_8a2e_0370_7344)))
        });
        Draw { state }
    }

    /// The next 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.state)
    }

    /// A uniform number in `0..n`; `n` must not be zero. The bias is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a draw needs at least one outcome");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// A uniform number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// A uniform element of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// A seeded permutation of `0..n` (Fisher and Yates).
pub fn permutation(n: usize, parts: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut draw = Draw::new(parts);
    for i in (1..n).rev() {
        order.swap(i, draw.below(i + 1));
    }
    order
}

/// 64 bits that stand for a content: equal contents, equal identities, whatever file or line holds them.
pub fn identity(content: &[u8]) -> u64 {
    let hash = blake3::hash(content);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}
