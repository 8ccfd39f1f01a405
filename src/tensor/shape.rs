//! Shapes of up to four dimensions, outermost first.

use std::fmt;

/// Most dimensions a shape can have.
pub const DIMS_MAX: usize = 4;

/// The extents of a contiguous tensor, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    extents: [usize; DIMS_MAX],
    rank: usize,
}

impl Shape {
    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements.
    pub fn elems(&self) -> usize {
        self.as_slice().iter().product()
    }

    /// The extents.
    pub fn as_slice(&self) -> &[usize] {
        &self.extents[..self.rank]
    }

    /// The extents as an array of `N`: `let [b, t, c] = shape.dims();`
    ///
    /// # Panics
    /// If the shape has another rank.
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        self.as_slice().try_into().unwrap_or_else(|_| panic!("shape {self:?} read as rank {N}"))
    }

    /// The last extent and the product of the others: a tensor seen as rows.
    pub fn rows_cols(&self) -> [usize; 2] {
        let cols = self.as_slice().last().copied().unwrap_or(1);
        [self.as_slice().iter().rev().skip(1).product(), cols]
    }
}

impl From<&[usize]> for Shape {
    /// # Panics
    /// If there are more than [`DIMS_MAX`] extents.
    fn from(dims: &[usize]) -> Shape {
        assert!(dims.len() <= DIMS_MAX, "{} dimensions, at most {DIMS_MAX}", dims.len());
        let mut extents = [1; DIMS_MAX];
        extents[..dims.len()].copy_from_slice(dims);
        Shape { extents, rank: dims.len() }
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Shape {
        Shape::from(&dims[..])
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_slice())
    }
}
