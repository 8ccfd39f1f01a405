//! Tensor maps: the 128-byte description of a tensor for the tensor copy engine, and the rows of a box of it.
//!
//! The hardware's encoding is not published and the driver's function writes it; here the map is made by the host side of the simulator,
//! in an encoding of its own, and anything else is refused. What a map may say is checked as `cuTensorMapEncodeTiled` checks it.

use super::swizzle::Swizzle;

/// Bytes of an encoded map; it must be aligned to 64.
pub const MAP_BYTES: usize = 128;
const MAGIC: u32 = u32::from_le_bytes(*b"ptxM");

/// Type of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataType {
    U8,
    U16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
    Bf16,
    F32Ftz,
    Tf32,
    Tf32Ftz,
}

/// In the order of the driver's numbers.
const DATA_TYPES: [DataType; 13] = [
    DataType::U8,
    DataType::U16,
    DataType::U32,
    DataType::I32,
    DataType::U64,
    DataType::I64,
    DataType::F16,
    DataType::F32,
    DataType::F64,
    DataType::Bf16,
    DataType::F32Ftz,
    DataType::Tf32,
    DataType::Tf32Ftz,
];

impl DataType {
    pub fn bytes(self) -> u32 {
        match self {
            DataType::U8 => 1,
            DataType::U16 | DataType::F16 | DataType::Bf16 => 2,
            DataType::U64 | DataType::I64 | DataType::F64 => 8,
            _ => 4,
        }
    }

    pub fn is_float(self) -> bool {
        !matches!(self, DataType::U8 | DataType::U16 | DataType::U32 | DataType::I32 | DataType::U64 | DataType::I64)
    }

    /// The little-endian bytes of the NaN that a NaN fill writes.
    fn nan(self) -> &'static [u8] {
        match self {
            DataType::F16 | DataType::Bf16 => &[0xff, 0x7f],
            DataType::F64 => &[0, 0, 0, 0, 0, 0, 0xf8, 0x7f],
            _ => &[0xff, 0xff, 0xff, 0x7f],
        }
    }
}

/// What a load writes for elements outside the tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    #[default]
    Zero,
    /// NaN; only for floating-point types.
    Nan,
}

/// Pixels in place of a box (`.im2col`): a column of them, each with its channels, walked inside a bounding box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Im2col {
    /// Of the bounding box in the spatial dimensions (width first), from the tensor's corner: minus the padding.
    pub lower: Vec<i32>,
    /// The same from the opposite corner.
    pub upper: Vec<i32>,
    /// Channels of a pixel, 1 to 256.
    pub channels: u32,
    /// Pixels of a column, 1 to 1024.
    pub pixels: u32,
}

/// A tensor of 1 to 5 dimensions in global memory and the box that one copy moves. Dimension 0 is the innermost and contiguous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub data_type: DataType,
    /// Global address of the first element, a multiple of 16.
    pub address: u64,
    /// Elements per dimension.
    pub dims: Vec<u64>,
    /// Bytes between neighbours in dimensions 1 and up: one fewer than `dims`.
    pub strides_bytes: Vec<u64>,
    /// Elements of the box per dimension, 1 to 256.
    pub box_dims: Vec<u32>,
    /// Every how many elements the box takes one, per dimension, 1 to 8; ignored for dimension 0.
    pub element_strides: Vec<u32>,
    pub swizzle: Swizzle,
    pub fill: Fill,
    /// Pixels instead of a box, which then is all ones.
    pub im2col: Option<Im2col>,
}

/// A field that `tensormap.replace` changes; those of one dimension with its number. [ISA 9.7.9.28]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MapField {
    Address,
    /// Dimensions less one.
    Rank,
    BoxDim(usize),
    Dim(usize),
    Stride(usize),
    ElementStride(usize),
    Type,
    Interleave,
    Swizzle,
    Fill,
}

/// Types in the order of the immediates of `tensormap.replace`.
const REPLACE_TYPES: [DataType; 13] = [
    DataType::U8,
    DataType::U16,
    DataType::U32,
    DataType::I32,
    DataType::U64,
    DataType::I64,
    DataType::F16,
    DataType::F32,
    DataType::F32Ftz,
    DataType::F64,
    DataType::Bf16,
    DataType::Tf32,
    DataType::Tf32Ftz,
];

/// Changes a field of an encoded map. The map is judged when it is used.
///
/// # Errors
/// One sentence, when the bytes are no map or the field has no such value.
pub fn replace(bytes: &mut [u8; MAP_BYTES], field: MapField, value: u64) -> Result<(), String> {
    check(bytes[..4] == MAGIC.to_le_bytes(), || "these 128 bytes are no tensor map of this simulator".into())?;
    let dimension = |i: usize| check(i < 5, || format!("a tensor map has no dimension {i}"));
    let below = |limit: u64| check(value < limit, || format!("{field:?} cannot be {value}"));
    match field {
        MapField::Address => bytes[8..16].copy_from_slice(&value.to_le_bytes()),
        MapField::Rank => {
            below(5)?;
            bytes[4] = value as u8 + 1;
        }
        MapField::BoxDim(i) => {
            dimension(i)?;
            below(1 << 16)?;
            bytes[88 + 2 * i..90 + 2 * i].copy_from_slice(&(value as u16).to_le_bytes());
        }
        MapField::Dim(i) => {
            dimension(i)?;
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&value.to_le_bytes());
        }
        MapField::Stride(i) => {
            dimension(i + 1)?;
            bytes[56 + 8 * i..64 + 8 * i].copy_from_slice(&value.to_le_bytes());
        }
        MapField::ElementStride(i) => {
            dimension(i)?;
            below(256)?;
            bytes[98 + i] = value as u8;
        }
        MapField::Type => {
            let ty = usize::try_from(value).ok().and_then(|at| REPLACE_TYPES.get(at));
            let place = ty.and_then(|ty| DATA_TYPES.iter().position(|known| known == ty));
            bytes[5] = place.ok_or_else(|| format!("{value} is no element type"))? as u8;
        }
        MapField::Interleave => check(value == 0, || "interleaved layouts are not supported".into())?,
        MapField::Swizzle => {
            below(4)?;
            bytes[6] = value as u8;
        }
        MapField::Fill => {
            below(2)?;
            bytes[7] = value as u8;
        }
    }
    Ok(())
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

impl TensorMap {
    /// Elements of dimension 0 times their size.
    fn row_bytes(&self) -> u32 {
        self.im2col.as_ref().map_or(self.box_dims[0], |im2col| im2col.channels) * self.data_type.bytes()
    }

    /// # Errors
    /// One sentence: what the driver would refuse.
    pub fn validate(&self) -> Result<(), String> {
        let rank = self.dims.len();
        check((1..=5).contains(&rank), || format!("a tensor map has 1 to 5 dimensions, not {rank}"))?;
        check(self.strides_bytes.len() == rank - 1, || {
            format!("{rank} dimensions need {} strides, not {}", rank - 1, self.strides_bytes.len())
        })?;
        check(self.box_dims.len() == rank && self.element_strides.len() == rank, || {
            format!("the box and its element strides must have {rank} dimensions")
        })?;
        check(self.address.is_multiple_of(16), || {
            format!("the tensor's address {:#x} is no multiple of 16", self.address)
        })?;
        for (i, dim) in self.dims.iter().enumerate() {
            check((1..=1 << 32).contains(dim), || format!("dimension {i} is {dim}, outside 1..=2^32"))?;
        }
        for (i, stride) in self.strides_bytes.iter().enumerate() {
            check(stride.is_multiple_of(16) && *stride < 1 << 40, || {
                format!("stride {i} is {stride} bytes; it must be a multiple of 16 below 2^40")
            })?;
        }
        for (i, (extent, stride)) in self.box_dims.iter().zip(&self.element_strides).enumerate() {
            check((1..=256).contains(extent), || format!("box dimension {i} is {extent}, outside 1..=256"))?;
            check((1..=8).contains(stride), || format!("element stride {i} is {stride}, outside 1..=8"))?;
        }
        if let Some(Im2col { lower, upper, channels, pixels }) = &self.im2col {
            check((3..=5).contains(&rank), || format!("im2col needs 3 to 5 dimensions, not {rank}"))?;
            check(lower.len() == rank - 2 && upper.len() == rank - 2, || {
                format!("{} spatial dimensions need as many corners", rank - 2)
            })?;
            let limit = [1 << 15, 1 << 7, 1 << 4][rank - 3];
            for corner in lower.iter().chain(upper) {
                check((-limit..limit).contains(corner), || format!("corner {corner} is outside -{limit}..{limit}"))?;
            }
            check((1..=256).contains(channels), || format!("{channels} channels per pixel, outside 1..=256"))?;
            check((1..=1024).contains(pixels), || format!("{pixels} pixels per column, outside 1..=1024"))?;
        }
        let row = self.row_bytes();
        check(row.is_multiple_of(16), || format!("a row of the box has {row} bytes; it must be a multiple of 16"))?;
        if let Some(span) = self.swizzle.row_bytes() {
            check(row <= span, || format!("a row of the box has {row} bytes, more than the swizzle's {span}"))?;
        }
        check(self.fill == Fill::Zero || self.data_type.is_float(), || {
            format!("NaN fill needs a floating-point type, not {:?}", self.data_type)
        })
    }

    /// The bytes a kernel is given.
    ///
    /// # Errors
    /// As [`TensorMap::validate`].
    pub fn encode(&self) -> Result<[u8; MAP_BYTES], String> {
        self.validate()?;
        let rank = self.dims.len();
        let data_type = DATA_TYPES.iter().position(|t| *t == self.data_type).expect("all types are listed");
        let mut bytes = [0u8; MAP_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = rank as u8;
        bytes[5] = data_type as u8;
        bytes[6] = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 2,
            Swizzle::B128 => 3,
        };
        bytes[7] = u8::from(self.fill == Fill::Nan);
        bytes[8..16].copy_from_slice(&self.address.to_le_bytes());
        for i in 0..rank {
            bytes[16 + 8 * i..24 + 8 * i].copy_from_slice(&self.dims[i].to_le_bytes());
            bytes[88 + 2 * i..90 + 2 * i].copy_from_slice(&(self.box_dims[i] as u16).to_le_bytes());
            bytes[98 + i] = self.element_strides[i] as u8;
        }
        for (i, stride) in self.strides_bytes.iter().enumerate() {
            bytes[56 + 8 * i..64 + 8 * i].copy_from_slice(&stride.to_le_bytes());
        }
        if let Some(im2col) = &self.im2col {
            bytes[103] = 1;
            for (i, (lower, upper)) in im2col.lower.iter().zip(&im2col.upper).enumerate() {
                bytes[104 + 2 * i..106 + 2 * i].copy_from_slice(&(*lower as i16).to_le_bytes());
                bytes[110 + 2 * i..112 + 2 * i].copy_from_slice(&(*upper as i16).to_le_bytes());
            }
            bytes[116..118].copy_from_slice(&(im2col.channels as u16).to_le_bytes());
            bytes[118..120].copy_from_slice(&(im2col.pixels as u16).to_le_bytes());
        }
        Ok(bytes)
    }

    /// # Errors
    /// One sentence, when the bytes are no map that [`TensorMap::encode`] made.
    pub fn decode(bytes: &[u8; MAP_BYTES]) -> Result<TensorMap, String> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let short = |at: usize| u32::from(u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes")));
        let rank = usize::from(bytes[4]);
        let known = bytes[..4] == MAGIC.to_le_bytes() && (1..=5).contains(&rank);
        let data_type = DATA_TYPES.get(usize::from(bytes[5]));
        let (Some(data_type), true, true) = (data_type, known, bytes[6] < 4) else {
            return Err("these 128 bytes are no tensor map of this simulator".into());
        };
        let map = TensorMap {
            data_type: *data_type,
            address: word(8),
            dims: (0..rank).map(|i| word(16 + 8 * i)).collect(),
            strides_bytes: (0..rank - 1).map(|i| word(56 + 8 * i)).collect(),
            box_dims: (0..rank).map(|i| short(88 + 2 * i)).collect(),
            element_strides: (0..rank).map(|i| u32::from(bytes[98 + i])).collect(),
            swizzle: [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128][usize::from(bytes[6])],
            fill: if bytes[7] == 1 { Fill::Nan } else { Fill::Zero },
            im2col: (bytes[103] == 1 && rank >= 3).then(|| {
                let corner = |at: usize| i32::from(short(at) as u16 as i16);
                let corners = |at: usize| (0..rank - 2).map(|i| corner(at + 2 * i)).collect();
                Im2col { lower: corners(104), upper: corners(110), channels: short(116), pixels: short(118) }
            }),
        };
        map.validate().map(|()| map)
    }

    /// Rows of the box in dimensions 1 and up.
    fn rows_per_dim(&self) -> impl Iterator<Item = u32> {
        self.box_dims.iter().zip(&self.element_strides).skip(1).map(|(extent, stride)| extent.div_ceil(*stride))
    }

    /// Bytes that a copy moves into or out of shared memory, and that its mbarrier is told: the whole box, also what lies outside the
    /// tensor.
    pub fn box_bytes(&self) -> u32 {
        if let Some(im2col) = &self.im2col {
            return self.row_bytes() * im2col.pixels;
        }
        self.row_bytes() * self.rows_per_dim().product::<u32>()
    }

    /// The rows of the box at these coordinates (dimension 0 first; they may be negative or beyond the end), in the order in which they
    /// lie in shared memory.
    pub fn rows(&self, coordinates: &[i32]) -> Vec<Row> {
        assert_eq!(coordinates.len(), self.dims.len(), "a coordinate per dimension");
        let element = i64::from(self.data_type.bytes());
        let inner = i64::from(self.box_dims[0]);
        let start = i64::from(coordinates[0]);
        // The part of a row inside the tensor along dimension 0.
        let from = (-start).clamp(0, inner);
        let to = (self.dims[0] as i64 - start).clamp(from, inner);
        let count: u32 = self.rows_per_dim().product();
        let mut rows = Vec::with_capacity(count as usize);
        for index in 0..count {
            let mut rest = index;
            let mut inside = true;
            let mut address = self.address as i64 + (start + from) * element;
            for (dim, extent) in self.rows_per_dim().enumerate() {
                let step = rest % extent;
                rest /= extent;
                let at = i64::from(coordinates[dim + 1]) + i64::from(step * self.element_strides[dim + 1]);
                inside &= (0..self.dims[dim + 1] as i64).contains(&at);
                address += at * self.strides_bytes[dim] as i64;
            }
            let inside = inside && to > from;
            rows.push(Row {
                shared_offset: index * self.row_bytes(),
                bytes: self.row_bytes(),
                global: if inside { address as u64 } else { self.address },
                inside_from: if inside { (from * element) as u32 } else { 0 },
                inside_bytes: if inside { ((to - from) * element) as u32 } else { 0 },
            });
        }
        rows
    }

    /// The rows of a column of pixels: it starts at these coordinates (channel, width, ..., image), and every pixel is moved by `offsets`.
    /// Width goes first; beyond the bounding box it starts again at its lower corner, one step further in the next dimension.
    pub fn pixels(&self, im2col: &Im2col, coordinates: &[i32], offsets: &[u16]) -> Vec<Row> {
        let (element, spatial) = (i64::from(self.data_type.bytes()), self.dims.len() - 2);
        assert!(coordinates.len() == self.dims.len() && offsets.len() == spatial, "a coordinate per dimension");
        let mut position: Vec<i64> = coordinates[1..].iter().map(|at| i64::from(*at)).collect();
        let start = i64::from(coordinates[0]);
        let channels = i64::from(im2col.channels);
        let from = (-start).clamp(0, channels);
        let to = (self.dims[0] as i64 - start).clamp(from, channels);
        let mut rows = Vec::with_capacity(im2col.pixels as usize);
        for index in 0..im2col.pixels {
            let mut inside = to > from;
            let mut address = self.address as i64 + (start + from) * element;
            for (dim, at) in position.iter().enumerate() {
                let at = at + offsets.get(dim).map_or(0, |offset| i64::from(*offset));
                inside &= (0..self.dims[dim + 1] as i64).contains(&at);
                address += at * self.strides_bytes[dim] as i64;
            }
            rows.push(Row {
                shared_offset: index * self.row_bytes(),
                bytes: self.row_bytes(),
                global: if inside { address as u64 } else { self.address },
                inside_from: if inside { (from * element) as u32 } else { 0 },
                inside_bytes: if inside { ((to - from) * element) as u32 } else { 0 },
            });
            position[0] += i64::from(self.element_strides[1]);
            for dim in 0..spatial {
                let last = self.dims[dim + 1] as i64 + i64::from(im2col.upper[dim]) - 1;
                if position[dim] <= last {
                    break;
                }
                position[dim] = i64::from(im2col.lower[dim]);
                let step = if dim + 1 < spatial { self.element_strides[dim + 2] } else { 1 };
                position[dim + 1] += i64::from(step);
            }
        }
        rows
    }

    /// The byte that fills place `at` of a row outside the tensor.
    #[inline]
    pub fn fill_byte(&self, at: u32) -> u8 {
        match self.fill {
            Fill::Zero => 0,
            Fill::Nan => self.data_type.nan()[(at % self.data_type.bytes()) as usize],
        }
    }
}

/// A row of a box: contiguous in global memory, and in shared memory before the swizzle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Of the row's first byte, from the start of the box.
    pub shared_offset: u32,
    pub bytes: u32,
    /// Global address of the first byte inside the tensor.
    pub global: u64,
    /// Bytes at the row's start that lie outside the tensor.
    pub inside_from: u32,
    /// Bytes inside the tensor; what follows them lies outside again.
    pub inside_bytes: u32,
}
