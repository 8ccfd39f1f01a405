use super::*;
use nanochat_gpu::ops::concept_loss::{self, Concepts, Windows};
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::ops::select_rows::Stride;

#[test]
fn cases() {
    check(verify::parts::concept_loss);
}

#[test]
fn windows_on_devices() {
    check_on_all(verify::parts::windows_on);
}

#[test]
fn windows_hold_what_comes_soon_inside_the_row_and_the_document() {
    let arena = Arena::new(1 << 16).unwrap();
    let windows = Windows { stride: Stride { t: 6, first: 1, every: 2 }, window: 3, concepts: 8 };
    let tokens: Vec<u32> = (0..12).collect();
    let starts = [0, 0, 0, 0, 4, 4, 0, 0, 0, 0, 0, 0];
    let gather = |starts: Option<&[u32]>| {
        let starts = starts.map(|starts| ids(&arena, starts));
        windows.gather(&arena, &ids(&arena, &tokens), starts.as_ref()).as_slice::<u32>().to_vec()
    };
    let no = IGNORE;
    // Tokens 1, 3 and 5 of each row look at those from the one after next; ids from 8 on begin again at 0.
    let without = [[3, 4, 5], [5, no, no], [no; 3], [1, 2, 3], [3, no, no], [no; 3]].concat();
    assert_eq!(gather(None), without);
    let with = [[3, no, no], [no; 3], [no; 3], [1, 2, 3], [3, no, no], [no; 3]].concat();
    assert_eq!(gather(Some(&starts)), with);
    assert_eq!(windows.counted(&tokens, None), 4);
    assert_eq!(windows.counted(&tokens, Some(&starts)), 3);
}

/// By hand: two concepts, logits 0 and ln 3, of which the second comes soon twice and the first once with idf 1 and 2.
#[test]
fn one_row_by_hand() {
    let arena = Arena::new(1 << 16).unwrap();
    let of = |shape: &[usize], values: &[f64]| tensor(&arena, DType::F64, shape, values);
    let (codes, bias, idf) = (of(&[2, 1], &[0.0, 1.0]), of(&[2], &[0.0, 3f64.ln() - 1.0]), of(&[2], &[2.0, 1.0]));
    let concepts = Concepts { codes: &codes, bias: &bias, idf: &idf };
    let windows = Tensor::from_slice(&arena, [1, 4], &[1, 0, 1, IGNORE]);
    let (losses, _) = concept_loss::forward(&arena, &of(&[1, 1], &[1.0]), concepts, &windows, None);
    // Targets are 1/2 and 1/2, probabilities 1/4 and 3/4.
    let want = 0.5 * 4f64.ln() + 0.5 * (4.0f64 / 3.0).ln();
    verify::close("loss", &losses.to_f64(), &[want], 1e-14).unwrap();
}
