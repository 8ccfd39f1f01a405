//! Products with weights that stay as a file stores them, on the processor alone: a row of a large head, several rows, and a prompt.

use super::{Row, Size, Work};
use crate::device::cpu::WriteMode;
use crate::device::packed::{PackedMatrix, product};
use crate::tensor::{BlockType, DType, Tensor};
use crate::verify::made_blocks;

pub(super) fn rows(size: Size) -> Vec<Row> {
    let host = vec![[1, 576, 49_152], [8, 576, 49_152], [256, 576, 3072]];
    let shapes = size.of(vec![[3, 256, 40]], host.clone(), host);
    let kinds =
        [("q4_1", BlockType::Q4_1), ("q8_0", BlockType::Q8_0), ("q6_k", BlockType::Q6K), ("f16", BlockType::F16)];
    let of = |(name, kind)| shapes.iter().filter_map(move |&shape| row(name, kind, shape));
    kinds.into_iter().flat_map(of).collect()
}

/// What moves is x, the weights as they are stored, and y; none where a row is no whole blocks.
fn row(name: &'static str, kind: BlockType, [n, i, o]: [usize; 3]) -> Option<Row> {
    let bytes = size_of::<f32>() * n * (i + o) + o * kind.row_bytes(i)?;
    // A single row is bound by memory.
    let work = Work { bytes, flops: if n > 1 { 2 * n * i * o } else { 0 }, tokens: 0 };
    let make = move |stage: &super::Stage| -> super::Run {
        let blocks = made_blocks(name, kind, [o, i]);
        let matrix = PackedMatrix::new(kind, [o, i], &blocks).expect("whole blocks");
        let (x, arena) = (stage.normals([n, i], DType::F32), stage.arena.clone());
        Box::new(move || {
            let mut y = Tensor::uninit(&arena, [n, o], DType::F32);
            product(y.as_mut_slice(), x.as_slice(), std::slice::from_ref(&matrix), WriteMode::Overwrite);
            vec![y]
        })
    };
    let extents = [("N", n), ("I", i), ("O", o)];
    Some(Row::new(["packed", "fwd", name], DType::F32, &extents, work, make))
}
