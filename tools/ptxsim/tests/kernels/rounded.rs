//! Directed roundings of f64 and f32, and 8-bit floats, against definitions in whole numbers.

use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

/// What a rounding does with a value that lies between `low` and its upper neighbour.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

const MODES: [Mode; 4] = [Mode::Nearest, Mode::Zero, Mode::Down, Mode::Up];

/// Whether `got` is the exact value rounded: `side(x)` compares the exact value with a candidate.
fn is_rounded(mode: Mode, got: f64, next: impl Fn(f64, bool) -> f64, side: impl Fn(f64) -> std::cmp::Ordering) -> bool {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let (below, above) = (side(got) == Greater, side(got) == Less);
    match mode {
        _ if side(got) == Equal => true,
        Mode::Down => below && side(next(got, true)) == Less,
        Mode::Up => above && side(next(got, false)) == Greater,
        Mode::Zero if got > 0.0 => below && side(next(got, true)) == Less,
        Mode::Zero => above && side(next(got, false)) == Greater,
        // Nearest is what Rust computes; checked by the caller.
        Mode::Nearest => true,
    }
}

fn next64(x: f64, up: bool) -> f64 {
    if up { x.next_up() } else { x.next_down() }
}

fn next32(x: f64, up: bool) -> f64 {
    f64::from(if up { (x as f32).next_up() } else { (x as f32).next_down() })
}

/// Compares whole numbers a / 2^shift with x, exactly.
fn against(exact: i128, shift: u32, x: f64) -> std::cmp::Ordering {
    let scaled = x * 2f64.powi(shift as i32);
    assert!(scaled.fract() == 0.0 && scaled.abs() < 2f64.powi(126), "the test's numbers fit");
    exact.cmp(&(scaled as i128))
}

/// Results of one triple: (mode, results of add, sub, mul, fma, div, rcp, sqrt).
fn check_row(values: [i128; 3], got: &[f64], next: fn(f64, bool) -> f64, nearest: [f64; 7]) {
    let [a, b, c] = values;
    for (mode, row) in MODES.iter().zip(got.chunks(7)) {
        let exact = [a + b, a - b, a * b, a * b + c];
        for (i, exact) in exact.into_iter().enumerate() {
            let right = is_rounded(*mode, row[i], next, |x| against(exact, 0, x));
            assert!(right, "{mode:?}: operation {i} of {values:?} is {:e}", row[i]);
        }
        // a / b against q is a against q b; all but b scaled so that q is whole.
        let quotient =
            |a: i128, shift: u32| move |q: f64| (a << shift).cmp(&((q * 2f64.powi(shift as i32)) as i128 * b));
        assert!(is_rounded(*mode, row[4], next, quotient(a, 62)), "{mode:?}: {a} / {b} is {:e}", row[4]);
        assert!(is_rounded(*mode, row[5], next, quotient(1, 75)), "{mode:?}: 1 / {b} is {:e}", row[5]);
        let whole = |r: f64| (r * 2f64.powi(32)) as i128;
        let root = |r: f64| (a << 64).cmp(&(whole(r) * whole(r)));
        assert!(is_rounded(*mode, row[6], next, root), "{mode:?}: the root of {a} is {:e}", row[6]);
        if *mode == Mode::Nearest {
            assert_eq!(row, nearest);
        }
    }
}

/// Random whole numbers: `bits` of a positive a, 20 of a positive b, `bits` of c with either sign.
fn whole_numbers(count: usize, bits: u32, seed: u64) -> Vec<[i128; 3]> {
    let words = random_words(6 * count, seed);
    let rows = words.as_chunks::<6>().0.iter();
    rows.map(|w| {
        let long = |i: usize| (u64::from(w[i]) << 32 | u64::from(w[i + 1])) as i128;
        let a = (long(0) % (1 << bits)) | (1 << (bits - 1));
        let b = i128::from(w[2] % (1 << 20) + 1);
        // Often close to -a b, so that the product nearly cancels.
        let c = match w[5] % 3 {
            0 => -((a * b) >> (bits / 2) << (bits / 2)) % (1 << bits),
            _ => (long(3) % (1 << bits)) * if w[5] & 1 == 1 { -1 } else { 1 },
        };
        [a, b, c]
    })
    .collect()
}

#[test]
fn doubles_in_every_direction() {
    // 43 bits: roots and quotients by 20 bits are whole when scaled by 2^62 only where they are exact enough.
    let rows = whole_numbers(1000, 43, 21);
    let values: Vec<f64> = rows.iter().flatten().map(|x| *x as f64).collect();
    everywhere("intrinsics", |gpu| {
        let from = gpu.device.upload(&values, f64::to_le_bytes).expect("memory");
        let to = gpu.space(8 * 28 * rows.len());
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(rows.len() as i32)];
        gpu.run("rounded_doubles", Geometry::linear(rows.len().div_ceil(128) as u32, 128), &args);
        let got = gpu.device.download(to, 28 * rows.len(), f64::from_le_bytes).expect("memory");
        for (row, got) in rows.iter().zip(got.chunks(28)) {
            let [a, b, c] = row.map(|x| x as f64);
            check_row(*row, got, next64, [a + b, a - b, a * b, a.mul_add(b, c), a / b, 1.0 / b, a.sqrt()]);
        }
    });
}

#[test]
fn floats_in_every_direction() {
    let rows = whole_numbers(1000, 24, 22);
    let values: Vec<f32> = rows.iter().flatten().map(|x| *x as f32).collect();
    everywhere("intrinsics", |gpu| {
        let (from, to) = (gpu.floats(&values), gpu.space(4 * 28 * rows.len()));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(rows.len() as i32)];
        gpu.run("rounded_floats", Geometry::linear(rows.len().div_ceil(128) as u32, 128), &args);
        let got: Vec<f64> = gpu.read_floats(to, 28 * rows.len()).into_iter().map(f64::from).collect();
        for (row, got) in rows.iter().zip(got.chunks(28)) {
            let [a, b, c] = row.map(|x| x as f32);
            let nearest = [a + b, a - b, a * b, a.mul_add(b, c), a / b, 1.0 / b, a.sqrt()].map(f64::from);
            check_row(*row, got, next32, nearest);
        }
    });
}

/// Value of an 8-bit float, by its definition.
fn value(code: u32, exponent_bits: u32, fraction_bits: u32) -> f64 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let (field, fraction) = (code >> fraction_bits & ((1 << exponent_bits) - 1), code & ((1 << fraction_bits) - 1));
    let sign = if code >> 7 == 1 { -1.0 } else { 1.0 };
    let ieee = exponent_bits == 5;
    if ieee && field == 31 {
        return if fraction == 0 { sign * f64::INFINITY } else { f64::NAN };
    }
    if !ieee && code & 0x7f == 0x7f {
        return f64::NAN;
    }
    let hidden = if field == 0 { 0.0 } else { 1.0 };
    let power = field.max(1) as i32 - bias;
    sign * (hidden + f64::from(fraction) / f64::from(1 << fraction_bits)) * 2f64.powi(power)
}

/// The code nearest to a value, found among all of them; of two equally near ones the even one.
fn nearest(x: f32, exponent_bits: u32, fraction_bits: u32) -> u32 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = u32::from(x.is_sign_negative()) << 7;
    let magnitude = f64::from(x.abs()).min(1e6);
    let distance = |code: &u32| (value(*code, exponent_bits, fraction_bits) - magnitude).abs();
    let codes = (0..0x7f).filter(|code| value(*code, exponent_bits, fraction_bits).is_finite());
    let best = codes.min_by(|a, b| {
        let parity = (a & 1).cmp(&(b & 1));
        distance(a).partial_cmp(&distance(b)).expect("finite").then(parity)
    });
    sign | best.expect("codes")
}

#[test]
fn floats_of_8_bits() {
    const SPECIAL: [f32; 12] =
        [0.0, -0.0, 448.0, 464.0, 465.0, 57344.0, 61440.0, 61441.0, 1e-9, 0.001, f32::INFINITY, f32::NAN];
    let mut values: Vec<f32> = random_words(4096, 23)
        .into_iter()
        .map(|word| f32::from_bits(word & 0x807f_ffff | (105 + (word >> 8) % 42) << 23))
        .collect();
    values.iter_mut().zip(SPECIAL.iter().chain(&SPECIAL)).for_each(|(to, from)| *to = *from);
    everywhere("intrinsics", |gpu| {
        let n = values.len() / 2;
        let (from, to) = (gpu.floats(&values), gpu.space(4 * 8 * n));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(n as i32)];
        gpu.run("floats_of_8_bits", Geometry::linear(n.div_ceil(128) as u32, 128), &args);
        let got = gpu.read_words(to, 8 * n);
        for (pair, got) in values.as_chunks::<2>().0.iter().zip(got.as_chunks::<8>().0) {
            let half = |shift: u32| half::f16::from_bits((got[7] >> shift) as u16).to_f32();
            for (i, (exponent, fraction)) in [(4, 3), (5, 2)].into_iter().enumerate() {
                let pack =
                    |low: f32, high: f32| nearest(high, exponent, fraction) << 8 | nearest(low, exponent, fraction);
                assert_eq!(got[i], pack(pair[0], pair[1]), "e{exponent}m{fraction} of {pair:?}");
                assert_eq!(got[2 + i], pack(half(0), half(16)), "e{exponent}m{fraction} of halves of {pair:?}");
                for (code, shift) in [(got[6] & 0xff, 0), (got[6] >> 8, 16)] {
                    let back = f64::from(half::f16::from_bits((got[4 + i] >> shift) as u16));
                    let expected = value(code, exponent, fraction);
                    assert!(back == expected || back.is_nan() && expected.is_nan(), "{code:#x}: {back}");
                }
            }
        }
    });
}
