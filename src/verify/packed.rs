//! Made weights in blocks, for tests and benches of products that read them as they are; and the checks of the kernels that do.

use super::{Cases, Extent, at, close, normals, pick, told, unit};
use crate::device::gpu::Gpu;
use crate::device::packed::PackedMatrix;
use crate::device::packed::gpu::{gemm_packed, to_gpu};
use crate::ops::{embedding, linear};
use crate::tensor::random::Philox;
use crate::tensor::{Arena, BlockType, DType, Tensor};
use half::{bf16, f16};

/// Rows of blocks of normal scales and uniform integers, named by `name`, of values around `1 / sqrt(cols)`: a product keeps the size of
/// what passes.
///
/// # Panics
/// If a row is not whole blocks.
pub fn made_blocks(name: &str, kind: BlockType, [rows, cols]: [usize; 2]) -> Vec<u8> {
    let stream = Philox::new(0, name);
    let mut bytes = vec![0; rows * kind.row_bytes(cols).expect("whole blocks")];
    for (words, i) in bytes.chunks_mut(16).zip(0..) {
        let drawn = stream.block(i);
        words.copy_from_slice(&bytemuck::cast_slice(&drawn)[..words.len()]);
    }
    let scale = 1.0 / (cols as f32).sqrt();
    for (block, i) in bytes.chunks_exact_mut(kind.block_bytes()).zip(0..) {
        let [normal, other] = [2 * i, 2 * i + 1].map(|i| stream.normal(i) as f32 * scale);
        let half = |x: f32| f16::from_f32(x).to_le_bytes();
        match kind {
            BlockType::F32 => block.copy_from_slice(&normal.to_le_bytes()),
            BlockType::F16 => block.copy_from_slice(&half(normal)),
            BlockType::Bf16 => block.copy_from_slice(&bf16::from_f32(normal).to_le_bytes()),
            BlockType::Q8_0 => block[..2].copy_from_slice(&half(normal / 64.0)),
            BlockType::Q4_0 => block[..2].copy_from_slice(&half(normal / 4.0)),
            BlockType::Q4_1 => {
                block[..2].copy_from_slice(&half(normal / 4.0));
                block[2..4].copy_from_slice(&half(other));
            }
            BlockType::Q6K => block[208..].copy_from_slice(&half(normal / 1024.0)),
        }
    }
    bytes
}

/// A matrix of made blocks, and its values rounded to bf16.
fn made(name: &str, kind: BlockType, dims: [usize; 2]) -> (PackedMatrix, Vec<f64>) {
    let matrix = PackedMatrix::new(kind, dims, &made_blocks(name, kind, dims)).expect("whole blocks");
    let values = matrix.to_f32().into_iter().map(|w| bf16::from_f32(w).to_f64()).collect();
    (matrix, values)
}

/// Rows, outputs of a matrix and K: one row and a panel of eight that is not whole, eight rows, more than eight, more than a block of 64; as
/// many pieces of K as a block has warps, fewer and more.
const PRODUCTS: [[usize; 3]; 4] = [[1, 13, 64], [8, 24, 128], [9, 61, 512], [70, 37, 256]];
/// What lies side by side: all kinds that kernels read, and two that become bf16.
const STACKS: [&[BlockType]; 4] =
    [&[BlockType::Q4_0], &[BlockType::Q4_1], &[BlockType::Q8_0], &[BlockType::Q8_0, BlockType::F16, BlockType::Q4_1]];

/// Products with packed weights: right, alone and added, and every row bit for bit what it is alone.
///
/// # Errors
/// The first element that is wrong, rows that depend on others, or what the device says.
pub fn gemm_packed_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    let mut cases = pick(&PRODUCTS, 2, extent).flat_map(|&size| STACKS.map(|stack| (size, stack)));
    cases.try_for_each(|([n, o, k], stack)| {
        let host = Arena::new(1 << 22).map_err(|error| error.to_string())?;
        let rounded = |name: &str, elems: usize| at(&host, DType::Bf16, [elems], &normals(name, elems)).to_f64();
        let made: Vec<_> = stack.iter().map(|&kind| made(&format!("{kind:?}"), kind, [o, k])).collect();
        let outputs = stack.len() * o;
        let (x, d) = (rounded("packed x", n * k), rounded("packed d", n * outputs));
        let parts: Vec<Vec<f64>> = made.iter().map(|(_, values)| linear::reference(&x, values, k)).collect();
        let once: Vec<f64> =
            (0..n).flat_map(|row| parts.iter().flat_map(move |part| part[row * o..(row + 1) * o].to_vec())).collect();
        let onto: Vec<f64> = once.iter().zip(&d).map(|(p, d)| p + d).collect();
        let matrices: Vec<PackedMatrix> = made.iter().map(|(matrix, _)| to_gpu(matrix, gpu)).collect();
        let arena = Arena::scattered(gpu);
        let run = |rows: std::ops::Range<usize>, residual: bool| {
            let part = |of: &[f64], cols: usize| {
                at(&arena, DType::Bf16, [rows.len(), cols], &of[rows.start * cols..rows.end * cols])
            };
            let d = residual.then(|| part(&d, outputs));
            let mut y = Tensor::uninit(&arena, [rows.len(), outputs], DType::Bf16);
            gemm_packed(&mut y.whole_mut(), d.as_ref(), &part(&x, k), &matrices);
            y
        };
        let (what, bound) = (format!("packed {stack:?} {:?}", [n, o, k]), 4.0 * unit(DType::Bf16));
        let all = run(0..n, false);
        close(&what, &all.to_f64(), &once, bound)?;
        close(&format!("{what}, added"), &run(0..n, true).to_f64(), &onto, bound)?;
        let alone: Vec<u8> = (0..n).flat_map(|row| run(row..row + 1, false).to_bytes()).collect();
        told(gpu, &what)?;
        match alone == all.to_bytes() {
            true => Ok(()),
            false => Err(format!("{what}: rows depend on how many there are")),
        }
    })
}

/// Rows of a packed table: its values to the last bit but one of bf16, zeros for nothing, NaN beyond the table.
///
/// # Errors
/// The first element that is wrong, or what the device says.
pub fn embedding_packed_on(gpu: &'static Gpu, extent: Extent) -> Cases {
    const KINDS: [BlockType; 4] = [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::F32];
    // One case looks at all kinds, for each has a kernel.
    pick(&[[45, 96], [8, 32], [21, 512]], 0, extent).flat_map(|dims| KINDS.map(|kind| (*dims, kind))).try_for_each(
        |([v, c], kind)| {
            let (matrix, values) = made("table", kind, [v, c]);
            let tokens: Vec<u32> =
                (0..2 * v as u32).map(|i| i * 7 % v as u32).chain([embedding::NOTHING, v as u32]).collect();
            let arena = Arena::scattered(gpu);
            let ids = Tensor::from_slice(&arena, [tokens.len()], &tokens);
            let got = embedding::forward_packed(&arena, &to_gpu(&matrix, gpu), &ids, DType::Bf16);
            let (what, got) = (format!("packed table {kind:?} {v}x{c}"), got.to_f64());
            told(gpu, &what)?;
            let (rows, rest) = got.split_at(2 * v * c);
            for (row, &token) in rows.chunks_exact(c).zip(&tokens) {
                close(&format!("{what}, token {token}"), row, &values[token as usize * c..][..c], unit(DType::Bf16))?;
            }
            match rest[..c].iter().all(|&y| y == 0.0) && rest[c..].iter().all(|y| y.is_nan()) {
                true => Ok(()),
                false => Err(format!("{what}: what is no row is {rest:?}")),
            }
        },
    )
}
