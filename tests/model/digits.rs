//! The places of digits: runs, shifts, rows, and pieces of a sequence.

use nanochat_gpu::model::digits::DigitsConfig;
use nanochat_gpu::ops::embedding::NOTHING;

const NO: u32 = NOTHING;

fn config() -> DigitsConfig {
    DigitsConfig { enabled: true, ids: vec![3, 4, 5] }
}

#[test]
fn a_place_counts_the_digits_of_its_run_in_its_row() {
    let tokens = [3, 4, 9, 5, 5, 3, 4, 9];
    let places = |t: usize, k: u32| config().places(&tokens, t, k, &mut 0);
    assert_eq!(places(8, 0), [1, 2, NO, 1, 2, 3, 4, NO]);
    assert_eq!(places(4, 0), [1, 2, NO, 1, 1, 2, 3, NO]);
    assert_eq!(places(8, 40), [41, 42, NO, 41, 42, 43, 44, NO]);
    let long = config().places(&[3; 140], 140, 99, &mut 0);
    assert_eq!((long[0], long[27], long[28], long[139]), (100, 127, 127, 127));
}

#[test]
fn a_run_goes_on_from_piece_to_piece() {
    let (mut run, mut pieces) = (0, Vec::new());
    for piece in [&[9, 3][..], &[4], &[5, 5, 9], &[3, 3]] {
        pieces.extend(config().places(piece, piece.len(), 0, &mut run));
    }
    assert_eq!(pieces, [NO, 1, 2, 3, 4, NO, 1, 2]);
    assert_eq!(run, 2);
}

/// Every shift from 0 to 99 comes up, about as often; the same batch has the same.
#[test]
fn shifts_are_drawn_for_each_batch() {
    let shift = |index: u64| config().shifted_places(&[3], 1, index)[0] - 1;
    let mut often = [0; 100];
    (0..5000).for_each(|index| often[shift(index) as usize] += 1);
    assert!(often.iter().all(|n| (20..=90).contains(n)), "{often:?}");
    assert_eq!(shift(7), shift(7));
}
