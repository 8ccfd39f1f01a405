//! The cases every op is checked on, and the comparison: shared by tests and by `doctor`, on the CPU and on devices.
//!
//! Three comparisons per case. In f64 the op must equal its `reference`; its gradients must equal central finite
//! differences of that reference; and in f32 and bf16 it must stay within a bound derived from the rounding unit of the
//! type and the length of the longest sum. All bounds are stated as what must hold, so a NaN fails by itself. What is no such op
//! (optimisers, products on a GPU, casts) has a check of its own, against the CPU or plain loops.

pub mod attention;
pub mod banks;
pub mod energy;
pub mod families;
pub mod heads;
pub mod packed;
pub mod parts;
pub mod memory;
pub mod paged;
pub mod products;
pub mod rowwise;
pub mod sample;
pub mod state;

pub use packed::made_blocks;

use crate::device::gpu::Gpu;
use crate::ops::rope::Heads;
use crate::tensor::random::Philox;
use crate::tensor::{Arena, DType, Grads, Layout, ParamId, Role, Shape, Tensor};
use std::sync::Arc;

/// What checks come to; the error says what disagreed, with both numbers.
pub type Cases = Result<(), String>;

/// What is done with each case of an op.
pub type Check<'a> = &'a dyn Fn(&OpCase) -> Cases;

/// How many cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// One of each kind, at a size that divides nothing.
    One,
    /// All.
    All,
}

/// All of `cases`, or the one at `one`.
fn pick<T>(cases: &[T], one: usize, extent: Extent) -> std::slice::Iter<'_, T> {
    match extent {
        Extent::One => cases[one..one + 1].iter(),
        Extent::All => cases.iter(),
    }
}

/// A tensor of rounded values.
fn at(arena: &Arena, dtype: DType, shape: impl Into<Shape>, values: &[f64]) -> Tensor {
    Tensor::from_f64(arena, shape, dtype, values)
}

/// Zeroed gradients of parameters of these shapes.
fn grads(arena: &Arena, dtype: DType, shapes: &[Shape]) -> Grads {
    let mut layout = Layout::default();
    for (i, shape) in shapes.iter().enumerate() {
        layout.push(format!("{i}"), shape.as_slice(), Role::Matrix);
    }
    Grads::zeros_on(arena.device(), Arc::new(layout), dtype)
}

fn gradient(grads: &Grads, i: u32) -> Vec<f64> {
    grads.view(ParamId(i)).to_f64()
}

/// What the device says of the work so far, in the name of `what`.
fn told(gpu: &Gpu, what: &str) -> Cases {
    gpu.synchronise().map_err(|error| format!("{what}: {error}"))
}

/// Half a step of the numbers near 1: the most that rounding changes, relative to the value.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-9),
        _ => 2f64.powi(-24),
    }
}

/// Awkward and unequal `(N, C)` of row-wise ops.
pub const ROWS: &[[usize; 2]] = &[[1, 3], [3, 7], [5, 64], [17, 97], [131, 200]];

/// A shape of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCase {
    pub b: usize,
    pub t: usize,
    pub heads: Heads,
    pub window: Option<usize>,
    /// Tokens of a document, 0 for one document a row.
    pub document: usize,
}

/// Shapes of attention: one token, several blocks, grouped heads, windows shorter and longer than a block, documents.
pub const ATTENTION: &[AttentionCase] = &[
    AttentionCase { b: 1, t: 1, heads: Heads { h: 1, g: 1, d: 2 }, window: None, document: 0 },
    AttentionCase { b: 2, t: 9, heads: Heads { h: 6, g: 2, d: 8 }, window: None, document: 0 },
    AttentionCase { b: 1, t: 200, heads: Heads { h: 3, g: 1, d: 16 }, window: None, document: 0 },
    AttentionCase { b: 2, t: 97, heads: Heads { h: 2, g: 2, d: 32 }, window: Some(13), document: 0 },
    AttentionCase { b: 1, t: 300, heads: Heads { h: 2, g: 1, d: 4 }, window: Some(150), document: 0 },
    AttentionCase { b: 3, t: 70, heads: Heads { h: 4, g: 2, d: 6 }, window: None, document: 19 },
    AttentionCase { b: 1, t: 141, heads: Heads { h: 1, g: 1, d: 12 }, window: Some(40), document: 50 },
];

/// Shapes of attention by tiles of 64 (bf16 on a GPU), for each head width of those kernels.
pub const ATTENTION_FLASH: &[AttentionCase] = &[
    AttentionCase { b: 2, t: 1, heads: Heads { h: 2, g: 1, d: 32 }, window: None, document: 0 },
    AttentionCase { b: 1, t: 300, heads: Heads { h: 3, g: 1, d: 32 }, window: None, document: 0 },
    AttentionCase { b: 1, t: 200, heads: Heads { h: 2, g: 2, d: 32 }, window: Some(150), document: 61 },
    AttentionCase { b: 2, t: 97, heads: Heads { h: 4, g: 2, d: 64 }, window: Some(13), document: 0 },
    AttentionCase { b: 1, t: 200, heads: Heads { h: 3, g: 1, d: 64 }, window: None, document: 77 },
    AttentionCase { b: 1, t: 300, heads: Heads { h: 1, g: 1, d: 96 }, window: Some(40), document: 130 },
    AttentionCase { b: 1, t: 200, heads: Heads { h: 2, g: 1, d: 96 }, window: None, document: 0 },
    AttentionCase { b: 3, t: 1, heads: Heads { h: 1, g: 1, d: 128 }, window: None, document: 0 },
    AttentionCase { b: 1, t: 300, heads: Heads { h: 2, g: 1, d: 128 }, window: Some(150), document: 0 },
    AttentionCase { b: 1, t: 97, heads: Heads { h: 2, g: 2, d: 128 }, window: None, document: 19 },
];

/// Standard normal numbers named by `name`.
pub fn normals(name: &str, n: usize) -> Vec<f64> {
    let stream = Philox::new(0, name);
    (0..n as u64).map(|i| stream.normal(i)).collect()
}

/// Integers below `bound` named by `name`.
pub fn integers(name: &str, n: usize, bound: usize) -> Vec<u32> {
    let stream = Philox::new(0, name);
    (0..n as u64).map(|i| stream.below(i, bound as u64) as u32).collect()
}

/// What an op computed: its output and the gradient of each input for the output gradient it was given.
pub struct Outcome {
    pub output: Vec<f64>,
    pub gradients: Vec<Vec<f64>>,
}

/// An op on one case.
pub struct OpCase<'a> {
    /// Named in failures.
    pub name: String,
    /// Values of each input.
    pub inputs: Vec<Vec<f64>>,
    /// Terms of the longest sum in forward or backward.
    pub longest_sum: usize,
    /// Forward and backward in a type: inputs and output gradient are given in f64 and rounded by the callee.
    #[allow(clippy::type_complexity)] // arena, type, inputs, output gradient
    pub run: &'a dyn Fn(&Arena, DType, &[Vec<f64>], &[f64]) -> Outcome,
    /// Forward in plain f64 loops.
    pub reference: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
}

/// Coordinates of an input that finite differences look at.
const COORDINATES_MAX: usize = 40;

impl OpCase<'_> {
    /// Runs the three comparisons on the CPU.
    ///
    /// # Errors
    /// What disagreed, with both numbers.
    pub fn check(&self) -> Result<(), String> {
        let arena = Arena::new(256 << 20).map_err(|e| e.to_string())?;
        let expected = (self.reference)(&self.inputs);
        let weights = normals(&format!("{} output gradient", self.name), expected.len());
        let exact = (self.run)(&arena, DType::F64, &self.inputs, &weights);
        close(&format!("{} forward f64", self.name), &exact.output, &expected, 1e-12 * self.longest_sum as f64)?;
        for (input, gradient) in exact.gradients.iter().enumerate() {
            self.check_gradient(input, gradient, &weights)?;
        }
        for dtype in [DType::F32, DType::Bf16] {
            self.check_rounding(&arena, &arena, dtype, &weights)?;
        }
        arena.reset();
        Ok(())
    }

    fn check_gradient(&self, input: usize, gradient: &[f64], weights: &[f64]) -> Result<(), String> {
        let n = self.inputs[input].len();
        if gradient.len() != n {
            return Err(format!("{}: gradient {input} has {} elements, not {n}", self.name, gradient.len()));
        }
        let total =
            |inputs: &[Vec<f64>]| -> f64 { (self.reference)(inputs).iter().zip(weights).map(|(y, w)| y * w).sum() };
        let picks = integers(&format!("{} coordinates {input}", self.name), COORDINATES_MAX, n);
        let picks: Vec<usize> =
            if n <= COORDINATES_MAX { (0..n).collect() } else { picks.iter().map(|&i| i as usize).collect() };
        for i in picks {
            let slope = central_difference(1e-5, |shift| {
                let mut inputs = self.inputs.clone();
                inputs[input][i] += shift;
                total(&inputs)
            });
            let error = (gradient[i] - slope).abs();
            let holds = error <= 1e-6 * (1.0 + slope.abs());
            if !holds {
                return Err(format!(
                    "{}: gradient {input}[{i}] is {}, differences give {slope}",
                    self.name, gradient[i]
                ));
            }
        }
        Ok(())
    }

    /// Runs the case on a GPU in f32 and bf16 and compares it with f64 on the CPU. Every tensor there is an allocation of its
    /// own, so that a driver that checks bounds checks those of each.
    ///
    /// # Errors
    /// What disagreed, or what went wrong on the device.
    pub fn check_on(&self, gpu: &'static Gpu) -> Result<(), String> {
        let host = Arena::new(256 << 20).map_err(|e| e.to_string())?;
        let weights = normals(&format!("{} output gradient", self.name), (self.reference)(&self.inputs).len());
        for dtype in [DType::F32, DType::Bf16] {
            self.check_rounding(&host, &Arena::scattered(gpu), dtype, &weights)
                .and_then(|()| gpu.synchronise().map_err(|e| format!("{} {dtype}: {e}", self.name)))
                .map_err(|what| {
                    gpu.synchronise().err().map_or(what.clone(), |e| format!("{}: {e}; {what}", self.name))
                })?;
        }
        Ok(())
    }

    /// In a narrower type in `arena`, against f64 on the CPU on the same rounded inputs.
    fn check_rounding(&self, host: &Arena, arena: &Arena, dtype: DType, weights: &[f64]) -> Result<(), String> {
        let round = |values: &[f64]| Tensor::from_f64(host, [values.len()], dtype, values).to_f64();
        let inputs: Vec<Vec<f64>> = self.inputs.iter().map(|v| round(v)).collect();
        let weights = round(weights);
        let exact = (self.run)(host, DType::F64, &inputs, &weights);
        let narrow = (self.run)(arena, dtype, &inputs, &weights);
        // Errors of a sum of n rounded terms grow like sqrt(n) units of its largest term; an op chains a few sums, and
        // intermediate values are stored in the type: 16 units.
        let bound = 16.0 * unit(dtype) * (self.longest_sum as f64).sqrt();
        close(&format!("{} forward {dtype}", self.name), &narrow.output, &exact.output, bound)?;
        for (i, (a, b)) in narrow.gradients.iter().zip(&exact.gradients).enumerate() {
            close(&format!("{} gradient {i} {dtype}", self.name), a, b, bound)?;
        }
        Ok(())
    }
}

/// `(f(h) - f(-h)) / 2h`.
pub fn central_difference(h: f64, f: impl Fn(f64) -> f64) -> f64 {
    (f(h) - f(-h)) / (2.0 * h)
}

/// Whether every element of `got` is within `bound` times the root mean square plus magnitude of `want`.
///
/// # Errors
/// The first element that is not, or a length that differs.
pub fn close(what: &str, got: &[f64], want: &[f64], bound: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} elements, {} expected", got.len(), want.len()));
    }
    let scale = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let holds = (g - w).abs() <= bound * (scale + w.abs());
        if !holds {
            return Err(format!("{what}[{i}]: {g}, {w} expected, bound {:e}", bound * (scale + w.abs())));
        }
    }
    Ok(())
}
