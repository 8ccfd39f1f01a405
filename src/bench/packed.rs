//! Products with weights that stay as a file stores them, on the processor alone: a row of a large head, several rows, and a prompt.

use super::{Row, Size, Work};
use crate::device::cpu::WriteMode;
use crate::device::packed::{ActivationBits, PackedMatrix, PackedWeight, product};
use crate::tensor::{BlockType, DType, Tensor};
use crate::verify::made_blocks;

pub(super) fn rows(size: Size) -> Vec<Row> {
    let host = vec![[1, 576, 49_152], [8, 576, 49_152], [256, 576, 3072]];
    let shapes = size.of(vec![[3, 256, 40]], host.clone(), host);
    let kinds =
        [("q4_1", BlockType::Q4_1), ("q8_0", BlockType::Q8_0), ("q6_k", BlockType::Q6K), ("f16", BlockType::F16)];
    let mut rows = Vec::new();
    for (name, kind) in kinds {
        let bits: &[_] = if kind == BlockType::F16 { &[None] } else { &[Some(8), Some(16)] };
        for &bits in bits {
            rows.extend(shapes.iter().filter_map(|&shape| row((name, kind), bits, shape)));
        }
    }
    rows
}

/// With activations of so many bits, where the weights are quantised. What moves is x, the weights as they are stored, and y; none where
/// a row is no whole blocks.
fn row((name, kind): (&'static str, BlockType), bits: Option<usize>, [n, i, o]: [usize; 3]) -> Option<Row> {
    let bytes = size_of::<f32>() * n * (i + o) + o * kind.row_bytes(i)?;
    // A single row is bound by memory.
    let work = Work { bytes, flops: if n > 1 { 2 * n * i * o } else { 0 }, tokens: 0 };
    let make = move |stage: &super::Stage| -> super::Run {
        let blocks = made_blocks(name, kind, [o, i]);
        let matrix = PackedMatrix::new(kind, [o, i], &blocks).expect("whole blocks");
        let bits = if bits == Some(8) { ActivationBits::Eight } else { ActivationBits::Sixteen };
        let (x, arena) = (stage.normals([n, i], DType::F32), stage.arena.clone());
        Box::new(move || {
            let mut y = Tensor::uninit(&arena, [n, o], DType::F32);
            product(y.as_mut_slice(), x.as_slice(), PackedWeight::of(&matrix, bits), WriteMode::Overwrite);
            vec![y]
        })
    };
    let extents: Vec<(&str, usize)> =
        [("N", n), ("I", i), ("O", o)].into_iter().chain(bits.map(|bits| ("bits", bits))).collect();
    Some(Row::new(["packed", "fwd", name], DType::F32, &extents, work, make))
}
