//! The FP32 matrix product from shared memory, in the order of its sums, and its counters.

use crate::gpu::{everywhere, geometry, random_values};
use ptxsim::host::Arg;

#[test]
fn sgemm_sums_in_order() {
    let [m, n, k] = [128usize, 64, 48];
    let (a, b) = (random_values(m * k, 31), random_values(k * n, 32));
    everywhere("sgemm", |gpu| {
        let (da, db, dc) = (gpu.floats(&a), gpu.floats(&b), gpu.space(4 * m * n));
        let mut args = [dc, da, db].map(Arg::Pointer).to_vec();
        args.extend([m, n, k].map(|extent| Arg::I32(extent as i32)));
        let outcome = gpu.run("sgemm_64x64x16", geometry([1, 2, 1], [16, 16, 1], 0), &args);
        let c = gpu.device.download(dc, m * n, f32::from_le_bytes).expect("memory");
        for (at, value) in c.iter().enumerate() {
            let (row, column) = (at / n, at % n);
            let sum = (0..k).fold(0f32, |sum, i| a[row * k + i].mul_add(b[i * n + column], sum));
            assert_eq!(*value, sum, "row {row}, column {column}");
        }
        // 2 CTAs x 3 tiles x (8 stores + 128 loads) x 8 warps; a store of the transposed tile takes two wavefronts, because
        // lanes 1 and 16 meet in one bank.
        assert_eq!(outcome.counters.total.shared_requests, 2 * 3 * (8 + 128) * 8);
        assert_eq!(outcome.counters.bank_conflicts, 2 * 3 * 4 * 8);
        assert_eq!(outcome.counters.total.barriers, 2 * 3 * 2 * 8);
    });
}
