//! Many matrices, in parallel over the matrices.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use faer::Mat;
use rayon::prelude::*;

use crate::{LinalgError, Scalar, Svd, SvdOptions, SvdReport, truncated_svd};

/// Gives the matrix of a [`Job`] when its turn comes.
pub type Loader<'a, T> = Box<dyn FnOnce() -> Result<Mat<T>, Box<dyn Error + Send + Sync>> + Send + 'a>;

/// One matrix to decompose.
pub struct Job<'a, T> {
    /// Stands for the matrix in errors and in progress.
    pub name: String,
    /// How many singular triplets are wanted.
    pub rank: usize,
    /// Gives the matrix.
    pub load: Loader<'a, T>,
}

/// A job that has ended.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Name of its matrix.
    pub name: &'a str,
    /// How it went.
    pub outcome: Result<&'a SvdReport, &'a LinalgError>,
    /// Jobs that have ended, this one included.
    pub done: usize,
    /// All jobs.
    pub total: usize,
}

/// Decomposes all matrices, one on each thread of rayon's current pool; no more of them exist at a time than there are
/// threads. Fewer matrices than threads are taken one after the other, each by all threads. The results stand in the
/// order of the jobs. `progress` is called after each, from any thread.
///
/// # Errors
///
/// Every job runs to its end; then the error of the one that failed, or [`LinalgError::Several`].
pub fn decompose_all<T: Scalar>(
    jobs: Vec<Job<'_, T>>,
    options: &SvdOptions,
    progress: impl Fn(Progress<'_>) + Sync,
) -> Result<Vec<Svd<T>>, LinalgError> {
    let (total, done) = (jobs.len(), AtomicUsize::new(0));
    let run = |job: Job<'_, T>| {
        let Job { name, rank, load } = job;
        let outcome = load()
            .map_err(|source| LinalgError::Load { name: name.clone(), source })
            .and_then(|a| truncated_svd(&name, a.as_ref(), rank, options));
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress { name: &name, outcome: outcome.as_ref().map(|svd| &svd.report), done, total });
        outcome
    };
    let outcomes: Vec<_> = if total < rayon::current_num_threads() {
        jobs.into_iter().map(run).collect()
    } else {
        jobs.into_par_iter().with_max_len(1).map(run).collect()
    };
    let mut results = Vec::with_capacity(total);
    let mut errors = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(svd) => results.push(svd),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(results),
        1 => Err(errors.remove(0)),
        _ => Err(LinalgError::Several(errors)),
    }
}
