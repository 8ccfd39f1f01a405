use super::*;
use nanochat_gpu::ops::top_k_softmax::{self, Options};

#[test]
fn cases() {
    check(verify::banks::top_k_softmax);
}

#[test]
fn statistics_on_devices() {
    check_on_all(verify::banks::top_k_statistics_on);
}

/// A score that is no number is not passed over.
#[test]
fn nan_is_read() {
    let arena = Arena::new(1 << 20).unwrap();
    let read = |arena: &Arena| {
        let scores = tensor(arena, DType::F32, [2, 40], &[vec![1.0; 37], vec![f64::NAN; 1], vec![1.0; 42]].concat());
        let options = Options { top: 2, scale: 1.0 };
        top_k_softmax::forward(arena, &scores, None, options).0.to_f64()
    };
    let same = |weights: Vec<f64>| {
        assert!(weights[..40].iter().any(|w| w.is_nan()), "{weights:?}");
        assert!(weights[40..].iter().enumerate().all(|(i, &w)| w == if i < 2 { 0.5 } else { 0.0 }), "{weights:?}");
    };
    same(read(&arena));
    simulators().into_iter().for_each(|gpu| same(read(&Arena::scattered(gpu))));
}

/// What an entry is said to be worth is what the loss rises by when it is taken out: on a loss that is linear in what is read, to the last digit;
/// and on a curved one, in the order of the entries.
#[test]
fn fitness_is_what_leaving_an_entry_out_costs() {
    let (n, m, c, top) = (300, 24, 5, 8);
    let arena = Arena::new(4 << 20).unwrap();
    let (scores, values) = (verify::normals("fitness scores", n * m), verify::normals("fitness values", m * c));
    let goals = verify::normals("fitness goals", n * c);
    let options = Options { top, scale: 0.7 };
    let weights = top_k_softmax::reference(&scores, m, |_, _| true, options);
    let read = |weights: &[f64]| -> Vec<f64> {
        let of = |row: &[f64], k: usize| row.iter().enumerate().map(|(i, a)| a * values[i * c + k]).sum::<f64>();
        weights.chunks(m).flat_map(|row| (0..c).map(move |k| of(row, k)).collect::<Vec<_>>()).collect()
    };
    // On top of the linear loss <goal, o>, a share of the squared distance.
    let loss = |o: &[f64], curve: f64| -> f64 {
        o.iter().zip(&goals).map(|(o, g)| g * o + curve * 0.5 * (o - g) * (o - g)).sum()
    };
    for (curve, least) in [(0.0, 1.0 - 1e-12), (0.1, 0.99)] {
        let o = read(&weights);
        let d: Vec<f64> = o.iter().zip(&goals).map(|(o, g)| g + curve * (o - g)).collect();
        let da: Vec<f64> =
            (0..n * m).map(|at| (0..c).map(|k| d[at / m * c + k] * values[at % m * c + k]).sum()).collect();
        let (_, saved) = top_k_softmax::forward(&arena, &tensor(&arena, DType::F64, [n, m], &scores), None, options);
        let mut grads = gradients(&arena, DType::F64, &[[2, m].into()]);
        let da = tensor(&arena, DType::F64, [n, m], &da);
        top_k_softmax::backward(&arena, &da, &saved, Some(grads.view_mut(ParamId(0))));
        let statistics = gradient(&grads, 0);
        let (fitness, uses) = statistics.split_at(m);
        let without = |i: usize| {
            let mut weights = weights.clone();
            for row in weights.chunks_mut(m) {
                row[i] = 0.0;
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|w| *w /= sum);
            }
            loss(&read(&weights), curve) - loss(&o, curve)
        };
        let truth: Vec<f64> = (0..m).map(without).collect();
        let correlation = correlation(fitness, &truth);
        assert!(correlation >= least, "{correlation}: {fitness:?} {truth:?}");
        for (i, &used) in uses.iter().enumerate() {
            let sum: f64 = weights.chunks(m).map(|row| row[i]).sum();
            assert!((used - sum).abs() < 1e-10, "{i}: {used} {sum}");
        }
    }
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let product =
        |x: &[f64], mx: f64, y: &[f64], my: f64| x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>();
    product(a, ma, b, mb) / (product(a, ma, a, ma) * product(b, mb, b, mb)).sqrt()
}
