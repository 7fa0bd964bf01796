//! What can go wrong, always with the name of the matrix it went wrong for.

use std::error::Error;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinalgError {
    /// The matrix has no rows or no columns.
    #[error("matrix `{name}` is empty: {rows} x {cols}")]
    Empty {
        /// Name of the matrix.
        name: String,
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        cols: usize,
    },
    /// The matrix holds NaN or an infinity.
    #[error("matrix `{name}` has {count} entries that are not finite, the first is {value} at row {row}, column {col}")]
    NotFinite {
        /// Name of the matrix.
        name: String,
        /// Row of the first such entry, in the order of storage.
        row: usize,
        /// Column of that entry.
        col: usize,
        /// That entry.
        value: f64,
        /// How many entries are not finite.
        count: usize,
    },
    /// No singular triplet was asked for.
    #[error("rank 0 was asked for matrix `{name}`, it must be at least 1")]
    RankZero {
        /// Name of the matrix.
        name: String,
    },
    /// More triplets were asked for than the matrix has.
    #[error(
        "rank {rank} was asked for matrix `{name}`, a {rows} x {cols} matrix has at most {}",
        rows.min(cols)
    )]
    RankTooLarge {
        /// Name of the matrix.
        name: String,
        /// The rank asked for.
        rank: usize,
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        cols: usize,
    },
    /// The tolerance was not reached.
    #[error(
        "svd of matrix `{name}` did not converge: residual {residual:.1e} after {blocks} blocks, wanted {tolerance:.1e}"
    )]
    NotConverged {
        /// Name of the matrix.
        name: String,
        /// Largest residual reached, in units of the largest singular value; NaN where the computation overflowed.
        residual: f64,
        /// The residual wanted, in the same units.
        tolerance: f64,
        /// Blocks of Krylov vectors used; 0 for the exact algorithm.
        blocks: usize,
    },
    /// The device that holds the tensor failed.
    #[error("matrix `{name}` could not be read from its device")]
    Device {
        /// Name of the matrix.
        name: String,
        /// What the backend said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Two bases that should lie in one space do not.
    #[error("column spaces in different spaces: one has {left} rows, the other {right}")]
    RowsDiffer {
        /// Rows of the first basis.
        left: usize,
        /// Rows of the second.
        right: usize,
    },
}
