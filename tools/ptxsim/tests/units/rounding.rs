//! Rounding to the small formats: against the `half` crate, and against the neighbours that each rounding names.

use super::Rng;
use ptxsim::scalar::round::{BF16, F16, F32, Format, Rounding, bf16_value, f16_value, narrow};

const ROUNDINGS: [Rounding; 5] =
    [Rounding::Nearest, Rounding::NearestAway, Rounding::Zero, Rounding::Down, Rounding::Up];

#[test]
fn nearest_even_is_that_of_half() {
    let mut rng = Rng(1);
    for i in 0..1_000_000u32 {
        let x = f32::from_bits(if i < 1000 { i * 0x0041_8937 } else { rng.word() });
        let round = |format| narrow(f64::from(x), format, Rounding::Nearest);
        if x.is_nan() {
            assert_eq!((round(BF16), round(F16), round(F32)), (0x7fff, 0x7fff, 0x7fff_ffff));
            continue;
        }
        assert_eq!(round(BF16), u32::from(half::bf16::from_f32(x).to_bits()), "{x:e}");
        assert_eq!(round(F16), u32::from(half::f16::from_f32(x).to_bits()), "{x:e}");
        assert_eq!(round(F32), x.to_bits());
    }
}

/// A format, the value of its bits, and the bits of its largest number.
type Row = (Format, fn(u32) -> f32, u32);

/// Every rounding lands on the neighbour that its definition names.
#[test]
fn every_rounding_picks_the_right_neighbour() {
    let mut rng = Rng(2);
    let formats: [Row; 2] = [(F16, f16_value, 0x7bff), (BF16, bf16_value, 0x7f7f)];
    for (format, value, last) in formats {
        // All finite non-negative values in order.
        let finite: Vec<f64> = (0..=last).map(|code| f64::from(value(code))).collect();
        assert!(finite.is_sorted());
        for _ in 0..20_000 {
            let bits = u64::from(rng.word()) << 32 | u64::from(rng.word());
            let exponent = f64::from(rng.word() % 64) - 40.0;
            let magnitude = ((bits >> 12) as f64 / 2f64.powi(52) + 1.0) * exponent.exp2();
            if magnitude > finite[last as usize] {
                continue;
            }
            let above = finite.partition_point(|v| *v < magnitude);
            let (low, high) = if finite[above] == magnitude { (above, above) } else { (above - 1, above) };
            for (x, negative) in [(magnitude, false), (-magnitude, true)] {
                for rounding in ROUNDINGS {
                    let (to_low, to_high) = (magnitude - finite[low], finite[high] - magnitude);
                    let nearest = if to_low < to_high { low } else { high };
                    let code = match rounding {
                        Rounding::Zero => low,
                        Rounding::Down if negative => high,
                        Rounding::Down => low,
                        Rounding::Up if negative => low,
                        Rounding::Up => high,
                        Rounding::Nearest if to_low == to_high => low + low % 2,
                        Rounding::Nearest | Rounding::NearestAway => nearest,
                    };
                    let sign = u32::from(negative) << 15;
                    assert_eq!(narrow(x, format, rounding), code as u32 | sign, "{format:?} {rounding:?} {x:e}");
                }
            }
        }
    }
}

#[test]
fn overflow_goes_where_the_rounding_says() {
    assert_eq!(narrow(65520.0, F16, Rounding::Nearest), 0x7c00);
    assert_eq!(narrow(65519.9, F16, Rounding::Nearest), 0x7bff);
    assert_eq!(narrow(1e9, F16, Rounding::Zero), 0x7bff);
    assert_eq!(narrow(-1e9, F16, Rounding::Up), 0xfbff);
    assert_eq!(narrow(-1e9, F16, Rounding::Down), 0xfc00);
    assert_eq!(narrow(f64::from(f32::MAX), BF16, Rounding::Nearest), 0x7f80);
    assert_eq!(narrow(f64::from(f32::MAX), BF16, Rounding::Zero), 0x7f7f);
    assert_eq!(narrow(f64::INFINITY, F16, Rounding::Zero), 0x7c00);
}
