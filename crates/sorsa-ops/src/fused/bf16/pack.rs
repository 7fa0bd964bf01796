//! Activations as pairs of bf16 numbers, in the order in which a kernel reads them.

use rayon::prelude::*;

use crate::fused::simd::wide;

/// The nearest bf16 number, ties to even, as its bits; NaN stays NaN. No branch: a loop over it becomes vector
/// instructions.
#[inline(always)]
pub(super) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

/// Rows `[rows, k]` rounded, each padded with zeros to `width` elements.
pub(super) fn rounded_rows(x: &[f32], k: usize, width: usize) -> Vec<u16> {
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

/// Rows `[rows, k]` as blocks of `height` rows, of which the last may be lower. In a block, for each pair of neighbours
/// in `k`, the pair of each row; a last pair may be of one number and zero.
pub(super) fn row_blocks(x: &[f32], k: usize, height: usize) -> Vec<u32> {
    let pairs = k.div_ceil(2);
    let mut packed = vec![0; x.len() / k * pairs];
    let block = |(out, x): (&mut [u32], &[f32])| {
        let rows = x.len() / k;
        let rounded = rounded_rows(x, k, 2 * pairs);
        for (index, row) in rounded.chunks_exact(2 * pairs).enumerate() {
            for (out, pair) in out[index..].iter_mut().step_by(rows).zip(row.chunks_exact(2)) {
                *out = u32::from(pair[0]) | u32::from(pair[1]) << 16;
            }
        }
    };
    let blocks = packed.par_chunks_mut(height * pairs).zip(x.par_chunks(height * k));
    if x.len() < 1 << 15 {
        blocks.with_min_len(usize::MAX).for_each(block)
    } else {
        blocks.for_each(block)
    }
    packed
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
    fn blocks_hold_the_pairs_of_their_rows_side_by_side() {
        let x: Vec<f32> = (0..9).map(|i| i as f32).collect();
        let pair = |a: f32, b: f32| u32::from(round(a)) | u32::from(round(b)) << 16;
        let expected = [pair(0.0, 1.0), pair(3.0, 4.0), pair(2.0, 0.0), pair(5.0, 0.0), pair(6.0, 7.0), pair(8.0, 0.0)];
        assert_eq!(row_blocks(&x, 3, 2), expected);
    }
}
