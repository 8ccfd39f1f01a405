//! Ops built on matrix products: rows are rated in floating-point operations, two per multiply-add.

use super::{Bench, Work, grads};
use nanochat_gpu::ops::linear;
use nanochat_gpu::ops::lm_loss::{self, Gradients};
use nanochat_gpu::tensor::{ParamId, Tensor};
use nanochat_gpu::verify;

pub fn rows(bench: &mut Bench) {
    linear_rows(bench);
    lm_loss_rows(bench);
}

/// One product forward, two backward.
fn linear_flops(n: usize, i: usize, o: usize) -> [usize; 2] {
    [2 * n * i * o, 4 * n * i * o]
}

fn linear_rows(bench: &mut Bench) {
    let ([n, i, o], arena) = (bench.size([2048, 384, 1152], [16, 40, 24]), bench.arena.clone());
    let (x, w, dy) = (bench.normals("x", [n, i]), bench.normals("w", [o, i]), bench.normals("dy", [n, o]));
    let (saved, mut grads) = (linear::Saved { x: x.clone() }, grads(&[&[o, i]]));
    let [forward, backward] = linear_flops(n, i, o);
    bench.row("linear", &format!("forward N{n} {i} to {o}"), Work::Flops(forward), || linear::forward(&arena, &x, &w));
    bench.row("linear", &format!("backward N{n} {i} to {o}"), Work::Flops(backward), || {
        linear::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, &w, &saved)
    });
}

/// One product without gradients, three with; the exponentials are not counted.
fn lm_loss_flops(n: usize, c: usize, v: usize) -> [usize; 2] {
    [2 * n * c * v, 6 * n * c * v]
}

fn lm_loss_rows(bench: &mut Bench) {
    let ([n, c], arena) = (bench.size([2048, 384], [16, 40]), bench.arena.clone());
    let x = bench.normals("x", [n, c]);
    for v in bench.size(vec![4096, 32768], vec![97]) {
        let (w, targets) =
            (bench.normals("w", [v, c]), Tensor::from_slice(&arena, [n], &verify::integers("targets", n, v)));
        let mut grads = grads(&[&[v, c]]);
        let [forward, both] = lm_loss_flops(n, c, v);
        bench.row("lm_loss", &format!("forward N{n} C{c} V{v}"), Work::Flops(forward), || {
            lm_loss::forward(&arena, &x, &w, &targets, None, None)
        });
        bench.row("lm_loss", &format!("forward and backward N{n} C{c} V{v}"), Work::Flops(both), || {
            let gradients = Gradients { scale: 1.0 / n as f64, dweight: grads.view_mut(ParamId(0)) };
            lm_loss::forward(&arena, &x, &w, &targets, None, Some(gradients))
        });
    }
}
