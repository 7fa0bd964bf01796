//! Widens packed weights, in pieces of 32 values that are neighbours in a stored row. Values are those of the portable code to the bit:
//! products and sums are rounded to f32 in the same order.
//!
//! Codes of 4 bits are looked up in a register that holds the values of all 16 codes in the block. The code has no `map` over arrays, as
//! the compiler does not inline functions that need instructions into it.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::bf16_product::pairs_of;
use crate::blocks::{BlockFormat, scale_and_minimum_at};
use crate::instructions::Instructions;
use crate::packed::{ColumnGroups, Grouped, PIECE, RoundedTo, Storage};
use crate::panels::Left;

/// The most rows of `x` of [`add_dots_f32`] and [`add_dots_bf16`].
pub const MOST_DOTS: usize = 4;

/// Widens pieces of rows to f32. `columns` is the number of columns of the whole matrix.
///
/// # Panics
///
/// Panics if the processor lacks the instructions, or if the pieces are not pieces of the matrix.
pub fn widen_f32(storage: &Storage, columns: usize, rows: Range<usize>, pieces: Range<usize>, out: &mut [f32]) {
    assert!(Instructions::Avx512.is_available(), "the processor lacks the instructions");
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        to_f32(storage, columns, rows, pieces, out);
    }
}

/// Widens pieces of rows to f32, and rounds to bf16; subnormal numbers become zero.
///
/// # Panics
///
/// Panics if the processor lacks the instructions, or if the pieces are not pieces of the matrix.
pub fn widen_bf16(storage: &Storage, columns: usize, rows: Range<usize>, pieces: Range<usize>, out: &mut [bf16]) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    // SAFETY: the processor has the instructions.
    #[allow(unsafe_code, reason = "a function compiled for instructions that the processor has")]
    unsafe {
        to_bf16(storage, columns, rows, pieces, out);
    }
}

/// Evaluates an expression with a closure that returns a piece, given its row and its index in the row. `$rounding` is the rounding that
/// values of bitsandbytes need, given that of their matrix.
macro_rules! with_pieces {
    ($storage:expr, $columns:expr, $rounding:expr, |$piece:ident| $body:expr) => {
        match $storage {
            Storage::Blocks { format, bytes } => {
                // Rows are whole blocks, so pieces are numbered through the matrix.
                let row_pieces = $columns / PIECE;
                let number = |row: usize, index: usize| row * row_pieces + index;
                macro_rules! blocks {
                    ($size:literal, $decode:ident) => {{
                        let blocks = bytes.as_chunks::<$size>().0;
                        let $piece = |row: usize, index: usize| $decode(&blocks[number(row, index)]);
                        $body
                    }};
                }
                macro_rules! large_blocks {
                    ($size:literal, $decode:ident) => {{
                        let blocks = bytes.as_chunks::<$size>().0;
                        let $piece = |row: usize, index: usize| {
                            let number = number(row, index);
                            $decode(&blocks[number / 8], number % 8)
                        };
                        $body
                    }};
                }
                match format {
                    BlockFormat::Q4_0 => blocks!(18, q4_0),
                    BlockFormat::Q4_1 => blocks!(20, q4_1),
                    BlockFormat::Q5_0 => blocks!(22, q5_0),
                    BlockFormat::Q5_1 => blocks!(24, q5_1),
                    BlockFormat::Q8_0 => blocks!(34, q8_0),
                    BlockFormat::Q4K => large_blocks!(144, q4_k),
                    BlockFormat::Q5K => large_blocks!(176, q5_k),
                    BlockFormat::Q6K => large_blocks!(210, q6_k),
                }
            }
            Storage::FourBit(parts) => {
                let book = floats(&parts.values);
                let rounded_to = $rounding(parts.rounded_to);
                let shift = parts.block.trailing_zeros();
                let codes = &parts.codes[..];
                let $piece = |row: usize, index: usize| {
                    let first = row * $columns + index * PIECE;
                    let scale = _mm512_set1_ps(parts.scales.scale(first >> shift));
                    let table = rounded(_mm512_mul_ps(book, scale), rounded_to);
                    let codes = bytes(codes, first / 2);
                    interleaved(lookup(_mm512_srli_epi32::<4>(codes), table), lookup(codes, table))
                };
                $body
            }
            Storage::F16(halves) => {
                let $piece = |row: usize, index: usize| {
                    let values = &halves[2 * (row * $columns + index * PIECE)..][..2 * PIECE];
                    // SAFETY: 64 bytes.
                    #[allow(unsafe_code, reason = "two loads of 32 bytes from 64 bytes")]
                    unsafe {
                        let first: *const __m256i = values.as_ptr().cast();
                        let second = first.add(1);
                        [_mm512_cvtph_ps(_mm256_loadu_si256(first)), _mm512_cvtph_ps(_mm256_loadu_si256(second))]
                    }
                };
                $body
            }
            Storage::Grouped(grouped) => {
                let row_bytes = grouped.row_bytes($columns);
                match grouped.has_bytes() {
                    true => {
                        let $piece = |row: usize, index: usize| {
                            let [scale, zero] = scale_and_zero(grouped, row, index);
                            let at = row * row_bytes + index * PIECE;
                            let first = _mm512_cvtepi32_ps(bytes(&grouped.codes, at));
                            let second = _mm512_cvtepi32_ps(bytes(&grouped.codes, at + 16));
                            [
                                _mm512_mul_ps(scale, _mm512_sub_ps(first, zero)),
                                _mm512_mul_ps(scale, _mm512_sub_ps(second, zero)),
                            ]
                        };
                        $body
                    }
                    false => {
                        let $piece = |row: usize, index: usize| {
                            let [scale, zero] = scale_and_zero(grouped, row, index);
                            let table = _mm512_mul_ps(scale, _mm512_sub_ps(levels(), zero));
                            let codes = bytes(&grouped.codes, row * row_bytes + index * PIECE / 2);
                            interleaved(lookup(codes, table), lookup(_mm512_srli_epi32::<4>(codes), table))
                        };
                        $body
                    }
                }
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn to_f32(storage: &Storage, columns: usize, rows: Range<usize>, pieces: Range<usize>, out: &mut [f32]) {
    with_pieces!(storage, columns, |rounded_to| rounded_to, |piece| each(rows, pieces, out, |row, index, out| {
        let values = piece(row, index);
        for (values, out) in values.into_iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: 16 numbers of 32 bits.
            #[allow(unsafe_code, reason = "a store of a register to sixteen elements")]
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), values);
            }
        }
    }))
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn to_bf16(storage: &Storage, columns: usize, rows: Range<usize>, pieces: Range<usize>, out: &mut [bf16]) {
    with_pieces!(storage, columns, before_bf16, |piece| each(rows, pieces, out, |row, index, out| {
        let [low, high] = piece(row, index);
        // SAFETY: 32 numbers of 16 bits, and a register of as many.
        #[allow(unsafe_code, reason = "a store of a register to 32 elements")]
        unsafe {
            let values: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), values);
        }
    }))
}

/// Adds to `sums` `[rows of x, rows]` the inner products of rows of `x` with stored rows, in f32; no tile is widened for them.
///
/// # Panics
///
/// Panics if the processor lacks the instructions, if the pieces are not pieces of the matrix, or if `x` has more rows than
/// [`MOST_DOTS`] or is too small.
pub fn add_dots_f32(
    storage: &Storage,
    columns: usize,
    rows: Range<usize>,
    pieces: Range<usize>,
    x: Left<'_, f32>,
    sums: &mut [f32],
) {
    assert!(Instructions::Avx512.is_available(), "the processor lacks the instructions");
    check(x, pieces.len() * PIECE);
    // SAFETY: the processor has the instructions, and `x` the units.
    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
    unsafe {
        match x.rows {
            1 => dots_f32::<1>(storage, columns, rows, pieces, x, sums),
            2 => dots_f32::<2>(storage, columns, rows, pieces, x, sums),
            3 => dots_f32::<3>(storage, columns, rows, pieces, x, sums),
            _ => dots_f32::<4>(storage, columns, rows, pieces, x, sums),
        }
    }
}

/// Like [`add_dots_f32`], of values rounded to bf16; the units of `x` are pairs of neighbours.
///
/// # Panics
///
/// Panics like [`add_dots_f32`].
pub fn add_dots_bf16(
    storage: &Storage,
    columns: usize,
    rows: Range<usize>,
    pieces: Range<usize>,
    x: Left<'_, u32>,
    sums: &mut [f32],
) {
    assert!(Instructions::Avx512Bf16.is_available(), "the processor lacks the instructions");
    check(x, pieces.len() * PIECE / 2);
    // SAFETY: the processor has the instructions, and `x` the units.
    #[allow(unsafe_code, reason = "functions compiled for instructions that the processor has")]
    unsafe {
        match x.rows {
            1 => dots_bf16::<1>(storage, columns, rows, pieces, x, sums),
            2 => dots_bf16::<2>(storage, columns, rows, pieces, x, sums),
            3 => dots_bf16::<3>(storage, columns, rows, pieces, x, sums),
            _ => dots_bf16::<4>(storage, columns, rows, pieces, x, sums),
        }
    }
}

fn check<U>(x: Left<'_, U>, units: usize) {
    assert!((1..=MOST_DOTS).contains(&x.rows), "{} rows of x", x.rows);
    assert!(x.unit_stride == 1 && (x.rows - 1) * x.row_stride + units <= x.units.len(), "rows of {units} units");
}

#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for them")]
unsafe fn dots_f32<const ROWS: usize>(
    storage: &Storage,
    columns: usize,
    rows: Range<usize>,
    pieces: Range<usize>,
    x: Left<'_, f32>,
    sums: &mut [f32],
) {
    let (count, x, stride) = (rows.len(), x.units.as_ptr(), x.row_stride);
    with_pieces!(storage, columns, |rounded_to| rounded_to, |piece| {
        for (at, stored) in rows.enumerate() {
            let mut lanes = [[_mm512_setzero_ps(); 2]; ROWS];
            for (index, number) in pieces.clone().enumerate() {
                let [low, high] = piece(stored, number);
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    // SAFETY: 32 units of this row of `x`.
                    let units = unsafe {
                        let first = x.add(row * stride + index * PIECE);
                        [_mm512_loadu_ps(first), _mm512_loadu_ps(first.add(16))]
                    };
                    *lanes = [_mm512_fmadd_ps(units[0], low, lanes[0]), _mm512_fmadd_ps(units[1], high, lanes[1])];
                }
            }
            for (row, [low, high]) in lanes.into_iter().enumerate() {
                sums[row * count + at] += _mm512_reduce_add_ps(_mm512_add_ps(low, high));
            }
        }
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[allow(unsafe_code, reason = "reads units through pointers; the caller vouches for them")]
unsafe fn dots_bf16<const ROWS: usize>(
    storage: &Storage,
    columns: usize,
    rows: Range<usize>,
    pieces: Range<usize>,
    x: Left<'_, u32>,
    sums: &mut [f32],
) {
    let (count, x, stride) = (rows.len(), x.units.as_ptr(), x.row_stride);
    with_pieces!(storage, columns, before_bf16, |piece| {
        for (at, stored) in rows.enumerate() {
            let mut lanes = [_mm512_setzero_ps(); ROWS];
            for (index, number) in pieces.clone().enumerate() {
                let [low, high] = piece(stored, number);
                let weights = _mm512_cvtne2ps_pbh(high, low);
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    // SAFETY: 16 units of this row of `x`.
                    let units = unsafe { _mm512_loadu_si512(x.add(row * stride + index * (PIECE / 2)).cast()) };
                    *lanes = _mm512_dpbf16_ps(*lanes, pairs_of(units), weights);
                }
            }
            for (row, lanes) in lanes.into_iter().enumerate() {
                sums[row * count + at] += _mm512_reduce_add_ps(lanes);
            }
        }
    })
}

/// The rounding of values of bitsandbytes that are rounded to bf16 in the end: a first rounding to bf16 would change nothing.
fn before_bf16(rounded_to: RoundedTo) -> RoundedTo {
    match rounded_to {
        RoundedTo::F16 => RoundedTo::F16,
        RoundedTo::F32 | RoundedTo::Bf16 => RoundedTo::F32,
    }
}

/// Calls `store` with the row, the index and the place of each piece.
#[inline(always)]
fn each<T>(rows: Range<usize>, pieces: Range<usize>, out: &mut [T], store: impl Fn(usize, usize, &mut [T; PIECE])) {
    assert_eq!(out.len(), rows.len() * pieces.len() * PIECE, "places of {} rows", rows.len());
    let (places, _) = out.as_chunks_mut::<PIECE>();
    for (row, places) in rows.zip(places.chunks_exact_mut(pieces.len())) {
        for (index, place) in pieces.clone().zip(places) {
            store(row, index, place);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_0(block: &[u8; 18]) -> [__m512; 2] {
    let table = _mm512_mul_ps(half(block, 0), _mm512_sub_ps(levels(), _mm512_set1_ps(8.0)));
    low_then_high(bytes(block, 2), table)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_1(block: &[u8; 20]) -> [__m512; 2] {
    let table = _mm512_add_ps(_mm512_mul_ps(half(block, 0), levels()), half(block, 2));
    low_then_high(bytes(block, 4), table)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_0(block: &[u8; 22]) -> [__m512; 2] {
    let d = half(block, 0);
    let tables = [_mm512_mul_ps(d, _mm512_sub_ps(levels(), _mm512_set1_ps(16.0))), _mm512_mul_ps(d, levels())];
    five_bits(bytes(block, 6), &block[2..6], tables)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_1(block: &[u8; 24]) -> [__m512; 2] {
    let (d, m) = (half(block, 0), half(block, 2));
    let lower = _mm512_add_ps(_mm512_mul_ps(d, levels()), m);
    let upper = _mm512_add_ps(_mm512_mul_ps(d, upper_levels()), m);
    five_bits(bytes(block, 8), &block[4..8], [lower, upper])
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q8_0(block: &[u8; 34]) -> [__m512; 2] {
    let d = half(block, 0);
    let (first, second) = (_mm512_cvtepi32_ps(signed_bytes(block, 2)), _mm512_cvtepi32_ps(signed_bytes(block, 18)));
    [_mm512_mul_ps(first, d), _mm512_mul_ps(second, d)]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_k(block: &[u8; 144], sub_block: usize) -> [__m512; 2] {
    let [scale, minimum] = scale_and_minimum(&block[..16], sub_block);
    let table = _mm512_sub_ps(_mm512_mul_ps(scale, levels()), minimum);
    let shift = _mm512_set1_epi32(4 * (sub_block % 2) as i32);
    let at = 16 + 32 * (sub_block / 2);
    let (first, second) = (bytes(block, at), bytes(block, at + 16));
    [lookup(_mm512_srlv_epi32(first, shift), table), lookup(_mm512_srlv_epi32(second, shift), table)]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_k(block: &[u8; 176], sub_block: usize) -> [__m512; 2] {
    let [scale, minimum] = scale_and_minimum(&block[..16], sub_block);
    let lower = _mm512_sub_ps(_mm512_mul_ps(scale, levels()), minimum);
    let upper = _mm512_sub_ps(_mm512_mul_ps(scale, upper_levels()), minimum);
    let shift = _mm512_set1_epi32(4 * (sub_block % 2) as i32);
    let bit = _mm512_set1_epi32(1 << sub_block);
    let at = 48 + 32 * (sub_block / 2);
    let first = _mm512_srlv_epi32(bytes(block, at), shift);
    let second = _mm512_srlv_epi32(bytes(block, at + 16), shift);
    let high = [bytes(block, 16), bytes(block, 32)];
    let (first_high, second_high) = (_mm512_test_epi32_mask(high[0], bit), _mm512_test_epi32_mask(high[1], bit));
    [lookup_five(first, first_high, [lower, upper]), lookup_five(second, second_high, [lower, upper])]
}

/// Two sub-blocks of 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q6_k(block: &[u8; 210], piece: usize) -> [__m512; 2] {
    let (part, quarter) = (piece / 4, piece % 4);
    let low = thirty_two(block, 64 * part + 32 * (quarter % 2));
    let high = thirty_two(block, 128 + 32 * part);
    // Shifts of 16 bits move bits from byte to byte; the masks exclude them.
    let low = _mm256_srl_epi16(low, _mm_cvtsi32_si128(4 * (quarter / 2) as i32));
    let high = _mm256_slli_epi16::<4>(_mm256_srl_epi16(high, _mm_cvtsi32_si128(2 * quarter as i32)));
    let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
    let high = _mm256_and_si256(high, _mm256_set1_epi8(48));
    let q = _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
    let d = half(block, 208);
    let scale = |sub_block: usize| {
        let scale = f32::from(block[192 + 2 * piece + sub_block].cast_signed());
        _mm512_mul_ps(d, _mm512_set1_ps(scale))
    };
    let first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(q)));
    let second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(q)));
    [_mm512_mul_ps(scale(0), first), _mm512_mul_ps(scale(1), second)]
}

/// Scale and minimum of a sub-block of Q4_K or Q5_K.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scale_and_minimum(header: &[u8], sub_block: usize) -> [__m512; 2] {
    let (scale, minimum) = scale_and_minimum_at(&header[4..], sub_block);
    let (scale, minimum) = (_mm512_set1_ps(f32::from(scale)), _mm512_set1_ps(f32::from(minimum)));
    [_mm512_mul_ps(half(header, 0), scale), _mm512_mul_ps(half(header, 2), minimum)]
}

/// Scale and zero point of a piece, which lies in one group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scale_and_zero(grouped: &Grouped, row: usize, index: usize) -> [__m512; 2] {
    let group = match &grouped.columns {
        ColumnGroups::Neighbours(group) => index as u32 / (*group / PIECE) as u32,
        ColumnGroups::Each(_) => unreachable!("pieces lie in one group"),
    };
    let at = row * grouped.groups + group as usize;
    [_mm512_set1_ps(grouped.scales[at]), _mm512_set1_ps(f32::from(grouped.zeros[at]))]
}

/// 0 to 15.
#[inline]
#[target_feature(enable = "avx512f")]
fn levels() -> __m512 {
    floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
}

/// 16 to 31.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_levels() -> __m512 {
    _mm512_add_ps(levels(), _mm512_set1_ps(16.0))
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load of 64 bytes from an array of 64 bytes")]
fn floats(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 numbers of 32 bits.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// The f16 at byte `at`, in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn half(block: &[u8], at: usize) -> __m512 {
    _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([block[at], block[at + 1]])))
}

/// 16 bytes from byte `at` on, each in a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(block: &[u8], at: usize) -> __m512i {
    _mm512_cvtepu8_epi32(sixteen(block, at))
}

/// 16 bytes from byte `at` on, each in a lane with its sign.
#[inline]
#[target_feature(enable = "avx512f")]
fn signed_bytes(block: &[u8], at: usize) -> __m512i {
    _mm512_cvtepi8_epi32(sixteen(block, at))
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load of 16 bytes from a slice of 16 bytes")]
fn sixteen(block: &[u8], at: usize) -> __m128i {
    let bytes = &block[at..at + 16];
    // SAFETY: 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "a load of 32 bytes from a slice of 32 bytes")]
fn thirty_two(block: &[u8], at: usize) -> __m256i {
    let bytes = &block[at..at + 32];
    // SAFETY: 32 bytes.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// The values of codes, which are the lower four bits of each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn lookup(codes: __m512i, table: __m512) -> __m512 {
    _mm512_permutexvar_ps(codes, table)
}

/// The values of codes of five bits: the lower four of each lane, and the highest in a mask.
#[inline]
#[target_feature(enable = "avx512f")]
fn lookup_five(codes: __m512i, high: __mmask16, tables: [__m512; 2]) -> __m512 {
    _mm512_mask_permutexvar_ps(lookup(codes, tables[0]), high, codes, tables[1])
}

/// The values of the lower halves of 16 bytes, then those of the upper halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_then_high(codes: __m512i, table: __m512) -> [__m512; 2] {
    [lookup(codes, table), lookup(_mm512_srli_epi32::<4>(codes), table)]
}

/// The values of the lower halves of 16 bytes, then those of the upper halves; bit `i` of `high` is the highest of value `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn five_bits(codes: __m512i, high: &[u8], tables: [__m512; 2]) -> [__m512; 2] {
    let (first, second) = (u16::from_le_bytes([high[0], high[1]]), u16::from_le_bytes([high[2], high[3]]));
    [lookup_five(codes, first, tables), lookup_five(_mm512_srli_epi32::<4>(codes), second, tables)]
}

/// The numbers of two registers by turns.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved(even: __m512, odd: __m512) -> [__m512; 2] {
    let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    [_mm512_permutex2var_ps(even, first, odd), _mm512_permutex2var_ps(even, second, odd)]
}

/// Rounds each number to a dtype, to nearest even.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(values: __m512, rounded_to: RoundedTo) -> __m512 {
    match rounded_to {
        RoundedTo::F32 => values,
        RoundedTo::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values)),
        RoundedTo::Bf16 => {
            let bits = _mm512_castps_si512(values);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
            let bits = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF_0000u32.cast_signed())))
        }
    }
}
