//! Leading singular triplets by randomized block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477), in the
//! form of block Golub-Kahan bidiagonalization with full re-orthogonalization.
//!
//! From a Gaussian start, the bases `Q` and `P` grow alternately by one block: `P` by `A^T Q_j`, `Q` by `A P_j`. The basis
//! keeps all powers, while power iteration keeps only the last. So the iteration converges like a Chebyshev polynomial.
//! Since `A^T Q = P R` holds to rounding, the SVD of the small `R = X S Y^T` is the Rayleigh-Ritz step: `u = Q y`,
//! `v = P x`, `A^T u = s v`. The residual lies in the next block: `A v - s u = Q_next B x_last`. Blocks are panels, with
//! vectors in their rows.

use faer::Mat;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::basis::{Basis, gaussian, norms};
use crate::exact::thin_svd;
use crate::operator::{Operator, product};
use crate::ritz::{Ritz, leading};
use crate::svd::{Vectors, largest_of};
use crate::{LinalgError, Scalar};

/// Width and number of the blocks that search for triplets that the iteration missed.
const PROBE: (usize, usize) = (8, 3);

/// Number of blocks that estimate the stable rank well enough.
const FLAT_BLOCKS: usize = 2;
/// Smallest stable rank of a flat spectrum, in units of the requested rank.
const FLAT_RANKS: f64 = 1.5;

/// Settings of an iteration, without open defaults.
pub(crate) struct KrylovSettings {
    pub rank: usize,
    pub block: usize,
    /// Maximum number of blocks; enough for `rank` columns.
    pub max_blocks: usize,
    /// Residual to reach, in units of the largest singular value.
    pub tolerance: f64,
    pub seed: u64,
}

/// Result of an iteration.
pub(crate) enum KrylovResult<T> {
    Converged {
        vectors: Vectors<T>,
        blocks: usize,
    },
    /// The residual is above the tolerance after all blocks.
    Stopped {
        residual: f64,
        blocks: usize,
    },
}

/// An iteration on `a [rows, cols]`, `rows <= cols`.
pub(crate) struct Krylov<'a, T, A> {
    a: &'a A,
    settings: KrylovSettings,
    rng: ChaCha8Rng,
    blocks: usize,
    /// Left basis, of vectors `[rows]`.
    q: Basis<T>,
    /// Right basis, of vectors `[cols]`.
    p: Basis<T>,
    /// `P^T A^T Q`, block upper triangular `[k, k]`.
    r: Mat<T>,
    /// The next block of `q`; empty if `q` spans the space.
    next: Mat<T>,
    /// `B = next^T A P_j` for the last block `P_j`.
    coupling: Mat<T>,
}

impl<'a, T: Scalar, A: Operator<T>> Krylov<'a, T, A> {
    pub fn new(a: &'a A, settings: KrylovSettings) -> Self {
        let (rows, cols) = a.shape();
        let capacity = rows.min(settings.block.saturating_mul(settings.max_blocks).saturating_add(PROBE.0 * PROBE.1));
        let block = settings.block;
        let mut state = Krylov {
            a,
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
            settings,
            blocks: 0,
            q: Basis::new(rows, capacity),
            p: Basis::new(cols, capacity),
            r: Mat::with_capacity(capacity, capacity),
            next: Mat::new(),
            coupling: Mat::new(),
        };
        state.next = state.fresh(block);
        state
    }

    /// Iterates until the requested triplets converge.
    pub fn run(mut self) -> Result<KrylovResult<T>, LinalgError> {
        let mut check = CheckSchedule::new(&self.settings);
        let KrylovSettings { rank, max_blocks, tolerance, .. } = self.settings;
        loop {
            self.step()?;
            let (columns, last) = (self.q.len(), self.blocks >= max_blocks);
            if !(self.full() || last || check.due(columns)) {
                continue;
            }
            let Some(ritz) = leading(self.r.as_ref(), rank) else {
                return Ok(KrylovResult::Stopped { residual: f64::NAN, blocks: self.blocks });
            };
            let residual = self.residual(&ritz);
            if self.full() || residual <= tolerance && self.nothing_missed(ritz.s[rank - 1])? {
                return Ok(self.triplets(&ritz));
            }
            if last || residual.is_nan() {
                return Ok(KrylovResult::Stopped { residual, blocks: self.blocks });
            }
            check.after(columns, residual);
        }
    }

    /// Computes the first blocks, and returns whether the spectrum is flat, so that the iteration would need many more.
    ///
    /// It is flat if the stable rank `R = ||A||_F^2 / s_1^2` is well above the requested rank `r`. `R` is the number of
    /// singular values if all were as large as the first. The `r` largest then leave at least `R - r` to the others, so
    /// that `s_1 / s_r` is at most `sqrt((rows - r) / (R - r))`.
    pub fn finds_a_flat_spectrum(&mut self) -> Result<bool, LinalgError> {
        while self.blocks < FLAT_BLOCKS && !self.full() {
            self.step()?;
        }
        let Some(ritz) = leading(self.r.as_ref(), 1) else { return Ok(false) };
        // The first block is a random part of the space, and the first block of `P` spans its whole image.
        let width = self.settings.block;
        let share: f64 = self.r.submatrix(0, 0, width, width).norm_l2().into();
        let stable_rank = (share / ritz.s[0]).powi(2) * self.a.shape().0 as f64 / width as f64;
        Ok(stable_rank >= FLAT_RANKS * self.settings.rank as f64)
    }

    /// Whether `q` spans the space.
    fn full(&self) -> bool {
        self.next.nrows() == 0
    }

    /// At most `width` random directions, orthogonal to `q`.
    fn fresh(&mut self, width: usize) -> Mat<T> {
        let rows = self.a.shape().0;
        let start = gaussian(width.min(rows - self.q.len()), rows, &mut self.rng);
        self.q.orthonormalize(start.as_ref(), &mut self.rng).0
    }

    /// Adds `next` to the basis and computes the block after it.
    fn step(&mut self) -> Result<(), LinalgError> {
        let (old, width) = (self.q.len(), self.next.nrows());
        self.q.push(self.next.as_ref());
        let image = self.a.apply_transpose(self.next.as_ref())?;
        let (right, above) = self.p.orthonormalize(image.as_ref(), &mut self.rng);
        let diagonal = product(right.as_ref(), image.transpose());
        self.p.push(right.as_ref());
        self.r.resize_with(old + width, old + width, |i, j| match (i < old, j < old) {
            (true, false) => above[(j - old, i)],
            (false, false) => diagonal[(i - old, j - old)],
            _ => T::from_f64(0.0),
        });

        let image = self.a.apply(right.as_ref())?;
        let left = self.a.shape().0 - self.q.len();
        self.next = match left {
            0 => Mat::new(),
            _ if left < width => self.fresh(left),
            _ => self.q.orthonormalize(image.as_ref(), &mut self.rng).0,
        };
        self.coupling = match left {
            0 => Mat::new(),
            _ => product(self.next.as_ref(), image.transpose()),
        };
        self.blocks += 1;
        Ok(())
    }

    /// Largest `||A v - s u||` of the leading triplets, in units of the largest singular value.
    fn residual(&self, ritz: &Ritz<T>) -> f64 {
        if self.full() || ritz.s[0] == 0.0 {
            return 0.0;
        }
        let width = self.coupling.ncols();
        let last = ritz.x.subrows(ritz.x.nrows() - width, width);
        let missing = product(self.coupling.as_ref(), last);
        largest_of(norms(missing.as_ref())) / ritz.s[0]
    }

    /// Searches for leading triplets that the iteration missed, and returns whether there are none.
    ///
    /// A small residual proves that the triplets are triplets, not that they are the leading ones. If a singular value
    /// repeats more often than a block has columns, the start finds only as many copies as it has columns. So a few
    /// narrow blocks search the complement from a fresh start. If they find a triplet, the iteration continues from it,
    /// with blocks more than twice as wide.
    fn nothing_missed(&mut self, smallest: f64) -> Result<bool, LinalgError> {
        let known = self.q.len();
        let fresh = self.fresh(PROBE.0);
        let pending = std::mem::replace(&mut self.next, fresh);
        for _ in 0..PROBE.1 {
            if !self.full() {
                self.step()?;
            }
        }
        let extent = self.q.len() - known;
        // All rows: where `q` met the kernel of `A^T`, `p` has random directions, which may hold a part of a missed vector.
        let outside = thin_svd(self.r.submatrix(0, known, self.r.nrows(), extent));
        let clear = outside.is_some_and(|svd| svd.s[0] <= smallest * (1.0 + 1e-3));
        if !clear {
            self.widen(&pending);
        }
        Ok(clear)
    }

    /// Adds `pending` and random directions to the next block. `q` must not lose an image of `p`, because the residual
    /// would miss it.
    fn widen(&mut self, pending: &Mat<T>) {
        let rows = self.a.shape().0;
        let (left, waiting) = (rows - self.q.len(), self.next.nrows());
        let width = waiting + 2 * pending.nrows();
        if width >= left {
            self.next = self.fresh(left);
            return;
        }
        let mut joined = gaussian(width, rows, &mut self.rng);
        joined.subrows_mut(0, waiting).copy_from(&self.next);
        joined.subrows_mut(waiting, pending.nrows()).copy_from(pending);
        self.next = self.q.orthonormalize(joined.as_ref(), &mut self.rng).0;
    }

    fn triplets(&self, ritz: &Ritz<T>) -> KrylovResult<T> {
        let combine = |basis: &Basis<T>, weights: &Mat<T>| {
            let used = basis.columns().subcols(0, weights.nrows());
            product(used, weights.as_ref())
        };
        let vectors = Vectors { u: combine(&self.q, &ritz.y), v: combine(&self.p, &ritz.x) };
        KrylovResult::Converged { vectors, blocks: self.blocks }
    }
}

/// Decides when to compute the next small SVD. The residual falls about geometrically, so earlier residuals predict when
/// it reaches the tolerance.
struct CheckSchedule {
    block: usize,
    target: f64,
    next: usize,
    last: Option<(usize, f64)>,
}

impl CheckSchedule {
    /// `ln` of the factor by which a block reduces the residual, for spectra like those of trained weights.
    const USUAL_RATE: f64 = 1.25;

    fn new(settings: &KrylovSettings) -> Self {
        Self { block: settings.block, target: settings.tolerance, next: 3 * settings.rank, last: None }
    }

    fn due(&self, columns: usize) -> bool {
        columns >= self.next
    }

    fn after(&mut self, columns: usize, residual: f64) {
        let seen = self.last.replace((columns, residual)).map_or(Self::USUAL_RATE, |(before, larger)| {
            (larger / residual).ln() * self.block as f64 / (columns - before) as f64
        });
        // Far from convergence the rate is still to rise, and a rate near 0 says nothing.
        let rate = seen.max(Self::USUAL_RATE / 2.0);
        let blocks = ((residual / self.target).ln() / rate).ceil().max(1.0);
        self.next = columns.saturating_add(self.block.saturating_mul(blocks as usize));
    }
}
