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
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Accum, Conj, Mat, MatRef, Par};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::Scalar;
use crate::operator::{parallelism, product, transposed_product};

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
            let before = norms(block.as_ref());
            let part = transposed_product(self.columns.as_ref(), block.as_ref());
            matmul(&mut block, Accum::Add, &self.columns, &part, T::from_f64(-1.0), parallelism());
            let taken = part.norm_l2().into();
            inside.get_or_insert(part);
            // Taking it away changed products between columns by its square; NaN is beyond mending.
            if orthonormal && taken * taken <= T::EPSILON || taken.is_nan() {
                return (block, inside.expect("set in the first pass"));
            }
            // Below this a column is rounding: it lies in the basis.
            let floors: Vec<f64> = before.into_iter().map(|norm| 16.0 * T::EPSILON * norm).collect();
            let outside = norms(block.as_ref()).iter().zip(&floors).all(|(norm, floor)| norm > floor);
            (block, orthonormal) = match householder(&block) {
                (q, true) if outside => (q, true),
                _ => gram_schmidt(&block, &floors, rng),
            };
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

/// The orthonormal factor of a thin QR decomposition, and whether it spans the columns: faer leaves out those that depend
/// on others, which in f32 they do for it from a part in a hundred on, and fills up with other directions.
fn householder<T: Scalar>(block: &Mat<T>) -> (Mat<T>, bool) {
    let (rows, width) = block.shape();
    if width == 0 {
        return (block.clone(), true);
    }
    let size = factor::recommended_block_size::<T>(rows, width);
    // Panels are too narrow for threads.
    let (par, params) = (Par::Seq, Default::default());
    let scratch =
        factor::qr_in_place_scratch::<T>(rows, width, size, par, params).or(apply_scratch::<T>(rows, size, width));
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let (mut a, mut coefficients) = (block.clone(), Mat::zeros(size, width));
    let info = factor::qr_in_place(a.as_mut(), coefficients.as_mut(), par, stack, params);
    let mut q = Mat::identity(rows, width);
    apply_reflections(a.as_ref(), coefficients.as_ref(), Conj::No, q.as_mut(), par, stack);
    (q, info.rank == width)
}

/// Orthonormal columns that span those of `block` to working precision, column by column. Of a column that the others
/// leave no more of than its floor, nothing is kept: as many random directions follow at the end, where they take
/// nothing from the others. Also returns whether there was no need of them.
fn gram_schmidt<T: Scalar>(block: &Mat<T>, floors: &[f64], rng: &mut ChaCha8Rng) -> (Mat<T>, bool) {
    let (rows, width) = block.shape();
    let mut q = Mat::zeros(rows, width);
    let (mut kept, mut complete) = (0, true);
    let mut columns = 0..width;
    while kept < width {
        let floor = match columns.next() {
            Some(j) => {
                q.col_as_slice_mut(kept).copy_from_slice(block.col_as_slice(j));
                floors[j]
            }
            None => {
                gaussian_column(&mut q, kept, rng);
                complete = false;
                0.0
            }
        };
        let (before, mut rest) = q.split_at_col_mut(kept);
        let mut column = rest.rb_mut().subcols_mut(0, 1);
        // "Twice is enough", as above.
        for _ in 0..2 {
            let part = product(before.rb().transpose(), column.rb());
            matmul(column.rb_mut(), Accum::Add, before.rb(), &part, T::from_f64(-1.0), Par::Seq);
        }
        let norm = norms(column.rb())[0];
        if norm > floor.max(f64::from(f32::MIN_POSITIVE)) {
            q.col_as_slice_mut(kept).iter_mut().for_each(|x| *x = T::from_f64((*x).into() / norm));
            kept += 1;
        }
    }
    (q, complete)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
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
    fn columns_after_a_dependent_one_are_kept_whole() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut basis = Basis::<f64>::new(30, 30);
        let (first, _) = basis.orthonormalize(gaussian(30, 6, &mut rng), &mut rng);
        basis.push(first.as_ref());
        let mut block = gaussian::<f64>(30, 6, &mut rng);
        for j in 0..3 {
            let inside = first.col_as_slice(j).to_vec();
            block.col_as_slice_mut(j).copy_from_slice(&inside);
        }
        let (second, inside) = basis.orthonormalize(block.clone(), &mut rng);
        let outside = product(second.transpose(), block.as_ref());
        let rebuilt = product(first.as_ref(), inside.as_ref()) + product(second.as_ref(), outside.as_ref());
        assert!((rebuilt - block).norm_max() < 1e-13);
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
