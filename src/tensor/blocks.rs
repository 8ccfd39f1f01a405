//! Numbers as weight files store them: plain, or in blocks along a row that share scales, as GGUF defines them.
//!
//! | type | elements | bytes | an element is |
//! |---|---|---|---|
//! | `Q8_0` | 32 | 34 | `d q`, `q` of 8 bits |
//! | `Q4_0` | 32 | 18 | `d (q - 8)`, `q` of 4 bits |
//! | `Q4_1` | 32 | 20 | `d q + m`, `q` of 4 bits |
//! | `Q6_K` | 256 | 210 | `d s (q - 32)`, `q` of 6 bits, `s` an 8-bit scale of 16 elements |
//!
//! `d` and `m` are f16, all little-endian. In the types of 4 bits the low halves of the 16 bytes are the first 16 elements, the
//! high halves the other 16. A row begins and ends with whole blocks.

use half::{bf16, f16};

/// How the elements of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q6K,
}

/// Elements that share a scale in the types of 4 and 8 bits.
const BLOCK: usize = 32;
/// Elements of a block of `Q6_K`, and of these the ones with a scale of their own.
const SUPER_BLOCK: usize = 256;
const SUB_BLOCK: usize = 16;

impl BlockType {
    /// All of them.
    pub const ALL: [BlockType; 7] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Bf16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q6K,
    ];

    /// Its name in GGUF.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// Elements of a block; a row holds a multiple of it.
    pub fn block_elems(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1 => BLOCK,
            BlockType::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::Bf16 => 2,
            BlockType::Q8_0 => 2 + BLOCK,
            BlockType::Q4_0 => 2 + BLOCK / 2,
            BlockType::Q4_1 => 4 + BLOCK / 2,
            BlockType::Q6K => SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + SUPER_BLOCK / SUB_BLOCK + 2,
        }
    }

    /// Bytes of a row of `cols` elements; none where blocks do not divide it, or the number is beyond `usize`.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_elems()) {
            return None;
        }
        (cols / self.block_elems()).checked_mul(self.block_bytes())
    }

    /// The elements of a row, or of several whole rows, exactly as the type defines them in f32.
    ///
    /// # Panics
    /// Where `bytes` are not those of `out.len()` elements.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(bytes.len()), "bytes of {} {} elements", out.len(), self.name());
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_elems()));
        match self {
            BlockType::F32 => blocks.for_each(|(b, to)| to[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            BlockType::F16 => blocks.for_each(|(b, to)| to[0] = f16_at(b, 0)),
            BlockType::Bf16 => blocks.for_each(|(b, to)| to[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            BlockType::Q8_0 => blocks.for_each(|(b, to)| {
                let d = f16_at(b, 0);
                to.iter_mut().zip(&b[2..]).for_each(|(x, &q)| *x = d * f32::from(q as i8));
            }),
            BlockType::Q4_0 => blocks.for_each(|(b, to)| {
                let d = f16_at(b, 0);
                from_nibbles(&b[2..], to, |q| d * (f32::from(q) - 8.0));
            }),
            BlockType::Q4_1 => blocks.for_each(|(b, to)| {
                let (d, m) = (f16_at(b, 0), f16_at(b, 2));
                from_nibbles(&b[4..], to, |q| d * f32::from(q) + m);
            }),
            BlockType::Q6K => blocks.for_each(|(b, to)| dequantise_q6_k(b, to)),
        }
    }

    /// Stores a row, or several whole rows, rounded to this type.
    ///
    /// # Panics
    /// Where `out` is not the bytes of `values.len()` elements.
    pub fn quantise(self, values: &[f32], out: &mut [u8]) {
        assert_eq!(self.row_bytes(values.len()), Some(out.len()), "bytes of {} {}", values.len(), self.name());
        let blocks = values.chunks_exact(self.block_elems()).zip(out.chunks_exact_mut(self.block_bytes()));
        match self {
            BlockType::F32 => blocks.for_each(|(x, to)| to.copy_from_slice(&x[0].to_le_bytes())),
            BlockType::F16 => blocks.for_each(|(x, to)| to.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes())),
            BlockType::Bf16 => blocks.for_each(|(x, to)| to.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes())),
            BlockType::Q8_0 => blocks.for_each(|(x, to)| {
                let d = x.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
                let inverse = inverse(d);
                put_f16(to, 0, d);
                to[2..].iter_mut().zip(x).for_each(|(q, x)| *q = (x * inverse).round() as i8 as u8);
            }),
            BlockType::Q4_0 => blocks.for_each(|(x, to)| {
                // The value furthest from zero becomes -8, which 4 bits hold on one side only.
                let d = furthest(x) / -8.0;
                let inverse = inverse(d);
                put_f16(to, 0, d);
                to_nibbles(x, &mut to[2..], |x| x * inverse + 8.5);
            }),
            BlockType::Q4_1 => blocks.for_each(|(x, to)| {
                let (least, most) = x.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
                let d = (most - least) / 15.0;
                let inverse = inverse(d);
                put_f16(to, 0, d);
                put_f16(to, 2, least);
                to_nibbles(x, &mut to[4..], |x| (x - least) * inverse + 0.5);
            }),
            BlockType::Q6K => blocks.for_each(|(x, to)| quantise_q6_k(x, to)),
        }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn put_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// `1 / d`, and 0 for a block of zeros or of numbers so small that it is not finite.
fn inverse(d: f32) -> f32 {
    Some(1.0 / d).filter(|x| x.is_finite()).unwrap_or(0.0)
}

/// The value with the largest magnitude, the first of equals.
fn furthest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |furthest: f32, &x| if x.abs() > furthest.abs() { x } else { furthest })
}

fn from_nibbles(nibbles: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(nibbles.len());
    for ((&byte, low), high) in nibbles.iter().zip(low).zip(high) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// `level` gives the number of the step plus what makes cutting it off round to nearest.
fn to_nibbles(values: &[f32], nibbles: &mut [u8], level: impl Fn(f32) -> f32) {
    let (low, high) = values.split_at(nibbles.len());
    for ((byte, &low), &high) in nibbles.iter_mut().zip(low).zip(high) {
        let cut = |x: f32| (level(x) as u8).min(15);
        *byte = cut(low) | cut(high) << 4;
    }
}

/// Where element `i` of a block of `Q6_K` lies: byte and shift of its low 4 bits, byte and shift of its high 2 bits.
fn q6_k_place(i: usize) -> ((usize, usize), (usize, usize)) {
    // Halves of 128 elements are quarters of 32: the first two in the low halves of 64 bytes, the others in the high ones.
    let (half, quarter, lane) = (i / 128, i / 32 % 4, i % 32);
    let low = (64 * half + 32 * (quarter % 2) + lane, 4 * (quarter / 2));
    let high = (128 + 32 * half + lane, 2 * quarter);
    (low, high)
}

/// Where the scales of a block of `Q6_K` begin, and where `d` lies.
const Q6_K_SCALES: usize = 192;
const Q6_K_D: usize = 208;

fn dequantise_q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, Q6_K_D);
    for (i, x) in out.iter_mut().enumerate() {
        let ((low, low_shift), (high, high_shift)) = q6_k_place(i);
        let q = (block[low] >> low_shift & 15) | (block[high] >> high_shift & 3) << 4;
        *x = d * f32::from(block[Q6_K_SCALES + i / SUB_BLOCK] as i8) * (f32::from(q) - 32.0);
    }
}

fn quantise_q6_k(values: &[f32], out: &mut [u8]) {
    let mut scales = [0.0; SUPER_BLOCK / SUB_BLOCK];
    for (scale, part) in scales.iter_mut().zip(values.chunks_exact(SUB_BLOCK)) {
        *scale = best_scale(part);
    }
    let d = furthest(&scales) / -128.0;
    let inverse_d = inverse(d);
    out.fill(0);
    put_f16(out, Q6_K_D, d);
    let d = f16_at(out, Q6_K_D);
    for (s, scale) in scales.iter().enumerate() {
        out[Q6_K_SCALES + s] = (scale * inverse_d).round().min(127.0) as i8 as u8;
    }
    for (i, x) in values.iter().enumerate() {
        let inverse = inverse(d * f32::from(out[Q6_K_SCALES + i / SUB_BLOCK] as i8));
        let q = ((x * inverse).round().clamp(-32.0, 31.0) + 32.0) as u8;
        let ((low, low_shift), (high, high_shift)) = q6_k_place(i);
        out[low] |= (q & 15) << low_shift;
        out[high] |= (q >> 4) << high_shift;
    }
}

/// The step between levels -32 to 31 for which the rounded values are nearest to `values`, large ones counting more: of
/// steps around the one that makes the furthest value -32, each then fitted by least squares with weights `x^2`.
fn best_scale(values: &[f32]) -> f32 {
    let furthest = furthest(values);
    let unit = inverse(furthest);
    let (mut best_gain, mut best) = (0.0, 0.0);
    for nudge in -9..=9 {
        let levels = -(32.0 + 0.1 * nudge as f32);
        let (mut xq, mut qq) = (0.0, 0.0);
        for &x in values {
            let x = x * unit;
            let q = (x * levels).round().clamp(-32.0, 31.0);
            xq += x * x * x * q;
            qq += x * x * q * q;
        }
        // What least squares takes off the weighted error: (sum w x q)^2 / sum w q^2.
        if qq > 0.0 && xq * xq > best_gain * qq {
            (best_gain, best) = (xq * xq / qq, xq / qq);
        }
    }
    best * furthest
}
