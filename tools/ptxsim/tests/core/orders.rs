//! Findings, counters and memory do not depend on the number of threads.

use ptxsim::launch::Geometry;
use ptxsim::options::Options;

use super::{per_thread, run_words, words};

#[test]
fn one_thread_and_three_agree() {
    let text = per_thread(
        ".shared .b32 s[128]; mov.u32 %r2, s; and.b32 %r3, %r0, 127; shl.b32 %r3, %r3, 2; add.u32 %r3, %r2, %r3;
        st.shared.u32 [%r3], %r20; bar.sync 0; shl.b32 %r4, %r20, 2; add.u32 %r4, %r2, %r4; ld.shared.u32 %r1, [%r4];
        and.b32 %r5, %r0, 63; setp.eq.u32 %p0, %r5, 0; @%p0 ld.global.u32 %r6, [%rd4+65536];",
    );
    let input = words(4096, 21);
    let run =
        |threads| run_words(&text, &input, &Geometry::linear(32, 128), &Options { threads, ..Options::default() });
    let (memory, one) = run(1);
    // Two lanes may store to one word without an order, some words are never stored, and some loads are out of bounds.
    let rules: Vec<_> = one.findings.iter().map(|finding| (finding.checker, finding.rule)).collect();
    assert_eq!(rules, [("bounds", "read_outside"), ("shared_races", "race"), ("uninitialised", "read")]);
    for threads in [2, 3, 8] {
        let (other, many) = run(threads);
        assert_eq!(other, memory);
        assert_eq!(many.findings, one.findings);
        assert_eq!(many.counters, one.counters);
    }
}
