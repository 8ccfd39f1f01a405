//! Loads of shared memory in straight-line code of whole warps, which look at addresses once where several start from one
//! register: it changes between them, in some lanes; a later one leaves the memory; and turns end anywhere.

use ptxsim::launch::Geometry;
use ptxsim::options::{Options, Schedule};

use super::{per_thread, run_words, words};

const BODY: &str = ".shared .align 16 .b32 s[1024]; .shared .align 16 .b32 t[512];
    mov.u32 %r18, t; mov.u32 %r2, s; shl.b32 %r3, %r20, 2; add.u32 %r4, %r2, %r3; shl.b32 %r7, %r20, 4; add.u32 %r8, %r2, %r7; add.u32 %r18, %r18, %r3;
    st.shared.u32 [%r4], %r0; add.u32 %r5, %r0, 1; st.shared.u32 [%r4+1024], %r5; add.u32 %r5, %r0, 2;
    st.shared.u32 [%r4+2048], %r5; add.u32 %r5, %r0, 3; st.shared.u32 [%r4+3072], %r5; bar.sync 0;
    mov.u32 %r1, 0; mov.u32 %r6, 0; setp.lt.u32 %p0, %r20, 40;
    LOOP:
    ld.shared.u32 %r9, [%r4]; ld.shared.u32 %r10, [%r4+1024];
    @%p0 xor.b32 %r4, %r4, 4;
    ld.shared.u32 %r11, [%r4+2048];
    ld.shared.v4.u32 {%r12, %r13, %r14, %r15}, [%r8]; ld.shared.u32 %r16, [%r8+4]; ld.shared.u32 %r17, [%r2+40];
    mad.lo.u32 %r1, %r1, 31, %r9; mad.lo.u32 %r1, %r1, 31, %r10; mad.lo.u32 %r1, %r1, 31, %r11; mad.lo.u32 %r1, %r1, 31, %r12;
    mad.lo.u32 %r1, %r1, 31, %r13; mad.lo.u32 %r1, %r1, 31, %r14; mad.lo.u32 %r1, %r1, 31, %r15; mad.lo.u32 %r1, %r1, 31, %r16;
    mad.lo.u32 %r1, %r1, 31, %r17;
    xor.b32 %r18, %r18, 1024; st.shared.u32 [%r18], %r6; ld.shared.u32 %r19, [%r18]; mad.lo.u32 %r1, %r1, 31, %r19;
    add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 5; @%p1 bra LOOP;";

/// What [`BODY`] gives.
fn expected(input: &[u32]) -> Vec<u32> {
    let word = |at: usize| input[at % 256].wrapping_add(at as u32 / 256);
    let mut out = Vec::new();
    for thread in 0..256 {
        let (mut own, mut sum) = (thread, 0u32);
        for turn in 0..5 {
            let first = [word(own), word(own + 256)];
            own ^= usize::from(thread < 40);
            let row = (4 * thread..4 * thread + 4).map(word);
            let rest = [word(4 * thread + 1), word(10)];
            let all = first.into_iter().chain([word(own + 512)]).chain(row).chain(rest).chain([turn]);
            sum = all.fold(sum, |sum, word| sum.wrapping_mul(31).wrapping_add(word));
        }
        out.push(sum);
    }
    out
}

#[test]
fn loads_from_one_base_in_whole_warps() {
    let input = words(256, 12);
    let mut totals = Vec::new();
    for (schedule, seed) in
        [(Schedule::RoundRobin, 0), (Schedule::Reverse, 0), (Schedule::Random, 1), (Schedule::Random, 2)]
    {
        let options = Options { schedule, seed, ..Options::default() };
        let (output, outcome) = run_words(&per_thread(BODY), &input, &Geometry::linear(1, 256), &options);
        assert_eq!(outcome.findings, []);
        assert_eq!(output, expected(&input), "{schedule:?}, seed {seed}");
        totals.push(outcome.counters);
    }
    assert!(totals.iter().all(|counters| counters == &totals[0]));
    let total = totals[0].total;
    // Eight warps: four stores, and five times a store and seven loads, of which one is of 16 bytes a lane.
    assert_eq!(total.shared_requests, 8 * (4 + 5 * 8));
    assert_eq!(total.shared_bytes, 8 * 32 * (4 * 4 + 5 * (7 * 4 + 16)));
    // A load of 16 bytes takes four phases.
    assert_eq!(total.shared_phases, 8 * (4 + 5 * (7 + 4)));
    // Words four apart: lanes 0, 8, 16 and 24 meet in one bank.
    assert!(total.bank_conflicts() > 0);
}

#[test]
fn a_load_after_its_head_leaves_the_memory() {
    let body = ".shared .align 16 .b32 s[64];
        mov.u32 %r2, s; shl.b32 %r3, %r20, 2; add.u32 %r4, %r2, %r3; mov.u32 %r1, 0; mov.u32 %r6, 0;
        st.shared.u32 [%r4], %r0; st.shared.u32 [%r4+128], %r0; bar.warp.sync -1;
        LOOP:
        ld.shared.u32 %r9, [%r4]; ld.shared.u32 %r10, [%r4+64]; add.u32 %r1, %r1, %r9; add.u32 %r1, %r1, %r10;
        add.u32 %r4, %r4, 64; add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, 3; @%p1 bra LOOP;";
    let input = words(32, 5);
    let (output, outcome) = run_words(&per_thread(body), &input, &Geometry::linear(1, 32), &Options::default());
    // In the third turn the second load's upper 16 lanes are outside; they read zeros.
    let [finding] = &outcome.findings[..] else { panic!("{:?}", outcome.findings) };
    assert_eq!((finding.checker, finding.rule, finding.count), ("bounds", "read_outside", 16));
    assert_eq!((finding.thread, finding.address), (Some([16, 0, 0]), Some(256)));
    for (lane, output) in output.iter().enumerate() {
        let word = |at: usize| if at < 64 { input[at % 32] } else { 0 };
        let sum = (0..3).fold(0u32, |sum, turn| {
            let own = lane + 16 * turn;
            sum.wrapping_add(word(own)).wrapping_add(word(own + 16))
        });
        assert_eq!(*output, sum, "lane {lane}");
    }
}
