//! Shared-memory swizzles of tensor copies and `wgmma` operands: which 16-byte chunk of a 128-byte line a byte lands in.

/// A swizzle: within lines of 128 bytes, chunks of 16 change places by the line's number. [ISA 5.5.7]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Swizzle {
    #[default]
    None,
    /// Rows of 32 bytes; the pattern repeats every 256 bytes.
    B32,
    /// Rows of 64 bytes; every 512.
    B64,
    /// Rows of 128 bytes; every 1024.
    B128,
}

impl Swizzle {
    /// Bytes of a row of the pattern; None without one.
    pub fn row_bytes(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }

    /// Bytes after which the pattern repeats; a tile whose base is no multiple of them starts in the middle of it.
    pub fn period_bytes(self) -> u32 {
        self.row_bytes().map_or(16, |row| row * 8)
    }

    /// Where the byte at shared address `address` of the unswizzled tile lies. Its own inverse.
    #[inline(always)]
    pub fn apply(self, address: u32) -> u32 {
        address ^ self.exchange(address)
    }

    /// The bits of an address that its line turns over.
    #[inline(always)]
    pub fn exchange(self, address: u32) -> u32 {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        ((address >> 7) & mask) << 4
    }
}
