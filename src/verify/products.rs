//! The cases of matrix products and of the ops built on them.

use super::{Cases, Check, Extent, OpCase, Outcome, at, close, gradient, grads, integers, normals, pick, told, unit};
use crate::device::cpu::WriteMode;
use crate::device::gemm::{Operand, gemm, gemm_naive, gemm_onto, gemm_rows};
use crate::device::gpu::Gpu;
use crate::ops::mlp::{self, Keep, Weights};
use crate::ops::{linear, lm_loss};
use crate::tensor::{Arena, DType, ParamId, Tensor};

/// Linear layers, `N x I` to `O`.
pub fn linear(extent: Extent, check: Check) -> Cases {
    const SHAPES: [[usize; 3]; 5] = [[1, 1, 1], [1, 40, 3], [3, 7, 5], [17, 97, 33], [65, 130, 200]];
    pick(&SHAPES, 3, extent).try_for_each(|&[n, i, o]| {
        check(&OpCase {
            name: format!("linear {n}x{i} to {o}"),
            inputs: vec![normals("linear x", n * i), normals("linear w", o * i)],
            longest_sum: n.max(i).max(o),
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (at(arena, dtype, [n, i], &inputs[0]), at(arena, dtype, [o, i], &inputs[1]));
                let y = linear::forward(arena, &x, &w);
                let mut grads = grads(arena, dtype, &[w.shape()]);
                let (dy, saved) = (at(arena, dtype, [n, o], dy), linear::Saved { x });
                let dx = linear::backward(arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0)] }
            },
            reference: &|inputs| linear::reference(&inputs[0], &inputs[1], i),
        })
    })
}

/// The feed-forward layer, `[N, C, F]`, with and without a residual; the last three take the fused kernels in bf16 (tiles full
/// and not, more than one each way). What it makes does not depend on what is kept of it.
pub fn mlp(extent: Extent, check: Check) -> Cases {
    const SIZES: [[usize; 3]; 6] = [[1, 1, 1], [3, 7, 5], [17, 33, 20], [5, 8, 16], [131, 40, 72], [140, 72, 200]];
    let with = |&size: &[usize; 3]| [false, true].map(|onto| (size, onto));
    pick(&SIZES, 4, extent).flat_map(with).try_for_each(|([n, c, f], onto)| {
        let scaled = |name: &str, elems: usize, terms: usize| -> Vec<f64> {
            normals(name, elems).iter().map(|w| w / (terms as f64).sqrt()).collect()
        };
        check(&OpCase {
            name: format!("mlp {n}x{c} over {f}, residual {onto}"),
            inputs: vec![
                normals("mlp x", n * c),
                scaled("mlp gate up", 2 * f * c, c),
                scaled("mlp down", c * f, f),
                normals("mlp residual", if onto { n * c } else { 1 }),
            ],
            longest_sum: n.max(2 * f).max(c),
            run: &|arena, dtype, inputs, dy| {
                let x = at(arena, dtype, [n, c], &inputs[0]);
                let (gate_up, down) = (at(arena, dtype, [2 * f, c], &inputs[1]), at(arena, dtype, [c, f], &inputs[2]));
                let weights = Weights { gate_up: &gate_up, down: &down };
                let residual = onto.then(|| at(arena, dtype, [n, c], &inputs[3]));
                let (y, saved) = mlp::forward(arena, x.clone(), weights, residual.as_ref(), Keep::Everything);
                let (same, nothing) = mlp::forward(arena, x, weights, residual.as_ref(), Keep::Nothing);
                assert!(nothing.is_none() && same.to_bytes() == y.to_bytes(), "nothing kept, other bits");
                let mut grads = grads(arena, dtype, &[gate_up.shape(), down.shape()]);
                let [mut dgate_up, mut ddown] = grads.pair_mut(ParamId(0), ParamId(1));
                let (dy, saved) = (at(arena, dtype, [n, c], dy), saved.expect("everything is kept"));
                let dx = mlp::backward(arena, [&mut dgate_up, &mut ddown], &dy, weights, saved);
                let dresidual = if onto { dy.to_f64() } else { vec![0.0] };
                let gradients = vec![dx.to_f64(), gradient(&grads, 0), gradient(&grads, 1), dresidual];
                Outcome { output: y.to_f64(), gradients }
            },
            reference: &|inputs| {
                let y = mlp::reference(&inputs[0], &inputs[1], &inputs[2], c);
                let residual = |i: usize| if onto { inputs[3][i] } else { 0.0 };
                y.iter().enumerate().map(|(i, y)| y + residual(i)).collect()
            },
        })
    })
}

/// Head and loss, `N x C` over `V` entries, in chunks of all rows, of a part that divides them, and of one that does not; a target
/// counts for nothing. The gradients come with one factor for all rows, so the output is the total: with gradients, and without.
pub fn lm_loss(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    let shapes = [
        (1, 1, 2, None, 16),
        (5, 7, 13, Some(2.0), 16),
        (33, 20, 97, None, 11),
        (70, 3, 130, Some(15.0), 32),
        (9, 5, 1025, None, 4),
    ];
    pick(&shapes, 2, extent).try_for_each(|&(n, c, v, cap, rows)| {
        let mut targets = integers("lm targets", n, v);
        if n > 2 {
            targets[1] = lm_loss::IGNORE;
        }
        check(&OpCase {
            name: format!("lm_loss {n}x{c} of {v} cap {cap:?}"),
            inputs: vec![normals("lm x", n * c), normals("lm w", v * c)],
            longest_sum: v,
            run: &|arena, dtype, inputs, dy| {
                let (x, w) = (at(arena, dtype, [n, c], &inputs[0]), at(arena, dtype, [v, c], &inputs[1]));
                let (mut grads, ids) = (grads(arena, dtype, &[w.shape()]), Tensor::from_slice(arena, [n], &targets));
                let scale = FACTOR * (dy[0] + dy[1]);
                let wanted = lm_loss::Gradients { scale: scale.into(), dweight: grads.view_mut(ParamId(0)) };
                let (losses, dx) = lm_loss::forward_in_chunks(arena, &x, &w, &ids, cap, Some(wanted), rows);
                let (plain, _) = lm_loss::forward_in_chunks(arena, &x, &w, &ids, cap, None, rows);
                let total = |losses: Tensor| losses.to_f64().iter().sum::<f64>() * FACTOR;
                let dx = dx.map_or(vec![], |dx| dx.to_f64());
                Outcome { output: vec![total(losses), total(plain)], gradients: vec![dx, gradient(&grads, 0)] }
            },
            reference: &|inputs| {
                let losses = lm_loss::reference(&inputs[0], &inputs[1], c, &targets, cap);
                vec![losses.iter().sum::<f64>() * FACTOR; 2]
            },
        })
    })
}

/// The same with a product of low rank on top: as if its rows stood behind those of the head.
pub fn lm_loss_low_rank(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    let shapes = [(5, 7, 3, 13, Some(2.0), 16), (33, 20, 5, 97, None, 11), (9, 6, 16, 300, Some(15.0), 4)];
    pick(&shapes, 2, extent).try_for_each(|&(n, c, r, v, cap, rows)| {
        let mut targets = integers("low-rank targets", n, v);
        targets[1] = lm_loss::IGNORE;
        check(&OpCase {
            name: format!("lm_loss {n}x{c} and {r} of {v} cap {cap:?}"),
            inputs: vec![
                normals("lm x", n * c),
                normals("lm w", v * c),
                normals("low-rank x", n * r),
                normals("low-rank codes", v * r),
            ],
            longest_sum: v,
            run: &|arena, dtype, inputs, dy| {
                let of = |i: usize, shape: [usize; 2]| at(arena, dtype, shape, &inputs[i]);
                let (x, w, low, codes) = (of(0, [n, c]), of(1, [v, c]), of(2, [n, r]), of(3, [v, r]));
                let (mut grads, ids) =
                    (grads(arena, dtype, &[w.shape(), codes.shape()]), Tensor::from_slice(arena, [n], &targets));
                let scale = FACTOR * (dy[0] + dy[1]);
                let judge = |gradients, dcodes| {
                    let low_rank = Some(lm_loss::LowRank { x: &low, codes: &codes, dcodes });
                    let operands = lm_loss::Operands { x: &x, weight: &w, low_rank, softcap: cap };
                    lm_loss::judge(arena, operands, &ids, gradients, rows, lm_loss::Report::Losses)
                };
                let [dweight, dcodes] = grads.pair_mut(ParamId(0), ParamId(1));
                let judged = judge(Some(lm_loss::Gradients { scale: scale.into(), dweight }), Some(dcodes));
                let plain = judge(None, None);
                let total = |losses: Tensor| losses.to_f64().iter().sum::<f64>() * FACTOR;
                let [dx, dlow] = [judged.dx, judged.dx_low].map(|dx| dx.map_or(vec![], |dx| dx.to_f64()));
                let gradients = vec![dx, gradient(&grads, 0), dlow, gradient(&grads, 1)];
                Outcome { output: vec![total(judged.losses), total(plain.losses)], gradients }
            },
            reference: &|inputs| {
                let join = |a: &[f64], b: &[f64]| {
                    a.chunks(c).zip(b.chunks(r)).flat_map(|(a, b)| [a, b].concat()).collect::<Vec<f64>>()
                };
                let (x, w) = (join(&inputs[0], &inputs[2]), join(&inputs[1], &inputs[3]));
                let losses = lm_loss::reference(&x, &w, c + r, &targets, cap);
                vec![losses.iter().sum::<f64>() * FACTOR; 2]
            },
        })
    })
}

/// `a [m, k] b [k, n]` in plain loops.
pub fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|x| a[i / n * k + x] * b[x * n + i % n]).sum()).collect()
}

fn transposed(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// `M N K`. In bf16 rows lie 16, 8, 4 and 2 bytes apart, of A and of B; sizes divide no tile, there is more than one tile each
/// way, and fewer and more steps along K than the pipeline has stages. The last two have K in parts.
pub const GEMM: [[usize; 3]; 11] = [
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

/// The same where `wgmma` multiplies if the device has it: sizes that fill its tiles and that do not, several tiles for a block, and K
/// that is a multiple of a step, that ends inside one, that fills the ring more than once, and in parts.
pub const WIDE: [[usize; 3]; 5] = [[128, 256, 64], [72, 136, 8], [200, 272, 72], [136, 520, 200], [144, 136, 1080]];

/// Types of the operands and of the result of products that there are kernels for.
pub const GEMM_TYPES: [[DType; 2]; 3] =
    [[DType::F32, DType::F32], [DType::Bf16, DType::Bf16], [DType::Bf16, DType::F32]];

/// Matrix products on a GPU: every transpose and type, both write modes, added to another matrix with scales of both sides, and
/// by the twin on plain cores.
///
/// # Errors
/// The first element that is wrong, or what the device says.
pub fn gemm_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let mut sizes = pick(&GEMM, 7, extent).chain(pick(&WIDE, 2, extent));
    sizes.try_for_each(|&size| GEMM_TYPES.into_iter().try_for_each(|types| gemm_case(gpu, size, types).map(|_| ())))
}

/// One size in every transpose; the bits of all results but the twin's.
///
/// # Errors
/// As [`gemm_on`].
pub fn gemm_case(gpu: &'static Gpu, size @ [m, n, k]: [usize; 3], [from, to]: [DType; 2]) -> Result<Vec<u8>, String> {
    let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
    let rounded = |values: &[f64], dtype| at(&host, dtype, [values.len()], values).to_f64();
    let (a, b) = (rounded(&normals("gemm a", m * k), from), rounded(&normals("gemm b", k * n), from));
    let d = rounded(&normals("gemm d", m * n), to);
    let once = product(&a, &b, size);
    let twice: Vec<f64> = once.iter().map(|x| 2.0 * x).collect();
    let onto: Vec<f64> = once.iter().zip(&d).map(|(p, d)| -0.75 * p + 2.5 * d).collect();
    let bound = 4.0 * unit(to) * (k as f64).sqrt();
    let mut bits = Vec::new();
    for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
        let arena = Arena::scattered(gpu);
        let make = |x: &[f64], rows: usize, cols: usize, flip: bool| match flip {
            false => at(&arena, from, [rows, cols], x),
            true => at(&arena, from, [cols, rows], &transposed(x, rows, cols)),
        };
        let (ta, tb) = (make(&a, m, k, a_t), make(&b, k, n, b_t));
        let left = if a_t { Operand::new(&ta, k, m).t() } else { Operand::new(&ta, m, k) };
        let right = if b_t { Operand::new(&tb, n, k).t() } else { Operand::new(&tb, k, n) };
        // Memory that nobody has written: overwriting must not read it.
        let mut c = Tensor::uninit(&arena, [m, n], to);
        let what = format!("gemm {size:?} {from} to {to}, transposed {a_t} {b_t}");
        gemm(&arena, &mut c.whole_mut(), left, right, WriteMode::Overwrite);
        close(&what, &c.to_f64(), &once, bound)?;
        bits.extend(c.to_bytes());
        gemm(&arena, &mut c.whole_mut(), left, right, WriteMode::Accumulate);
        close(&format!("{what}, added"), &c.to_f64(), &twice, bound)?;
        bits.extend(c.to_bytes());
        let mut c = Tensor::uninit(&arena, [m, n], to);
        gemm_onto(&arena, &mut c.whole_mut(), &at(&arena, to, [m, n], &d), left, right, [-0.75, 2.5]);
        close(&format!("{what}, onto another"), &c.to_f64(), &onto, bound)?;
        bits.extend(c.to_bytes());
        let mut c = Tensor::uninit(&arena, [m, n], to);
        gemm_naive(&mut c.whole_mut(), left, right, WriteMode::Overwrite);
        close(&format!("{what}, on plain cores"), &c.to_f64(), &once, bound)?;
        gemm_naive(&mut c.whole_mut(), left, right, WriteMode::Accumulate);
        close(&format!("{what}, added on plain cores"), &c.to_f64(), &twice, bound)?;
        told(gpu, &what)?;
    }
    Ok(bits)
}

/// Rows, columns of W and K of products by rows: one row, eight, more than eight, more than one block of 64, K that ends inside a piece, and
/// that no vector divides.
const BY_ROWS: [[usize; 3]; 6] = [[1, 48, 64], [8, 17, 136], [9, 33, 40], [70, 100, 456], [3, 5, 7], [65, 20, 33]];

/// Products whose rows do not depend on each other: right, and bit for bit those of each row alone and of the first nine.
///
/// # Errors
/// The first element that is wrong, rows that depend on others, or what the device says.
pub fn gemm_rows_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
    let mut cases = pick(&BY_ROWS, 2, extent).flat_map(|size| [(size, DType::F32), (size, DType::Bf16)]);
    cases.try_for_each(|(&[n, o, k], dtype)| {
        let rounded = |name: &str, elems: usize| at(&host, dtype, [elems], &normals(name, elems)).to_f64();
        let (x, w, d) = (rounded("rows x", n * k), rounded("rows w", o * k), rounded("rows d", n * o));
        let once = crate::ops::linear::reference(&x, &w, k);
        let onto: Vec<f64> = once.iter().zip(&d).map(|(p, d)| p + d).collect();
        let arena = Arena::scattered(gpu);
        let weight = at(&arena, dtype, [o, k], &w);
        let run = |rows: std::ops::Range<usize>, residual: bool| {
            let part = |of: &[f64], cols: usize| of[rows.start * cols..rows.end * cols].to_vec();
            let d = residual.then(|| at(&arena, dtype, [rows.len(), o], &part(&d, o)));
            let mut y = Tensor::uninit(&arena, [rows.len(), o], dtype);
            gemm_rows(&mut y.whole_mut(), d.as_ref(), &at(&arena, dtype, [rows.len(), k], &part(&x, k)), &weight);
            y
        };
        let (what, bound) = (format!("rows {:?} {dtype}", [n, o, k]), 4.0 * unit(dtype) * (k as f64).sqrt());
        let all = run(0..n, false);
        close(&what, &all.to_f64(), &once, bound)?;
        close(&format!("{what}, added"), &run(0..n, true).to_f64(), &onto, bound)?;
        let alone: Vec<u8> = (0..n).flat_map(|row| run(row..row + 1, false).to_bytes()).collect();
        let first = run(0..n.min(9), false).to_bytes();
        told(gpu, &what)?;
        if alone != all.to_bytes() || !alone.starts_with(&first) {
            return Err(format!("{what}: rows depend on how many there are"));
        }
        Ok(())
    })
}
