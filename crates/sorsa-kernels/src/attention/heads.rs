//! Views of the operands of attention: heads, angles, and the keys that a query sees.

use crate::matrix::Matrix;

/// A view `[batch, heads, seq, width]` whose last axis is contiguous; the other axes have any strides.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    data: &'a [f32],
    shape: [usize; 4],
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    /// Row `(batch, head, position)` starts at the sum of the indices times `strides`.
    pub fn new(data: &'a [f32], shape: [usize; 4], strides: [usize; 3]) -> Self {
        Self { data, shape, strides }
    }

    /// `[batch, heads, seq, width]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// One head of one sequence.
    pub(crate) fn head(&self, batch: usize, head: usize) -> Head<'a> {
        let [_, _, seq, width] = self.shape;
        let data = &self.data[batch * self.strides[0] + head * self.strides[1]..];
        Head { data, seq, width, stride: self.strides[2] }
    }
}

/// One head of one sequence: rows of `width` elements that start `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    data: &'a [f32],
    pub seq: usize,
    pub width: usize,
    stride: usize,
}

impl<'a> Head<'a> {
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..index * self.stride + self.width]
    }

    pub fn rows(&self, start: usize, end: usize) -> Matrix<'a> {
        Matrix::with_row_stride(&self.data[start * self.stride..], end - start, self.width, self.stride)
    }
}

/// Cosines and sines of the rotation of each position.
///
/// # Shapes
///
/// - `cos`, `sin`: `[rows, seq, planes]`
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// The size of the batch, or 1 if all sequences have the same positions.
    pub rows: usize,
    /// The number of positions.
    pub seq: usize,
    /// The number of rotated planes, at most half of a head's width; 0 if nothing rotates.
    pub planes: usize,
}

impl<'a> Angles<'a> {
    /// No rotation.
    pub const NONE: Self = Self { cos: &[], sin: &[], rows: 0, seq: 0, planes: 0 };

    /// The index of the first angle of a sequence.
    pub(crate) fn start(&self, batch: usize) -> usize {
        if self.rows > 1 { batch * self.seq * self.planes } else { 0 }
    }
}

/// The first key that each query sees. Its last key is the key of its own position.
#[derive(Debug, Clone, Copy)]
pub struct VisibleKeys<'a> {
    /// `[rows, seq]`.
    pub first: &'a [u32],
    /// The size of the batch, or 1 if all sequences have the same mask.
    pub rows: usize,
    /// The number of queries, and of keys.
    pub seq: usize,
}

impl VisibleKeys<'_> {
    /// The first key that `query` of a sequence sees.
    #[inline]
    pub fn first(&self, batch: usize, query: usize) -> usize {
        let row = if self.rows == 1 { 0 } else { batch };
        self.first[row * self.seq + query] as usize
    }
}
