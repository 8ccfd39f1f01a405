//! The mbarrier state machine against the manual's rules.

use ptxsim::units::mbarrier::{self, COUNT_MAX, Misuse};

#[test]
fn a_phase_completes_when_arrivals_and_bytes_are_in() {
    let mut barrier = mbarrier::init(2).expect("a count in range");
    assert!(barrier.parity_is_complete(1) && !barrier.parity_is_complete(0), "a fresh one passes parity 1");
    let token = barrier.token();
    barrier.expect_tx(64).expect("in range");
    barrier.arrive(1, false).expect("expected");
    barrier.arrive(1, false).expect("expected");
    assert_eq!((barrier.phase, barrier.pending, barrier.tx), (0, 0, 64), "bytes are missing");
    barrier.complete_tx(48).expect("in range");
    assert!(!barrier.parity_is_complete(0));
    barrier.complete_tx(16).expect("in range");
    assert_eq!((barrier.phase, barrier.pending, barrier.tx), (1, 2, 0));
    assert!(barrier.parity_is_complete(0) && !barrier.parity_is_complete(1));
    assert!(barrier.phase_is_complete(mbarrier_phase(token)));
}

fn mbarrier_phase(token: u64) -> u64 {
    ptxsim::event::MbarrierState::token_phase(token)
}

#[test]
fn bytes_may_come_before_they_are_expected() {
    let mut barrier = mbarrier::init(1).expect("a count in range");
    barrier.complete_tx(32).expect("in range");
    assert_eq!((barrier.tx, barrier.phase), (-32, 0));
    barrier.expect_tx(32).expect("in range");
    assert_eq!(barrier.phase, 0, "expecting completes nothing");
    barrier.arrive(1, false).expect("expected");
    assert_eq!(barrier.phase, 1);
}

#[test]
fn dropping_lowers_later_phases() {
    let mut barrier = mbarrier::init(3).expect("a count in range");
    barrier.arrive(1, true).expect("expected");
    barrier.arrive(2, false).expect("expected");
    assert_eq!((barrier.phase, barrier.expected, barrier.pending), (1, 2, 2));
}

#[test]
fn misuse_is_named_and_changes_nothing() {
    assert_eq!(mbarrier::init(0), Err(Misuse::Count(0)));
    assert_eq!(mbarrier::init(COUNT_MAX + 1), Err(Misuse::Count(COUNT_MAX + 1)));
    let mut barrier = mbarrier::init(2).expect("a count in range");
    let before = barrier;
    assert_eq!(barrier.arrive(3, false), Err(Misuse::TooManyArrivals { count: 3, pending: 2 }));
    assert_eq!(barrier.arrive(0, false), Err(Misuse::Count(0)));
    assert_eq!(barrier.expect_tx(COUNT_MAX + 1), Err(Misuse::TransactionCount(1 << 20)));
    assert_eq!(barrier.complete_tx(COUNT_MAX + 1), Err(Misuse::TransactionCount(-(1 << 20))));
    assert_eq!(barrier, before);
    assert!(Misuse::TooManyArrivals { count: 3, pending: 2 }.to_string().contains("3 arrivals"));
}
