//! Products of few rows with a weight that is read in place and once, without packing. A unit fills one lane of a register: one f32
//! number, or two bf16 numbers that are neighbours along `k`.
//!
//! If rows of the weight are contiguous, some lines of it are read side by side, and the lines after them are prefetched. Their products
//! with a few rows of `x` are summed in registers before the result is changed. If columns are contiguous, units of several columns and of several rows of `x`
//! are multiplied lane by lane, and the lanes are added in the end.

use std::arch::x86_64::*;
use std::ops::Range;

use super::bf16_product::{interleaved, load, pairs_of};
use super::mask;
use crate::bf16::{Bf16Matrix, Order, paired_rows};
use crate::few_rows::by_columns;
use crate::instructions::Instructions;
use crate::matrix::Matrix;
use crate::panels::Left;
use crate::product::Update;

/// Units of `k` whose products stay in registers while they are added.
const DEPTH: usize = 8;
/// The most rows of `x` beside strips of eight registers, so that their sums are in registers.
const WIDE: usize = 3;
/// The most rows of `x` beside narrower strips.
const NARROW: usize = 6;

/// Like [`crate::bf16::multiply`].
///
/// # Panics
///
/// Panics if the processor lacks the instructions.
pub fn multiply_bf16(out: &mut [f32], x: &[f32], weight: Bf16Matrix<'_>, update: Update) {
    let (k, n) = (weight.rows(), weight.columns());
    let (rows, pairs) = (x.len() / k, k.div_ceil(2));
    let units = paired_rows(x, k);
    let x = Left { units: &units, rows, row_stride: pairs, unit_stride: 1 };
    by_columns(out, [k, n], update, |columns, part| add_product_bf16(part, x, weight, columns));
}

/// Adds `x W` of a range of columns to `part` `[rows, columns]`. Units of `x` are neighbours; those of a row lie beside each other.
///
/// # Panics
///
/// Panics if the processor lacks the instructions, or if `x` or `part` is too small.
pub fn add_product_bf16(part: &mut [f32], x: Left<'_, u32>, weight: Bf16Matrix<'_>, columns: Range<usize>) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    check(part, x, weight.rows().div_ceil(2), weight.columns(), &columns);
    // SAFETY: the processor has the instructions, and operands have the elements.
    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
    unsafe {
        match weight.order() {
            Order::Rows => of_bf16::by_strips(part, x, weight, columns),
            Order::Columns => of_bf16::by_columns(part, x, weight, columns),
        }
    }
}

/// Adds `x W` of a range of columns to `part` `[rows, columns]`, for a weight that is contiguous along one axis.
///
/// # Panics
///
/// Panics if the processor lacks the instructions, or if `x` or `part` is too small.
pub fn add_product_f32(part: &mut [f32], x: Left<'_, f32>, weight: Matrix<'_>, columns: Range<usize>) {
    assert!(Instructions::Avx512.is_available(), "the processor lacks the instructions");
    check(part, x, weight.rows(), weight.columns(), &columns);
    // SAFETY: the processor has the instructions, and operands have the elements.
    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
    unsafe {
        match weight.has_contiguous_rows() {
            true => of_f32::by_strips(part, x, weight, columns),
            false => of_f32::by_columns(part, x, weight, columns),
        }
    }
}

fn check<U>(part: &[f32], x: Left<'_, U>, units: usize, all: usize, columns: &Range<usize>) {
    assert_eq!(part.len(), x.rows * columns.len(), "a part of {} rows", x.rows);
    assert!(columns.end <= all, "columns {columns:?} of {all}");
    assert!(x.unit_stride == 1 && x.row_stride >= units, "units of a row beside each other");
    assert!(x.rows == 0 || (x.rows - 1) * x.row_stride + units <= x.units.len(), "rows of {units} units");
}

/// Calls a function with the number of rows, at most `$most`, as a constant.
macro_rules! by_rows {
    ($rows:expr, $function:ident::<_, $columns:literal>$arguments:tt, $($height:literal)*) => {
        match $rows {
            $($height => $function::<$height, $columns> $arguments,)*
            rows => panic!("{rows} rows"),
        }
    };
}

/// Defines the kernels of a kind of weights, in a module. `$lines` returns the registers of a unit of some columns, `$along` sixteen units of a column.
macro_rules! kernels {
    ($name:ident, $features:literal, $weight:ty, $unit:ty, $units:expr, $lines:path, $along:path, |$sum:ident, $x:ident, $w:ident| $product:expr) => {
        mod $name {
            use super::*;

            /// For a weight with contiguous rows.
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for the operands")]
            pub unsafe fn by_strips(part: &mut [f32], x: Left<'_, $unit>, weight: $weight, columns: Range<usize>) {
                let units = $units(weight);
                let most = if x.rows <= WIDE { WIDE } else { NARROW };
                // Groups of about the same size.
                let group = x.rows.div_ceil(x.rows.div_ceil(most).max(1)).max(1);
                let width = columns.len();
                for start in (0..units).step_by(DEPTH) {
                    let units = start..units.min(start + DEPTH);
                    let mut first = 0;
                    while first < width {
                        let left = width - first;
                        let vectors = match left {
                            128.. if group <= WIDE => 8,
                            64.. => 4,
                            _ => 2,
                        };
                        let some = columns.start + first..columns.start + first + left.min(16 * vectors);
                        for row in (0..x.rows).step_by(group) {
                            let rows = group.min(x.rows - row);
                            let out = &mut part[row * width + first..];
                            let line = x.units.as_ptr().wrapping_add(row * x.row_stride);
                            let (x, some, units) = ((line, x.row_stride), some.clone(), units.clone());
                            // SAFETY: the rows and units are those of `x`, the columns are those of the weight.
                            unsafe {
                                match vectors {
                                    8 => by_rows!(rows, strip::<_, 8>(out, width, x, weight, some, units), 1 2 3),
                                    4 => by_rows!(rows, strip::<_, 4>(out, width, x, weight, some, units), 1 2 3 4 5 6),
                                    _ => by_rows!(rows, strip::<_, 2>(out, width, x, weight, some, units), 1 2 3 4 5 6),
                                }
                            }
                        }
                        first += some.len();
                    }
                }
            }

            /// Adds the sums of some units. Rows of `out` start `stride` elements apart.
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for the operands")]
            unsafe fn strip<const ROWS: usize, const VECTORS: usize>(
                out: &mut [f32],
                stride: usize,
                (x, x_stride): (*const $unit, usize),
                weight: $weight,
                columns: Range<usize>,
                units: Range<usize>,
            ) {
                let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
                for unit in units {
                    let weights: [__m512; VECTORS] = $lines(weight, unit, columns.clone());
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: a unit of `x`, of 32 bits.
                        let $x = _mm512_set1_ps(unsafe { x.add(row * x_stride + unit).cast::<f32>().read() });
                        for (sum, weights) in sums.iter_mut().zip(&weights) {
                            let ($sum, $w) = (*sum, *weights);
                            *sum = $product;
                        }
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let out = &mut out[row * stride..][..columns.len()];
                    for (out, sum) in out.chunks_mut(16).zip(sums) {
                        put(out, _mm512_add_ps(floats(out), sum));
                    }
                }
            }

            /// For a weight with contiguous columns.
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for the operands")]
            pub unsafe fn by_columns(part: &mut [f32], x: Left<'_, $unit>, weight: $weight, columns: Range<usize>) {
                let units = $units(weight);
                let width = columns.len();
                let group = x.rows.div_ceil(x.rows.div_ceil(4).max(1)).max(1);
                let mut first = 0;
                while first < width {
                    let count = match width - first {
                        // One row: the weight is read from end to end, which the processor prefetches itself.
                        _ if x.rows == 1 => 1,
                        4.. => 4,
                        _ => 1,
                    };
                    for row in (0..x.rows).step_by(group) {
                        let rows = group.min(x.rows - row);
                        let out = &mut part[row * width + first..];
                        let line = x.units.as_ptr().wrapping_add(row * x.row_stride);
                        let (x, column) = ((line, x.row_stride), columns.start + first);
                        // SAFETY: the rows and units are those of `x`, the columns are those of the weight.
                        unsafe {
                            match count {
                                4 => by_rows!(rows, columns_of::<_, 4>(out, width, x, weight, column, units), 1 2 3 4),
                                _ => by_rows!(rows, columns_of::<_, 1>(out, width, x, weight, column, units), 1 2 3 4),
                            }
                        }
                    }
                    first += count;
                }
            }

            /// Adds the products of some columns from `column` on. Rows of `out` start `stride` elements apart.
            #[target_feature(enable = $features)]
            #[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for the operands")]
            unsafe fn columns_of<const ROWS: usize, const COLUMNS: usize>(
                out: &mut [f32],
                stride: usize,
                (x, x_stride): (*const $unit, usize),
                weight: $weight,
                column: usize,
                units: usize,
            ) {
                let mut sums = [[_mm512_setzero_ps(); COLUMNS]; ROWS];
                for unit in (0..units).step_by(16) {
                    let mut weights = [_mm512_setzero_ps(); COLUMNS];
                    for (index, weights) in weights.iter_mut().enumerate() {
                        *weights = $along(weight, column + index, unit, COLUMNS);
                    }
                    let mask = mask(units - unit);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: the mask selects units of this row of `x`.
                        let $x = unsafe { _mm512_maskz_loadu_ps(mask, x.add(row * x_stride + unit).cast()) };
                        for (sum, weights) in sums.iter_mut().zip(&weights) {
                            let ($sum, $w) = (*sum, *weights);
                            *sum = $product;
                        }
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let out = &mut out[row * stride..][..COLUMNS];
                    for (out, sums) in out.chunks_mut(4).zip(sums.chunks(4)) {
                        let mut four = [_mm512_setzero_ps(); 4];
                        four[..sums.len()].copy_from_slice(sums);
                        out.iter_mut().zip(four_sums(four)).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    };
}

kernels!(
    of_f32,
    "avx512f,avx512bw",
    Matrix<'_>,
    f32,
    |weight: Matrix<'_>| weight.rows(),
    f32_lines,
    f32_along,
    |sum, x, w| _mm512_fmadd_ps(x, w, sum)
);

kernels!(
    of_bf16,
    "avx512f,avx512bw,avx512bf16",
    Bf16Matrix<'_>,
    u32,
    |weight: Bf16Matrix<'_>| weight.rows().div_ceil(2),
    bf16_lines,
    bf16_along,
    |sum, x, w| _mm512_dpbf16_ps(sum, pairs_of(_mm512_castps_si512(x)), pairs_of(_mm512_castps_si512(w)))
);

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "loads of registers from a slice that is long enough, and prefetches")]
fn f32_lines<const VECTORS: usize>(weight: Matrix<'_>, unit: usize, columns: Range<usize>) -> [__m512; VECTORS] {
    let line = &weight.row(unit)[columns];
    let ahead = line.as_ptr().wrapping_add(DEPTH * weight.strides()[0]);
    let mut weights = [_mm512_setzero_ps(); VECTORS];
    for (index, weights) in weights.iter_mut().enumerate() {
        if line.len() == 16 * VECTORS {
            // SAFETY: the line has 16 numbers for each register; a prefetch reads nothing.
            unsafe {
                *weights = _mm512_loadu_ps(line.as_ptr().add(16 * index));
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(16 * index).cast());
            }
        } else {
            *weights = floats(&line[line.len().min(16 * index)..]);
        }
    }
    weights
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "loads of registers from slices that are long enough, and prefetches")]
fn bf16_lines<const VECTORS: usize>(weight: Bf16Matrix<'_>, unit: usize, columns: Range<usize>) -> [__m512; VECTORS] {
    let low = &weight.line(2 * unit)[columns.clone()];
    let high = if 2 * unit + 1 < weight.rows() { &weight.line(2 * unit + 1)[columns] } else { &[] };
    let mut weights = [_mm512_setzero_ps(); VECTORS];
    for (index, weights) in weights.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let both = if high.len() == 16 * VECTORS {
            // SAFETY: both lines have 32 numbers for each two registers; a prefetch reads nothing.
            unsafe {
                let [low, high] = [low, high].map(|line| line.as_ptr().add(32 * index));
                _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(2 * DEPTH * weight.stride()).cast());
                _mm_prefetch::<_MM_HINT_T0>(high.wrapping_add(2 * DEPTH * weight.stride()).cast());
                interleaved(_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(high.cast()))
            }
        } else {
            let from = |line: &[half::bf16]| load(&line[line.len().min(32 * index)..]);
            interleaved(from(low), from(high))
        };
        *weights = [_mm512_castsi512_ps(both[0]), _mm512_castsi512_ps(both[1])];
    }
    weights
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn f32_along(weight: Matrix<'_>, column: usize, unit: usize, next: usize) -> __m512 {
    let line = &weight.transposed().row(column)[unit..];
    if next > 1 {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(next * weight.strides()[1]).cast());
    }
    floats(line)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bf16_along(weight: Bf16Matrix<'_>, column: usize, unit: usize, next: usize) -> __m512 {
    let line = &weight.line(column)[2 * unit..];
    if next > 1 {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(next * weight.stride()).cast());
    }
    _mm512_castsi512_ps(load(line))
}

/// The sum of the lanes of each of four registers, in an order that does not depend on the register.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a register and four numbers of the same 128 bits")]
pub(super) fn four_sums([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    let sums = _mm512_add_ps(low, high);
    let halves = _mm512_add_ps(sums, _mm512_shuffle_f32x4::<0b_01_00_11_10>(sums, sums));
    let quarters = _mm512_add_ps(halves, _mm512_shuffle_f32x4::<0b_10_11_00_01>(halves, halves));
    // SAFETY: both are four numbers of 32 bits.
    unsafe { std::mem::transmute(_mm512_castps512_ps128(quarters)) }
}

/// A register of up to 16 numbers, padded with zeros.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load from a slice, masked to its length")]
fn floats(values: &[f32]) -> __m512 {
    // SAFETY: the mask excludes lanes beyond the slice, so they are not read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a store to a slice, masked to its length")]
fn put(out: &mut [f32], values: __m512) {
    // SAFETY: the mask excludes lanes beyond the slice, so they are not written.
    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), values) }
}
