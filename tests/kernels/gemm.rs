//! Matrix products: all transposes, sizes that divide nothing, both write modes.

use crate::ops::{simulators, tensor};
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::gemm::{Operand, gemm, gemm_scaled};
use nanochat_gpu::tensor::{Arena, DType, Tensor};
use nanochat_gpu::verify::{close, normals};

/// `a [m, k] b [k, n]` in plain loops.
fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|x| a[i / n * k + x] * b[x * n + i % n]).sum()).collect()
}

fn transposed(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Rounded to `dtype`.
fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    tensor(&Arena::new(1 << 22).unwrap(), dtype, [values.len()], values).to_f64()
}

#[test]
fn every_transpose_and_type_at_awkward_sizes() {
    for gpu in simulators() {
        // In bf16 the last four take the tensor cores wherever rows are 16 bytes apart: sizes that divide no tile, more than
        // one tile each way, fewer and more steps along K than the pipeline has stages.
        for size @ [m, n, k] in [
            [1, 1, 1],
            [97, 33, 65],
            [200, 70, 17],
            [5, 200, 130],
            [8, 16, 8],
            [64, 128, 96],
            [257, 40, 72],
            [136, 264, 200],
        ] {
            for (from, to) in [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::Bf16, DType::F32)] {
                let (a, b) = (rounded(&normals("gemm a", m * k), from), rounded(&normals("gemm b", k * n), from));
                let want = product(&a, &b, size);
                for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
                    let arena = Arena::scattered(gpu);
                    let operand = |x: &[f64], rows: usize, cols: usize, flip: bool| match flip {
                        false => Operand::new(&keep(tensor(&arena, from, [rows, cols], x)), rows, cols),
                        true => {
                            let x = transposed(x, rows, cols);
                            Operand::new(&keep(tensor(&arena, from, [cols, rows], &x)), cols, rows).t()
                        }
                    };
                    let (a, b) = (operand(&a, m, k, a_t), operand(&b, k, n, b_t));
                    // Memory that nobody has written: overwriting must not read it.
                    let mut c = Tensor::uninit(&arena, [m, n], to);
                    gemm(gpu, &mut c.whole_mut(), a, b, WriteMode::Overwrite);
                    let unit = if to == DType::Bf16 { 2f64.powi(-9) } else { 2f64.powi(-24) };
                    let bound = 4.0 * unit * (k as f64).sqrt();
                    let what = format!("{size:?} {from} to {to}, transposed {a_t} {b_t}");
                    close(&what, &c.to_f64(), &want, bound).unwrap();
                    gemm(gpu, &mut c.whole_mut(), a, b, WriteMode::Accumulate);
                    let twice: Vec<f64> = want.iter().map(|x| 2.0 * x).collect();
                    close(&format!("{what}, added"), &c.to_f64(), &twice, bound).unwrap();
                    gpu.synchronise().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
    }
}

/// Operands name memory without a hold on it; these live as long as the process.
fn keep(tensor: Tensor) -> Tensor {
    std::mem::forget(tensor.clone());
    tensor
}

#[test]
fn scales_of_both_sides() {
    let Some(gpu) = simulators().pop() else { return };
    let (arena, size @ [m, n, k]) = (Arena::scattered(gpu), [33, 20, 40]);
    let [a, b, c] = [("gemm a", m * k), ("gemm b", k * n), ("gemm c", m * n)].map(|(name, n)| normals(name, n));
    let at = |values: &[f64], shape: [usize; 2]| tensor(&arena, DType::F32, shape, values);
    let (ta, tb, mut tc) = (at(&a, [m, k]), at(&b, [k, n]), at(&c, [m, n]));
    let (left, right) = (Operand::new(&ta, m, k), Operand::new(&tb, k, n));
    gemm_scaled(gpu, &mut tc.whole_mut(), left, right, -0.75, 2.5);
    let want: Vec<f64> = product(&a, &b, size).iter().zip(&c).map(|(p, c)| -0.75 * p + 2.5 * c).collect();
    close("scaled", &tc.to_f64(), &want, 1e-6).unwrap();
    gpu.synchronise().unwrap();
}
