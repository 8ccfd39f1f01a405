use crate::gpu::{assert_near, everywhere, geometry, random_values, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

#[test]
fn histogram() {
    let n = 5000;
    let words = random_words(n / 4, 1);
    let mut expected = vec![0u32; 256];
    words.iter().flat_map(|word| word.to_le_bytes()).for_each(|byte| expected[byte as usize] += 1);
    everywhere("blockwise", |gpu| {
        let (from, bins) = (gpu.words(&words), gpu.zeros(1024));
        gpu.run("histogram", Geometry::linear(3, 96), &[Arg::Pointer(from), Arg::Pointer(bins), Arg::I32(n as i32)]);
        assert_eq!(gpu.read_words(bins, 256), expected);
    });
}

#[test]
fn transpose() {
    let (rows, columns) = (97, 70);
    let x = random_values(rows * columns, 2);
    let expected: Vec<f32> = (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect();
    everywhere("blockwise", |gpu| {
        let (from, to) = (gpu.floats(&x), gpu.space(4 * x.len()));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(rows as i32), Arg::I32(columns as i32)];
        let outcome = gpu.run("transpose", geometry([3, 4, 1], [32, 8, 1], 0), &args);
        assert_eq!(gpu.read_floats(to, x.len()), expected);
        assert_eq!(outcome.counters.bank_conflicts, 0, "the padding keeps the banks apart");
    });
}

#[test]
fn sgemm() {
    let (m, n, k) = (128, 64, 48);
    let (a, b) = (random_values(m * k, 3), random_values(k * n, 4));
    let product = |i: usize| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n])).sum();
    let expected: Vec<f64> = (0..m * n).map(product).collect();
    everywhere("blockwise", |gpu| {
        let (pa, pb, pc) = (gpu.floats(&a), gpu.floats(&b), gpu.space(4 * m * n));
        let mut args = [pa, pb, pc].map(Arg::Pointer).to_vec();
        args.extend([m, n, k].map(|extent| Arg::I32(extent as i32)));
        gpu.run("sgemm", geometry([n as u32 / 64, m as u32 / 64, 1], [256, 1, 1], 0), &args);
        assert_near(&gpu.read_floats(pc, m * n), &expected, 1e-5);
    });
}

#[test]
fn ping_pong() {
    let rounds = 9;
    let input = random_words(32 * rounds, 5);
    let expected: Vec<u32> = (0..32)
        .map(|lane| (0..rounds).fold(0u32, |sum, r| sum.wrapping_mul(3).wrapping_add(input[r * 32 + 31 - lane])))
        .collect();
    everywhere("blockwise", |gpu| {
        let (from, to) = (gpu.words(&input), gpu.space(128));
        gpu.run("ping_pong", Geometry::linear(1, 64), &[Arg::Pointer(from), Arg::Pointer(to), Arg::I32(rounds as i32)]);
        assert_eq!(gpu.read_words(to, 32), expected);
    });
}

#[test]
fn block_votes() {
    let input: Vec<u32> = random_words(480, 6).iter().map(|word| word % 300).collect();
    let input: Vec<u32> = input.iter().map(|x| (*x as i32 - 102) as u32).collect();
    everywhere("blockwise", |gpu| {
        let (from, to) = (gpu.words(&input), gpu.space(20));
        gpu.run("block_votes", Geometry::linear(5, 96), &[Arg::Pointer(from), Arg::Pointer(to)]);
        for (got, block) in gpu.read_words(to, 5).iter().zip(input.chunks(96)) {
            let values = || block.iter().map(|x| *x as i32);
            let (all, any) = (values().all(|x| x > -100), values().any(|x| x == 7));
            let expected = values().filter(|x| *x > 0).count() as u32 | u32::from(all) << 16 | u32::from(any) << 17;
            assert_eq!(*got, expected);
        }
    });
}
