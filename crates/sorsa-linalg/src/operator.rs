//! A matrix as the Krylov method sees it: something to multiply panels with.

use std::cell::Cell;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::{LinalgError, Scalar};

/// `A [rows, cols]`, wherever it lives.
pub(crate) trait Operator<T> {
    fn shape(&self) -> (usize, usize);
    /// `A X`, for `X [cols, width]`.
    fn apply(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError>;
    /// `A^T X`, for `X [rows, width]`.
    fn apply_transpose(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError>;
}

/// Threads for one product: all, unless the caller already is one of rayon's workers.
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

/// `A^T B` for an `A` stored by columns and a narrow `B`. faer multiplies a wide panel from the left 1.5 times as fast
/// as a narrow one from the right (at 32 columns, f32, AVX-512), so the panels are turned.
pub(crate) fn transposed_product<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Mat<T> {
    let turned = transpose(b);
    let out = product(turned.as_ref(), a);
    transpose(out.as_ref())
}

/// A transposed copy, by strips of as many columns as fill a cache line of the copy's.
fn transpose<T: Scalar>(a: MatRef<'_, T>) -> Mat<T> {
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
pub(crate) struct Host<'a, T> {
    a: MatRef<'a, T>,
    /// `a^T` stored by columns where `a` is too, else `a` stored by columns.
    turned: Option<Mat<T>>,
}

impl<'a, T: Scalar> Host<'a, T> {
    /// For a product or two.
    pub fn new(a: MatRef<'a, T>) -> Self {
        Host { a, turned: None }
    }

    /// For many products both ways: they run at full speed thanks to a second copy of the matrix.
    pub fn copied(a: MatRef<'a, T>) -> Self {
        let by_columns = if by_rows(a) { a.transpose() } else { a };
        Host { a, turned: Some(transpose(by_columns)) }
    }
}

fn by_rows<T>(a: MatRef<'_, T>) -> bool {
    a.row_stride().abs() > a.col_stride().abs()
}

impl<T: Scalar> Operator<T> for Host<'_, T> {
    fn shape(&self) -> (usize, usize) {
        self.a.shape()
    }

    fn apply(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        Ok(match &self.turned {
            Some(_) if by_rows(self.a) => transposed_product(self.a.transpose(), x),
            Some(turned) => transposed_product(turned.as_ref(), x),
            None => product(self.a, x),
        })
    }

    fn apply_transpose(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        Ok(match &self.turned {
            Some(turned) if by_rows(self.a) => transposed_product(turned.as_ref(), x),
            Some(_) => transposed_product(self.a, x),
            None => product(self.a.transpose(), x),
        })
    }
}

/// An operator turned so that it is not taller than wide, which counts what is asked of it.
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

    /// Number of products so far, and of columns in them.
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

    fn apply(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        self.count(x.ncols());
        if self.turned { self.inner.apply_transpose(x) } else { self.inner.apply(x) }
    }

    fn apply_transpose(&self, x: MatRef<'_, T>) -> Result<Mat<T>, LinalgError> {
        self.count(x.ncols());
        if self.turned { self.inner.apply(x) } else { self.inner.apply_transpose(x) }
    }
}
