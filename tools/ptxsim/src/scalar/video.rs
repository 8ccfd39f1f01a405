//! SIMD video instructions: `vadd2`, `vabsdiff4` and their like, two halves or four bytes at a time. [ISA 9.7.19]

/// What is done to each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VideoOp {
    Add,
    Sub,
    /// The average, halves rounded away from zero.
    Average,
    AbsDiff,
    Min,
    Max,
}

impl VideoOp {
    /// From the opcode without its number.
    pub fn parse(name: &str) -> Option<VideoOp> {
        Some(match name {
            "vadd" => VideoOp::Add,
            "vsub" => VideoOp::Sub,
            "vavrg" => VideoOp::Average,
            "vabsdiff" => VideoOp::AbsDiff,
            "vmin" => VideoOp::Min,
            "vmax" => VideoOp::Max,
            _ => return None,
        })
    }
}

/// One SIMD video instruction with default selectors and mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Video {
    /// Operation.
    pub op: VideoOp,
    /// Bits of an element: 16 or 8.
    pub bits: u32,
    /// Signs of result, first and second source.
    pub signed: [bool; 3],
    /// `.sat`.
    pub saturate: bool,
    /// `.add`: the elements' results are added to the third source.
    pub accumulate: bool,
}

fn element(word: u32, index: u32, bits: u32, signed: bool) -> i32 {
    let top = word << (32 - bits * (index + 1));
    if signed { top as i32 >> (32 - bits) } else { (top >> (32 - bits)) as i32 }
}

impl Video {
    /// The result for one lane.
    pub fn apply(self, a: u32, b: u32, c: u32) -> u32 {
        let Video { op, bits, signed: [d_signed, a_signed, b_signed], saturate, accumulate } = self;
        let (low, high) = if d_signed { (-1 << (bits - 1), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let mut out = if accumulate { c } else { 0 };
        for index in 0..32 / bits {
            let (x, y) = (element(a, index, bits, a_signed), element(b, index, bits, b_signed));
            let value = match op {
                VideoOp::Add => x + y,
                VideoOp::Sub => x - y,
                VideoOp::Average => (x + y + (x + y >= 0) as i32) >> 1,
                VideoOp::AbsDiff => (x - y).abs(),
                VideoOp::Min => x.min(y),
                VideoOp::Max => x.max(y),
            };
            let value = if saturate { value.clamp(low, high) } else { value };
            let kept = element(value as u32, 0, bits, d_signed);
            if accumulate {
                out = out.wrapping_add(kept as u32);
            } else {
                out |= (value as u32 & ((1 << bits) - 1)) << (index * bits);
            }
        }
        out
    }
}
