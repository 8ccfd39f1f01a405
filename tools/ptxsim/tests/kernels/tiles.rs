use crate::gpu::{Gpu, everywhere, random_words};
use crate::nvcc::Arch;
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::scalar::fp8::Fp8;

/// Elements of a fragment's register words: `bits` each, low ones first.
fn elements(words: &[u32], bits: usize, signed: bool) -> Vec<i64> {
    let per_word = 32 / bits;
    let element = |word: u32, i: usize| {
        let top = i64::from(word) << (64 - bits * (i + 1));
        if signed { top >> (64 - bits) } else { (top as u64 >> (64 - bits)) as i64 }
    };
    words.iter().flat_map(|word| (0..per_word).map(move |i| element(*word, i))).collect()
}

/// A (`rows` x k) from the elements of each lane: the manual's `row = g, or g + 8`, `col = E t + i % E (+ 4 E)`.
fn a_matrix(lanes: &[Vec<i64>], rows: usize, k: usize, per_word: usize) -> Vec<i64> {
    let mut matrix = vec![0; rows * k];
    for (lane, list) in lanes.iter().enumerate() {
        for (i, value) in list.iter().enumerate() {
            let word = i / per_word;
            let (row, deep) = if rows == 8 { (0, word) } else { (word % 2, word / 2) };
            matrix[(lane / 4 + 8 * row) * k + per_word * (lane % 4) + i % per_word + 4 * per_word * deep] = *value;
        }
    }
    matrix
}

/// B (k x 8): `row = E t + i % E (+ 4 E)`, `col = g`.
fn b_matrix(lanes: &[Vec<i64>], k: usize, per_word: usize) -> Vec<i64> {
    let mut matrix = vec![0; k * 8];
    for (lane, list) in lanes.iter().enumerate() {
        for (i, value) in list.iter().enumerate() {
            let row = per_word * (lane % 4) + i % per_word + 4 * per_word * (i / per_word);
            matrix[row * 8 + lane / 4] = *value;
        }
    }
    matrix
}

/// Place in C of register i of a lane.
fn c_at(lane: usize, i: usize) -> usize {
    (lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2
}

#[derive(Clone, Copy)]
enum Rule {
    Wrap,
    Clamp,
    Xor,
    And,
}

/// Kernel, rows, k, bits, signs of A and B, rule.
type Row = (&'static str, usize, usize, usize, [bool; 2], Rule);

const FORMS: [Row; 11] = [
    ("mma_m8n8k16_s8_s8", 8, 16, 8, [true, true], Rule::Wrap),
    ("mma_m8n8k16_u8_s8", 8, 16, 8, [false, true], Rule::Clamp),
    ("mma_m8n8k32_s4_u4", 8, 32, 4, [true, false], Rule::Wrap),
    ("mma_m8n8k128_b1_xor", 8, 128, 1, [false, false], Rule::Xor),
    ("mma_m16n8k16_s8_u8", 16, 16, 8, [true, false], Rule::Wrap),
    ("mma_m16n8k32_s4_s4", 16, 32, 4, [true, true], Rule::Clamp),
    ("mma_m16n8k128_b1_and", 16, 128, 1, [false, false], Rule::And),
    ("mma_m16n8k32_s8_s8", 16, 32, 8, [true, true], Rule::Clamp),
    ("mma_m16n8k32_u8_u8", 16, 32, 8, [false, false], Rule::Wrap),
    ("mma_m16n8k64_u4_s4", 16, 64, 4, [false, true], Rule::Wrap),
    ("mma_m16n8k256_b1_xor", 16, 256, 1, [false, false], Rule::Xor),
];

#[test]
fn integer_products_are_exact() {
    everywhere("tiles", |gpu| {
        for (seed, (kernel, rows, k, bits, signed, rule)) in FORMS.into_iter().enumerate() {
            let words = |elements: usize| elements * bits / 32 / 32;
            let (a_words, b_words) = (words(rows * k), words(8 * k));
            let a = random_words(32 * a_words, 100 + seed as u64);
            let b = random_words(32 * b_words, 200 + seed as u64);
            // Near both ends, so that sums leave s32.
            let edge = |word: u32| if word.is_multiple_of(3) { word } else { word & 0x8000_03ff ^ 0x7fff_fc00 };
            let c: Vec<u32> = random_words(rows * 8, 300 + seed as u64).into_iter().map(edge).collect();
            let lanes = |list: &[u32], each: usize, signed: bool| -> Vec<Vec<i64>> {
                list.chunks(each).map(|words| elements(words, bits, signed)).collect()
            };
            let a_all = a_matrix(&lanes(&a, a_words, signed[0]), rows, k, 32 / bits);
            let b_all = b_matrix(&lanes(&b, b_words, signed[1]), k, 32 / bits);
            let out = gpu.space(4 * rows * 8);
            let args = [gpu.words(&a), gpu.words(&b), gpu.words(&c), out].map(Arg::Pointer);
            gpu.run(kernel, Geometry::linear(1, 32), &args);
            for (place, got) in gpu.read_words(out, rows * 8).into_iter().enumerate() {
                let registers = rows / 4;
                let at = c_at(place / registers, place % registers);
                let pairs = (0..k).map(|i| (a_all[at / 8 * k + i], b_all[i * 8 + at % 8]));
                let c = i64::from(c[place] as i32);
                let sum = match rule {
                    Rule::Wrap | Rule::Clamp => c + pairs.map(|(x, y)| x * y).sum::<i64>(),
                    Rule::Xor => c + pairs.map(|(x, y)| x ^ y).sum::<i64>(),
                    Rule::And => c + pairs.map(|(x, y)| x & y).sum::<i64>(),
                };
                let clamps = matches!(rule, Rule::Clamp);
                let expected = if clamps { sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { sum };
                assert_eq!(got, expected as u32, "{kernel}, element {at}");
            }
        }
    });
}

fn random_doubles(count: usize, seed: u64) -> Vec<f64> {
    let words = random_words(2 * count, seed);
    words
        .as_chunks::<2>()
        .0
        .iter()
        .map(|w| (f64::from(w[0] as i32) + f64::from(w[1]) / 2f64.powi(32)) * 2f64.powi((w[1] % 40) as i32 - 20))
        .collect()
}

#[test]
fn doubles_are_chains_of_fused_multiply_adds() {
    everywhere("tiles", |gpu| {
        for (kernel, rows, k, hopper) in [("mma_m8n8k4_f64", 8, 4, false), ("mma_m16n8k8_f64", 16, 8, true)] {
            if hopper && gpu.arch == Arch::Sm80 {
                continue;
            }
            let [a, b, c] = [rows * k, k * 8, rows * 8].map(|count| random_doubles(count, count as u64));
            let mut upload = |list: &[f64]| gpu.device.upload(list, f64::to_le_bytes).expect("memory");
            let inputs = [upload(&a), upload(&b), upload(&c)];
            let out = gpu.space(8 * rows * 8);
            gpu.run(kernel, Geometry::linear(1, 32), &[inputs[0], inputs[1], inputs[2], out].map(Arg::Pointer));
            let got = gpu.device.download(out, rows * 8, f64::from_le_bytes).expect("memory");
            // Register i of lane l of A: row g (+ 8 for odd i), column t (+ 4 for i of 2 and more); of B: row t (+ 4), column g.
            let a_at = |row: usize, column: usize| {
                let lane = 4 * (row % 8) + column % 4;
                a[lane * (rows * k / 32) + row / 8 + 2 * (column / 4)]
            };
            let b_at = |row: usize, column: usize| b[(4 * column + row % 4) * (k / 4) + row / 4];
            for (place, got) in got.iter().enumerate() {
                let at = c_at(place / (rows / 4), place % (rows / 4));
                let expected = (0..k).fold(c[place], |sum, i| a_at(at / 8, i).mul_add(b_at(i, at % 8), sum));
                assert_eq!(*got, expected, "{kernel}, element {at}");
            }
        }
    });
}

/// 8-bit floats on sm_90: exact sums where nothing is cut, because the values are small whole numbers.
#[test]
fn small_whole_8_bit_floats_are_added_exactly() {
    let mut gpu = Gpu::new("tiles", Arch::Sm90a, Default::default());
    let code = |word: u32, kind: Fp8| kind.narrow((word % 9) as f32 - 4.0, false);
    let pack = |words: &[u32], kind: Fp8| -> Vec<u32> {
        let codes = words.iter().map(|word| code(*word, kind) as u8).collect::<Vec<_>>();
        codes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    };
    let matrix = |words: &[u32], kind: Fp8, each: usize| -> Vec<Vec<i64>> {
        let bytes = words.chunks(each);
        bytes
            .map(|words| {
                words.iter().flat_map(|word| word.to_le_bytes()).map(|b| kind.value(b.into()) as i64).collect()
            })
            .collect()
    };
    let (a, b) = (pack(&random_words(512, 41), Fp8::E4m3), pack(&random_words(256, 42), Fp8::E5m2));
    let b_halves = pack(&random_words(256, 43), Fp8::E4m3);
    let c: Vec<f32> = random_words(128, 44).into_iter().map(|word| (word % 512) as f32 - 256.0).collect();
    let a_all = a_matrix(&matrix(&a, Fp8::E4m3, 4), 16, 32, 4);
    let inputs = [gpu.words(&a), gpu.words(&b), gpu.floats(&c)];
    let out = gpu.space(512);
    let args = [inputs[0], inputs[1], inputs[2], out].map(Arg::Pointer);
    gpu.run("mma_m16n8k32_e4m3_e5m2", Geometry::linear(1, 32), &args);
    let b_all = b_matrix(&matrix(&b, Fp8::E5m2, 2), 32, 4);
    let sum = |a: &[i64], b: &[i64], at: usize| (0..32).map(|i| a[at / 8 * 32 + i] * b[i * 8 + at % 8]).sum::<i64>();
    for (place, got) in gpu.read_floats(out, 128).into_iter().enumerate() {
        let at = c_at(place / 4, place % 4);
        assert_eq!(got, sum(&a_all, &b_all, at) as f32 + c[place], "element {at}");
    }
    // f16 accumulators: two to a register, rows 8 apart.
    let halves = |low: f32, high: f32| {
        let bits = |x: f32| u32::from(half::f16::from_f32(x).to_bits());
        bits(low) | bits(high) << 16
    };
    let c_halves: Vec<u32> = c.as_chunks::<2>().0.iter().map(|pair| halves(pair[0], pair[1])).collect();
    let inputs = [gpu.words(&a), gpu.words(&b_halves), gpu.words(&c_halves)];
    let args = [inputs[0], inputs[1], inputs[2], out].map(Arg::Pointer);
    gpu.run("mma_m16n8k32_e4m3_f16", Geometry::linear(1, 32), &args);
    let b_all = b_matrix(&matrix(&b_halves, Fp8::E4m3, 2), 32, 4);
    for (place, got) in gpu.read_words(out, 64).into_iter().enumerate() {
        let at = c_at(place / 2, 2 * (place % 2));
        let expected = [0, 1].map(|i| sum(&a_all, &b_all, at + i) as f32 + c[2 * place + i]);
        assert_eq!(got, halves(expected[0], expected[1]), "element {at}");
    }
}

/// Element (row, column) of a matrix in memory, by rows or columns.
fn at(by_rows: bool, pitch: usize, row: usize, column: usize) -> usize {
    if by_rows { row * pitch + column } else { column * pitch + row }
}

#[test]
fn whole_matrices_of_integers() {
    everywhere("tiles", |gpu| {
        for (kernel, m, n, a_rows, b_rows) in [
            ("wmma_16_16_row_col", 16, 16, true, false),
            ("wmma_16_16_col_row", 16, 16, false, true),
            ("wmma_32_8_row_row", 32, 8, true, true),
            ("wmma_8_32_col_col", 8, 32, false, false),
        ] {
            let (k, pitch) = (16, [48, 32, 36]);
            let bytes = |seed: u64| -> Vec<u32> { random_words(48 * 32 / 4 + 64, seed) };
            let (a, b, c) = (bytes(51), bytes(52), random_words(32 * 36, 53));
            let value = |list: &[u32], at: usize| i64::from(list[at / 4].to_le_bytes()[at % 4] as i8);
            let out = gpu.zeros(4 * 32 * 36);
            let mut args = [gpu.words(&a), gpu.words(&b), gpu.words(&c), out].map(Arg::Pointer).to_vec();
            args.extend(pitch.map(|pitch| Arg::I32(pitch as i32)));
            gpu.run(kernel, Geometry::linear(1, 32), &args);
            let got = gpu.read_words(out, 32 * 36);
            for row in 0..m {
                for column in 0..n {
                    let products = (0..k)
                        .map(|i| value(&a, at(a_rows, pitch[0], row, i)) * value(&b, at(b_rows, pitch[1], i, column)));
                    let place = row * pitch[2] + column;
                    let expected = i64::from(c[place] as i32) + products.sum::<i64>();
                    assert_eq!(got[place], expected as u32, "{kernel}, ({row}, {column})");
                }
            }
        }
    });
}

#[test]
fn whole_matrices_of_small_integers_and_doubles() {
    everywhere("tiles", |gpu| {
        for (kernel, k, bits) in [("wmma_nibbles", 32, 4), ("wmma_bits", 128, 1)] {
            let (a, b, c) = (random_words(64, 61), random_words(64, 62), random_words(8 * 12, 63));
            // Rows of 8 words.
            let pitch = 8 * 32 / bits;
            let value = |list: &[u32], row: usize, i: usize| elements(&list[row * 8..], bits, bits == 4)[i];
            let out = gpu.zeros(4 * 8 * 12);
            let mut args = [gpu.words(&a), gpu.words(&b), gpu.words(&c), out].map(Arg::Pointer).to_vec();
            args.extend([pitch, pitch, 12].map(|pitch| Arg::I32(pitch as i32)));
            gpu.run(kernel, Geometry::linear(1, 32), &args);
            let got = gpu.read_words(out, 96);
            for place in 0..64 {
                let (row, column) = (place / 8, place % 8);
                let sum: i64 = (0..k).map(|i| value(&a, row, i) * value(&b, column, i)).sum();
                assert_eq!(got[row * 12 + column], (i64::from(c[row * 12 + column] as i32) + sum) as u32, "{kernel}");
            }
        }
        for (kernel, a_rows, b_rows) in [("wmma_8_8_f64_row_col", true, false), ("wmma_8_8_f64_col_row", false, true)] {
            let [a, b, c] = [71, 72, 73].map(|seed| random_doubles(120, seed));
            let mut upload = |list: &[f64]| gpu.device.upload(list, f64::to_le_bytes).expect("memory");
            let inputs = [upload(&a), upload(&b), upload(&c)];
            let out = gpu.zeros(8 * 120);
            let mut args = [inputs[0], inputs[1], inputs[2], out].map(Arg::Pointer).to_vec();
            args.extend([10, 12, 14].map(Arg::I32));
            gpu.run(kernel, Geometry::linear(1, 32), &args);
            let got = gpu.device.download(out, 120, f64::from_le_bytes).expect("memory");
            for place in 0..64 {
                let (row, column) = (place / 8, place % 8);
                let step = |sum: f64, i: usize| a[at(a_rows, 10, row, i)].mul_add(b[at(b_rows, 12, i, column)], sum);
                assert_eq!(got[row * 14 + column], (0..4).fold(c[row * 14 + column], step), "{kernel}");
            }
        }
    });
}
