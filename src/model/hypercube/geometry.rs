//! The hypercube `{-1, +1}^K` as a graph: `2^K` vertices, each with `K` neighbours that differ in one bit; and how points of a space are
//! laid onto it.

use crate::tensor::random::Philox;

/// A vertex: bit `i` set where coordinate `i` is `+1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vertex(pub u32);

impl Vertex {
    /// The vertex of the signs of `coordinates`; zero counts as positive.
    pub fn nearest(coordinates: &[f32]) -> Vertex {
        Vertex(coordinates.iter().enumerate().fold(0, |bits, (i, &x)| bits | u32::from(x >= 0.0) << i))
    }
}

/// Its coordinates, `-1` or `+1` each.
pub fn to_bits(vertex: Vertex, bits: usize) -> Vec<i8> {
    (0..bits).map(|i| if vertex.0 >> i & 1 == 1 { 1 } else { -1 }).collect()
}

/// The vertices that differ in one bit, by rising bit.
pub fn neighbours(vertex: Vertex, bits: usize) -> impl Iterator<Item = Vertex> {
    (0..bits).map(move |i| Vertex(vertex.0 ^ (1 << i)))
}

/// Bits that differ: steps of a shortest path.
pub fn distance(a: Vertex, b: Vertex) -> u32 {
    (a.0 ^ b.0).count_ones()
}

/// A shortest path from `a` to `b`, both included; the lowest differing bit changes first.
pub fn geodesic(a: Vertex, b: Vertex) -> Vec<Vertex> {
    let mut path = vec![a];
    let mut at = a.0;
    while at != b.0 {
        let differing = at ^ b.0;
        at ^= differing & differing.wrapping_neg();
        path.push(Vertex(at));
    }
    path
}

/// A walk of `steps` steps from `start`, each over an edge drawn by `seed`.
pub fn random_path(start: Vertex, steps: usize, bits: usize, seed: u64) -> Vec<Vertex> {
    let draws = Philox::new(seed, "hypercube path");
    let mut path = vec![start];
    for step in 0..steps {
        let at = path[step].0;
        path.push(Vertex(at ^ (1 << draws.below(step as u64, bits as u64))));
    }
    path
}

/// All `K 2^(K - 1)` edges, the lower vertex first.
pub fn edges(bits: usize) -> impl Iterator<Item = (Vertex, Vertex)> {
    (0..1u32 << bits).flat_map(move |v| neighbours(Vertex(v), bits).map(move |w| (Vertex(v), w))).filter(|(v, w)| v < w)
}

/// `a - b + c` by bits: what tells `a` from `b`, applied to `c`.
pub fn analogy(a: Vertex, b: Vertex, c: Vertex) -> Vertex {
    Vertex(a.0 ^ b.0 ^ c.0)
}

/// Rounds of the power iteration that finds a direction.
const ROUNDS: usize = 6;

/// Lays points onto vertices of `bits` bits by balanced recursive bisection: the points of a cell are cut in halves across their
/// principal direction, and the half is the next bit, the highest first. No two points share a vertex where there are enough; near
/// points share their first bits. `points` are rows of `dims`.
///
/// # Panics
/// If there are more points than vertices.
pub fn bisect(points: &[f32], dims: usize, bits: usize) -> Vec<Vertex> {
    let count = points.len() / dims;
    assert!(count <= 1 << bits, "{count} points on {} vertices", 1u64 << bits);
    let mut vertices = vec![Vertex(0); count];
    let mut cells: Vec<Vec<u32>> = vec![(0..count as u32).collect()];
    for bit in (0..bits).rev() {
        let mut halves = Vec::with_capacity(2 * cells.len());
        for cell in cells {
            let (low, high) = cut(points, dims, cell, 1 << bit);
            high.iter().for_each(|&i| vertices[i as usize].0 |= 1 << bit);
            halves.extend([low, high]);
        }
        cells = halves;
    }
    vertices
}

/// Two halves of a cell, neither larger than `most`.
fn cut(points: &[f32], dims: usize, mut cell: Vec<u32>, most: usize) -> (Vec<u32>, Vec<u32>) {
    if cell.len() < 2 {
        return (cell, Vec::new());
    }
    let row = |i: u32| &points[i as usize * dims..][..dims];
    let mut mean = vec![0.0f64; dims];
    cell.iter().for_each(|&i| mean.iter_mut().zip(row(i)).for_each(|(m, &x)| *m += f64::from(x)));
    mean.iter_mut().for_each(|m| *m /= cell.len() as f64);
    let along = |direction: &[f64], i: u32| -> f64 {
        row(i).iter().zip(&mean).zip(direction).map(|((&x, m), d)| (f64::from(x) - m) * d).sum()
    };
    // From the point furthest out, so that the first direction is none of chance.
    let length = |i: u32| row(i).iter().zip(&mean).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum::<f64>();
    let furthest = cell.iter().copied().fold((cell[0], -1.0), |(best, most), i| {
        let l = length(i);
        if l > most { (i, l) } else { (best, most) }
    });
    let mut direction: Vec<f64> = row(furthest.0).iter().zip(&mean).map(|(&x, m)| f64::from(x) - m).collect();
    for _ in 0..ROUNDS {
        let mut next = vec![0.0f64; dims];
        for &i in &cell {
            let a = along(&direction, i);
            next.iter_mut().zip(row(i)).zip(&mean).for_each(|((n, &x), m)| *n += a * (f64::from(x) - m));
        }
        let norm = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            break; // all points are one
        }
        direction = next.into_iter().map(|x| x / norm).collect();
    }
    let mut placed: Vec<(f64, u32)> = cell.drain(..).map(|i| (along(&direction, i), i)).collect();
    placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let high = placed.split_off(placed.len().div_ceil(2));
    debug_assert!(placed.len() <= most, "halves of a cell that fits");
    let ids = |half: Vec<(f64, u32)>| half.into_iter().map(|(_, i)| i).collect();
    (ids(placed), ids(high))
}
