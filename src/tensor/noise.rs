//! Noise that training draws and a recorded step can draw anew: a pure function of a seed that may lie in a device's memory, a stream
//! and an index. `kernels/common/philox.cuh` has the same words and numbers.

use super::Float;
use super::random::philox4x32_10;

/// Seeds are whole numbers below this: an f32 holds them exactly.
pub const SEEDS: u64 = 1 << 24;

/// Number `index` of a stream.
pub fn words(seed: u32, stream: u32, index: u32) -> [u32; 4] {
    philox4x32_10([index, 0, stream, 0], [seed, 0])
}

/// Uniform in (-1, 1): an odd multiple of `2^-23`, which an f32 holds exactly.
pub fn centred(word: u32) -> f64 {
    (f64::from(word >> 9) + 0.5) / f64::from(1 << 22) - 1.0
}

/// Whether what is dropped at the rate `rate` is kept.
pub fn is_kept(word: u32, rate: f64) -> bool {
    (word >> 8) as usize >= threshold(rate)
}

/// Words whose upper 24 bits are below this are dropped.
pub fn threshold(rate: f64) -> usize {
    (rate * f64::from(1 << 24)) as usize
}

/// Coefficients of `erfinv` near 0 and in the tails, highest power first (M. Giles, "Approximating the erfinv function", 2010).
const NEAR: [f64; 9] = [
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
];
const TAILS: [f64; 9] = [
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
];

/// Standard normal by the inverse of its distribution function, within 1e-6: `sqrt(2) erfinv(x)`, x uniform in (-1, 1).
pub fn normal<F: Float>(word: u32) -> F {
    let x = F::from_f64(centred(word));
    let w = -((F::ONE - x) * (F::ONE + x)).ln();
    let (w, coefficients) =
        if w < F::from_f64(5.0) { (w - F::from_f64(2.5), NEAR) } else { (w.sqrt() - F::from_f64(3.0), TAILS) };
    let p = coefficients.into_iter().fold(F::ZERO, |p, c| F::from_f64(c) + p * w);
    F::from_f64(std::f64::consts::SQRT_2) * p * x
}
