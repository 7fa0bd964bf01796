//! Leading singular triplets by randomized block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477), in the
//! form of block Golub-Kahan bidiagonalization with full re-orthogonalization.
//!
//! From a Gaussian start, bases `Q` and `P` grow by turns, a block at a time: `P` by `A^T Q_j`, `Q` by `A P_j`. All
//! powers stay in the basis, where power iteration keeps the last only, so that the convergence is that of a Chebyshev
//! polynomial. Since `A^T Q = P R` holds to rounding, the SVD of the small `R = X S Y^T` is the Rayleigh-Ritz step:
//! `u = Q y`, `v = P x`, `A^T u = s v`, and what is missing lies in the next block, `A v - s u = Q_next B x_last`.
//! Blocks are panels, with vectors in their rows.

use faer::Mat;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::basis::{Basis, gaussian, norms};
use crate::exact::thin_svd;
use crate::operator::{Operator, product};
use crate::ritz::{Ritz, leading};
use crate::svd::{Vectors, largest_of};
use crate::{LinalgError, Scalar};

/// Width and number of the blocks that look for what the iteration may have missed.
const PROBE: (usize, usize) = (8, 3);

/// Blocks after which the stable rank is known well enough.
const FLAT_BLOCKS: usize = 2;
/// The stable rank of a flat spectrum, in units of the wanted rank.
const FLAT_RANKS: f64 = 1.5;

/// How to iterate, with all defaults settled.
pub(crate) struct Plan {
    pub rank: usize,
    pub block: usize,
    /// At least as many as hold `rank` columns.
    pub max_blocks: usize,
    /// Residual to reach, in units of the largest singular value.
    pub tolerance: f64,
    pub seed: u64,
}

/// Where the iteration ended.
pub(crate) enum Outcome<T> {
    Converged {
        vectors: Vectors<T>,
        blocks: usize,
    },
    /// The largest residual after all blocks.
    Stopped {
        residual: f64,
        blocks: usize,
    },
}

/// An iteration on `a [rows, cols]`, `rows <= cols`.
pub(crate) struct Krylov<'a, T, A> {
    a: &'a A,
    plan: Plan,
    rng: ChaCha8Rng,
    blocks: usize,
    /// Left basis, of vectors `[rows]`.
    q: Basis<T>,
    /// Right basis, of vectors `[cols]`.
    p: Basis<T>,
    /// `P^T A^T Q`, block upper triangular `[k, k]`.
    r: Mat<T>,
    /// The block that `q` grows by next; empty once it spans the space.
    next: Mat<T>,
    /// `B = next^T A P_j` for the last block `P_j`.
    coupling: Mat<T>,
}

impl<'a, T: Scalar, A: Operator<T>> Krylov<'a, T, A> {
    pub fn new(a: &'a A, plan: Plan) -> Self {
        let (rows, cols) = a.shape();
        let capacity = rows.min(plan.block.saturating_mul(plan.max_blocks).saturating_add(PROBE.0 * PROBE.1));
        let block = plan.block;
        let mut state = Krylov {
            a,
            rng: ChaCha8Rng::seed_from_u64(plan.seed),
            plan,
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

    /// Goes on until the wanted triplets have converged.
    pub fn run(mut self) -> Result<Outcome<T>, LinalgError> {
        let mut check = Schedule::new(&self.plan);
        let (rank, max_blocks, tolerance) = (self.plan.rank, self.plan.max_blocks, self.plan.tolerance);
        loop {
            self.step()?;
            let (columns, last) = (self.q.len(), self.blocks >= max_blocks);
            if !(self.full() || last || check.due(columns)) {
                continue;
            }
            let Some(ritz) = leading(self.r.as_ref(), rank) else {
                return Ok(Outcome::Stopped { residual: f64::NAN, blocks: self.blocks });
            };
            let residual = self.residual(&ritz);
            if self.full() || residual <= tolerance && self.nothing_missed(ritz.s[rank - 1])? {
                return Ok(self.triplets(&ritz));
            }
            if last || residual.is_nan() {
                return Ok(Outcome::Stopped { residual, blocks: self.blocks });
            }
            check.after(columns, residual);
        }
    }

    /// Takes the first blocks, and says whether singular values lie so close together that many more will be needed.
    ///
    /// They do where the stable rank `R = ||A||_F^2 / s_1^2`, the number of singular values if all were as large as the
    /// first, is well above the wanted one, `r`. The `r` largest then leave at least `R - r` to the others, so that
    /// `s_1 / s_r` is at most `sqrt((rows - r) / (R - r))`.
    pub fn finds_a_flat_spectrum(&mut self) -> Result<bool, LinalgError> {
        while self.blocks < FLAT_BLOCKS && !self.full() {
            self.step()?;
        }
        let Some(ritz) = leading(self.r.as_ref(), 1) else { return Ok(false) };
        // The first block is a random part of the space, and its image is all in the first block of `P`.
        let width = self.plan.block;
        let share: f64 = self.r.submatrix(0, 0, width, width).norm_l2().into();
        let stable_rank = (share / ritz.s[0]).powi(2) * self.a.shape().0 as f64 / width as f64;
        Ok(stable_rank >= FLAT_RANKS * self.plan.rank as f64)
    }

    fn full(&self) -> bool {
        self.next.nrows() == 0
    }

    /// Random directions outside `q`, at most `width`.
    fn fresh(&mut self, width: usize) -> Mat<T> {
        let rows = self.a.shape().0;
        let start = gaussian(width.min(rows - self.q.len()), rows, &mut self.rng);
        self.q.orthonormalize(start.as_ref(), &mut self.rng).0
    }

    /// Takes `next` into the basis and forms the block after it.
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

    /// A small residual says that the triplets are triplets, not that they are the leading ones: of a singular value
    /// repeated more often than a block is wide, the start sees only as many copies as it has columns. So a few narrow
    /// blocks search the complement from a fresh start. Where they find something the iteration goes on with it, and
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
        let outside = thin_svd(self.r.submatrix(known, known, extent, extent));
        let clear = outside.is_some_and(|svd| svd.s[0] <= smallest * (1.0 + 1e-3));
        if !clear {
            self.widen(&pending);
        }
        Ok(clear)
    }

    /// Joins `pending` and random directions to the next block. No image of `p` may be left out of `q` for good, or
    /// the residual would not see it.
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

    fn triplets(&self, ritz: &Ritz<T>) -> Outcome<T> {
        let combine = |basis: &Basis<T>, weights: &Mat<T>| {
            let used = basis.columns().subcols(0, weights.nrows());
            product(used, weights.as_ref())
        };
        let vectors = Vectors { u: combine(&self.q, &ritz.y), v: combine(&self.p, &ritz.x) };
        Outcome::Converged { vectors, blocks: self.blocks }
    }
}

/// When to pay for the next small SVD: the residual falls about geometrically, so its past says when to look again.
struct Schedule {
    block: usize,
    target: f64,
    next: usize,
    last: Option<(usize, f64)>,
}

impl Schedule {
    /// `ln` of the factor per block by which residuals fell on spectra like those of trained weights.
    const USUAL_RATE: f64 = 1.25;

    fn new(plan: &Plan) -> Self {
        Schedule { block: plan.block, target: plan.tolerance, next: 3 * plan.rank, last: None }
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
