//! Every op on the cases of `verify`: reference, finite differences, rounding.

mod add;
mod attention;
mod embedding;
mod grad_norm;
mod linear;
mod lm_loss;
mod rmsnorm;
mod rope;
mod scale_grad;
mod softcap;
mod swiglu;

use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, ParamId, Role, Shape, Tensor};
use nanochat_gpu::verify::{OpCase, Outcome};
use std::sync::Arc;

/// Checks a case and says what failed.
fn check(case: OpCase) {
    case.check().unwrap_or_else(|message| panic!("{message}"));
}

/// Zeroed gradients of parameters of these shapes, as ops add to them.
fn gradients(dtype: DType, shapes: &[Shape]) -> Grads {
    let mut layout = Layout::default();
    for (i, &shape) in shapes.iter().enumerate() {
        layout.push(format!("{i}"), shape.as_slice(), Role::Matrix);
    }
    Grads::zeros(Arc::new(layout), dtype)
}

/// The `i`-th gradient as f64.
fn gradient(grads: &Grads, i: u32) -> Vec<f64> {
    grads.view(ParamId(i)).to_f64()
}

/// A tensor of rounded values.
fn tensor(arena: &Arena, dtype: DType, shape: impl Into<Shape>, values: &[f64]) -> Tensor {
    Tensor::from_f64(arena, shape, dtype, values)
}
