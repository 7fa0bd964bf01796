//! The truncated SVD of one matrix: the choice of the algorithm, and what every result goes through.

use faer::{ColRef, Mat, MatRef};
use serde::{Deserialize, Serialize};

use crate::basis::norms;
use crate::exact::thin_svd;
use crate::gram;
use crate::krylov::{Krylov, Outcome, Plan};
use crate::operator::{Host, Operator, Wide, transpose};
use crate::{LinalgError, Scalar};

/// How to decompose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Exact where that is cheaper, else block Krylov, which gives way to eigenvectors of the Gram matrix where singular
    /// values lie close together, and to the exact algorithm where neither converges.
    #[default]
    Auto,
    /// All triplets by faer's thin SVD, of which the leading ones are kept; in f64 up to 512 rows or columns.
    Exact,
    /// The leading triplets by randomized block Krylov iteration.
    BlockKrylov,
    /// The leading triplets from the eigenvectors of `A A^T` or `A^T A`, whichever is smaller. Exact to rounding times
    /// `s_1 / s_rank` only: for flat spectra.
    Gram,
}

/// Small sides up to which the exact algorithm computes in f64 whatever the matrix's dtype. Vectors of neighbouring
/// singular values mix by `eps s_1 / gap`, which in f32 moves a residual by up to 1e-4 of `s_1`; at these sizes twice the
/// time is milliseconds.
const EXACT_IN_F64: usize = 512;

/// Options of [`truncated_svd`]. The default suits any matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct SvdOptions {
    /// How to decompose.
    pub algorithm: Algorithm,
    /// Largest `||A v - s u||_2` accepted, in units of the largest singular value. Default 1e-5.
    pub tolerance: f64,
    /// Columns of a Krylov block; 0, the default, chooses by rank.
    pub block: usize,
    /// Krylov blocks before giving up. Default 64.
    pub max_blocks: usize,
    /// Seed of the random start. Default 0.
    pub seed: u64,
}

impl Default for SvdOptions {
    fn default() -> Self {
        SvdOptions { algorithm: Algorithm::Auto, tolerance: 1e-5, block: 0, max_blocks: 64, seed: 0 }
    }
}

/// How a decomposition went.
#[derive(Debug, Clone, PartialEq)]
pub struct SvdReport {
    /// What ran: never [`Algorithm::Auto`].
    pub algorithm: Algorithm,
    /// Largest `||A v - s u||_2` of the triplets returned, in units of the largest singular value: measured, not
    /// estimated.
    pub residual: f64,
    /// Products with the matrix or its transpose, the final measurement among them.
    pub products: usize,
    /// Columns multiplied in those products.
    pub columns: usize,
}

/// The leading singular triplets of `A [m, n]`: `A v = s u`. The largest entry of each column of `u` is positive, so
/// that two machines agree on signs.
#[derive(Debug, Clone)]
pub struct Svd<T> {
    /// Left singular vectors `[m, rank]`, orthonormal.
    pub u: Mat<T>,
    /// Singular values `[rank]`, descending.
    pub s: Vec<T>,
    /// Right singular vectors `[n, rank]`, orthonormal.
    pub v: Mat<T>,
    /// How it went.
    pub report: SvdReport,
}

/// Singular vectors of a matrix `[m, n]`, before they are measured.
pub(crate) struct Vectors<T> {
    /// `[m, rank]`.
    pub u: Mat<T>,
    /// `[n, rank]`.
    pub v: Mat<T>,
}

/// The `rank` leading singular triplets of `a [m, n]`.
///
/// `name` stands for the matrix in errors. Called from one of rayon's workers it stays on that thread, else it uses all.
/// No copy of `a` is made but by the exact algorithm, and where its entries are so large or small that they are scaled.
///
/// # Errors
///
/// An empty matrix, one with entries that are not finite, a rank of 0 or above `min(m, n)`, and
/// [`LinalgError::NotConverged`] where the residual stays above the tolerance.
pub fn truncated_svd<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    rank: usize,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    check_rank(name, a.shape(), rank)?;
    check_finite(name, a)?;
    let largest = a.norm_max().into();
    if largest != 0.0 && !(1e-12..1e12).contains(&largest) {
        // Squares would leave the range of f32.
        let scaled = Mat::from_fn(a.nrows(), a.ncols(), |i, j| T::from_f64(a[(i, j)].into() / largest));
        let mut svd = truncated_svd(name, scaled.as_ref(), rank, options)?;
        svd.s.iter_mut().for_each(|s| *s = T::from_f64((*s).into() * largest));
        return Ok(svd);
    }
    if options.algorithm != Algorithm::Auto {
        return decompose(name, a, rank, options, options.algorithm);
    }
    if exact_is_cheaper(a.shape(), rank) {
        return decompose(name, a, rank, options, Algorithm::Exact);
    }
    match decompose(name, a, rank, options, Algorithm::BlockKrylov) {
        Err(LinalgError::NotConverged { .. }) => decompose(name, a, rank, options, Algorithm::Exact),
        done => done,
    }
}

fn decompose<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    rank: usize,
    options: &SvdOptions,
    algorithm: Algorithm,
) -> Result<Svd<T>, LinalgError> {
    if algorithm != Algorithm::Exact {
        return projected_svd(name, &Host(a), rank, options);
    }
    let triplets = if a.nrows().min(a.ncols()) <= EXACT_IN_F64 {
        let widened = Mat::from_fn(a.nrows(), a.ncols(), |i, j| -> f64 { a[(i, j)].into() });
        leading(widened.as_ref(), rank)
    } else {
        leading(a, rank)
    };
    let Some((u, v)) = triplets else {
        return Err(not_converged(name, f64::NAN, options, 0));
    };
    let host = Host(a);
    let wide = Wide::new(&host);
    let vectors = if wide.turned { Vectors { u: v, v: u } } else { Vectors { u, v } };
    finish(name, &wide, vectors, options, (Algorithm::Exact, 0))
}

/// The `rank` leading singular vectors of either side by the thin SVD of `a`, or `None` where it does not converge.
fn leading<S: Scalar, T: Scalar>(a: MatRef<'_, S>, rank: usize) -> Option<(Mat<T>, Mat<T>)> {
    let svd = thin_svd(a)?;
    let first = |x: &Mat<S>| Mat::from_fn(x.nrows(), rank, |i, j| T::from_f64(x[(i, j)].into()));
    Some((first(&svd.u), first(&svd.v)))
}

/// The algorithms that need no more of a matrix than its products, on one of finite entries and at least `rank` both ways:
/// the one that `options` names, or the iteration until it is seen to be slow.
pub(crate) fn projected_svd<T: Scalar>(
    name: &str,
    a: &impl Operator<T>,
    rank: usize,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    let a = Wide::new(a);
    let by_gram = || match gram::triplets(&a, rank)? {
        Some(vectors) => finish(name, &a, vectors, options, (Algorithm::Gram, 0)),
        None => Err(not_converged(name, f64::NAN, options, 0)),
    };
    if options.algorithm == Algorithm::Gram {
        return by_gram();
    }
    let mut iteration = Krylov::new(&a, krylov_plan(a.shape().0, rank, options));
    let may_leave = options.algorithm == Algorithm::Auto && gram::is_cheaper::<T>(a.shape(), rank);
    if may_leave && iteration.finds_a_flat_spectrum()? {
        match by_gram() {
            Err(LinalgError::NotConverged { .. }) => {}
            done => return done,
        }
    }
    match iteration.run()? {
        Outcome::Converged { vectors, blocks } => finish(name, &a, vectors, options, (Algorithm::BlockKrylov, blocks)),
        Outcome::Stopped { residual, blocks } => Err(not_converged(name, residual, options, blocks)),
    }
}

fn krylov_plan(small_side: usize, rank: usize, options: &SvdOptions) -> Plan {
    let automatic = (rank / 4).next_multiple_of(8).clamp(8, 48);
    let block = if options.block == 0 { automatic } else { options.block }.min(small_side);
    // From there on all triplets cost less; measured as [`exact_is_cheaper`], on flat spectra.
    let auto_limit = (2 * small_side).div_ceil(3 * block);
    let max_blocks = match options.algorithm {
        Algorithm::Auto => options.max_blocks.min(auto_limit),
        _ => options.max_blocks,
    }
    .max(rank.div_ceil(block));
    // The other half is for rounding in what is measured at the end.
    let tolerance = options.tolerance / 2.0;
    Plan { rank, block, max_blocks, tolerance, seed: options.seed }
}

/// The largest of numbers from 0 on; NaN where one is, which `max` would pass over.
pub(crate) fn largest_of(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers
        .into_iter()
        .fold(0.0, |largest, number| if largest.is_nan() || number <= largest { largest } else { number })
}

/// Measures the triplets `u`, `v` of `a`, and puts them in the form promised by [`Svd`]. The singular values are the
/// Rayleigh quotients `u^T A v`: their error is the square of the vectors'. The last argument says what
/// made them, and in how many blocks.
fn finish<T: Scalar, O: Operator<T>>(
    name: &str,
    a: &Wide<'_, O>,
    Vectors { mut u, mut v }: Vectors<T>,
    options: &SvdOptions,
    (algorithm, blocks): (Algorithm, usize),
) -> Result<Svd<T>, LinalgError> {
    normalize(&mut u);
    normalize(&mut v);
    let image = a.apply(v.transpose())?;
    let image = transpose(image.as_ref());
    let rank = u.ncols();
    let mut s = Vec::with_capacity(rank);
    let mut residuals = Vec::with_capacity(rank);
    for (image, u) in image.col_iter().zip(u.col_iter()) {
        let pairs = || image.iter().zip(u.iter()).map(|(&x, &u)| (x.into(), u.into()));
        let value = pairs().map(|(x, u): (f64, f64)| x * u).sum::<f64>().max(0.0);
        residuals.push(pairs().map(|(x, u)| (x - value * u).powi(2)).sum::<f64>().sqrt());
        s.push(value);
    }
    let mut order: Vec<usize> = (0..rank).collect();
    order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
    let largest = s[order[0]];
    let worst = largest_of(residuals);
    let residual = if worst == 0.0 { 0.0 } else { worst / largest };
    if !(residual.is_finite() && largest.is_finite()) || residual > options.tolerance {
        return Err(not_converged(name, residual, options, blocks));
    }
    if a.turned {
        std::mem::swap(&mut u, &mut v);
    }
    let signs: Vec<T> = u.col_iter().map(|column| sign_of_largest(column.iter())).collect();
    let arrange = |x: &Mat<T>| Mat::from_fn(x.nrows(), rank, |i, j| x[(i, order[j])] * signs[order[j]]);
    let (products, columns) = a.work();
    Ok(Svd {
        u: arrange(&u),
        s: order.iter().map(|&j| T::from_f64(s[j])).collect(),
        v: arrange(&v),
        report: SvdReport { algorithm, residual, products, columns },
    })
}

fn normalize<T: Scalar>(a: &mut Mat<T>) {
    for (j, norm) in norms(a.as_ref()).into_iter().enumerate() {
        for x in a.col_as_slice_mut(j) {
            *x = T::from_f64((*x).into() / norm);
        }
    }
}

fn sign_of_largest<'a, T: Scalar>(column: impl Iterator<Item = &'a T>) -> T {
    let largest = column.map(|&x| x.into()).fold(0.0f64, |best, x: f64| if x.abs() > best.abs() { x } else { best });
    T::from_f64(if largest < 0.0 { -1.0 } else { 1.0 })
}

fn not_converged(name: &str, residual: f64, options: &SvdOptions, blocks: usize) -> LinalgError {
    LinalgError::NotConverged { name: name.into(), residual, tolerance: options.tolerance, blocks }
}

pub(crate) fn check_rank(name: &str, (rows, cols): (usize, usize), rank: usize) -> Result<(), LinalgError> {
    let name = || name.to_owned();
    if rows == 0 || cols == 0 {
        return Err(LinalgError::Empty { name: name(), rows, cols });
    }
    if rank == 0 {
        return Err(LinalgError::RankZero { name: name() });
    }
    if rank > rows.min(cols) {
        return Err(LinalgError::RankTooLarge { name: name(), rank, rows, cols });
    }
    Ok(())
}

pub(crate) fn check_finite<T: Scalar>(name: &str, a: MatRef<'_, T>) -> Result<(), LinalgError> {
    let finite = |x: &T| -> bool { (*x).into().is_finite() };
    // Along the storage: a row-major matrix is a column-major one turned.
    let turned = a.row_stride().abs() > a.col_stride().abs();
    let stored = if turned { a.transpose() } else { a };
    // Without an early exit a column is scanned at the speed of memory.
    let whole = |column: ColRef<'_, T>| match column.try_as_col_major() {
        Some(column) => column.as_slice().iter().fold(true, |all, x| all & finite(x)),
        None => column.iter().all(finite),
    };
    if stored.col_iter().all(whole) {
        return Ok(());
    }
    let mut bad = stored.col_iter().enumerate().flat_map(|(j, column)| {
        column.iter().enumerate().filter(|(_, x)| !finite(x)).map(move |(i, &x)| (i, j, x.into()))
    });
    let Some((i, j, value)) = bad.next() else { return Ok(()) };
    let (row, col) = if turned { (j, i) } else { (i, j) };
    Err(LinalgError::NotFinite { name: name.into(), row, col, value, count: 1 + bad.count() })
}

/// Where all triplets cost less than the leading ones by iteration; measured, see `examples/svd_speed.rs`.
pub(crate) fn exact_is_cheaper((rows, cols): (usize, usize), rank: usize) -> bool {
    let small_side = rows.min(cols);
    small_side <= 256 || 6 * rank > small_side
}
