//! Sums of products whose left operands are packed once. On processors with AVX-512 by the tiles of [`tile`](super::tile),
//! elsewhere by `gemm`.
//!
//! The output is split into groups of rows and of columns, one task each, so that the products of low rank too run on
//! all threads. A task packs its columns of the right operands, some hundred steps of the depth at a time, and passes
//! over its rows: terms of little depth join the pass of their neighbour.

#[cfg(target_arch = "x86_64")]
use super::panels;
use super::product::{Matrix, Threads, multiply};

/// A left operand `[rows, depth]`, to be multiplied with several right ones.
pub(super) struct Left<'a> {
    matrix: Matrix<'a>,
    #[cfg(target_arch = "x86_64")]
    panels: Option<panels::Panels>,
}

/// Rows below which packing costs more than it saves: products with a vector, as in generation.
const FEW_ROWS: usize = 8;

impl<'a> Left<'a> {
    /// Packs `matrix`, where this processor has tiles for it.
    pub fn new(matrix: Matrix<'a>) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let worth = matrix.rows >= FEW_ROWS && matrix.columns > 0 && super::tile::available();
            Self { matrix, panels: worth.then(|| panels::Panels::new(matrix)) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self { matrix }
    }
}

/// `sum of left right`, row-major `[rows, columns]`. All left operands have the same rows, all right ones the same columns.
///
/// # Panics
///
/// Panics where shapes do not fit.
pub(super) fn sum_of_products(terms: &[(&Left<'_>, Matrix<'_>)]) -> Vec<f32> {
    let [rows, columns] = shape(terms);
    #[cfg(target_arch = "x86_64")]
    if let Some(terms) = tiled(terms) {
        return panels::sum(&terms, [rows, columns]);
    }
    let mut out = vec![0.0; rows * columns];
    add(&mut out, terms, false);
    out
}

/// `out += sum of left right`.
///
/// # Panics
///
/// Panics where shapes do not fit.
pub(super) fn add_products(out: &mut [f32], terms: &[(&Left<'_>, Matrix<'_>)]) {
    let [rows, columns] = shape(terms);
    assert_eq!(out.len(), rows * columns, "a product of [{rows}, {columns}]");
    #[cfg(target_arch = "x86_64")]
    if let Some(terms) = tiled(terms) {
        return panels::put(out, &terms, [rows, columns], true);
    }
    add(out, terms, true);
}

/// `left right` into `out`.
///
/// # Panics
///
/// Panics where shapes do not fit.
pub(super) fn product_into(out: &mut [f32], left: &Left<'_>, right: Matrix<'_>) {
    let terms = [(left, right)];
    let [rows, columns] = shape(&terms);
    assert_eq!(out.len(), rows * columns, "a product of [{rows}, {columns}]");
    #[cfg(target_arch = "x86_64")]
    if let Some(terms) = tiled(&terms) {
        return panels::put(out, &terms, [rows, columns], false);
    }
    add(out, &terms, false);
}

/// Rows and columns of the sum; checks all terms.
fn shape(terms: &[(&Left<'_>, Matrix<'_>)]) -> [usize; 2] {
    let [rows, columns] = terms.first().map_or([0, 0], |(left, right)| [left.matrix.rows, right.columns]);
    for (left, right) in terms {
        assert_eq!((left.matrix.rows, right.columns), (rows, columns), "terms of a sum of [{rows}, {columns}]");
        assert_eq!(left.matrix.columns, right.rows, "the depth of a product of [{rows}, {columns}]");
    }
    [rows, columns]
}

/// The terms as tiles take them, where all left operands are packed.
#[cfg(target_arch = "x86_64")]
fn tiled<'a>(terms: &'a [(&Left<'_>, Matrix<'a>)]) -> Option<Vec<(&'a panels::Panels, Matrix<'a>)>> {
    terms.iter().map(|(left, right)| Some((left.panels.as_ref()?, *right))).collect()
}

fn add(out: &mut [f32], terms: &[(&Left<'_>, Matrix<'_>)], mut accumulate: bool) {
    for (left, right) in terms {
        multiply(out, left.matrix, *right, 1.0, accumulate, Threads::All);
        accumulate = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(length: usize, seed: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// A matrix of a sum by its definition, in f64.
    fn by_definition(terms: &[(Matrix<'_>, Matrix<'_>)]) -> Vec<f64> {
        let (rows, columns) = (terms[0].0.rows, terms[0].1.columns);
        let at = |i: usize, j: usize| -> f64 {
            let term = |(a, b): &(Matrix<'_>, Matrix<'_>)| -> f64 {
                (0..a.columns).map(|d| f64::from(a.at(i, d)) * f64::from(b.at(d, j))).sum()
            };
            terms.iter().map(term).sum()
        };
        (0..rows * columns).map(|index| at(index / columns, index % columns)).collect()
    }

    fn near(found: &[f32], expected: &[f64], depth: usize) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((f64::from(*a) - b).abs() < 1e-6 * (1.0 + depth as f64), "{a} and {b}");
        }
    }

    #[test]
    fn sums_of_products_equal_their_definition_at_any_shape_and_stride() {
        let shapes =
            [(1, 3, 5, 2), (8, 1, 1, 1), (13, 33, 40, 3), (12, 32, 384, 16), (50, 70, 900, 17), (300, 500, 64, 8)];
        for (rows, columns, depth, rank) in shapes {
            let (x, w) = (numbers(rows * depth, 1), numbers(depth * columns, 2));
            let (h, b) = (numbers(rows * rank, 3), numbers(rank * columns, 4));
            for transposed in [false, true] {
                // The same numbers, read as a matrix or as the transpose of one.
                let view = |data, rows, columns| match transposed {
                    false => Matrix::new(data, rows, columns),
                    true => Matrix::new(data, columns, rows).transposed(),
                };
                let [x, h] = [view(&x[..], rows, depth), view(&h, rows, rank)];
                let [w, b] = [view(&w[..], depth, columns), view(&b, rank, columns)];
                let expected = by_definition(&[(x, w), (h, b)]);
                let (x, h) = (Left::new(x), Left::new(h));
                near(&sum_of_products(&[(&x, w), (&h, b)]), &expected, depth);

                let mut out = vec![f32::NAN; rows * columns];
                product_into(&mut out, &x, w);
                add_products(&mut out, &[(&h, b)]);
                near(&out, &expected, depth);
            }
        }
    }

    #[test]
    fn operands_may_be_parts_of_larger_ones_and_of_any_stride() {
        let (x, w) = (numbers(40 * 30, 1), numbers(60 * 90, 2));
        let x = Matrix::with_stride(&x, 40, 20, 30);
        // Every second row of a transpose's part: neither rows nor columns are neighbours.
        let w = Matrix::with_stride(&w, 45, 20, 120).transposed().column_range(3, 44);
        near(&sum_of_products(&[(&Left::new(x), w)]), &by_definition(&[(x, w)]), 20);
    }

    #[test]
    #[should_panic(expected = "the depth of a product")]
    fn depths_that_differ_are_refused() {
        let (a, b) = ([0.0; 12], [0.0; 15]);
        sum_of_products(&[(&Left::new(Matrix::new(&a, 3, 4)), Matrix::new(&b, 5, 3))]);
    }
}
