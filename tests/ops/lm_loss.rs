use super::*;
use nanochat_gpu::ops::lm_loss::{self, Gradients, IGNORE, forward_in_chunks as forward};

#[test]
fn cases() {
    check(verify::products::lm_loss);
    check(verify::products::lm_loss_low_rank);
}

#[test]
fn losses_are_the_same_without_gradients() {
    let (arena, [n, c, v]) = (Arena::new(1 << 20).unwrap(), [33, 20, 97]);
    let (x, w) = (verify::normals("lm x", n * c), verify::normals("lm w", v * c));
    let (x, w) = (tensor(&arena, DType::F64, [n, c], &x), tensor(&arena, DType::F64, [v, c], &w));
    let mut targets = verify::integers("lm targets", n, v);
    targets[1] = IGNORE;
    let targets = ids(&arena, &targets);
    let mut grads = gradients(&arena, DType::F64, &[w.shape()]);
    let wanted = Gradients { scale: 0.37.into(), dweight: grads.view_mut(ParamId(0)) };
    let (losses, _) = forward(&arena, &x, &w, &targets, Some(15.0), Some(wanted), 11);
    let (plain, none) = forward(&arena, &x, &w, &targets, Some(15.0), None, 11);
    assert!(none.is_none() && losses.to_f64()[1] == 0.0);
    verify::close("losses", &plain.to_f64(), &losses.to_f64(), 1e-13).unwrap();
}

/// By hand: the likeliest token, another, one of two that are equally likely, and one that does not count.
#[test]
fn an_error_is_a_logit_above_the_targets() {
    let arena = Arena::new(1 << 20).unwrap();
    for dtype in [DType::F64, DType::F32, DType::Bf16] {
        let (x, w) = (tensor(&arena, dtype, [4, 1], &[1.0; 4]), tensor(&arena, dtype, [4, 1], &[1.0, 3.0, 3.0, 2.0]));
        let targets = ids(&arena, &[1, 3, 2, IGNORE]);
        let judge = |report| {
            let operands = lm_loss::Operands { x: &x, weight: &w, low_rank: None, softcap: None };
            lm_loss::judge(&arena, operands, &targets, None, 2, report)
        };
        let judged = judge(lm_loss::Report::LossesAndErrors);
        assert_eq!(judged.errors.unwrap().to_f64(), [0.0, 1.0, 0.0, 0.0]);
        let quiet = judge(lm_loss::Report::Losses);
        assert!(quiet.errors.is_none() && quiet.losses.to_f64() == judged.losses.to_f64());
    }
}

#[test]
fn an_infinite_logit_is_not_hidden() {
    let arena = Arena::new(1 << 20).unwrap();
    let x = tensor(&arena, DType::F32, [1, 1], &[f64::NAN]);
    let w = tensor(&arena, DType::F32, [3, 1], &[1.0, 2.0, 3.0]);
    let (losses, _) = lm_loss::forward(&arena, &x, &w, &ids(&arena, &[1]), None, None);
    assert!(losses.to_f64()[0].is_nan());
}

/// More than one chunk at the size that training uses.
#[test]
fn chunks_of_the_real_size_join() {
    let arena = Arena::new(256 << 20).unwrap();
    let (n, c, v) = (70, 3, 40_000);
    assert!(lm_loss::chunk_rows(v, false) < n);
    let [x, w] = [("lm x", [n, c]), ("lm w", [v, c])]
        .map(|(name, shape)| tensor(&arena, DType::F32, shape, &verify::normals(name, shape[0] * shape[1])));
    let targets = ids(&arena, &verify::integers("lm targets", n, v));
    let run = |rows: Option<usize>| {
        let mut grads = gradients(&arena, DType::F32, &[w.shape()]);
        let wanted = Gradients { scale: 1.0.into(), dweight: grads.view_mut(ParamId(0)) };
        let (losses, dx) = match rows {
            None => lm_loss::forward(&arena, &x, &w, &targets, None, Some(wanted)),
            Some(rows) => forward(&arena, &x, &w, &targets, None, Some(wanted), rows),
        };
        [losses.to_f64(), dx.unwrap().to_f64(), gradient(&grads, 0)]
    };
    for (got, want) in run(None).iter().zip(run(Some(n))) {
        verify::close("in chunks", got, &want, 1e-5).unwrap();
    }
}
