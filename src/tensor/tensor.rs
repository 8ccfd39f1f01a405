//! The tensor: a shape, an element type and shared contiguous bytes.

use super::arena::Arena;
use super::storage::Storage;
use super::{DType, Elem, Shape};
use crate::device::Device;
use crate::for_dtype;
use std::fmt;
use std::sync::Arc;

/// A contiguous tensor. Cloning is cheap and shares the bytes; writing needs the only handle ([`Tensor::as_mut_slice`]).
#[derive(Clone)]
pub struct Tensor {
    shape: Shape,
    dtype: DType,
    storage: Storage,
    offset_bytes: usize,
}

impl Tensor {
    /// A tensor in the step arena; its content is undefined until written.
    pub fn uninit(arena: &Arena, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        let storage = Storage::Arena(Arc::new(arena.alloc(shape.elems() * dtype.size_bytes())));
        Tensor { shape, dtype, storage, offset_bytes: 0 }
    }

    /// A tensor of zeros in the step arena.
    pub fn zeros(arena: &Arena, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let mut tensor = Tensor::uninit(arena, shape, dtype);
        tensor.as_bytes_mut().fill(0);
        tensor
    }

    /// A long-lived tensor of zeros in memory of its own.
    pub fn owned(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        let storage = Storage::owned(shape.elems() * dtype.size_bytes());
        Tensor { shape, dtype, storage, offset_bytes: 0 }
    }

    /// A tensor in the step arena with the elements of `values`.
    pub fn from_slice<E: Elem>(arena: &Arena, shape: impl Into<Shape>, values: &[E]) -> Tensor {
        let mut tensor = Tensor::uninit(arena, shape, E::DTYPE);
        tensor.as_mut_slice().copy_from_slice(values);
        tensor
    }

    /// A tensor in the step arena with `values` rounded to `dtype`.
    pub fn from_f64(arena: &Arena, shape: impl Into<Shape>, dtype: DType, values: &[f64]) -> Tensor {
        let mut tensor = Tensor::uninit(arena, shape, dtype);
        tensor.copy_from_f64(values);
        tensor
    }

    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The extents as an array: `let [b, t, c] = x.dims();`
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        self.shape.dims()
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the bytes lie, and so where ops on it run.
    pub fn device(&self) -> Device {
        self.storage.device()
    }

    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.elems()
    }

    /// Number of bytes.
    pub fn size_bytes(&self) -> usize {
        self.elems() * self.dtype.size_bytes()
    }

    /// The same bytes under another shape.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.elems(), self.elems(), "reshape {:?} to {shape:?}", self.shape);
        Tensor { shape, ..self.clone() }
    }

    /// `shape` elements from `offset_elems` on, sharing the bytes.
    ///
    /// # Panics
    /// If the range does not lie inside the tensor.
    pub fn view(&self, offset_elems: usize, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert!(offset_elems + shape.elems() <= self.elems(), "view {offset_elems}+{shape:?} of {:?}", self.shape);
        let offset_bytes = self.offset_bytes + offset_elems * self.dtype.size_bytes();
        Tensor { shape, dtype: self.dtype, storage: self.storage.clone(), offset_bytes }
    }

    /// The elements.
    ///
    /// # Panics
    /// If `E` is not the storage type.
    pub fn as_slice<E: Elem>(&self) -> &[E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        // SAFETY: reads `elems` elements from the tensor's start: inside its storage (constructors, `view`), aligned (64-byte
        // blocks, offsets in whole elements), initialised memory (a mapping is zero or written) of a plain-old-data type.
        // `&mut` to the same bytes needs the only handle, so none is alive while this `&self` is.
        unsafe { std::slice::from_raw_parts(self.storage.ptr().add(self.offset_bytes).cast(), self.elems()) }
    }

    /// The elements, to write.
    ///
    /// # Panics
    /// If `E` is not the storage type, or another tensor shares the bytes.
    pub fn as_mut_slice<E: Elem>(&mut self) -> &mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        // SAFETY: as in `as_slice`; exclusive, since this is the only handle and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.storage.ptr().add(self.offset_bytes).cast(), self.elems()) }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        for_dtype!(self.dtype, E => bytemuck::cast_slice(self.as_slice::<E>()))
    }

    /// The bytes, to write.
    ///
    /// # Panics
    /// If another tensor shares them.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        for_dtype!(self.dtype, E => bytemuck::cast_slice_mut(self.as_mut_slice::<E>()))
    }

    /// Whether no other tensor shares the bytes.
    pub fn is_unique(&self) -> bool {
        self.storage.is_unique()
    }

    /// This tensor if nothing shares its bytes, else a copy in `arena`.
    pub fn into_unique(self, arena: &Arena) -> Tensor {
        if self.is_unique() {
            return self;
        }
        let mut copy = Tensor::uninit(arena, self.shape, self.dtype);
        copy.as_bytes_mut().copy_from_slice(self.as_bytes());
        copy
    }

    /// Overwrites the elements with `values`, rounded to the storage type.
    ///
    /// # Panics
    /// If the lengths differ or the bytes are shared.
    pub fn copy_from_f64(&mut self, values: &[f64]) {
        assert_eq!(values.len(), self.elems(), "elements");
        for_dtype!(self.dtype, E => {
            for (to, &from) in self.as_mut_slice::<E>().iter_mut().zip(values) {
                *to = round_to::<E>(from);
            }
        })
    }

    /// The elements widened to f64.
    pub fn to_f64(&self) -> Vec<f64> {
        use super::Float as _;
        for_dtype!(self.dtype, E => self.as_slice::<E>().iter().map(|x| x.load().to_f64()).collect())
    }
}

/// `x` rounded to the storage type `E`, through the type it computes in.
pub fn round_to<E: Elem>(x: f64) -> E {
    use super::Float as _;
    E::store(E::Acc::from_f64(x))
}

impl fmt::Debug for Tensor {
    /// Type and shape, not the elements: `f32[2, 3]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// A part of a long-lived flat buffer, to write: the gradient of a parameter.
pub struct TensorMut<'a> {
    shape: Shape,
    dtype: DType,
    bytes: &'a mut [u8],
}

impl Tensor {
    /// `shape` elements from `offset_elems` on, to write.
    ///
    /// # Panics
    /// If the range does not lie inside the tensor or its bytes are shared.
    pub fn view_mut(&mut self, offset_elems: usize, shape: impl Into<Shape>) -> TensorMut<'_> {
        let (shape, dtype) = (shape.into(), self.dtype);
        let range = offset_elems * dtype.size_bytes()..(offset_elems + shape.elems()) * dtype.size_bytes();
        TensorMut { shape, dtype, bytes: &mut self.as_bytes_mut()[range] }
    }

    /// Two disjoint parts, the first before the second, each `(offset_elems, shape)`, to write.
    ///
    /// # Panics
    /// If they overlap, do not lie inside the tensor, or its bytes are shared.
    pub fn view_mut_pair(&mut self, first: (usize, Shape), second: (usize, Shape)) -> [TensorMut<'_>; 2] {
        let (dtype, size) = (self.dtype, self.dtype.size_bytes());
        let cut = second.0 * size;
        let (low, high) = self.as_bytes_mut().split_at_mut(cut);
        let a = &mut low[first.0 * size..][..first.1.elems() * size];
        let b = &mut high[..second.1.elems() * size];
        [TensorMut { shape: first.1, dtype, bytes: a }, TensorMut { shape: second.1, dtype, bytes: b }]
    }

    /// This tensor as `dtype`, in `arena`; shares the bytes when it has that type already.
    pub fn cast(&self, arena: &Arena, dtype: DType) -> Tensor {
        if self.dtype == dtype {
            return self.clone();
        }
        let mut to = Tensor::uninit(arena, self.shape, dtype);
        match (self.dtype, dtype) {
            (DType::Bf16, DType::F32) => {
                crate::device::cpu::convert(to.as_mut_slice::<f32>(), self.as_slice::<half::bf16>());
            }
            (DType::F32, DType::Bf16) => {
                crate::device::cpu::convert(to.as_mut_slice::<half::bf16>(), self.as_slice::<f32>());
            }
            _ => to.copy_from_f64(&self.to_f64()),
        }
        to
    }
}

impl TensorMut<'_> {
    /// The extents.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements, to write.
    ///
    /// # Panics
    /// If `E` is not the storage type.
    pub fn as_mut_slice<E: Elem>(&mut self) -> &mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        bytemuck::cast_slice_mut(self.bytes)
    }
}
