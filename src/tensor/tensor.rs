//! The tensor: a shape, an element type and shared contiguous bytes on some device.

use super::arena::Arena;
use super::storage::{Place, Storage};
use super::{DType, Elem, Scalar, Shape};
use crate::device::launch::{Grid, Ptr, PtrMut};
use crate::device::{Device, cpu, launch};
use crate::for_dtype;
use std::fmt;
use std::marker::PhantomData;
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
        tensor.clear();
        tensor
    }

    /// A long-lived tensor of zeros in memory of its own, on the host.
    pub fn owned(shape: impl Into<Shape>, dtype: DType) -> Tensor {
        Tensor::owned_on(Device::Cpu, shape, dtype)
    }

    /// A long-lived tensor of zeros in memory of its own. Too little memory on a GPU is told at its next synchronisation.
    pub fn owned_on(device: Device, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        let storage = Storage::owned(device, shape.elems() * dtype.size_bytes(), false);
        Tensor { shape, dtype, storage, offset_bytes: 0 }
    }

    /// As [`Tensor::owned_on`], of which little may ever be written: on the processor only that takes memory.
    pub fn sparse_on(device: Device, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        let storage = Storage::owned(device, shape.elems() * dtype.size_bytes(), true);
        Tensor { shape, dtype, storage, offset_bytes: 0 }
    }

    /// A tensor in the step arena with the elements of `values`.
    pub fn from_slice<E: Scalar>(arena: &Arena, shape: impl Into<Shape>, values: &[E]) -> Tensor {
        let mut tensor = Tensor::uninit(arena, shape, E::DTYPE);
        tensor.copy_from_slice(values);
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
        self.storage.place().device()
    }

    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.shape.elems()
    }

    /// Number of bytes.
    pub fn size_bytes(&self) -> usize {
        self.elems() * self.dtype.size_bytes()
    }

    fn place(&self) -> Place {
        self.storage.place().offset(self.offset_bytes)
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

    /// The elements of a tensor on the host.
    ///
    /// # Panics
    /// If `E` is not the storage type, or the tensor lies on a GPU.
    pub fn as_slice<E: Scalar>(&self) -> &[E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        // SAFETY: reads `elems` elements from the tensor's start: inside its storage (constructors, `view`), aligned (64-byte
        // blocks, offsets in whole elements), initialised memory (a mapping is zero or written) of a plain-old-data type.
        // `&mut` to the same bytes needs the only handle, so none is alive while this `&self` is.
        unsafe { std::slice::from_raw_parts(self.place().host().cast(), self.elems()) }
    }

    /// The elements of a tensor on the host, to write.
    ///
    /// # Panics
    /// If `E` is not the storage type, another tensor shares the bytes, or the tensor lies on a GPU.
    pub fn as_mut_slice<E: Scalar>(&mut self) -> &mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        // SAFETY: as in `as_slice`; exclusive, since this is the only handle and it is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.place().host().cast(), self.elems()) }
    }

    /// The elements of a tensor on a GPU, for a kernel to read.
    ///
    /// # Panics
    /// If `E` is not the storage type, or the tensor lies on the host.
    pub fn ptr<E: Scalar>(&self) -> Ptr<'_, E> {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        Ptr::new(self.place().gpu())
    }

    /// The elements of a tensor on a GPU, for a kernel to write.
    ///
    /// # Panics
    /// If `E` is not the storage type, another tensor shares the bytes, or the tensor lies on the host.
    pub fn ptr_mut<E: Scalar>(&mut self) -> PtrMut<'_, E> {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        PtrMut::new(self.place().gpu())
    }

    /// The place without a hold on it, for a kernel that reads what it overwrites.
    pub fn alias(&self) -> Alias {
        Alias { place: self.place(), dtype: self.dtype }
    }

    /// The bytes of a tensor on the host.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: as in `as_slice`; any initialised memory may be read as bytes.
        unsafe { std::slice::from_raw_parts(self.place().host(), self.size_bytes()) }
    }

    /// The bytes of a tensor on the host, to write.
    ///
    /// # Panics
    /// If another tensor shares them, or the tensor lies on a GPU.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        // SAFETY: as in `as_mut_slice`; every type of element takes any bytes.
        unsafe { std::slice::from_raw_parts_mut(self.place().host(), self.size_bytes()) }
    }

    /// Takes what a lane of its GPU brought ([`Gpu::prefetch`](crate::device::gpu::Gpu::prefetch)): as many bytes as it has.
    ///
    /// # Panics
    /// If the bytes are shared, or lie on the host.
    pub fn deliver(&mut self, lane: usize) {
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        match self.place() {
            Place::Gpu(gpu, address) => gpu.deliver(lane, address),
            Place::Host(_) => panic!("nothing brings bytes to the host"),
        }
    }

    /// A copy of the bytes, from wherever they lie.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self.place() {
            Place::Host(_) => self.as_bytes().to_vec(),
            Place::Gpu(gpu, address) => {
                let mut bytes = vec![0; self.size_bytes()];
                gpu.copy_out(&mut bytes, address);
                bytes
            }
        }
    }

    /// Overwrites the bytes, wherever they lie.
    ///
    /// # Panics
    /// If the lengths differ or the bytes are shared.
    pub fn copy_from_bytes(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.size_bytes(), "bytes");
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        match self.place() {
            Place::Host(_) => self.as_bytes_mut().copy_from_slice(bytes),
            Place::Gpu(gpu, address) => gpu.copy_in(address, bytes),
        }
    }

    /// Overwrites the elements, wherever they lie.
    ///
    /// # Panics
    /// If `E` is not the storage type, the lengths differ or the bytes are shared.
    pub fn copy_from_slice<E: Scalar>(&mut self, values: &[E]) {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        self.copy_from_bytes(bytemuck::cast_slice(values));
    }

    /// Overwrites the elements with those of `from`, which lies on the same device.
    ///
    /// # Panics
    /// If types or numbers of elements differ, or the bytes are shared.
    pub fn copy_from(&mut self, from: &Tensor) {
        assert_eq!((self.dtype, self.elems()), (from.dtype, from.elems()), "a copy into a tensor");
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        match (self.place(), from.place()) {
            (Place::Gpu(gpu, to), Place::Gpu(_, from_address)) => gpu.copy_within(to, from_address, self.size_bytes()),
            _ => self.copy_from_bytes(&from.to_bytes()),
        }
    }

    /// Copies `elems` elements from element `from` on to element `to` on, two parts that do not overlap.
    ///
    /// # Panics
    /// If they overlap, one does not lie inside, or the bytes are shared.
    pub fn copy_part(&mut self, from: usize, to: usize, elems: usize) {
        assert!(
            from.abs_diff(to) >= elems && from.max(to) + elems <= self.elems(),
            "{elems} elements from {from} to {to}"
        );
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        let [from, to, bytes] = [from, to, elems].map(|elems| elems * self.dtype.size_bytes());
        match self.place() {
            Place::Host(_) => self.as_bytes_mut().copy_within(from..from + bytes, to),
            Place::Gpu(gpu, address) => gpu.copy_within(address.offset(to), address.offset(from), bytes),
        }
    }

    /// This tensor on `device`, in memory of its own; itself where it lies there already.
    pub fn to(&self, device: Device) -> Tensor {
        if self.device() == device {
            return self.clone();
        }
        let mut copy = Tensor::owned_on(device, self.shape, self.dtype);
        copy.copy_from_bytes(&self.to_bytes());
        copy
    }

    /// Sets all elements to zero.
    ///
    /// # Panics
    /// If the bytes are shared.
    pub fn clear(&mut self) {
        use rayon::prelude::*;
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        match self.place() {
            Place::Host(_) => self.as_bytes_mut().par_chunks_mut(1 << 20).for_each(|chunk| chunk.fill(0)),
            Place::Gpu(gpu, address) => gpu.set(address, 0, self.size_bytes()),
        }
    }

    /// Whether no other tensor shares the bytes.
    pub fn is_unique(&self) -> bool {
        self.storage.is_unique()
    }

    /// This tensor if nothing shares its bytes, else a copy in `arena`.
    pub fn into_unique(self, arena: &Arena) -> Tensor {
        if self.is_unique() { self } else { self.copy(arena) }
    }

    /// A copy in `arena`, which lies on the same device.
    pub fn copy(&self, arena: &Arena) -> Tensor {
        let mut copy = Tensor::uninit(arena, self.shape, self.dtype);
        copy.copy_from(self);
        copy
    }

    /// This tensor, to be overwritten, if nothing shares its bytes; else fresh memory of the same shape and type.
    pub fn into_output(self, arena: &Arena) -> Tensor {
        if self.is_unique() { self } else { Tensor::uninit(arena, self.shape, self.dtype) }
    }

    /// Overwrites the elements with `values`, rounded to the storage type.
    ///
    /// # Panics
    /// If the lengths differ or the bytes are shared.
    pub fn copy_from_f64(&mut self, values: &[f64]) {
        assert_eq!(values.len(), self.elems(), "elements");
        for_dtype!(self.dtype, E => match self.place() {
            Place::Host(_) => {
                for (to, &from) in self.as_mut_slice::<E>().iter_mut().zip(values) {
                    *to = round_to::<E>(from);
                }
            }
            Place::Gpu(..) => self.copy_from_slice(&values.iter().map(|&v| round_to::<E>(v)).collect::<Vec<E>>()),
        })
    }

    /// The elements widened to f64, from wherever they lie.
    pub fn to_f64(&self) -> Vec<f64> {
        use super::Float as _;
        let host = self.to(Device::Cpu);
        match self.dtype {
            DType::U32 => host.as_slice::<u32>().iter().map(|&x| f64::from(x)).collect(),
            dtype => for_dtype!(dtype, E => host.as_slice::<E>().iter().map(|x| x.load().to_f64()).collect()),
        }
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

/// Where a tensor's elements lie on a GPU, without a hold on them.
#[derive(Clone, Copy)]
pub struct Alias {
    place: Place,
    dtype: DType,
}

impl Alias {
    /// The storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The elements, for a kernel to read.
    ///
    /// # Panics
    /// If `E` is not the storage type, or they lie on the host.
    pub fn ptr<E: Scalar>(&self) -> Ptr<'_, E> {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        Ptr::new(self.place.gpu())
    }

    /// Whether they start at a multiple of `bytes` of device memory.
    pub fn is_aligned(&self, bytes: u64) -> bool {
        self.place.gpu().0.is_multiple_of(bytes)
    }
}

/// A part of a long-lived flat buffer, to write: the gradient of a parameter.
pub struct TensorMut<'a> {
    shape: Shape,
    dtype: DType,
    place: Place,
    buffer: PhantomData<&'a mut u8>,
}

impl Tensor {
    /// All of it, to write.
    ///
    /// # Panics
    /// If its bytes are shared.
    pub fn whole_mut(&mut self) -> TensorMut<'_> {
        self.view_mut(0, self.shape)
    }

    /// `shape` elements from `offset_elems` on, to write.
    ///
    /// # Panics
    /// If the range does not lie inside the tensor or its bytes are shared.
    pub fn view_mut(&mut self, offset_elems: usize, shape: impl Into<Shape>) -> TensorMut<'_> {
        let (shape, dtype) = (shape.into(), self.dtype);
        assert!(self.is_unique(), "writing to a tensor whose bytes are shared");
        assert!(offset_elems + shape.elems() <= self.elems(), "view {offset_elems}+{shape:?} of {:?}", self.shape);
        TensorMut { shape, dtype, place: self.place().offset(offset_elems * dtype.size_bytes()), buffer: PhantomData }
    }

    /// Disjoint parts, each `(offset_elems, shape)`, to write.
    ///
    /// # Panics
    /// If two overlap, one does not lie inside the tensor, or its bytes are shared.
    pub fn view_mut_disjoint<const N: usize>(&mut self, parts: [(usize, Shape); N]) -> [TensorMut<'_>; N] {
        let mut ranges = parts.map(|(start, shape)| start..start + shape.elems());
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "parts of a tensor overlap");
        parts.map(|(start, shape)| {
            let TensorMut { shape, dtype, place, .. } = self.view_mut(start, shape);
            TensorMut { shape, dtype, place, buffer: PhantomData }
        })
    }

    /// This tensor as `dtype`, in `arena`; shares the bytes when it has that type already.
    pub fn cast(&self, arena: &Arena, dtype: DType) -> Tensor {
        if self.dtype == dtype {
            return self.clone();
        }
        let mut to = Tensor::uninit(arena, self.shape, dtype);
        self.cast_into(&mut to);
        to
    }

    /// Overwrites `to`, of the same shape, with the elements of this one in its type.
    pub fn cast_into(&self, to: &mut Tensor) {
        assert_eq!(self.shape, to.shape, "shapes of a cast");
        match (self.device(), self.dtype, to.dtype) {
            (Device::Cpu, DType::Bf16, DType::F32) => {
                cpu::convert(to.as_mut_slice::<f32>(), self.as_slice::<half::bf16>());
            }
            (Device::Cpu, DType::F32, DType::Bf16) => {
                cpu::convert(to.as_mut_slice::<half::bf16>(), self.as_slice::<f32>());
            }
            (Device::Gpu(gpu), DType::Bf16, DType::F32) => {
                let n = self.elems();
                launch::cast_fwd_vector_bf16_to_f32(gpu, Grid::elementwise(n, 4), to.ptr_mut(), self.ptr(), n);
            }
            (Device::Gpu(gpu), DType::F32, DType::Bf16) => {
                let n = self.elems();
                launch::cast_fwd_vector_f32_to_bf16(gpu, Grid::elementwise(n, 4), to.ptr_mut(), self.ptr(), n);
            }
            _ => to.copy_from_f64(&self.to_f64()),
        }
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

    /// The elements of a part on the host, to write.
    ///
    /// # Panics
    /// If `E` is not the storage type, or the part lies on a GPU.
    pub fn as_mut_slice<E: Scalar>(&mut self) -> &mut [E] {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        // SAFETY: `elems` elements inside a tensor (`view_mut`), whose only handle is borrowed mutably as long as this lives.
        // Parts made at once do not overlap (`view_mut_disjoint`). Aligned and initialised as in `Tensor::as_slice`.
        unsafe { std::slice::from_raw_parts_mut(self.place.host().cast(), self.shape.elems()) }
    }

    /// Overwrites the elements with `values`, rounded to the storage type, wherever they lie.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn copy_from_f64(&mut self, values: &[f64]) {
        assert_eq!(values.len(), self.shape.elems(), "elements");
        for_dtype!(self.dtype, E => match self.place {
            Place::Host(_) => {
                self.as_mut_slice::<E>().iter_mut().zip(values).for_each(|(to, &from)| *to = round_to::<E>(from));
            }
            Place::Gpu(gpu, address) => {
                let values: Vec<E> = values.iter().map(|&v| round_to::<E>(v)).collect();
                gpu.copy_in(address, bytemuck::cast_slice(&values));
            }
        })
    }

    /// The place without a hold on it, for a kernel that reads what it overwrites.
    pub fn alias(&self) -> Alias {
        Alias { place: self.place, dtype: self.dtype }
    }

    /// Where the part lies.
    pub fn device(&self) -> Device {
        self.place.device()
    }

    /// The elements of a part on a GPU, for a kernel to write.
    ///
    /// # Panics
    /// If `E` is not the storage type, or the part lies on the host.
    pub fn ptr_mut<E: Scalar>(&mut self) -> PtrMut<'_, E> {
        assert_eq!(E::DTYPE, self.dtype, "element type");
        PtrMut::new(self.place.gpu())
    }
}
