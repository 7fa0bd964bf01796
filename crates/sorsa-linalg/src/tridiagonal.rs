//! The largest eigenvalues of a symmetric tridiagonal matrix by bisection, and their eigenvectors by inverse iteration, in
//! f64 (like LAPACK's `dstebz` and `dstein`). This takes a few percent of the work of all eigenpairs.

use pulp::Arch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number of eigenvalues that are bisected at once, because each count is a chain of dependent divisions.
const LANES: usize = 8;
/// Maximum number of inverse iterations for a vector. Two suffice for nearly every start.
const SOLUTIONS: usize = 8;

/// A symmetric tridiagonal matrix `T [n, n]`.
pub(crate) struct Tridiagonal {
    /// `[n]`.
    diagonal: Vec<f64>,
    /// `[n - 1]`, beside the diagonal.
    beside: Vec<f64>,
    /// A bound on the magnitude of the eigenvalues.
    norm: f64,
}

impl Tridiagonal {
    /// The matrix with `diagonal [n]` and `beside [n - 1]`, `n > 0`. The squares of both must be in the range of f64.
    pub fn new(diagonal: Vec<f64>, beside: Vec<f64>) -> Self {
        let neighbour = |i: usize| beside.get(i).map_or(0.0, |x| x.abs());
        let radius = |i: usize| neighbour(i) + neighbour(i.wrapping_sub(1));
        let norm = diagonal.iter().enumerate().map(|(i, d)| d.abs() + radius(i)).fold(0.0, f64::max);
        Tridiagonal { diagonal, beside, norm }
    }

    fn len(&self) -> usize {
        self.diagonal.len()
    }

    /// The `count` largest eigenvalues, descending, each exact to the rounding of the largest, and their eigenvectors, each
    /// `[n]`, orthonormal to about `precision`. `None` if a number is not finite.
    pub fn largest(&self, count: usize, precision: f64) -> Option<(Vec<f64>, Vec<Vec<f64>>)> {
        if !self.diagonal.iter().chain(&self.beside).all(|x| x.is_finite()) {
            return None;
        }
        let values = self.largest_values(count);
        let vectors = self.vectors(&values, precision)?;
        Some((values, vectors))
    }

    fn largest_values(&self, count: usize) -> Vec<f64> {
        let squares: Vec<f64> = std::iter::once(0.0).chain(self.beside.iter().map(|x| x * x)).collect();
        let narrowest = (2.0 * f64::EPSILON * self.norm).max(f64::MIN_POSITIVE);
        let mut values = Vec::with_capacity(count.next_multiple_of(LANES));
        for first in (0..count).step_by(LANES) {
            // No eigenvalue is larger than the one before it.
            let top = values.last().map_or(self.norm, |last: &f64| last + narrowest);
            let (mut low, mut high) = ([-self.norm; LANES], [top; LANES]);
            while low.iter().zip(&high).any(|(low, high)| high - low > narrowest) {
                let middle: [f64; LANES] = std::array::from_fn(|lane| low[lane] + (high[lane] - low[lane]) / 2.0);
                let below = self.count_below(&squares, &middle);
                for (lane, &middle) in middle.iter().enumerate() {
                    let at_least = self.len() as u64 - below[lane];
                    let bound = if at_least > (first + lane) as u64 { &mut low } else { &mut high };
                    bound[lane] = middle;
                }
            }
            values.extend(low.iter().zip(&high).map(|(low, high)| low + (high - low) / 2.0));
        }
        values.truncate(count);
        // Rounding can change the order of equal eigenvalues.
        values.iter_mut().fold(f64::INFINITY, |before, value| {
            *value = value.min(before);
            *value
        });
        values
    }

    /// Counts the eigenvalues below each `x`: the negative pivots of `T - x I` (Sturm sequence). `squares [n]` holds a zero
    /// and the squares of the entries beside the diagonal.
    fn count_below(&self, squares: &[f64], x: &[f64; LANES]) -> [u64; LANES] {
        let smallest = f64::MIN_POSITIVE * self.norm.powi(2).max(1.0);
        Arch::new().dispatch(
            #[inline(always)]
            || {
                let (mut pivot, mut below) = ([1.0; LANES], [0; LANES]);
                for (diagonal, square) in self.diagonal.iter().zip(squares) {
                    for lane in 0..LANES {
                        let next = diagonal - x[lane] - square / pivot[lane];
                        pivot[lane] = if next.abs() <= smallest { -smallest } else { next };
                        below[lane] += u64::from(pivot[lane] < 0.0);
                    }
                }
                below
            },
        )
    }

    /// Inverse iteration cannot separate eigenvalues that are closer than rounding over `precision`. Their vectors are
    /// orthogonalized against each other.
    fn vectors(&self, values: &[f64], precision: f64) -> Option<Vec<Vec<f64>>> {
        let closest = 16.0 * f64::EPSILON / precision * self.norm;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut found: Vec<Vec<f64>> = Vec::with_capacity(values.len());
        let mut cluster = 0;
        for (j, &value) in values.iter().enumerate() {
            if j > 0 && values[j - 1] - value > closest {
                cluster = j;
            }
            found.push(self.vector(value, &found[cluster..], &mut rng)?);
        }
        Some(found)
    }

    fn vector(&self, value: f64, others: &[Vec<f64>], rng: &mut ChaCha8Rng) -> Option<Vec<f64>> {
        // A residual up to this is rounding error. It is larger than the smallest pivot, even if the whole matrix is 0.
        let rounding = (8.0 * f64::EPSILON * self.norm * (self.len() as f64).sqrt()).max(1e-300);
        let shifted = self.shifted(value);
        let mut vector: Vec<f64> = (0..self.len()).map(|_| rng.random_range(-1.0..1.0)).collect();
        orthonormalize(&mut vector, others)?;
        let mut close = false;
        for _ in 0..SOLUTIONS {
            shifted.solve(&mut vector);
            // The right-hand side has norm 1, so the norm of `T x - value x` is the inverse of the solution's norm.
            let length = orthonormalize(&mut vector, others)?;
            if close {
                return Some(vector);
            }
            close = length.recip() <= rounding;
        }
        None
    }

    /// LU factors of `T - shift I` with partial pivoting.
    fn shifted(&self, shift: f64) -> Shifted {
        let n = self.len();
        let smallest = (f64::EPSILON * self.norm).max(f64::MIN_POSITIVE);
        let pivot_of = |x: f64| if x.abs() < smallest { smallest.copysign(x) } else { x };
        let mut rows = Vec::with_capacity(n);
        let (mut diagonal, mut above) = (self.diagonal[0] - shift, self.beside.first().copied().unwrap_or(0.0));
        for i in 0..n - 1 {
            let (below, next) = (self.beside[i], self.diagonal[i + 1] - shift);
            let after = self.beside.get(i + 1).copied().unwrap_or(0.0);
            if diagonal.abs() >= below.abs() {
                let inverse = pivot_of(diagonal).recip();
                let factor = below * inverse;
                rows.push(Row { inverse, above, second: 0.0, factor, exchanged: false });
                (diagonal, above) = (next - factor * above, after);
            } else {
                let inverse = below.recip();
                let factor = diagonal * inverse;
                rows.push(Row { inverse, above: next, second: after, factor, exchanged: true });
                (diagonal, above) = (above - factor * next, -factor * after);
            }
        }
        let inverse = pivot_of(diagonal).recip();
        rows.push(Row { inverse, above: 0.0, second: 0.0, factor: 0.0, exchanged: false });
        Shifted { rows }
    }
}

/// One step of elimination, and one row of the upper factor, which has three diagonals.
struct Row {
    /// Inverse of the pivot.
    inverse: f64,
    above: f64,
    second: f64,
    /// The multiple of this row that the next row loses, after a possible exchange of the two.
    factor: f64,
    exchanged: bool,
}

struct Shifted {
    rows: Vec<Row>,
}

impl Shifted {
    fn solve(&self, x: &mut [f64]) {
        for (i, row) in self.rows[..x.len() - 1].iter().enumerate() {
            if row.exchanged {
                x.swap(i, i + 1);
            }
            x[i + 1] -= row.factor * x[i];
        }
        let (mut next, mut second) = (0.0, 0.0);
        for (x, row) in x.iter_mut().zip(&self.rows).rev() {
            *x = (*x - row.above * next - row.second * second) * row.inverse;
            (next, second) = (*x, next);
        }
    }
}

/// Orthogonalizes `x` against the orthonormal `others` and scales it to norm 1. Returns the norm before scaling, or `None`
/// if it is 0 or not finite.
fn orthonormalize(x: &mut [f64], others: &[Vec<f64>]) -> Option<f64> {
    // The square of a very large solution may overflow.
    let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
    if !(largest.is_finite() && largest > 0.0) {
        return None;
    }
    x.iter_mut().for_each(|x| *x /= largest);
    for other in others {
        let part = dot(x, other);
        x.iter_mut().zip(other).for_each(|(x, other)| *x -= part * other);
    }
    let length = dot(x, x).sqrt();
    if length == 0.0 {
        return None;
    }
    x.iter_mut().for_each(|x| *x /= length);
    Some(length * largest)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    /// Residuals and products of vectors, in units of the norm.
    fn assert_pairs(t: &Tridiagonal, values: &[f64], vectors: &[Vec<f64>], tolerance: f64) {
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        for (j, (value, x)) in values.iter().zip(vectors).enumerate() {
            let at = |i: usize, k: usize| t.beside.get(k).map_or(0.0, |b| b * x.get(i).unwrap_or(&0.0));
            let image = |i: usize| t.diagonal[i] * x[i] + at(i + 1, i) + at(i.wrapping_sub(1), i.wrapping_sub(1));
            let residual = (0..x.len()).map(|i| (image(i) - value * x[i]).abs()).fold(0.0, f64::max);
            assert!(residual <= 1e-13 * t.norm, "pair {j}: {residual}");
            for (k, other) in vectors.iter().enumerate() {
                assert!((dot(x, other) - f64::from(j == k)).abs() < tolerance, "{j}, {k}: {}", dot(x, other));
            }
        }
    }

    #[test]
    fn second_differences_have_a_closed_form() {
        for n in [1, 2, 7, 40, 333] {
            let t = Tridiagonal::new(vec![2.0; n], vec![-1.0; n - 1]);
            let count = n.min(23);
            let (values, vectors) = t.largest(count, 1e-7).unwrap();
            assert_pairs(&t, &values, &vectors, 1e-7);
            for (j, value) in values.iter().enumerate() {
                let exact = 2.0 - 2.0 * ((n - j) as f64 * PI / (n + 1) as f64).cos();
                assert!((value - exact).abs() < 1e-14, "{n}, {j}: {value}, not {exact}");
            }
        }
    }

    #[test]
    fn neighbours_that_f64_cannot_tell_apart_get_orthogonal_vectors() {
        // Wilkinson's matrix: the eigenvalues of its largest pairs differ in the fifteenth digit.
        let n = 61;
        let t = Tridiagonal::new((0..n).map(|i| (f64::from(i) - 30.0).abs()).collect(), vec![1.0; 60]);
        let (values, vectors) = t.largest(30, f64::EPSILON).unwrap();
        assert!(values[0] - values[1] < 1e-13 && values[1] - values[2] > 0.1);
        assert_pairs(&t, &values, &vectors, 1e-13);
        // Equal eigenvalues, in one block and in several; then a zero matrix.
        for (diagonal, beside) in [(vec![3.0; 9], vec![0.0; 8]), (vec![0.0; 9], vec![0.0; 8])] {
            let t = Tridiagonal::new(diagonal, beside);
            let (values, vectors) = t.largest(9, 1e-7).unwrap();
            assert_pairs(&t, &values, &vectors, 1e-12);
        }
        let pieces = Tridiagonal::new(vec![1.0; 12], (0..11).map(|i| f64::from(i % 3 != 2)).collect());
        let (values, vectors) = pieces.largest(12, 1e-7).unwrap();
        assert!((values[3] - 1.0 - 2f64.sqrt()).abs() < 1e-14 && (values[4] - 1.0).abs() < 1e-14, "{values:?}");
        assert_pairs(&pieces, &values, &vectors, 1e-12);
    }

    #[test]
    fn numbers_of_any_usual_size_do_but_they_must_be_finite() {
        for scale in [1e-120, 1e120] {
            let t = Tridiagonal::new(vec![scale, -3.0 * scale, 2.0 * scale], vec![scale, 0.1 * scale]);
            let (values, vectors) = t.largest(3, 1e-7).unwrap();
            assert_pairs(&t, &values, &vectors, 1e-12);
        }
        assert!(Tridiagonal::new(vec![1.0, f64::NAN], vec![0.0]).largest(1, 1e-7).is_none());
        assert!(Tridiagonal::new(vec![1.0, 1.0], vec![f64::INFINITY]).largest(1, 1e-7).is_none());
    }
}
