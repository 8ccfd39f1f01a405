//! The optimisers on a GPU: the same updates by kernels.

use super::{Moments, Plan, Rule, adamw, muon};
use crate::device::cpu::WriteMode;
use crate::device::gemm::{Operand, gemm, gemm_onto};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::ops::grad_norm::{PARTIAL_ELEMS, launch_parts};
use crate::tensor::{Arena, DType, Tensor, TensorMut};

#[allow(clippy::too_many_arguments)] // those of `update`, and the device
pub(super) fn update(
    gpu: &Gpu,
    arena: &Arena,
    plan: &Plan,
    values: &mut Tensor,
    grads: &Tensor,
    moments: &mut Moments,
    grad_factor: f64,
    lr_factor: f64,
) {
    let updates = moments.updates;
    for group in &plan.groups {
        let (first, n) = (group.range.start, group.range.len());
        let (w, g) = (values.view_mut(first, [n]), grads.view(first, [n]));
        let m = moments.first.view_mut(first, [n]);
        let (lr, weight_decay) = (group.lr * lr_factor, group.weight_decay);
        match group.rule {
            Rule::Adamw { beta1, beta2, eps } => {
                let v = moments.second.view_mut(first, [n]);
                let step = adamw::Step { lr, beta1, beta2, eps, weight_decay, updates, grad_factor };
                launch_adamw(gpu, [w, m, v], &g, step);
            }
            Rule::Muon { rows, cols, momentum } => {
                let step = muon::Step { lr, momentum, weight_decay, grad_factor };
                launch_muon(gpu, arena, [w, m], &g, [rows, cols], step);
            }
        }
    }
}

fn launch_adamw(gpu: &Gpu, [mut w, mut m, mut v]: [TensorMut; 3], g: &Tensor, step: adamw::Step) {
    let n = g.elems();
    let adamw::Factors { b1, b2, c1, c2, keep, rate, root, eps, factor } = step.factors();
    let grid = Grid::elementwise(n, size_of::<f32>());
    launch::adamw_fwd_vector_f32(
        gpu,
        grid,
        w.ptr_mut(),
        m.ptr_mut(),
        v.ptr_mut(),
        g.ptr(),
        factor,
        b1,
        b2,
        c1,
        c2,
        keep,
        rate,
        root,
        eps,
        n,
    );
}

fn launch_muon(
    gpu: &Gpu,
    arena: &Arena,
    [mut w, mut m]: [TensorMut; 2],
    g: &Tensor,
    [rows, cols]: [usize; 2],
    step: muon::Step,
) {
    let (n, grid) = (rows * cols, Grid::elementwise(rows * cols, size_of::<f32>()));
    let mut direction = Tensor::uninit(arena, [rows, cols], DType::F32);
    let rest = ((1.0 - step.momentum) * step.grad_factor) as f32;
    let mu = step.momentum as f32;
    launch::muon_fwd_momentum_f32(gpu, grid, direction.ptr_mut(), m.ptr_mut(), g.ptr(), mu, rest, n);
    let orthogonal = newton_schulz(gpu, arena, direction);
    let rate = (step.lr * (rows as f64 / cols as f64).max(1.0).sqrt()) as f32;
    let decay = (step.lr * step.weight_decay) as f32;
    launch::muon_fwd_apply_f32(gpu, grid, w.ptr_mut(), orthogonal.ptr(), rate, decay, n);
}

/// The semi-orthogonal neighbour of `x [rows, cols]`: the square products are those of the shorter side, by strides.
fn newton_schulz(gpu: &Gpu, arena: &Arena, mut x: Tensor) -> Tensor {
    let [rows, cols] = x.dims();
    let (n, short) = (rows * cols, rows.min(cols));
    let parts = n.div_ceil(PARTIAL_ELEMS);
    let mut partial = Tensor::uninit(arena, [parts], DType::F64);
    launch_parts(gpu, &mut partial.whole_mut(), &x);
    let grid = Grid::elementwise(n, size_of::<f32>());
    launch::muon_fwd_normalise_f32(gpu, grid, x.ptr_mut(), partial.ptr(), parts, n);
    let [mut gram, mut square] = [(); 2].map(|()| Tensor::uninit(arena, [short, short], DType::F32));
    for _ in 0..muon::ROUNDS {
        let m = Operand::new(&x, rows, cols);
        let (left, right) = if rows <= cols { (m, m.t()) } else { (m.t(), m) };
        gemm(arena, &mut gram.whole_mut(), left, right, WriteMode::Overwrite);
        // The polynomial's products are added to what they multiply: B A + C A A, then A X + (...) X.
        let g = Operand::new(&gram, short, short);
        gemm_onto(arena, &mut square.whole_mut(), &gram, g, g, [muon::C as f32, muon::B as f32]);
        let mut next = Tensor::uninit(arena, [rows, cols], DType::F32);
        let s = Operand::new(&square, short, short);
        let (left, right) = if rows <= cols { (s, m) } else { (m, s) };
        gemm_onto(arena, &mut next.whole_mut(), &x, left, right, [1.0, muon::A as f32]);
        x = next;
    }
    x
}
