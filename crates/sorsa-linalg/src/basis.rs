//! An orthonormal basis that grows by blocks: block Gram-Schmidt, repeated until it is orthonormal to working
//! precision, with Householder reflections inside a block.
//!
//! One pass leaves an error of the machine's precision times the factor by which it shrinks a column, and that error
//! grows from block to block. The second removes it ("twice is enough": Giraud, Langou, Rozloznik and van den Eshof
//! 2005); what it takes away is so little that the block stays orthonormal as it is.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply_reflections,
};
use faer::linalg::matmul::matmul;
use faer::linalg::qr::no_pivoting::factor;
use faer::{Accum, Conj, Mat, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::Scalar;
use crate::operator::{parallelism, transposed_product};

/// Orthonormal columns `[rows, k]`.
pub(crate) struct Basis<T> {
    columns: Mat<T>,
}

impl<T: Scalar> Basis<T> {
    /// An empty basis of a space of `rows` dimensions, with room for `capacity` columns.
    pub fn new(rows: usize, capacity: usize) -> Self {
        let mut columns = Mat::with_capacity(rows, capacity);
        columns.resize_with(rows, 0, |_, _| T::from_f64(0.0));
        Basis { columns }
    }

    pub fn columns(&self) -> MatRef<'_, T> {
        self.columns.as_ref()
    }

    pub fn len(&self) -> usize {
        self.columns.ncols()
    }

    /// Adds columns that [`Basis::orthonormalize`] returned.
    pub fn push(&mut self, block: MatRef<'_, T>) {
        let (rows, k) = self.columns.shape();
        self.columns.resize_with(rows, k + block.ncols(), |i, j| block[(i, j - k)]);
    }

    /// Orthonormal columns, orthogonal to the basis, that span what `block` adds to it. Where its columns depend on
    /// each other or on the basis, random directions take the place of the missing ones. `block` must not be wider
    /// than the space left. Also returns the part of `block` inside the basis, `[k, width]`.
    pub fn orthonormalize(&self, mut block: Mat<T>, rng: &mut ChaCha8Rng) -> (Mat<T>, Mat<T>) {
        let mut inside = None;
        let mut orthonormal = false;
        loop {
            let part = transposed_product(self.columns.as_ref(), block.as_ref());
            matmul(&mut block, Accum::Add, &self.columns, &part, T::from_f64(-1.0), parallelism());
            let taken = part.norm_l2().into();
            inside.get_or_insert(part);
            // Taking it away changed products between columns by its square; NaN is beyond mending.
            if orthonormal && taken * taken <= T::EPSILON || taken.is_nan() {
                return (block, inside.expect("set in the first pass"));
            }
            let before = norms(block.as_ref());
            let (q, diagonal) = householder(block);
            block = q;
            orthonormal = true;
            for (j, (kept, norm)) in diagonal.into_iter().zip(before).enumerate() {
                if kept <= 16.0 * T::EPSILON * norm {
                    gaussian_column(&mut block, j, rng);
                    orthonormal = false;
                }
            }
        }
    }
}

/// Standard normal entries `[rows, width]`.
pub(crate) fn gaussian<T: Scalar>(rows: usize, width: usize, rng: &mut ChaCha8Rng) -> Mat<T> {
    let mut out = Mat::zeros(rows, width);
    for j in 0..width {
        gaussian_column(&mut out, j, rng);
    }
    out
}

fn gaussian_column<T: Scalar>(block: &mut Mat<T>, j: usize, rng: &mut ChaCha8Rng) {
    for x in block.col_as_slice_mut(j) {
        let normal: f64 = StandardNormal.sample(rng);
        *x = T::from_f64(normal);
    }
}

/// Lengths of the columns, summed in f64.
pub(crate) fn norms<T: Scalar>(a: MatRef<'_, T>) -> Vec<f64> {
    let square = |x: &T| (*x).into().powi(2);
    a.col_iter().map(|column| column.iter().map(square).sum::<f64>().sqrt()).collect()
}

/// The orthonormal factor of a thin QR decomposition, and the lengths on the diagonal of the triangular one.
fn householder<T: Scalar>(mut a: Mat<T>) -> (Mat<T>, Vec<f64>) {
    let (rows, width) = a.shape();
    if width == 0 {
        return (a, Vec::new());
    }
    let size = factor::recommended_block_size::<T>(rows, width);
    // Panels are too narrow for threads.
    let (par, params) = (Par::Seq, Default::default());
    let scratch =
        factor::qr_in_place_scratch::<T>(rows, width, size, par, params).or(apply_scratch::<T>(rows, size, width));
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let mut coefficients = Mat::zeros(size, width);
    factor::qr_in_place(a.as_mut(), coefficients.as_mut(), par, stack, params);
    let mut q = Mat::identity(rows, width);
    apply_reflections(a.as_ref(), coefficients.as_ref(), Conj::No, q.as_mut(), par, stack);
    let diagonal = (0..width).map(|j| a[(j, j)].into().abs()).collect();
    (q, diagonal)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::operator::product;
    use crate::spectral::orthonormality_defect;

    #[test]
    fn dependent_and_zero_columns_are_replaced_by_fresh_directions() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut basis = Basis::<f32>::new(40, 40);
        let (first, _) = basis.orthonormalize(gaussian(40, 8, &mut rng), &mut rng);
        basis.push(first.as_ref());
        // All inside the basis, one zero, two equal.
        let mut block = first.clone();
        block.col_as_slice_mut(2).fill(0.0);
        block.col_as_slice_mut(5).copy_from_slice(first.col_as_slice(4));
        let (second, inside) = basis.orthonormalize(block.clone(), &mut rng);
        basis.push(second.as_ref());
        assert!(orthonormality_defect(basis.columns()) < 1e-5);
        let rebuilt = product(first.as_ref(), inside.as_ref());
        assert!((rebuilt - block).norm_max() < 1e-6);
    }

    #[test]
    fn the_whole_space_can_be_filled() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut basis = Basis::<f64>::new(10, 10);
        for width in [4, 4, 2] {
            let (block, _) = basis.orthonormalize(gaussian(10, width, &mut rng), &mut rng);
            basis.push(block.as_ref());
        }
        assert!(orthonormality_defect(basis.columns()) < 1e-13);
    }
}
