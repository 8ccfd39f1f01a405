//! Matrix products against plain loops in f64: every layout of the operands, tiles cut by every edge, more depth than one
//! packed piece, both write modes, and the same bits on any number of threads.

use nanochat_gpu::device::cpu::{Mat, SharedMut, Threads, WriteMode, matmul, matmul_into};
use nanochat_gpu::verify::normals;

/// `[m, n, k]`: below a tile of 6 x 16, on its edges, several blocks of rows, depths on both sides of one and two pieces.
const SHAPES: &[[usize; 3]] = &[
    [1, 1, 1],
    [3, 70, 40],
    [4, 5, 3],
    [6, 16, 8],
    [7, 17, 9],
    [12, 31, 64],
    [64, 128, 64],
    [97, 33, 257],
    [200, 15, 600],
    [391, 130, 511],
];

fn values(name: &str, elems: usize) -> Vec<f32> {
    normals(name, elems).iter().map(|&x| x as f32).collect()
}

/// An `rows x cols` matrix inside a buffer, row-major or as the transpose of one, its long rows `gap` elements apart.
struct Operand {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    is_transposed: bool,
    gap: usize,
}

impl Operand {
    fn new(name: &str, [rows, cols]: [usize; 2], is_transposed: bool, gap: usize) -> Operand {
        let (outer, inner) = if is_transposed { (cols, rows) } else { (rows, cols) };
        Operand { data: values(name, (outer - 1) * (inner + gap) + inner), rows, cols, is_transposed, gap }
    }

    fn mat(&self) -> Mat<'_, f32> {
        match self.is_transposed {
            false => Mat::strided(&self.data, self.rows, self.cols, self.cols + self.gap),
            true => Mat::strided(&self.data, self.cols, self.rows, self.rows + self.gap).t(),
        }
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        match self.is_transposed {
            false => self.data[i * (self.cols + self.gap) + j],
            true => self.data[j * (self.rows + self.gap) + i],
        }
    }
}

/// The largest error that `got` may have at `(i, j)`: twice what a plain f32 loop loses in the worst case is bounded by
/// the depth; sums of random signs stay near its root.
fn bound(a: &Operand, b: &Operand, i: usize, j: usize, before: f32) -> f64 {
    let k = a.cols;
    let squares: f64 = (0..k).map(|p| (a.at(i, p) as f64 * b.at(p, j) as f64).powi(2)).sum();
    4.0 * f32::EPSILON as f64 * ((k as f64).sqrt() * squares.sqrt() + before.abs() as f64)
}

#[test]
fn every_layout_and_edge_gives_what_plain_loops_give() {
    for &[m, n, k] in SHAPES {
        for layout in 0..8 {
            let a = Operand::new("a", [m, k], layout & 1 != 0, (layout & 4) * 3);
            let b = Operand::new("b", [k, n], layout & 2 != 0, layout & 4);
            for mode in [WriteMode::Overwrite, WriteMode::Accumulate] {
                let before = values("c", m * n);
                // What is overwritten may be anything.
                let mut c = if mode == WriteMode::Overwrite { vec![f32::NAN; m * n] } else { before.clone() };
                matmul(&mut c, a.mat(), b.mat(), mode, Threads::One);
                let mut threaded = if mode == WriteMode::Overwrite { vec![f32::NAN; m * n] } else { before.clone() };
                matmul(&mut threaded, a.mat(), b.mat(), mode, Threads::All);
                for (at, &got) in c.iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let start = if mode == WriteMode::Overwrite { 0.0 } else { before[at] };
                    let want = (0..k).map(|p| a.at(i, p) as f64 * b.at(p, j) as f64).sum::<f64>() + start as f64;
                    let holds = (got as f64 - want).abs() <= bound(&a, &b, i, j, start);
                    assert!(holds, "{m}x{n}x{k} layout {layout} {mode:?} at ({i}, {j}): {got}, {want} expected");
                }
                assert_eq!(c, threaded, "{m}x{n}x{k} layout {layout} {mode:?}: threads change bits");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (a, b) = (Operand::new("a", [500, 300], false, 0), Operand::new("b", [300, 70], true, 0));
    let product = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut c = vec![0.0; 500 * 70];
        pool.install(|| matmul(&mut c, a.mat(), b.mat(), WriteMode::Overwrite, Threads::All));
        c
    };
    let one = product(1);
    assert!([2, 3, 7].into_iter().all(|threads| product(threads) == one));
}

#[test]
fn nothing_outside_an_interleaved_result_is_written_and_nan_passes() {
    let (m, n, k, stride) = (20, 19, 33, 50);
    let (mut a, b) = (Operand::new("a", [m, k], false, 0), Operand::new("b", [k, n], false, 0));
    a.data[7 * k + 3] = f32::NAN;
    let mut buffer = vec![-1f32; m * stride];
    let shared = SharedMut::new(&mut buffer);
    // SAFETY: nothing else touches the buffer.
    unsafe { matmul_into(shared.mat(5, m, n, stride), a.mat(), b.mat(), WriteMode::Overwrite, Threads::All) };
    for (at, x) in buffer.iter().enumerate() {
        let (i, j) = (at / stride, at % stride);
        let is_inside = (5..5 + n).contains(&j);
        assert_eq!(x.is_nan(), is_inside && i == 7, "({i}, {j})");
        assert!(is_inside || *x == -1.0, "({i}, {j}) was written");
    }
}

#[test]
fn no_depth_clears_or_keeps() {
    let (a, b): (&[f32], &[f32]) = (&[], &[]);
    for (mode, want) in [(WriteMode::Overwrite, 0.0), (WriteMode::Accumulate, 3.0)] {
        let mut c = vec![3f32; 8 * 5];
        matmul(&mut c, Mat::new(a, 8, 0), Mat::new(b, 0, 5), mode, Threads::One);
        assert!(c.iter().all(|&x| x == want), "{mode:?}: {c:?}");
    }
}
