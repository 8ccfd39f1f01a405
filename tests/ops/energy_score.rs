use super::*;
use nanochat_gpu::ops::energy_score::{self, SAMPLES, Truth};
use nanochat_gpu::ops::latent::Chunks;
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::tensor::Scale;

#[test]
fn cases() {
    check(verify::energy::score);
}

#[test]
fn contexts_and_draws_on_devices() {
    check_on_all(verify::energy::draws_on);
}

/// Two rows of 12 tokens; in the first, documents of 9 and 3 tokens.
#[test]
fn a_context_is_the_token_before_a_chunk_in_its_document() {
    let arena = Arena::new(1 << 16).unwrap();
    let chunks = Chunks { t: 12, first: 0, every: 1 };
    let starts: Vec<u32> = [[0; 9].as_slice(), &[9; 3], &[0; 12]].concat();
    let contexts = energy_score::contexts(&arena, chunks, 24, Some(&ids(&arena, &starts)));
    let each = |values: [u32; 6]| values.iter().flat_map(|&x| [x; SAMPLES]).collect::<Vec<u32>>();
    // Chunks begin at 0, 4 and nowhere; at 12, 16 and 20.
    assert_eq!(contexts.rows.as_slice::<u32>(), each([0, 3, 0, 0, 15, 19]));
    assert_eq!(contexts.documents.as_slice::<u32>(), [IGNORE, 0, IGNORE, IGNORE, 12, 12]);
    assert_eq!(energy_score::counted(chunks, 24, Some(&starts)), 3);
    assert_eq!(energy_score::counted(chunks, 24, None), 4);
}

/// Of samples around the truth with a spread of their own, those that have the true spread score best, and those around the true mean.
#[test]
fn the_score_is_least_at_the_true_distribution() {
    let (arena, m, l) = (Arena::new(32 << 20).unwrap(), 2000, 8);
    let (mean, spread) = (0.3, 0.7f64);
    let h: Vec<f64> = (0..m * 2 * l).map(|i| if i % (2 * l) < l { mean } else { spread.ln() }).collect();
    let noise = verify::normals("samples", SAMPLES * m * l);
    let score = |shift: f64, factor: f64| {
        let zhat: Vec<f64> = noise.iter().map(|x| mean + shift + factor * spread * x).collect();
        let (zhat, h) =
            (tensor(&arena, DType::F64, [SAMPLES * m, l], &zhat), tensor(&arena, DType::F64, [m, 2 * l], &h));
        let truth = Truth { h: &h, documents: &ids(&arena, &vec![0; m]), noise: &Scale::from(4.0) };
        energy_score::score(&arena, &zhat, truth, None).0.to_f64().iter().sum::<f64>() / m as f64
    };
    let best = score(0.0, 1.0);
    for (shift, factor) in [(0.0, 0.0), (0.0, 0.7), (0.0, 1.4), (0.3, 1.0), (-0.3, 1.0)] {
        assert!(score(shift, factor) > best + 0.005, "{shift} {factor}: {} {best}", score(shift, factor));
    }
    // At its least it is the mean distance of two draws over sqrt(l): as much as both terms, of which one is halved.
    let apart = energy_score::reference_draws(&h, l, 4);
    let pairs = apart.chunks(2 * l).map(|pair| (0..l).map(|i| (pair[i] - pair[l + i]).powi(2)).sum::<f64>().sqrt());
    let distance = pairs.sum::<f64>() / (apart.len() / (2 * l)) as f64 / (l as f64).sqrt();
    assert!((best - distance).abs() < 0.02, "{best} {distance}");
}

#[test]
fn draws_are_of_their_distributions_and_of_their_seed() {
    let (arena, m, l) = (Arena::new(16 << 20).unwrap(), 800, 16);
    let h: Vec<f64> = (0..m * 2 * l).map(|i| if i % (2 * l) < l { -1.0 } else { 0.5 }).collect();
    let h = tensor(&arena, DType::F64, [m, 2 * l], &h);
    let draw = |seed: f64| energy_score::draws(&arena, &h, &Scale::from(seed)).map(|x| x.to_f64());
    let moments = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64)
    };
    let [eps, z] = draw(1.0);
    let ((eps_mean, eps_variance), (z_mean, z_variance)) = (moments(&eps), moments(&z));
    assert!(eps_mean.abs() < 0.01 && (eps_variance - 1.0 / 12.0).abs() < 0.002, "{eps_mean} {eps_variance}");
    assert!((z_mean + 1.0).abs() < 0.03 && (z_variance - 1f64.exp()).abs() < 0.06, "{z_mean} {z_variance}");
    assert!(eps.iter().all(|x| x.abs() < 0.5));
    assert!(draw(1.0) == [eps.clone(), z.clone()] && draw(2.0)[0] != eps && draw(2.0)[1] != z);
}
