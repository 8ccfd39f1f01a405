//! Matrix descriptors of `wgmma`: where in shared memory the elements of an operand lie. [ISA 9.7.15.5.1]

use super::swizzle::Swizzle;

/// Which index of an operand runs along contiguous memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// `k` (the transpose immediate is 0).
    K,
    /// `m` of A, `n` of B (the immediate is 1; only for 16-bit elements).
    Mn,
}

/// A decoded matrix descriptor; addresses and strides in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Shared address of the first element, a multiple of 16.
    pub start: u32,
    /// Leading-dimension byte offset.
    pub leading: u32,
    /// Stride-dimension byte offset.
    pub stride: u32,
    pub swizzle: Swizzle,
    /// Line of 128 bytes, modulo 8, in which the swizzle pattern starts: 0 where it starts on its period.
    pub base_offset: u32,
}

/// Bytes of one row of a core matrix, read at once.
pub const CHUNK_BYTES: u32 = 16;

impl Descriptor {
    /// From its bits.
    pub fn decode(bits: u64) -> Descriptor {
        let field = |at: u32, width: u32| (bits >> at & ((1 << width) - 1)) as u32;
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][field(62, 2) as usize];
        Descriptor {
            start: field(0, 14) << 4,
            leading: field(16, 14) << 4,
            stride: field(32, 14) << 4,
            swizzle,
            base_offset: field(49, 3),
        }
    }

    /// The bits of this descriptor.
    pub fn encode(self) -> u64 {
        let swizzle = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        let field = |bytes: u32| u64::from(bytes >> 4 & 0x3fff);
        let base_offset = u64::from(self.base_offset & 7) << 49;
        field(self.start) | field(self.leading) << 16 | field(self.stride) << 32 | base_offset | swizzle << 62
    }

    /// Where a byte of the unswizzled operand lies: chunks change places by the number of their line, counted from where the
    /// pattern starts.
    #[inline(always)]
    fn swizzled(&self, address: u32) -> u32 {
        let shift = self.base_offset << 7;
        address ^ self.swizzle.exchange(address.wrapping_sub(shift))
    }

    /// Shared address of a chunk of 16 bytes. K-major: the elements of row `mn` from `k_bytes` on (`k` times the element size, a multiple
    /// of 16). It holds 16 bytes along `k`.
    #[inline]
    pub fn k_major_chunk(&self, mn: u32, k_bytes: u32) -> u32 {
        let offset = match self.swizzle.row_bytes() {
            None => mn % 8 * 16 + mn / 8 * self.stride + k_bytes / 16 * self.leading,
            Some(row) => mn % 8 * row + mn / 8 * self.stride + k_bytes,
        };
        self.swizzled(self.start + offset)
    }

    /// Shared address of a chunk of 16 bytes. MN-major, 16-bit elements: the eight of column `k` from `mn` (a multiple of 8) on.
    #[inline]
    pub fn mn_major_chunk(&self, mn: u32, k: u32) -> u32 {
        let offset = match self.swizzle.row_bytes() {
            None => mn / 8 * self.stride + k % 8 * 16 + k / 8 * self.leading,
            Some(row) => {
                let elements = row / 2;
                mn % elements * 2 + mn / elements * self.leading + k % 8 * row + k / 8 * self.stride
            }
        };
        self.swizzled(self.start + offset)
    }

    /// Shared addresses of all chunks of an operand of `mn` x `k` elements, with the place (`mn`, `k`) of the first element of each. The
    /// same chunks in the same order for every caller. `element_bytes` is 2 or 4 (1 for bytes).
    pub fn chunks(&self, major: Major, mn: u32, k: u32, element_bytes: u32) -> impl Iterator<Item = Chunk> + use<> {
        let this = *self;
        let per_chunk = CHUNK_BYTES / element_bytes;
        let (rows, columns) = match major {
            Major::K => (mn, k / per_chunk),
            Major::Mn => (k, mn / per_chunk),
        };
        (0..rows).flat_map(move |row| {
            (0..columns).map(move |column| match major {
                Major::K => Chunk {
                    address: this.k_major_chunk(row, column * CHUNK_BYTES),
                    mn: row as usize,
                    k: (column * per_chunk) as usize,
                },
                Major::Mn => Chunk {
                    address: this.mn_major_chunk(column * per_chunk, row),
                    mn: (column * per_chunk) as usize,
                    k: row as usize,
                },
            })
        })
    }
}

/// 16 bytes of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Shared address, a multiple of 16.
    pub address: u32,
    pub mn: usize,
    pub k: usize,
}
