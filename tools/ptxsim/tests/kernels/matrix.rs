use crate::gpu::{assert_near, everywhere, geometry, random_values, random_words};
use crate::nvcc::Arch;
use half::bf16;
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::units::fragment::Register;
use ptxsim::units::mma::mma_m16n8;
use ptxsim::units::tensor_core::{Accumulator, Arithmetic, Generation, Operand, Product};

fn product_of_rows(a: &[f32], b: &[f32], n: usize, k: usize) -> Vec<f64> {
    let dot = |i: usize| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[i % n * k + j])).sum();
    (0..a.len() / k * n).map(dot).collect()
}

#[test]
fn gemm_bf16_mma() {
    let (m, n, k) = (64, 128, 160);
    let (a, b) = (random_values(m * k, 1), random_values(n * k, 2));
    let expected = product_of_rows(&a, &b, n, k);
    everywhere("matrix", |gpu| {
        let (pa, pb, pc) = (gpu.bf16s(&a), gpu.bf16s(&b), gpu.space(4 * m * n));
        let mut args = [pa, pb, pc].map(Arg::Pointer).to_vec();
        args.extend([m, n, k].map(|extent| Arg::I32(extent as i32)));
        let outcome = gpu.run("gemm_bf16_mma", geometry([n as u32 / 64, m as u32 / 64, 1], [128, 1, 1], 0), &args);
        // Values are multiples of 2^-7, so that sums are exact in f32.
        assert_near(&gpu.read_floats(pc, m * n), &expected, 0.0);
        assert_eq!(outcome.counters.total.tensor_macs, (m * n * k) as u64);
        // The pitch keeps the rows of ldmatrix apart; two rows that cp.async writes at once meet in four banks.
        assert_eq!(outcome.counters.bank_conflicts, (k / 32 * (n / 64) * 64) as u64);
    });
}

/// Registers of `per_lane` words, from memory in which a lane's words are together.
fn registers(words: &[u32], per_lane: usize) -> Vec<Register> {
    (0..per_lane).map(|i| std::array::from_fn(|lane| words[lane * per_lane + i])).collect()
}

#[test]
fn tiles_of_every_type_are_exact() {
    let warps = 16;
    // Finite operands of every exponent; the low bits of tf32 are noise.
    let finite = |word: u32, field: u32| if word & field == field { word & !field } else { word };
    let halves = |seed: u64, field: u32| -> Vec<u32> {
        let words = random_words(4 * 32 * warps, seed);
        words.into_iter().map(|word| finite(finite(word, field), field << 16)).collect()
    };
    let words = |seed: u64| -> Vec<u32> {
        random_words(4 * 32 * warps, seed).into_iter().map(|word| finite(word, 0x7f80_0000)).collect()
    };
    type Case = (&'static str, Operand, Accumulator, usize, [Vec<u32>; 3]);
    let cases: [Case; 4] = [
        ("mma_tile_bf16", Operand::Bf16, Accumulator::F32, 16, [halves(1, 0x7f80), halves(2, 0x7f80), words(3)]),
        ("mma_tile_f16", Operand::F16, Accumulator::F32, 16, [halves(4, 0x7c00), halves(5, 0x7c00), words(6)]),
        ("mma_tile_tf32", Operand::Tf32, Accumulator::F32, 8, [words(7), words(8), words(9)]),
        (
            "mma_tile_f16_f16",
            Operand::F16,
            Accumulator::F16,
            16,
            [halves(10, 0x7c00), halves(11, 0x7c00), halves(12, 0x7c00)],
        ),
    ];
    everywhere("matrix", |gpu| {
        let generation = if gpu.arch == Arch::Sm80 { Generation::Ampere } else { Generation::Hopper };
        for (kernel, operand, accumulator, k, [a, b, c]) in &cases {
            let per_c = if *accumulator == Accumulator::F32 { 4 } else { 2 };
            let lengths = [4, 2, per_c].map(|per_lane| per_lane * 32 * warps);
            let inputs: Vec<u64> = [a, b, c].iter().zip(lengths).map(|(list, n)| gpu.words(&list[..n])).collect();
            let out = gpu.space(4 * lengths[2]);
            let args: Vec<Arg> = inputs.iter().chain([&out]).map(|address| Arg::Pointer(*address)).collect();
            gpu.run(kernel, Geometry::linear(warps as u32, 32), &args);
            let got = gpu.read_words(out, lengths[2]);
            let (operand, accumulator, k) = (*operand, *accumulator, *k);
            let product = Product { operand, accumulator, arithmetic: Arithmetic::Exact(generation), k };
            for warp in 0..warps {
                let part = |list: &[u32], per_lane: usize| registers(&list[warp * 32 * per_lane..], per_lane);
                let (a, b, mut d) = (part(a, 4), part(b, 2), part(c, per_c));
                let (a, b): (Vec<_>, Vec<_>) = (a.iter().collect(), b.iter().collect());
                mma_m16n8(pulp::Arch::new(), product, &a, &b, &mut d);
                assert_eq!(part(&got, per_c), d, "{kernel}, warp {warp}");
            }
        }
    });
}

#[test]
fn wmma_bf16() {
    let k = 48;
    let (a, b) = (random_values(16 * k, 3), random_values(16 * k, 4));
    let expected = product_of_rows(&a, &b, 16, k);
    everywhere("matrix", |gpu| {
        let (pa, pb, pc) = (gpu.bf16s(&a), gpu.bf16s(&b), gpu.space(1024));
        let mut args = [pa, pb, pc].map(Arg::Pointer).to_vec();
        args.push(Arg::I32(k as i32));
        gpu.run("wmma_bf16", Geometry::linear(1, 32), &args);
        assert_near(&gpu.read_floats(pc, 256), &expected, 0.0);
    });
}

#[test]
fn attention() {
    let (heads, length, width, scale) = (2, 48, 32, 0.25f32);
    let [q, k, v] = [5, 6, 7].map(|seed| random_values(heads * length * width, seed));
    let at = |list: &[f32], head: usize, row: usize, i: usize| f64::from(list[(head * length + row) * width + i]);
    let mut expected = Vec::new();
    for head in 0..heads {
        for row in 0..length {
            let score = |key: usize| (0..width).map(|i| at(&q, head, row, i) * at(&k, head, key, i)).sum::<f64>();
            let scores: Vec<f64> = (0..=row).map(|key| score(key) * f64::from(scale)).collect();
            let top = scores.iter().fold(f64::MIN, |top, s| top.max(*s));
            let p: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = p.iter().sum();
            expected.extend((0..width).map(|i| (0..=row).map(|key| p[key] * at(&v, head, key, i)).sum::<f64>() / sum));
        }
    }
    everywhere("matrix", |gpu| {
        let [pq, pk, pv] = [&q, &k, &v].map(|list| gpu.bf16s(list));
        let out = gpu.space(4 * expected.len());
        let mut args = [pq, pk, pv, out].map(Arg::Pointer).to_vec();
        args.extend([Arg::I32(length as i32), Arg::F32(scale)]);
        gpu.run("attention", geometry([length as u32 / 16, heads as u32, 1], [32, 1, 1], 0), &args);
        // Probabilities are rounded to bf16 (2^-9 of themselves), values are at most 1.
        let rounding = bf16::EPSILON.to_f64();
        assert_near(&gpu.read_floats(out, expected.len()), &expected, rounding);
    });
}
