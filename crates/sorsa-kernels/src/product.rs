//! Matrix products into a buffer of the caller: by a kernel of AVX-512 or AVX2 if the processor has the instructions, otherwise by
//! the crate `gemm`.

use std::ops::Range;

use gemm::Parallelism;

#[cfg(target_arch = "x86_64")]
use crate::avx512::{Avx512, multiply_rounded};
use crate::matmul_precision::MatmulPrecision;
use crate::matrix::Matrix;
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, f32_panels::multiply, instructions::Instructions, matmul_precision::Arithmetic};

/// Which threads a product runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's.
    One,
    /// All threads of rayon's pool, if the product is large enough to pay for waking them.
    All,
}

/// How a product is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// The product replaces what the buffer holds.
    Overwrite,
    /// The product is added to what the buffer holds.
    Add,
}

/// Some columns of a row-major matrix, into which a product is stored.
pub(crate) struct OutputColumns<'a> {
    /// The whole matrix.
    pub data: &'a mut [f32],
    /// The number of its columns.
    pub row_stride: usize,
    /// The columns of the product.
    pub columns: Range<usize>,
}

impl<'a> OutputColumns<'a> {
    /// All `columns` of a matrix.
    pub fn all(data: &'a mut [f32], columns: usize) -> Self {
        Self { data, row_stride: columns, columns: 0..columns }
    }
}

/// The product `factor * lhs rhs`.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `[m, k]`.
    pub lhs: Matrix<'a>,
    /// `[k, n]`.
    pub rhs: Matrix<'a>,
    /// Multiplies every element.
    pub factor: f32,
    /// Which threads compute it.
    pub threads: Threads,
    /// Its precision.
    pub precision: MatmulPrecision,
}

impl<'a> Product<'a> {
    /// `lhs rhs` with a factor of 1, on all threads, in f32.
    pub fn new(lhs: Matrix<'a>, rhs: Matrix<'a>) -> Self {
        Self { lhs, rhs, factor: 1.0, threads: Threads::All, precision: MatmulPrecision::Highest }
    }

    /// The same product multiplied by `factor`.
    pub fn with_factor(self, factor: f32) -> Self {
        Self { factor, ..self }
    }

    /// The same product in another precision, if both operands are contiguous along one axis.
    pub fn at_precision(self, precision: MatmulPrecision) -> Self {
        Self { precision, ..self }
    }

    /// The same product on the caller's thread alone.
    pub fn on_one_thread(self) -> Self {
        Self { threads: Threads::One, ..self }
    }

    /// Computes the product into `out`.
    ///
    /// # Shapes
    ///
    /// - `out`: `[m, n]`, row-major
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn compute(&self, out: &mut [f32], update: Update) {
        #[cfg(target_arch = "x86_64")]
        if self.rhs.has_contiguous_axis() {
            if self.rounds_to_bf16() {
                return multiply_rounded(out, self, update);
            }
            match Instructions::used() {
                Instructions::Avx512 | Instructions::Avx512Bf16 => return multiply::<Avx512>(out, self, update),
                Instructions::Avx2 => return multiply::<Avx2>(out, self, update),
                Instructions::Portable => {}
            }
        }
        self.compute_portable(OutputColumns::all(out, self.rhs.columns()), update);
    }

    /// Whether operands are rounded to bf16: if the precision allows it, and both are contiguous along one axis and not empty.
    #[cfg(target_arch = "x86_64")]
    fn rounds_to_bf16(&self) -> bool {
        let is_empty = self.lhs.rows() == 0 || self.lhs.columns() == 0 || self.rhs.columns() == 0;
        self.precision.arithmetic() == Arithmetic::Bf16 && self.lhs.has_contiguous_axis() && !is_empty
    }

    /// [`compute`](Self::compute) into some columns of a matrix, by the crate `gemm`.
    #[allow(unsafe_code, reason = "gemm takes pointers; every bound that it relies on is asserted here or in `Matrix`")]
    pub(crate) fn compute_portable(&self, out: OutputColumns<'_>, update: Update) {
        let Self { lhs, rhs, factor, threads, .. } = *self;
        let (m, n, k) = (lhs.rows(), rhs.columns(), lhs.columns());
        assert_eq!(k, rhs.rows(), "[{m}, {k}] times [{}, {n}]", rhs.rows());
        let OutputColumns { data: out, row_stride, columns } = out;
        assert!(columns.len() == n && columns.end <= row_stride, "{columns:?} of {row_stride} columns for {n}");
        assert_eq!(Some(out.len()), m.checked_mul(row_stride), "a product of [{m}, {n}]");
        if m == 0 || n == 0 {
            return;
        }
        let out = &mut out[columns.start..];
        // The threshold of burn's flex: below it, waking threads costs more than they save.
        let parallelism = match threads {
            Threads::All if m * n * k >= 192 * 192 * 192 => Parallelism::Rayon(0),
            _ => Parallelism::None,
        };
        let read_out = update == Update::Add;
        let ([lhs_row_stride, lhs_column_stride], [rhs_row_stride, rhs_column_stride]) = (lhs.strides(), rhs.strides());
        // SAFETY: `out` has m rows, `row_stride` apart, and n elements of each; nobody else sees them. `Matrix` bounds every element
        // of lhs and rhs.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                row_stride as isize,
                read_out,
                lhs.data().as_ptr(),
                lhs_column_stride as isize,
                lhs_row_stride as isize,
                rhs.data().as_ptr(),
                rhs_column_stride as isize,
                rhs_row_stride as isize,
                1.0,
                factor,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    type Compute = fn(&Product<'_>, &mut [f32], Update);

    /// `[m, k, n]`: ones; odd numbers; one more and one less than tiles, parts, panels and tasks; narrow results.
    const SIZES: [[usize; 3]; 16] = [
        [1, 1, 1],
        [2, 3, 2],
        [1, 300, 33],
        [12, 192, 32],
        [13, 193, 65],
        [25, 191, 31],
        [7, 15, 16],
        [64, 385, 17],
        [300, 7, 16],
        [37, 520, 130],
        [130, 131, 129],
        [600, 20, 40],
        [1030, 40, 16],
        [3000, 50, 16],
        [3, 0, 5],
        [0, 4, 5],
    ];

    fn agrees(compute: Compute) {
        for [m, k, n] in SIZES {
            let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let both =
                |data, rows, columns| [Matrix::new(data, rows, columns), Matrix::new(data, columns, rows).transposed()];
            for (lhs, rhs) in both(&a, m, k).into_iter().flat_map(|lhs| both(&b, k, n).map(|rhs| (lhs, rhs))) {
                for (factor, update, threads) in
                    [(1.0, Update::Overwrite, Threads::All), (-0.5, Update::Add, Threads::One)]
                {
                    let mut out = start.clone();
                    compute(
                        &Product { lhs, rhs, factor, threads, precision: MatmulPrecision::Highest },
                        &mut out,
                        update,
                    );
                    for (index, found) in out.iter().enumerate() {
                        let (row, column) = (index / n, index % n);
                        let before = if update == Update::Add { f64::from(start[index]) } else { 0.0 };
                        let terms = (0..k).map(|i| f64::from(lhs.at(row, i)) * f64::from(rhs.at(i, column)));
                        let exact = before + f64::from(factor) * terms.clone().sum::<f64>();
                        // Sums of k terms in f32, in some order: a few units of rounding, far below k of them.
                        let size = before.abs() + terms.map(f64::abs).sum::<f64>();
                        let bound = (2.0 + (k as f64).sqrt()) * size * f64::from(f32::EPSILON) + 1e-30;
                        assert!((f64::from(*found) - exact).abs() <= bound, "{m} {k} {n}: {found}, not {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_any_size_and_order_are_exact_to_the_sums_of_f32() {
        agrees(|product, out, update| product.compute(out, update));
        #[cfg(target_arch = "x86_64")]
        if Instructions::Avx2.is_available() {
            agrees(|product, out, update| multiply::<Avx2>(out, product, update));
        }
        agrees(|product, out, update| {
            product.compute_portable(OutputColumns::all(out, product.rhs.columns()), update);
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_product_of_medium_precision_is_that_of_rounded_operands() {
        if MatmulPrecision::Medium.arithmetic() != Arithmetic::Bf16 {
            eprintln!("no AVX-512 BF16: nothing tested");
            return;
        }
        let rounded =
            |values: &[f32]| -> Vec<f32> { values.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect() };
        for [m, k, n] in SIZES {
            let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            let (a_rounded, b_rounded) = (rounded(&a), rounded(&b));
            for turned in [[false, false], [true, false], [false, true], [true, true]] {
                let view = |data, rows, columns, turned| match turned {
                    false => Matrix::new(data, rows, columns),
                    true => Matrix::new(data, columns, rows).transposed(),
                };
                let product = |a, b| Product::new(view(a, m, k, turned[0]), view(b, k, n, turned[1])).with_factor(-0.5);
                let (mut found, mut exact) = (start.clone(), start.clone());
                product(&a, &b).at_precision(MatmulPrecision::Medium).compute(&mut found, Update::Add);
                product(&a_rounded, &b_rounded).compute(&mut exact, Update::Add);
                for (found, exact) in found.iter().zip(&exact) {
                    assert!(
                        (found - exact).abs() < 1e-5 * (1.0 + k as f32).sqrt(),
                        "{m} {k} {n}: {found}, not {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn views_with_strided_rows_are_multiplied_without_a_copy() {
        let (a, b) = (values(40 * 30, 4), values(30 * 50, 5));
        let (lhs, rhs) = (Matrix::with_row_stride(&a[3..], 39, 21, 30), Matrix::with_row_stride(&b[7..], 21, 33, 50));
        let copied = |m: Matrix<'_>| -> Vec<f32> { (0..m.rows()).flat_map(|row| m.row(row).to_vec()).collect() };
        let (dense_lhs, dense_rhs) = (copied(lhs), copied(rhs));
        let product = |lhs, rhs| {
            let mut out = vec![0.0; 39 * 33];
            Product::new(lhs, rhs).compute(&mut out, Update::Overwrite);
            out
        };
        assert_eq!(product(lhs, rhs), product(Matrix::new(&dense_lhs, 39, 21), Matrix::new(&dense_rhs, 21, 33)));
    }

    #[test]
    fn a_product_whose_size_overflows_is_refused() {
        let data = [0.0];
        let huge = |rows, columns| Matrix::with_strides(&data, [rows, columns], [0, 0]);
        let product = Product::new(huge(1 << 32, 1), huge(1, 1 << 32));
        assert!(std::panic::catch_unwind(|| product.compute(&mut [], Update::Overwrite)).is_err());
        assert!(
            std::panic::catch_unwind(
                || product.compute_portable(OutputColumns::all(&mut [], 1 << 32), Update::Overwrite)
            )
            .is_err()
        );
    }

    #[test]
    fn a_row_does_not_depend_on_the_other_rows() {
        let [m, k, n] = [40, 300, 70];
        let (a, b) = (values(m * k, 7), values(k * n, 8));
        let product = |x: &[f32], rows, threads| {
            let mut out = vec![0.0; rows * n];
            let (lhs, rhs) = (Matrix::new(x, rows, k), Matrix::new(&b, k, n));
            Product { threads, ..Product::new(lhs, rhs) }.compute(&mut out, Update::Overwrite);
            out
        };
        let together = product(&a, m, Threads::All);
        assert_eq!(together, product(&a, m, Threads::One));
        #[cfg(target_arch = "x86_64")]
        if Instructions::used() > Instructions::Portable {
            let alone: Vec<f32> = a.chunks_exact(k).flat_map(|row| product(row, 1, Threads::One)).collect();
            assert_eq!(together, alone);
        }
    }
}
