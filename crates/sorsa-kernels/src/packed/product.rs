//! Products with a packed weight: whether they are those of bf16 or of f32.

#[cfg(target_arch = "x86_64")]
use super::Precision;
use super::view::PackedView;
#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::product::Update;
use crate::widened;
#[cfg(target_arch = "x86_64")]
use crate::widened::few_rows::{self, Bf16Tiles};

/// The product `x W`.
///
/// A row of `out` depends on the same row of `x`, and on whether there are few rows; neither on the other rows nor, with AVX-512, on the
/// number of threads.
///
/// # Shapes
///
/// - `out`: `[rows, n]`, row-major
/// - `x`: `[rows, k]`, row-major
/// - `weight`: `[k, n]`
pub(crate) fn multiply(out: &mut [f32], x: &[f32], weight: PackedView<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
    let rows = out.len() / n.max(1);
    assert_eq!(out.len(), rows * n, "a product with {n} columns");
    assert_eq!(x.len(), rows * k, "[{rows}, {k}] times [{k}, {n}]");
    if out.is_empty() {
        return;
    }
    if k == 0 {
        if update == Update::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if weight.precision() == Precision::Bf16 && avx512::has_bf16() {
        return match rows <= few_rows::MOST {
            true => few_rows::multiply(out, weight, update, &Bf16Tiles::new(x, weight)),
            false => avx512::multiply_packed_bf16(out, x, weight, update),
        };
    }
    widened::multiply(out, x, weight, update);
}
