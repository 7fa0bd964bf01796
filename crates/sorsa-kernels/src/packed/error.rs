//! What is wrong with values that should be packed, or with the parts of a packed matrix.

use super::PackedFormat;

/// Why a matrix cannot be packed, or its parts are no packed matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// Rows that are not whole blocks.
    #[error("rows of {columns} values are not whole blocks of {format}, which have {block}")]
    PartialBlocks {
        /// The format.
        format: PackedFormat,
        /// Values of a row.
        columns: usize,
        /// Values of a block.
        block: usize,
    },
    /// A part of another size than the shape needs.
    #[error("{part} of a matrix of {shape:?} in {format} should be {expected}, found {found}")]
    Size {
        /// The format.
        format: PackedFormat,
        /// What is counted.
        part: &'static str,
        /// `[rows, columns]`.
        shape: [usize; 2],
        /// The count that the shape needs.
        expected: usize,
        /// The count of the part.
        found: usize,
    },
    /// A shape that no memory holds.
    #[error("a matrix of {shape:?} in {format} is larger than any memory")]
    TooLarge {
        /// The format.
        format: PackedFormat,
        /// `[rows, columns]`.
        shape: [usize; 2],
    },
    /// A format that is read but not made.
    #[error("matrices in {format} are read from files and cannot be packed here, expected one of {}",
        PackedFormat::packable().map(PackedFormat::name).collect::<Vec<_>>().join(", "))]
    NotPackable {
        /// The format.
        format: PackedFormat,
    },
    /// Blocks or groups of no values.
    #[error("{part} of {format} should have at least one value, found 0")]
    NoValues {
        /// The format.
        format: PackedFormat,
        /// The blocks or the groups.
        part: &'static str,
    },
    /// Codes or zero points that do not fill their words of 32 bits.
    #[error("{part} of a matrix of {shape:?} in {format} do not fill words of {per_word}")]
    PartialWords {
        /// The format.
        format: PackedFormat,
        /// Codes or zero points.
        part: &'static str,
        /// `[rows, columns]`.
        shape: [usize; 2],
        /// Numbers of a word.
        per_word: usize,
    },
    /// Words that are no packed matrix.
    #[error("these words are no packed matrix")]
    Words,
    /// Columns of a group that does not exist.
    #[error("column {column} of a matrix in {format} is of group {group}, expected 0 to {}; {count} such columns", groups - 1)]
    Group {
        /// The format.
        format: PackedFormat,
        /// The first such column.
        column: usize,
        /// Its group.
        group: i32,
        /// The number of groups.
        groups: usize,
        /// The number of such columns.
        count: usize,
    },
}

/// Compares the size of a part with the size that the shape needs.
pub(super) fn check_size(
    format: PackedFormat,
    part: &'static str,
    shape: [usize; 2],
    expected: usize,
    found: usize,
) -> Result<(), PackedError> {
    if expected == found { Ok(()) } else { Err(PackedError::Size { format, part, shape, expected, found }) }
}
