use crate::gpu::{Gpu, everywhere, random_words};
use crate::nvcc::Arch;
use half::{bf16, f16};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::options::Options;

/// Kernel, k, bf16, selector.
const FORMS: [(&str, usize, bool, usize); 4] = [
    ("sparse_k16_0", 16, false, 0),
    ("sparse_k16_3", 16, false, 3),
    ("sparse_k32_0", 32, true, 0),
    ("sparse_k32_1", 32, false, 1),
];

/// Two of four, in order.
const PAIRS: [(usize, usize); 6] = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

#[test]
fn two_of_four_are_multiplied() {
    everywhere("sparse", |gpu| {
        for (kernel, k, bf, selector) in FORMS {
            let bits = |x: i32| match bf {
                true => u32::from(bf16::from_f32(x as f32).to_bits()),
                false => u32::from(f16::from_f32(x as f32).to_bits()),
            };
            let whole = |word: &u32| (word % 15) as i32 - 7;
            // Dense A with two elements of every four, and what is stored of it.
            let (values, choices) = (random_words(16 * k / 2, 1), random_words(16 * k / 4, 2));
            let mut dense = vec![0i32; 16 * k];
            let mut e = random_words(32, 3);
            for (group, choice) in choices.iter().enumerate() {
                let (row, start) = (group / (k / 4), group % (k / 4) * 4);
                let (first, second) = PAIRS[*choice as usize % 6];
                dense[row * k + start + first] = whole(&values[2 * group]);
                dense[row * k + start + second] = whole(&values[2 * group + 1]);
                // Four groups to 16 bits; rows 8 and up in the high half; lanes of the selector.
                let chunk = start / 16;
                let lane = 4 * (row % 8) + if k == 16 { selector } else { 2 * selector + chunk };
                let shift = 16 * (row / 8) + 4 * (start % 16 / 4);
                e[lane] = e[lane] & !(0xf << shift) | ((first | second << 2) as u32) << shift;
            }
            let b: Vec<i32> = random_words(k * 8, 4).iter().map(whole).collect();
            let c: Vec<i32> = random_words(16 * 8, 5).iter().map(whole).collect();
            // Stored A as of a dense m16n8 with half of k: register i: row g + 8 (i % 2), elements 2 t (+ 8 (i / 2)).
            let stored = |row: usize, j: usize| bits(whole(&values[row * k / 2 + j]));
            let a_words: Vec<u32> = (0..32 * k / 8)
                .map(|at| {
                    let (lane, i) = (at / (k / 8), at % (k / 8));
                    let (row, j) = (lane / 4 + 8 * (i % 2), 2 * (lane % 4) + 8 * (i / 2));
                    stored(row, j) | stored(row, j + 1) << 16
                })
                .collect();
            let b_words: Vec<u32> = (0..32 * k / 8)
                .map(|at| {
                    let (lane, i) = (at / (k / 8), at % (k / 8));
                    let (row, column) = (2 * (lane % 4) + 8 * i, lane / 4);
                    bits(b[row * 8 + column]) | bits(b[(row + 1) * 8 + column]) << 16
                })
                .collect();
            let place = |lane: usize, i: usize| (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let fragment = |of: &dyn Fn(usize, usize) -> i32| -> Vec<f32> {
                (0..128).map(|at| place(at / 4, at % 4)).map(|(row, column)| of(row, column) as f32).collect()
            };
            let d = gpu.floats(&fragment(&|row, column| c[row * 8 + column]));
            let args = [gpu.words(&a_words), gpu.words(&b_words), gpu.words(&e), d].map(Arg::Pointer);
            gpu.run(kernel, Geometry::linear(1, 32), &args);
            let product = |row: usize, column: usize| {
                (0..k).fold(c[row * 8 + column], |sum, i| sum + dense[row * k + i] * b[i * 8 + column])
            };
            assert_eq!(gpu.read_floats(d, 128), fragment(&product), "{kernel}");
        }
    });
}

#[test]
fn places_out_of_order_are_an_error() {
    let mut gpu = Gpu::new("sparse", Arch::Sm80, Options::default());
    let args = [gpu.zeros(512), gpu.zeros(512), gpu.zeros(128), gpu.zeros(512)].map(Arg::Pointer);
    let error = gpu.fails("sparse_k32_0", Geometry::linear(1, 32), &args);
    assert!(error.to_string().contains("names columns 0 and 0"), "{error}");
}
