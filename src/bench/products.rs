//! Matrix products, and the ops built on them: what counts is operations, two per multiply-add.

use super::{Row, Run, Size, Stage, Work};
use crate::device::Device;
use crate::device::cpu::{self, Mat, Threads, WriteMode};
use crate::device::gemm::{Operand, gemm, gemm_mma, gemm_rows};
use crate::ops::linear;
use crate::ops::lm_loss::{self, Gradients};
use crate::ops::mlp::{self, Keep, Weights};
use crate::tensor::{Arena, DType, ParamId, Tensor, TensorMut};

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let mut rows = Vec::new();
    // Small, also one whose blocks share K.
    let shapes = size.of(vec![[192, 256, 160], [24, 40, 1128]], vec![[512; 3]], CARD_SHAPES.to_vec());
    // Plain cores take many times as long: the first shape alone.
    let (mechanisms, shapes) = match dtype {
        DType::F32 => (&PLAIN[..], &shapes[..1]),
        _ => (&TENSOR_CORES[..], &shapes[..]),
    };
    for &shape in shapes {
        rows.extend(mechanisms.iter().map(|&(mechanism, layout)| gemm_row(dtype, mechanism, layout, shape)));
    }
    rows.extend(linear_rows(dtype, size.of([96, 128, 192], [2048, 384, 1152], [16_384, 768, 2304])));
    rows.extend(mlp_rows(dtype, size.of([96, 64, 128], [2048, 384, 1024], [16_384, 768, 2048])));
    let [o, k] = size.of([80, 136], [1152, 384], [4096, 4096]);
    let of = match dtype {
        DType::F32 => vec![(8, "naive")],
        _ => vec![(1, "few"), (8, "few"), (size.of(70, 256, 256), "many")],
    };
    rows.extend(of.into_iter().map(|(n, mechanism)| by_rows(dtype, mechanism, [n, o, k])));
    let [n, c] = size.of([64, 96], [2048, 384], [16_384, 768]);
    for v in size.of(vec![520], vec![4096, 32_768], vec![32_768]) {
        rows.extend(lm_loss_rows(dtype, [n, c, v]));
    }
    rows
}

/// A square that fills a card; the feed-forward layer's of 16,384 tokens; the LM head's of a chunk; the gradient of a weight,
/// whose blocks share K.
const CARD_SHAPES: [[usize; 3]; 4] = [[4096; 3], [16_384, 4096, 768], [4096, 32_768, 768], [768, 2304, 16_384]];

/// The products of [`rows`] by the kernels for compute capability 9.0.
pub(super) fn wgmma_rows(size: Size) -> Vec<Row> {
    let shapes = size.of(vec![[192, 256, 160], [136, 136, 1128]], vec![[512; 3]], CARD_SHAPES.to_vec());
    let of = |shape| WGMMA.map(|(mechanism, lies)| gemm_row(DType::Bf16, mechanism, lies, shape));
    shapes.into_iter().flat_map(of).collect()
}

/// Two products forward, of widths C to 2F and F to C, and four backward. Forward moves x, the weights, the hidden values twice,
/// and y; both directions also gate and up, twice as much of the rest, and the gradients of the weights in f32 both ways.
fn mlp_work(dtype: DType, [n, c, f]: [usize; 3]) -> [Work; 2] {
    let (size, product) = (dtype.size_bytes(), 6 * n * c * f);
    let forward = size * (2 * n * c + 3 * c * f + 2 * n * f);
    let both = 2 * forward + size * 4 * n * f + 2 * size_of::<f32>() * 3 * c * f;
    [Work { bytes: forward, flops: product, tokens: 0 }, Work { bytes: both, flops: 3 * product, tokens: 0 }]
}

fn mlp_rows(dtype: DType, shape @ [n, c, f]: [usize; 3]) -> [Row; 2] {
    let extents = [("N", n), ("C", c), ("F", f)];
    let [forward, both] = mlp_work(dtype, shape);
    let inputs = move |stage: &Stage| {
        (stage.normals([n, c], dtype), stage.normals([2 * f, c], dtype), stage.normals([c, f], dtype))
    };
    [
        Row::new(["mlp", "fwd", mechanism(dtype)], dtype, &extents, forward, move |stage| {
            let ((x, gate_up, down), arena) = (inputs(stage), stage.arena.clone());
            Box::new(move || {
                let weights = Weights { gate_up: &gate_up, down: &down };
                vec![mlp::forward(&arena, x.clone(), weights, None, Keep::Nothing).0]
            })
        }),
        // Backward consumes what forward saved, so both are timed.
        Row::new(["mlp", "fwd_bwd", mechanism(dtype)], dtype, &extents, both, move |stage| {
            let ((x, gate_up, down), arena) = (inputs(stage), stage.arena.clone());
            let (dy, mut grads) = (stage.normals([n, c], dtype), stage.grads(dtype, &[&[2 * f, c], &[c, f]]));
            Box::new(move || {
                let weights = Weights { gate_up: &gate_up, down: &down };
                let (y, saved) = mlp::forward(&arena, x.clone(), weights, None, Keep::Everything);
                let [mut dgate_up, mut ddown] = grads.pair_mut(ParamId(0), ParamId(1));
                let saved = saved.expect("everything is kept");
                let dx = mlp::backward(&arena, [&mut dgate_up, &mut ddown], &dy, weights, saved);
                vec![y, dx, grads.flat().clone()]
            })
        }),
    ]
}

/// Whether A's columns and B's rows lie side by side in memory (`ak`, `bk`), or the other way round (`am`, `bn`); whether
/// 16-byte accesses are aligned, without which copies are narrow.
#[derive(Clone, Copy)]
struct Lies {
    a_along_k: bool,
    b_along_k: bool,
    aligned: bool,
}

const fn lies(a_along_k: bool, b_along_k: bool, aligned: bool) -> Lies {
    Lies { a_along_k, b_along_k, aligned }
}

const PLAIN: [(&str, Lies); 1] = [("naive_tiled", lies(true, true, true))];

/// Every layout, then rows at odd addresses.
const TENSOR_CORES: [(&str, Lies); 8] = [
    ("mma_ak_bk", lies(true, true, true)),
    ("mma_ak_bn", lies(true, false, true)),
    ("mma_am_bk", lies(false, true, true)),
    ("mma_am_bn", lies(false, false, true)),
    ("mma_narrow_ak_bk", lies(true, true, false)),
    ("mma_narrow_ak_bn", lies(true, false, false)),
    ("mma_narrow_am_bk", lies(false, true, false)),
    ("mma_narrow_am_bn", lies(false, false, false)),
];

/// Every layout.
const WGMMA: [(&str, Lies); 4] = [
    ("wgmma_ak_bk", lies(true, true, true)),
    ("wgmma_ak_bn", lies(true, false, true)),
    ("wgmma_am_bk", lies(false, true, true)),
    ("wgmma_am_bn", lies(false, false, true)),
];

/// Every element of A and B read and of C written once; `2 M N K` operations.
fn gemm_work(dtype: DType, [m, n, k]: [usize; 3]) -> Work {
    Work { bytes: dtype.size_bytes() * (m * k + k * n + m * n), flops: 2 * m * n * k, tokens: 0 }
}

fn gemm_row(dtype: DType, mechanism: &'static str, lies: Lies, shape @ [m, n, k]: [usize; 3]) -> Row {
    let extents = [("M", m), ("N", n), ("K", k)];
    Row::new(["gemm", "fwd", mechanism], dtype, &extents, gemm_work(dtype, shape), move |stage| {
        let multiply = if mechanism.starts_with("mma") { gemm_mma } else { gemm };
        gemm_run(stage, dtype, lies, shape, multiply)
    })
}

/// A product whose rows do not depend on each other, as inference makes it: W once, which is what bounds few rows.
fn by_rows(dtype: DType, mechanism: &'static str, [n, o, k]: [usize; 3]) -> Row {
    let extents = [("N", n), ("O", o), ("K", k)];
    let flops = if mechanism == "many" { 2 * n * o * k } else { 0 };
    let work = Work { bytes: (n * k + o * k + n * o) * dtype.size_bytes(), flops, tokens: 0 };
    Row::new(["gemm_rows", "fwd", mechanism], dtype, &extents, work, move |stage| {
        let (x, w, arena) = (stage.normals([n, k], dtype), stage.normals([o, k], dtype), stage.arena.clone());
        Box::new(move || match arena.device() {
            Device::Cpu => vec![linear::forward(&arena, &x, &w)],
            Device::Gpu(_) => {
                let mut y = Tensor::uninit(&arena, [n, o], dtype);
                gemm_rows(&mut y.whole_mut(), None, &x, &w);
                vec![y]
            }
        })
    })
}

/// A product on a device.
type Multiply = fn(&Arena, &mut TensorMut, Operand, Operand, WriteMode);

fn gemm_run(stage: &Stage, dtype: DType, lies: Lies, [m, n, k]: [usize; 3], multiply: Multiply) -> Run {
    let arena = stage.arena.clone();
    // One element further on no 16-byte access is aligned.
    let first = usize::from(!lies.aligned);
    let [a, b] = [m * k, k * n].map(|elems| stage.normals([elems + first], dtype).view(first, [elems]));
    if let Device::Cpu = stage.device() {
        return Box::new(move || {
            let wide = dtype.accumulator();
            let [a, b] = [&a, &b].map(|x| x.cast(&arena, wide));
            let mut c = Tensor::uninit(&arena, [m, n], wide);
            let (a, b) = (a.as_slice::<f32>(), b.as_slice::<f32>());
            let a = if lies.a_along_k { Mat::new(a, m, k) } else { Mat::new(a, k, m).t() };
            let b = if lies.b_along_k { Mat::new(b, n, k).t() } else { Mat::new(b, k, n) };
            cpu::matmul(c.as_mut_slice(), a, b, WriteMode::Overwrite, Threads::All);
            vec![c.cast(&arena, dtype)]
        });
    }
    Box::new(move || {
        let mut c = Tensor::uninit(&arena, [m, n], dtype);
        let left = if lies.a_along_k { Operand::new(&a, m, k) } else { Operand::new(&a, k, m).t() };
        let right = if lies.b_along_k { Operand::new(&b, n, k).t() } else { Operand::new(&b, k, n) };
        multiply(&arena, &mut c.whole_mut(), left, right, WriteMode::Overwrite);
        vec![c]
    })
}

/// One product forward, two backward. Forward moves x, the weight and y; backward dy twice, x, the weight and dx, and reads and
/// writes the weight's gradient in f32.
fn linear_work(dtype: DType, [n, i, o]: [usize; 3]) -> [Work; 2] {
    let (size, product) = (dtype.size_bytes(), 2 * n * i * o);
    let forward = size * (n * i + o * i + n * o);
    let backward = size * (2 * n * o + 2 * n * i + o * i) + 2 * size_of::<f32>() * o * i;
    [Work { bytes: forward, flops: product, tokens: 0 }, Work { bytes: backward, flops: 2 * product, tokens: 0 }]
}

/// What multiplies in `dtype`.
pub(super) fn mechanism(dtype: DType) -> &'static str {
    if dtype == DType::F32 { "naive_tiled" } else { "mma" }
}

fn linear_rows(dtype: DType, shape @ [n, i, o]: [usize; 3]) -> [Row; 2] {
    let extents = [("N", n), ("I", i), ("O", o)];
    let [forward, backward] = linear_work(dtype, shape);
    [
        Row::new(["linear", "fwd", mechanism(dtype)], dtype, &extents, forward, move |stage| {
            let (x, w, arena) = (stage.normals([n, i], dtype), stage.normals([o, i], dtype), stage.arena.clone());
            Box::new(move || vec![linear::forward(&arena, &x, &w)])
        }),
        Row::new(["linear", "bwd", mechanism(dtype)], dtype, &extents, backward, move |stage| {
            let saved = linear::Saved { x: stage.normals([n, i], dtype) };
            let (w, dy) = (stage.normals([o, i], dtype), stage.normals([n, o], dtype));
            let (arena, mut grads) = (stage.arena.clone(), stage.grads(dtype, &[&[o, i]]));
            Box::new(move || {
                let dx = linear::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved);
                vec![dx, grads.flat().clone()]
            })
        }),
    ]
}

/// One product without gradients, three with; exponentials are not counted. Moved: x and the weight; with gradients also dx, and
/// the weight's gradient in f32 both ways. Logits need not leave the chip.
fn lm_loss_work(dtype: DType, [n, c, v]: [usize; 3]) -> [Work; 2] {
    let (size, product) = (dtype.size_bytes(), 2 * n * c * v);
    let forward = size * (n * c + v * c);
    let both = forward + size * n * c + 2 * size_of::<f32>() * v * c;
    [Work { bytes: forward, flops: product, tokens: 0 }, Work { bytes: both, flops: 3 * product, tokens: 0 }]
}

fn lm_loss_rows(dtype: DType, shape @ [n, c, v]: [usize; 3]) -> [Row; 2] {
    let extents = [("N", n), ("C", c), ("V", v)];
    let [forward, both] = lm_loss_work(dtype, shape);
    let inputs = move |stage: &Stage| (stage.normals([n, c], dtype), stage.normals([v, c], dtype), stage.ids(n, v));
    [
        Row::new(["lm_loss", "fwd", "block_per_row"], dtype, &extents, forward, move |stage| {
            let ((x, w, targets), arena) = (inputs(stage), stage.arena.clone());
            Box::new(move || vec![lm_loss::forward(&arena, &x, &w, &targets, None, None).0])
        }),
        Row::new(["lm_loss", "fwd_bwd", "block_per_row"], dtype, &extents, both, move |stage| {
            let ((x, w, targets), arena) = (inputs(stage), stage.arena.clone());
            let mut grads = stage.grads(dtype, &[&[v, c]]);
            Box::new(move || {
                let wanted = Gradients { scale: (1.0 / n as f64).into(), dweight: grads.view_mut(ParamId(0)) };
                let (losses, dx) = lm_loss::forward(&arena, &x, &w, &targets, None, Some(wanted));
                [Some(losses), dx, Some(grads.flat().clone())].into_iter().flatten().collect()
            })
        }),
    ]
}
