//! Every op forward and backward, the optimisers, and whole training steps, on the CPU in f32.
//!
//! `cargo bench --bench ops [-- FILTER]`. `NANOCHAT_BENCH_SMOKE=1` takes tiny sizes. Rows are named by the stem of the
//! op's file. The bytes or operations behind a rate stand beside each row: GiB/s is bytes that must move, Gelem/s is
//! GFLOP/s (for `train_step` elem/s is tokens per second).

mod attention;
mod optim;
mod products;
mod rowwise;
mod train_step;

use criterion::{Criterion, Throughput};
use nanochat_gpu::tensor::{Arena, DType, Grads, Layout, Role, Tensor};
use nanochat_gpu::verify;
use std::sync::Arc;
use std::time::Duration;

fn main() {
    let is_smoke = std::env::var_os("NANOCHAT_BENCH_SMOKE").is_some();
    let mut criterion = Criterion::default().sample_size(10).without_plots();
    criterion = match is_smoke {
        true => {
            criterion.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(5)).nresamples(1001)
        }
        false => criterion.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)),
    };
    let arena = Arena::new(8 << 30).expect("address space");
    let mut bench = Bench { criterion: criterion.configure_from_args(), arena, is_smoke };
    rowwise::rows(&mut bench);
    products::rows(&mut bench);
    attention::rows(&mut bench);
    optim::rows(&mut bench);
    train_step::rows(&mut bench);
    bench.criterion.final_summary();
}

/// What a row is measured with.
struct Bench {
    criterion: Criterion,
    arena: Arena,
    is_smoke: bool,
}

/// What a row must at least do.
#[derive(Clone, Copy)]
enum Work {
    Bytes(usize),
    Flops(usize),
    Tokens(usize),
}

impl Bench {
    /// Measures `run`; the row is called `op/what`.
    fn row<R>(&mut self, op: &str, what: &str, work: Work, run: impl FnMut() -> R) {
        let throughput = match work {
            Work::Bytes(n) => Throughput::Bytes(n as u64),
            Work::Flops(n) | Work::Tokens(n) => Throughput::Elements(n as u64),
        };
        let mut run = run;
        let mut group = self.criterion.benchmark_group(op);
        group.throughput(throughput).bench_function(what, |bench| bench.iter(&mut run));
        group.finish();
    }

    /// The extents of a row: `real`, or `tiny` in smoke size.
    fn size<T>(&self, real: T, tiny: T) -> T {
        if self.is_smoke { tiny } else { real }
    }

    /// Standard normal values.
    fn normals<const N: usize>(&self, name: &str, shape: [usize; N]) -> Tensor {
        let values: Vec<f32> = verify::normals(name, shape.iter().product()).iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&self.arena, shape.as_slice(), &values)
    }
}

/// Bytes of `elems` values of f32.
fn f32_bytes(elems: usize) -> usize {
    4 * elems
}

/// Zeroed gradients of parameters of these shapes.
fn grads(shapes: &[&[usize]]) -> Grads {
    let mut layout = Layout::default();
    for (i, &shape) in shapes.iter().enumerate() {
        layout.push(format!("{i}"), shape, Role::Matrix);
    }
    Grads::zeros(Arc::new(layout), DType::F32)
}
