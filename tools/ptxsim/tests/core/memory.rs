//! Spaces, widths, generic addresses, atomics, `cp.async`, `ldmatrix`, and the checkers of memory.

use ptxsim::host::{Arg, Device};
use ptxsim::launch::Geometry;
use ptxsim::options::{AsyncPolicy, Options};

use super::{map, module, per_thread, run_words, words};

#[test]
fn generic_addresses_reach_every_space() {
    let body = ".shared .align 4 .b32 s[32]; .local .align 8 .b8 l[16]; .reg .b64 %q<9>;
        mov.u64 %q0, s; cvta.shared.u64 %q1, %q0; mul.wide.u32 %q2, %r20, 4; add.u64 %q1, %q1, %q2; st.u32 [%q1], %r0;
        bar.warp.sync -1; mov.u64 %q3, l; cvta.local.u64 %q4, %q3; st.u32 [%q4+8], 7; ld.local.u32 %r2, [l+8];
        ld.shared.u32 %r3, [s+124]; ld.u32 %r4, [%q1]; ld.u32 %r5, [%rd4];
        isspacep.shared %p0, %q1; isspacep.local %p1, %q1; isspacep.global %p2, %rd4; isspacep.local %p3, %q4;
        setp.ne.u32 %p4, %r4, %r5; @%p4 trap; @!%p0 trap; @%p1 trap; @!%p2 trap; @!%p3 trap;
        add.u32 %r1, %r2, %r3;";
    let output = map(body, &(0..32).map(|t| t * 5).collect::<Vec<_>>());
    assert!(output.iter().all(|value| *value == 7 + 31 * 5));
}

#[test]
fn vectors_and_narrow_elements() {
    let text = module(
        ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %rs<9>;
        ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [in];
        ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd1]; st.global.v4.u32 [%rd0], {%r3, %r2, %r1, %r0};
        ld.global.v2.u64 {%rd2, %rd3}, [%rd1]; st.global.v2.u64 [%rd0+16], {%rd3, %rd2};
        ld.global.v4.u16 {%rs0, %rs1, %rs2, %rs3}, [%rd1+8]; st.global.v4.u16 [%rd0+32], {%rs3, %rs2, %rs1, %rs0};
        ld.global.s8 %r4, [%rd1+3]; st.global.u32 [%rd0+40], %r4; ld.global.u8 %rs4, [%rd1+3]; st.global.u16 [%rd0+44], %rs4;
        st.global.u8 [%rd0+47], %rs4; ret;",
    );
    let mut input = words(16, 9);
    input[0] |= 0x8000_0000;
    let (output, outcome) = run_words(&text, &input, &Geometry::linear(1, 1), &Options::default());
    assert_eq!(outcome.findings, []);
    let [a, b, c, d] = [input[0], input[1], input[2], input[3]];
    assert_eq!(output[..8], [d, c, b, a, c, d, a, b]);
    let (low, high) = (|x: u32| x & 0xffff, |x: u32| x >> 16);
    assert_eq!(output[8..10], [high(d) | low(d) << 16, high(c) | low(c) << 16]);
    assert_eq!(output[10], (a as i32 >> 24) as u32);
    assert_eq!(output[11], a >> 24 | (a >> 24) << 24);
}

#[test]
fn shared_atomics_see_every_lane() {
    let body =
        ".shared .b32 s[4]; mov.u32 %r2, s; setp.eq.u32 %p0, %r20, 0; @%p0 st.shared.v2.u32 [s], {0, 0}; bar.sync 0;
        atom.shared.add.u32 %r3, [%r2], %r0; red.shared.max.u32 [%r2+4], %r0; bar.sync 0;
        ld.shared.u32 %r4, [%r2]; ld.shared.u32 %r5, [%r2+4]; xor.b32 %r1, %r4, %r5;";
    let input = words(256, 4);
    let sum = input.iter().fold(0u32, |a, b| a.wrapping_add(*b));
    let largest = input.iter().max().copied().unwrap_or(0);
    assert!(map(body, &input).iter().all(|value| *value == sum ^ largest));
}

/// A lock: lanes of different blocks take it by compare-and-swap and add to a word without atomics.
#[test]
fn a_spin_lock_across_blocks() {
    let text = module(
        ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<4>;
        ld.param.u64 %rd0, [out];
        AGAIN: atom.global.cas.b32 %r0, [%rd0], 0, 1; setp.ne.u32 %p0, %r0, 0; @%p0 bra AGAIN;
        membar.gl; ld.volatile.global.u32 %r1, [%rd0+4]; add.u32 %r1, %r1, 1; st.volatile.global.u32 [%rd0+4], %r1; membar.gl;
        atom.global.exch.b32 %r0, [%rd0], 0; ret;",
    );
    let (output, _) = run_words(&text, &[0; 4], &Geometry::linear(5, 48), &Options::default());
    assert_eq!(output[..2], [0, 240]);
}

/// Sums of floats from many blocks: the same bits with one thread and with three.
#[test]
fn float_reductions_do_not_depend_on_threads() {
    let text = per_thread(
        "mov.b32 %f0, %r0; red.global.add.f32 [%rd0], %f0; mov.u32 %r1, 0; setp.ne.u32 %p0, 1, 2; @%p0 exit;",
    );
    let input: Vec<u32> = words(4096, 6).iter().map(|x| ((*x as f32) * 1e-3).sin().to_bits()).collect();
    let run =
        |threads| run_words(&text, &input, &Geometry::linear(64, 64), &Options { threads, ..Options::default() }).0[0];
    let expected = input.iter().fold(0f32, |sum, x| sum + f32::from_bits(*x));
    assert_eq!(f32::from_bits(run(1)), expected);
    for _ in 0..10 {
        assert_eq!(run(3), run(1));
    }
}

const COPY: &str = ".shared .align 16 .b8 s[1024]; mov.u32 %r2, s; shl.b32 %r3, %r20, 2; add.u32 %r4, %r2, %r3;
    cp.async.ca.shared.global [%r4], [%rd4], 4; cp.async.commit_group; WAIT
    bar.sync 0; xor.b32 %r5, %r3, 124; add.u32 %r5, %r2, %r5; ld.shared.u32 %r1, [%r5]; setp.ne.u32 %p0, 1, 1; @%p0 trap;";

#[test]
fn asynchronous_copies_land_at_their_wait() {
    let input = words(128, 8);
    for asynchrony in [AsyncPolicy::Late, AsyncPolicy::Early, AsyncPolicy::Random] {
        let options = Options { asynchrony, ..Options::default() };
        let text = per_thread(&COPY.replace("WAIT", "cp.async.wait_group 0;"));
        let (output, outcome) = run_words(&text, &input, &Geometry::linear(1, 128), &options);
        assert_eq!(outcome.findings, []);
        assert!(output.iter().enumerate().all(|(t, value)| *value == input[t ^ 31]), "{asynchrony:?}");
    }
}

#[test]
fn a_copy_that_nobody_waits_for_is_late() {
    let text = per_thread(&COPY.replace("WAIT", "cp.async.wait_group 1;"));
    let (output, outcome) = run_words(&text, &words(128, 8), &Geometry::linear(1, 128), &Options::default());
    assert!(output.iter().all(|value| *value == 0));
    assert!(outcome.findings.iter().any(|finding| finding.checker == "uninitialised"), "{:?}", outcome.findings);
}

#[test]
fn short_sources_are_filled_with_zeros() {
    let text = module(
        ".reg .b32 %r<9>; .reg .b64 %rd<9>; .shared .align 16 .b8 s[32];
        ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [in]; mov.u32 %r0, s;
        cp.async.cg.shared.global [%r0], [%rd1], 16, 6; cp.async.cg.shared.global [%r0+16], [0], 16, 0; cp.async.wait_all;
        ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r0]; st.global.v4.u32 [%rd0], {%r1, %r2, %r3, %r4};
        ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r0+16]; st.global.v4.u32 [%rd0+16], {%r1, %r2, %r3, %r4}; ret;",
    );
    let input = words(8, 1);
    let (output, outcome) = run_words(&text, &input, &Geometry::linear(1, 1), &Options::default());
    assert_eq!(outcome.findings, []);
    assert_eq!(output, [input[0], input[1] & 0xffff, 0, 0, 0, 0, 0, 0]);
}

/// `ldmatrix` and its transpose against the definition of the fragments.
#[test]
fn matrices_are_loaded_by_fragments() {
    for trans in [false, true] {
        let modifier = if trans { ".trans" } else { "" };
        let text = per_thread(&format!(
            ".shared .align 16 .b8 s[512]; mov.u32 %r2, s; shl.b32 %r3, %r20, 4; add.u32 %r4, %r2, %r3;
            mul.wide.u32 %rd5, %r3, 1; add.u64 %rd5, %rd1, %rd5; ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%rd5];
            st.shared.v4.u32 [%r4], {{%r5, %r6, %r7, %r8}}; bar.sync 0;
            ldmatrix.sync.aligned.x4{modifier}.m8n8.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r4];
            mul.wide.u32 %rd6, %r3, 1; add.u64 %rd6, %rd0, %rd6; st.global.v4.u32 [%rd6], {{%r5, %r6, %r7, %r8}}; exit;"
        ));
        let input: Vec<u32> = (0..128).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
        let (output, outcome) = run_words(&text, &input, &Geometry::linear(1, 32), &Options::default());
        assert_eq!(outcome.findings, []);
        for lane in 0..32 {
            for matrix in 0..4 {
                let element = |row: u32, column: u32| matrix * 64 + row * 8 + column;
                let (row, column) = (lane / 4, 2 * (lane % 4));
                let pair = match trans {
                    false => [element(row, column), element(row, column + 1)],
                    true => [element(column, row), element(column + 1, row)],
                };
                assert_eq!(output[(lane * 4 + matrix) as usize], pair[0] | pair[1] << 16);
            }
        }
    }
}

fn findings(body: &str) -> Vec<(&'static str, &'static str, u64)> {
    let (_, outcome) = run_words(&per_thread(body), &[1; 32], &Geometry::linear(1, 32), &Options::default());
    outcome.findings.iter().map(|finding| (finding.checker, finding.rule, finding.count)).collect()
}

#[test]
fn faults_of_memory_are_found() {
    assert_eq!(findings("mov.u32 %r1, 0;"), []);
    assert_eq!(findings("ld.global.u32 %r1, [%rd4+64];"), [("bounds", "read_outside", 16)]);
    assert_eq!(findings("mov.u32 %r1, 0; st.global.u32 [%rd3+-4], %r1;"), [("bounds", "write_outside", 1)]);
    assert_eq!(findings("ld.global.u16 %r1, [%rd4+1];"), [("alignment", "misaligned", 32)]);
    assert_eq!(findings(".shared .b32 s[8]; ld.shared.u32 %r1, [s];"), [("uninitialised", "read", 32)]);
    assert_eq!(
        findings(".local .b32 l[2]; st.local.u32 [l], 1; ld.local.u32 %r1, [l+4];"),
        [("uninitialised", "read", 32)]
    );
    assert_eq!(
        findings(".shared .b32 s[8]; mov.u32 %r1, 0; st.shared.u32 [s+32], %r1;"),
        [("bounds", "write_outside", 32)]
    );
    assert_eq!(findings("mov.u64 %rd7, 0; ld.u32 %r1, [%rd7];"), [("bounds", "read_outside", 32)]);
}

#[test]
fn freed_memory_is_told_apart() {
    let text = module(".reg .b32 %r<3>; .reg .b64 %rd<3>; ld.param.u64 %rd0, [in]; ld.global.u32 %r0, [%rd0+4]; ret;");
    let mut device = Device::new();
    let (a, b) = (device.alloc(64).expect("a"), device.alloc(64).expect("b"));
    device.free(b).expect("free");
    let function = device.load("test.ptx", &text).and_then(|module| module.function("k")).expect("module");
    let args = [Arg::Pointer(a), Arg::Pointer(b)];
    let outcome = device.launch(&function, &Geometry::linear(1, 1), &args, &Options::default()).expect("launch");
    let finding = &outcome.findings[0];
    assert_eq!((finding.checker, finding.count, finding.address), ("bounds", 1, Some(b + 4)));
    assert!(finding.message.contains("4 bytes into freed allocation 1"), "{}", finding.message);
    assert_eq!((finding.block, finding.thread, finding.line.ptx), ([0; 3], Some([0; 3]), 6));
}

#[test]
fn counters_follow_their_definitions() {
    let count = |body: &str| {
        let (_, outcome) = run_words(&per_thread(body), &[1; 1024], &Geometry::linear(1, 32), &Options::default());
        outcome.counters
    };
    let base = count("mov.u32 %r1, 0;");
    assert_eq!((base.total.global_requests, base.total.global_sectors), (2, 8));
    let strided = count("mul.wide.u32 %rd5, %r20, 32; add.u64 %rd5, %rd1, %rd5; ld.global.u32 %r1, [%rd5];");
    assert_eq!(strided.total.global_sectors - base.total.global_sectors, 32);
    let wide =
        count("mul.wide.u32 %rd5, %r20, 16; add.u64 %rd5, %rd1, %rd5; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd5];");
    assert_eq!(wide.total.global_sectors - base.total.global_sectors, 16);
    let shared = |scale: u32, access: &str| {
        let counters = count(&format!(
            ".shared .align 16 .b8 s[8192]; mov.u32 %r2, s; mad.lo.u32 %r2, %r20, {scale}, %r2; {access}"
        ));
        (counters.total.shared_phases, counters.total.shared_wavefronts)
    };
    let store = "mov.u32 %r1, 0; st.shared.u32 [%r2], %r1;";
    assert_eq!(shared(4, store), (1, 1));
    assert_eq!(shared(8, store), (1, 2));
    assert_eq!(shared(128, store), (1, 32));
    assert_eq!(shared(132, store), (1, 1));
    assert_eq!(shared(0, store), (1, 1));
    assert_eq!(shared(16, "mov.u32 %r1, 0; st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};"), (4, 4));
    assert_eq!(shared(128, "mov.u32 %r1, 0; st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};"), (4, 32));
    assert_eq!(shared(8, "mov.u32 %r1, 0; st.shared.v2.u32 [%r2], {%r1, %r1};"), (2, 2));
}

#[test]
fn forgotten_bytes_count_as_never_written() {
    let text = module(".reg .b32 %r<9>; .reg .b64 %rd<9>; ld.param.u64 %rd0, [in]; ld.global.u32 %r0, [%rd0+4]; ret;");
    let run = |forgotten: (u64, u64)| {
        let mut device = Device::new();
        let input = device.upload(&[1u32, 2, 3, 4], u32::to_le_bytes).unwrap();
        device.forget(input + forgotten.0, forgotten.1).unwrap();
        let function = device.load("forget.ptx", &text).unwrap().function("k").unwrap();
        let args = [Arg::Pointer(input), Arg::Pointer(input)];
        let outcome = device.launch(&function, &Geometry::linear(1, 1), &args, &Options::default()).unwrap();
        outcome.findings.iter().map(|finding| finding.checker).collect::<Vec<_>>()
    };
    assert_eq!(run((8, 8)), [""; 0]);
    assert_eq!(run((7, 1)), ["uninitialised"]);
    assert_eq!(run((0, 16)), ["uninitialised"]);
    assert!(Device::new().forget(64, 1).is_err());
}
