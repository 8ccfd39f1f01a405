use crate::gpu::{everywhere, random_words};
use half::{bf16, f16};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

#[test]
fn stores_tell_the_mbarrier_of_another_cta() {
    let input = random_words(8 * 64, 1);
    let mut expected = vec![0u32; input.len() * 6];
    for cta in 0..8 {
        // The one before, in its cluster of four.
        let from = cta / 4 * 4 + (cta + 3) % 4;
        let words = &input[from * 64..][..64];
        for (t, x) in words.iter().enumerate() {
            let o = &mut expected[(cta * 64 + t) * 6..][..6];
            o[0] = x ^ x.wrapping_add(1) ^ x.wrapping_add(2);
            o[1] = x.wrapping_add(3);
            o[2] = x.wrapping_add(t as u32);
            o[3] = words[63 - t] ^ 5;
            o[4] = words.iter().fold(0, |sum, x| sum.wrapping_add(*x));
            o[5] = *words.iter().max().expect("words");
        }
    }
    everywhere("remote_stores", |gpu| {
        let (from, out) = (gpu.words(&input), gpu.space(4 * expected.len()));
        gpu.run("sends", Geometry::linear(8, 64), &[from, out].map(Arg::Pointer));
        assert!(gpu.read_words(out, expected.len()) == expected);
    });
}

/// Words, two to a 64-bit element, from the low one on.
fn long(words: &[u32], f: impl Fn(usize) -> u64) -> Vec<u32> {
    (0..words.len() / 2).flat_map(|i| [f(i) as u32, (f(i) >> 32) as u32]).collect()
}

#[test]
fn bulk_reductions_of_every_kind() {
    // Finite in every floating-point type.
    let words = |seed: u64| -> Vec<u32> { random_words(64, seed).into_iter().map(|word| word & 0xbbff_bbff).collect() };
    let (a, b) = (words(2), words(3));
    let each = |f: &dyn Fn(u32, u32) -> u32| -> Vec<u32> { a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect() };
    let wide = |list: &[u32], i: usize| u64::from(list[2 * i]) | u64::from(list[2 * i + 1]) << 32;
    let halves = |f: &dyn Fn(u16, u16) -> u16| {
        each(&|a, b| u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16)
    };
    let of_f16 = |f: fn(f32, f32) -> f32| {
        halves(&move |a, b| f16::from_f32(f(f16::from_bits(a).to_f32(), f16::from_bits(b).to_f32())).to_bits())
    };
    let of_bf16 = |f: fn(f32, f32) -> f32| {
        halves(&move |a, b| bf16::from_f32(f(bf16::from_bits(a).to_f32(), bf16::from_bits(b).to_f32())).to_bits())
    };
    let rows = [
        ("add_u32", each(&|a, b| a.wrapping_add(b))),
        ("add_u64", long(&a, |i| wide(&a, i).wrapping_add(wide(&b, i)))),
        ("min_s32", each(&|a, b| (a as i32).min(b as i32) as u32)),
        ("max_s64", long(&a, |i| (wide(&a, i) as i64).max(wide(&b, i) as i64) as u64)),
        ("max_u32", each(&|a, b| a.max(b))),
        ("inc_u32", each(&|a, b| if a >= b { 0 } else { a + 1 })),
        ("dec_u32", each(&|a, b| if a == 0 || a > b { b } else { a - 1 })),
        ("and_b32", each(&|a, b| a & b)),
        ("or_b64", each(&|a, b| a | b)),
        ("xor_b32", each(&|a, b| a ^ b)),
        ("add_f16", of_f16(|a, b| a + b)),
        ("add_bf16", of_bf16(|a, b| a + b)),
        ("min_f16", of_f16(f32::min)),
        ("max_bf16", of_bf16(f32::max)),
        ("add_f64", long(&a, |i| (f64::from_bits(wide(&a, i)) + f64::from_bits(wide(&b, i))).to_bits())),
        ("add_f32", each(&|a, b| (f32::from_bits(a) + f32::from_bits(b)).to_bits())),
    ];
    everywhere("remote_stores", |gpu| {
        for (name, expected) in &rows {
            let (to, from) = (gpu.words(&a), gpu.words(&b));
            gpu.run(&format!("reduce_{name}"), Geometry::linear(1, 32), &[from, to].map(Arg::Pointer));
            assert_eq!(gpu.read_words(to, 64), *expected, "{name}");
        }
    });
}
