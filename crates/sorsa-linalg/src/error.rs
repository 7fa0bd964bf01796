//! Errors of this crate. Each names the matrix.

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
        /// Row of the first entry that is not finite, in storage order.
        row: usize,
        /// Column of that entry.
        col: usize,
        /// Value of that entry.
        value: f64,
        /// Number of entries that are not finite.
        count: usize,
    },
    /// The requested rank is 0.
    #[error("rank 0 was asked for matrix `{name}`, it must be at least 1")]
    RankZero {
        /// Name of the matrix.
        name: String,
    },
    /// The requested rank is larger than the matrix allows.
    #[error(
        "rank {rank} was asked for matrix `{name}`, a {rows} x {cols} matrix has at most {}",
        rows.min(cols)
    )]
    RankTooLarge {
        /// Name of the matrix.
        name: String,
        /// The requested rank.
        rank: usize,
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        cols: usize,
    },
    /// The residual stays above the tolerance.
    #[error(
        "svd of matrix `{name}` did not converge: residual {residual:.1e} after {blocks} blocks, wanted {tolerance:.1e}"
    )]
    NotConverged {
        /// Name of the matrix.
        name: String,
        /// Largest residual, in units of the largest singular value. NaN if the computation overflowed.
        residual: f64,
        /// Accepted residual, in the same units.
        tolerance: f64,
        /// Number of Krylov blocks; 0 for the other algorithms.
        blocks: usize,
    },
    /// The device that holds the tensor failed.
    #[error("matrix `{name}` could not be read from its device")]
    Device {
        /// Name of the matrix.
        name: String,
        /// Error of the backend.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Two bases have different numbers of rows.
    #[error("column spaces in different spaces: one has {left} rows, the other {right}")]
    RowsDiffer {
        /// Number of rows of the first basis.
        left: usize,
        /// Number of rows of the second basis.
        right: usize,
    },
}
