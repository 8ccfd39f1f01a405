use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::scalar::fp8::Fp8;
use ptxsim::units::tensor_core::Accumulator;
use ptxsim::units::tile::wgmma_float8;

const M: usize = 64;
const N: usize = 32;
const K: usize = 32;

/// Bytes of shared memory with (row, k) of an operand: rows of `row` bytes whose chunks of 16 change places by the number of their line of
/// 128 bytes, counted from the tile's start at `first`; 16: core matrices.
fn lay_out(list: &[u8], row: usize, first: usize) -> Vec<u32> {
    let mut bytes = vec![0u8; 9216];
    for (i, value) in list.iter().enumerate() {
        let (mn, k) = (i / K, i % K);
        let offset = match row {
            16 => (mn / 8 * 2 + k / 16) * 128 + mn % 8 * 16 + k % 16,
            _ => {
                let plain = mn * row + k;
                plain ^ (plain >> 7 & (row / 16 - 1)) << 4
            }
        };
        bytes[first + offset] = *value;
    }
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Place in D of register i of a thread.
fn at(thread: usize, i: usize) -> usize {
    let (g, t) = (thread % 32 / 4, thread % 4);
    (16 * (thread / 32) + g + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * t + i % 2
}

/// (row bytes, layout field, first byte, line in which the pattern starts)
fn layouts() -> Vec<[u32; 4]> {
    let mut all = vec![[16, 0, 0, 0], [16, 0, 128, 0]];
    for (row, layout) in [(128, 1), (64, 2), (32, 3)] {
        all.push([row, layout, 0, 0]);
        for line in [1, 3, 6] {
            all.push([row, layout, 128 * line, line]);
        }
    }
    all
}

type Element = dyn Fn(u32, &[(u32, u32)]) -> u32;

#[test]
fn bytes_in_every_layout() {
    let codes = |count: usize, seed: u64, mask: u8| -> Vec<u8> {
        let words = random_words(count / 4, seed);
        words.into_iter().flat_map(u32::to_le_bytes).map(|byte| byte & mask).collect()
    };
    let integer = |a_signed: bool, saturates: bool| -> Box<Element> {
        Box::new(move |c, pairs| {
            let value = |code: u32, signed: bool| if signed { i64::from(code as u8 as i8) } else { i64::from(code) };
            let products = pairs.iter().map(|&(x, y)| value(x, a_signed) * value(y, true));
            let sum = i64::from(c as i32) + products.sum::<i64>();
            if saturates { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u32 } else { sum as u32 }
        })
    };
    let float = |kinds: [Fp8; 2], turned: u32| -> Box<Element> {
        Box::new(move |c, pairs| {
            let pairs: Vec<_> = pairs.iter().map(|&(x, y)| (x ^ turned, y)).collect();
            wgmma_float8(kinds, Accumulator::F32, c, &pairs)
        })
    };
    let forms: [(&str, Box<Element>, u8); 4] = [
        ("wgmma_s8_s8", integer(true, false), 0xff),
        ("wgmma_u8_s8", integer(false, true), 0xff),
        // No NaN, and no infinity: the second bit from the top stays out.
        ("wgmma_e4m3_e5m2", float([Fp8::E4m3, Fp8::E5m2], 0), 0xbf),
        ("wgmma_e5m2_negated", float([Fp8::E5m2, Fp8::E5m2], 0x80), 0xbf),
    ];
    everywhere("wgmma_bytes", |gpu| {
        for (seed, (kernel, element, mask)) in (0..).zip(&forms) {
            let (a, b) = (codes(M * K, 80 + seed, *mask), codes(N * K, 90 + seed, *mask));
            let near_one = |word: u32| word & 0x807f_ffff | (115 + word % 16) << 23;
            let c: Vec<u32> = random_words(M * N, 100 + seed).into_iter().map(near_one).collect();
            for [row, layout, first, line] in layouts() {
                let (row_bytes, start) = (row as usize, first as usize);
                let inputs = [gpu.words(&lay_out(&a, row_bytes, start)), gpu.words(&lay_out(&b, row_bytes, start))];
                let (c_at, out) = (gpu.words(&c), gpu.space(4 * M * N));
                let mut args = [inputs[0], inputs[1], c_at, out].map(Arg::Pointer).to_vec();
                let (leading, stride) = if row == 16 { (128, 256) } else { (16, 8 * row) };
                args.extend([leading, stride, layout, first, line].map(Arg::U32));
                gpu.run(kernel, Geometry::linear(1, 128), &args);
                for (place, got) in gpu.read_words(out, M * N).into_iter().enumerate() {
                    let at = at(place / 16, place % 16);
                    let pair = |k: usize| (u32::from(a[at / N * K + k]), u32::from(b[at % N * K + k]));
                    let pairs: Vec<_> = (0..K).map(pair).collect();
                    let expected = element(c[place], &pairs);
                    assert_eq!(got, expected, "{kernel}, rows of {row} bytes from {first} on, element {at}");
                }
            }
        }
    });
}

#[test]
fn halves_as_accumulators_and_a_in_registers() {
    let words = random_words(M * K / 4, 111);
    let b: Vec<u8> = random_words(N * K / 4, 112).into_iter().flat_map(u32::to_le_bytes).map(|b| b & 0xbf).collect();
    let a: Vec<u32> = words.into_iter().map(|word| word & 0xbfbf_bfbf).collect();
    let c: Vec<u32> = random_words(M * N / 2, 113).into_iter().map(|word| word & 0xbbff_bbff).collect();
    // Register i of a thread: row 16 w + g (+ 8 for odd i), bytes 4 t .. (+ 16 for i of 2 and more).
    let a_at = |row: usize, k: usize| {
        let thread = 32 * (row / 16) + 4 * (row % 8) + k % 16 / 4;
        let register = row % 16 / 8 + 2 * (k / 16);
        u32::from(a[thread * 4 + register].to_le_bytes()[k % 4])
    };
    everywhere("wgmma_bytes", |gpu| {
        let mut buffer = a.clone();
        buffer.resize(2304, 0);
        let inputs = [gpu.words(&buffer), gpu.words(&lay_out(&b, 32, 0)), gpu.words(&c)];
        let out = gpu.space(2 * M * N);
        let mut args = [inputs[0], inputs[1], inputs[2], out].map(Arg::Pointer).to_vec();
        args.extend([16, 256, 3, 0, 0].map(Arg::U32));
        gpu.run("wgmma_e4m3_f16", Geometry::linear(1, 128), &args);
        for (place, got) in gpu.read_words(out, M * N / 2).into_iter().enumerate() {
            // Two columns of one row to a register; odd registers 8 rows down.
            let (thread, i) = (place / 8, place % 8);
            let (row, column) = (16 * (thread / 32) + thread % 32 / 4 + 8 * (i % 2), 8 * (i / 2) + 2 * (thread % 4));
            for (half, shift) in [0, 16].into_iter().enumerate() {
                let pair = |k: usize| (a_at(row, k), u32::from(b[(column + half) * K + k]));
                let pairs: Vec<_> = (0..K).map(pair).collect();
                let expected = wgmma_float8([Fp8::E4m3; 2], Accumulator::F16, c[place] >> shift & 0xffff, &pairs);
                assert_eq!(got >> shift & 0xffff, expected, "({row}, {})", column + half);
            }
        }
    });
}
