use crate::gpu::{everywhere, random_values};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

#[test]
fn bulk_double() {
    let blocks = 5;
    let x = random_values(256 * blocks, 1);
    let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
    let sums: Vec<f32> = (0..256).map(|i| (0..blocks).map(|block| x[block * 256 + i]).sum()).collect();
    everywhere("bulk", |gpu| {
        let (from, to, total) = (gpu.floats(&x), gpu.space(4 * x.len()), gpu.zeros(1024));
        let outcome = gpu.run("bulk_double", Geometry::linear(blocks as u32, 64), &[from, to, total].map(Arg::Pointer));
        assert_eq!(gpu.read_floats(to, x.len()), doubled);
        assert_eq!(gpu.read_floats(total, 256), sums);
        assert_eq!(outcome.counters.total.bulk_bytes, 3 * 4 * x.len() as u64);
    });
}

#[test]
fn cp_async_to_mbarrier() {
    let x = random_values(256, 2);
    let expected: Vec<f32> = (0..256).map(|i| x[i / 128 * 128 + 127 - i % 128]).collect();
    everywhere("bulk", |gpu| {
        let (from, to) = (gpu.floats(&x), gpu.space(1024));
        gpu.run("cp_async_to_mbarrier", Geometry::linear(2, 32), &[from, to].map(Arg::Pointer));
        assert_eq!(gpu.read_floats(to, 256), expected);
    });
}

#[test]
fn dependent_grids() {
    let x = random_values(64, 3);
    let expected: Vec<f32> = x.iter().map(|x| x + 2.0).collect();
    everywhere("bulk", |gpu| {
        let (from, middle, to) = (gpu.floats(&x), gpu.space(256), gpu.space(256));
        gpu.run("dependent", Geometry::linear(2, 32), &[from, middle].map(Arg::Pointer));
        gpu.run("dependent", Geometry::linear(2, 32), &[middle, to].map(Arg::Pointer));
        assert_eq!(gpu.read_floats(to, 64), expected);
    });
}

#[test]
fn the_lowest_lane_is_elected() {
    everywhere("bulk", |gpu| {
        let to = gpu.space(128);
        gpu.run("elect", Geometry::linear(1, 32), &[Arg::Pointer(to)]);
        let expected: Vec<u32> = (0..32).map(|lane| u32::from(lane == 0)).collect();
        assert_eq!(gpu.read_words(to, 32), expected);
    });
}
