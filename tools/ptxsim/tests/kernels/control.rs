use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

fn collatz(i: u32) -> [u32; 2] {
    let (mut x, mut steps, mut kinds) = (i + 1, 0u32, 0u32);
    while x != 1 {
        match x % 11 {
            0 => kinds = kinds.wrapping_add(1),
            1 => kinds ^= x,
            2 => kinds = kinds.rotate_left(1),
            3 => kinds = kinds.wrapping_sub(3),
            4 => kinds = kinds.wrapping_mul(5),
            5 => kinds = (kinds | 1).wrapping_add(x),
            6 => kinds = kinds.wrapping_add(x),
            7 => kinds ^= if kinds & 1 == 1 { 0x55 } else { 0 },
            8 => kinds = !kinds,
            9 => kinds = kinds.wrapping_add(steps),
            _ => kinds ^= kinds >> 3,
        }
        x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
        steps += 1;
    }
    [steps, kinds]
}

#[test]
fn collatz_switch() {
    let expected: Vec<u32> = (0..500).flat_map(collatz).collect();
    everywhere("control", |gpu| {
        let to = gpu.space(4000);
        let outcome = gpu.run("collatz_switch", Geometry::linear(4, 128), &[Arg::Pointer(to), Arg::I32(500)]);
        assert_eq!(gpu.read_words(to, 1000), expected);
        assert!(outcome.counters.lane_efficiency < 0.9, "lanes diverge");
    });
}

#[test]
fn recursion() {
    everywhere("control", |gpu| {
        let to = gpu.space(160);
        gpu.run("recursion", Geometry::linear(1, 40), &[Arg::Pointer(to)]);
        // Ackermann's function: A(2, n) = 2 n + 3.
        let expected: Vec<u32> = (0..40).map(|i| 2 * (i % 5) + 3).collect();
        assert_eq!(gpu.read_words(to, 40), expected);
    });
}

#[test]
fn local_array() {
    let input = random_words(16, 1);
    let rounds = 50;
    let expected: Vec<u32> = (0..64)
        .map(|thread| {
            let mut a: Vec<u32> = input.iter().map(|x| x.wrapping_add(thread)).collect();
            for r in 0..rounds {
                let at = a[r % 16] as usize % 16;
                a[at] = a[at].wrapping_add(a[(r * 7 + 3) % 16] ^ r as u32);
            }
            a.iter().fold(0, |sum: u32, x| sum.wrapping_mul(31).wrapping_add(*x))
        })
        .collect();
    everywhere("control", |gpu| {
        let (from, to) = (gpu.words(&input), gpu.space(256));
        let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(rounds as i32)];
        gpu.run("local_array", Geometry::linear(1, 64), &args);
        assert_eq!(gpu.read_words(to, 64), expected);
    });
}

#[test]
fn prints() {
    everywhere("control", |gpu| {
        let outcome = gpu.run("prints", Geometry::linear(1, 32), &[Arg::I32(3)]);
        let line = |i: usize| format!("thread {i} of 32: says {:.3} 123456789abcdef\n", i as f64 * 0.5);
        assert_eq!(outcome.printed, (0..3).map(line).collect::<String>());
    });
}

#[test]
fn memory_kinds() {
    let input = random_words(64, 2);
    const TABLES: [[u32; 4]; 2] = [[3, 1, 4, 1], [10, 20, 30, 40]];
    everywhere("control", |gpu| {
        let (v, out, lock, counter) = (gpu.words(&input), gpu.space(128), gpu.zeros(32), gpu.zeros(4));
        gpu.run("memory_kinds", Geometry::linear(1, 32), &[v, out, lock, counter].map(Arg::Pointer));
        let sum = |i: usize| input[i].wrapping_add(TABLES[0][i % 4]).wrapping_add(TABLES[1][i % 4]);
        let expected: Vec<u32> = (0..64).map(|i| if i < 32 { input[i] } else { sum(63 - i) }).collect();
        assert_eq!(gpu.read_words(v, 64), expected);
        assert_eq!(gpu.read_words(counter, 1), [32]);
        assert_eq!(gpu.read_words(lock, 8), [1; 8]);
        assert_eq!(gpu.read_words(out, 32), [1; 32]);
    });
}

#[test]
fn spin_lock() {
    everywhere("control", |gpu| {
        let (lock, total) = (gpu.zeros(4), gpu.zeros(4));
        gpu.run("spin_lock", Geometry::linear(3, 40), &[lock, total].map(Arg::Pointer));
        assert_eq!(gpu.read_words(total, 1), [120]);
        assert_eq!(gpu.read_words(lock, 1), [0]);
    });
}
