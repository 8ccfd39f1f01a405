//! The ops of heads that observe the model.

use super::{Row, Size, Work};
use crate::ops::relu_squared;
use crate::ops::self_loss::{self, Truth};
use crate::tensor::DType;

pub(super) fn rows(size: Size, dtype: DType) -> Vec<Row> {
    let [n, _] = super::rowwise::stream(size);
    let mut rows: Vec<Row> = relu_squared_rows(dtype, [n, size.of(16, 256, 256)]).into();
    rows.push(self_loss_row(dtype, [n, 64]));
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
            let truth = Truth { features: &features, losses: &losses, errors: &errors, targets: &targets };
            let (values, ds) = self_loss::forward(&arena, &s, truth, Some(&0.5.into()));
            vec![values, ds.expect("asked for")]
        })
    })
}
