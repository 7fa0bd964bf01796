//! Products with a packed weight: some rows of the matrix are widened at a time.

use half::bf16;

use super::view::{Orientation, PackedView, Precision};
use crate::bf16::{self as bf16_product, Bf16Matrix};
use crate::matrix::Matrix;
use crate::product::{Product, Update};
use crate::weight::Weight;

/// Values that are widened at a time.
const WIDENED: usize = 1 << 18;

/// The product `x W`.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
    let rows = out.len() / n.max(1);
    if update == Update::Overwrite {
        out.fill(0.0);
    }
    let (stored_rows, columns) = (weight.stored_rows(), weight.stored_columns());
    let step = (WIDENED / columns.len().max(1)).max(1);
    let mut values = Vec::new();
    let mut partial = Vec::new();
    for first in stored_rows.clone().step_by(step) {
        let some = first..(first + step).min(stored_rows.end);
        values.resize(some.len() * columns.len(), 0.0);
        weight.matrix().widen(some.clone(), columns.clone(), &mut values);
        let narrow: Vec<bf16> = match weight.precision() {
            Precision::F32 => Vec::new(),
            Precision::Bf16 => values.iter().map(|value| bf16::from_f32(*value)).collect(),
        };
        let shape = [some.len(), columns.len()];
        let widened = match weight.precision() {
            Precision::F32 => Weight::F32(Matrix::new(&values, shape[0], shape[1])),
            Precision::Bf16 => Weight::Bf16(Bf16Matrix::new(&narrow, shape[0], shape[1])),
        };
        let offset = first - stored_rows.start;
        match weight.orientation() {
            Orientation::Stored => {
                let part: Vec<f32> =
                    x.chunks_exact(k).flat_map(|row| &row[offset..offset + some.len()]).copied().collect();
                add(out, &part, widened);
            }
            Orientation::Transposed => {
                partial.clear();
                partial.resize(rows * some.len(), 0.0);
                add(&mut partial, x, widened.transposed());
                for (out, partial) in out.chunks_exact_mut(n).zip(partial.chunks_exact(some.len())) {
                    out[offset..].iter_mut().zip(partial).for_each(|(out, value)| *out += value);
                }
            }
        }
    }
}

fn add(out: &mut [f32], x: &[f32], weight: Weight<'_>) {
    match weight {
        Weight::Bf16(matrix) => bf16_product::multiply(out, x, matrix, Update::Add),
        Weight::F32(matrix) => {
            let rows = out.len() / matrix.columns().max(1);
            Product::new(Matrix::new(x, rows, matrix.rows()), matrix).compute(out, Update::Add);
        }
        Weight::Packed(_) => unreachable!("a widened weight is not packed"),
    }
}
