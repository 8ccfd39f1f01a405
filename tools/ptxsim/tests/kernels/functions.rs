use crate::gpu::{Gpu, everywhere, random_words};
use crate::nvcc::Arch;
use ptxsim::error::Error;
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;
use ptxsim::options::Options;

fn run_over(gpu: &mut Gpu, kernel: &str, input: &[u32], per_thread: usize) -> Vec<u32> {
    let n = input.len() / per_thread;
    let (from, to) = (gpu.words(input), gpu.space(4 * n));
    let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::I32(n as i32)];
    gpu.run(kernel, Geometry::linear(n.div_ceil(96) as u32, 96), &args);
    gpu.read_words(to, n)
}

fn fibonacci(n: i32, scale: i32) -> i32 {
    if n < 2 { n * scale } else { fibonacci(n - 1, scale) + fibonacci(n - 2, scale) }
}

#[test]
fn every_thread_calls_by_its_own_pointer() {
    let words = random_words(3 * 500, 31);
    let rows: Vec<[i32; 3]> =
        words.as_chunks::<3>().0.iter().map(|w| [(w[0] % 3) as i32, (w[1] % 9) as i32, w[2] as i32 % 1000]).collect();
    let input: Vec<u32> = rows.iter().flatten().map(|x| *x as u32).collect();
    let expected: Vec<u32> = rows
        .iter()
        .map(|&[choice, a, b]| [a + b, a - b, if choice == 2 { fibonacci(a, b) } else { 0 }][choice as usize] as u32)
        .collect();
    everywhere("functions", |gpu| assert_eq!(run_over(gpu, "by_pointer", &input, 3), expected));
}

#[test]
fn virtual_functions_of_objects_from_the_heap() {
    let input: Vec<u32> = random_words(2 * 300, 32).into_iter().map(|word| word % 1000).collect();
    let expected: Vec<u32> = input
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[x, side]| match x & 3 {
            1 => side * side + x,
            0 => (6 * side * side).wrapping_sub(x),
            _ => x,
        })
        .collect();
    everywhere("functions", |gpu| assert_eq!(run_over(gpu, "virtual_functions", &input, 2), expected));
}

#[test]
fn a_call_of_no_function_is_an_error() {
    let mut gpu = Gpu::new("functions", Arch::Sm80, Options::default());
    let (pointer, out) = (gpu.words(&[0x1234, 0]), gpu.space(128));
    let error = gpu.fails("by_value", Geometry::linear(1, 32), &[Arg::Pointer(pointer), Arg::Pointer(out)]);
    assert!(error.to_string().contains("0x1234, which is no function"), "{error}");
}

#[test]
fn lists_on_the_heap() {
    let n = 7;
    let expected: Vec<u32> =
        (0..100u32).map(|i| (0..n).rev().fold(0u32, |sum, k| sum.wrapping_mul(3).wrapping_add(k * (i + 1)))).collect();
    everywhere("functions", |gpu| {
        let out = gpu.space(400);
        gpu.run("linked_lists", Geometry::linear(2, 50), &[Arg::Pointer(out), Arg::I32(n as i32)]);
        assert_eq!(gpu.read_words(out, 100), expected);
    });
}

#[test]
fn faults_of_the_heap_are_found() {
    let expected = [
        Some(("bounds", "after the end of a block of malloc")),
        Some(("bounds", "into a freed block of malloc")),
        Some(("leaks", "was not freed")),
        Some(("uninitialised", "never written")),
        None,
        None,
    ];
    for (fault, expected) in expected.into_iter().enumerate() {
        let mut gpu = Gpu::new("functions", Arch::Sm90a, Options::default());
        let out = gpu.zeros(4);
        let args = [Arg::Pointer(out), Arg::I32(fault as i32)];
        let Some((checker, says)) = expected else {
            let error = gpu.fails("heap_faults", Geometry::linear(1, 1), &args);
            assert!(error.to_string().contains("cannot be freed"), "{error}");
            continue;
        };
        let findings = gpu.findings("heap_faults", Geometry::linear(1, 1), &args);
        let all: Vec<_> = findings.iter().map(|finding| (finding.checker, finding.message.as_str())).collect();
        assert!(all.len() == 1 && all[0].0 == checker && all[0].1.contains(says), "fault {fault}: {all:?}");
    }
    let mut gpu = Gpu::new("functions", Arch::Sm90a, Options::default());
    let out = gpu.zeros(4);
    gpu.run("heap_faults", Geometry::linear(1, 1), &[Arg::Pointer(out), Arg::I32(6)]);
    assert_eq!(gpu.read_words(out, 1), [1], "malloc of more than there is gives null");
}

#[test]
fn scratch_of_a_length_known_late() {
    let input = random_words(2 * 200, 33);
    let expected: Vec<u32> = input
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&[length, x]| {
            let length = length & 31;
            let a = |k: u32| x.wrapping_add(k * k);
            (0..=length)
                .fold(0u32, |sum, k| sum.wrapping_mul(5).wrapping_add(a(k)).wrapping_sub(a(length - k).wrapping_add(k)))
        })
        .collect();
    everywhere("functions", |gpu| assert_eq!(run_over(gpu, "scratch", &input, 2), expected));
}

#[test]
fn printf_as_c_prints() {
    everywhere("functions", |gpu| {
        let outcome = gpu.run("prints", Geometry::linear(1, 1), &[Arg::I32(3)]);
        let line = "[  6.8|abc   |+3|0xff|z|%|1099511627776|1.234e-04|    7|0.5|0x0]\n";
        assert_eq!(outcome.printed, format!("{line}no arguments\n10 0\n"));
    });
}

#[test]
fn a_cooperative_grid_meets() {
    let n = 40usize;
    let total = (n * (n + 1) / 2) as u32;
    everywhere("functions", |gpu| {
        let spaces = [gpu.space(4 * n), gpu.space(4 * n), gpu.space(4 * n)];
        let args = spaces.map(Arg::Pointer);
        let outcome = gpu.run_cooperative("grid_meets", Geometry::linear(n as u32, 64), &args);
        assert_eq!(outcome.findings, []);
        assert_eq!(gpu.read_words(spaces[2], n), vec![total * total; n]);
    });
    let mut gpu = Gpu::new("functions", Arch::Sm80, Options::default());
    let spaces = [gpu.space(4 * n), gpu.space(4 * n), gpu.space(4 * n)].map(Arg::Pointer);
    // Not cooperative: there is nothing to meet at.
    let error = gpu.fails("grid_meets", Geometry::linear(2, 64), &spaces);
    assert!(matches!(error, Error::Execution { .. }), "{error}");
}

#[test]
fn pairs_change_in_one_step() {
    for options in
        [Options::default(), Options { schedule: ptxsim::options::Schedule::Random, seed: 5, ..Options::default() }]
    {
        let mut gpu = Gpu::new("functions", Arch::Sm90a, options);
        let n = 128u64;
        let input = random_words(4 * n as usize, 34);
        let (from, copy) = (gpu.words(&input), gpu.space(16 * n as usize));
        let (pair, exchanged) = (gpu.zeros(16), gpu.zeros(16));
        let args = [pair, exchanged, from, copy].map(Arg::Pointer);
        gpu.run("pairs", Geometry::linear(2, 64), &args);
        let sum = n * (n - 1) / 2;
        assert_eq!(gpu.device.download(pair, 2, u64::from_le_bytes).expect("memory"), [n, sum << 32 | sum]);
        let last = gpu.device.download(exchanged, 2, u64::from_le_bytes).expect("memory");
        assert!(last[0] < n && last[1] == !last[0], "{last:x?}");
        assert_eq!(gpu.read_words(copy, input.len()), input);
    }
}
