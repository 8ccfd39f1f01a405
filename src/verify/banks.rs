//! The cases of reading banks.

use super::{Cases, Check, Extent, OpCase, Outcome, at, close, gradient, grads, integers, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::top_k_softmax::{self, Options};
use crate::tensor::{Arena, DType, ParamId, Tensor};

/// Rows, entries and entries of a read: one entry, fewer than are read, one read, as many as lanes, many.
const READS: [[usize; 3]; 6] = [[1, 1, 1], [9, 5, 8], [7, 97, 1], [19, 64, 32], [33, 200, 8], [3, 1030, 5]];

/// Softmax over the highest scores, with and without a number of visible entries for each row, of which one is 0.
pub fn top_k_softmax(extent: Extent, check: Check) -> Cases {
    pick(&READS, 4, extent)
        .try_for_each(|&size| [false, true].into_iter().try_for_each(|some| read_case(size, some, check)))
}

fn seen_of([n, m, _]: [usize; 3]) -> Vec<u32> {
    integers("top_k seen", n, m + 1).into_iter().enumerate().map(|(i, s)| if i == 1 { 0 } else { s }).collect()
}

fn read_case(size @ [n, m, top]: [usize; 3], is_part_seen: bool, check: Check) -> Cases {
    let options = Options { top, scale: 0.8 };
    let seen = is_part_seen.then(|| seen_of(size));
    check(&OpCase {
        name: format!("top_k_softmax {n}x{m}, {top} of {}", if is_part_seen { "those seen" } else { "all" }),
        inputs: vec![normals("top_k scores", n * m)],
        longest_sum: top,
        run: &|arena, dtype, inputs, dy| {
            let seen = seen.as_ref().map(|seen| Tensor::from_slice(arena, [n], seen));
            let scores = at(arena, dtype, [n, m], &inputs[0]);
            let (y, saved) = top_k_softmax::forward(arena, &scores, seen.as_ref(), options);
            let ds = top_k_softmax::backward(arena, &at(arena, dtype, [n, m], dy), &saved, None);
            Outcome { output: y.to_f64(), gradients: vec![ds.to_f64()] }
        },
        reference: &|inputs| top_k_softmax::reference(&inputs[0], m, seen.as_deref(), options),
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
