//! The optimisers on a GPU: the same updates by kernels.

use super::{Group, Moments, Pace, Plan, Rule, adamw, muon};
use crate::device::cpu::WriteMode;
use crate::device::gemm::{Operand, gemm, gemm_onto};
use crate::device::gpu::Gpu;
use crate::device::launch::{self, Grid};
use crate::ops::grad_norm::{PARTIAL_ELEMS, launch_parts};
use crate::tensor::{Arena, DType, Tensor, TensorMut};

/// Numbers of a group's update that change from step to step.
pub(crate) const RATES: usize = 3;

/// `[groups, RATES]`: what each group is updated with in the update that is number `updates`, as the kernels take it.
pub(crate) fn rates(plan: &Plan, updates: u64, pace: Pace) -> Vec<f32> {
    let of = |group: &Group| {
        let (lr, weight_decay) = (group.lr_at(pace), group.weight_decay);
        match group.rule {
            Rule::Adamw { beta1, beta2, eps } => {
                let step = adamw::Step { lr, beta1, beta2, eps, weight_decay, updates, grad_factor: 1.0 };
                let adamw::Factors { keep, rate, root, .. } = step.factors();
                [keep, rate, root]
            }
            // What AdamW's kernel makes of betas 0 and 1, eps 1 and no second moment: w keep - rate g.
            Rule::Average { keep } => [keep as f32, (keep - 1.0) as f32, 0.0],
            Rule::Muon { rows, cols, .. } => {
                [(lr * muon::rows_factor(rows, cols)) as f32, (lr * weight_decay) as f32, 0.0]
            }
        }
    };
    plan.groups.iter().flat_map(of).collect()
}

/// Updates all groups by recordable launches. `verdict [2]` f32: the factor of all gradients, and 0 when nothing is to change;
/// `rates` as [`rates`] says.
pub(crate) fn launch(
    gpu: &Gpu,
    arena: &Arena,
    plan: &Plan,
    values: &mut Tensor,
    grads: &Tensor,
    moments: &mut Moments,
    (verdict, rates): (&Tensor, &Tensor),
) {
    for (i, group) in plan.groups.iter().enumerate() {
        let (first, n) = (group.range.start, group.range.len());
        let (w, g) = (values.view_mut(first, [n]), grads.view(first, [n]));
        let m = moments.first.view_mut(first, [n]);
        let rates = rates.view(RATES * i, [RATES]);
        match group.rule {
            Rule::Adamw { beta1, beta2, eps } => {
                let v = moments.second.view_mut(first, [n]);
                launch_adamw(gpu, [w, m, v], [&g, verdict, &rates], [beta1, beta2, eps]);
            }
            Rule::Average { .. } => {
                let v = moments.second.view_mut(first, [n]);
                launch_adamw(gpu, [w, m, v], [&g, verdict, &rates], [0.0, 1.0, 1.0]);
            }
            Rule::Muon { rows, cols, momentum } => {
                launch_muon(gpu, arena, [w, m], [&g, verdict, &rates], [rows, cols], momentum);
            }
        }
    }
}

fn launch_adamw(
    gpu: &Gpu,
    [mut w, mut m, mut v]: [TensorMut; 3],
    [g, verdict, rates]: [&Tensor; 3],
    [beta1, beta2, eps]: [f64; 3],
) {
    let n = g.elems();
    launch::adamw_fwd_vector_f32(
        gpu,
        Grid::elementwise(n, size_of::<f32>()),
        w.ptr_mut(),
        m.ptr_mut(),
        v.ptr_mut(),
        g.ptr(),
        verdict.ptr(),
        rates.ptr(),
        beta1 as f32,
        beta2 as f32,
        (1.0 - beta1) as f32,
        (1.0 - beta2) as f32,
        eps as f32,
        n,
    );
}

fn launch_muon(
    gpu: &Gpu,
    arena: &Arena,
    [mut w, mut m]: [TensorMut; 2],
    [g, verdict, rates]: [&Tensor; 3],
    [rows, cols]: [usize; 2],
    momentum: f64,
) {
    let (n, grid) = (rows * cols, Grid::elementwise(rows * cols, size_of::<f32>()));
    let mut direction = Tensor::uninit(arena, [rows, cols], DType::F32);
    let (mu, rest) = (momentum as f32, (1.0 - momentum) as f32);
    let (u, m) = (direction.ptr_mut(), m.ptr_mut());
    launch::muon_fwd_momentum_f32(gpu, grid, u, m, g.ptr(), verdict.ptr(), mu, rest, n);
    let orthogonal = newton_schulz(gpu, arena, direction);
    launch::muon_fwd_apply_f32(gpu, grid, w.ptr_mut(), orthogonal.ptr(), verdict.ptr(), rates.ptr(), n);
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
