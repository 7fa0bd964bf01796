use burn::prelude::*;

use super::packed_embedding;
use crate::form::{FUSED_CALLS, without_fused};
use crate::packed::{PackedFormat, PackedWeight};
use crate::testing::packed;

#[test]
fn rows_of_a_packed_matrix_are_those_of_the_widened_one() {
    let device = Device::flex();
    for format in PackedFormat::packable() {
        let (weight, dense) = packed(format, [6, 256], &device);
        let weight: PackedWeight = weight;
        let ids = Tensor::<2, Int>::from_ints([[5, 0, 5], [2, 1, 3]], &device);
        let before = FUSED_CALLS.get();
        let fused = packed_embedding(&weight, ids.clone());
        assert_eq!(FUSED_CALLS.get(), before + 1, "the fused form did not run");
        let expected = burn::tensor::module::embedding(dense.transpose(), ids.clone());
        assert_eq!(fused.dims(), [2, 3, 256]);
        assert_eq!(fused.to_data(), expected.to_data(), "{format}");
        assert_eq!(without_fused(|| packed_embedding(&weight, ids)).to_data(), fused.to_data());
    }
}
