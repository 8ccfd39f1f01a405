//! Products with weights that stay as a file stores them: on the processor a row of a large head, several rows, and a prompt; on a GPU the
//! same by its kernels.

use super::{Row, Size, Work};
use crate::device::Device;
use crate::device::cpu::WriteMode;
use crate::device::packed::gpu::to_gpu;
use crate::device::packed::{ActivationBits, PackedMatrix, PackedWeight, product};
use crate::ops::linear;
use crate::tensor::{BlockType, DType, Tensor, Weight};
use crate::verify::made_blocks;
use half::bf16;

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

/// Rows of kernels that read packed weights: those of bf16 by rows, at the same sizes (`products`).
pub(super) fn card_rows(size: Size) -> Vec<Row> {
    let [o, k] = size.of([80, 160], [1152, 384], [4096, 4096]);
    let kinds = [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0];
    let few = ["few_q4_0", "few_q4_1", "few_q8_0"];
    let many = ["many_q4_0", "many_q4_1", "many_q8_0"];
    let of = |n: usize, names: [&'static str; 3]| {
        names.into_iter().zip(kinds).map(move |(name, kind)| card_row((name, kind), [n, k, o]))
    };
    of(1, few).chain(of(8, few)).chain(of(size.of(70, 256, 256), many)).collect()
}

fn card_row((name, kind): (&'static str, BlockType), [n, i, o]: [usize; 3]) -> Row {
    let bytes = size_of::<bf16>() * n * (i + o) + o * kind.row_bytes(i).expect("whole blocks");
    let work = Work { bytes, flops: if name.starts_with("many") { 2 * n * i * o } else { 0 }, tokens: 0 };
    let extents = [("N", n), ("O", o), ("K", i)];
    Row::new(["gemm_packed", "fwd", name], DType::Bf16, &extents, work, move |stage| {
        let matrix = PackedMatrix::new(kind, [o, i], &made_blocks(name, kind, [o, i])).expect("whole blocks");
        let (x, arena) = (stage.normals([n, i], DType::Bf16), stage.arena.clone());
        let matrices = match arena.device() {
            Device::Cpu => [matrix],
            Device::Gpu(gpu) => [to_gpu(&matrix, gpu)],
        };
        Box::new(move || {
            let weight = Weight::Packed(PackedWeight { matrices: &matrices, bits: ActivationBits::Sixteen });
            vec![linear::forward_by(&arena, &x, &weight, None)]
        })
    })
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
