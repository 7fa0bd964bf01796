//! The truncated SVD of one matrix: it chooses the algorithm, and measures every result.

use faer::{ColRef, Mat, MatRef};
use serde::{Deserialize, Serialize};

use crate::basis::norms;
use crate::exact::thin_svd;
use crate::gram;
use crate::krylov::{Krylov, KrylovResult, KrylovSettings};
use crate::operator::{Host, Operator, Wide, transpose};
use crate::{LinalgError, Scalar};

/// How to decompose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// `Exact` if it is cheaper, otherwise `BlockKrylov`. For a flat spectrum, `Gram` replaces `BlockKrylov`; if neither
    /// converges, `Exact` runs.
    #[default]
    Auto,
    /// The leading triplets of faer's thin SVD; in f64 if the smaller side is at most 512.
    Exact,
    /// The leading triplets by randomized block Krylov iteration.
    BlockKrylov,
    /// The leading triplets from the eigenvectors of the smaller of `A A^T` and `A^T A`. They are exact to rounding times
    /// `s_1 / s_rank` only, so it suits flat spectra. `BlockKrylov` replaces it if the matrix has a smaller rank than wanted.
    Gram,
}

/// Largest smaller side for which the exact algorithm always computes in f64. Vectors of neighbouring singular values mix
/// by `eps s_1 / gap`. In f32 this moves a residual by up to 1e-4 of `s_1`. At these sizes f64 costs milliseconds.
const EXACT_IN_F64: usize = 512;

/// Options of [`truncated_svd`]. The default suits any matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct SvdOptions {
    /// Algorithm. The default is [`Algorithm::Auto`].
    pub algorithm: Algorithm,
    /// Largest accepted `||A v - s u||_2`, in units of the largest singular value. The default is 1e-5.
    pub tolerance: f64,
    /// Number of columns in a Krylov block. The default 0 chooses it by the rank.
    pub block: usize,
    /// Maximum number of Krylov blocks. The default is 64.
    pub max_blocks: usize,
    /// Seed of the random start. The default is 0.
    pub seed: u64,
}

impl Default for SvdOptions {
    fn default() -> Self {
        SvdOptions { algorithm: Algorithm::Auto, tolerance: 1e-5, block: 0, max_blocks: 64, seed: 0 }
    }
}

/// Report on a decomposition: algorithm, residual and work.
#[derive(Debug, Clone, PartialEq)]
pub struct SvdReport {
    /// The algorithm that ran; never [`Algorithm::Auto`].
    pub algorithm: Algorithm,
    /// Largest `||A v - s u||_2` of the returned triplets, in units of the largest singular value. It is measured, not
    /// estimated.
    pub residual: f64,
    /// Number of products with the matrix or its transpose, including the final measurement.
    pub products: usize,
    /// Number of columns in those products.
    pub columns: usize,
}

/// The leading singular triplets of `A [m, n]`: `A v = s u`. The entry of largest magnitude in each column of `u` is
/// positive, so that signs agree between machines.
#[derive(Debug, Clone)]
pub struct Svd<T> {
    /// Left singular vectors `[m, rank]`, orthonormal.
    pub u: Mat<T>,
    /// Singular values `[rank]`, descending.
    pub s: Vec<T>,
    /// Right singular vectors `[n, rank]`, orthonormal.
    pub v: Mat<T>,
    /// Algorithm, residual and work.
    pub report: SvdReport,
}

/// Singular vectors of a matrix `[m, n]`, before the measurement of their residual.
pub(crate) struct Vectors<T> {
    /// `[m, rank]`.
    pub u: Mat<T>,
    /// `[n, rank]`.
    pub v: Mat<T>,
}

/// The `rank` leading singular triplets of `a [m, n]`.
///
/// Errors call the matrix `name`. On one of rayon's workers, the function uses only that thread, otherwise all threads. It
/// copies `a` only for the exact algorithm, or to scale very large or small entries.
///
/// # Errors
///
/// An empty matrix, entries that are not finite, a rank of 0 or above `min(m, n)`, and [`LinalgError::NotConverged`] if the
/// residual stays above the tolerance.
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
        // The squares of unscaled entries would leave the range of f32.
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
    if a.nrows().min(a.ncols()) <= EXACT_IN_F64 {
        return exact_in_f64(name, a, rank, options);
    }
    match measured(name, a, leading(a, rank), options) {
        // The residual of faer's SVD in f32 is up to a thousand units in the last place where singular values are close.
        Err(LinalgError::NotConverged { .. }) if T::EPSILON > f64::EPSILON => exact_in_f64(name, a, rank, options),
        done => done,
    }
}

/// The leading triplets of faer's thin SVD, computed in f64.
fn exact_in_f64<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    rank: usize,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    let widened = Mat::from_fn(a.nrows(), a.ncols(), |i, j| -> f64 { a[(i, j)].into() });
    measured(name, a, leading(widened.as_ref(), rank), options)
}

/// Measures the leading left and right singular vectors of `a` by the exact algorithm.
fn measured<T: Scalar>(
    name: &str,
    a: MatRef<'_, T>,
    triplets: Option<(Mat<T>, Mat<T>)>,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    let Some((u, v)) = triplets else {
        return Err(not_converged(name, f64::NAN, options, 0));
    };
    let host = Host(a);
    let wide = Wide::new(&host);
    let vectors = if wide.turned { Vectors { u: v, v: u } } else { Vectors { u, v } };
    finish(name, &wide, vectors, options, (Algorithm::Exact, 0))
}

/// The `rank` leading left and right singular vectors by the thin SVD of `a`. `None` if it does not converge.
fn leading<S: Scalar, T: Scalar>(a: MatRef<'_, S>, rank: usize) -> Option<(Mat<T>, Mat<T>)> {
    let svd = thin_svd(a)?;
    let first = |x: &Mat<S>| Mat::from_fn(x.nrows(), rank, |i, j| T::from_f64(x[(i, j)].into()));
    Some((first(&svd.u), first(&svd.v)))
}

/// The algorithms that need only products with the matrix. Its entries must be finite, and both sides at least `rank`. For
/// [`Algorithm::Auto`], the iteration runs unless the spectrum is flat.
pub(crate) fn projected_svd<T: Scalar>(
    name: &str,
    a: &impl Operator<T>,
    rank: usize,
    options: &SvdOptions,
) -> Result<Svd<T>, LinalgError> {
    let a = Wide::new(a);
    let by_gram = || match gram::triplets(&a, rank)? {
        Some(vectors) => finish(name, &a, vectors, options, (Algorithm::Gram, 0)).map(Some),
        None => Ok(None),
    };
    // A matrix of smaller rank, such as 0, has no images to make right vectors of. The iteration completes them.
    if options.algorithm == Algorithm::Gram
        && let Some(svd) = by_gram()?
    {
        return Ok(svd);
    }
    let mut iteration = Krylov::new(&a, krylov_settings(a.shape().0, rank, options));
    let may_leave = options.algorithm == Algorithm::Auto && gram::is_cheaper::<T>(a.shape(), rank);
    if may_leave && iteration.finds_a_flat_spectrum()? {
        match by_gram() {
            Ok(None) | Err(LinalgError::NotConverged { .. }) => {}
            Ok(Some(svd)) => return Ok(svd),
            Err(error) => return Err(error),
        }
    }
    match iteration.run()? {
        KrylovResult::Converged { vectors, blocks } => {
            finish(name, &a, vectors, options, (Algorithm::BlockKrylov, blocks))
        }
        KrylovResult::Stopped { residual, blocks } => Err(not_converged(name, residual, options, blocks)),
    }
}

fn krylov_settings(small_side: usize, rank: usize, options: &SvdOptions) -> KrylovSettings {
    let automatic = (rank / 4).next_multiple_of(8).clamp(8, 48);
    let block = if options.block == 0 { automatic } else { options.block }.min(small_side);
    // With more blocks, all triplets cost less; measured like [`exact_is_cheaper`], on flat spectra.
    let auto_limit = (2 * small_side).div_ceil(3 * block);
    let max_blocks = match options.algorithm {
        Algorithm::Auto => options.max_blocks.min(auto_limit),
        _ => options.max_blocks,
    }
    .max(rank.div_ceil(block));
    // The other half allows for rounding errors in the final measurement.
    let tolerance = options.tolerance / 2.0;
    KrylovSettings { rank, block, max_blocks, tolerance, seed: options.seed }
}

/// The largest of non-negative numbers. NaN if one of them is NaN, which `max` would ignore.
pub(crate) fn largest_of(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers
        .into_iter()
        .fold(0.0, |largest, number| if largest.is_nan() || number <= largest { largest } else { number })
}

/// Measures the triplets `u`, `v` of `a`, and orders them like [`Svd`] promises. The singular values are the Rayleigh
/// quotients `u^T A v`: their error is the square of the error of the vectors. The last argument is the algorithm and its
/// number of blocks.
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

pub(crate) fn sign_of_largest<'a, T: Scalar>(column: impl Iterator<Item = &'a T>) -> T {
    let largest = column.map(|&x| x.into()).fold(0.0f64, |best, x: f64| if x.abs() > best.abs() { x } else { best });
    T::from_f64(if largest < 0.0 { -1.0 } else { 1.0 })
}

pub(crate) fn not_converged(name: &str, residual: f64, options: &SvdOptions, blocks: usize) -> LinalgError {
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
    // Scan in storage order: a row-major matrix is a transposed column-major one.
    let turned = a.row_stride().abs() > a.col_stride().abs();
    let stored = if turned { a.transpose() } else { a };
    // Without an early exit, the scan of a column runs at memory bandwidth.
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

/// Whether all triplets cost less than the leading ones by iteration. `examples/svd_speed.rs` measured the limits.
pub(crate) fn exact_is_cheaper((rows, cols): (usize, usize), rank: usize) -> bool {
    let small_side = rows.min(cols);
    small_side <= 256 || 6 * rank > small_side
}
