//! Products with packed weights against plain loops in f64, for every kind and every set of kernels of this machine; and what must not
//! change a bit: the kernels, the rows beside a row, the threads.

use half::{bf16, f16};
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::packed::{ActivationBits, Kernels, PackedMatrix, PackedWeight, product, product_by};
use nanochat_gpu::error::is_user_error;
use nanochat_gpu::tensor::BlockType;
use nanochat_gpu::verify::{made_blocks, normals};

/// Rows of weights: less than a panel, on its edge, two with a part of the second, an odd number with a part of the last.
const OUTPUTS: &[usize] = &[1, 8, 13, 97];
/// Rows of activations: tiles whole, in part, and several of them; more than a task passes at once.
const ROWS: &[usize] = &[1, 2, 3, 5, 8, 17, 70];

/// Widths: a block, an odd number of them, several.
fn widths(kind: BlockType) -> Vec<usize> {
    match kind.block_elems() {
        1 => vec![1, 7, 200],
        32 => vec![32, 96, 576],
        block => vec![block, 3 * block],
    }
}

fn activations(n: usize, i: usize) -> Vec<f32> {
    normals(&format!("x {n} {i}"), n * i).iter().map(|&x| x as f32).collect()
}

/// A matrix, and its values.
fn made(kind: BlockType, [o, i]: [usize; 2]) -> (PackedMatrix, Vec<f32>) {
    let bytes = made_blocks("weights", kind, [o, i]);
    let mut values = vec![0.0; o * i];
    for (row, values) in bytes.chunks_exact(kind.row_bytes(i).unwrap()).zip(values.chunks_exact_mut(i)) {
        kind.dequantise(row, values);
    }
    (PackedMatrix::new(kind, [o, i], &bytes).unwrap(), values)
}

const BITS: [ActivationBits; 2] = [ActivationBits::Eight, ActivationBits::Sixteen];

/// Every kind with activations of 8 bits and of 16.
fn every_way() -> impl Iterator<Item = (BlockType, ActivationBits)> {
    BlockType::ALL.into_iter().flat_map(|kind| BITS.map(|bits| (kind, bits)))
}

fn multiply((kernels, bits): (Kernels, ActivationBits), x: &[f32], n: usize, matrix: &PackedMatrix) -> Vec<f32> {
    // What is overwritten may be anything.
    let mut y = vec![f32::NAN; n * matrix.dims()[0]];
    product_by(kernels, &mut y, x, PackedWeight::of(matrix, bits), WriteMode::Overwrite);
    y
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A row as products with quantised weights see it, and half a step of each element.
fn rounded(x: &[f32], bits: ActivationBits) -> (Vec<f64>, Vec<f64>) {
    let block = |x: &[f32]| {
        let (mut left, mut seen) = (x.to_vec(), vec![(0.0, 0.0); x.len()]);
        for _ in 0..if bits == ActivationBits::Eight { 1 } else { 2 } {
            let peak = left.iter().fold(0f32, |peak, x| peak.max(x.abs()));
            let (d, inverse) = (peak / 127.0, 127.0 / peak);
            for (left, seen) in left.iter_mut().zip(&mut seen) {
                let q = (*left * inverse).round_ties_even();
                *left -= d * q;
                *seen = (seen.0 + f64::from(d) * f64::from(q), 0.5 * f64::from(d));
            }
        }
        seen
    };
    x.chunks(32).flat_map(block).unzip()
}

/// Half a unit in the last place of 1.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// The largest error of a product against the exact one of the same operands: each addition rounds a sum that is at most the sum of
/// magnitudes, and a block of quantised weights rounds its factor, its integer and its own additions. An offset of the weights is
/// subtracted from what may be 16 times as large.
fn bound(kind: BlockType, weights: &[f64], x: &[f64]) -> f64 {
    let magnitudes: f64 = weights.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
    let peak = weights.iter().fold(0f64, |peak, w| peak.max(w.abs()));
    let offsets: f64 = x.iter().map(|x| 16.0 * peak * x.abs()).sum();
    match kind.block_elems() > 1 {
        true => UNIT * (x.len() as f64 / 32.0 * 2.0 + 4.0) * (magnitudes + offsets),
        false => UNIT * (x.len() as f64 / 2.0 + 2.0) * magnitudes,
    }
}

#[test]
fn every_kind_gives_what_plain_loops_give() {
    for (kind, bits) in every_way() {
        for (&o, i) in OUTPUTS.iter().flat_map(|o| widths(kind).into_iter().map(move |i| (o, i))) {
            let (matrix, values) = made(kind, [o, i]);
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            for &n in ROWS {
                let x = activations(n, i);
                let got = multiply((Kernels::Scalar, bits), &x, n, &matrix);
                for (x, got) in x.chunks(i).zip(got.chunks(o)) {
                    let exact: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    let (seen, half_steps) = match kind.block_elems() > 1 {
                        true => rounded(x, bits),
                        false => (exact.clone(), vec![0.0; i]),
                    };
                    for (weights, &got) in values.chunks(i).zip(got) {
                        let (got, floor) = (f64::from(got), bound(kind, weights, &seen));
                        let err = (got - dot(weights, &seen)).abs();
                        assert!(err <= floor, "{kind:?} {n} x {i} -> {o}: {err} is more than {floor}");
                        // Against activations that are not rounded: half a step of each, and what rounding the step does.
                        let magnitudes: Vec<f64> = weights.iter().map(|w| w.abs()).collect();
                        let steps = dot(&magnitudes, &half_steps) * 1.001 + floor;
                        let err = (got - dot(weights, &exact)).abs();
                        assert!(err <= steps, "{kind:?} {n} x {i} -> {o}: {err} is more than steps allow, {steps}");
                    }
                }
            }
        }
    }
}

/// An activation is off by up to half a step, anything there being as likely as anything else: by `step / sqrt(12)` on average. Of 32
/// normal numbers the largest is 2.4 deviations, so that is 0.55 % of the deviation with 8 bits. What they leave is within half a step, and
/// the second integer divides that by 127: 254 times less.
#[test]
fn quantised_activations_cost_half_a_percent_or_next_to_nothing() {
    for (kind, bits) in every_way().filter(|(kind, _)| kind.block_elems() > 1) {
        let (n, o, i) = (17, 97, 768);
        let (matrix, values) = made(kind, [o, i]);
        let x = activations(n, i);
        let got = multiply((Kernels::Scalar, bits), &x, n, &matrix);
        let (mut errors, mut foretold, mut squares) = (0.0, 0.0, 0.0);
        for (x, got) in x.chunks(i).zip(got.chunks(o)) {
            let (_, half_steps) = rounded(x, bits);
            for (weights, &got) in values.chunks(i).zip(got) {
                let terms =
                    |of: &dyn Fn(usize) -> f64| (0..i).map(|k| f64::from(weights[k]) * of(k)).collect::<Vec<_>>();
                let want: f64 = terms(&|k| f64::from(x[k])).iter().sum();
                errors += (f64::from(got) - want).powi(2);
                foretold += terms(&|k| 2.0 * half_steps[k]).iter().map(|t| t * t / 12.0).sum::<f64>();
                squares += want * want;
            }
        }
        let (relative, foretold) = ((errors / squares).sqrt(), (foretold / squares).sqrt());
        assert!(relative <= 1.1 * foretold && foretold <= 1.1 * relative, "{kind:?}: {relative}, {foretold} foretold");
        let most = if bits == ActivationBits::Eight { 6e-3 } else { 6e-3 / 254.0 };
        assert!(relative <= most, "{kind:?} {bits:?}: {relative}");
    }
}

#[test]
fn all_kernels_give_the_same_bits() {
    for kernels in Kernels::available() {
        for (kind, bits) in every_way() {
            for (&o, i) in OUTPUTS.iter().flat_map(|o| widths(kind).into_iter().map(move |i| (o, i))) {
                let (matrix, _) = made(kind, [o, i]);
                for &n in ROWS {
                    let x = activations(n, i);
                    let [got, want] =
                        [kernels, Kernels::Scalar].map(|kernels| multiply((kernels, bits), &x, n, &matrix));
                    assert_eq!(got, want, "{kernels:?} {kind:?} {bits:?} {n} x {i} -> {o}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    for (kind, bits) in every_way() {
        let (o, i) = (97, 3 * 256);
        let (matrix, _) = made(kind, [o, i]);
        let x = activations(70, i);
        for kernels in Kernels::available() {
            let kernels = (kernels, bits);
            let all = multiply(kernels, &x, 70, &matrix);
            for (n, x) in x.chunks(i).enumerate() {
                assert_eq!(multiply(kernels, x, 1, &matrix), all[n * o..][..o], "{kernels:?} {kind:?} row {n} alone");
            }
            for n in [2, 3, 8, 17] {
                assert_eq!(multiply(kernels, &x[..n * i], n, &matrix), all[..n * o], "{kernels:?} {kind:?} of {n}");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for (kind, bits) in every_way() {
        // Enough work for several tasks, whose edges move with the number of threads.
        let (n, o, i) = (70, 203, 3 * 256);
        let (matrix, _) = made(kind, [o, i]);
        let x = activations(n, i);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| multiply((*Kernels::available().last().unwrap(), bits), &x, n, &matrix))
        };
        let one = on(1);
        assert!([2, 3, 7].into_iter().all(|threads| on(threads) == one), "{kind:?}");
    }
}

#[test]
fn matrices_of_different_kinds_lie_side_by_side_and_add() {
    let (n, i) = (5, 256);
    let shapes = [(BlockType::Q4_1, 16), (BlockType::F32, 9), (BlockType::Q6K, 23), (BlockType::Bf16, 8)];
    let matrices = shapes.map(|(kind, o)| made(kind, [o, i]).0);
    let x = activations(n, i);
    let o: usize = shapes.iter().map(|(_, o)| o).sum();
    let before: Vec<f32> = activations(n, o);
    let mut y = before.clone();
    let bits = ActivationBits::Sixteen;
    product(&mut y, &x, PackedWeight { matrices: &matrices, bits }, WriteMode::Accumulate);
    let mut first = 0;
    for matrix in &matrices {
        let alone = multiply((Kernels::Scalar, bits), &x, n, matrix);
        let [rows, _] = matrix.dims();
        for (n, alone) in alone.chunks(rows).enumerate() {
            for (k, alone) in alone.iter().enumerate() {
                let at = n * o + first + k;
                assert_eq!(y[at], before[at] + alone, "{matrix:?} row {n} output {k}");
            }
        }
        first += rows;
    }
}

#[test]
fn what_is_not_a_number_is_seen_in_its_row_or_output_alone() {
    let ways = Kernels::available().into_iter().flat_map(|kernels| BITS.map(|bits| (kernels, bits)));
    for (kernels, kind) in ways.flat_map(|way| BlockType::ALL.map(|kind| (way, kind))) {
        let (n, o, i) = (6, 19, 512);
        let mut bytes = made_blocks("weights", kind, [o, i]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let matrix = PackedMatrix::new(kind, [o, i], &bytes).unwrap();
            let mut x = activations(n, i);
            x[4 * i + 300] = bad;
            for (at, y) in multiply(kernels, &x, n, &matrix).iter().enumerate() {
                assert_eq!(!y.is_finite(), at / o == 4, "{kernels:?} {kind:?}: {bad} in row 4, {y} at {at}");
            }
        }
        // The scale of a block of output 13, or an element.
        let scale = if kind == BlockType::Q6K { 208 } else { 0 };
        let nan = match kind {
            BlockType::F32 => f32::NAN.to_le_bytes().to_vec(),
            BlockType::Bf16 => bf16::NAN.to_le_bytes().to_vec(),
            _ => f16::NAN.to_le_bytes().to_vec(),
        };
        bytes[13 * kind.row_bytes(i).unwrap() + scale..][..nan.len()].copy_from_slice(&nan);
        let matrix = PackedMatrix::new(kind, [o, i], &bytes).unwrap();
        for (at, y) in multiply(kernels, &activations(n, i), n, &matrix).iter().enumerate() {
            assert_eq!(y.is_nan(), at % o == 13, "{kernels:?} {kind:?}: NaN in output 13, {y} at {at}");
        }
    }
}

#[test]
fn zeros_give_zeros_and_the_smallest_numbers_nothing_wild() {
    for (kind, bits) in every_way() {
        let (matrix, values) = made(kind, [9, 256]);
        let got = multiply((Kernels::Scalar, bits), &[0.0; 512], 2, &matrix);
        assert!(got.iter().all(|&y| y == 0.0), "{kind:?}: {got:?}");
        let peak = values.iter().fold(0f32, |peak, w| peak.max(w.abs()));
        for kernels in Kernels::available() {
            let tiny = multiply((kernels, bits), &[f32::MIN_POSITIVE / 16.0; 256], 1, &matrix);
            assert!(tiny.iter().all(|y| y.abs() <= 256.0 * peak * f32::MIN_POSITIVE), "{kind:?}: {tiny:?}");
        }
    }
}

#[test]
fn rows_come_back_as_they_were() {
    for kind in BlockType::ALL {
        let (o, i) = (13, 512);
        let (matrix, values) = made(kind, [o, i]);
        assert_eq!(matrix.to_f32(), values, "{kind:?}");
        assert!(
            matrix.size_bytes() == 16 * kind.row_bytes(i).unwrap() && matrix.dims() == [o, i] && matrix.kind() == kind
        );
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    for (kind, dims, bytes, says) in [
        (BlockType::Q4_1, [4, 48], 4 * 30, "multiple of 32"),
        (BlockType::Q6K, [2, 128], 210, "multiple of 256"),
        (BlockType::Q8_0, [3, 64], 3 * 68 - 1, "cut short"),
        (BlockType::Q8_0, [3, 64], 3 * 68 + 34, "cut short"),
        (BlockType::F32, [0, 8], 0, "0 x 8"),
        (BlockType::F16, [usize::MAX, 8], 64, "cut short"),
    ] {
        let error = PackedMatrix::new(kind, dims, &vec![0; bytes]).expect_err("it does not fit");
        assert!(is_user_error(&error) && error.to_string().contains(says), "{kind:?} {dims:?}: {error}");
    }
}

#[test]
#[should_panic(expected = "elements of a product")]
fn swapped_dimensions_are_a_bug() {
    let (matrix, _) = made(BlockType::Q8_0, [64, 32]);
    product(&mut [0.0; 32], &[0.0; 64], PackedWeight::of(&matrix, ActivationBits::Eight), WriteMode::Overwrite);
}
