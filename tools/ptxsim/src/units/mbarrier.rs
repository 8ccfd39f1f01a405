//! The state machine of an mbarrier object: arrivals and bytes per phase. Misuse is a value, so that a checker can name it. [ISA 9.7.13.15]

use crate::event::MbarrierState;

/// The largest count of arrivals, and of outstanding bytes either way.
pub const COUNT_MAX: u32 = (1 << 20) - 1;

/// What PTX leaves undefined; the object is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// An expected count outside 1..=2^20 - 1.
    Count(u32),
    /// More arrivals than the phase still expects.
    TooManyArrivals { count: u32, pending: u32 },
    /// The transaction count would leave ±(2^20 - 1).
    TransactionCount(i64),
}

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Misuse::Count(count) => write!(f, "expected count {count} is outside 1..={COUNT_MAX}"),
            Misuse::TooManyArrivals { count, pending } => {
                write!(f, "{count} arrivals where the phase still expects {pending}")
            }
            Misuse::TransactionCount(tx) => write!(f, "transaction count {tx} is outside ±{COUNT_MAX}"),
        }
    }
}

/// `mbarrier.init`: phase 0, all arrivals missing, no bytes.
///
/// # Errors
/// A count out of range.
pub fn init(count: u32) -> Result<MbarrierState, Misuse> {
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(Misuse::Count(count));
    }
    Ok(MbarrierState { phase: 0, expected: count, pending: count, tx: 0 })
}

impl MbarrierState {
    fn complete_if_done(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }

    /// `count` arrivals; with `drop` later phases expect as many fewer. The phase may complete.
    ///
    /// # Errors
    /// More arrivals than are missing, or none.
    pub fn arrive(&mut self, count: u32, drop: bool) -> Result<(), Misuse> {
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(Misuse::Count(count));
        }
        if count > self.pending {
            return Err(Misuse::TooManyArrivals { count, pending: self.pending });
        }
        self.pending -= count;
        if drop {
            self.expected -= count;
        }
        self.complete_if_done();
        Ok(())
    }

    /// `expect_tx`: the phase now also waits for `bytes`.
    ///
    /// # Errors
    /// The transaction count would overflow.
    pub fn expect_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        self.change_tx(i64::from(bytes))
    }

    /// `complete_tx`: `bytes` came. The phase may complete.
    ///
    /// # Errors
    /// The transaction count would overflow.
    pub fn complete_tx(&mut self, bytes: u32) -> Result<(), Misuse> {
        self.change_tx(-i64::from(bytes))?;
        self.complete_if_done();
        Ok(())
    }

    fn change_tx(&mut self, by: i64) -> Result<(), Misuse> {
        let tx = self.tx + by;
        if tx.abs() > i64::from(COUNT_MAX) {
            return Err(Misuse::TransactionCount(tx));
        }
        self.tx = tx;
        Ok(())
    }

    /// `test_wait.parity`: whether the phase of this parity, the current or the one before, is complete. True for parity 1 of a fresh one.
    pub fn parity_is_complete(&self, parity: u32) -> bool {
        self.phase & 1 != u64::from(parity & 1)
    }

    /// `test_wait` with the token that an arrival of phase `phase` returned.
    pub fn phase_is_complete(&self, phase: u64) -> bool {
        self.phase != phase
    }

    /// The 64 bits an arrival returns, and that memory shows: private to the simulator. Phase (22 bits), expected and pending (21 each).
    pub fn token(&self) -> u64 {
        (self.phase & 0x3f_ffff) << 42 | u64::from(self.expected) << 21 | u64::from(self.pending)
    }

    /// The phase (modulo 2^22) that a token names.
    pub fn token_phase(token: u64) -> u64 {
        token >> 42
    }

    /// `mbarrier.pending_count`: arrivals that were missing when the token was made.
    pub fn token_pending(token: u64) -> u32 {
        (token & 0x1f_ffff) as u32
    }
}
