//! f32 numbers rounded to bf16, and slices in either format.

use half::bf16;
use rayon::prelude::*;

use crate::simd::wide;

/// Elements of one task.
const ELEMENTS: usize = 1 << 16;

/// A slice in f32 or bf16.
#[derive(Debug, Clone, Copy)]
pub enum FloatSlice<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bf16.
    Bf16(&'a [bf16]),
}

impl<'a> FloatSlice<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `length` elements from `start` on in f32: a part of the slice itself, or widened into `buffer`.
    #[inline(always)]
    pub(crate) fn read<'b>(&self, start: usize, length: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => &values[start..start + length],
            Self::Bf16(values) => {
                let buffer = &mut buffer[..length];
                for (out, value) in buffer.iter_mut().zip(&values[start..start + length]) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
                buffer
            }
        }
    }
}

/// Rounds each value to the nearest bf16 number, ties to even; NaN stays NaN.
pub fn rounded_to_bf16(values: &[f32]) -> Vec<bf16> {
    let mut rounded = vec![bf16::ZERO; values.len()];
    rounded.par_chunks_mut(ELEMENTS).zip(values.par_chunks(ELEMENTS)).for_each(|(rounded, values)| {
        wide(
            #[inline(always)]
            || rounded.iter_mut().zip(values).for_each(|(out, x)| *out = bf16::from_bits(round(*x))),
        );
    });
    rounded
}

/// Widens each value to f32.
pub fn widened_from_bf16(values: &[bf16]) -> Vec<f32> {
    let mut widened = vec![0.0; values.len()];
    widened.par_chunks_mut(ELEMENTS).zip(values.par_chunks(ELEMENTS)).for_each(|(widened, values)| {
        wide(
            #[inline(always)]
            || {
                for (out, value) in widened.iter_mut().zip(values) {
                    *out = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
            },
        );
    });
    widened
}

/// The bits of the nearest bf16 number, ties to even; NaN stays NaN. The function has no branch, so the compiler turns a loop
/// over it into vector instructions.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_gives_the_rounded_numbers_back() {
        let values: Vec<f32> = (0..200_000u32).map(|i| (i as f32 - 1e5) * 0.37).collect();
        let rounded = rounded_to_bf16(&values);
        assert!(
            widened_from_bf16(&rounded).iter().zip(&values).all(|(found, x)| *found == bf16::from_f32(*x).to_f32())
        );
    }

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
}
