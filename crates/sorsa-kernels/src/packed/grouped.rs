//! Codes with a scale and a zero point for each row and group of columns: GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978).
//!
//! The value at row `o` and column `i` is `scale[o][g] (code[o][i] - zero[o][g])` in f32, for the group `g` of column `i`. Files hold the
//! transposed matrix in words of 32 bits; see [`GptqParts`] and [`AwqParts`]. Here codes are row by row, like every other packed format's.

use bytes::Bytes;
use rayon::prelude::*;

use super::error::check_size;
use super::nibbles::{FirstCode, look_up};
use super::{PackedError, PackedFormat};

/// Where a word of AWQ holds the columns of `W^T`: number `n` of a word is column `AWQ_ORDER[n]` of its eight.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The tensors of GPTQ, for a matrix `[d_out, d_in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct GptqParts {
    /// The width of codes and zero points.
    pub bits: GptqBits,
    /// `qweight` `[d_in / n, d_out]`: a word holds `n` codes that are neighbours along `d_in`, the first in its lowest bits.
    pub codes: Vec<i32>,
    /// `qzeros` `[groups, d_out / n]`: a word holds the zero points of `n` neighbouring outputs.
    pub zeros: Vec<i32>,
    /// How zero points are stored.
    pub zero_points: ZeroPoints,
    /// `scales` `[groups, d_out]`.
    pub scales: Vec<f32>,
    /// Columns of a group: `d_in` if there is one group.
    pub group: usize,
    /// `g_idx` `[d_in]`: the group of each column; neighbours share a group if absent.
    pub column_groups: Option<Vec<i32>>,
}

/// The width of GPTQ's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GptqBits {
    /// 4 bits, eight codes a word.
    Four,
    /// 8 bits, four codes a word.
    Eight,
}

/// How a file of GPTQ stores zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroPoints {
    /// The first version of the format: 1 was subtracted from each before they went into words.
    LessOne,
    /// The second version: as they are.
    Plain,
}

/// The tensors of AWQ in the order of its `gemm` kernel, for a matrix `[d_out, d_in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct AwqParts {
    /// `qweight` `[d_in, d_out / 8]`: a word holds the codes of eight neighbouring outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7.
    pub codes: Vec<i32>,
    /// `qzeros` `[groups, d_out / 8]`, in the same order.
    pub zeros: Vec<i32>,
    /// `scales` `[groups, d_out]`.
    pub scales: Vec<f32>,
    /// Columns of a group: `d_in` if there is one group.
    pub group: usize,
}

/// Codes, scales and zero points row by row.
#[derive(Debug, PartialEq)]
pub(crate) struct Grouped {
    pub(crate) format: PackedFormat,
    /// `[d_out, d_in]`. Of two codes of 4 bits in a byte, the first is in the lower half; each row starts a byte.
    pub(crate) codes: Bytes,
    /// `[d_out, groups]`.
    pub(crate) scales: Vec<f32>,
    /// `[d_out, groups]`.
    pub(crate) zeros: Vec<u8>,
    pub(crate) groups: usize,
    pub(crate) columns: ColumnGroups,
}

/// The group of each column.
#[derive(Debug, PartialEq)]
pub(crate) enum ColumnGroups {
    /// So many neighbours share a group.
    Neighbours(usize),
    /// The group of each.
    Each(Vec<u32>),
}

impl GptqBits {
    fn format(self) -> PackedFormat {
        match self {
            Self::Four => PackedFormat::Gptq4,
            Self::Eight => PackedFormat::Gptq8,
        }
    }

    fn per_word(self) -> usize {
        match self {
            Self::Four => 8,
            Self::Eight => 4,
        }
    }
}

impl Grouped {
    /// # Errors
    ///
    /// [`PackedError`].
    pub(super) fn from_gptq(shape: [usize; 2], parts: GptqParts) -> Result<Self, PackedError> {
        let (format, per_word) = (parts.bits.format(), parts.bits.per_word());
        let [d_out, d_in] = shape;
        let groups = groups(format, shape, parts.group)?;
        for (part, count) in [("the codes", d_in), ("the zero points", d_out)] {
            if !count.is_multiple_of(per_word) {
                return Err(PackedError::PartialWords { format, part, shape, per_word });
            }
        }
        check_size(format, "the words of codes", shape, d_in / per_word * d_out, parts.codes.len())?;
        check_size(format, "the words of zero points", shape, groups * d_out / per_word, parts.zeros.len())?;
        check_size(format, "the scales", shape, groups * d_out, parts.scales.len())?;
        let columns = match parts.column_groups {
            None => ColumnGroups::Neighbours(parts.group),
            Some(found) => column_groups(format, shape, parts.group, groups, found)?,
        };
        // The words of a row one after another are its codes.
        let mut codes = vec![0; d_in * d_out * 4 / per_word];
        let row_words = d_in / per_word;
        codes.par_chunks_exact_mut((4 * row_words).max(1)).enumerate().with_min_len(16).for_each(|(row, codes)| {
            for (word, bytes) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *bytes = parts.codes[word * d_out + row].to_le_bytes();
            }
        });
        // A file that subtracts 1 does so from whole words, and a zero point of 0 borrows from the next.
        let subtracted: i32 = match (parts.zero_points, parts.bits) {
            (ZeroPoints::Plain, _) => 0,
            (ZeroPoints::LessOne, GptqBits::Four) => 0x1111_1111,
            (ZeroPoints::LessOne, GptqBits::Eight) => 0x0101_0101,
        };
        let zero = |group: usize, row: usize| {
            let words = &parts.zeros[group * d_out / per_word..];
            let word = words[row / per_word].wrapping_add(subtracted).to_le_bytes();
            match parts.bits {
                GptqBits::Four => nibble(word, row % per_word),
                GptqBits::Eight => word[row % per_word],
            }
        };
        let (scales, zeros) = by_row(shape, groups, &parts.scales, zero);
        Ok(Self { format, codes: codes.into(), scales, zeros, groups, columns })
    }

    /// # Errors
    ///
    /// [`PackedError`].
    pub(super) fn from_awq(shape: [usize; 2], parts: AwqParts) -> Result<Self, PackedError> {
        let format = PackedFormat::Awq;
        let [d_out, d_in] = shape;
        let groups = groups(format, shape, parts.group)?;
        if !d_out.is_multiple_of(8) {
            return Err(PackedError::PartialWords { format, part: "the codes", shape, per_word: 8 });
        }
        let words = d_out / 8;
        check_size(format, "the words of codes", shape, d_in * words, parts.codes.len())?;
        check_size(format, "the words of zero points", shape, groups * words, parts.zeros.len())?;
        check_size(format, "the scales", shape, groups * d_out, parts.scales.len())?;
        let number = |words: &[i32], row: usize| {
            let place = AWQ_ORDER.iter().position(|column| *column == row % 8).expect("eight columns");
            nibble(words[row / 8].to_le_bytes(), place)
        };
        let row_bytes = d_in.div_ceil(2);
        let mut codes = vec![0; row_bytes * d_out];
        codes.par_chunks_exact_mut(row_bytes.max(1)).enumerate().with_min_len(16).for_each(|(row, codes)| {
            for (column, words) in parts.codes.chunks_exact(words).enumerate() {
                codes[column / 2] |= number(words, row) << (4 * (column % 2));
            }
        });
        let zero = |group: usize, row: usize| number(&parts.zeros[group * words..], row);
        let (scales, zeros) = by_row(shape, groups, &parts.scales, zero);
        Ok(Self { format, codes: codes.into(), scales, zeros, groups, columns: ColumnGroups::Neighbours(parts.group) })
    }

    pub(super) fn byte_count(&self) -> usize {
        let columns = match &self.columns {
            ColumnGroups::Neighbours(_) => 0,
            ColumnGroups::Each(groups) => 4 * groups.len(),
        };
        self.codes.len() + 4 * self.scales.len() + self.zeros.len() + columns
    }

    /// Whether a code has a byte of its own.
    pub(crate) fn has_bytes(&self) -> bool {
        self.format == PackedFormat::Gptq8
    }

    /// Bytes of the codes of a row of `columns` values.
    pub(crate) fn row_bytes(&self, columns: usize) -> usize {
        if self.has_bytes() { columns } else { columns.div_ceil(2) }
    }

    /// Widens the values of a row from column `first` on; `columns` is the number of all columns.
    pub(super) fn widen(&self, row: usize, columns: usize, first: usize, values: &mut [f32]) {
        let row_bytes = self.row_bytes(columns);
        let codes = &self.codes[row * row_bytes..][..row_bytes];
        let (scales, zeros) = (&self.scales[row * self.groups..], &self.zeros[row * self.groups..]);
        let value = |code: u8, group: usize| scales[group] * (f32::from(code) - f32::from(zeros[group]));
        match (&self.columns, self.has_bytes()) {
            (ColumnGroups::Neighbours(size), true) => {
                let mut next = first;
                for values in rest_of_groups(first, *size, values) {
                    let codes = &codes[next..];
                    values.iter_mut().zip(codes).for_each(|(out, code)| *out = value(*code, next / size));
                    next += values.len();
                }
            }
            (ColumnGroups::Neighbours(size), false) => {
                let mut next = first;
                for values in rest_of_groups(first, *size, values) {
                    let table = std::array::from_fn(|code| value(code as u8, next / size));
                    look_up(&table, codes, FirstCode::Lower, next, values);
                    next += values.len();
                }
            }
            (ColumnGroups::Each(groups), has_bytes) => {
                let groups = groups[first..].iter().map(|group| *group as usize);
                for ((column, out), group) in (first..).zip(values).zip(groups) {
                    let code = if has_bytes { codes[column] } else { codes[column / 2] >> (4 * (column % 2)) & 15 };
                    *out = value(code, group);
                }
            }
        }
    }
}

/// Cuts the values from column `first` on where a group of `size` columns ends.
fn rest_of_groups(first: usize, size: usize, values: &mut [f32]) -> impl Iterator<Item = &mut [f32]> {
    let (head, tail) = values.split_at_mut(values.len().min(size - first % size));
    std::iter::once(head).chain(tail.chunks_mut(size))
}

/// The number of groups, if the shape can be one of this format.
fn groups(format: PackedFormat, shape: [usize; 2], group: usize) -> Result<usize, PackedError> {
    format.values(shape)?;
    if group == 0 {
        return Err(PackedError::NoValues { format, part: "groups" });
    }
    Ok(shape[1].div_ceil(group))
}

fn column_groups(
    format: PackedFormat,
    shape: [usize; 2],
    group: usize,
    groups: usize,
    found: Vec<i32>,
) -> Result<ColumnGroups, PackedError> {
    check_size(format, "the groups of columns", shape, shape[1], found.len())?;
    let exists = |index: i32| usize::try_from(index).is_ok_and(|index| index < groups);
    let mut wrong = found.iter().enumerate().filter(|(_, index)| !exists(**index));
    if let Some((column, index)) = wrong.next() {
        let count = 1 + wrong.count();
        return Err(PackedError::Group { format, column, group: *index, groups, count });
    }
    let each: Vec<u32> = found.into_iter().map(i32::cast_unsigned).collect();
    if each.iter().enumerate().all(|(column, index)| *index as usize == column / group) {
        return Ok(ColumnGroups::Neighbours(group));
    }
    Ok(ColumnGroups::Each(each))
}

/// Number `place` of a word of 4-bit numbers.
fn nibble(word: [u8; 4], place: usize) -> u8 {
    word[place / 2] >> (4 * (place % 2)) & 15
}

/// Scales and zero points `[d_out, groups]`, from scales `[groups, d_out]`.
fn by_row(
    [d_out, _]: [usize; 2],
    groups: usize,
    scales: &[f32],
    zero: impl Fn(usize, usize) -> u8,
) -> (Vec<f32>, Vec<u8>) {
    let places = || (0..d_out).flat_map(|row| (0..groups).map(move |group| (group, row)));
    let scales = places().map(|(group, row)| scales[group * d_out + row]).collect();
    (scales, places().map(|(group, row)| zero(group, row)).collect())
}
