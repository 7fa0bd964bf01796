//! The eigenvalue with the largest magnitude of a small symmetric matrix, by Lanczos with full reorthogonalization: products with
//! vectors alone, where all eigenpairs would take some `9 n^3` operations.

use faer::{Col, MatRef};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::tridiagonal::Tridiagonal;

/// Steps between looks at the tridiagonal matrix.
const STEPS_BETWEEN_LOOKS: usize = 8;

/// An eigenvalue of the largest magnitude of the symmetric matrix `a [n, n]`, `n > 0`, and a vector `x [n]` of length 1 with
/// `||A x - value x|| <= tolerance * |value|`. If several have this magnitude, the vector is of the space of one of them. Absent if a
/// number is not finite.
pub fn dominant_eigenpair(a: MatRef<'_, f64>, tolerance: f64) -> Option<(f64, Vec<f64>)> {
    let n = a.nrows();
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let start: Col<f64> = Col::from_fn(n, |_| StandardNormal.sample(&mut rng));
    let mut basis: Vec<Col<f64>> = vec![&start / faer::Scale(start.norm_l2())];
    let (mut diagonal, mut beside) = (Vec::new(), Vec::new());
    loop {
        let step = diagonal.len();
        let mut next = a * &basis[step];
        let along = basis[step].transpose() * &next;
        if !along.is_finite() {
            return None;
        }
        diagonal.push(along);
        // Twice, so that the basis is orthonormal to rounding.
        for _ in 0..2 {
            for vector in &basis {
                let part = vector.transpose() * &next;
                next -= vector * faer::Scale(part);
            }
        }
        let length = next.norm_l2();
        let last = step + 1 == n;
        if last || (step + 1).is_multiple_of(STEPS_BETWEEN_LOOKS) || length == 0.0 {
            let (value, turned) = dominant_of(&diagonal, &beside)?;
            let missing = (length * turned[step]).abs();
            // A vector that no product has left spans an invariant space with those before.
            if last || missing <= tolerance * value.abs() || length <= f64::EPSILON * value.abs() {
                let vector = basis
                    .iter()
                    .zip(&turned)
                    .fold(Col::zeros(n), |sum: Col<f64>, (vector, weight)| sum + vector * faer::Scale(*weight));
                let length = vector.norm_l2();
                return Some((value, vector.iter().map(|x| x / length).collect()));
            }
        }
        if !(length.is_finite() && length > 0.0) {
            return None;
        }
        beside.push(length);
        basis.push(next / faer::Scale(length));
    }
}

/// The eigenpair of the largest magnitude of a tridiagonal matrix.
fn dominant_of(diagonal: &[f64], beside: &[f64]) -> Option<(f64, Vec<f64>)> {
    const PRECISION: f64 = 1e-10;
    let negative = |values: &[f64]| values.iter().map(|x| -x).collect();
    let pair = |diagonal, beside| {
        let (values, mut vectors) = Tridiagonal::new(diagonal, beside).largest(1, PRECISION)?;
        Some((values[0], vectors.swap_remove(0)))
    };
    let (largest, above) = pair(diagonal.to_vec(), beside.to_vec())?;
    let (smallest, below) = pair(negative(diagonal), negative(beside))?;
    Some(if largest >= smallest { (largest, above) } else { (-smallest, below) })
}

#[cfg(test)]
mod tests {
    use faer::{Mat, Side};

    use super::*;
    use crate::basis::gaussian;

    #[test]
    fn it_is_the_eigenpair_of_the_largest_magnitude_among_all() {
        for n in [1, 2, 7, 8, 9, 60, 130] {
            for sign in [1.0, -1.0] {
                let a = gaussian::<f64>(n, n, &mut ChaCha8Rng::seed_from_u64(n as u64 + 7));
                let a = Mat::from_fn(n, n, |i, j| a[(i, j)] + a[(j, i)] + if i == j { sign } else { 0.0 });
                let all = a.self_adjoint_eigenvalues(Side::Lower).unwrap();
                let expected = if all[n - 1].abs() > all[0].abs() { all[n - 1] } else { all[0] };
                let (value, x) = dominant_eigenpair(a.as_ref(), 1e-6).unwrap();
                assert!((value - expected).abs() < 1e-9 * expected.abs(), "{n}: {value}, {expected}");
                let x = Col::from_fn(n, |i| x[i]);
                let missing = (&a * &x - &x * faer::Scale(value)).norm_l2();
                assert!(missing < 2e-6 * expected.abs() && (x.norm_l2() - 1.0).abs() < 1e-12, "{n}: {missing}");
            }
        }
    }

    #[test]
    fn eigenvalues_of_one_magnitude_and_matrices_of_a_small_rank_have_an_eigenpair() {
        let identity = Mat::<f64>::identity(40, 40);
        let opposite = Mat::from_fn(40, 40, |i, j| if i == j { if i % 2 == 0 { 3.0 } else { -3.0 } } else { 0.0 });
        let single = Mat::from_fn(40, 40, |i, j| -((i + 1) as f64) * (j + 1) as f64);
        for (a, expected) in [(identity, 1.0), (opposite, 3.0), (single, 22_140.0), (Mat::zeros(40, 40), 0.0)] {
            let (value, x) = dominant_eigenpair(a.as_ref(), 1e-6).unwrap();
            assert!((value.abs() - expected).abs() <= 1e-9 * expected, "{value}");
            let x = Col::from_fn(40, |i| x[i]);
            assert!((&a * &x - &x * faer::Scale(value)).norm_l2() <= 1e-6 * expected);
        }
        let mut broken = Mat::<f64>::identity(3, 3);
        broken[(1, 2)] = f64::NAN;
        assert_eq!(dominant_eigenpair(broken.as_ref(), 1e-6), None);
    }
}
