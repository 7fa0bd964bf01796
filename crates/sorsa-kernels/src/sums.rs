//! Sums of products into new memory: `Y = X1 W1 + X2 W2 + ..`, several of them at once. With kernels of panels, a tile of the result stays
//! in a core's cache from product to product, and the memory is written without being cleared first. Elsewhere the products run one after
//! the other.

use crate::few_rows::most_rows;
use crate::matmul_precision::MatmulPrecision;
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::weight::Weight;
#[cfg(target_arch = "x86_64")]
use crate::{
    avx2::Avx2,
    avx512::{self, Avx512},
    bf16::paired_matrix,
    f32_panels::{self, F32Kernel},
    instructions::Instructions,
    matmul_precision::Arithmetic,
    packed::Precision,
    panels::{self, Output, PARALLEL, Sum, Term},
};

/// One product: `x [rows, k] W [k, n]`. Rows of `x` are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Summand<'a> {
    x: Matrix<'a>,
    weight: Weight<'a>,
    /// Of a weight in f32.
    precision: MatmulPrecision,
}

impl<'a> Summand<'a> {
    /// The product with a weight, in the precision of the process.
    pub fn of_weight(x: Matrix<'a>, weight: Weight<'a>) -> Self {
        Self { x, weight, precision: MatmulPrecision::used() }
    }

    /// The rows of the product.
    pub fn rows(&self) -> usize {
        self.x.rows()
    }

    /// The product with a factor of an adapter, in f32.
    pub fn of_factor(x: Matrix<'a>, factor: Matrix<'a>) -> Self {
        Self { x, weight: Weight::F32(factor), precision: MatmulPrecision::Highest }
    }
}

/// The sums of the products of each list, `[rows, n]`. Lists are not empty, and all products have the same number of rows.
///
/// # Panics
///
/// Panics if the shapes do not fit each other.
pub(crate) fn sums(rows: usize, lists: &[Vec<Summand<'_>>]) -> Vec<Vec<f32>> {
    let narrow: Vec<Vec<f32>> = lists.iter().flatten().filter_map(|summand| narrow_product(rows, summand)).collect();
    if narrow.is_empty() {
        return sums_of_whole(rows, lists);
    }
    sums_of_whole(rows, &taken_apart(rows, lists, &narrow))
}

/// The lists with two products, `x W` and `-(x A) B`, for each with `W - A B`; `narrow` has their `-(x A)` in order.
fn taken_apart<'a>(rows: usize, lists: &[Vec<Summand<'a>>], narrow: &'a [Vec<f32>]) -> Vec<Vec<Summand<'a>>> {
    let mut narrow = narrow.iter();
    let mut apart = Vec::with_capacity(lists.len());
    for list in lists {
        let mut summands = Vec::with_capacity(2 * list.len());
        for summand in list {
            match (summand.weight, narrow_width(rows, summand)) {
                (Weight::PackedLess(less), Some(width)) => {
                    let (packed, b) = less.parts();
                    let h = narrow.next().map_or(&[][..], Vec::as_slice);
                    summands.push(Summand { weight: Weight::Packed(packed), ..*summand });
                    summands.push(Summand::of_factor(Matrix::new(h, rows, width), b));
                }
                _ => summands.push(*summand),
            }
        }
        apart.push(summands);
    }
    apart
}

/// The rank of what is subtracted from a packed weight, if its product is taken apart: not that of a few rows.
fn narrow_width(rows: usize, summand: &Summand<'_>) -> Option<usize> {
    match summand.weight {
        Weight::PackedLess(less) if rows > most_rows() => Some(less.parts().1.rows()),
        _ => None,
    }
}

/// `-(x A)` of a product that is taken apart.
fn narrow_product(rows: usize, summand: &Summand<'_>) -> Option<Vec<f32>> {
    match summand.weight {
        Weight::PackedLess(less) if narrow_width(rows, summand).is_some() => Some(less.narrow_product(summand.x)),
        _ => None,
    }
}

fn sums_of_whole(rows: usize, lists: &[Vec<Summand<'_>>]) -> Vec<Vec<f32>> {
    #[cfg(target_arch = "x86_64")]
    if rows > most_rows() && lists.iter().flatten().all(has_panels) {
        return match Instructions::used() {
            Instructions::Avx512 | Instructions::Avx512Bf16 => by_panels::<Avx512>(rows, lists),
            Instructions::Avx2 => by_panels::<Avx2>(rows, lists),
            Instructions::Portable => one_by_one(rows, lists),
        };
    }
    one_by_one(rows, lists)
}

/// The products one after the other.
fn one_by_one(rows: usize, lists: &[Vec<Summand<'_>>]) -> Vec<Vec<f32>> {
    let sum = |list: &Vec<Summand<'_>>| {
        let mut out = vec![0.0; rows * list[0].weight.columns()];
        if out.is_empty() {
            return out;
        }
        let mut update = Update::Overwrite;
        for Summand { x, weight, precision } in list {
            let [row_stride, _] = x.strides();
            match weight {
                Weight::F32(weight) if row_stride != x.columns() || *precision != MatmulPrecision::used() => {
                    Product::new(*x, *weight).at_precision(*precision).compute(&mut out, update);
                }
                weight if row_stride == x.columns() => {
                    weight.multiply(&mut out, &x.data()[..rows * x.columns()], update)
                }
                weight => {
                    let copy: Vec<f32> = (0..rows).flat_map(|row| x.row(row)).copied().collect();
                    weight.multiply(&mut out, &copy, update);
                }
            }
            update = Update::Add;
        }
        out
    };
    lists.iter().map(sum).collect()
}

#[cfg(target_arch = "x86_64")]
fn has_panels(summand: &Summand<'_>) -> bool {
    match summand.weight {
        Weight::F32(weight) => weight.has_contiguous_axis(),
        Weight::Bf16(_) | Weight::Packed(_) => summand.x.columns() > 0,
        // A product of few rows; others are two summands.
        Weight::PackedLess(_) => false,
    }
}

/// Whether the kernel of bf16 multiplies.
#[cfg(target_arch = "x86_64")]
fn is_bf16(summand: &Summand<'_>) -> bool {
    let applies = match summand.weight {
        Weight::PackedLess(_) => false,
        Weight::F32(_) => summand.precision.arithmetic() == Arithmetic::Bf16,
        Weight::Bf16(_) => true,
        Weight::Packed(weight) => weight.precision() == Precision::Bf16,
    };
    applies && avx512::has_bf16()
}

#[cfg(target_arch = "x86_64")]
fn by_panels<'a, K: F32Kernel + 'a>(rows: usize, lists: &'a [Vec<Summand<'a>>]) -> Vec<Vec<f32>> {
    // Products of the same activations share their rounded copy.
    let mut rounded: Vec<(Matrix<'_>, Vec<u32>)> = Vec::new();
    for summand in lists.iter().flatten() {
        if is_bf16(summand) && !rounded.iter().any(|(other, _)| is_same(*other, summand.x)) {
            rounded.push((summand.x, paired_matrix(summand.x)));
        }
    }
    let mut results: Vec<Vec<f32>> =
        lists.iter().map(|list| Vec::with_capacity(rows * list[0].weight.columns())).collect();
    let terms = |list: &'a [Summand<'a>]| list.iter().map(|summand| term::<K>(*summand, &rounded)).collect();
    let sums: Vec<Sum<'_>> = lists
        .iter()
        .zip(&mut results)
        .map(|(list, result)| {
            let columns = list[0].weight.columns();
            let out = Output { data: result.as_mut_ptr(), stride: columns };
            Sum { out, columns, update: Update::Overwrite, terms: terms(list) }
        })
        .collect();
    let work: usize =
        lists.iter().flatten().map(|Summand { x, weight, .. }| rows * x.columns() * weight.columns()).sum();
    #[allow(
        unsafe_code,
        reason = "functions compiled for instructions that the processor has write to memory of the result's size"
    )]
    // SAFETY: the kernels assert that the processor has the instructions. Each result has room for its rows and columns, and all of them are
    // written before its length is set.
    unsafe {
        panels::compute_sums(rows, &sums, work >= PARALLEL);
        drop(sums);
        for (list, result) in lists.iter().zip(&mut results) {
            result.set_len(rows * list[0].weight.columns());
        }
    }
    results
}

/// The product as a term of panels. `rounded` has the rounded copy of its activations if the kernel of bf16 multiplies.
#[cfg(target_arch = "x86_64")]
fn term<'a, K: F32Kernel + 'a>(summand: Summand<'a>, rounded: &'a [(Matrix<'a>, Vec<u32>)]) -> Box<dyn Term + 'a> {
    let Summand { x, weight, .. } = summand;
    assert_eq!(x.columns(), weight.rows(), "operands of a product");
    if is_bf16(&summand) {
        let pairs = rounded.iter().find(|(other, _)| is_same(*other, x)).map_or(&[][..], |(_, pairs)| pairs);
        match weight {
            Weight::Bf16(weight) => return avx512::bf16_term(pairs, x.rows(), weight),
            Weight::Packed(weight) => return avx512::packed_bf16_term(pairs, x.rows(), weight),
            Weight::F32(weight) => return avx512::rounded_term(pairs, x.rows(), weight),
            Weight::PackedLess(_) => {}
        }
    }
    match weight {
        Weight::F32(weight) => f32_panels::term::<K>(x, weight, 1.0),
        Weight::Bf16(weight) => f32_panels::widened_term::<K>(x, weight),
        Weight::Packed(weight) => f32_panels::widened_term::<K>(x, weight),
        Weight::PackedLess(_) => unreachable!("such a product has no panels"),
    }
}

/// Whether two views are the same part of the same matrix.
#[cfg(target_arch = "x86_64")]
fn is_same(a: Matrix<'_>, b: Matrix<'_>) -> bool {
    std::ptr::eq(a.data().as_ptr(), b.data().as_ptr())
        && [a.rows(), a.columns()] == [b.rows(), b.columns()]
        && a.strides() == b.strides()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::bf16::Bf16Matrix;
    use crate::packed::{PackedFormat, PackedMatrix, PackedView};
    use crate::packed_less::PackedLess;
    use crate::testing::values;

    #[test]
    fn weights_in_f32_are_rounded_at_medium_precision_and_factors_are_not() {
        for (rows, k, n) in [(33, 70, 45), (100, 64, 130)] {
            let (x, w, b) = (values(rows * k, 1), values(k * n, 2), values(k * n, 3));
            let x = Matrix::new(&x, rows, k);
            let [weight, factor] = [&w, &b].map(|values| Matrix::new(values, k, n));
            let medium = Summand { precision: MatmulPrecision::Medium, ..Summand::of_weight(x, Weight::F32(weight)) };
            let found = sums(rows, &[vec![medium, Summand::of_factor(x, factor)]]);
            let mut expected = vec![0.0; rows * n];
            Product::new(x, weight).at_precision(MatmulPrecision::Medium).compute(&mut expected, Update::Overwrite);
            Product::new(x, factor).compute(&mut expected, Update::Add);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (found, expected) in found[0].iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5 * largest, "{found}, not {expected}");
            }
        }
    }

    #[test]
    fn sums_of_products_are_those_of_the_products_one_after_the_other() {
        for (rows, k, n) in [(1, 5, 7), (9, 40, 33), (70, 385, 100), (1100, 30, 20), (40, 33, 0)] {
            let (x, narrow) = (values(rows * k, 1), values(rows * 40, 2));
            let (w, b, other) = (values(k * n, 3), values(16 * n, 4), values(11 * k, 5));
            let rounded: Vec<bf16> = values(n * k, 6).into_iter().map(bf16::from_f32).collect();
            let x = Matrix::new(&x, rows, k);
            // Columns 3 to 18 of 40.
            let part = Matrix::new(&narrow, rows, 40).column_range(3, 19);
            let lists = [
                vec![
                    Summand::of_weight(x, Weight::F32(Matrix::new(&w, k, n))),
                    Summand::of_factor(part, Matrix::new(&b, 16, n)),
                ],
                vec![Summand::of_weight(x, Weight::F32(Matrix::new(&other, 11, k).transposed()))],
                vec![
                    Summand::of_weight(x, Weight::Bf16(Bf16Matrix::new(&rounded, n, k).transposed())),
                    Summand::of_weight(x, Weight::Bf16(Bf16Matrix::new(&rounded, k, n))),
                ],
            ];
            assert_eq!(sums(rows, &lists), one_by_one(rows, &lists), "{rows} x {k} x {n}");
        }
    }

    #[test]
    fn a_packed_weight_less_a_product_is_two_summands_in_the_place_of_one() {
        for rows in [1, 9, 70] {
            let (k, n) = (64, 96);
            let (x, a, b, w) = (values(rows * k, 1), values(k * 5, 2), values(5 * n, 3), values(k * n, 4));
            let packed = PackedMatrix::pack(PackedFormat::NF4, [n, k], &w).unwrap();
            let (a, b) = (Matrix::new(&a, 5, k).transposed(), Matrix::new(&b, 5, n));
            let less = Weight::PackedLess(PackedLess::new(PackedView::new(&packed), a, b));
            let (x, w) = (Matrix::new(&x, rows, k), Matrix::new(&w, k, n));
            let lists = [
                vec![Summand::of_weight(x, less), Summand::of_weight(x, Weight::F32(w))],
                vec![Summand::of_weight(x, less)],
            ];
            for (found, expected) in sums(rows, &lists).iter().zip(one_by_one(rows, &lists)) {
                let size = expected.iter().fold(1f32, |size, value| size.max(value.abs()));
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * size), "{rows} rows");
            }
        }
    }
}
