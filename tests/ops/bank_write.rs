use super::*;
use nanochat_gpu::ops::bank_write::{self, Banks, NEVER};

#[test]
fn on_devices() {
    check_on_all(verify::banks::bank_write_on);
}

/// Two streams with two segments each in a batch, banks of three rows: the fourth row takes the place of the first.
#[test]
fn the_newest_row_takes_the_place_of_the_oldest() {
    let arena = Arena::new(1 << 20).unwrap();
    let mut keys = Tensor::owned([2, 3, 1], DType::F32);
    let mut values = Tensor::owned([2, 3, 2], DType::F32);
    let (mut born, mut clock) = (Tensor::owned([2, 3], DType::U32), Tensor::owned([4], DType::U32));
    born.copy_from_slice(&[NEVER; 6]);
    clock.copy_from_slice(&[0u32, 1, 0, 1]);
    let mut write = |base: f64| {
        let new_keys = tensor(&arena, DType::F32, [4, 1], &[base, base + 1.0, -base, -base - 1.0]);
        let new_values: Vec<f64> = (0..8).map(|i| base + f64::from(i)).collect();
        let new_values = tensor(&arena, DType::F32, [4, 2], &new_values);
        let banks = Banks { keys: &mut keys, values: &mut values, born: &mut born, clock: &mut clock };
        let times = bank_write::forward(&arena, banks, &new_keys, &new_values).to_f64();
        (times, keys.to_f64(), values.to_f64(), born.to_f64())
    };
    let never = f64::from(NEVER);
    let (times, keys, _, born) = write(10.0);
    assert_eq!((times, born), (vec![0.0, 1.0, 0.0, 1.0], vec![0.0, 1.0, never, 0.0, 1.0, never]));
    assert_eq!(keys, [10.0, 11.0, 0.0, -10.0, -11.0, 0.0]);
    let (times, keys, values, born) = write(20.0);
    assert_eq!((times, born), (vec![2.0, 3.0, 2.0, 3.0], vec![3.0, 1.0, 2.0, 3.0, 1.0, 2.0]));
    assert_eq!(keys, [21.0, 11.0, 20.0, -21.0, -11.0, -20.0]);
    assert_eq!(values[..6], [22.0, 23.0, 12.0, 13.0, 20.0, 21.0]);
}
