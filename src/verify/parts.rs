//! The cases of the ops that the parts beyond the backbone are made of.

use super::{Cases, Check, Extent, OpCase, Outcome, ROWS, at, close, gradient, grads, integers, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::blend::{self, Options, Source};
use crate::ops::concept_loss::{self, Concepts, Windows};
use crate::ops::hypercube;
use crate::ops::lm_loss::IGNORE;
use crate::ops::select_rows::{self, Stride};
use crate::tensor::{Arena, ParamId, Span, Tensor};

const EPS: f64 = 1e-5;

fn span(i: u32) -> Span {
    ParamId(i).into()
}

/// Three streams blended by weights from the first, the third or none of them; the output is the blend and its norm.
pub fn blend(extent: Extent, check: Check) -> Cases {
    let shapes: Vec<[usize; 2]> = ROWS.iter().copied().chain([[9, 2500], [2, 8192]]).collect();
    let sources = [Source::Third, Source::First, Source::Nothing];
    let all: Vec<_> = shapes.into_iter().zip(sources.into_iter().cycle()).collect();
    pick(&all, 3, extent).try_for_each(|&(shape, source)| blend_case(shape, source, check))
}

fn blend_case([n, c]: [usize; 2], source: Source, check: Check) -> Cases {
    let options = Options { source, lean: [0.25, 0.0, -0.5], eps: EPS };
    let has_source = source != Source::Nothing;
    // Scores of some tenths whatever the width, so that no weight vanishes.
    let controller = normals("blend controller", 3 * c).into_iter().map(|x| x / (c as f64).sqrt()).collect();
    let stream = |k: usize| normals(&format!("blend stream {k}"), n * c);
    let mut inputs = vec![stream(0), stream(1), stream(2), normals("blend bias", 3), normals("blend gain", c)];
    inputs.extend(has_source.then_some(controller));
    check(&OpCase {
        name: format!("blend {n}x{c} by {source:?}"),
        inputs,
        longest_sum: n.max(c),
        run: &|arena, dtype, inputs, dy| {
            let streams = [0, 1, 2].map(|k: usize| at(arena, dtype, [n, c], &inputs[k]));
            let (bias, gain) = (at(arena, dtype, [3], &inputs[3]), at(arena, dtype, [c], &inputs[4]));
            let controller = inputs.get(5).map(|values| at(arena, dtype, [3, c], values));
            let weights = blend::Weights { controller: controller.as_ref(), bias: &bias, gain: &gain };
            let (y, x, saved) = blend::forward(arena, streams, weights, options);
            let mut grads = grads(arena, dtype, &[bias.shape(), gain.shape(), [3, c].into()]);
            let [dbias, dgain, dcontroller] = grads.disjoint_mut([span(0), span(1), span(2)]);
            let controller = has_source.then_some(dcontroller);
            let gradients = blend::Gradients { controller, bias: dbias, gain: dgain };
            let (dy, dx) = dy.split_at(n * c);
            let [dy, dx] = [dy, dx].map(|values| Some(at(arena, dtype, [n, c], values)));
            let dh = blend::backward(arena, gradients, dy, dx, weights, &saved);
            let mut gradients: Vec<Vec<f64>> = dh.iter().map(|d| d.to_f64()).collect();
            gradients.extend((0..2 + u32::from(has_source)).map(|i| gradient(&grads, i)));
            Outcome { output: [y.to_f64(), x.to_f64()].concat(), gradients }
        },
        reference: &|inputs| {
            let controller = inputs.get(5).map_or(&[][..], |values| values);
            let streams = [&inputs[0][..], &inputs[1], &inputs[2]];
            blend::reference(streams, [controller, &inputs[3], &inputs[4]], options).concat()
        },
    })
}

/// Rows, width and stride of selections: whole rows, one row of many, none in the last stride.
const SELECTIONS: [(usize, usize, Stride); 5] = [
    (1, 3, Stride { t: 1, first: 0, every: 1 }),
    (9, 64, Stride { t: 3, first: 2, every: 5 }),
    (34, 97, Stride { t: 17, first: 4, every: 8 }),
    (40, 200, Stride { t: 20, first: 0, every: 3 }),
    (131, 8, Stride { t: 131, first: 3, every: 7 }),
];

/// Every so manieth row.
pub fn select_rows(extent: Extent, check: Check) -> Cases {
    pick(&SELECTIONS, 2, extent).try_for_each(|&(n, c, stride)| {
        check(&OpCase {
            name: format!("select_rows {n}x{c} {stride:?}"),
            inputs: vec![normals("select_rows", n * c)],
            longest_sum: 1,
            run: &|arena, dtype, inputs, dy| {
                let y = select_rows::forward(arena, &at(arena, dtype, [n, c], &inputs[0]), stride);
                let dx = select_rows::backward(arena, &at(arena, dtype, y.shape(), dy), n, stride);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| select_rows::reference(&inputs[0], c, stride),
        })
    })
}

/// Rows of logits, width of codes, concepts and width of windows.
const CONCEPTS: [[usize; 4]; 4] = [[1, 1, 2, 1], [5, 7, 30, 4], [19, 16, 131, 16], [9, 64, 700, 32]];

/// The loss of bags against logits, with its gradients, which are formed by a factor of 0.37.
pub fn concept_loss(extent: Extent, check: Check) -> Cases {
    pick(&CONCEPTS, 2, extent).try_for_each(|&size| concept_case(size, check))
}

fn concept_case([m, r, nc, w]: [usize; 4], check: Check) -> Cases {
    const SCALE: f64 = 0.37;
    let mut windows = integers("concept windows", m * w, nc);
    // One is empty, one half so, one has a concept many times.
    let ignored = (0..m * w).filter(|i| i / w == 1 || (i / w == 2 && i % w < w / 2));
    ignored.for_each(|i| windows[i] = IGNORE);
    (0..m * w).filter(|i| i / w == 3 && i % 2 == 0).for_each(|i| windows[i] = 1);
    let (bias, idf) = (normals("concept bias", nc), normals("concept idf", nc).iter().map(|x| 1.5 + x.abs()).collect());
    let [bias, idf]: [Vec<f64>; 2] = [bias, idf];
    check(&OpCase {
        name: format!("concept_loss {m} x {r}, {nc} concepts, windows of {w}"),
        inputs: vec![normals("concept x", m * r), normals("concept codes", nc * r)],
        longest_sum: nc.max(m),
        run: &|arena, dtype, inputs, dy| {
            let (x, codes) = (at(arena, dtype, [m, r], &inputs[0]), at(arena, dtype, [nc, r], &inputs[1]));
            let [bias, idf] = [&bias, &idf].map(|values| at(arena, dtype.accumulator(), [nc], values));
            let windows = Tensor::from_slice(arena, [m, w], &windows);
            let mut grads = grads(arena, dtype, &[codes.shape()]);
            let (scale, dcodes) = (SCALE * (dy[0] + dy[1]), Some(grads.view_mut(ParamId(0))));
            let wanted = concept_loss::Gradients { scale: scale.into(), dcodes };
            let concepts = Concepts { codes: &codes, bias: &bias, idf: &idf };
            let (losses, dx) = concept_loss::forward_in_chunks(arena, &x, concepts, &windows, Some(wanted), 4);
            let (plain, _) = concept_loss::forward_in_chunks(arena, &x, concepts, &windows, None, 4);
            let total = |losses: Tensor| losses.to_f64().iter().sum::<f64>() * SCALE;
            let dx = dx.map_or(vec![], |dx| dx.to_f64());
            Outcome { output: vec![total(losses), total(plain)], gradients: vec![dx, gradient(&grads, 0)] }
        },
        reference: &|inputs| {
            let losses = concept_loss::reference(&inputs[0], &inputs[1], r, [&bias, &idf], &windows, w);
            vec![losses.iter().sum::<f64>() * SCALE; 2]
        },
    })
}

/// Windows on a GPU are those of the CPU, in rows, documents and strides that divide nothing.
///
/// # Errors
/// The first that is not, or what the device says.
pub fn windows_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 20).map_err(|error| error.to_string())?;
    let all = [(3, 37, 16), (1, 9, 4), (2, 300, 32)];
    pick(&all, 0, extent).try_for_each(|&(rows, t, window)| {
        let tokens = integers("window tokens", rows * t, 1000);
        let starts: Vec<u32> = (0..rows * t).map(|n| (n % t / 11 * 11) as u32).collect();
        let windows = Windows { stride: Stride { t, first: 2, every: 5 }, window, concepts: 701 };
        for documents in [None, Some(&starts)] {
            let run = |arena: &Arena| {
                let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
                let starts = documents.map(|starts| ids(starts));
                windows.gather(arena, &ids(&tokens), starts.as_ref()).to_f64()
            };
            let (want, got) = (run(&host), run(&Arena::scattered(gpu)));
            told(gpu, "windows")?;
            close(&format!("windows of {rows} x {t}"), &got, &want, 0.0)?;
        }
        Ok(())
    })
}

/// Rows and bits of codes: one group and two, a whole one and not. (A row of one bit has no direction to turn to, and one row
/// alone no entropy beyond its own.)
const CODES: [[usize; 2]; 5] = [[2, 2], [5, 3], [19, 16], [70, 8], [33, 11]];

/// Codes, whose gradient is that of rows at unit length.
pub fn hypercube(extent: Extent, check: Check) -> Cases {
    pick(&CODES, 2, extent).try_for_each(|&[n, k]| {
        let base = normals("hypercube u", n * k);
        let code = hypercube::reference(&base, k);
        let unit = hypercube::reference_unit(&base, k);
        check(&OpCase {
            name: format!("hypercube code {n}x{k}"),
            inputs: vec![base],
            longest_sum: k.max(2),
            run: &|arena, dtype, inputs, dy| {
                let u = at(arena, dtype, [n, k], &inputs[0]);
                let b = hypercube::forward(arena, &u);
                let du = hypercube::backward(arena, &at(arena, dtype, [n, k], dy), &hypercube::Saved { u });
                Outcome { output: b.to_f64(), gradients: vec![du.to_f64()] }
            },
            // The signs are those of the base point: what is differentiated is the row at unit length.
            reference: &|inputs| {
                let moved = hypercube::reference_unit(&inputs[0], k);
                code.iter().zip(&unit).zip(moved).map(|((b, v), moved)| b + (moved - v)).collect()
            },
        })
    })
}

/// The entropy loss, duller and sharper than training has it, with its gradient. (Below that the two entropies cancel, and a bound relative
/// to their difference means nothing.)
pub fn code_entropy(extent: Extent, check: Check) -> Cases {
    let all: Vec<_> = CODES.iter().copied().zip([10.0, 6.0, 10.0, 40.0, 20.0]).collect();
    pick(&all, 2, extent).try_for_each(|&([n, k], tau)| {
        check(&OpCase {
            name: format!("code entropy {n}x{k} at {tau}"),
            inputs: vec![normals("entropy u", n * k)],
            // Probabilities of codes are products of 8, and tau multiplies what rounding did to a row.
            longest_sum: (n * k).max(8 * tau as usize),
            run: &|arena, dtype, inputs, dy| {
                let u = at(arena, dtype, [n, k], &inputs[0]);
                let factor = 0.37 * (dy[0] + dy[1]);
                let (loss, du) = hypercube::entropy(arena, &u, &tau.into(), Some(&factor.into()));
                let (plain, _) = hypercube::entropy(arena, &u, &tau.into(), None);
                let output = [loss, plain].map(|loss| 0.37 * loss.to_f64()[0]).to_vec();
                Outcome { output, gradients: vec![du.map_or(vec![], |du| du.to_f64())] }
            },
            reference: &|inputs| vec![0.37 * hypercube::reference_entropy(&inputs[0], k, tau); 2],
        })
    })
}
