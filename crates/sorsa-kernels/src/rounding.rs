//! Values that the graph keeps in bf16, at half of the memory, while gradients pass as f32.

use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, TensorData, bf16};
use rayon::prelude::*;

use super::simd::wide;
use super::storage::{Tracked, Values, contiguous, floats, shape};

/// Elements of one task.
const ELEMENTS: usize = 1 << 16;

/// The nearest bf16 number, ties to even, as its bits; NaN stays NaN. No branch: a loop over it becomes vector
/// instructions.
#[inline(always)]
pub(super) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (bits >> 16) as u16
}

/// The elements of a contiguous tensor in f32 or bf16.
#[derive(Clone, Copy)]
pub(super) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    pub fn of(tensor: &'a Values) -> Self {
        match tensor.dtype() {
            DType::BF16 => Self::Bf16(tensor.as_slice().expect("bf16 and made contiguous")),
            _ => Self::F32(floats(tensor)),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The `length` elements from `start` on as f32, in `buffer` where they are not that.
    #[inline(always)]
    pub fn read<'b>(&self, start: usize, length: usize, buffer: &'b mut [f32]) -> &'b [f32]
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

#[derive(Debug)]
struct Rounded;

impl Backward<Flex, 1> for Rounded {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            gradients.register::<Flex>(node.id, gradient);
        }
    }
}

/// The same values rounded to bf16, whose gradients are those of the values.
pub(super) fn tracked(values: Tracked) -> Tracked {
    if !values.is_tracked() {
        return values;
    }
    let prepared = Rounded.prepare::<NoCheckpointing>([values.node()]).compute_bound();
    prepared.stateless(round_all(values.into_primitive()))
}

fn round_all(values: Values) -> Values {
    let values = contiguous(values);
    let mut rounded = vec![bf16::ZERO; floats(&values).len()];
    rounded.par_chunks_mut(ELEMENTS).zip(floats(&values).par_chunks(ELEMENTS)).for_each(|(rounded, values)| {
        wide(
            #[inline(always)]
            || rounded.iter_mut().zip(values).for_each(|(out, x)| *out = bf16::from_bits(round(*x))),
        );
    });
    Values::from_data(TensorData::new::<bf16, _>(rounded, shape(&values)))
}

#[cfg(test)]
mod tests {
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
}
