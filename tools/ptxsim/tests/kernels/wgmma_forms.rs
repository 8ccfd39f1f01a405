use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product, multiply_add};
use pulp::Arch;

const M: usize = 64;
const N: usize = 32;
const K: usize = 16;

/// Byte offset in the buffer of element (mn, k), by the layouts of the manual: rows of `row` bytes, chunks of 16 bytes exchanged by
/// XOR with the number of the 128-byte line; `row` 16: core matrices.
fn offset(row: usize, mn_major: bool, extent: usize, mn: usize, k: usize) -> usize {
    if row == 16 {
        // Core matrices of 128 bytes: along k the next one, along mn the next pair.
        let core = (mn / 8 * 2 + k / 8) * 128;
        return core + if mn_major { k % 8 * 16 + mn % 8 * 2 } else { mn % 8 * 16 + k % 8 * 2 };
    }
    let plain = if mn_major {
        let elements = row / 2;
        // Each block of `elements` has all 16 k, row after row.
        mn / elements * 16 * row + k * row + mn % elements * 2
    } else {
        mn * row + k * 2
    };
    assert!(plain < extent, "the operand fits its buffer");
    plain ^ (plain >> 7 & (row / 16 - 1)) << 4
}

/// (leading, stride, layout field) of a descriptor for these rows.
fn descriptor(row: usize, mn_major: bool) -> [u32; 3] {
    let layout = [(16, 0), (128, 1), (64, 2), (32, 3)].iter().find(|(bytes, _)| *bytes == row).expect("a layout").1;
    let row = row as u32;
    match (row, mn_major) {
        (16, _) => [128, 256, layout],
        (_, false) => [16, 8 * row, layout],
        (_, true) => [16 * row, 8 * row, layout],
    }
}

fn finite(word: u32) -> u32 {
    let half = word & 0xffff;
    if half & 0x7f80 == 0x7f80 { half & 0xbfff } else { half }
}

#[test]
fn every_operand_form_is_exact() {
    // Exponents near 1, so that much is added up.
    let near = |word: u32| word & 0x807f | (120 + (word >> 20) % 12) << 7;
    let a: Vec<u32> = random_words(M * K, 1).into_iter().map(near).collect();
    let b: Vec<u32> = random_words(N * K, 2).into_iter().map(|word| finite(near(word))).collect();
    let c: Vec<u32> = random_words(M * N, 3).into_iter().map(|word| word & 0x807f_ffff | 125 << 23).collect();
    let product = Product {
        operand: Operand::Bf16,
        accumulator: Accumulator::F32,
        arithmetic: Arithmetic::Exact(Generation::Hopper),
        k: K,
    };
    let b_rows: Vec<u32> = (0..K * N).map(|i| b[i % N * K + i / N]).collect();
    let expected = |accumulate: bool, negate: bool| {
        let mut d = if accumulate { c.clone() } else { vec![0; M * N] };
        let a: Vec<u32> = a.iter().map(|x| if negate { x ^ 0x8000 } else { *x }).collect();
        multiply_add(Arch::new(), product, &a, &b_rows, &mut d, N);
        d
    };
    // Accumulator i of thread T: row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2.
    let at = |thread: usize, i: usize| {
        let (g, t) = (thread % 32 / 4, thread % 4);
        (16 * (thread / 32) + g + 8 * (i / 2 % 2)) * N + 8 * (i / 4) + 2 * t + i % 2
    };
    let fragments = |tile: &[u32]| -> Vec<u32> { (0..128 * 16).map(|i| tile[at(i / 16, i % 16)]).collect() };
    let lay_out = |list: &[u32], row: usize, mn_major: bool| {
        let mut buffer = vec![0u32; 1024];
        for (i, value) in list.iter().enumerate() {
            let at = offset(row, mn_major, 4096, i / K, i % K);
            buffer[at / 4] |= value << (8 * (at % 4));
        }
        buffer
    };
    // A in registers: element i of thread T, as in `mma`.
    let mut a_registers = vec![0u32; 1024];
    for thread in 0..128 {
        for i in 0..8 {
            let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
            let column = 2 * (thread % 4) + i % 2 + 8 * (i / 4);
            a_registers[thread * 4 + i / 2] |= a[row * K + column] << (16 * (i % 2));
        }
    }
    everywhere("wgmma_forms", |gpu| {
        for row in [16, 32, 64, 128] {
            for (kernel, mn_major) in [
                ("wgmma_k_major", false),
                ("wgmma_mn_major", true),
                ("wgmma_registers", false),
                ("wgmma_registers_negated", false),
            ] {
                // 64 K-major rows of 128 bytes would not fit the kernel's buffer.
                let from_registers = kernel.starts_with("wgmma_registers");
                if row == 128 && !mn_major && !from_registers {
                    continue;
                }
                let a_buffer = if from_registers { a_registers.clone() } else { lay_out(&a, row, mn_major) };
                // 32 columns do not fill MN-major rows of 128 bytes.
                if row == 128 && mn_major {
                    continue;
                }
                let b_buffer = lay_out(&b, row, mn_major);
                let [leading, stride, layout] = descriptor(row, mn_major);
                for accumulate in [0, 1] {
                    let inputs = [gpu.words(&a_buffer), gpu.words(&b_buffer), gpu.words(&fragments(&c))];
                    let out = gpu.space(4 * M * N);
                    let mut args: Vec<Arg> =
                        inputs.iter().chain([&out]).map(|address| Arg::Pointer(*address)).collect();
                    args.extend([leading, stride, leading, stride, layout].map(Arg::U32));
                    args.push(Arg::I32(accumulate));
                    gpu.run(kernel, Geometry::linear(1, 128), &args);
                    let expected = expected(accumulate == 1, kernel.ends_with("negated"));
                    assert_eq!(gpu.read_words(out, M * N), fragments(&expected), "{kernel}, rows of {row} bytes");
                }
            }
        }
    });
}
