mod products;
mod storages;

use super::*;
use crate::blocks::BlockFormat;
use crate::head_loss::{HeadLoss, WantedGradients};
use crate::matrix::Matrix;
use crate::product::Update;
use crate::testing::values;
use crate::weight::Weight;

#[test]
fn a_format_is_written_and_read_by_its_name() {
    for format in PackedFormat::all() {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "q3".parse::<PackedFormat>().unwrap_err().to_string();
    assert!(error.starts_with("unknown packed format `q3`, expected one of nf4, nf4-single, fp4,"), "{error}");
}

#[test]
fn any_part_is_a_part_of_the_whole() {
    let shape = [5, 512];
    let dense = values(5 * 512, 1);
    for format in PackedFormat::packable() {
        let packed = PackedMatrix::pack(format, shape, &dense).unwrap();
        assert_eq!((packed.format(), packed.shape()), (format, shape));
        assert_eq!(packed.byte_count(), format.bytes(shape).unwrap(), "{format}");
        let narrow = packed.clone().with_precision(Precision::Bf16);
        let words = narrow.to_words();
        assert_eq!(words.capacity(), words.len(), "{format}: the words live as long as the weight");
        let bytes: Vec<u8> = words.into_iter().flat_map(i32::to_le_bytes).collect();
        assert_eq!(PackedMatrix::from_words(bytes.clone()).unwrap(), narrow);
        check_layout(&narrow);
        for end in (0..bytes.len()).step_by(61) {
            assert!(PackedMatrix::from_words(bytes[..end].to_vec()).is_err(), "{format}: {end} bytes");
        }
        let whole = packed.to_f32();
        for (rows, columns) in [(0..5, 0..512), (1..2, 3..4), (2..5, 31..290), (4..5, 256..512)] {
            let mut part = vec![0.0; rows.len() * columns.len()];
            packed.widen(rows.clone(), columns.clone(), &mut part);
            let expected: Vec<f32> = rows.flat_map(|row| whole[row * 512..][columns.clone()].to_vec()).collect();
            assert_eq!(part, expected, "{format}");
        }
    }
}

/// Checks that the layout of a matrix names the places of its parts.
fn check_layout(matrix: &PackedMatrix) {
    let words = matrix.to_words();
    let layout = WordLayout::read(words.len(), |range| words[range].to_vec()).unwrap();
    assert_eq!((layout.format, layout.shape), (matrix.format(), matrix.shape()));
    let bytes = |range: &Range<usize>, count: usize| -> Vec<u8> {
        words[range.clone()].iter().flat_map(|word| word.to_le_bytes()).take(count).collect()
    };
    let floats = |range: &Range<usize>| -> Vec<f32> {
        words[range.clone()].iter().map(|word| f32::from_bits(word.cast_unsigned())).collect()
    };
    match (&*matrix.storage, layout.parts) {
        (Storage::Blocks { bytes: expected, .. } | Storage::F16(expected), WordParts::Rows(rows)) => {
            assert_eq!(bytes(&rows, expected.len()), *expected);
        }
        (Storage::FourBit(parts), WordParts::FourBit { rounded_to, block, book, codes, scales }) => {
            assert_eq!((rounded_to, block, floats(&book)), (parts.rounded_to, parts.block, parts.values.to_vec()));
            assert_eq!(bytes(&codes, parts.codes.len()), parts.codes);
            match (&parts.scales, scales) {
                (BlockScales::Single(expected), ScaleWords::Single(scales)) => assert_eq!(floats(&scales), *expected),
                (BlockScales::Nested(nested), ScaleWords::Nested { codes, scales, book, offset }) => {
                    assert_eq!(bytes(&codes, nested.codes.len()), nested.codes);
                    assert_eq!((floats(&scales), floats(&book)), (nested.scales.clone(), nested.book.to_vec()));
                    assert_eq!(floats(&offset), [nested.offset]);
                }
                (scales, found) => panic!("{found:?} of {scales:?}"),
            }
        }
        (Storage::Grouped(grouped), WordParts::Grouped { codes, scales, zeros, groups, columns }) => {
            assert_eq!((bytes(&codes, grouped.codes.len()), groups), (grouped.codes.to_vec(), grouped.groups));
            assert_eq!(
                (floats(&scales), bytes(&zeros, grouped.zeros.len())),
                (grouped.scales.clone(), grouped.zeros.clone())
            );
            match (&grouped.columns, columns) {
                (ColumnGroups::Neighbours(expected), GroupWords::Neighbours(found)) => assert_eq!(found, *expected),
                (ColumnGroups::Each(expected), GroupWords::Each(found)) => {
                    let found: Vec<u32> = words[found].iter().map(|word| word.cast_unsigned()).collect();
                    assert_eq!(found, *expected);
                }
                (columns, found) => panic!("{found:?} of {columns:?}"),
            }
        }
        (storage, found) => panic!("{found:?} of {storage:?}"),
    }
    for end in 0..words.len().min(99) {
        assert!(WordLayout::read(end, |range| words[range].to_vec()).is_err(), "{end} words");
    }
}

#[test]
fn products_equal_those_of_the_widened_weight() {
    let [d_out, d_in] = [70, 512];
    let dense = values(d_out * d_in, 1);
    for format in PackedFormat::packable() {
        let packed = PackedMatrix::pack(format, [d_out, d_in], &dense).unwrap();
        let widened = packed.to_f32();
        let reference = Weight::F32(Matrix::new(&widened, d_out, d_in).transposed());
        let weight = Weight::Packed(PackedView::new(&packed));
        for rows in [1, 3, 40] {
            for (weight, reference) in [
                (weight, reference),
                (weight.transposed(), reference.transposed()),
                (weight.column_range(7, 61), reference.column_range(7, 61)),
                (weight.transposed().column_range(33, 290), reference.transposed().column_range(33, 290)),
                (weight.column_range(7, 61).transposed(), reference.column_range(7, 61).transposed()),
            ] {
                assert_eq!([weight.rows(), weight.columns()], [reference.rows(), reference.columns()]);
                assert_eq!(weight.at(3, 5), reference.at(3, 5));
                let x = values(rows * weight.rows(), 2);
                for update in [Update::Overwrite, Update::Add] {
                    let mut found = values(rows * weight.columns(), 3);
                    let mut expected = found.clone();
                    weight.multiply(&mut found, &x, update);
                    reference.multiply(&mut expected, &x, update);
                    let far = found.iter().zip(&expected).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
                    assert!(far < 1e-4, "{format}, {rows} rows: {far}");
                }
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_and_parts_of_another_size_are_refused() {
    let error = PackedMatrix::pack(PackedFormat::Blocks(BlockFormat::Q4K), [2, 100], &[0.0; 200]).unwrap_err();
    assert_eq!(error.to_string(), "rows of 100 values are not whole blocks of q4_k, which have 256");
    let error = PackedMatrix::from_blocks(BlockFormat::Q4_0, [2, 64], vec![0; 71]).unwrap_err();
    assert_eq!(error.to_string(), "the bytes of a matrix of [2, 64] in q4_0 should be 72, found 71");
}

#[test]
fn the_loss_of_a_packed_head_is_that_of_the_widened_head() {
    let [vocabulary, width, rows] = [1500, 256, 9];
    let dense = values(vocabulary * width, 1);
    let hidden = values(rows * width, 2);
    let targets: Vec<Option<usize>> = (0..rows).map(|row| (row != 3).then_some(row * 163)).collect();
    for format in [PackedFormat::Blocks(BlockFormat::Q6K), PackedFormat::Blocks(BlockFormat::Q8_0), PackedFormat::F16] {
        let packed = PackedMatrix::pack(format, [vocabulary, width], &dense).unwrap();
        let widened = packed.to_f32();
        let output = |weight| {
            let wanted = WantedGradients { hidden: true, weight: false };
            HeadLoss { hidden: &hidden, weight, targets: &targets }.compute(wanted)
        };
        let found = output(Weight::Packed(PackedView::new(&packed)));
        let expected = output(Weight::F32(Matrix::new(&widened, vocabulary, width).transposed()));
        assert!((found.loss - expected.loss).abs() < 1e-5 * expected.loss, "{format}");
        let far = found.d_hidden.iter().zip(&expected.d_hidden).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
        assert!(far < 1e-5, "{format}: {far}");
    }
}
