//! Ops that memory bounds: rows are rated in bytes. Ops that work in place are fed their own result again, so that no
//! copy is timed.

use super::{Bench, Work, f32_bytes, grads};
use nanochat_gpu::ops::rope::{self, Heads, QkNorm, Table};
use nanochat_gpu::ops::{add, embedding, grad_norm, rmsnorm, scale_grad, softcap, swiglu};
use nanochat_gpu::tensor::{DType, ParamId, Tensor};
use nanochat_gpu::verify;

const EPS: f64 = 1e-5;

pub fn rows(bench: &mut Bench) {
    add_rows(bench);
    embedding_rows(bench);
    rmsnorm_rows(bench);
    rope_rows(bench);
    swiglu_rows(bench);
    softcap_rows(bench);
    scale_grad_rows(bench);
    grad_norm_rows(bench);
}

/// Rows and columns of the residual stream.
fn stream(bench: &Bench) -> [usize; 2] {
    bench.size([2048, 384], [16, 40])
}

/// Runs an op that takes its operand and returns it.
fn in_place(value: &mut Option<Tensor>, op: impl FnOnce(Tensor) -> Tensor) {
    let taken = value.take().expect("put back by the call before");
    *value = Some(op(taken));
}

/// Reads two, writes one. Backward hands on the same tensor twice and moves nothing.
fn add_bytes(n: usize, c: usize) -> usize {
    f32_bytes(3 * n * c)
}

fn add_rows(bench: &mut Bench) {
    let [n, c] = stream(bench);
    let (mut a, b, arena) = (Some(bench.normals("a", [n, c])), bench.normals("b", [n, c]), bench.arena.clone());
    let work = Work::Bytes(add_bytes(n, c));
    bench.row("add", &format!("forward N{n} C{c}"), work, || in_place(&mut a, |a| add::forward(&arena, a, &b)));
}

/// Forward reads a row of the table and writes one.
fn embedding_forward_bytes(n: usize, c: usize) -> usize {
    f32_bytes(2 * n * c)
}

/// Backward reads `dy`, and reads and writes the rows of the gradient.
fn embedding_backward_bytes(n: usize, c: usize) -> usize {
    f32_bytes(3 * n * c)
}

fn embedding_rows(bench: &mut Bench) {
    let ([n, c], v, arena) = (stream(bench), bench.size(4096, 50), bench.arena.clone());
    let (table, dy, tokens) = (
        bench.normals("table", [v, c]),
        bench.normals("dy", [n, c]),
        Tensor::from_slice(&bench.arena, [n], &verify::integers("tokens", n, v)),
    );
    let mut grads = grads(&[&[v, c]]);
    bench.row("embedding", &format!("forward N{n} C{c} V{v}"), Work::Bytes(embedding_forward_bytes(n, c)), || {
        embedding::forward(&arena, &table, &tokens)
    });
    bench.row("embedding", &format!("backward N{n} C{c} V{v}"), Work::Bytes(embedding_backward_bytes(n, c)), || {
        embedding::backward(&mut grads.view_mut(ParamId(0)), &dy, &tokens)
    });
}

/// Forward reads `x`, writes `y`; fused it also reads the residual and writes the sum.
fn rmsnorm_forward_bytes(n: usize, c: usize, is_fused: bool) -> usize {
    f32_bytes(if is_fused { 4 * n * c } else { 2 * n * c })
}

/// Backward reads `dy` and `x`, writes `dx`; fused it also reads the residual's gradient.
fn rmsnorm_backward_bytes(n: usize, c: usize, is_fused: bool) -> usize {
    f32_bytes(if is_fused { 4 * n * c } else { 3 * n * c })
}

fn rmsnorm_rows(bench: &mut Bench) {
    let ([n, c], arena) = (stream(bench), bench.arena.clone());
    let (x, gain, dy) = (bench.normals("x", [n, c]), bench.normals("gain", [c]), bench.normals("dy", [n, c]));
    let mut grads = grads(&[&[c]]);
    let name = |what: &str| format!("{what} N{n} C{c}");
    bench.row("rmsnorm", &name("forward"), Work::Bytes(rmsnorm_forward_bytes(n, c, false)), || {
        rmsnorm::forward(&arena, &x, &gain, EPS)
    });
    let mut delta = Some(bench.normals("delta", [n, c]));
    bench.row("rmsnorm", &name("forward with add"), Work::Bytes(rmsnorm_forward_bytes(n, c, true)), || {
        in_place(&mut delta, |delta| rmsnorm::forward_add(&arena, &x, delta, &gain, EPS).0)
    });
    let (_, saved) = rmsnorm::forward(&arena, &x, &gain, EPS);
    bench.row("rmsnorm", &name("backward"), Work::Bytes(rmsnorm_backward_bytes(n, c, false)), || {
        rmsnorm::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, None, &gain, &saved)
    });
    let mut dsum = Some(bench.normals("dsum", [n, c]));
    bench.row("rmsnorm", &name("backward with add"), Work::Bytes(rmsnorm_backward_bytes(n, c, true)), || {
        in_place(&mut dsum, |dsum| {
            rmsnorm::backward(&arena, &mut grads.view_mut(ParamId(0)), &dy, Some(dsum), &gain, &saved)
        })
    });
}

/// Reads and writes queries and keys, either direction; values stay where they are.
fn rope_bytes(n: usize, heads: Heads) -> usize {
    f32_bytes(2 * n * (heads.h + heads.g) * heads.d)
}

/// QK-norm leaves its input as it is: the whole row is written anew. Backward reads the gradient and the input, and
/// writes.
fn rope_norm_bytes(n: usize, heads: Heads) -> [usize; 2] {
    [f32_bytes(2 * n * heads.row_elems()), f32_bytes(3 * n * (heads.h + heads.g) * heads.d)]
}

fn rope_rows(bench: &mut Bench) {
    let (n, t, heads) = bench.size((2048, 256, Heads { h: 6, g: 6, d: 64 }), (18, 9, Heads { h: 3, g: 1, d: 8 }));
    let (arena, Heads { h, g, d }) = (bench.arena.clone(), heads);
    let table = Table::new(t, &rope::frequencies(d, 10_000.0, None), DType::F32);
    let name = |what: &str| format!("{what} N{n} H{h} G{g} D{d}");
    let mut qkv = Some(bench.normals("qkv", [n, heads.row_elems()]));
    bench.row("rope", &name("forward"), Work::Bytes(rope_bytes(n, heads)), || {
        in_place(&mut qkv, |x| rope::forward(&arena, x, heads, t, 0, &table, None).0)
    });
    let (_, saved) = rope::forward(&arena, bench.normals("x", [n, heads.row_elems()]), heads, t, 0, &table, None);
    bench.row("rope", &name("backward"), Work::Bytes(rope_bytes(n, heads)), || {
        in_place(&mut qkv, |dy| rope::backward(&arena, dy, heads, t, &table, None, &saved))
    });
    let (x, q_gain, k_gain) =
        (bench.normals("x", [n, heads.row_elems()]), bench.normals("q", [d]), bench.normals("k", [d]));
    let norm = QkNorm { q_gain: &q_gain, k_gain: &k_gain, eps: EPS };
    let [forward_bytes, backward_bytes] = rope_norm_bytes(n, heads);
    bench.row("rope", &name("forward with norm"), Work::Bytes(forward_bytes), || {
        rope::forward(&arena, x.clone(), heads, t, 0, &table, Some(norm))
    });
    let (_, saved) = rope::forward(&arena, x.clone(), heads, t, 0, &table, Some(norm));
    let mut grads = grads(&[&[d], &[d]]);
    // The gradient would grow without bound if it were fed back through the norm, so here a copy is timed, too.
    bench.row("rope", &name("backward with norm"), Work::Bytes(backward_bytes), || {
        let dgains = grads.pair_mut(ParamId(0), ParamId(1));
        rope::backward(&arena, x.clone(), heads, t, &table, Some((norm, dgains)), &saved)
    });
}

/// Forward reads gate and up, writes one.
fn swiglu_forward_bytes(n: usize, f: usize) -> usize {
    f32_bytes(3 * n * f)
}

/// Backward reads `dy`, gate and up, writes the gradients of both.
fn swiglu_backward_bytes(n: usize, f: usize) -> usize {
    f32_bytes(5 * n * f)
}

fn swiglu_rows(bench: &mut Bench) {
    let ([n, f], arena) = (bench.size([2048, 1024], [16, 40]), bench.arena.clone());
    let (gate_up, dy) = (bench.normals("gate_up", [n, 2 * f]), bench.normals("dy", [n, f]));
    let saved = swiglu::Saved { gate_up: gate_up.clone() };
    bench.row("swiglu", &format!("forward N{n} F{f}"), Work::Bytes(swiglu_forward_bytes(n, f)), || {
        swiglu::forward(&arena, &gate_up)
    });
    bench.row("swiglu", &format!("backward N{n} F{f}"), Work::Bytes(swiglu_backward_bytes(n, f)), || {
        swiglu::backward(&arena, &dy, &saved)
    });
}

/// Forward reads and writes one; fed back, values would shrink, so a copy (two more) is timed with it.
fn softcap_forward_bytes(n: usize, c: usize) -> usize {
    f32_bytes(4 * n * c)
}

/// Backward reads `y` besides.
fn softcap_backward_bytes(n: usize, c: usize) -> usize {
    f32_bytes(5 * n * c)
}

fn softcap_rows(bench: &mut Bench) {
    let ([n, c], arena, cap) = (stream(bench), bench.arena.clone(), 15.0);
    let (x, dy) = (bench.normals("x", [n, c]), bench.normals("dy", [n, c]));
    let saved = softcap::Saved { y: softcap::forward(&arena, x.clone(), cap), cap };
    bench.row("softcap", &format!("forward N{n} C{c}"), Work::Bytes(softcap_forward_bytes(n, c)), || {
        softcap::forward(&arena, x.clone(), cap)
    });
    bench.row("softcap", &format!("backward N{n} C{c}"), Work::Bytes(softcap_backward_bytes(n, c)), || {
        softcap::backward(&arena, dy.clone(), &saved)
    });
}

/// Backward reads and writes one; forward hands on its input and moves nothing.
fn scale_grad_bytes(n: usize, c: usize) -> usize {
    f32_bytes(2 * n * c)
}

fn scale_grad_rows(bench: &mut Bench) {
    let ([n, c], arena) = (stream(bench), bench.arena.clone());
    let mut dy = Some(bench.normals("dy", [n, c]));
    // By -1, since anything else would drift to 0 or infinity.
    bench.row("scale_grad", &format!("backward N{n} C{c}"), Work::Bytes(scale_grad_bytes(n, c)), || {
        in_place(&mut dy, |dy| scale_grad::backward(&arena, dy, -1.0))
    });
}

/// Reads every gradient once; there is no backward.
fn grad_norm_bytes(elems: usize) -> usize {
    f32_bytes(elems)
}

fn grad_norm_rows(bench: &mut Bench) {
    let elems = bench.size(10_000_000, 1000);
    let (arena, flat) = (bench.arena.clone(), bench.normals("grads", [elems]));
    let ranges = [0..elems / 3, elems / 3..elems];
    bench.row("grad_norm", &format!("{elems} elements"), Work::Bytes(grad_norm_bytes(elems)), || {
        grad_norm::sums_of_squares(&arena, &flat, &ranges)
    });
}
