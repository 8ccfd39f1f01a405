use crate::gpu::{assert_near, everywhere, random_values, random_words};
use half::{bf16, f16};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::scalar::round::{F16, F32, Rounding, narrow};

#[test]
fn gelu() {
    let x: Vec<f32> = random_values(1000, 1).iter().map(|x| 4.0 * x).collect();
    let expected: Vec<f64> = x
        .iter()
        .map(|x| {
            let x = f64::from(*x);
            0.5 * x * (1.0 + (0.79788456 * (x + 0.044715 * x * x * x)).tanh())
        })
        .collect();
    everywhere("elementwise", |gpu| {
        let (from, to) = (gpu.floats(&x), gpu.space(4000));
        gpu.run("gelu", Geometry::linear(8, 128), &[Arg::Pointer(from), Arg::Pointer(to), Arg::I32(1000)]);
        // tanh.approx is good to 2^-11.
        assert_near(&gpu.read_floats(to, 1000), &expected, 4.0 * 2f64.powi(-11));
    });
}

#[test]
fn relu2_of_bf16_pairs() {
    let x = random_values(1000, 2);
    let expected: Vec<f32> = x.iter().map(|x| bf16::from_f32(x.max(0.0) * x.max(0.0)).to_f32()).collect();
    everywhere("elementwise", |gpu| {
        let (from, to) = (gpu.bf16s(&x), gpu.space(2000));
        gpu.run("relu2_bf16", Geometry::linear(2, 128), &[Arg::Pointer(from), Arg::Pointer(to), Arg::I32(250)]);
        assert_eq!(gpu.read_bf16s(to, 1000), expected);
    });
}

#[test]
fn adamw() {
    let n = 777;
    let [w, g, m] = [3, 4, 5].map(|seed| random_values(n, seed));
    let v: Vec<f32> = random_values(n, 6).iter().map(|x| x.abs()).collect();
    let (lr, beta1, beta2, eps, decay, scale1, scale2) = (0.01f32, 0.9f32, 0.95f32, 1e-8f32, 0.1f32, 2.0f32, 3.0f32);
    let mut expected = [Vec::new(), Vec::new(), Vec::new()];
    for i in 0..n {
        let [w, g, m, v] = [w[i], g[i], m[i], v[i]].map(f64::from);
        let [lr, beta1, beta2, eps, decay] = [lr, beta1, beta2, eps, decay].map(f64::from);
        let m = beta1 * m + (1.0 - beta1) * g;
        let v = beta2 * v + (1.0 - beta2) * g * g;
        let step = m * f64::from(scale1) / ((v * f64::from(scale2)).sqrt() + eps) + decay * w;
        [w - lr * step, m, v].into_iter().zip(&mut expected).for_each(|(value, list)| list.push(value));
    }
    everywhere("elementwise", |gpu| {
        let [pw, pg, pm, pv] = [&w, &g, &m, &v].map(|list| gpu.floats(list));
        let mut args = [pw, pg, pm, pv].map(Arg::Pointer).to_vec();
        args.push(Arg::I32(n as i32));
        args.extend([lr, beta1, beta2, eps, decay, scale1, scale2].map(Arg::F32));
        gpu.run("adamw", Geometry::linear(7, 128), &args);
        for (address, expected) in [pw, pm, pv].into_iter().zip(&expected) {
            assert_near(&gpu.read_floats(address, n), expected, 1e-6);
        }
    });
}

fn philox(i: u32, mut key: [u32; 2]) -> [u32; 4] {
    let mut c = [i, 0, 0, 0];
    for _ in 0..10 {
        let [first, second] = [(0xD251_1F53u64, c[0]), (0xCD9E_8D57, c[2])].map(|(m, x)| m * u64::from(x));
        c = [(second >> 32) as u32 ^ c[1] ^ key[0], second as u32, (first >> 32) as u32 ^ c[3] ^ key[1], first as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[test]
fn philox_random_numbers() {
    // The known answer of Philox4x32-10 for zero counter and key (Random123's kat_vectors).
    assert_eq!(philox(0, [0, 0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    everywhere("elementwise", |gpu| {
        let to = gpu.space(16 * 512);
        gpu.run("philox", Geometry::linear(4, 128), &[Arg::Pointer(to), Arg::U32(7), Arg::U32(0xffff_fff0)]);
        let expected: Vec<u32> = (0..512).flat_map(|i| philox(i, [7, 0xffff_fff0])).collect();
        assert_eq!(gpu.read_words(to, 2048), expected);
    });
}

/// What `conversions` computes.
fn converted(x: f32) -> [u32; 24] {
    let bits = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    let half_of = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(f16::from_f32(x).to_bits()) };
    let bf16_of = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) };
    let half_cut = narrow(f64::from(x), F16, Rounding::Zero);
    let scaled = f64::from(x) * 1.0000001;
    let as_i64 = |x: f32| if x.is_nan() { i64::MIN } else { x.round_ties_even() as i64 };
    let as_u64 = |x: f32| if x.is_nan() { 1 << 63 } else { x as u64 };
    let word = x.to_bits();
    [
        bf16_of(x),
        half_of(x),
        half_cut,
        x.round_ties_even() as i32 as u32,
        x as i32 as u32,
        x.floor() as i32 as u32,
        x.ceil() as i32 as u32,
        x as u32,
        as_i64(x) as u32,
        (as_u64(x) >> 32) as u32,
        bits(x.round_ties_even()),
        bits(x.floor()),
        bits(x.ceil()),
        bits(x.trunc()),
        if x.is_nan() { 0 } else { bits(x.clamp(0.0, 1.0) + 0.0) },
        bits(scaled as f32),
        narrow(scaled, F32, Rounding::Zero),
        (word as i32 as f32).to_bits(),
        narrow(f64::from(word), F32, Rounding::Zero),
        ((i64::from(word as i32) * 1234567) as f32).to_bits(),
        x as i32 as i8 as i32 as u32,
        bits(f16::from_bits(word as u16).to_f32()),
        if x.is_nan() { 1 << 31 } else { (f64::from(x) * 0.5).round_ties_even() as i32 as u32 },
        bf16_of(x) | bf16_of(-x) << 16,
    ]
}

#[test]
fn conversions() {
    let mut input: Vec<f32> = random_words(3000, 9).into_iter().map(f32::from_bits).collect();
    input.extend(random_words(1000, 10).into_iter().map(|word| (word as i32 >> 20) as f32 * 0.25));
    input.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65504.0, 65520.0, 1e-8, -0.5, 2.5]);
    let n = input.len();
    everywhere("elementwise", |gpu| {
        let (from, to) = (gpu.floats(&input), gpu.space(96 * n));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(n as i32)];
        gpu.run("conversions", Geometry::linear(n.div_ceil(64) as u32, 64), &args);
        for (row, x) in gpu.read_words(to, 24 * n).as_chunks::<24>().0.iter().zip(&input) {
            for (i, (got, expected)) in row.iter().zip(converted(*x)).enumerate() {
                assert_eq!(*got, expected, "conversion {i} of {x:e} ({:#x})", x.to_bits());
            }
        }
    });
}
