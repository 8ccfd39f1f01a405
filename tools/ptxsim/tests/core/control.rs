//! Divergence, loops, calls, barriers.

use ptxsim::launch::Geometry;
use ptxsim::options::{Options, Schedule};

use super::{map, per_thread, run_words, words};

/// Steps of the Collatz sequence from x / 2^20 + 1: every lane leaves the loop at its own time.
#[test]
fn lanes_leave_a_loop_one_by_one() {
    let input = words(512, 1);
    let body = "shr.u32 %r2, %r0, 20; add.u32 %r2, %r2, 1; mov.u32 %r1, 0;
        LOOP: setp.eq.u32 %p0, %r2, 1; @%p0 bra DONE;
        and.b32 %r3, %r2, 1; setp.eq.u32 %p1, %r3, 0; @%p1 bra EVEN;
        mad.lo.u32 %r2, %r2, 3, 1; bra NEXT;
        EVEN: shr.u32 %r2, %r2, 1;
        NEXT: add.u32 %r1, %r1, 1; bra LOOP;
        DONE:";
    let steps = |x: &u32| {
        let (mut n, mut steps) = ((x >> 20) + 1, 0);
        while n != 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    assert_eq!(map(body, &input), input.iter().map(steps).collect::<Vec<u32>>());
}

/// Lanes that left the loop wait for the others behind it: the shuffle there sees the whole warp.
#[test]
fn a_warp_reconverges_behind_a_loop() {
    let input: Vec<u32> = (0..64).collect();
    let body = "mov.u32 %r2, %r20; mov.u32 %r1, 0;
        LOOP: setp.eq.u32 %p0, %r2, 0; @%p0 bra DONE; sub.u32 %r2, %r2, 1; bra LOOP;
        DONE: shfl.sync.bfly.b32 %r1, %r20, 31, 31, -1;";
    for schedule in [Schedule::RoundRobin, Schedule::Reverse, Schedule::Random] {
        let options = Options { schedule, seed: 3, ..Options::default() };
        let (output, outcome) = run_words(&per_thread(body), &input, &Geometry::linear(1, 64), &options);
        assert_eq!(outcome.findings, []);
        assert_eq!(output, (0..64).map(|lane| lane ^ 31).collect::<Vec<u32>>());
    }
}

#[test]
fn divergent_loops_keep_lanes_together() {
    // Without reconvergence each of the 32 lanes would run the tail alone: 32 x 100 instructions.
    let tail = "add.u32 %r1, %r1, 1;".repeat(100);
    let body = format!(
        "mov.u32 %r2, %r20; mov.u32 %r1, 0;
        L: setp.eq.u32 %p0, %r2, 0; @%p0 bra D; sub.u32 %r2, %r2, 1; bra L; D: {tail}"
    );
    let (_, outcome) = run_words(&per_thread(&body), &[0; 32], &Geometry::linear(1, 32), &Options::default());
    assert!(outcome.counters.total.warp_instructions < 300, "{}", outcome.counters.total.warp_instructions);
}

#[test]
fn nested_scopes_shadow_registers_and_labels() {
    let body = "mov.u32 %r1, 0;
        { .reg .b32 t; mov.u32 t, 5; { .reg .b32 t; mov.u32 t, 7; add.u32 %r1, %r1, t; bra L; trap; L: } add.u32 %r1, %r1, t;
          bra L; trap; L: }
        { .reg .pred p; setp.lt.u32 p, %r20, 3; @p bra L; add.u32 %r1, %r1, 100; L: }";
    let output = map(body, &[0; 32]);
    assert_eq!(output[..5], [12, 12, 12, 112, 112]);
}

const FIBONACCI: &str = ".version 8.4\n.target sm_90a\n.address_size 64
    .func (.param .b32 result) fib(.param .b32 n) {
        .reg .b32 %r<6>; .reg .pred %p<2>;
        ld.param.u32 %r0, [n]; setp.lt.s32 %p0, %r0, 2; @%p0 bra SMALL;
        add.s32 %r1, %r0, -1;
        { .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 b; call.uni (b), fib, (a); ld.param.b32 %r2, [b+0]; }
        add.s32 %r1, %r0, -2;
        { .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 b; call.uni (b), fib, (a); ld.param.b32 %r3, [b+0]; }
        add.s32 %r0, %r2, %r3;
        SMALL: st.param.b32 [result+0], %r0; ret;
    }
    .visible .entry k(.param .u64 out, .param .u64 in) {
        .reg .b32 %r<6>; .reg .b64 %rd<5>;
        ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.u64 %rd0, %rd0, %rd1;
        and.b32 %r0, %r0, 7;
        { .param .b32 a; st.param.b32 [a+0], %r0; .param .b32 b; call.uni (b), fib, (a); ld.param.b32 %r1, [b+0]; }
        st.global.u32 [%rd0], %r1; ret;
    }";

#[test]
fn recursion_with_a_depth_per_lane() {
    for schedule in [Schedule::RoundRobin, Schedule::Random] {
        let options = Options { schedule, ..Options::default() };
        let (output, outcome) = run_words(FIBONACCI, &[0; 64], &Geometry::linear(1, 64), &options);
        assert_eq!(outcome.findings, []);
        let expected = [0, 1, 1, 2, 3, 5, 8, 13];
        assert!(output.iter().enumerate().all(|(lane, value)| *value == expected[lane % 8]));
    }
}

#[test]
fn indexed_branches_reach_their_labels() {
    let body = "and.b32 %r2, %r0, 3; T: .branchtargets A, B, C, D; brx.idx %r2, T;
        A: mov.u32 %r1, 10; bra E; B: mov.u32 %r1, 11; bra E; C: mov.u32 %r1, 12; bra E; D: mov.u32 %r1, 13; E:";
    let input = words(64, 2);
    assert_eq!(map(body, &input), input.iter().map(|x| 10 + (x & 3)).collect::<Vec<_>>());
}

/// Each warp writes its number to shared memory, and reads the next warp's behind a barrier.
#[test]
fn barriers_order_warps() {
    let body =
        ".shared .b32 s[256]; mov.u32 %r2, s; shl.b32 %r3, %r20, 2; add.u32 %r4, %r2, %r3; st.shared.u32 [%r4], %r20;
        bar.sync 0; add.u32 %r5, %r20, 32; and.b32 %r5, %r5, 255; shl.b32 %r5, %r5, 2; add.u32 %r5, %r2, %r5;
        ld.shared.u32 %r1, [%r5];";
    for (schedule, seed) in
        [(Schedule::RoundRobin, 0), (Schedule::Reverse, 0), (Schedule::Random, 1), (Schedule::Random, 2)]
    {
        let options = Options { schedule, seed, ..Options::default() };
        let (output, outcome) = run_words(&per_thread(body), &[0; 256], &Geometry::linear(1, 256), &options);
        assert_eq!(outcome.findings, []);
        assert_eq!(output, (0..256).map(|t| (t + 32) % 256).collect::<Vec<u32>>());
    }
}

#[test]
fn barrier_reductions_count_over_the_block() {
    let body = "setp.lt.u32 %p0, %r20, 77; bar.red.popc.u32 %r1, 0, %p0; bar.red.and.pred %p1, 1, %p0; bar.red.or.pred %p2, 1, %p0;
        @%p1 add.u32 %r1, %r1, 1000; @%p2 add.u32 %r1, %r1, 2000;";
    let output = map(body, &[0; 128]);
    assert!(output.iter().all(|value| *value == 2077), "{output:?}");
}

/// Producer warps arrive, consumer warps wait: barrier 1 with 64 threads.
#[test]
fn named_barriers_join_producers_and_consumers() {
    let body = ".shared .b32 s[32]; mov.u32 %r2, s; and.b32 %r3, %r20, 31; shl.b32 %r3, %r3, 2; add.u32 %r2, %r2, %r3;
        mov.u32 %r1, 0; setp.lt.u32 %p0, %r20, 32; @%p0 bra CONSUMER;
        mad.lo.u32 %r4, %r20, 3, 1; st.shared.u32 [%r2], %r4; bar.arrive 1, 64; bra END;
        CONSUMER: bar.sync 1, 64; ld.shared.u32 %r1, [%r2]; END:";
    let output = map(body, &[0; 64]);
    assert_eq!(output[..32], (32..64).map(|t| 3 * t + 1).collect::<Vec<u32>>());
}

#[test]
fn barriers_without_aligned_gather_a_divided_warp() {
    let body = ".shared .b32 s[4]; mov.u32 %r2, s; setp.lt.u32 %p0, %r20, 16; @%p0 bra A;
        barrier.sync 0; ld.shared.u32 %r1, [%r2]; bra E;
        A: st.shared.u32 [%r2], 41; barrier.sync 0; mov.u32 %r1, 1; E:";
    let output = map(body, &[0; 32]);
    assert_eq!((output[0], output[31]), (1, 41));
}

#[test]
fn exited_warps_do_not_hold_up_a_barrier() {
    let body = "setp.ge.u32 %p0, %r20, 40; mov.u32 %r1, 3; @%p0 exit; bar.sync 0; mov.u32 %r1, 9;";
    let output = map(body, &[0; 128]);
    assert!(output.iter().enumerate().all(|(t, v)| *v == if t < 40 { 9 } else { 0 }));
}
