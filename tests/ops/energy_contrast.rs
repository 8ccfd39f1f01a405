use super::*;
use nanochat_gpu::ops::energy_contrast::{self, Pair, REACH};
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::tensor::Scale;

#[test]
fn contrasts() {
    check(verify::energy::contrast);
}

#[test]
fn retrievals() {
    check(verify::energy::retrieve);
}

/// Keys are 1 in three of four true latents and in two of four generated ones. The slope of the whole is zero where `-E` is the
/// logarithm of true over generated, and not where it is something else.
#[test]
fn the_optimum_is_the_log_odds() {
    let arena = Arena::new(1 << 16).unwrap();
    let slopes = |q: f64, b: f64| {
        let of = |values: [f64; 4]| tensor(&arena, DType::F64, [4, 1], &values);
        let (q, bias) = (of([q; 4]), of([b; 4]));
        let (good, bad) = (of([1.0, 1.0, 1.0, -1.0]), of([1.0, 1.0, -1.0, -1.0]));
        let pair = Pair { q: &q, good: &good, bad: &bad, bias: &bias };
        let (_, to) = energy_contrast::contrast(&arena, pair, &ids(&arena, &[0]), 1.0, Some(&Scale::from(1.0)));
        let to = to.unwrap();
        [to.q, to.bias].map(|d| d.to_f64().iter().sum::<f64>())
    };
    let (one, minus_one) = (1.5f64.ln(), 0.5f64.ln());
    assert!(slopes((one - minus_one) / 2.0, (one + minus_one) / 2.0).iter().all(|slope| slope.abs() < 1e-12));
    assert!(slopes(0.0, 0.0)[0].abs() > 0.1 && slopes((one - minus_one) / 2.0, 0.5)[1].abs() > 0.1);
}

#[test]
fn a_chunk_is_told_from_those_of_other_documents_near_it() {
    let arena = Arena::new(1 << 20).unwrap();
    let losses = |documents: &[u32]| {
        let zeros = tensor(&arena, DType::F64, [documents.len(), 1], &vec![0.0; documents.len()]);
        let (losses, _) = energy_contrast::retrieve(&arena, [&zeros; 2], &ids(&arena, documents), None);
        losses.to_f64()
    };
    let ln = |n: f64| n.ln();
    // At even odds the loss is the logarithm of how many there are.
    verify::close("few", &losses(&[0, 0, 7, IGNORE]), &[ln(2.0), ln(2.0), ln(3.0), 0.0], 1e-12).unwrap();
    assert_eq!(losses(&[5, 5, 5]), [0.0; 3]);
    assert_eq!(losses(&[5]), [0.0]);
    // Of 700 chunks of two documents in turns, half of the 256 that follow.
    let many: Vec<u32> = (0..700).map(|i| i % 2).collect();
    verify::close("many", &losses(&many), &vec![ln(1.0 + REACH as f64 / 2.0); 700], 1e-12).unwrap();
}
