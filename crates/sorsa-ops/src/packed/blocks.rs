//! The values of ggml's blocks. `sorsa_kernels::blocks` describes the formats; products and sums are rounded in the same order.

use burn::prelude::*;
use sorsa_kernels::BlockFormat;

use super::numbers::{float, halves, lower, signed, upper};

/// The values of whole blocks, f32.
///
/// # Shapes
///
/// - bytes: `[blocks, bytes of a block]`
/// - output: `[blocks, values of a block]`
pub(super) fn values(format: BlockFormat, bytes: Tensor<2, Int>) -> Tensor<2> {
    let block = Block { count: bytes.dims()[0], bytes };
    match format {
        BlockFormat::Q4_0 => (float(block.halves_of_bytes(2)) - 8.0) * block.half(0),
        BlockFormat::Q4_1 => float(block.halves_of_bytes(4)) * block.half(0) + block.half(2),
        BlockFormat::Q5_0 => (float(block.halves_of_bytes(6) + block.bits(2) * 16) - 16.0) * block.half(0),
        BlockFormat::Q5_1 => float(block.halves_of_bytes(8) + block.bits(4) * 16) * block.half(0) + block.half(2),
        BlockFormat::Q8_0 => float(signed(block.part(2, 32))) * block.half(0),
        BlockFormat::Q4K => block.with_scales_and_minima(block.levels(16)),
        BlockFormat::Q5K => {
            let high = block.part(16, 32);
            let bit = |place: i32| high.clone().bitwise_right_shift_scalar(place).bitwise_and_scalar(1);
            let high = Tensor::stack::<3>((0..8).map(bit).collect(), 1);
            block.with_scales_and_minima(block.levels(48) + high * 16)
        }
        BlockFormat::Q6K => {
            let low = block.part(0, 128).reshape([block.count, 2, 64]);
            let low = Tensor::cat(vec![lower(low.clone()), upper(low)], 2);
            let high = block.part(128, 64).reshape([block.count, 2, 32]);
            let quarter = |place: i32| high.clone().bitwise_right_shift_scalar(2 * place).bitwise_and_scalar(3);
            let high = Tensor::stack::<4>((0..4).map(quarter).collect(), 2).reshape([block.count, 2, 128]);
            let scales = float(signed(block.part(192, 16))) * block.half(208);
            let levels = float((low + high * 16).reshape([block.count, 16, 16])) - 32.0;
            (levels * scales.unsqueeze_dim::<3>(2)).reshape([block.count, 256])
        }
    }
}

/// The bytes of blocks.
struct Block {
    /// `[blocks, bytes of a block]`.
    bytes: Tensor<2, Int>,
    count: usize,
}

impl Block {
    /// So many bytes of each block, from byte `first` on.
    fn part(&self, first: usize, length: usize) -> Tensor<2, Int> {
        self.bytes.clone().narrow(1, first, length)
    }

    /// The f16 at byte `at` of each block, `[blocks, 1]`.
    fn half(&self, at: usize) -> Tensor<2> {
        halves(self.part(at, 1), self.part(at + 1, 1))
    }

    /// The lower halves of 16 bytes, then their upper halves: `[blocks, 32]`.
    fn halves_of_bytes(&self, first: usize) -> Tensor<2, Int> {
        let bytes = self.part(first, 16);
        Tensor::cat(vec![lower(bytes.clone()), upper(bytes)], 1)
    }

    /// The 32 bits of four bytes, `[blocks, 32]`.
    fn bits(&self, first: usize) -> Tensor<2, Int> {
        let bytes = self.part(first, 4);
        let bit = |place: i32| bytes.clone().bitwise_right_shift_scalar(place).bitwise_and_scalar(1);
        Tensor::stack::<3>((0..8).map(bit).collect(), 2).reshape([self.count, 32])
    }

    /// The lower four bits of the values of Q4_K and Q5_K, whose bytes start at `first`: `[blocks, 8, 32]`.
    fn levels(&self, first: usize) -> Tensor<3, Int> {
        let bytes = self.part(first, 128).reshape([self.count, 4, 32]);
        Tensor::stack::<4>(vec![lower(bytes.clone()), upper(bytes)], 2).reshape([self.count, 8, 32])
    }

    /// The values of Q4_K and Q5_K with these levels `[blocks, 8, 32]`.
    fn with_scales_and_minima(&self, levels: Tensor<3, Int>) -> Tensor<2> {
        let (scale, minimum, both) = (self.part(4, 4), self.part(8, 4), self.part(12, 4));
        let first = |six: &Tensor<2, Int>| six.clone().bitwise_and_scalar(63);
        let second = |four, six: Tensor<2, Int>| six.bitwise_right_shift_scalar(2).bitwise_and_scalar(48) + four;
        let scales = Tensor::cat(vec![first(&scale), second(lower(both.clone()), scale)], 1);
        let minima = Tensor::cat(vec![first(&minimum), second(upper(both), minimum)], 1);
        let scales = (float(scales) * self.half(0)).unsqueeze_dim::<3>(2);
        let minima = (float(minima) * self.half(2)).unsqueeze_dim::<3>(2);
        (float(levels) * scales - minima).reshape([self.count, 256])
    }
}
