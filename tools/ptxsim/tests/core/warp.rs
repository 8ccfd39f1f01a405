//! Shuffles, votes, matches, reductions, elections.

use super::{map, words};

#[test]
fn shuffles_follow_the_definition() {
    let input = words(64, 12);
    let warp = |t: usize| t / 32 * 32;
    let up = map("shfl.sync.up.b32 %r1|%p0, %r0, 3, 0, -1; @!%p0 add.u32 %r1, %r1, 1;", &input);
    assert!((0..64).all(|t| up[t] == if t % 32 >= 3 { input[t - 3] } else { input[t].wrapping_add(1) }));
    // Segments of 8: clamp 31, mask 0x18.
    let down = map("shfl.sync.down.b32 %r1|%p0, %r0, 2, 0x181f, -1; @!%p0 add.u32 %r1, %r1, 1;", &input);
    assert!((0..64).all(|t| down[t] == if t % 8 < 6 { input[t + 2] } else { input[t].wrapping_add(1) }));
    let index = map("and.b32 %r2, %r0, 31; shfl.sync.idx.b32 %r1, %r0, %r2, 31, -1;", &input);
    assert!((0..64).all(|t| index[t] == input[warp(t) + (input[t] & 31) as usize]));
    let bfly = map("shfl.sync.bfly.b32 %r1, %r0, 5, 31, -1;", &input);
    assert!((0..64).all(|t| bfly[t] == input[t ^ 5]));
}

#[test]
fn votes_and_matches() {
    let input: Vec<u32> = words(64, 13).iter().map(|x| x % 5).collect();
    let ballot = |warp: usize, holds: &dyn Fn(u32) -> bool| {
        (0..32).fold(0u32, |all, lane| all | (holds(input[warp * 32 + lane]) as u32) << lane)
    };
    let output = map("setp.gt.u32 %p0, %r0, 2; vote.sync.ballot.b32 %r1, %p0, -1;", &input);
    assert!((0..64).all(|t| output[t] == ballot(t / 32, &|x| x > 2)));
    let output = map("match.any.sync.b32 %r1, %r0, -1;", &input);
    assert!((0..64).all(|t| output[t] == ballot(t / 32, &|x| x == input[t])));
    let output = map("setp.eq.u32 %p0, %r20, 5; vote.sync.any.pred %p1, %p0, -1; selp.b32 %r1, 1, 0, %p1;", &input);
    assert!((0..64).all(|t| output[t] == (t < 32) as u32));
    let output = map("mov.u32 %r2, 3; match.all.sync.b32 %r1|%p0, %r2, -1; @!%p0 trap;", &input);
    assert!(output.iter().all(|mask| *mask == u32::MAX));
}

#[test]
fn reductions_and_elections() {
    let input = words(64, 14);
    for (form, join) in [
        ("add.s32", u32::wrapping_add as fn(u32, u32) -> u32),
        ("max.u32", |a, b| a.max(b)),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("xor.b32", |a, b| a ^ b),
    ] {
        let output = map(&format!("redux.sync.{form} %r1, %r0, -1;"), &input);
        let expected = |t: usize| input[t / 32 * 32..][..32].iter().copied().reduce(join).unwrap_or(0);
        assert!((0..64).all(|t| output[t] == expected(t)), "{form}");
    }
    let output = map(
        "mov.u32 %r1, 7; setp.ge.u32 %p2, %r20, 12; @!%p2 bra E; elect.sync %r2|%p0, 0xfffff000; selp.b32 %r1, 1, 0, %p0; E:",
        &[0; 32],
    );
    assert!((0..32).all(|t| output[t] == if t < 12 { 7 } else { (t == 12) as u32 }));
}

/// Two halves of a warp in different branches, each with its own mask, and `bar.warp.sync` at two places.
#[test]
fn member_masks_of_parts_of_a_warp() {
    let input = words(32, 15);
    let body = "setp.lt.u32 %p0, %r20, 16; @%p0 bra A;
        redux.sync.add.u32 %r1, %r0, 0xffff0000; bar.warp.sync -1; bra E;
        A: redux.sync.xor.b32 %r1, %r0, 0x0000ffff; bar.warp.sync -1; E:";
    let output = map(body, &input);
    let xor = input[..16].iter().fold(0, |a, b| a ^ b);
    let sum = input[16..].iter().fold(0u32, |a, b| a.wrapping_add(*b));
    assert!((0..32).all(|t| output[t] == if t < 16 { xor } else { sum }));
}
