//! The cases of the energy heads.

use super::{Cases, Check, Extent, OpCase, Outcome, at, close, integers, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::energy_contrast::{self, Pair};
use crate::ops::energy_score::{self, SAMPLES, Truth};
use crate::ops::latent::Chunks;
use crate::ops::lm_loss::IGNORE;
use crate::tensor::{Arena, DType, Scale, Tensor};

/// Contexts and draws on a GPU are those of the CPU.
///
/// # Errors
/// The first that is not, or what the device says.
pub fn draws_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
    let all = [(1, 4, 0, 1), (3, 37, 1, 2), (2, 300, 2, 4)];
    pick(&all, 1, extent).try_for_each(|&(rows, t, first, every)| {
        let (chunks, n) = (Chunks { t, first, every }, rows * t);
        // Documents of 13 tokens, counted in every row from its beginning.
        let starts: Vec<u32> = (0..n).map(|i| (i % t / 13 * 13) as u32).collect();
        for documents in [false, true] {
            let run = |arena: &Arena| {
                let starts = documents.then(|| Tensor::from_slice(arena, [n], &starts));
                let contexts = energy_score::contexts(arena, chunks, n, starts.as_ref());
                [contexts.rows.to_f64(), contexts.documents.to_f64()].concat()
            };
            let (want, got) = (run(&host), run(&Arena::scattered(gpu)));
            told(gpu, "contexts")?;
            close(&format!("contexts of {rows} x {chunks:?}"), &got, &want, 0.0)?;
        }
        let (m, l) = (rows * chunks.per_row(), 7 + first);
        let h = normals("draws h", m * 2 * l);
        for dtype in [DType::F32, DType::Bf16] {
            let h = at(&host, dtype, [m, 2 * l], &h).to_f64();
            let run = |arena: &Arena, dtype: DType| {
                let h = at(arena, dtype, [m, 2 * l], &h);
                energy_score::draws(arena, &h, &Scale::from(9.0)).map(|x| x.to_f64())
            };
            let (want, got) = (run(&host, DType::F64), run(&Arena::scattered(gpu), dtype));
            told(gpu, "draws")?;
            for (got, want) in got.iter().zip(&want) {
                close(&format!("draws of {m} x {l} in {dtype}"), got, want, 16.0 * super::unit(dtype))?;
            }
        }
        Ok(())
    })
}

/// Documents of chunks: three in turns, one chunk of four without a context.
fn documents(m: usize) -> Vec<u32> {
    (0..m as u32).map(|i| if i % 4 == 1 { IGNORE } else { i % 3 }).collect()
}

/// The energy score, with its gradient, which is formed by a factor of 0.37.
pub fn score(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    pick(&[[1, 1], [9, 64], [6, 33], [11, 7]], 2, extent).try_for_each(|&[m, l]| {
        let documents = documents(m);
        // What every type holds exactly: draws are the same in all.
        let h: Vec<f64> = integers("score h", m * 2 * l, 33).iter().map(|&i| (f64::from(i) - 16.0) / 16.0).collect();
        let draws = energy_score::reference_draws(&h, l, 5);
        check(&OpCase {
            name: format!("energy score {m} x {l}"),
            inputs: vec![normals("score zhat", SAMPLES * m * l)],
            longest_sum: 16 * l.max(m),
            run: &|arena, dtype, inputs, dy| {
                let (zhat, h) = (at(arena, dtype, [SAMPLES * m, l], &inputs[0]), at(arena, dtype, [m, 2 * l], &h));
                let (documents, noise) = (Tensor::from_slice(arena, [m], &documents), Scale::from(5.0));
                let truth = Truth { h: &h, documents: &documents, noise: &noise };
                let factor = FACTOR * (dy[0] + dy[1]);
                let (losses, dzhat) = energy_score::score(arena, &zhat, truth, Some(&factor.into()));
                let (plain, _) = energy_score::score(arena, &zhat, truth, None);
                let output = [losses, plain].map(|losses| FACTOR * losses.to_f64().iter().sum::<f64>()).to_vec();
                Outcome { output, gradients: vec![dzhat.map_or(vec![], |dzhat| dzhat.to_f64())] }
            },
            reference: &|inputs| {
                let losses = energy_score::reference(&inputs[0], &draws, l);
                let counted = losses.iter().zip(&documents).filter(|(_, document)| **document != IGNORE);
                vec![FACTOR * counted.map(|(loss, _)| loss).sum::<f64>(); 2]
            },
        })
    })
}

/// The contrast of true and generated latents, with its gradients.
pub fn contrast(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    pick(&[[1, 2], [9, 128], [6, 33], [11, 7]], 2, extent).try_for_each(|&[m, d]| {
        let (documents, r) = (documents(m), SAMPLES * m);
        let of = |name: &str, n: usize| normals(&format!("contrast {name}"), n);
        check(&OpCase {
            name: format!("energy contrast {r} x {d}"),
            inputs: vec![of("q", r * d), of("good", r * d), of("bad", r * d), of("bias", r)],
            longest_sum: d.max(r),
            run: &|arena, dtype, inputs, dy| {
                let rows = |i: usize| at(arena, dtype, [r, inputs[i].len() / r], &inputs[i]);
                let (q, good, bad, bias) = (rows(0), rows(1), rows(2), rows(3));
                let documents = Tensor::from_slice(arena, [m], &documents);
                let pair = Pair { q: &q, good: &good, bad: &bad, bias: &bias };
                let factor = Scale::from(FACTOR * (dy[0] + dy[1]));
                let (losses, to) = energy_contrast::contrast(arena, pair, &documents, 0.25, Some(&factor));
                let (plain, _) = energy_contrast::contrast(arena, pair, &documents, 0.25, None);
                let output = [losses, plain].map(|losses| FACTOR * losses.to_f64().iter().sum::<f64>()).to_vec();
                let gradients = to.map_or(vec![], |Pair { q, good, bad, bias }| vec![q, good, bad, bias]);
                Outcome { output, gradients: gradients.iter().map(|x| x.to_f64()).collect() }
            },
            reference: &|inputs| {
                let [q, good, bad, bias] = [0, 1, 2, 3].map(|i: usize| &inputs[i][..]);
                let losses = energy_contrast::reference_contrast(Pair { q, good, bad, bias }, &documents, d, 0.25);
                vec![FACTOR * losses.iter().sum::<f64>(); 2]
            },
        })
    })
}

/// The retrieval among chunks of other documents, with its gradients: one chunk, few, and more than one is told from.
pub fn retrieve(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    pick(&[[1, 2], [9, 128], [6, 33], [300, 7]], 2, extent).try_for_each(|&[m, d]| {
        let documents = documents(m);
        let of = |name: &str| normals(&format!("retrieve {name}"), m * d);
        check(&OpCase {
            name: format!("energy retrieve {m} x {d}"),
            inputs: vec![of("q"), of("k")],
            longest_sum: d.max(m),
            run: &|arena, dtype, inputs, dy| {
                let [q, k] = [0, 1].map(|i: usize| at(arena, dtype, [m, d], &inputs[i]));
                let documents = Tensor::from_slice(arena, [m], &documents);
                let factor = Scale::from(FACTOR * (dy[0] + dy[1]));
                let (losses, to) = energy_contrast::retrieve(arena, [&q, &k], &documents, Some(&factor));
                let (plain, _) = energy_contrast::retrieve(arena, [&q, &k], &documents, None);
                let output = [losses, plain].map(|losses| FACTOR * losses.to_f64().iter().sum::<f64>()).to_vec();
                Outcome { output, gradients: to.iter().flatten().map(|x| x.to_f64()).collect() }
            },
            reference: &|inputs| {
                let losses = energy_contrast::reference_retrieve(&inputs[0], &inputs[1], &documents, d);
                vec![FACTOR * losses.iter().sum::<f64>(); 2]
            },
        })
    })
}
