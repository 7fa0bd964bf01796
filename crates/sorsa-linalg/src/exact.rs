//! The thin SVD of a dense matrix and its singular values alone, by faer: bidiagonalization, then divide and conquer.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Mat, MatRef};

use crate::Scalar;
use crate::operator::parallelism;

/// `A = u diag(s) v^T` with `u [m, k]`, `v [n, k]`, `k = min(m, n)`, `s` descending.
pub(crate) struct ThinSvd<T> {
    pub u: Mat<T>,
    pub s: Vec<f64>,
    pub v: Mat<T>,
}

/// `None` if faer's iteration does not converge, which happens only if entries overflow.
pub(crate) fn thin_svd<T: Scalar>(a: MatRef<'_, T>) -> Option<ThinSvd<T>> {
    let (rows, cols) = a.shape();
    let k = rows.min(cols);
    let (mut u, mut v) = (Mat::zeros(rows, k), Mat::zeros(cols, k));
    let mut s = Diag::zeros(k);
    let (par, params, thin) = (parallelism(), Default::default(), ComputeSvdVectors::Thin);
    let mut memory = MemBuffer::new(svd_scratch::<T>(rows, cols, thin, thin, par, params));
    let stack = MemStack::new(&mut memory);
    svd(a, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), par, stack, params).ok()?;
    let s = s.column_vector().iter().map(|&s| s.into()).collect();
    Some(ThinSvd { u, s, v })
}

/// All singular values, descending. `None` like [`thin_svd`].
pub(crate) fn all_singular_values<T: Scalar>(a: MatRef<'_, T>) -> Option<Vec<f64>> {
    let (rows, cols) = a.shape();
    let mut s = Diag::zeros(rows.min(cols));
    let (par, params, none) = (parallelism(), Default::default(), ComputeSvdVectors::No);
    let mut memory = MemBuffer::new(svd_scratch::<T>(rows, cols, none, none, par, params));
    svd(a, s.as_mut(), None, None, par, MemStack::new(&mut memory), params).ok()?;
    Some(s.column_vector().iter().map(|&s| s.into()).collect())
}
