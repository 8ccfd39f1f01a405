use super::*;
use nanochat_gpu::ops::hypercube;

#[test]
fn codes() {
    check(verify::parts::hypercube);
}

#[test]
fn entropy() {
    check(verify::parts::code_entropy);
}

/// Softmax over all vertices of `tau <u, c>` is a product of sigmoids: what the loss rests on.
#[test]
fn a_softmax_over_all_vertices_factorises() {
    let (k, tau) = (6, 7.0);
    let u = hypercube::reference_unit(&verify::normals("factorise", k), k);
    let height = 1.0 / (k as f64).sqrt();
    let sign = |c: usize, i: usize| if c >> i & 1 == 1 { 1.0 } else { -1.0 };
    let score = |c: usize| (tau * (0..k).map(|i| u[i] * sign(c, i) * height).sum::<f64>()).exp();
    let total: f64 = (0..1 << k).map(score).sum();
    for c in 0..1 << k {
        let product: f64 = (0..k).map(|i| 1.0 / (1.0 + (-2.0 * tau * u[i] * sign(c, i) * height).exp())).product();
        assert!((score(c) / total - product).abs() < 1e-14);
    }
}

/// All rows on one vertex: no entropy of either kind. Each vertex of 8 bits once, sharply: that of 256 vertices.
#[test]
fn entropy_at_its_ends() {
    let arena = Arena::new(1 << 20).unwrap();
    let loss = |rows: &[f64], n: usize| {
        let u = tensor(&arena, DType::F64, [n, 8], rows);
        hypercube::entropy(&arena, &u, &400.0.into(), None).0.to_f64()[0]
    };
    assert!(loss(&[1.0; 24], 3).abs() < 1e-12);
    let all: Vec<f64> = (0..256 * 8).map(|i| if ((i / 8) >> (i % 8)) & 1 == 1 { 1.0 } else { -1.0 }).collect();
    assert!((loss(&all, 256) + 256f64.ln()).abs() < 1e-9, "{}", loss(&all, 256));
    assert!(loss(&[0.0; 8], 1).is_finite());
}
