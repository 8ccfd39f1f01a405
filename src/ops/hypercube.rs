//! Codes on the vertices of `{-1, +1}^K`: the nearest vertex of a row, and the loss that makes rows decide.
//!
//! `v = u / sqrt(|u|^2 + 1e-12)`. Code: `b = sign(v) / sqrt(K)`, straight through: `dv = db`. Saves `u`.
//!
//! Entropy, with `p_ti = sigmoid(2 tau v_ti / sqrt(K))`: softmax over all `2^K` vertices of `tau <u, c>` factorises into these `K`
//! sigmoids. `L = mean_t sum_i h2(p_ti) - H(mean_t p)` in nats: each row should be near one vertex, all rows together near many. The entropy
//! of the mean is that of exact tables of 256 vertices over each group of 8 bits. With `P` a table,
//! `dL/dp_ti = (log((1 - p) / p) + sum_c s_ic prod_{j != i} log P_c) / N`, formed in the same pass (a leaf, as `lm_loss`).

use super::rmsnorm::sum_parts;
use crate::device::Device;
use crate::device::cpu::{grain_rows, sum_over_rows};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, Ptr, PtrMut, by_dtype};
use crate::for_dtype;
use crate::tensor::{Arena, DType, Elem, Float, Scale, Tensor};
use rayon::prelude::*;

/// Most bits of a vertex.
pub const BITS_MAX: usize = 16;

/// Bits of a table, and vertices in it.
const GROUP_BITS: usize = 8;
const GROUP: usize = 1 << GROUP_BITS;

/// Keeps a row of zeros from dividing by zero.
const TINY: f64 = 1e-12;

/// What backward of the code needs.
#[derive(Debug)]
pub struct Saved {
    /// `[N, K]`.
    pub u: Tensor,
}

/// `u [N, K]` -> the nearest vertices `b [N, K]`.
pub fn forward(arena: &Arena, u: &Tensor) -> Tensor {
    let ([n, k], dtype) = (checked(u), u.dtype());
    let mut b = Tensor::uninit(arena, [n, k], dtype);
    if let Device::Gpu(gpu) = u.device() {
        let grid = Grid::elementwise(n * k, dtype.size_bytes());
        let height = height(k) as f32;
        by_dtype!(
            dtype,
            hypercube_fwd_code_f32 | hypercube_fwd_code_bf16,
            (gpu, grid, b.ptr_mut(), u.ptr(), height, n * k)
        );
        return b;
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let height = F::from_f64(height(k));
        for (b, u) in b.as_mut_slice::<E>().iter_mut().zip(u.as_slice::<E>()) {
            *b = E::store(if u.load() < F::ZERO { -height } else { height });
        }
    });
    b
}

/// What is one coordinate of a vertex: `1 / sqrt(K)`.
fn height(k: usize) -> f64 {
    1.0 / (k as f64).sqrt()
}

fn checked(u: &Tensor) -> [usize; 2] {
    let [n, k] = u.shape().rows_cols();
    assert!((1..=BITS_MAX).contains(&k), "a hypercube of {k} bits");
    [n, k]
}

/// `db [N, K]` -> `du [N, K]`.
pub fn backward(arena: &Arena, db: &Tensor, saved: &Saved) -> Tensor {
    let ([n, k], dtype) = (checked(db), db.dtype());
    let mut du = Tensor::uninit(arena, [n, k], dtype);
    if let Device::Gpu(gpu) = db.device() {
        by_dtype!(
            dtype,
            hypercube_bwd_half_warp_per_row_f32 | hypercube_bwd_half_warp_per_row_bf16,
            (gpu, Grid::over(n, 16), du.ptr_mut(), saved.u.ptr(), db.ptr(), n, k)
        );
        return du;
    }
    for_dtype!(dtype, E => {
        let rows = du.as_mut_slice::<E>().chunks_exact_mut(k).zip(saved.u.as_slice::<E>().chunks_exact(k));
        for ((du, u), db) in rows.zip(db.as_slice::<E>().chunks_exact(k)) {
            let (v, r) = unit(u);
            through_unit(du, &v[..k], r, |i| db[i].load());
        }
    });
    du
}

/// The row at unit length, and the factor that made it so.
fn unit<E: Elem>(u: &[E]) -> ([E::Acc; BITS_MAX], E::Acc) {
    let sum = u.iter().fold(E::Acc::ZERO, |sum, u| u.load().mul_add(u.load(), sum));
    let r = E::Acc::ONE / (sum + E::Acc::from_f64(TINY)).sqrt();
    let mut v = [E::Acc::ZERO; BITS_MAX];
    v.iter_mut().zip(u).for_each(|(v, u)| *v = u.load() * r);
    (v, r)
}

/// `du = (dv - v <v, dv>) r`.
fn through_unit<E: Elem>(du: &mut [E], v: &[E::Acc], r: E::Acc, dv: impl Fn(usize) -> E::Acc) {
    let along = v.iter().enumerate().fold(E::Acc::ZERO, |sum, (i, v)| v.mul_add(dv(i), sum));
    for (i, (du, v)) in du.iter_mut().zip(v).enumerate() {
        *du = E::store((dv(i) - *v * along) * r);
    }
}

/// `u [N, K]` -> the loss `[1]` in the accumulator type and, where a factor of it is given, `du [N, K]`. `tau` sharpens.
pub fn entropy(arena: &Arena, u: &Tensor, tau: &Scale, factor: Option<&Scale>) -> (Tensor, Option<Tensor>) {
    let ([n, k], dtype) = (checked(u), u.dtype());
    let mut loss = Tensor::uninit(arena, [1], dtype.accumulator());
    let mut du = factor.is_some().then(|| Tensor::uninit(arena, [n, k], dtype));
    if let Device::Gpu(gpu) = u.device() {
        launch_entropy(gpu, arena, &mut loss, du.as_mut(), u, tau, factor);
        return (loss, du);
    }
    for_dtype!(dtype, E => {
        type F = <E as Elem>::Acc;
        let (u, slope) = (u.as_slice::<E>(), F::from_f64(2.0 * tau.value() * height(k)));
        let groups = k.div_ceil(GROUP_BITS);
        let mut sums = vec![F::ZERO; groups * GROUP + 1];
        sum_over_rows(&mut sums, n, |row, acc| add_row(&u[row * k..][..k], slope, acc));
        let count = F::from_f64(n as f64);
        let tables = &mut sums[..groups * GROUP];
        let mut value = F::ZERO;
        for p in tables.iter_mut() {
            *p /= count;
            // A vertex that nobody is near adds nothing, and its logarithm weighs nothing.
            let log = if *p > F::ZERO { p.ln() } else { F::ZERO };
            value += *p * log;
            *p = log;
        }
        let logs = &sums[..groups * GROUP];
        loss.as_mut_slice::<F>()[0] = value + sums[groups * GROUP] / count;
        if let (Some(du), Some(factor)) = (&mut du, factor) {
            let (factor, grain) = (F::from_f64(factor.value()) / count, grain_rows(GROUP));
            let rows = du.as_mut_slice::<E>().par_chunks_mut(grain * k).zip(u.par_chunks(grain * k));
            rows.for_each(|(du, u)| {
                for (du, u) in du.chunks_exact_mut(k).zip(u.chunks_exact(k)) {
                    let (v, r) = unit(u);
                    let dv = entropy_gradient(&v[..k], slope, logs);
                    through_unit(du, &v[..k], r, |i| dv[i] * factor);
                }
            });
        }
    });
    (loss, du)
}

/// `sigmoid(z)`.
fn sigmoid<F: Float>(z: F) -> F {
    F::ONE / (F::ONE + (-z).exp())
}

/// Adds a row's distribution over the vertices of each group, and behind them its entropy.
fn add_row<E: Elem>(u: &[E], slope: E::Acc, acc: &mut [E::Acc]) {
    let (v, _) = unit(u);
    for (group, v) in v[..u.len()].chunks(GROUP_BITS).enumerate() {
        let mut table = [E::Acc::ZERO; GROUP];
        table[0] = E::Acc::ONE;
        for (bit, v) in v.iter().enumerate() {
            let z = slope * *v;
            let (p, q) = (sigmoid(z), sigmoid(-z));
            split(&mut table, bit, [q, p]);
            // h2 = log(1 + e^-|z|) + |z| q with q the smaller probability.
            let size = z.abs();
            acc[acc.len() - 1] += (E::Acc::ONE + (-size).exp()).ln() + size * sigmoid(-size);
        }
        let acc = &mut acc[group * GROUP..][..GROUP];
        acc.iter_mut().zip(&table).for_each(|(acc, p)| *acc += *p);
    }
}

/// A distribution over `bit` bits becomes one over one more.
fn split<F: Float>(table: &mut [F; GROUP], bit: usize, [q, p]: [F; 2]) {
    let (low, high) = table.split_at_mut(1 << bit);
    for (low, high) in low.iter_mut().zip(high) {
        (*low, *high) = (*low * q, *low * p);
    }
}

/// The gradient of `N` times the loss with respect to a row at unit length.
fn entropy_gradient<F: Float>(v: &[F], slope: F, logs: &[F]) -> [F; BITS_MAX] {
    let mut dv = [F::ZERO; BITS_MAX];
    for (group, v) in v.chunks(GROUP_BITS).enumerate() {
        let logs = &logs[group * GROUP..][..GROUP];
        // Expectations of the logarithms over the upper bits: level b has 2^b of them, behind 2^b others.
        let mut levels = [F::ZERO; 2 * GROUP];
        levels[GROUP..].copy_from_slice(logs);
        for bit in (0..GROUP_BITS).rev() {
            let p = v.get(bit).map_or(F::ZERO, |v| sigmoid(slope * *v));
            let q = v.get(bit).map_or(F::ONE, |v| sigmoid(-(slope * *v)));
            let (below, above) = levels.split_at_mut(2 << bit);
            for c in 0..1 << bit {
                below[(1 << bit) + c] = q * above[c] + p * above[(1 << bit) + c];
            }
        }
        let mut table = [F::ZERO; GROUP];
        table[0] = F::ONE;
        for (bit, v) in v.iter().enumerate() {
            let z = slope * *v;
            let (p, q) = (sigmoid(z), sigmoid(-z));
            let above = &levels[2 << bit..][..2 << bit];
            let spread = (0..1 << bit).fold(F::ZERO, |sum, c| sum + table[c] * (above[(1 << bit) + c] - above[c]));
            dv[group * GROUP_BITS + bit] = (spread - z) * p * q * slope;
            split(&mut table, bit, [q, p]);
        }
    }
    dv
}

/// Most blocks that share the rows, whatever the device, so that sums are the same on all.
const PARTS_MAX: usize = 132;

/// Numbers of a part: two tables and an entropy.
const PART_ELEMS: usize = 2 * GROUP + 1;

fn launch_entropy(
    gpu: &Gpu,
    arena: &Arena,
    loss: &mut Tensor,
    du: Option<&mut Tensor>,
    u: &Tensor,
    tau: &Scale,
    factor: Option<&Scale>,
) {
    let [n, k] = checked(u);
    let parts = n.div_ceil(16).min(PARTS_MAX);
    let mut partial = Tensor::uninit(arena, [parts, PART_ELEMS], DType::F32);
    let tau = tau.on_gpu(arena);
    by_dtype!(
        u.dtype(),
        hypercube_fwd_distribution_f32 | hypercube_fwd_distribution_bf16,
        (gpu, Grid::linear(parts), partial.ptr_mut(), u.ptr(), tau.ptr(), n, k)
    );
    let mut sums = Tensor::zeros(arena, [PART_ELEMS], DType::F32);
    sum_parts(gpu, &mut sums.whole_mut(), &partial, 0);
    let factor = factor.map(|factor| factor.on_gpu(arena));
    let factor = factor.as_ref().map_or(Ptr::none(), |factor| factor.ptr());
    let grid = Grid::linear(if du.is_some() { n.div_ceil(16).min(PARTS_MAX) } else { 1 });
    by_dtype!(
        u.dtype(),
        hypercube_fwd_entropy_f32 | hypercube_fwd_entropy_bf16,
        (
            gpu,
            grid,
            loss.ptr_mut(),
            du.map_or(PtrMut::none(), |du| du.ptr_mut()),
            u.ptr(),
            sums.ptr(),
            tau.ptr(),
            factor,
            n,
            k
        )
    );
}

/// The code in plain loops.
pub fn reference(u: &[f64], k: usize) -> Vec<f64> {
    u.iter().map(|&u| if u < 0.0 { -height(k) } else { height(k) }).collect()
}

/// Rows at unit length in plain loops: what the code's gradient is that of.
pub fn reference_unit(u: &[f64], k: usize) -> Vec<f64> {
    let row = |u: &[f64]| {
        let r = (u.iter().map(|u| u * u).sum::<f64>() + TINY).sqrt();
        u.iter().map(|u| u / r).collect::<Vec<_>>()
    };
    u.chunks(k).flat_map(row).collect()
}

/// The entropy loss in plain loops over all vertices of each group.
pub fn reference_entropy(u: &[f64], k: usize, tau: f64) -> f64 {
    let v = reference_unit(u, k);
    let p: Vec<f64> = v.iter().map(|v| 1.0 / (1.0 + (-2.0 * tau * v * height(k)).exp())).collect();
    let n = (u.len() / k) as f64;
    let h = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    let mean_entropy = p.iter().map(|&p| h(p) + h(1.0 - p)).sum::<f64>() / n;
    let mut entropy_of_mean = 0.0;
    for first in (0..k).step_by(GROUP_BITS) {
        let bits = GROUP_BITS.min(k - first);
        for c in 0..1usize << bits {
            let at = |row: &[f64]| {
                let bit = |i: usize| if c >> i & 1 == 1 { row[first + i] } else { 1.0 - row[first + i] };
                (0..bits).map(bit).product::<f64>()
            };
            entropy_of_mean += h(p.chunks(k).map(at).sum::<f64>() / n);
        }
    }
    mean_entropy - entropy_of_mean
}
