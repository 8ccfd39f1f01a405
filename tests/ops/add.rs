use super::*;
use nanochat_gpu::{ops::add, verify};

#[test]
fn cases() {
    for &[n, c] in verify::ROWS {
        check(OpCase {
            name: format!("add {n}x{c}"),
            inputs: vec![verify::normals("add a", n * c), verify::normals("add b", n * c)],
            longest_sum: 2,
            run: &|arena, dtype, inputs, dy| {
                let a = tensor(arena, dtype, [n, c], &inputs[0]);
                let y = add::forward(arena, a, &tensor(arena, dtype, [n, c], &inputs[1]));
                Outcome { output: y.to_f64(), gradients: vec![dy.to_vec(), dy.to_vec()] }
            },
            reference: &|inputs| add::reference(&inputs[0], &inputs[1]),
        });
    }
}

#[test]
fn a_shared_operand_is_not_overwritten() {
    let arena = Arena::new(1 << 20).unwrap();
    let a = tensor(&arena, DType::F32, [3], &[1.0, 2.0, 3.0]);
    let y = add::forward(&arena, a.clone(), &a);
    assert_eq!((a.to_f64(), y.to_f64()), (vec![1.0, 2.0, 3.0], vec![2.0, 4.0, 6.0]));
}
