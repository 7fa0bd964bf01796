//! Every kernel beside the sums of its terms in f64, for every storage.

use half::bf16;

use super::*;
use crate::blocks::BlockFormat;
#[cfg(target_arch = "x86_64")]
use crate::f32_panels::multiply_widened;
use crate::four_bit::CodeBook;
use crate::product::Update;
use crate::testing::values;
use crate::weight::Weight;
use crate::widened::{self, few_rows};

/// Numbers without a pattern, below `end`.
fn integers(count: usize, end: u32, seed: u32) -> Vec<i32> {
    let unit = values(count, seed).into_iter().map(|value| (value + 1.0) / 2.0);
    unit.map(|unit| ((f64::from(unit) * f64::from(end)) as u32).cast_signed()).collect()
}

/// A matrix of GPTQ with random codes.
fn gptq(bits: GptqBits, [rows, columns]: [usize; 2], group: usize, column_groups: Option<Vec<i32>>) -> PackedMatrix {
    let per_word = if bits == GptqBits::Four { 8 } else { 4 };
    let groups = columns.div_ceil(group);
    let parts = GptqParts {
        bits,
        codes: integers(rows * columns / per_word, u32::MAX, 4),
        zeros: integers(rows * groups / per_word, u32::MAX, 5),
        zero_points: ZeroPoints::Plain,
        scales: values(rows * groups, 6).into_iter().map(|value| value / 8.0).collect(),
        group,
        column_groups,
    };
    PackedMatrix::from_gptq([rows, columns], parts).unwrap()
}

/// A matrix of every storage that such a shape can have.
fn matrices(shape: [usize; 2]) -> Vec<PackedMatrix> {
    let [rows, columns] = shape;
    let dense = values(rows * columns, 1);
    let formats = PackedFormat::packable().filter(|format| format.takes_columns(columns));
    let mut matrices: Vec<_> = formats.map(|format| PackedMatrix::pack(format, shape, &dense).unwrap()).collect();
    for (rounded_to, block) in [(RoundedTo::F16, 32), (RoundedTo::Bf16, 128), (RoundedTo::Bf16, 24)] {
        let (book, count) = (CodeBook::Nf4, rows * columns);
        let (codes, scales) = crate::four_bit::encode(&dense, book, block);
        assert_eq!(codes.len(), count.div_ceil(2));
        let (values, scales) = (book.values(), BlockScales::Single(scales));
        let parts = FourBitParts { book, values, codes: codes.into(), block, scales, rounded_to };
        matrices.push(PackedMatrix::from_four_bit(shape, parts).unwrap());
    }
    if rows.is_multiple_of(8) && columns.is_multiple_of(8) {
        let scattered = integers(columns, columns.div_ceil(32) as u32, 7);
        matrices.push(gptq(GptqBits::Four, shape, 32, None));
        matrices.push(gptq(GptqBits::Four, shape, 24, None));
        matrices.push(gptq(GptqBits::Four, shape, 32, Some(scattered)));
        matrices.push(gptq(GptqBits::Eight, shape, columns, None));
        let words = |count, seed| integers(count / 8, u32::MAX, seed);
        let groups = columns.div_ceil(64);
        let parts = AwqParts {
            codes: words(rows * columns, 8),
            zeros: words(rows * groups, 9),
            scales: values(rows * groups, 10),
            group: 64,
        };
        matrices.push(PackedMatrix::from_awq(shape, parts).unwrap());
    }
    matrices
}

/// `[d_out, d_in]`: ones; odd sizes; one more and one less than tiles, panels, parts and blocks.
const SHAPES: [[usize; 2]; 8] = [[1, 1], [3, 45], [37, 32], [33, 288], [16, 96], [131, 256], [8, 800], [2, 1001]];

#[test]
fn values_are_the_same_to_the_bit_with_and_without_vector_instructions() {
    for shape in SHAPES {
        for matrix in matrices(shape) {
            let [rows, columns] = shape;
            for part in [0..columns, columns / 2 / 32 * 32..columns, columns / 3..columns] {
                let mut portable = vec![0.0; rows * part.len()];
                matrix.widen_portable(0..rows, part.clone(), &mut portable);
                let mut found = vec![0.0; portable.len()];
                matrix.widen(0..rows, part.clone(), &mut found);
                assert_eq!(found, portable, "{} {shape:?} {part:?}", matrix.format());
                let mut narrow = vec![bf16::ZERO; portable.len()];
                matrix.widen_bf16(0..rows, part.clone(), &mut narrow);
                let expected: Vec<bf16> = portable.into_iter().map(bf16::from_f32).collect();
                assert_eq!(narrow, expected, "{} {shape:?} {part:?}", matrix.format());
            }
        }
    }
}

#[test]
fn random_blocks_of_every_format_are_widened_like_the_reference() {
    for format in BlockFormat::ALL {
        let bytes = storages::golden("ggml_blocks", &format!("{format}.bytes"));
        let expected = storages::floats("ggml_blocks", &format!("{format}.f32"));
        let matrix = PackedMatrix::from_blocks(format, [1, expected.len()], bytes).unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(matrix.to_f32()), bits(expected), "{format}");
    }
}

type Multiply = fn(&mut [f32], &[f32], PackedView<'_>, Update);

/// Whether a kernel rounds its activations to bf16.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activations {
    Exact,
    Rounded,
}

/// Views of a matrix, of whole pieces and not.
fn views(view: PackedView<'_>) -> Vec<PackedView<'_>> {
    let mut views = vec![view, view.transposed()];
    for whole in [view, view.transposed()] {
        let columns = whole.columns();
        if columns > 100 {
            views.extend([whole.column_range(32, 64), whole.column_range(7, 72).transposed()]);
        }
    }
    views
}

fn agrees(multiply: Multiply, rows: &[usize], precision: Precision, activations: Activations) {
    for matrix in SHAPES.into_iter().flat_map(matrices) {
        for view in views(PackedView::new(&matrix.clone().with_precision(precision))) {
            let (k, n) = (view.rows(), view.columns());
            let mut columns = vec![0.0; k * n];
            for (column, values) in columns.chunks_exact_mut(k).enumerate() {
                view.column(column, values);
            }
            for (&rows, update) in rows.iter().zip([Update::Overwrite, Update::Add].into_iter().cycle()) {
                let (mut x, start) = (values(rows * k, 2), values(rows * n, 3));
                let mut out = start.clone();
                multiply(&mut out, &x, view, update);
                if activations == Activations::Rounded {
                    x.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                }
                // Every element of a small result, and some of a large one in every row and column.
                for index in (0..rows * n).step_by(if rows * n > 1000 { 17 } else { 1 }) {
                    let (row, column) = (index / n, index % n);
                    let before = if update == Update::Add { f64::from(start[index]) } else { 0.0 };
                    let (mut exact, mut size) = (before, before.abs());
                    for (x, w) in x[row * k..][..k].iter().zip(&columns[column * k..][..k]) {
                        let term = f64::from(*x) * f64::from(*w);
                        (exact, size) = (exact + term, size + term.abs());
                    }
                    // Sums of k terms in f32, in some order: a few units of rounding, far below k of them.
                    let bound = (2.0 + (k as f64).sqrt()) * size * f64::from(f32::EPSILON) + 1e-30;
                    let far = (f64::from(out[index]) - exact).abs();
                    let format = matrix.format();
                    assert!(far <= bound, "{format} {view:?} {rows} rows: {}, not {exact}", out[index]);
                }
            }
        }
    }
}

#[test]
fn products_without_avx512_are_exact_to_the_sums_of_f32() {
    for precision in [Precision::F32, Precision::Bf16] {
        agrees(
            |out, x, weight, update| widened::multiply_portable(out, x, weight, update),
            &[1, 13],
            precision,
            Activations::Exact,
        );
        #[cfg(target_arch = "x86_64")]
        if crate::Instructions::Avx2.is_available() {
            agrees(
                |out, x, weight, update| multiply_widened::<crate::avx2::Avx2>(out, x, weight, update),
                &[2, 13],
                precision,
                Activations::Exact,
            );
        }
        let few: Multiply =
            |out, x, view, update| few_rows::multiply(out, view, update, &few_rows::F32Tiles::new(x, view));
        agrees(few, &[1, 7], precision, Activations::Exact);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn products_in_f32_by_avx512_are_exact_to_the_sums_of_f32() {
    if !avx512::has_f32() {
        return;
    }
    agrees(multiply, &[1, 4, 13, few_rows::MOST + 5], Precision::F32, Activations::Exact);
    // On a processor without instructions for bf16, weights are rounded to it and activations are not.
    agrees(
        |out, x, weight, update| multiply_widened::<avx512::Avx512>(out, x, weight, update),
        &[2, 13],
        Precision::Bf16,
        Activations::Exact,
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn products_in_bf16_by_avx512_are_those_of_rounded_activations() {
    if !avx512::has_bf16() {
        return;
    }
    agrees(multiply, &[1, 2, 3, 4, 5, 13, few_rows::MOST + 5], Precision::Bf16, Activations::Rounded);
    // Few rows, too, by the kernel for many.
    agrees(avx512::multiply_packed_bf16, &[4], Precision::Bf16, Activations::Rounded);
}

#[test]
fn large_products_on_all_threads_have_the_rows_of_small_ones() {
    let shape = [420, 768];
    let matrix = PackedMatrix::pack(PackedFormat::Blocks(BlockFormat::Q4K), shape, &values(420 * 768, 1)).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let matrix = matrix.clone().with_precision(precision);
        let view = PackedView::new(&matrix);
        for weight in [Weight::Packed(view), Weight::Packed(view).transposed()] {
            let (k, n) = (weight.rows(), weight.columns());
            let product = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / k * n];
                weight.multiply(&mut out, x, Update::Overwrite);
                out
            };
            // Few rows, and many.
            for (rows, some) in [(4, 1), (10 * (few_rows::MOST + 1), few_rows::MOST + 1)] {
                let x = values(rows * k, 2);
                let parts: Vec<f32> = x.chunks_exact(some * k).flat_map(product).collect();
                let whole = product(&x);
                #[cfg(target_arch = "x86_64")]
                if avx512::has_f32() {
                    assert_eq!(whole, parts, "{precision:?} {rows} rows");
                    continue;
                }
                let far = whole.iter().zip(&parts).fold(0f32, |far, (a, b)| far.max((a - b).abs()));
                assert!(far < 1e-4, "{precision:?} {rows} rows: {far}");
            }
        }
    }
}

#[test]
fn rows_and_columns_are_widened_by_their_numbers() {
    let shape = [50, 256];
    for matrix in matrices(shape) {
        let whole = matrix.to_f32();
        let rows = [7, 0, 49, 7, 12];
        let expected: Vec<f32> = rows.iter().flat_map(|row| whole[row * 256..][..256].to_vec()).collect();
        assert_eq!(matrix.widen_rows(&rows), expected, "{}", matrix.format());
        let matrix = matrix.clone().with_precision(Precision::Bf16);
        let view = PackedView::new(&matrix);
        let mut column = vec![0.0; 256];
        view.column(7, &mut column);
        let rounded: Vec<f32> = expected[..256].iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
        assert_eq!(column, rounded, "{}", matrix.format());
        let mut column = vec![0.0; 50];
        view.transposed().column(9, &mut column);
        let rounded: Vec<f32> = (0..50).map(|row| bf16::from_f32(whole[row * 256 + 9]).to_f32()).collect();
        assert_eq!(column, rounded, "{}", matrix.format());
    }
    assert_eq!(matrices(shape)[0].widen_rows(&[]), []);
}
