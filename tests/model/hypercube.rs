//! The geometry of the hypercube, and what the model says of vertices.

use nanochat_gpu::model::hypercube::geometry::{self, Vertex};
use nanochat_gpu::verify::normals;
use std::collections::HashSet;

const BITS: usize = 6;

#[test]
fn neighbours_edges_and_distances_are_those_of_the_graph() {
    let all: Vec<(Vertex, Vertex)> = geometry::edges(BITS).collect();
    assert_eq!(all.len(), BITS << (BITS - 1));
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    assert!(all.iter().all(|&(a, b)| a < b && geometry::distance(a, b) == 1));
    for v in [0, 5, 63].map(Vertex) {
        let near: Vec<Vertex> = geometry::neighbours(v, BITS).collect();
        assert!(near.len() == BITS && near.iter().all(|&w| geometry::distance(v, w) == 1));
    }
    assert_eq!(geometry::to_bits(Vertex(0b101), 4), [1, -1, 1, -1]);
    assert_eq!(Vertex::nearest(&[0.5, -0.1, 0.0, -9.0]), Vertex(0b101));
}

/// By breadth-first search over the edges.
#[test]
fn a_geodesic_is_a_shortest_path() {
    for (a, b) in [(0, 63), (5, 6), (17, 17), (40, 3)].map(|(a, b)| (Vertex(a), Vertex(b))) {
        let path = geometry::geodesic(a, b);
        assert!(path[0] == a && path[path.len() - 1] == b);
        assert!(path.windows(2).all(|step| geometry::distance(step[0], step[1]) == 1));
        let (mut reached, mut steps) = (HashSet::from([a]), 0);
        while !reached.contains(&b) {
            reached = reached.iter().flat_map(|&v| geometry::neighbours(v, BITS).chain([v])).collect();
            steps += 1;
        }
        assert_eq!(path.len() - 1, steps);
        assert_eq!(geometry::distance(a, b), steps as u32);
    }
}

#[test]
fn random_paths_follow_edges_and_their_seed() {
    let path = geometry::random_path(Vertex(9), 200, BITS, 3);
    assert!(path.len() == 201 && path.windows(2).all(|step| geometry::distance(step[0], step[1]) == 1));
    assert!(path.iter().collect::<HashSet<_>>().len() > 30, "it goes about");
    assert_eq!(path, geometry::random_path(Vertex(9), 200, BITS, 3));
    assert_ne!(path, geometry::random_path(Vertex(9), 200, BITS, 4));
}

#[test]
fn an_analogy_applies_what_tells_two_apart() {
    let [king, man, woman] = [0b1101, 0b0101, 0b0110].map(Vertex);
    assert_eq!(geometry::analogy(king, man, woman), Vertex(0b1110));
    assert_eq!(geometry::analogy(man, man, woman), woman);
}

/// Four clusters of 16 points on 64 vertices: all distinct, each bit set for half of the points, and points of one cluster share their
/// two highest bits.
#[test]
fn bisection_is_balanced_and_keeps_near_points_together() {
    const DIMS: usize = 5;
    let noise = normals("clusters", 64 * DIMS);
    let centre = |cluster: usize, d: usize| [[9.0, 0.0], [9.0, 5.0], [-9.0, 0.0], [-9.0, 5.0]][cluster].get(d).copied();
    let point = |i: usize, d: usize| centre(i % 4, d).unwrap_or(0.0) + 0.3 * noise[i * DIMS + d];
    let points: Vec<f32> = (0..64).flat_map(|i| (0..DIMS).map(move |d| point(i, d) as f32)).collect();
    let vertices = geometry::bisect(&points, DIMS, BITS);
    assert_eq!(vertices.iter().collect::<HashSet<_>>().len(), 64);
    for bit in 0..BITS {
        assert_eq!(vertices.iter().filter(|v| v.0 >> bit & 1 == 1).count(), 32);
    }
    for i in 0..64 {
        assert_eq!(vertices[i].0 >> 4, vertices[i % 4].0 >> 4, "point {i}");
    }
    assert_eq!(vertices, geometry::bisect(&points, DIMS, BITS));
}

#[test]
fn fewer_points_than_vertices_and_equal_points_have_vertices_of_their_own() {
    let vertices = geometry::bisect(&[1.0; 37], 1, BITS);
    assert_eq!(vertices.iter().collect::<HashSet<_>>().len(), 37);
}
