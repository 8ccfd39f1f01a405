use crate::gpu::{Gpu, everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

/// Corners of words, halves and bytes, combined, then random words.
fn triples(count: usize, seed: u64) -> Vec<u32> {
    const EDGES: [u32; 8] = [0, 1, 0x7fff_8000, 0x7f80_ff01, 0x8000_7fff, u32::MAX, 0x8001_0080, 0x0000_001f];
    let mut words = random_words(3 * count, seed);
    for (i, words) in words.as_chunks_mut::<3>().0.iter_mut().take(512).enumerate() {
        *words = [EDGES[i % 8], EDGES[i / 8 % 8], EDGES[i / 64]];
    }
    words
}

/// Runs a kernel of (input, output, n) and compares `row` words per element.
fn compare(gpu: &mut Gpu, kernel: &str, (input, per_element): (&[u32], usize), row: usize, expected: &[u32]) {
    let n = input.len() / per_element;
    assert_eq!(expected.len(), row * n, "the kernel's row");
    let (from, to) = (gpu.words(input), gpu.space(4 * row * n));
    let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(n as i32)];
    gpu.run(kernel, Geometry::linear(n.div_ceil(128) as u32, 128), &args);
    for (i, (got, expected)) in gpu.read_words(to, row * n).iter().zip(expected).enumerate() {
        let input = &input[i / row * per_element..][..per_element];
        assert!(got == expected, "{kernel}: result {} of {input:x?} is {got:#x}, expected {expected:#x}", i % row);
    }
}

/// A function of every element of two words, 16 or 8 bits each: their signed and unsigned values.
fn per_element(bits: u32, a: u32, b: u32, f: impl Fn([i32; 2], [i32; 2]) -> i32) -> u32 {
    let ones = ((1u64 << bits) - 1) as u32;
    (0..32 / bits).fold(0, |out, i| {
        let unsigned = [a, b].map(|x| (x >> (i * bits) & ones) as i32);
        let signed = unsigned.map(|x| x << (32 - bits) >> (32 - bits));
        out | (f(signed, unsigned) as u32 & ones) << (i * bits)
    })
}

fn simd(bits: u32, a: u32, b: u32) -> Vec<u32> {
    let (top, all) = ((1 << (bits - 1)) - 1, (1 << bits) - 1);
    let signed = |x: i32| x.clamp(-top - 1, top);
    let each = |f: &dyn Fn([i32; 2], [i32; 2]) -> i32| per_element(bits, a, b, f);
    // Sums of all elements do not stay in their element.
    let total = |f: &dyn Fn([i32; 2], [i32; 2]) -> i32| {
        let ones = ((1u64 << bits) - 1) as u32;
        (0..32 / bits).map(|i| per_element(bits, a, b, f) >> (i * bits) & ones).sum::<u32>()
    };
    let mut out = vec![
        each(&|[x, _], _| x.abs()),
        each(&|[x, _], _| signed(x.abs())),
        each(&|[x, _], _| -x),
        each(&|[x, _], _| signed(-x)),
        each(&|[x, y], _| x + y),
        each(&|[x, y], _| signed(x + y)),
        each(&|_, [x, y]| (x + y).min(all)),
        each(&|[x, y], _| x - y),
        each(&|[x, y], _| signed(x - y)),
        each(&|_, [x, y]| (x - y).max(0)),
        // Halves go away from zero.
        each(&|[x, y], _| (x + y + (x + y >= 0) as i32) >> 1),
        each(&|_, [x, y]| (x + y + 1) >> 1),
        each(&|_, [x, y]| (x + y) >> 1),
        each(&|[x, y], _| (x - y).abs()),
        each(&|_, [x, y]| (x - y).abs()),
        each(&|[x, y], _| x.max(y)),
        each(&|_, [x, y]| x.max(y)),
        each(&|[x, y], _| x.min(y)),
        each(&|_, [x, y]| x.min(y)),
        total(&|[x, y], _| (x - y).abs()),
        total(&|_, [x, y]| (x - y).abs()),
    ];
    for yes in [-1, 1] {
        let answer = |holds: bool| if holds { yes } else { 0 };
        out.extend([
            each(&|[x, y], _| answer(x == y)),
            each(&|[x, y], _| answer(x != y)),
            each(&|[x, y], _| answer(x >= y)),
            each(&|_, [x, y]| answer(x >= y)),
            each(&|[x, y], _| answer(x > y)),
            each(&|_, [x, y]| answer(x > y)),
            each(&|[x, y], _| answer(x <= y)),
            each(&|_, [x, y]| answer(x <= y)),
            each(&|[x, y], _| answer(x < y)),
            each(&|_, [x, y]| answer(x < y)),
        ]);
    }
    out
}

#[test]
fn simd_in_a_word() {
    let input = triples(1500, 11);
    let rows = input.as_chunks::<3>().0.iter();
    let expected: Vec<u32> =
        rows.flat_map(|&[a, b, _]| [16, 8].into_iter().flat_map(move |bits| simd(bits, a, b))).collect();
    everywhere("intrinsics", |gpu| compare(gpu, "simd_in_a_word", (&input, 3), 82, &expected));
}

fn dynamic_programming([a, b, c]: [u32; 3]) -> [u32; 16] {
    let (sa, sb, sc) = (a as i32, b as i32, c as i32);
    // (signed, unsigned) halves of a + b, of a, b and c.
    let halves = |x: u32, y: u32, f: &dyn Fn([i32; 2], [i32; 2]) -> i32| per_element(16, x, y, f);
    let sum = halves(a, b, &|[x, y], _| x + y);
    let max = |x, y| halves(x, y, &|[x, y], _| x.max(y));
    let min = |x, y| halves(x, y, &|[x, y], _| x.min(y));
    let umax = |x, y| halves(x, y, &|_, [x, y]| x.max(y));
    let umin = |x, y| halves(x, y, &|_, [x, y]| x.min(y));
    let relu = |x| max(x, 0);
    let first = |shift: u32| u32::from((a >> shift) as i16 >= (b >> shift) as i16);
    [
        sa.wrapping_add(sb).max(sc) as u32,
        a.wrapping_add(b).min(c),
        max(sum, c),
        min(sum, c),
        umax(sum, c),
        umin(sum, c),
        relu(max(sum, c)),
        relu(min(sum, c)),
        max(max(a, b), c),
        umin(umin(a, b), c),
        relu(max(max(a, b), c)),
        relu(min(a, b)),
        sa.max(sb).max(0) as u32,
        max(a, b),
        2 * first(16) + first(0),
        sa.min(sb).min(sc).max(0) as u32,
    ]
}

#[test]
fn dynamic_programming_instructions() {
    let input = triples(2000, 12);
    let expected: Vec<u32> = input.as_chunks::<3>().0.iter().flat_map(|triple| dynamic_programming(*triple)).collect();
    everywhere("intrinsics", |gpu| compare(gpu, "dynamic_programming", (&input, 3), 16, &expected));
}

fn rare_integers([a, b, c]: [u32; 3]) -> [u32; 27] {
    let (bytes, words) = (|x: u32| x.to_le_bytes().map(i64::from), [a & 0xffff, a >> 16].map(i64::from));
    let sign = |x: i64, bits: u32| x << (64 - bits) >> (64 - bits);
    let dot2 = |first: usize, a_signed: bool, b_signed: bool| {
        (0..2).fold(i64::from(c), |sum, i| {
            let (x, y) = (words[i], bytes(b)[first + i]);
            sum + if a_signed { sign(x, 16) } else { x } * if b_signed { sign(y, 8) } else { y }
        }) as u32
    };
    let dot4 = |a_signed: bool, b_signed: bool| {
        (0..4).fold(i64::from(c), |sum, i| {
            let (x, y) = (bytes(a)[i], bytes(b)[i]);
            sum + if a_signed { sign(x, 8) } else { x } * if b_signed { sign(y, 8) } else { y }
        }) as u32
    };
    let zero_extend = |width: u32| if width >= 32 { a } else { (u64::from(a) & ((1 << width) - 1)) as u32 };
    let sign_extend = |width: u32| match width {
        0 => 0,
        1..32 => sign(i64::from(a), width) as u32,
        _ => a,
    };
    let mask = |start: u32, width: u32| {
        (0..32)
            .fold(0u32, |all, i| all | u32::from(i >= start && u64::from(i) < u64::from(start) + u64::from(width)) << i)
    };
    let nth = {
        // Set bits at or above b, or at or below it, in the order of the walk.
        let offset = c as i32;
        let up: Vec<u32> = (b..32).filter(|i| a >> i & 1 == 1).collect();
        let down: Vec<u32> = (0..=b.min(31)).rev().filter(|i| a >> i & 1 == 1).collect();
        match offset {
            _ if b > 31 => u32::MAX,
            0 if a >> b & 1 == 1 => b,
            0 => u32::MAX,
            1.. => up.get(offset as usize - 1).copied().unwrap_or(u32::MAX),
            _ => down.get(offset.unsigned_abs() as usize - 1).copied().unwrap_or(u32::MAX),
        }
    };
    let extract = {
        let (start, length) = (b & 0xff, c & 0xff);
        let wide = sign(i64::from(a), 32);
        match length {
            0 => 0,
            _ if start >= 32 => (wide >> 63) as u32,
            _ => sign(wide >> start, length.min(32)) as u32,
        }
    };
    let (sa, sb, sc) = (i64::from(a as i32), i64::from(b as i32), i64::from(c as i32));
    let product24 = sign(i64::from(a), 24) * sign(i64::from(b), 24);
    let unsigned24 = u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff);
    let all: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
    let pick = |places: [u32; 4]| u32::from_le_bytes(places.map(|at| all[at as usize]));
    let s = c & 3;
    let wide = u64::from(a) * u64::from(b) + (u64::from(c) << 32) + u64::from(c);
    // The carry out of the top word is lost.
    let difference = wide.wrapping_sub(u64::from(b) << 32 | u64::from(a));
    [
        dot2(0, false, false),
        dot2(0, true, false),
        dot2(2, false, true),
        dot2(2, true, true),
        dot4(false, true),
        dot4(true, false),
        zero_extend(b),
        sign_extend(b),
        zero_extend(b & 31),
        sign_extend(b & 31),
        mask(a, b),
        mask(a & 31, b & 31),
        nth,
        extract,
        (sa.abs_diff(sb) as u32).wrapping_add(c),
        ((product24 >> 16) as u32).wrapping_add(c),
        (unsigned24 as u32).wrapping_add(c),
        (unsigned24 >> 16) as u32,
        (((sa * sb) >> 32) + sc).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32,
        pick([s, s + 1, s + 2, s + 3]),
        pick([s, (s + 7) % 8, (s + 6) % 8, (s + 5) % 8]),
        pick([s; 4]),
        pick([0, 1, 2, 3].map(|i| i.max(s))),
        pick([0, 1, 2, 3].map(|i| i.min(s))),
        pick([2 * (c & 1), 2 * (c & 1) + 1, 2 * (c & 1), 2 * (c & 1) + 1]),
        a & b | !a & c,
        (difference >> 32) as u32,
    ]
}

#[test]
fn rare_integer_instructions() {
    let mut input = triples(2000, 13);
    // Small amounts, too.
    for words in input.as_chunks_mut::<3>().0.iter_mut().skip(1000) {
        words[1] &= 0x3f;
        words[2] = (words[2] & 0x1f).wrapping_sub(12);
    }
    let expected: Vec<u32> = input.as_chunks::<3>().0.iter().flat_map(|triple| rare_integers(*triple)).collect();
    everywhere("intrinsics", |gpu| compare(gpu, "rare_integers", (&input, 3), 27, &expected));
}

#[test]
fn odd_widths() {
    let input = triples(700, 14);
    let rows = input.as_chunks::<3>().0.iter();
    let expected: Vec<u32> = rows.flat_map(|&[a, b, _]| [!a, !b, a, b, u32::from((a as u16).swap_bytes())]).collect();
    everywhere("intrinsics", |gpu| compare(gpu, "odd_widths", (&input, 3), 5, &expected));
}
