//! Draws of tokens on a GPU against those of the processor, which are to be the same.

use super::{Cases, Extent, at, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::sample::{self, Draw, WEIGHT_OF_FIRST, most_probable};
use crate::tensor::random::Philox;
use crate::tensor::{Arena, DType};

/// Sizes of vocabularies: fewer than a block has threads, several a thread, and one.
const VOCABULARIES: [usize; 4] = [37, 1700, 4099, 1];

/// Every limit alone, together and none; the sharpest and the flattest distribution.
fn ways() -> Vec<Draw> {
    let all = Draw { uniform: 0, scale: 1.0, top_k: u32::MAX, top_p: 0, least_weight: 0 };
    let share = |p: f64| (p * 2f64.powi(64)) as u64;
    vec![
        Draw::FIRST,
        all,
        Draw { scale: 0.0, ..all },
        Draw { scale: f32::MAX, ..all },
        Draw { top_k: 2, ..all },
        Draw { top_k: 40, scale: 0.5, ..all },
        Draw { top_p: share(0.9), ..all },
        Draw { top_p: share(0.5), scale: 3.0, ..all },
        Draw { top_p: 1, ..all },
        Draw { least_weight: WEIGHT_OF_FIRST / 10, ..all },
        Draw { top_k: 300, top_p: share(0.7), least_weight: WEIGHT_OF_FIRST / 100, ..all },
    ]
}

/// Draws on the device are those of the processor, among rows that cannot be drawn from.
///
/// # Errors
/// The first token that differs, or what the device says.
pub fn sample_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let types = [DType::F32, DType::Bf16];
    pick(&VOCABULARIES, 1, extent).flat_map(|&v| types.map(|dtype| (v, dtype))).try_for_each(|(v, dtype)| {
        let (ways, random) = (ways(), Philox::new(3, "draws"));
        // Twice each way with other numbers; equal logits among them, for bf16 has few.
        let draws: Vec<Draw> = (0..2 * ways.len())
            .map(|i| Draw { uniform: u64::from(random.block(i as u64)[0]) << 32, ..ways[i % ways.len()] })
            .collect();
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let mut logits: Vec<f64> = normals("logits", draws.len() * v).iter().map(|x| 3.0 * x).collect();
        for value in bad {
            let mut row = normals("bad", v);
            row[v / 2] = value;
            if value == f64::NEG_INFINITY {
                row.fill(value);
            }
            logits.extend(row);
        }
        let draws: Vec<Draw> = draws.into_iter().chain([ways[1]; 3]).collect();
        let arena = Arena::scattered(gpu);
        let rows = at(&arena, dtype, [draws.len(), v], &logits);
        let rounded: Vec<f32> = rows.to_f64().into_iter().map(|x| x as f32).collect();
        let got = sample::forward(&arena, &rows, &draws);
        told(gpu, "draws")?;
        for (i, (draw, logits)) in draws.iter().zip(rounded.chunks_exact(v)).enumerate() {
            let want = most_probable(logits).ok().map(|first| draw.pick(logits, first));
            if got[i] != want {
                return Err(format!("a vocabulary of {v} in {dtype}, {draw:?}: {:?} is drawn, not {want:?}", got[i]));
            }
        }
        Ok(())
    })
}
