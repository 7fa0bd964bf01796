//! A packed weight less the product of two narrow factors: `W - A B`, which is never formed.
//!
//! ```text
//! x (W - A B) = x W - (x A) B
//! ```

use crate::matrix::Matrix;
use crate::packed::{self, PackedView};
use crate::product::{Product, Update};

/// A view of `W - A B`, with a packed `W` `[d_in, d_out]`.
#[derive(Debug, Clone, Copy)]
pub struct PackedLess<'a> {
    packed: PackedView<'a>,
    a: Matrix<'a>,
    b: Matrix<'a>,
}

impl<'a> PackedLess<'a> {
    /// `packed` less the product of `a` `[d_in, r]` and `b` `[r, d_out]`.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit each other.
    pub fn new(packed: PackedView<'a>, a: Matrix<'a>, b: Matrix<'a>) -> Self {
        let shapes = [[a.rows(), a.columns()], [b.rows(), b.columns()]];
        let [d_in, d_out] = [packed.rows(), packed.columns()];
        assert!(
            a.rows() == d_in && a.columns() == b.rows() && b.columns() == d_out,
            "factors {shapes:?} of a weight [{d_in}, {d_out}]"
        );
        Self { packed, a, b }
    }

    /// `d_in`.
    #[inline]
    pub fn rows(&self) -> usize {
        self.packed.rows()
    }

    /// `d_out`.
    #[inline]
    pub fn columns(&self) -> usize {
        self.packed.columns()
    }

    /// The element at `row` and `column`.
    pub fn at(&self, row: usize, column: usize) -> f32 {
        let product: f32 = (0..self.b.rows()).map(|k| self.a.at(row, k) * self.b.at(k, column)).sum();
        self.packed.at(row, column) - product
    }

    /// The transpose; nothing is copied.
    pub fn transposed(self) -> Self {
        Self { packed: self.packed.transposed(), a: self.b.transposed(), b: self.a.transposed() }
    }

    /// The columns from `start` to `end`.
    ///
    /// # Panics
    ///
    /// Panics if the range is empty or reaches beyond the last column.
    pub fn column_range(self, start: usize, end: usize) -> Self {
        Self { packed: self.packed.column_range(start, end), b: self.b.column_range(start, end), ..self }
    }

    /// The packed weight `W`, and `B`: `x (W - A B)` is the sum of `x W` and [`narrow_product`](Self::narrow_product)` B`.
    pub(crate) fn parts(self) -> (PackedView<'a>, Matrix<'a>) {
        (self.packed, self.b)
    }

    /// `-(x A)`, `[rows, r]`.
    pub(crate) fn narrow_product(self, x: Matrix<'_>) -> Vec<f32> {
        let mut h = vec![0.0; x.rows() * self.a.columns()];
        Product::new(x, self.a).with_factor(-1.0).compute(&mut h, Update::Overwrite);
        h
    }

    /// The product of `x` `[rows, d_in]`, row-major, with the weight, into `out` `[rows, d_out]`.
    pub(crate) fn multiply(self, out: &mut [f32], x: &[f32], update: Update) {
        packed::multiply(out, x, self.packed, update);
        let rows = out.len() / self.columns().max(1);
        let h = self.narrow_product(Matrix::new(x, rows, self.rows()));
        Product::new(Matrix::new(&h, rows, self.b.rows()), self.b).compute(out, Update::Add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{PackedFormat, PackedMatrix};
    use crate::testing::values;
    use crate::weight::Weight;

    #[test]
    fn a_packed_weight_less_a_product_multiplies_like_the_difference_both_ways() {
        for (d_in, d_out, rank) in [(64, 96, 1), (256, 128, 16), (320, 64, 40)] {
            let packed = PackedMatrix::pack(PackedFormat::NF4, [d_out, d_in], &values(d_in * d_out, 1)).unwrap();
            let (a, b) = (values(d_in * rank, 2), values(rank * d_out, 3));
            let view = PackedLess::new(
                PackedView::new(&packed),
                Matrix::new(&a, rank, d_in).transposed(),
                Matrix::new(&b, rank, d_out),
            );
            for weight in [Weight::PackedLess(view), Weight::PackedLess(view).transposed()] {
                let (height, width) = (weight.rows(), weight.columns());
                let dense: Vec<f32> = (0..height * width).map(|i| weight.at(i / width, i % width)).collect();
                for rows in [1, 3, 40] {
                    let x = values(rows * height, 4);
                    for update in [Update::Overwrite, Update::Add] {
                        let [mut found, mut expected] = [vec![1.0; rows * width], vec![1.0; rows * width]];
                        weight.multiply(&mut found, &x, update);
                        Weight::F32(Matrix::new(&dense, height, width)).multiply(&mut expected, &x, update);
                        let size = expected.iter().fold(1f32, |size, value| size.max(value.abs()));
                        for (a, b) in found.iter().zip(&expected) {
                            assert!((a - b).abs() < 1e-5 * size, "{a} and {b} of {size}, rank {rank}, {rows} rows");
                        }
                    }
                }
                let (mut column, some) = (vec![0.0; height], weight.column_range(3, 9));
                some.column(2, &mut column);
                assert!(column.iter().enumerate().all(|(row, value)| *value == weight.at(row, 5)));
            }
        }
    }

    #[test]
    #[should_panic(expected = "factors [[64, 2], [3, 32]] of a weight [64, 32]")]
    fn factors_of_other_ranks_are_no_product() {
        let packed = PackedMatrix::pack(PackedFormat::NF4, [32, 64], &values(32 * 64, 1)).unwrap();
        let (a, b) = (values(64 * 2, 2), values(3 * 32, 3));
        PackedLess::new(PackedView::new(&packed), Matrix::new(&a, 64, 2), Matrix::new(&b, 3, 32));
    }
}
