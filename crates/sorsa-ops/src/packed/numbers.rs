//! Numbers of files as tensors, from words of 32 bits in integer operations: on any device, without reading it.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

/// An f32 tensor with its numbers rounded to `dtype`; on the host if the device does not support this dtype.
pub fn rounded<const D: usize>(tensor: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    let device = tensor.device();
    if device.supports_dtype(DType::from(dtype)) {
        return tensor.cast(dtype).cast(FloatDType::F32);
    }
    Tensor::from_data(tensor.into_data().convert_dtype(dtype.into()).convert_dtype(DType::F32), &device)
}

/// The bytes of words, from the lowest of each on.
///
/// # Shapes
///
/// - words: `[n]`
/// - output: `[4 n]`, 0 to 255
pub(super) fn bytes(words: Tensor<1, Int>) -> Tensor<1, Int> {
    let count = words.dims()[0];
    let byte = |place: i32| words.clone().bitwise_right_shift_scalar(8 * place).bitwise_and_scalar(255);
    Tensor::stack::<2>((0..4).map(byte).collect(), 1).reshape([4 * count])
}

/// The lower half of each byte.
pub(super) fn lower<const D: usize>(bytes: Tensor<D, Int>) -> Tensor<D, Int> {
    bytes.bitwise_and_scalar(15)
}

/// The upper half of each byte.
pub(super) fn upper<const D: usize>(bytes: Tensor<D, Int>) -> Tensor<D, Int> {
    bytes.bitwise_right_shift_scalar(4)
}

/// The bytes with a sign, -128 to 127.
pub(super) fn signed<const D: usize>(bytes: Tensor<D, Int>) -> Tensor<D, Int> {
    let sign = bytes.clone().bitwise_right_shift_scalar(7);
    bytes - sign * 256
}

/// Integers as f32.
pub(super) fn float<const D: usize>(integers: Tensor<D, Int>) -> Tensor<D> {
    integers.cast(FloatDType::F32)
}

/// f16 numbers of two bytes each, as f32. Infinite ones stay infinite; those that are no numbers become infinite.
pub(super) fn halves<const D: usize>(low: Tensor<D, Int>, high: Tensor<D, Int>) -> Tensor<D> {
    let exponent = high.clone().bitwise_right_shift_scalar(2).bitwise_and_scalar(31);
    let fraction = high.clone().bitwise_and_scalar(3) * 256 + low;
    let significand = float(fraction + exponent.clone().clamp_max(1) * 1024);
    let sign = float(high.bitwise_right_shift_scalar(7)) * -2.0 + 1.0;
    let power = |exponent: i32| 2f32.powi(exponent.max(1) - 25);
    significand * powers(exponent, 31, power) * sign
}

/// f32 numbers of one word each. Infinite ones stay infinite; those that are no numbers become infinite.
pub(super) fn floats(words: Tensor<1, Int>) -> Tensor<1> {
    let exponent = words.clone().bitwise_right_shift_scalar(23).bitwise_and_scalar(255);
    let fraction = words.clone().bitwise_and_scalar(0x7f_ffff);
    // Between 1 and 2, or below 1 if the number is subnormal: exact.
    let significand = float(fraction + exponent.clone().clamp_max(1) * 0x80_0000) * 2f32.powi(-23);
    let sign = float(words.bitwise_right_shift_scalar(31).bitwise_and_scalar(1)) * -2.0 + 1.0;
    significand * powers(exponent, 255, |exponent| 2f32.powi(exponent.max(1) - 127)) * sign
}

/// The power of two of each exponent: infinite for the last one.
fn powers<const D: usize>(exponents: Tensor<D, Int>, last: i32, power: impl Fn(i32) -> f32) -> Tensor<D> {
    let table: Vec<f32> = (0..last).map(power).chain([f32::INFINITY]).collect();
    let device = exponents.device();
    let table = Tensor::<1>::from_data(TensorData::new::<f32, _>(table, [last as usize + 1]), (&device, DType::F32));
    looked_up(table, exponents)
}

/// The entry of `table` for each index.
pub(super) fn looked_up<const D: usize>(table: Tensor<1>, indices: Tensor<D, Int>) -> Tensor<D> {
    let shape = indices.shape();
    let count = shape.num_elements();
    table.select(0, indices.reshape([count])).reshape(shape)
}
