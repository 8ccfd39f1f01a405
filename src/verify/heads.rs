//! The cases of the ops of heads that observe the model: the self-model, and of the latent.

use super::{Cases, Check, Extent, OpCase, Outcome, ROWS, at, close, grads, integers, normals, pick, told};
use crate::device::gpu::Gpu;
use crate::ops::latent::{self, Chunks};
use crate::ops::lm_loss::{self, Gradients, IGNORE, Report};
use crate::ops::relu_squared;
use crate::ops::self_loss::{self, Truth};
use crate::tensor::{Arena, DType, ParamId, Scale, Tensor};

/// `max(x, 0)^2`.
pub fn relu_squared(extent: Extent, check: Check) -> Cases {
    pick(ROWS, 3, extent).try_for_each(|&[n, c]| {
        check(&OpCase {
            name: format!("relu_squared {n}x{c}"),
            inputs: vec![normals("relu_squared", n * c)],
            longest_sum: 2,
            run: &|arena, dtype, inputs, dy| {
                let x = at(arena, dtype, [n, c], &inputs[0]);
                let y = relu_squared::forward(arena, &x);
                let dx = relu_squared::backward(arena, &at(arena, dtype, [n, c], dy), &relu_squared::Saved { x });
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64()] }
            },
            reference: &|inputs| relu_squared::reference(&inputs[0]),
        })
    })
}

/// Eighths from -2.5 on, which every type holds exactly.
fn eighths(name: &str, n: usize) -> Vec<f64> {
    integers(name, n, 41).into_iter().map(|i| (f64::from(i) - 20.0) / 8.0).collect()
}

/// Rows and features of the self-model's loss.
const SAID: [[usize; 2]; 5] = [[1, 1], [5, 64], [19, 7], [33, 97], [40, 33]];

/// The loss of what a self-model says, with its gradient, which is formed by a factor of 0.37.
pub fn self_loss(extent: Extent, check: Check) -> Cases {
    const FACTOR: f64 = 0.37;
    pick(&SAID, 2, extent).try_for_each(|&[n, f]| {
        let features: Vec<f64> = eighths("self features", n * f).iter().map(|y| y + 0.0625).collect();
        let losses: Vec<f64> = eighths("self losses", n).iter().map(|l| l.abs()).collect();
        let errors: Vec<f64> = integers("self errors", n, 2).into_iter().map(f64::from).collect();
        let mut targets = integers("self targets", n, 9);
        (1..n).step_by(4).for_each(|i| targets[i] = IGNORE);
        // Some far from the truth, where the loss grows linearly.
        let s = normals("self said", n * (f + 2)).iter().map(|s| 1.5 * s).collect();
        check(&OpCase {
            name: format!("self_loss {n} x {f}"),
            inputs: vec![s],
            longest_sum: n.max(f),
            run: &|arena, dtype, inputs, dy| {
                let (s, features) = (at(arena, dtype, [n, f + 2], &inputs[0]), at(arena, dtype, [n, f], &features));
                let [losses, errors] = [&losses, &errors].map(|x| at(arena, dtype.accumulator(), [n], x));
                let targets = Tensor::from_slice(arena, [n], &targets);
                let truth = Truth { features: &features, losses: &losses, errors: &errors, targets: &targets };
                let factor = FACTOR * (dy[0] + dy[1]);
                let (values, ds) = self_loss::forward(arena, &s, truth, Some(&factor.into()));
                let (plain, _) = self_loss::forward(arena, &s, truth, None);
                let output = [values, plain].map(|values| FACTOR * values.to_f64().iter().sum::<f64>()).to_vec();
                Outcome { output, gradients: vec![ds.map_or(vec![], |ds| ds.to_f64())] }
            },
            reference: &|inputs| {
                let values = self_loss::reference(&inputs[0], &features, f, &losses, &errors, &targets);
                vec![FACTOR * values.iter().sum::<f64>(); 2]
            },
        })
    })
}

/// Every loss of a row by itself on a GPU, and where the likeliest token is wrong, against f64 on the CPU.
///
/// # Errors
/// The first that differs, or what the device says.
pub fn judged_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
    let all = [[1, 3, 5], [21, 8, 300], [40, 17, 31]];
    pick(&all, 1, extent).try_for_each(|&[n, c, v]| {
        let (x, w) = (normals("judged x", n * c), normals("judged w", v * c));
        // Half of the targets are the likeliest tokens.
        let logits = crate::ops::linear::reference(&x, &w, c);
        let best = |row: &[f64]| (0..v).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary") as u32;
        let mut targets = integers("judged targets", n, v);
        (0..n).step_by(2).for_each(|i| targets[i] = best(&logits[i * v..][..v]));
        (3..n).step_by(5).for_each(|i| targets[i] = IGNORE);
        let run = |arena: &Arena, dtype: DType, with_gradients: bool| {
            let (x, w) = (at(arena, dtype, [n, c], &x), at(arena, dtype, [v, c], &w));
            let (targets, mut grads) = (Tensor::from_slice(arena, [n], &targets), grads(arena, dtype, &[w.shape()]));
            let gradients =
                with_gradients.then(|| Gradients { scale: 1.0.into(), dweight: grads.view_mut(ParamId(0)) });
            let operands = lm_loss::Operands { x: &x, weight: &w, low_rank: None, softcap: None };
            let judged = lm_loss::judge(arena, operands, &targets, gradients, 8, Report::LossesAndErrors);
            [judged.losses.to_f64(), judged.errors.map_or(vec![], |errors| errors.to_f64())]
        };
        let [losses, errors] = run(&host, DType::F64, false);
        for (dtype, with_gradients) in [(DType::F32, false), (DType::F32, true), (DType::Bf16, true)] {
            let [got, told_errors] = run(&Arena::scattered(gpu), dtype, with_gradients);
            told(gpu, "judged")?;
            let bound = 16.0 * super::unit(dtype) * (c as f64).sqrt();
            close(&format!("losses of {n} rows in {dtype}"), &got, &losses, bound)?;
            close(&format!("errors of {n} rows in {dtype}"), &told_errors, &errors, 0.0)?;
        }
        Ok(())
    })
}

/// Rows of tokens, tokens of a row, first slot and slots to the next.
const CHUNKS: [(usize, Chunks); 4] = [
    (1, Chunks { t: 4, first: 0, every: 1 }),
    (3, Chunks { t: 37, first: 1, every: 2 }),
    (2, Chunks { t: 300, first: 2, every: 4 }),
    (5, Chunks { t: 41, first: 0, every: 1 }),
];

/// Chunks on a GPU are those of the CPU, with and without documents and noise, and rows are dropped as there.
///
/// # Errors
/// The first that is not, or what the device says.
pub fn chunks_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
    pick(&CHUNKS, 1, extent).try_for_each(|&(rows, chunks)| {
        let n = rows * chunks.t;
        let (tokens, starts) = (integers("chunk tokens", n, 1000), document_starts(rows, chunks.t));
        for (documents, noise) in [(false, None), (true, None), (true, Some(Scale::from(7.0)))] {
            let run = |arena: &Arena| {
                let ids = |values: &[u32]| Tensor::from_slice(arena, [values.len()], values);
                let starts = documents.then(|| ids(&starts));
                let gathered = chunks.gather(arena, &ids(&tokens), starts.as_ref(), noise.as_ref(), 0.3);
                let kept = gathered.kept.elems();
                let masked = [(DType::F32, 24), (DType::Bf16, 24), (DType::F32, 7)].map(|(dtype, c)| {
                    let x = at(arena, dtype, [kept, c], &eighths("mask rows", kept * c));
                    latent::mask_rows(arena, &x, &gathered.kept).to_f64()
                });
                let [tokens, targets, kept] = [gathered.tokens, gathered.targets, gathered.kept].map(|x| x.to_f64());
                [vec![tokens, targets, kept], masked.to_vec()].concat()
            };
            let (want, got) = (run(&host), run(&Arena::scattered(gpu)));
            told(gpu, "chunks")?;
            for (got, want) in got.iter().zip(&want) {
                close(&format!("chunks of {rows} x {chunks:?}"), got, want, 0.0)?;
            }
        }
        Ok(())
    })
}

/// Documents of 9 and of 6 tokens in turns, in every row from its beginning.
fn document_starts(rows: usize, t: usize) -> Vec<u32> {
    let start = |at: usize| at / 15 * 15 + if at % 15 < 9 { 0 } else { 9 };
    (0..rows * t).map(|n| start(n % t) as u32).collect()
}

/// Chunks and width of latents.
const LATENTS: [[usize; 2]; 4] = [[1, 1], [9, 64], [19, 33], [40, 7]];

/// Latents drawn, and their divergence, which counts by a factor of 0.37.
pub fn latent(extent: Extent, check: Check) -> Cases {
    let all: Vec<_> = LATENTS.iter().copied().zip([Some(5), None, Some(3), Some(16_777_215)]).collect();
    pick(&all, 2, extent).try_for_each(|&([m, l], seed)| {
        let options = latent::Options { rate: 0.25, floor: 0.5, weight: 0.7 };
        let has_chunk: Vec<bool> = (0..m).map(|m| m % 4 != 1).collect();
        let targets: Vec<u32> = has_chunk.iter().flat_map(|&has| [if has { 5 } else { IGNORE }; 4]).collect();
        let h = normals("latent h", m * 2 * l).iter().map(|x| 0.8 * x).collect();
        check(&OpCase {
            name: format!("latent {m} x {l} by {seed:?}"),
            inputs: vec![h],
            longest_sum: l.max(4),
            run: &|arena, dtype, inputs, dy| {
                let h = at(arena, dtype, [m, 2 * l], &inputs[0]);
                let (targets, noise) =
                    (Tensor::from_slice(arena, [m, 4], &targets), seed.map(f64::from).map(Scale::from));
                let saved = latent::Saved { h, targets, noise, options };
                let (z, kl) = latent::sample(arena, &saved);
                let dz = at(arena, dtype, [m, l], &dy[..m * l]);
                let factor = 0.37 * dy[m * l];
                let dh = latent::backward(arena, Some(&dz), &factor.into(), &saved);
                let kl = 0.37 * kl.to_f64().iter().sum::<f64>();
                Outcome { output: [z.to_f64(), vec![kl]].concat(), gradients: vec![dh.to_f64()] }
            },
            reference: &|inputs| {
                let [z, kl] = latent::reference(&inputs[0], l, &has_chunk, seed, options);
                [z, vec![0.37 * kl.iter().sum::<f64>()]].concat()
            },
        })
    })
}
