use burn::prelude::*;
use sorsa_kernels::four_bit::{CodeBook, NestedScales};
use sorsa_kernels::packed::{AwqParts, BlockScales, FourBitParts, GptqBits, GptqParts, RoundedTo, ZeroPoints};

use super::numbers::{floats, halves};
use super::*;
use crate::testing::leaf;

fn drawn(count: usize) -> Vec<f32> {
    leaf(count, 5, &Device::flex()).into_data().try_into_vec().unwrap()
}

/// Matrices of every format: those that are made from values, and those of files with their own peculiarities.
fn matrices() -> Vec<PackedMatrix> {
    let mut matrices: Vec<PackedMatrix> = PackedFormat::packable()
        .flat_map(|format| {
            [[6, 256], [5, 512]].map(|shape| PackedMatrix::pack(format, shape, &drawn(shape[0] * shape[1])).unwrap())
        })
        .collect();
    // Blocks that run over the ends of rows, the last of them incomplete, and rows that start within a byte.
    for format in [
        PackedFormat::NF4,
        PackedFormat::FourBit { book: CodeBook::Fp4, double_quantization: false },
        PackedFormat::F16,
    ] {
        matrices.push(PackedMatrix::pack(format, [7, 33], &drawn(7 * 33)).unwrap());
        matrices.push(PackedMatrix::pack(format, [130, 301], &drawn(130 * 301)).unwrap());
    }
    let codes: Vec<u8> = (0..64u8).map(|index| index.wrapping_mul(37)).collect();
    for rounded_to in [RoundedTo::F16, RoundedTo::Bf16] {
        let scales = BlockScales::Nested(NestedScales::encode(&[0.3, 0.01, 1.7, 0.2, 0.15, 0.4, 0.5, 0.6]));
        let values = CodeBook::Nf4.values();
        let parts =
            FourBitParts { book: CodeBook::Nf4, values, codes: codes.clone().into(), block: 16, scales, rounded_to };
        matrices.push(PackedMatrix::from_four_bit([4, 32], parts).unwrap());
    }
    let words = |count: usize| (0..count as i32).map(|index| index.wrapping_mul(0x1234_5677)).collect::<Vec<i32>>();
    let scales = |count: usize| (0..count).map(|index| 0.01 + index as f32 / 64.0).collect::<Vec<f32>>();
    for (bits, per_word) in [(GptqBits::Four, 8), (GptqBits::Eight, 4)] {
        for column_groups in [None, Some((0..40).map(|column| (7 * column) % 3).collect::<Vec<i32>>())] {
            let parts = GptqParts {
                bits,
                codes: words(40 / per_word * 16),
                zeros: words(3 * 16 / per_word),
                zero_points: ZeroPoints::LessOne,
                scales: scales(3 * 16),
                group: 16,
                column_groups,
            };
            matrices.push(PackedMatrix::from_gptq([16, 40], parts).unwrap());
        }
    }
    let parts = AwqParts { codes: words(35 * 2), zeros: words(3 * 2), scales: scales(3 * 16), group: 16 };
    matrices.push(PackedMatrix::from_awq([16, 35], parts).unwrap());
    matrices
}

#[test]
fn any_rows_are_widened_by_burns_operations_like_by_the_kernels() {
    for matrix in matrices() {
        let [rows, columns] = matrix.shape();
        let expected = matrix.to_f32();
        let stored = StoredMatrix::new(&PackedWeight::new(&matrix, &Device::flex()));
        for range in [0..rows, 1..3, rows - 1..rows] {
            let found = stored.rows(range.clone());
            assert_eq!(found.dims(), [range.len(), columns]);
            let found = found.into_data().try_into_vec::<f32>().unwrap();
            assert_eq!(found, expected[range.start * columns..range.end * columns], "{} {range:?}", matrix.format());
        }
        let ids: Vec<i32> = (0..9).map(|index| (index * 5 + 3) % rows as i32).collect();
        let found = stored.rows_of_ids(Tensor::from_data(TensorData::from(ids.as_slice()), &Device::flex()));
        let row = |id: &i32| expected[*id as usize * columns..][..columns].to_vec();
        let expected: Vec<f32> = ids.iter().flat_map(row).collect();
        assert_eq!(found.into_data().try_into_vec::<f32>().unwrap(), expected, "{}", matrix.format());
    }
}

#[test]
fn parts_are_all_rows() {
    let matrix = PackedMatrix::pack(PackedFormat::F16, [3, 4 << 20], &vec![0.5; 12 << 20]).unwrap();
    let stored = StoredMatrix::new(&PackedWeight::new(&matrix, &Device::flex()));
    assert_eq!(stored.parts().collect::<Vec<_>>(), [0..1, 1..2, 2..3]);
}

#[test]
fn every_half_and_floats_of_every_exponent_are_read() {
    let device = Device::flex();
    let bits: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00 || bits & 0x3ff == 0).collect();
    let byte = |shift: u16| {
        let bytes: Vec<i32> = bits.iter().map(|bits| i32::from(bits >> shift & 255)).collect();
        Tensor::<1, Int>::from_data(TensorData::from(bytes.as_slice()), &device)
    };
    let found = halves(byte(0), byte(8)).into_data().try_into_vec::<f32>().unwrap();
    let expected = bits.iter().map(|bits| burn::tensor::f16::from_bits(*bits).to_f32());
    assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    let bits: Vec<u32> = (0..=u16::MAX).map(|high| u32::from(high) << 16 | 0x1235).collect();
    let bits: Vec<u32> = bits.into_iter().filter(|bits| f32::from_bits(*bits).is_finite()).collect();
    let words: Vec<i32> = bits.iter().map(|bits| bits.cast_signed()).collect();
    let found = floats(Tensor::from_data(TensorData::from(words.as_slice()), &device)).into_data();
    let found = found.try_into_vec::<f32>().unwrap();
    assert!(found.iter().zip(bits).all(|(a, b)| a.to_bits() == b));
}
