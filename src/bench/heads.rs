//! The ops of heads that observe the model.

use super::{Row, Size, Stage, Work};
use crate::ops::energy_contrast::{self, Pair};
use crate::ops::energy_score::{self, SAMPLES, Truth};
use crate::ops::latent::{self, CHUNK, Chunks};
use crate::ops::relu_squared;
use crate::ops::self_loss;
use crate::tensor::{DType, Scale, Tensor};

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let [n, _] = super::rowwise::stream(size);
    let mut rows: Vec<Row> = relu_squared_rows(dtype, [n, size.of(16, 256, 256)]).into();
    rows.push(self_loss_row(dtype, [n, 64]));
    rows.extend(latent_rows(dtype, [n / 16, 64, size.of(16, 256, 256)]));
    rows.extend(energy_rows(dtype, [n / 16, 64, 128]));
    rows
}

/// Forward reads and writes one, backward reads two.
fn relu_squared_rows(dtype: DType, [n, f]: [usize; 2]) -> [Row; 2] {
    let extents = [("N", n), ("F", f)];
    let work = |tensors: usize| Work::bytes(dtype.size_bytes() * tensors * n * f);
    [
        Row::new(["relu_squared", "fwd", "vector"], dtype, &extents, work(2), move |stage| {
            let (x, arena) = (stage.normals([n, f], dtype), stage.arena.clone());
            Box::new(move || vec![relu_squared::forward(&arena, &x)])
        }),
        Row::new(["relu_squared", "bwd", "vector"], dtype, &extents, work(3), move |stage| {
            let (x, dy, arena) = (stage.normals([n, f], dtype), stage.normals([n, f], dtype), stage.arena.clone());
            let saved = relu_squared::Saved { x };
            Box::new(move || vec![relu_squared::backward(&arena, &dy, &saved)])
        }),
    ]
}

/// Reads what is said and the features twice, and writes a gradient and a loss.
fn self_loss_row(dtype: DType, [n, f]: [usize; 2]) -> Row {
    let work = Work::bytes(dtype.size_bytes() * n * (2 * (f + 2) + f) + 4 * 4 * n);
    Row::new(["self_loss", "fwd", "warp_per_row"], dtype, &[("N", n), ("F", f)], work, move |stage| {
        let (s, features) = (stage.normals([n, f + 2], dtype), stage.normals([n, f], dtype));
        let [losses, errors] = [(); 2].map(|()| stage.normals([n], DType::F32));
        let (targets, arena) = (stage.ids(n, 100), stage.arena.clone());
        Box::new(move || {
            let truth = self_loss::Truth { features: &features, losses: &losses, errors: &errors, targets: &targets };
            let (values, ds) = self_loss::forward(&arena, &s, truth, Some(&0.5.into()));
            vec![values, ds.expect("asked for")]
        })
    })
}

/// `m` chunks of one row of tokens, 16 for each.
fn chunks(m: usize) -> Chunks {
    Chunks { t: 16 * m, first: 2, every: 4 }
}

/// One chunk of four tokens for every 16 tokens. Rows are those of gathered chunks. Drawing reads `mu` and `log sigma` and writes a latent; backward reads three and writes
/// two; rows are read and written.
fn latent_rows(dtype: DType, [m, l, w]: [usize; 3]) -> [Row; 3] {
    let extents = [("M", m), ("R", l)];
    let bytes = |elems: usize| Work::bytes(dtype.size_bytes() * elems);
    let saved = move |stage: &Stage| {
        let (h, ids) = (stage.normals([m, 2 * l], dtype), stage.ids(m * CHUNK, 100));
        let options = latent::Options { rate: 0.15, floor: 0.5, weight: 0.004 };
        latent::Saved { h, targets: ids.reshape([m, CHUNK]), noise: Some(Scale::from(3.0)), options }
    };
    [
        Row::new(["latent", "fwd", "sample"], dtype, &extents, bytes(3 * m * l), move |stage| {
            let (saved, arena) = (saved(stage), stage.arena.clone());
            Box::new(move || <[Tensor; 2]>::from(latent::sample(&arena, &saved)).into())
        }),
        Row::new(["latent", "bwd", "sample"], dtype, &extents, bytes(5 * m * l), move |stage| {
            let (saved, dz, arena) = (saved(stage), stage.normals([m, l], dtype), stage.arena.clone());
            Box::new(move || vec![latent::backward(&arena, Some(&dz), &0.5.into(), &saved)])
        }),
        Row::new(
            ["latent", "fwd", "mask_rows"],
            dtype,
            &[("N", m * CHUNK), ("F", w)],
            bytes(2 * m * CHUNK * w),
            move |stage| {
                let (x, ids) = (stage.normals([m * CHUNK, w], dtype), stage.ids(16 * m, 100));
                let arena = stage.arena.clone();
                Box::new(move || {
                    let gathered = chunks(m).gather(&arena, &ids, None, Some(&3.0.into()), 0.15);
                    vec![latent::mask_rows(&arena, &x, &gathered.kept)]
                })
            },
        ),
    ]
}

/// Four samples of one chunk for every 16 tokens. The score reads samples and a distribution and writes gradients; the contrast reads three
/// keys and writes their gradients; the retrieval reads two and writes two, by up to 257 products of a key each way.
fn energy_rows(dtype: DType, [m, l, d]: [usize; 3]) -> [Row; 4] {
    let r = SAMPLES * m;
    let bytes = |elems: usize| Work::bytes(dtype.size_bytes() * elems);
    let (latents, keys) = ([("M", m), ("R", l)], [("M", m), ("R", d)]);
    [
        Row::new(["energy_score", "fwd", "warp_per_chunk"], dtype, &latents, bytes(10 * m * l), move |stage| {
            let (zhat, h) = (stage.normals([r, l], dtype), stage.normals([m, 2 * l], dtype));
            let (documents, arena) = (stage.ids(m, 5), stage.arena.clone());
            Box::new(move || {
                let truth = Truth { h: &h, documents: &documents, noise: &3.0.into() };
                let (losses, dzhat) = energy_score::score(&arena, &zhat, truth, Some(&0.5.into()));
                vec![losses, dzhat.expect("asked for")]
            })
        }),
        Row::new(["energy_score", "fwd", "draws"], dtype, &latents, bytes(10 * m * l), move |stage| {
            let (h, arena) = (stage.normals([m, 2 * l], dtype), stage.arena.clone());
            Box::new(move || {
                let contexts = energy_score::contexts(&arena, chunks(m), 16 * m, None);
                let draws = energy_score::draws(&arena, &h, &3.0.into());
                draws.into_iter().chain([contexts.rows, contexts.documents]).collect()
            })
        }),
        Row::new(["energy_contrast", "fwd", "warp_per_row"], dtype, &keys, bytes(6 * r * d), move |stage| {
            let [q, good, bad] = [(); 3].map(|()| stage.normals([r, d], dtype));
            let (bias, documents, arena) = (stage.normals([r, 1], dtype), stage.ids(m, 5), stage.arena.clone());
            Box::new(move || {
                let pair = Pair { q: &q, good: &good, bad: &bad, bias: &bias };
                let (losses, to) = energy_contrast::contrast(&arena, pair, &documents, 0.25, Some(&0.5.into()));
                let to = to.expect("asked for");
                vec![losses, to.q, to.good, to.bad, to.bias]
            })
        }),
        Row::new(["energy_contrast", "fwd", "retrieve"], dtype, &keys, bytes(4 * m * d), move |stage| {
            let [q, k] = [(); 2].map(|()| stage.normals([m, d], dtype));
            let (documents, arena) = (stage.ids(m, 5), stage.arena.clone());
            Box::new(move || {
                let (losses, to) = energy_contrast::retrieve(&arena, [&q, &k], &documents, Some(&0.5.into()));
                [losses].into_iter().chain(to.expect("asked for")).collect()
            })
        }),
    ]
}
