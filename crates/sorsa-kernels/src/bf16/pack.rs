//! Activations rounded to bf16 and laid out for a kernel.

use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::rounding::round;
use crate::simd::wide;

/// Rounds rows `[rows, k]` and packs each pair of neighbours along `k` into one element, the earlier in the lower half. If `k`
/// is odd, the upper half of a row's last element is zero.
pub(crate) fn paired_rows(x: &[f32], k: usize) -> Vec<u32> {
    paired_matrix(Matrix::new(x, x.len() / k, k))
}

/// [`paired_rows`] of a matrix with contiguous rows of at least one element.
pub(crate) fn paired_matrix(x: Matrix<'_>) -> Vec<u32> {
    /// Elements from which the work runs on all threads.
    const PARALLEL: usize = 1 << 15;
    let pairs = x.columns().div_ceil(2);
    let mut paired = vec![0; x.rows() * pairs];
    let both = |low: f32, high: f32| u32::from(round(low)) | u32::from(round(high)) << 16;
    let lines = paired.par_chunks_exact_mut(pairs).enumerate();
    let least = if x.rows() * x.columns() < PARALLEL { usize::MAX } else { 1 };
    lines.with_min_len(least).for_each(|(row, out)| {
        wide(
            #[inline(always)]
            || {
                let (whole, rest) = x.row(row).as_chunks::<2>();
                out.iter_mut().zip(whole).for_each(|(out, [low, high])| *out = both(*low, *high));
                if let [last] = rest {
                    out[pairs - 1] = both(*last, 0.0);
                }
            },
        );
    });
    paired
}

/// Rounds a matrix with contiguous columns and packs each pair of neighbours along a row into one element, `[pairs, rows]`.
pub(crate) fn paired_columns(x: Matrix<'_>) -> Vec<u32> {
    let (rows, turned) = (x.rows(), x.transposed());
    let mut paired = vec![0; x.columns().div_ceil(2) * rows];
    paired.par_chunks_exact_mut(rows.max(1)).enumerate().for_each(|(pair, out)| {
        wide(
            #[inline(always)]
            || {
                let low = turned.row(2 * pair);
                out.iter_mut().zip(low).for_each(|(out, low)| *out = u32::from(round(*low)));
                if 2 * pair + 1 < turned.rows() {
                    let high = turned.row(2 * pair + 1);
                    out.iter_mut().zip(high).for_each(|(out, high)| *out |= u32::from(round(*high)) << 16);
                }
            },
        );
    });
    paired
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_an_element_and_an_odd_last_number_is_padded_with_zero() {
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let pair = |a: f32, b: f32| u32::from(round(a)) | u32::from(round(b)) << 16;
        assert_eq!(paired_rows(&x, 3), [pair(0.0, 1.0), pair(2.0, 0.0), pair(3.0, 4.0), pair(5.0, 0.0)]);
        assert_eq!(paired_rows(&x, 2), [pair(0.0, 1.0), pair(2.0, 3.0), pair(4.0, 5.0)]);
        // The rows 0 2 4 and 1 3 5.
        let turned = Matrix::new(&x, 3, 2).transposed();
        assert_eq!(paired_columns(turned), [pair(0.0, 2.0), pair(1.0, 3.0), pair(4.0, 0.0), pair(5.0, 0.0)]);
    }
}
