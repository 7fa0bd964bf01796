//! Linear operators: the Krylov iteration only multiplies the matrix with panels.

use std::cell::Cell;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};

use crate::{LinalgError, Scalar};

/// A matrix `A [rows, cols]`, in host memory or on a device. A panel holds vectors in its rows and is stored by columns:
/// faer multiplies a narrow panel from the left up to 1.8 times as fast as from the right, for both orders of the matrix.
pub(crate) trait Operator<T> {
    fn shape(&self) -> (usize, usize);
    /// `A x` for each row `x` of the panel `[width, cols]`, as a panel `[width, rows]`.
    fn apply(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError>;
    /// `A^T x` for each row `x` of the panel `[width, rows]`, as a panel `[width, cols]`.
    fn apply_transpose(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError>;
    /// The lower triangle of `A A^T`, or of `A^T A` if `turned`. The entries above the diagonal are undefined.
    fn gram(&self, turned: bool) -> Result<Mat<T>, LinalgError>;
}

/// Threads for one product: all, unless the caller is one of rayon's workers.
pub(crate) fn parallelism() -> Par {
    match rayon::current_thread_index() {
        Some(_) => Par::Seq,
        None => Par::rayon(0),
    }
}

/// `A B`.
pub(crate) fn product<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut out, Accum::Replace, a, b, T::from_f64(1.0), parallelism());
    out
}

/// The lower triangle of `A A^T`; above it are zeros.
pub(crate) fn lower_product_with_itself<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), a.nrows());
    let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    let (one, par) = (T::from_f64(1.0), parallelism());
    triangular::matmul(&mut out, lower, Accum::Replace, a, whole, a.transpose(), whole, one, par);
    out
}

/// A transposed copy. It goes by strips of columns that fill a cache line of the copy.
pub(crate) fn transpose<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
    const STRIP: usize = 16;
    let (rows, cols) = a.shape();
    let Some(stored) = a.try_as_col_major() else { return transpose(a.to_owned().as_ref()) };
    let mut out = Mat::zeros(cols, rows);
    for start in (0..cols).step_by(STRIP) {
        let end = cols.min(start + STRIP);
        let strip: Vec<&[T]> = (start..end).map(|j| stored.col(j).as_slice()).collect();
        for i in 0..rows {
            let line = &mut out.col_as_slice_mut(i)[start..end];
            line.iter_mut().zip(&strip).for_each(|(x, column)| *x = column[i]);
        }
    }
    out
}

/// A matrix in host memory.
pub(crate) struct Host<'a, T>(pub MatRef<'a, T>);

impl<T: Scalar> Operator<T> for Host<'_, T> {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }

    fn apply(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        Ok(product(panel, self.0.transpose()))
    }

    fn apply_transpose(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        Ok(product(panel, self.0))
    }

    fn gram(&self, turned: bool) -> Result<Mat<T>, LinalgError> {
        Ok(lower_product_with_itself(if turned { self.0.transpose() } else { self.0 }))
    }
}

/// An operator that is transposed if it has more rows than columns. It counts products.
pub(crate) struct Wide<'a, O> {
    inner: &'a O,
    pub turned: bool,
    products: Cell<usize>,
    columns: Cell<usize>,
}

impl<'a, O> Wide<'a, O> {
    pub fn new<T>(inner: &'a O) -> Self
    where
        O: Operator<T>,
    {
        let (rows, cols) = inner.shape();
        Wide { inner, turned: rows > cols, products: Cell::new(0), columns: Cell::new(0) }
    }

    /// Number of products so far, and of their columns.
    pub fn work(&self) -> (usize, usize) {
        (self.products.get(), self.columns.get())
    }

    fn count(&self, width: usize) {
        self.products.update(|n| n + 1);
        self.columns.update(|n| n + width);
    }
}

impl<T, O: Operator<T>> Operator<T> for Wide<'_, O> {
    fn shape(&self) -> (usize, usize) {
        let (rows, cols) = self.inner.shape();
        if self.turned { (cols, rows) } else { (rows, cols) }
    }

    fn apply(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        self.count(panel.nrows());
        if self.turned { self.inner.apply_transpose(panel) } else { self.inner.apply(panel) }
    }

    fn apply_transpose(&self, panel: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        self.count(panel.nrows());
        if self.turned { self.inner.apply(panel) } else { self.inner.apply_transpose(panel) }
    }

    fn gram(&self, turned: bool) -> Result<Mat<T>, LinalgError> {
        self.count(self.shape().0);
        self.inner.gram(self.turned != turned)
    }
}
