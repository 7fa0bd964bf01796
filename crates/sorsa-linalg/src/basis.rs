//! An orthonormal basis that grows by blocks. Block Gram-Schmidt is repeated until the basis is orthonormal to working
//! precision.
//!
//! Vectors are the rows of a panel, see [`Operator`](crate::operator::Operator). In exact arithmetic, a block of a Krylov
//! iteration is orthogonal to all blocks of the basis but the last. So the block is first projected against the last
//! block, then orthonormalized by a Cholesky factor, then projected once against the whole basis. This last projection
//! removes so little that the block stays orthonormal. If it removes more, another round follows ("twice is enough":
//! Giraud, Langou, Rozloznik and van den Eshof 2005). If rows depend on each other or on the basis, the Cholesky factor
//! fails; then Householder reflections and, last, Gram-Schmidt by columns take over.

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
use crate::cholesky::{orthonormalize_rows, row_squares};
use crate::operator::{parallelism, product, transpose};

/// Maximum number of rounds by Cholesky factors, before the reflections.
const ROUNDS: usize = 3;

/// Orthonormal columns `[n, k]`.
pub(crate) struct Basis<T> {
    columns: Mat<T>,
    /// Number of columns in the last block.
    last: usize,
}

impl<T: Scalar> Basis<T> {
    /// An empty basis of a space of `n` dimensions, with room for `capacity` vectors.
    pub fn new(n: usize, capacity: usize) -> Self {
        let mut columns = Mat::with_capacity(n, capacity);
        columns.resize_with(n, 0, |_, _| T::from_f64(0.0));
        Basis { columns, last: 0 }
    }

    pub fn columns(&self) -> MatRef<'_, T> {
        self.columns.as_ref()
    }

    pub fn len(&self) -> usize {
        self.columns.ncols()
    }

    /// Adds the rows of a panel that [`Basis::orthonormalize`] returned.
    pub fn push(&mut self, panel: MatRef<'_, T>) {
        let (n, k) = self.columns.shape();
        let block = transpose(panel);
        self.last = panel.nrows();
        self.columns.resize_with(n, k + self.last, |_, _| T::from_f64(0.0));
        self.columns.subcols_mut(k, panel.nrows()).copy_from(block);
    }

    /// Orthonormalizes `panel [width, n]` against the basis and itself. If its rows depend on each other or on the basis,
    /// random directions replace the missing ones. `panel` must not have more rows than the space has dimensions left.
    /// Also returns the coefficients of the rows in the basis, `[width, k]`.
    pub fn orthonormalize(&self, panel: MatRef<'_, T>, rng: &mut ChaCha8Rng) -> (Mat<T>, Mat<T>) {
        self.by_cholesky(panel).unwrap_or_else(|| {
            let (block, inside) = self.by_reflections(transpose(panel), rng);
            (transpose(block.as_ref()), transpose(inside.as_ref()))
        })
    }

    /// Orthonormalizes by Cholesky factors. `None` if a row is too close to the span of the basis and the other rows.
    fn by_cholesky(&self, panel: MatRef<'_, T>) -> Option<(Mat<T>, Mat<T>)> {
        let mut q = panel.to_owned();
        let mut inside = Mat::zeros(panel.nrows(), self.len());
        let mut squares = row_squares(&q);
        let near = self.len() - self.last;
        let part = project_out(&mut q, self.columns.subcols(near, self.last));
        inside.subcols_mut(near, self.last).copy_from(part);
        // Invariant: panel = inside basis^T + scale q.
        let mut scale = orthonormalize_rows(&mut q, &squares)?;
        squares.fill(1.0);
        for _ in 0..ROUNDS {
            let part = project_out(&mut q, self.columns());
            matmul(&mut inside, Accum::Add, &scale, &part, T::from_f64(1.0), parallelism());
            let taken = part.norm_l2().into();
            let lower = orthonormalize_rows(&mut q, &squares)?;
            if taken * taken <= T::EPSILON {
                return Some((q, inside));
            }
            scale = product(scale.as_ref(), lower.as_ref());
        }
        None
    }

    /// Orthonormalizes columns `[n, width]` by reflections and Gram-Schmidt, which works for all columns.
    fn by_reflections(&self, mut block: Mat<T>, rng: &mut ChaCha8Rng) -> (Mat<T>, Mat<T>) {
        let mut inside = None;
        let mut orthonormal = false;
        loop {
            let before = norms(block.as_ref());
            let part = product(self.columns.transpose(), block.as_ref());
            matmul(&mut block, Accum::Add, &self.columns, &part, T::from_f64(-1.0), parallelism());
            let taken = part.norm_l2().into();
            inside.get_or_insert(part);
            // The projection changed the products of columns by the square of what it removed. NaN cannot be repaired.
            if orthonormal && taken * taken <= T::EPSILON || taken.is_nan() {
                return (block, inside.expect("set in the first pass"));
            }
            // A column shorter than this is rounding error: it lies in the span of the basis.
            let floors: Vec<f64> = before.into_iter().map(|norm| 16.0 * T::EPSILON * norm).collect();
            let outside = norms(block.as_ref()).iter().zip(&floors).all(|(norm, floor)| norm > floor);
            (block, orthonormal) = match householder(&block) {
                (q, true) if outside => (q, true),
                _ => gram_schmidt(&block, &floors, rng),
            };
        }
    }
}

/// Projects the rows of `panel` onto the complement of the orthonormal `columns [n, k]`. Returns the removed
/// coefficients, `[width, k]`.
fn project_out<T: Scalar>(panel: &mut Mat<T>, columns: MatRef<'_, T>) -> Mat<T> {
    let part = product(panel.as_ref(), columns);
    matmul(panel, Accum::Add, &part, columns.transpose(), T::from_f64(-1.0), parallelism());
    part
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

/// Norms of the columns, with sums in f64.
pub(crate) fn norms<T: Scalar>(a: MatRef<'_, T>) -> Vec<f64> {
    let square = |x: &T| (*x).into().powi(2);
    a.col_iter().map(|column| column.iter().map(square).sum::<f64>().sqrt()).collect()
}

/// The orthonormal factor of a thin QR decomposition, and whether it spans the columns. faer replaces dependent columns by
/// other directions, and in f32 it takes a column for dependent if the others leave a hundredth of it.
fn householder<T: Scalar>(block: &Mat<T>) -> (Mat<T>, bool) {
    let (rows, width) = block.shape();
    if width == 0 {
        return (block.clone(), true);
    }
    let size = factor::recommended_block_size::<T>(rows, width);
    // Panels are too narrow to gain from threads.
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

/// Orthonormal columns that span the columns of `block` to working precision, by Gram-Schmidt. A column that the others
/// reduce to its floor or less is dropped. Random directions at the end replace dropped columns. Also returns whether no
/// column was dropped.
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
    fn what_a_block_adds_and_what_it_shares_rebuild_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut basis = Basis::<f32>::new(300, 24);
        for _ in 0..3 {
            let panel = gaussian(8, 300, &mut rng);
            let (block, inside) = basis.orthonormalize(panel.as_ref(), &mut rng);
            let outside = product(panel.as_ref(), block.transpose());
            let rebuilt =
                product(inside.as_ref(), basis.columns().transpose()) + product(outside.as_ref(), block.as_ref());
            assert!((rebuilt - panel).norm_max() < 3e-6);
            basis.push(block.as_ref());
        }
        assert!(orthonormality_defect(basis.columns()) < 2e-6);
    }

    #[test]
    fn dependent_and_zero_rows_are_replaced_by_fresh_directions() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut basis = Basis::<f32>::new(40, 40);
        let (first, _) = basis.orthonormalize(gaussian(8, 40, &mut rng).as_ref(), &mut rng);
        basis.push(first.as_ref());
        // All in the span of the basis, one zero, two equal.
        let mut panel = first.clone();
        for j in 0..40 {
            panel[(2, j)] = 0.0;
            panel[(5, j)] = first[(4, j)];
        }
        let (second, inside) = basis.orthonormalize(panel.as_ref(), &mut rng);
        basis.push(second.as_ref());
        assert!(orthonormality_defect(basis.columns()) < 1e-5);
        let rebuilt = product(inside.as_ref(), first.as_ref());
        assert!((rebuilt - panel).norm_max() < 1e-6);
    }

    #[test]
    fn rows_after_a_dependent_one_are_kept_whole() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut basis = Basis::<f64>::new(30, 30);
        let (first, _) = basis.orthonormalize(gaussian(6, 30, &mut rng).as_ref(), &mut rng);
        basis.push(first.as_ref());
        let mut panel = gaussian::<f64>(6, 30, &mut rng);
        panel.subrows_mut(0, 3).copy_from(first.subrows(0, 3));
        let (second, inside) = basis.orthonormalize(panel.as_ref(), &mut rng);
        let outside = product(panel.as_ref(), second.transpose());
        let rebuilt = product(inside.as_ref(), first.as_ref()) + product(outside.as_ref(), second.as_ref());
        assert!((rebuilt - panel).norm_max() < 1e-13);
    }

    #[test]
    fn the_whole_space_can_be_filled() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut basis = Basis::<f64>::new(10, 10);
        for width in [4, 4, 2] {
            let (block, _) = basis.orthonormalize(gaussian(width, 10, &mut rng).as_ref(), &mut rng);
            basis.push(block.as_ref());
        }
        assert!(orthonormality_defect(basis.columns()) < 1e-13);
    }
}
