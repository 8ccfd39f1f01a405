use crate::gpu::{Gpu, everywhere, random_words};
use ptxsim::checker::Finding;
use ptxsim::host::Arg;
use ptxsim::launch::Geometry;

const N: usize = 5 * 64;

/// Runs a producer and a consumer; what the consumer made, and what was found in both.
fn pair(gpu: &mut Gpu, producer: &str, consumer: &str, scratch_is_input: bool) -> (Vec<u32>, Vec<Finding>) {
    let (input, table) = (random_words(N, 1), random_words(N, 2));
    let (from, table_at) = (gpu.words(&input), gpu.words(&table));
    let (data, out) = (gpu.zeros(4 * N), gpu.space(4 * N));
    let scratch = if scratch_is_input { from } else { gpu.space(4 * N) };
    let first = [from, data].map(Arg::Pointer);
    let second = [data, table_at, out, scratch].map(Arg::Pointer);
    let outcomes = gpu.run_dependent((producer, &first), (consumer, &second), Geometry::linear(5, 64));
    let findings = outcomes.into_iter().flat_map(|outcome| outcome.findings).collect();
    (gpu.read_words(out, N), findings)
}

fn expected() -> Vec<u32> {
    let (input, table) = (random_words(N, 1), random_words(N, 2));
    input.iter().zip(&table).map(|(x, y)| x.wrapping_mul(2).wrapping_add(*y)).collect()
}

#[test]
fn a_grid_that_waits_sees_what_the_one_before_wrote() {
    everywhere("dependents", |gpu| {
        for producer in ["produces", "produces_quietly"] {
            for consumer in ["consumes", "all_wait"] {
                let (out, findings) = pair(gpu, producer, consumer, false);
                assert_eq!(findings, [], "{producer}, {consumer}");
                assert_eq!(out, expected(), "{producer}, {consumer}");
            }
        }
    });
}

#[test]
fn what_is_touched_too_early_is_found() {
    everywhere("dependents", |gpu| {
        for (consumer, rule, says) in [
            ("consumes_early", "read_before_wait", "what produces writes"),
            ("overwrites_early", "write_before_wait", "what produces reads"),
        ] {
            let (out, findings) = pair(gpu, "produces", consumer, consumer == "overwrites_early");
            let all: Vec<_> = findings.iter().map(|f| (f.checker, f.rule, f.message.as_str())).collect();
            let fits = all.len() == 1 && (all[0].0, all[0].1) == ("dependents", rule) && all[0].2.contains(says);
            assert!(fits, "{consumer}: {all:?}");
            assert_eq!(findings[0].count, N as u64, "every word");
            assert!(findings[0].line.cuda_line.is_some());
            if consumer == "consumes_early" {
                // The moment is the earliest one: the data was not there.
                assert_eq!(out, random_words(N, 2), "the table and zeros");
            }
        }
    });
}
