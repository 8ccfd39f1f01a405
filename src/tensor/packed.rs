//! Parameters that stay as a file stores them, beside the flat buffer: matrices in blocks, for inference on the processor.

use super::{Layout, ParamId, Span, Tensor};
use crate::device::gpu::Gpu;
use crate::device::packed::{PackedMatrix, PackedWeight, gpu};
use crate::user_bail;

/// A weight `[O, I]` as products take it.
#[derive(Clone, Debug)]
pub enum Weight<'a> {
    /// In the type that ops compute with.
    Dense(Tensor),
    /// The same, to be multiplied so that no row of the product depends on how many there are.
    ByRows(Tensor),
    /// As a file stores it; no row of the product depends on how many there are.
    Packed(PackedWeight<'a>),
}

/// Which parameters are packed, and where the others lie in a flat buffer without them.
#[derive(Debug)]
pub(super) struct Packed {
    places: Vec<Place>,
    matrices: Vec<PackedMatrix>,
    dense_elems: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// From this element of the flat buffer on.
    Flat(usize),
    /// This matrix.
    Packed(usize),
}

impl Packed {
    /// # Errors
    /// A user error where a matrix has another shape than its parameter.
    ///
    /// # Panics
    /// If a parameter comes twice.
    pub fn new(layout: &Layout, mut packed: Vec<(ParamId, PackedMatrix)>) -> anyhow::Result<Packed> {
        packed.sort_by_key(|(id, _)| *id);
        assert!(packed.windows(2).all(|pair| pair[0].0 != pair[1].0), "a parameter is packed twice");
        for (id, matrix) in &packed {
            let (entry, [rows, cols]) = (layout.entry(*id), matrix.dims());
            if entry.shape.as_slice() != [rows, cols] {
                user_bail!(
                    "{} is {rows} x {cols}, the model wants {:?}; the file is of another model",
                    entry.name,
                    entry.shape
                );
            }
        }
        let (mut places, mut dense_elems, mut next) =
            (Vec::new(), 0, packed.iter().map(|(id, _)| *id).enumerate().peekable());
        for (i, entry) in layout.entries().iter().enumerate() {
            places.push(match next.next_if(|(_, id)| id.0 as usize == i) {
                Some((matrix, _)) => Place::Packed(matrix),
                None => {
                    dense_elems += entry.shape.elems();
                    Place::Flat(dense_elems - entry.shape.elems())
                }
            });
        }
        Ok(Packed { places, matrices: packed.into_iter().map(|(_, matrix)| matrix).collect(), dense_elems })
    }

    /// Whether a GPU takes all of them.
    pub fn go_to_gpus(&self) -> bool {
        self.matrices.iter().all(gpu::takes)
    }

    /// The same on a GPU.
    pub fn to_gpu(&self, device: &'static Gpu) -> Packed {
        let matrices = self.matrices.iter().map(|matrix| gpu::to_gpu(matrix, device)).collect();
        Packed { places: self.places.clone(), matrices, ..*self }
    }

    /// Elements of the flat buffer.
    pub fn dense_elems(&self) -> usize {
        self.dense_elems
    }

    /// The matrices of a span; none where it is not packed.
    ///
    /// # Panics
    /// If some of it is packed and some not.
    pub fn stack(&self, layout: &Layout, span: Span) -> Option<&[PackedMatrix]> {
        let places = &self.places[span.first.0 as usize..][..span.count as usize];
        let packed = places.iter().filter(|place| matches!(place, Place::Packed(_))).count();
        let name = &layout.entry(span.first).name;
        assert!(packed == 0 || packed == places.len(), "{name} and what is used with it are packed in part");
        match places[0] {
            Place::Packed(first) => Some(&self.matrices[first..first + packed]),
            Place::Flat(_) => None,
        }
    }

    /// Where a span begins in the flat buffer.
    ///
    /// # Panics
    /// If it is packed.
    pub fn offset_elems(&self, layout: &Layout, span: Span) -> usize {
        assert!(
            self.stack(layout, span).is_none(),
            "{} is packed: it has no elements to view",
            layout.entry(span.first).name
        );
        match self.places[span.first.0 as usize] {
            Place::Flat(offset) => offset,
            Place::Packed(_) => unreachable!("its stack is none"),
        }
    }
}
