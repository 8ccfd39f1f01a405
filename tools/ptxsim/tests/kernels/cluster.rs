use crate::gpu::{everywhere, geometry, random_values};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::units::swizzle::Swizzle;
use ptxsim::units::tensor_map::{DataType, Fill, TensorMap};

#[test]
fn cluster_sum() {
    let x = random_values(12 * 128, 1);
    let expected: Vec<f32> = (0..12).map(|cta| x[cta / 4 * 512..][..512].iter().sum()).collect();
    everywhere("cluster", |gpu| {
        let (from, to) = (gpu.floats(&x), gpu.space(48));
        gpu.run("cluster_sum", Geometry::linear(12, 128), &[from, to].map(Arg::Pointer));
        // Multiples of 2^-7: sums are exact in any order.
        assert_eq!(gpu.read_floats(to, 12), expected);
    });
}

#[test]
fn cluster_ring() {
    let x = random_values(6 * 256, 2);
    let expected: Vec<f32> = (0..x.len()).map(|i| x[i ^ 256] + 1.0).collect();
    everywhere("cluster", |gpu| {
        let (from, to) = (gpu.floats(&x), gpu.space(4 * x.len()));
        gpu.run("cluster_ring", Geometry::linear(6, 64), &[from, to].map(Arg::Pointer));
        assert_eq!(gpu.read_floats(to, x.len()), expected);
    });
}

#[test]
fn cluster_multicast() {
    let (clusters, tiles) = (3, 5);
    let x = random_values(clusters * tiles * 1024, 3);
    let expected: Vec<f32> = (0..2 * x.len())
        .map(|i| {
            let (cta, tile, at) = (i / 1024 / tiles, i / 1024 % tiles, i % 1024);
            x[(cta / 2 * tiles + tile) * 1024 + at] * (cta % 2 + 1) as f32
        })
        .collect();
    everywhere("cluster", |gpu| {
        let map = TensorMap {
            data_type: DataType::F32,
            address: gpu.floats(&x),
            dims: vec![32, (clusters * tiles * 32) as u64],
            strides_bytes: vec![128],
            box_dims: vec![32, 16],
            element_strides: vec![1, 1],
            swizzle: Swizzle::None,
            fill: Fill::Zero,
            im2col: None,
        };
        let to = gpu.space(8 * x.len());
        let map = Arg::Bytes(map.encode().expect("a valid map").to_vec());
        let args = [map, Arg::Pointer(to), Arg::I32(tiles as i32)];
        gpu.run("cluster_multicast", geometry([2 * clusters as u32, 1, 1], [128, 1, 1], 0), &args);
        assert_eq!(gpu.read_floats(to, 2 * x.len()), expected);
    });
}
