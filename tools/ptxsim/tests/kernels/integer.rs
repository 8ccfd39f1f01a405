use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

const ROW: usize = 40;

/// What `integer_families` computes of three words.
fn plain([a, b, c]: [u32; 3]) -> [u32; ROW] {
    let (sa, sb) = (a as i32, b as i32);
    let wide = u64::from(a) << 32 | u64::from(b);
    let long_c = u64::from(c) << 32 | u64::from(a);
    let bytes = |x: u32| x.to_le_bytes();
    let find_first = |x: u64| if x == 0 { 0 } else { x.trailing_zeros() + 1 };
    let permuted = {
        let all: Vec<u8> = bytes(a).into_iter().chain(bytes(b)).collect();
        let pick = |i: u32| u32::from(all[((c & 0x7777) >> (4 * i) & 7) as usize]) << (8 * i);
        (0..4).map(pick).sum::<u32>()
    };
    let pair = u64::from(b) << 32 | u64::from(a);
    let dot_signed: i32 =
        (0..4).fold(c as i32, |sum, i| sum.wrapping_add(i32::from(bytes(a)[i] as i8) * i32::from(bytes(b)[i] as i8)));
    let dot = (0..4).fold(c, |sum, i| sum.wrapping_add(u32::from(bytes(a)[i]) * u32::from(bytes(b)[i])));
    let safe = sb != 0 && !(sa == i32::MIN && sb == -1);
    let bits = |x: bool, at: u32| u32::from(x) << at;
    let extract = {
        let (start, length) = (b & 31, c & 31);
        (u64::from(a) >> start & ((1 << length) - 1)) as u32
    };
    let insert = {
        let (start, length) = (c & 31, c >> 8 & 31);
        let field = (((1u64 << length) - 1) << start) as u32;
        b & !field | a << start & field
    };
    [
        a.wrapping_add(b),
        a.wrapping_sub(b),
        a.wrapping_mul(b),
        ((u64::from(a) * u64::from(b)) >> 32) as u32,
        ((i64::from(sa) * i64::from(sb)) >> 32) as u32,
        a.checked_div(b).unwrap_or(7),
        a.checked_rem(b).unwrap_or(7),
        if safe { sa / sb } else { 7 } as u32,
        if safe { sa % sb } else { 7 } as u32,
        a & b,
        a | b,
        a ^ b,
        !a,
        a << (b & 31),
        a >> (b & 31),
        (sa >> (b & 31)) as u32,
        a.leading_zeros(),
        a.count_ones(),
        a.reverse_bits(),
        find_first(u64::from(a)),
        permuted,
        (pair << (c & 31) >> 32) as u32,
        (pair >> (c & 31)) as u32,
        dot_signed as u32,
        dot,
        sa.min(sb) as u32,
        a.max(b),
        sa.wrapping_abs() as u32,
        a.wrapping_mul(b).wrapping_add(c),
        (wide.wrapping_mul(u64::from(c)) >> 32) as u32,
        (wide >> (c & 63)) as u32,
        ((wide as i64) >> (c & 63)) as u32,
        ((u128::from(wide) * u128::from(long_c)) >> 64) as u32,
        wide.checked_div(u64::from(c)).unwrap_or(7) as u32,
        ((wide as i64) % i64::from(c | 1)) as u32,
        wide.leading_zeros() | wide.count_ones() << 8 | find_first(wide) << 16,
        sa.abs_diff(sb).wrapping_add(c),
        bits(a > b, 0)
            + bits(sa > sb, 1)
            + bits((a as i16) < (b as i16), 2)
            + bits(wide > u64::from(c), 3)
            + bits(a as u8 >= b as u8, 4),
        a.abs_diff(b)
            .wrapping_add(c)
            .wrapping_add(((u64::from(a) + u64::from(b)) >> 1) as u32)
            .wrapping_add(((i64::from(sa) + i64::from(sb) + 1) >> 1) as u32),
        extract ^ insert,
    ]
}

#[test]
fn integer_families() {
    let mut input = random_words(3 * 4000, 1);
    // Corners: all combinations of edge values.
    const EDGES: [u32; 8] = [0, 1, 31, 32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x0080_ff01];
    for (i, words) in input.as_chunks_mut::<3>().0.iter_mut().take(512).enumerate() {
        *words = [EDGES[i % 8], EDGES[i / 8 % 8], EDGES[i / 64]];
    }
    let triples = input.as_chunks::<3>().0;
    let expected: Vec<u32> = triples.iter().flat_map(|triple| plain(*triple)).collect();
    everywhere("integer", |gpu| {
        let n = triples.len();
        let (from, to) = (gpu.words(&input), gpu.space(4 * ROW * n));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(n as i32)];
        gpu.run("integer_families", Geometry::linear(n.div_ceil(128) as u32, 128), &args);
        for (i, (got, expected)) in gpu.read_words(to, ROW * n).iter().zip(&expected).enumerate() {
            assert_eq!(got, expected, "function {} of {:x?}", i % ROW, triples[i / ROW]);
        }
    });
}
