//! The cases of reading banks.

use super::{Cases, Check, Extent, OpCase, Outcome, at, close, gradient, grads, integers, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::bank_product::{self, Side};
use crate::ops::top_k_softmax::{self, Options, Sight};
use crate::ops::{bank_write, segment_mean};
use crate::tensor::{Arena, DType, ParamId, Tensor};

/// Rows, entries and entries of a read: one entry, fewer than are read, one read, as many as lanes, many.
const READS: [[usize; 3]; 6] = [[1, 1, 1], [9, 5, 8], [7, 97, 1], [19, 64, 32], [33, 200, 8], [3, 1030, 5]];

/// Softmax over the highest scores, of all entries and of those that came before a row, of which the second sees none.
pub fn top_k_softmax(extent: Extent, check: Check) -> Cases {
    pick(&READS, 4, extent)
        .try_for_each(|&size| [false, true].into_iter().try_for_each(|some| read_case(size, some, check)))
}

/// When each entry of three banks came, or one's where the rows do not fall to three, and what each row sees.
fn sight_of([n, m, _]: [usize; 3]) -> [Vec<u32>; 2] {
    let banks = if n.is_multiple_of(3) { 3 } else { 1 };
    let limit = |(i, limit): (usize, u32)| if i == 1 { 0 } else { limit };
    [
        integers("top_k born", banks * m, m),
        integers("top_k limits", n, m + 1).into_iter().enumerate().map(limit).collect(),
    ]
}

fn read_case(size @ [n, m, top]: [usize; 3], is_part_seen: bool, check: Check) -> Cases {
    let options = Options { top, scale: 0.8 };
    let sight = is_part_seen.then(|| sight_of(size));
    let is_seen = |row: usize, entry: usize| {
        let of = |[born, limits]: &[Vec<u32>; 2]| born[row / (n * m / born.len()) * m + entry] < limits[row];
        sight.as_ref().is_none_or(of)
    };
    check(&OpCase {
        name: format!("top_k_softmax {n}x{m}, {top} of {}", if is_part_seen { "those seen" } else { "all" }),
        inputs: vec![normals("top_k scores", n * m)],
        longest_sum: top,
        run: &|arena, dtype, inputs, dy| {
            let ids = |values: &Vec<u32>| Tensor::from_slice(arena, [values.len()], values);
            let tensors = sight.as_ref().map(|[born, limits]| (ids(born), ids(limits)));
            let sight = tensors.as_ref().map(|(born, limits)| Sight { born, limits, t: 1 });
            let scores = at(arena, dtype, [n, m], &inputs[0]);
            let (y, saved) = top_k_softmax::forward(arena, &scores, sight, options);
            let ds = top_k_softmax::backward(arena, &at(arena, dtype, [n, m], dy), &saved, None);
            Outcome { output: y.to_f64(), gradients: vec![ds.to_f64()] }
        },
        reference: &|inputs| top_k_softmax::reference(&inputs[0], m, is_seen, options),
    })
}

/// What each entry is worth, on a GPU against the CPU in f64.
pub fn top_k_statistics_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let sizes = [[9, 5, 8], [300, 70, 4], [520, 300, 8]];
    for &[n, m, top] in pick(&sizes, 1, extent) {
        let (scores, da) = (normals("statistics scores", n * m), normals("statistics da", n * m));
        for dtype in [DType::F32, DType::Bf16] {
            let host = Arena::new(64 << 20).map_err(|e| e.to_string())?;
            let rounded = [&scores, &da].map(|values| Tensor::from_f64(&host, [n * m], dtype, values).to_f64());
            let run = |arena: &Arena, dtype: DType| {
                let [scores, da] = [&rounded[0], &rounded[1]].map(|values| at(arena, dtype, [n, m], values));
                let (_, saved) = top_k_softmax::forward(arena, &scores, None, Options { top, scale: 0.8 });
                let mut grads = grads(arena, dtype, &[[2, m].into()]);
                // Twice: it is added to what is there.
                for _ in 0..2 {
                    top_k_softmax::backward(arena, &da, &saved, Some(grads.view_mut(ParamId(0))));
                }
                gradient(&grads, 0)
            };
            let (want, got) = (run(&host, DType::F64), run(&Arena::scattered(gpu), dtype));
            let name = format!("top_k_softmax statistics {n}x{m} {dtype}");
            told(gpu, &name)?;
            // Sums of n terms in f32 from the same rounded inputs.
            for (got, want) in got.chunks(m).zip(want.chunks(m)) {
                close(&name, got, want, 16.0 * super::unit(DType::F32) * (n as f64).sqrt())?;
            }
        }
    }
    Ok(())
}

/// Rows, banks, entries and width: one of each, banks that are read by several rows, wide ones.
const PRODUCTS: [[usize; 4]; 4] = [[1, 1, 1, 1], [6, 3, 5, 7], [10, 2, 40, 33], [66, 3, 72, 64]];

/// Rows by the rows and by the columns of their banks.
pub fn bank_product(extent: Extent, check: Check) -> Cases {
    pick(&PRODUCTS, 2, extent).try_for_each(|&[n, banks, m, d]| {
        [Side::Rows, Side::Columns].into_iter().try_for_each(|side| {
            let bank = normals("bank_product bank", banks * m * d);
            let (i, o) = if side == Side::Rows { (d, m) } else { (m, d) };
            // The bank is no input that gets a gradient, but rounded as one.
            let rounded = |arena: &Arena, dtype: DType| at(arena, dtype, [banks, m, d], &bank);
            check(&OpCase {
                name: format!("bank_product {n}x{i} by {side:?} of {banks} banks"),
                inputs: vec![normals("bank_product x", n * i)],
                longest_sum: i.max(o),
                run: &|arena, dtype, inputs, dy| {
                    let (x, bank) = (at(arena, dtype, [n, i], &inputs[0]), rounded(arena, dtype));
                    let y = bank_product::forward(arena, &x, &bank, side);
                    let dx = bank_product::forward(arena, &at(arena, dtype, [n, o], dy), &bank, side.other());
                    Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
                },
                reference: &|inputs| bank_product::reference(&inputs[0], &bank, [banks, m, d], side),
            })
        })
    })
}

/// Segments, tokens of a piece, width.
const SEGMENTS: [[usize; 3]; 4] = [[1, 1, 1], [3, 7, 5], [2, 130, 300], [5, 64, 128]];

/// The mean of a segment, alone and as the second of two pieces.
pub fn segment_mean(extent: Extent, check: Check) -> Cases {
    pick(&SEGMENTS, 2, extent).try_for_each(|&[b, t, c]| {
        let before = normals("segment_mean sums", b * c);
        [false, true].into_iter().try_for_each(|has_before| {
            let whole = if has_before { t + 9 } else { t };
            check(&OpCase {
                name: format!("segment_mean {b}x{t}x{c}{}", if has_before { ", second piece" } else { "" }),
                inputs: vec![normals("segment_mean x", b * t * c)],
                longest_sum: t,
                run: &|arena, dtype, inputs, _| {
                    let x = at(arena, dtype, [b * t, c], &inputs[0]);
                    let mut sums = has_before.then(|| at(arena, dtype.accumulator(), [b, c], &before));
                    let means = segment_mean::forward(arena, &x, t, whole, sums.as_mut());
                    let sums = sums
                        .map_or(means.to_f64(), |sums| sums.to_f64().iter().map(|sum| sum / whole as f64).collect());
                    Outcome { output: [means.to_f64(), sums].concat(), gradients: vec![] }
                },
                reference: &|inputs| {
                    let zeros = vec![0.0; b * c];
                    let sums = if has_before { &before } else { &zeros };
                    [(); 2].map(|()| segment_mean::reference(&inputs[0], t, c, whole, sums)).concat()
                },
            })
        })
    })
}

/// Rows into rings, three batches in a row, so that the oldest give way: the same bits as on the CPU.
pub fn bank_write_on(gpu: &'static Gpu, _: Extent) -> Cases {
    let (streams, segments, m, d, c) = (3, 2, 5, 7, 33);
    let b = streams * segments;
    for dtype in [DType::F32, DType::Bf16] {
        let run = |arena: &Arena| {
            let mut keys = at(arena, dtype, [streams, m, d], &vec![0.0; streams * m * d]);
            let mut values = at(arena, dtype, [streams, m, c], &vec![0.0; streams * m * c]);
            let mut born = Tensor::from_slice(arena, [streams, m], &vec![bank_write::NEVER; streams * m]);
            let clocks: Vec<u32> = (0..b).map(|b| (b % segments) as u32).collect();
            let mut clock = Tensor::from_slice(arena, [b], &clocks);
            let mut times = Vec::new();
            for batch in 0..3 {
                let name = format!("bank_write {batch}");
                let new = [d, c].map(|width| at(arena, dtype, [b, width], &normals(&name, b * width)));
                let banks =
                    bank_write::Banks { keys: &mut keys, values: &mut values, born: &mut born, clock: &mut clock };
                times.extend(bank_write::forward(arena, banks, &new[0], &new[1]).to_f64());
            }
            [keys.to_f64(), values.to_f64(), born.to_f64(), clock.to_f64(), times].concat()
        };
        let host = Arena::new(16 << 20).map_err(|e| e.to_string())?;
        let (want, got) = (run(&host), run(&Arena::scattered(gpu)));
        told(gpu, "bank_write")?;
        close(&format!("bank_write {dtype}"), &got, &want, 0.0)?;
    }
    Ok(())
}
