use crate::gpu::{everywhere, random_words};
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

#[test]
fn cooperative_groups() {
    let input: Vec<u32> = random_words(256, 1).into_iter().map(|word| (word % 2001).wrapping_sub(1000)).collect();
    let x: Vec<i32> = input.iter().map(|word| *word as i32).collect();
    let mut expected = Vec::new();
    for (i, value) in x.iter().enumerate() {
        let eight = &x[i / 8 * 8..][..8];
        let ballot = (0..4).map(|j| i32::from(x[i / 4 * 4 + j] > 0) << j).sum();
        let odd: Vec<i32> = x[i / 32 * 32..][..32].iter().copied().filter(|x| x & 1 == 1).collect();
        let largest = odd.iter().max().map_or(0, |largest| largest + odd.len() as i32);
        let running = eight[..=i % 8].iter().sum();
        let odd = if value & 1 == 1 { largest } else { 0 };
        expected.extend([eight.iter().sum(), running, ballot, eight[(i % 8) ^ 5], odd].map(|x: i32| x as u32));
    }
    everywhere("library", |gpu| {
        let (from, out) = (gpu.words(&input), gpu.space(4 * 5 * 256));
        gpu.run("groups", Geometry::linear(2, 128), &[from, out].map(Arg::Pointer));
        assert_eq!(gpu.read_words(out, 5 * 256), expected);
    });
}

#[test]
fn barriers_and_pipelines() {
    let tiles = 6usize;
    let input = random_words(128 * tiles, 2);
    let turned: Vec<u32> = (0..input.len()).map(|i| input[i / 128 * 128 + 127 - i % 128]).collect();
    let sums: Vec<u32> = (0..128)
        .map(|t| (0..tiles).fold(0u32, |sum, k| sum.wrapping_add(input[k * 128 + 127 - t].wrapping_mul(k as u32 + 1))))
        .collect();
    everywhere("library", |gpu| {
        let (from, out) = (gpu.words(&input), gpu.space(4 * input.len()));
        gpu.run("by_barrier", Geometry::linear(tiles as u32, 128), &[from, out].map(Arg::Pointer));
        assert_eq!(gpu.read_words(out, input.len()), turned);
        let args = [Arg::Pointer(from), Arg::Pointer(out), Arg::I32(tiles as i32)];
        gpu.run("by_pipeline", Geometry::linear(1, 128), &args);
        assert_eq!(gpu.read_words(out, 128), sums);
    });
}

#[test]
fn tickets_of_an_atomic_object() {
    let input: Vec<u32> = random_words(9, 3).into_iter().map(|word| word % 1000).collect();
    everywhere("library", |gpu| {
        let [from, tickets] = [gpu.words(&input), gpu.zeros(4)];
        let [left, out] = [gpu.space(36), gpu.space(4)];
        gpu.run("by_ticket", Geometry::linear(9, 32), &[from, left, tickets, out].map(Arg::Pointer));
        assert_eq!(gpu.read_words(out, 1), [3 * input.iter().sum::<u32>()]);
    });
}
