//! Made weights in blocks, for tests and benches of products that read them as they are.

use crate::tensor::BlockType;
use crate::tensor::random::Philox;
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
