//! Activations rounded to bf16, as a kernel reads them.

use rayon::prelude::*;

use crate::fused::simd::wide;

/// The nearest bf16 number, ties to even, as its bits; NaN stays NaN. No branch: a loop over it becomes vector
/// instructions.
#[inline(always)]
pub(in crate::fused) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

/// Rows `[rows, k]` rounded, each padded with zeros to `width` elements.
pub(in crate::fused) fn rounded_rows(x: &[f32], k: usize, width: usize) -> Vec<u16> {
    let mut rounded = vec![0; x.len() / k * width];
    wide(
        #[inline(always)]
        || {
            for (out, row) in rounded.chunks_exact_mut(width).zip(x.chunks_exact(k)) {
                out.iter_mut().zip(row).for_each(|(out, x)| *out = round(*x));
            }
        },
    );
    rounded
}

/// Rows `[rows, k]` rounded, two neighbours in `k` to an element, the earlier in its lower half; a last element may be of
/// one number and zero.
pub(in crate::fused) fn paired_rows(x: &[f32], k: usize) -> Vec<u32> {
    /// Elements from which other threads help.
    const PARALLEL: usize = 1 << 15;
    let pairs = k.div_ceil(2);
    let mut paired = vec![0; x.len() / k * pairs];
    let both = |low: f32, high: f32| u32::from(round(low)) | u32::from(round(high)) << 16;
    let lines = paired.par_chunks_exact_mut(pairs).zip(x.par_chunks_exact(k));
    let least = if x.len() < PARALLEL { usize::MAX } else { 1 };
    lines.with_min_len(least).for_each(|(out, row)| {
        wide(
            #[inline(always)]
            || {
                let (whole, rest) = row.as_chunks::<2>();
                out.iter_mut().zip(whole).for_each(|(out, [low, high])| *out = both(*low, *high));
                if let [last] = rest {
                    out[pairs - 1] = both(*last, 0.0);
                }
            },
        );
    });
    paired
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;

    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 1.0 + 1.0 / 256.0];
        let spread = (0..100_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
        for x in special.into_iter().chain(spread) {
            let (found, expected) = (bf16::from_bits(round(x)), bf16::from_f32(x));
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{x:e}: {found:?}");
        }
    }

    #[test]
    fn neighbours_share_an_element_and_a_last_one_is_alone() {
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let pair = |a: f32, b: f32| u32::from(round(a)) | u32::from(round(b)) << 16;
        assert_eq!(paired_rows(&x, 3), [pair(0.0, 1.0), pair(2.0, 0.0), pair(3.0, 4.0), pair(5.0, 0.0)]);
        assert_eq!(paired_rows(&x, 2), [pair(0.0, 1.0), pair(2.0, 3.0), pair(4.0, 5.0)]);
    }
}
