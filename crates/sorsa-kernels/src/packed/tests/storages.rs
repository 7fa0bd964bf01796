//! Matrices that other programs packed.

use std::path::Path;

use half::{bf16, f16};

use super::*;
use crate::four_bit::CodeBook;

pub(super) fn golden(folder: &str, name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(super) fn floats(folder: &str, name: &str) -> Vec<f32> {
    golden(folder, name).as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn integers(name: &str) -> Vec<i32> {
    golden("grouped", name).as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
}

fn scales(name: &str) -> Vec<f32> {
    golden("grouped", name).as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
}

fn gptq(name: &str, bits: GptqBits, zero_points: ZeroPoints) -> GptqParts {
    GptqParts {
        bits,
        codes: integers(&format!("{name}.qweight")),
        zeros: integers(&format!("{name}.qzeros")),
        zero_points,
        scales: scales(&format!("{name}.scales")),
        group: 16,
        column_groups: Some(integers(&format!("{name}.g_idx"))),
    }
}

fn awq() -> AwqParts {
    let (codes, zeros) = (integers("awq.qweight"), integers("awq.qzeros"));
    AwqParts { codes, zeros, scales: scales("awq.scales"), group: 16 }
}

#[test]
fn values_of_gptq_and_awq_are_those_of_their_packages() {
    let four = gptq("gptq4", GptqBits::Four, ZeroPoints::LessOne);
    let matrices = [
        ("gptq4", 64, PackedMatrix::from_gptq([16, 64], GptqParts { column_groups: None, ..four.clone() })),
        ("gptq4", 64, PackedMatrix::from_gptq([16, 64], four)),
        ("gptq8", 64, PackedMatrix::from_gptq([16, 64], gptq("gptq8", GptqBits::Eight, ZeroPoints::LessOne))),
        (
            "gptq4_scattered",
            72,
            PackedMatrix::from_gptq([16, 72], gptq("gptq4_scattered", GptqBits::Four, ZeroPoints::Plain)),
        ),
        ("awq", 64, PackedMatrix::from_awq([16, 64], awq())),
    ];
    for (name, columns, matrix) in matrices {
        let matrix = matrix.unwrap();
        let expected = floats("grouped", &format!("{name}.f32"));
        assert_eq!(matrix.to_f32(), expected, "{name}");
        assert_eq!(matrix.format().name(), name.trim_end_matches("_scattered"));
        let bytes: Vec<u8> = matrix.to_words().into_iter().flat_map(i32::to_le_bytes).collect();
        for end in (0..bytes.len()).step_by(61) {
            assert!(PackedMatrix::from_words(bytes[..end].to_vec()).is_err(), "{name}: {end} bytes");
        }
        assert_eq!(PackedMatrix::from_words(bytes).unwrap(), matrix, "{name}");
        check_layout(&matrix);
        let mut part = vec![0.0; 2 * 31];
        matrix.widen(3..5, 21..52, &mut part);
        let columns = |row: usize| expected[row * columns + 21..row * columns + 52].to_vec();
        assert_eq!(part, [columns(3), columns(4)].concat(), "{name}");
    }
}

#[test]
fn a_zero_point_of_zero_borrows_from_its_neighbours_and_returns_it() {
    // Zero points 0, 1, 2 .. 7, less 1 in each place of the word: version 1 of the format, like GPTQModel writes it.
    let word = 0x7654_3210i32.wrapping_sub(0x1111_1111);
    let parts = GptqParts {
        bits: GptqBits::Four,
        codes: vec![0; 8],
        zeros: vec![word],
        zero_points: ZeroPoints::LessOne,
        scales: vec![1.0; 8],
        group: 8,
        column_groups: None,
    };
    let values = PackedMatrix::from_gptq([8, 8], parts).unwrap().to_f32();
    let expected: Vec<f32> = (0..8).flat_map(|row| [-(row as f32); 8]).collect();
    assert_eq!(values, expected);
}

#[test]
fn the_bytes_of_every_storage_are_counted() {
    let byte_count = |matrix: Result<PackedMatrix, PackedError>| matrix.unwrap().byte_count();
    // Codes, scales and zero points; columns in groups of any order name the group of each.
    assert_eq!(byte_count(PackedMatrix::from_awq([16, 64], awq())), 16 * 64 / 2 + 16 * 4 * (4 + 1));
    let scattered = gptq("gptq4_scattered", GptqBits::Four, ZeroPoints::Plain);
    assert_eq!(byte_count(PackedMatrix::from_gptq([16, 72], scattered)), 16 * 36 + 16 * 5 * (4 + 1) + 72 * 4);
    let eight = gptq("gptq8", GptqBits::Eight, ZeroPoints::LessOne);
    assert_eq!(byte_count(PackedMatrix::from_gptq([16, 64], eight)), 16 * 64 + 16 * 4 * (4 + 1));
    assert_eq!(byte_count(PackedMatrix::from_f16([3, 5], vec![f16::ONE; 15])), 30);
}

#[test]
fn values_of_bitsandbytes_are_rounded_to_the_dtype_of_the_packed_matrix() {
    for book in [CodeBook::Nf4, CodeBook::Fp4] {
        let name = book.name();
        let parts = FourBitParts {
            book,
            values: book.values(),
            codes: golden("four_bit", &format!("{name}.codes")).into(),
            block: 64,
            scales: BlockScales::Single(floats("four_bit", &format!("{name}.scales"))),
            rounded_to: RoundedTo::F32,
        };
        let values = |rounded_to| {
            let parts = FourBitParts { rounded_to, ..parts.clone() };
            PackedMatrix::from_four_bit([1, 1999], parts).unwrap().to_f32()
        };
        let halves = |kind: &str, widen: fn([u8; 2]) -> f32| -> Vec<f32> {
            golden("four_bit", &format!("{name}.{kind}")).as_chunks().0.iter().map(|bytes| widen(*bytes)).collect()
        };
        assert_eq!(values(RoundedTo::F32), floats("four_bit", &format!("{name}.f32")));
        assert_eq!(values(RoundedTo::F16), halves("f16", |bytes| f16::from_le_bytes(bytes).to_f32()));
        assert_eq!(values(RoundedTo::Bf16), halves("bf16", |bytes| bf16::from_le_bytes(bytes).to_f32()));
    }
}

#[test]
fn parts_that_do_not_fit_a_shape_are_refused() {
    let error = |result: Result<PackedMatrix, PackedError>| result.unwrap_err().to_string();
    let parts = || gptq("gptq4_scattered", GptqBits::Four, ZeroPoints::Plain);
    let gptq = |shape, parts| error(PackedMatrix::from_gptq(shape, parts));
    assert_eq!(gptq([16, 64], parts()), "the words of codes of a matrix of [16, 64] in gptq4 should be 128, found 144");
    assert_eq!(gptq([16, 60], parts()), "the codes of a matrix of [16, 60] in gptq4 do not fill words of 8");
    assert_eq!(gptq([12, 72], parts()), "the zero points of a matrix of [12, 72] in gptq4 do not fill words of 8");
    assert_eq!(
        gptq([16, 72], GptqParts { group: 0, ..parts() }),
        "groups of gptq4 should have at least one value, found 0"
    );
    assert_eq!(
        gptq([16, 72], GptqParts { group: 24, ..parts() }),
        "the words of zero points of a matrix of [16, 72] in gptq4 should be 6, found 10"
    );
    assert_eq!(
        gptq([16, 72], GptqParts { scales: vec![1.0; 3], ..parts() }),
        "the scales of a matrix of [16, 72] in gptq4 should be 80, found 3"
    );
    assert_eq!(
        gptq([16, 72], GptqParts { column_groups: Some(vec![0; 71]), ..parts() }),
        "the groups of columns of a matrix of [16, 72] in gptq4 should be 72, found 71"
    );
    let mut column_groups = vec![4; 72];
    (column_groups[7], column_groups[9]) = (-1, 5);
    assert_eq!(
        gptq([16, 72], GptqParts { column_groups: Some(column_groups), ..parts() }),
        "column 7 of a matrix in gptq4 is of group -1, expected 0 to 4; 2 such columns"
    );
    assert_eq!(
        error(PackedMatrix::from_awq([12, 64], awq())),
        "the codes of a matrix of [12, 64] in awq do not fill words of 8"
    );
    assert_eq!(
        error(PackedMatrix::from_awq([16, 63], awq())),
        "the words of codes of a matrix of [16, 63] in awq should be 126, found 128"
    );
    assert_eq!(
        error(PackedMatrix::from_f16([usize::MAX, 2], Vec::new())),
        format!("a matrix of [{}, 2] in f16 is larger than any memory", usize::MAX)
    );
    let error = error(PackedMatrix::pack(PackedFormat::Awq, [1, 8], &[0.0; 8]));
    assert!(error.starts_with("matrices in awq are read from files and cannot be packed here, expected one of nf4,"));
}
