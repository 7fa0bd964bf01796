//! The largest eigenvalues of a dense symmetric matrix and their eigenvectors, without the other ones.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply_reflections,
};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::{Conj, Mat};

use crate::Scalar;
use crate::operator::parallelism;
use crate::tridiagonal::Tridiagonal;

/// Eigenpairs: `A x = value x`.
pub(crate) struct Eigen<T> {
    /// Descending.
    pub values: Vec<f64>,
    /// `[n, count]`.
    pub vectors: Mat<T>,
}

/// The `count` largest eigenvalues, and their eigenvectors, of the symmetric matrix with the lower triangle of `a [n, n]`,
/// `n > 0`. Reflections make the matrix tridiagonal and transform its eigenvectors back. Eigenvalues are exact to the
/// rounding of the largest; eigenvectors are orthonormal to that and to `precision`. `None` if a number is not finite.
pub(crate) fn largest<T: Scalar>(mut a: Mat<T>, count: usize, precision: f64) -> Option<Eigen<T>> {
    let n = a.nrows();
    let (par, block) = (parallelism(), recommended_block_size::<T>(n, n));
    let mut coefficients = Mat::zeros(block, n - 1);
    let scratch = tridiag_in_place_scratch::<T>(n, par, Default::default()).or(apply_scratch::<T>(n, block, count));
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    tridiag_in_place(a.as_mut(), coefficients.as_mut(), par, stack, Default::default());

    let diagonal = (0..n).map(|i| a[(i, i)].into()).collect();
    let beside = (1..n).map(|i| a[(i, i - 1)].into()).collect();
    let (values, turned) = Tridiagonal::new(diagonal, beside).largest(count, precision)?;
    let mut vectors = Mat::from_fn(n, count, |i, j| T::from_f64(turned[j][i]));
    let (reflections, rest) = (a.submatrix(1, 0, n - 1, n - 1), vectors.subrows_mut(1, n - 1));
    apply_reflections(reflections, coefficients.as_ref(), Conj::No, rest, par, stack);
    Some(Eigen { values, vectors })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::basis::gaussian;
    use crate::operator::product;
    use crate::spectral::orthonormality_defect;

    #[test]
    fn the_largest_are_those_among_all() {
        for (n, count) in [(1, 1), (2, 1), (9, 9), (150, 20)] {
            let a = gaussian::<f64>(n, n, &mut ChaCha8Rng::seed_from_u64(n as u64));
            let a = Mat::from_fn(n, n, |i, j| a[(i, j)] + a[(j, i)]);
            let all = a.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
            // The entries above the diagonal are not read.
            let lower = Mat::from_fn(n, n, |i, j| if i >= j { a[(i, j)] } else { 1e9 });
            let found = largest(lower, count, f64::EPSILON).unwrap();
            assert!((0..count).all(|j| (found.values[j] - all[n - 1 - j]).abs() < 1e-12), "{n}");
            let x = &found.vectors;
            let scaled = Mat::from_fn(n, count, |i, j| x[(i, j)] * found.values[j]);
            assert!((product(a.as_ref(), x.as_ref()) - scaled).norm_max() < 1e-12, "{n}");
            assert!(orthonormality_defect(x.as_ref()) < 1e-12, "{n}");
        }
        let mut broken = Mat::<f32>::identity(4, 4);
        broken[(2, 1)] = f32::NAN;
        assert!(largest(broken, 1, 1e-7).is_none());
    }
}
