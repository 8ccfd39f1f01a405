use super::*;
use nanochat_gpu::ops::rope::{self, Heads, Llama3Scaling, QkNorm, Table};
use nanochat_gpu::verify;

const SHAPES: [(usize, usize, Heads); 4] = [
    (1, 1, Heads { h: 1, g: 1, d: 2 }),
    (2, 9, Heads { h: 3, g: 1, d: 6 }),
    (3, 31, Heads { h: 4, g: 2, d: 16 }),
    (1, 140, Heads { h: 9, g: 3, d: 8 }),
];
const SCALING: Llama3Scaling =
    Llama3Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 32 };

fn cases(norm: bool) {
    for (i, (b, t, heads)) in SHAPES.into_iter().enumerate() {
        let (n, row, d) = (b * t, heads.row_elems(), heads.d);
        let frequencies = rope::frequencies(d, 10_000.0, (i % 2 == 1).then_some(SCALING));
        let gain = |name| if norm { verify::normals(name, d) } else { vec![] };
        check(OpCase {
            name: format!("rope {b}x{t} {heads:?} norm {norm}"),
            inputs: vec![verify::normals("rope", n * row), gain("q gain"), gain("k gain")],
            longest_sum: n * heads.h + d,
            run: &|arena, dtype, inputs, dy| {
                let table = Table::new(t + 5, &frequencies, dtype.accumulator()).to(arena.device());
                let gains = [
                    tensor(arena, dtype, [inputs[1].len()], &inputs[1]),
                    tensor(arena, dtype, [inputs[2].len()], &inputs[2]),
                ];
                let qk_norm = norm.then_some(QkNorm { q_gain: &gains[0], k_gain: &gains[1], eps: 1e-5 });
                let x = tensor(arena, dtype, [n, row], &inputs[0]);
                let (y, saved) = rope::forward(arena, x, heads, t, 0, &table, qk_norm);
                let mut grads = gradients(arena, dtype, &[gains[0].shape(), gains[1].shape()]);
                let dgains = qk_norm.map(|q| (q, grads.pair_mut(ParamId(0), ParamId(1))));
                let dx = rope::backward(arena, tensor(arena, dtype, [n, row], dy), heads, t, &table, dgains, &saved);
                Outcome { output: y.to_f64(), gradients: vec![dx.to_f64(), gradient(&grads, 0), gradient(&grads, 1)] }
            },
            reference: &|inputs| {
                let norm = norm.then_some((&inputs[1][..], &inputs[2][..], 1e-5));
                rope::reference(&inputs[0], heads, t, &frequencies, norm)
            },
        });
    }
}

#[test]
fn cases_without_norm() {
    cases(false);
}

#[test]
fn cases_with_norm() {
    cases(true);
}

#[test]
fn scores_depend_on_the_distance_only() {
    let (arena, heads) = (Arena::new(1 << 20).unwrap(), Heads { h: 1, g: 1, d: 8 });
    let table = Table::new(200, &rope::frequencies(8, 500_000.0, None), DType::F64);
    let row = verify::normals("relative", 24);
    let rotated = |position: usize| {
        let x = tensor(&arena, DType::F64, [1, 24], &row);
        rope::forward(&arena, x, heads, 1, position, &table, None).0.to_f64()
    };
    let score = |p: usize, q: usize| (0..8).map(|i| rotated(p)[i] * rotated(q)[8 + i]).sum::<f64>();
    assert!((score(10, 3) - score(187, 180)).abs() < 1e-9);
    assert!((score(10, 3) - score(10, 4)).abs() > 1e-3);
}
