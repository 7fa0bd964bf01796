//! The values of a packed weight in burn's operations, a part at a time: for devices whose memory the CPU's kernels do not see.

use std::ops::Range;

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use sorsa_kernels::four_bit::NESTED_BLOCK;
use sorsa_kernels::packed::{GroupWords, PackedFormat, RoundedTo, ScaleWords, WordLayout, WordParts};

use super::numbers::{bytes, float, floats, halves, looked_up, lower, rounded, upper};
use super::{PackedWeight, blocks};

/// Values that are widened at a time.
const PART_VALUES: usize = 1 << 22;

/// The stored matrix `[rows, columns]` of a packed weight.
pub(crate) struct StoredMatrix {
    words: Tensor<1, Int>,
    layout: WordLayout,
}

impl StoredMatrix {
    /// Reads some of the first words from the device.
    pub fn new(weight: &PackedWeight) -> Self {
        let words = weight.words();
        let read = |range: Range<usize>| {
            words.clone().slice(range).into_data().convert::<i32>().try_into_vec().expect("words are i32")
        };
        let layout = WordLayout::read(words.dims()[0], read).expect("words that a packed matrix became");
        Self { words, layout }
    }

    /// `[rows, columns]`.
    pub fn shape(&self) -> [usize; 2] {
        self.layout.shape
    }

    /// Ranges of rows of bounded size, which together are all rows.
    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let [rows, columns] = self.layout.shape;
        let step = (PART_VALUES / columns.max(1)).max(1);
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// The values of a range of rows, f32.
    ///
    /// # Shapes
    ///
    /// - output: `[rows of the range, columns]`
    pub fn rows(&self, rows: Range<usize>) -> Tensor<2> {
        let [all_rows, columns] = self.layout.shape;
        match &self.layout.parts {
            WordParts::Rows(words) => {
                let row_bytes = self.row_bytes();
                self.values_of_rows(self.bytes(words, rows.start * row_bytes..rows.end * row_bytes))
            }
            WordParts::FourBit { rounded_to, block, book, codes, scales } => {
                let wanted = rows.start * columns..rows.end * columns;
                let blocks = wanted.start / block..wanted.end.div_ceil(*block);
                let whole = blocks.start * block..(blocks.end * block).min(all_rows * columns);
                let codes = self.bytes(codes, whole.start / 2..whole.end.div_ceil(2));
                let count = 2 * codes.dims()[0];
                let codes = Tensor::stack::<2>(vec![upper(codes.clone()), lower(codes)], 1).reshape([count]);
                let codes = codes.narrow(0, whole.start % 2, whole.len());
                let missing = blocks.len() * block - whole.len();
                let codes = match missing {
                    0 => codes,
                    _ => Tensor::cat(vec![codes, Tensor::zeros([missing], (&self.device(), DType::I32))], 0),
                };
                let values = looked_up(self.floats(book), codes.reshape([blocks.len(), *block]));
                let values = values * self.scales(scales, blocks.clone()).unsqueeze_dim::<2>(1);
                let values = match rounded_to {
                    RoundedTo::F32 => values,
                    RoundedTo::F16 => rounded(values, FloatDType::F16),
                    RoundedTo::Bf16 => rounded(values, FloatDType::BF16),
                };
                let values = values.reshape([blocks.len() * block]);
                values.narrow(0, wanted.start - whole.start, wanted.len()).reshape([rows.len(), columns])
            }
            WordParts::Grouped { codes, scales, zeros, groups, columns: column_groups } => {
                let row_bytes = if self.layout.format == PackedFormat::Gptq8 { columns } else { columns.div_ceil(2) };
                let codes = self.bytes(codes, rows.start * row_bytes..rows.end * row_bytes);
                let codes = codes.reshape([rows.len(), row_bytes]);
                let codes = match self.layout.format {
                    PackedFormat::Gptq8 => codes,
                    _ => Tensor::stack::<3>(vec![lower(codes.clone()), upper(codes)], 2)
                        .reshape([rows.len(), 2 * row_bytes])
                        .narrow(1, 0, columns),
                };
                let places = rows.start * groups..rows.end * groups;
                let scales = self.floats(&(scales.start + places.start..scales.start + places.end));
                let scales = scales.reshape([rows.len(), *groups]);
                let zeros = float(self.bytes(zeros, places)).reshape([rows.len(), *groups]);
                let of_columns = |of_groups: Tensor<2>| match column_groups {
                    GroupWords::Neighbours(size) => of_groups
                        .unsqueeze_dim::<3>(2)
                        .expand([rows.len(), *groups, *size])
                        .reshape([rows.len(), groups * size])
                        .narrow(1, 0, columns),
                    GroupWords::Each(words) => of_groups.select(1, self.words.clone().slice(words.clone())),
                };
                (float(codes) - of_columns(zeros)) * of_columns(scales)
            }
        }
    }

    /// The values of the rows `ids`, f32.
    ///
    /// # Shapes
    ///
    /// - ids: `[n]`
    /// - output: `[n, columns]`
    pub fn rows_of_ids(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        let [rows, _] = self.layout.shape;
        let count = ids.dims()[0];
        if let WordParts::Rows(words) = &self.layout.parts {
            // So many rows are whole words.
            let group = [1, 2, 4].into_iter().find(|group| (group * self.row_bytes()).is_multiple_of(4)).unwrap_or(4);
            if rows.is_multiple_of(group) {
                let group_words = group * self.row_bytes() / 4;
                let groups = self.words.clone().slice(words.clone()).reshape([rows / group, group_words]);
                let found = groups.select(0, ids.clone() / group as i32).reshape([count * group_words]);
                let values = self.values_of_rows(bytes(found));
                if group == 1 {
                    return values;
                }
                let first = Tensor::<1, Int>::arange(0..count as i64, (&self.device(), DType::I32)) * group as i32;
                return values.select(0, first + ids % group as i32);
            }
        }
        self.rows_of_ids_by_parts(ids)
    }

    /// The values of the rows `ids`, for matrices whose rows are no whole words: every part is widened.
    fn rows_of_ids_by_parts(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        let [count, columns] = [ids.dims()[0], self.layout.shape[1]];
        self.parts().fold(Tensor::zeros([count, columns], (&self.device(), DType::F32)), |found, part| {
            let place = ids.clone() - part.start as i32;
            let is_inside = place.clone().greater_equal_elem(0).bool_and(place.clone().lower_elem(part.len() as i32));
            let here = self.rows(part.clone()).select(0, place.clamp(0, part.len() as i32 - 1));
            found.mask_where(is_inside.unsqueeze_dim::<2>(1).expand([count, columns]), here)
        })
    }

    /// Bytes of a row of blocks or of f16 numbers.
    fn row_bytes(&self) -> usize {
        let columns = self.layout.shape[1];
        match self.layout.format {
            PackedFormat::Blocks(format) => columns / format.block_values() * format.block_bytes(),
            _ => 2 * columns,
        }
    }

    /// The values of whole rows of blocks or of f16 numbers.
    fn values_of_rows(&self, bytes: Tensor<1, Int>) -> Tensor<2> {
        let columns = self.layout.shape[1];
        let (count, rows) = (bytes.dims()[0], bytes.dims()[0] / self.row_bytes().max(1));
        let values = match self.layout.format {
            PackedFormat::Blocks(format) => {
                blocks::values(format, bytes.reshape([count / format.block_bytes(), format.block_bytes()]))
            }
            _ => {
                let pairs = bytes.reshape([count / 2, 2]);
                halves(pairs.clone().narrow(1, 0, 1), pairs.narrow(1, 1, 1))
            }
        };
        values.reshape([rows, columns])
    }

    /// The scales of a range of blocks.
    fn scales(&self, scales: &ScaleWords, blocks: Range<usize>) -> Tensor<1> {
        match scales {
            ScaleWords::Single(words) => self.floats(&(words.start + blocks.start..words.start + blocks.end)),
            ScaleWords::Nested { codes, scales, book, offset } => {
                let nested = blocks.start / NESTED_BLOCK..blocks.end.div_ceil(NESTED_BLOCK);
                let first = nested.start * NESTED_BLOCK;
                let numbers = (blocks.start - first) as i64..(blocks.end - first) as i64;
                let numbers = Tensor::<1, Int>::arange(numbers, (&self.device(), DType::I32)) / NESTED_BLOCK as i32;
                let scales = self.floats(&(scales.start + nested.start..scales.start + nested.end)).select(0, numbers);
                looked_up(self.floats(book), self.bytes(codes, blocks)) * scales + self.floats(offset)
            }
        }
    }

    /// A range of the bytes that start at the first word of `part`.
    fn bytes(&self, part: &Range<usize>, range: Range<usize>) -> Tensor<1, Int> {
        let words = range.start / 4..range.end.div_ceil(4);
        let all = bytes(self.words.clone().slice(part.start + words.start..part.start + words.end));
        all.narrow(0, range.start - 4 * words.start, range.len())
    }

    fn floats(&self, words: &Range<usize>) -> Tensor<1> {
        floats(self.words.clone().slice(words.clone()))
    }

    fn device(&self) -> Device {
        self.words.device()
    }
}
