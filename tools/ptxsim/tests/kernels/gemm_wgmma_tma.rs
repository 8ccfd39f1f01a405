use crate::gpu::{assert_near, everywhere, geometry, random_values};
use ptxsim::host::Arg;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, TensorMap};

fn map(data_type: DataType, address: u64, rows: usize, columns: usize, box_dims: [u32; 2], swizzle: Swizzle) -> Arg {
    let map = TensorMap {
        data_type,
        address,
        dims: vec![columns as u64, rows as u64],
        strides_bytes: vec![columns as u64 * u64::from(data_type.bytes())],
        box_dims: box_dims.to_vec(),
        element_strides: vec![1, 1],
        swizzle,
        fill: Fill::Zero,
        im2col: None,
    };
    Arg::Bytes(map.encode().expect("a valid map").to_vec())
}

/// M and N that are no multiples of the tile: loads beyond the edge are zero, stores are clipped.
#[test]
fn producer_and_consumer_multiply() {
    let (m, n, k) = (100, 40, 320);
    let (a, b) = (random_values(m * k, 1), random_values(n * k, 2));
    let dot = |i: usize| (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[i % n * k + j])).sum();
    let expected: Vec<f64> = (0..m * n).map(dot).collect();
    everywhere("gemm_wgmma_tma", |gpu| {
        let (pa, pb, pc) = (gpu.bf16s(&a), gpu.bf16s(&b), gpu.space(4 * m * n));
        let args = [
            map(DataType::Bf16, pa, m, k, [64, 64], Swizzle::B128),
            map(DataType::Bf16, pb, n, k, [64, 32], Swizzle::B128),
            map(DataType::F32, pc, m, n, [32, 64], Swizzle::None),
            Arg::I32(k as i32 / 64),
        ];
        let bytes = 3 * (64 + 32) * 64 * 2 + 64 * 32 * 4 + 6 * 8;
        let outcome = gpu.run("gemm_wgmma_tma", geometry([2, 2, 1], [256, 1, 1], bytes), &args);
        // Multiples of 2^-7: sums are exact.
        assert_near(&gpu.read_floats(pc, m * n), &expected, 0.0);
        assert_eq!(outcome.counters.total.tensor_macs, (128 * 64 * k) as u64);
    });
}
