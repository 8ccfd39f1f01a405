//! Matrix products: all layouts, sizes that divide nothing, rows at every alignment, K in parts, and what is added.

use crate::ops::{hopper, simulators, tensor};
use nanochat_gpu::device::cpu::WriteMode;
use nanochat_gpu::device::gemm::{Operand, gemm, gemm_naive, gemm_onto, parts_of_k};
use nanochat_gpu::device::gpu::Gpu;
use nanochat_gpu::device::modules::KERNELS;
use nanochat_gpu::tensor::{Arena, DType, Tensor};
use nanochat_gpu::verify::{close, normals};

/// `a [m, k] b [k, n]` in plain loops.
fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for (c, a) in c.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
    c
}

fn transposed(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Rounded to `dtype`.
fn rounded(values: &[f64], dtype: DType) -> Vec<f64> {
    tensor(&Arena::new(1 << 22).unwrap(), dtype, [values.len()], values).to_f64()
}

/// Two matrices and what is added to their product, with the product in f64.
struct Case {
    size: [usize; 3],
    /// Types of the operands and of the result.
    types: [DType; 2],
    a: Vec<f64>,
    b: Vec<f64>,
    d: Vec<f64>,
    exact: Vec<f64>,
}

/// Types of operands and results that there are kernels for.
const TYPES: [[DType; 2]; 3] = [[DType::F32, DType::F32], [DType::Bf16, DType::Bf16], [DType::Bf16, DType::F32]];
const LAYOUTS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

impl Case {
    fn new(size: [usize; 3], types: [DType; 2]) -> Case {
        let ([m, n, k], [from, to]) = (size, types);
        let (a, b) = (rounded(&normals("gemm a", m * k), from), rounded(&normals("gemm b", k * n), from));
        let d = rounded(&normals("gemm d", m * n), to);
        let exact = product(&a, &b, size);
        Case { size, types, a, b, d, exact }
    }

    /// Operands in `arena`, one or the other stored as its transpose; the tensors hold their memory.
    fn operands(&self, arena: &Arena, [a_t, b_t]: [bool; 2]) -> ([Tensor; 2], [Operand; 2]) {
        let ([m, n, k], [from, _]) = (self.size, self.types);
        let store = |x: &[f64], rows: usize, cols: usize, flip: bool| match flip {
            false => tensor(arena, from, [rows, cols], x),
            true => tensor(arena, from, [cols, rows], &transposed(x, rows, cols)),
        };
        let view = |x: &Tensor, rows: usize, cols: usize, flip: bool| match flip {
            false => Operand::new(x, rows, cols),
            true => Operand::new(x, cols, rows).t(),
        };
        let (a, b) = (store(&self.a, m, k, a_t), store(&self.b, k, n, b_t));
        let operands = [view(&a, m, k, a_t), view(&b, k, n, b_t)];
        ([a, b], operands)
    }

    /// How far a result may be off: rounding of the result's type, and of f32 sums over K.
    fn bound(&self) -> f64 {
        let unit = if self.types[1] == DType::Bf16 { 2f64.powi(-9) } else { 2f64.powi(-24) };
        4.0 * unit * (self.size[2].max(1) as f64).sqrt()
    }

    fn close(&self, what: &str, got: &Tensor, alpha: f64, beta: f64) {
        let want: Vec<f64> = self.exact.iter().zip(&self.d).map(|(p, d)| alpha * p + beta * d).collect();
        let what = format!("{what}: {:?} {:?}", self.size, self.types);
        close(&what, &got.to_f64(), &want, self.bound()).unwrap_or_else(|message| panic!("{message}"));
    }

    /// Every way to use a product, in one layout; the bits of the results.
    fn check(&self, gpu: &'static Gpu, layout: [bool; 2]) -> Vec<u8> {
        let ([m, n, _], to, arena) = (self.size, self.types[1], Arena::scattered(gpu));
        let (_held, [a, b]) = self.operands(&arena, layout);
        let d = tensor(&arena, to, [m, n], &self.d);
        // Memory that nobody has written: overwriting must not read it.
        let mut results = [(); 2].map(|()| Tensor::uninit(&arena, [m, n], to));
        let [plain, onto] = &mut results;
        gemm(&arena, &mut plain.whole_mut(), a, b, WriteMode::Overwrite);
        gemm_onto(&arena, &mut onto.whole_mut(), &d, a, b, [-0.75, 2.5]);
        let mut added = d.copy(&arena);
        gemm(&arena, &mut added.whole_mut(), a, b, WriteMode::Accumulate);
        let name = format!("layout {layout:?}");
        self.close(&name, plain, 1.0, 0.0);
        self.close(&format!("{name}, onto"), onto, -0.75, 2.5);
        self.close(&format!("{name}, added"), &added, 1.0, 1.0);
        gpu.synchronise().unwrap_or_else(|error| panic!("{name} {:?}: {error}", self.size));
        [&*plain, &*onto, &added].iter().flat_map(|tensor| tensor.to_bytes()).collect()
    }
}

/// In bf16 rows lie 16, 8, 4 and 2 bytes apart, of A and of B; sizes divide no tile, there is more than one tile each way, and
/// fewer and more steps along K than the pipeline has stages. The last two have K in parts.
const SIZES: [[usize; 3]; 11] = [
    [1, 1, 1],
    [97, 33, 65],
    [200, 70, 17],
    [5, 200, 130],
    [8, 16, 8],
    [64, 128, 96],
    [257, 40, 72],
    [136, 264, 104],
    [68, 132, 100],
    [24, 40, 1128],
    [30, 9, 1601],
];

#[test]
fn every_layout_and_type_at_awkward_sizes() {
    for size in SIZES {
        for case in TYPES.map(|types| Case::new(size, types)) {
            for layout in LAYOUTS {
                let mut bits = simulators().into_iter().map(|gpu| case.check(gpu, layout));
                let first = bits.next();
                assert!(bits.all(|bits| Some(&bits) == first.as_ref()), "{size:?} {layout:?}: other bits, other order");
            }
        }
    }
}

/// In bf16, where the tensor cores would be chosen.
#[test]
fn the_twin_on_plain_cores() {
    let Some(gpu) = simulators().pop() else { return };
    for size @ [m, n, _] in [[97, 33, 65], [8, 16, 8], [136, 264, 40]] {
        for case in TYPES[1..].iter().map(|&types| Case::new(size, types)) {
            for layout in LAYOUTS {
                let arena = Arena::scattered(gpu);
                let (_held, [a, b]) = case.operands(&arena, layout);
                let mut c = Tensor::uninit(&arena, [m, n], case.types[1]);
                gemm_naive(&mut c.whole_mut(), a, b, WriteMode::Overwrite);
                case.close("twin", &c, 1.0, 0.0);
                gemm_naive(&mut c.whole_mut(), a, b, WriteMode::Accumulate);
                case.close("twin, added", &c, 2.0, 0.0);
                gpu.synchronise().unwrap();
            }
        }
    }
}

/// The PTX for compute capability 9.0, in its simulated tensor cores.
#[test]
fn the_modules_for_hopper() {
    let Some(gpu) = hopper() else { return };
    for size in [[97, 33, 65], [136, 264, 72], [68, 132, 100], [24, 40, 1128]] {
        for case in TYPES.map(|types| Case::new(size, types)) {
            for layout in LAYOUTS {
                let bits = case.check(gpu, layout);
                assert!(bits == case.check(gpu, layout), "{size:?} {layout:?}: other bits the second time");
            }
        }
    }
}

#[test]
fn no_depth_clears_or_keeps() {
    for gpu in simulators() {
        for types @ [from, to] in TYPES {
            let arena = Arena::scattered(gpu);
            let empty = Tensor::uninit(&arena, [0], from);
            let (a, b) = (Operand::new(&empty, 5, 0), Operand::new(&empty, 0, 7));
            for (mode, want) in [(WriteMode::Overwrite, 0.0), (WriteMode::Accumulate, 3.0)] {
                let mut c = tensor(&arena, to, [5, 7], &[3.0; 35]);
                gemm(&arena, &mut c.whole_mut(), a, b, mode);
                assert!(c.to_f64().iter().all(|&x| x == want), "{types:?} {mode:?}: {:?}", c.to_f64());
            }
            gpu.synchronise().unwrap();
        }
    }
}

/// Each kernel of these files, at sizes that fill tiles and at sizes that do not: copies, main loop and epilogue.
#[test]
fn no_bank_conflicts_on_tensor_cores() {
    let Some(gpu) = simulators().pop() else { return };
    gpu.take_counts();
    for size in [[128, 128, 96], [136, 264, 200], [68, 132, 100], [70, 130, 66], [97, 33, 65], [30, 9, 1601]] {
        for case in TYPES[1..].iter().map(|&types| Case::new(size, types)) {
            LAYOUTS.iter().for_each(|&layout| drop(case.check(gpu, layout)));
        }
    }
    let counts = gpu.take_counts();
    for kernel in KERNELS.iter().filter(|kernel| ["gemm_mma", "gemm_mma_narrow"].contains(&kernel.stem)) {
        let counted = counts.get(kernel.name).unwrap_or_else(|| panic!("{} was not launched", kernel.name));
        assert!(counted.tensor_macs > 0 && counted.bank_conflicts == 0, "{}: {counted:?}", kernel.name);
    }
}

/// K is cut where few tiles would leave multiprocessors idle and each part is long; never into empty parts.
#[test]
fn parts_follow_from_the_sizes() {
    for (size, parts) in [
        ([768, 768, 32_768], 6),
        ([2304, 768, 32_768], 2),
        ([4096, 4096, 32_768], 1),
        ([768, 768, 900], 1),
        ([1, 768, 3072], 6),
        ([1, 1, 0], 1),
    ] {
        assert_eq!(parts_of_k(size), parts, "{size:?}");
    }
    for k in (1..20_000).step_by(7) {
        let (parts, steps) = (parts_of_k([64, 64, k]), k.div_ceil(32));
        assert!(parts == 1 || (parts - 1) * steps.div_ceil(parts) < steps, "K {k}: a part of {parts} is empty");
        assert!(parts == 1 || steps / parts >= 15, "K {k}: {parts} parts are short");
    }
}

#[test]
#[should_panic(expected = "matmul shapes")]
fn operands_that_do_not_fit_are_refused() {
    let Some(gpu) = simulators().pop() else { panic!("matmul shapes: no kernels in this build") };
    let arena = Arena::scattered(gpu);
    let (a, b) = (Tensor::zeros(&arena, [4, 8], DType::Bf16), Tensor::zeros(&arena, [4, 8], DType::Bf16));
    let mut c = Tensor::zeros(&arena, [4, 8], DType::Bf16);
    gemm(&arena, &mut c.whole_mut(), Operand::new(&a, 4, 8), Operand::new(&b, 4, 8), WriteMode::Overwrite);
}
