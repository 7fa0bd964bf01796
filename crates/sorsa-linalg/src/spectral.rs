//! Measures of bases and spectra, always in f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef};

use crate::exact::{all_singular_values, thin_svd};
use crate::operator::{parallelism, product};
use crate::svd::check_finite;
use crate::{LinalgError, Scalar};

/// `||U^T U - I||_F` of `u [n, r]`: 0 if its columns are orthonormal.
pub fn orthonormality_defect<T: Scalar>(u: MatRef<'_, T>) -> f64 {
    let u = widen(u);
    (product(u.transpose(), u.as_ref()) - Mat::<f64>::identity(u.ncols(), u.ncols())).norm_l2()
}

/// [`orthonormality_defect`] divided by `sqrt(r)`, which compares bases of different widths.
pub fn relative_orthonormality_defect<T: Scalar>(u: MatRef<'_, T>) -> f64 {
    orthonormality_defect(u) / (u.ncols().max(1) as f64).sqrt()
}

/// The principal angles between the spaces spanned by the orthonormal columns of `a [n, p]` and `b [n, q]`, in radians
/// from 0 to pi/2, ascending, `min(p, q)` of them.
///
/// Angles above pi/4 come from their cosines, the singular values of `A^T B`. Smaller angles come from their sines, the
/// singular values of `B - A A^T B`, because the cosine of a small angle rounds to 1 (Björck and Golub 1973).
///
/// # Errors
///
/// [`LinalgError::RowsDiffer`] if the two have different numbers of rows, and [`LinalgError::NotConverged`] if entries are
/// not finite.
pub fn principal_angles<T: Scalar>(a: MatRef<'_, T>, b: MatRef<'_, T>) -> Result<Vec<f64>, LinalgError> {
    if a.nrows() != b.nrows() {
        return Err(LinalgError::RowsDiffer { left: a.nrows(), right: b.nrows() });
    }
    let (a, b) = if a.ncols() < b.ncols() { (b, a) } else { (a, b) };
    if b.ncols() == 0 {
        return Ok(Vec::new());
    }
    let (a, mut outside) = (widen(a), widen(b));
    let inside = product(a.transpose(), outside.as_ref());
    let cosines = values(inside.as_ref())?;
    matmul(&mut outside, Accum::Add, &a, &inside, -1.0, parallelism());
    let sines = values(outside.as_ref())?;
    let angle = |(&cosine, &sine): (&f64, &f64)| {
        if sine * sine < 0.5 { sine.asin() } else { cosine.clamp(0.0, 1.0).acos() }
    };
    Ok(cosines.iter().zip(sines.iter().rev()).map(angle).collect())
}

/// Condition number `s_1 / s_r` of descending singular values: infinite if the last is 0, NaN without values.
pub fn condition_number<T: Scalar>(s: &[T]) -> f64 {
    match s {
        [] => f64::NAN,
        [.., last] if (*last).into() == 0.0 => f64::INFINITY,
        [first, .., last] => (*first).into() / (*last).into(),
        [_] => 1.0,
    }
}

/// The effective rank, `exp(-sum p ln p)` with `p = s / sum s` (Roy and Vetterli 2007): `r` for `r` equal singular
/// values, 1 for a single one, 0 if all are 0.
pub fn effective_rank<T: Scalar>(s: &[T]) -> f64 {
    let values = || s.iter().map(|&s| -> f64 { s.into() }).filter(|&s| s > 0.0);
    let total: f64 = values().sum();
    if total == 0.0 {
        return 0.0;
    }
    let entropy: f64 = values().map(|s| s / total).map(|p| -p * p.ln()).sum();
    entropy.exp()
}

/// The nuclear norm, the sum of all singular values. Errors call the matrix `name`. On one of rayon's workers, the function uses
/// only that thread, otherwise all threads.
///
/// # Errors
///
/// [`LinalgError::NotFinite`], and [`LinalgError::NotConverged`] if the computation overflows.
pub fn nuclear_norm<T: Scalar>(name: &str, a: MatRef<'_, T>) -> Result<f64, LinalgError> {
    Ok(singular_values(name, a)?.iter().sum())
}

/// All singular values, descending. Errors call the matrix `name`. On one of rayon's workers, the function uses only that thread,
/// otherwise all threads.
///
/// # Errors
///
/// [`LinalgError::NotFinite`], and [`LinalgError::NotConverged`] if the computation overflows.
pub fn singular_values<T: Scalar>(name: &str, a: MatRef<'_, T>) -> Result<Vec<f64>, LinalgError> {
    check_finite(name, a)?;
    let failed =
        || LinalgError::NotConverged { name: name.to_owned(), residual: f64::NAN, tolerance: T::EPSILON, blocks: 0 };
    all_singular_values(a).ok_or_else(failed)
}

fn widen<T: Scalar>(a: MatRef<'_, T>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)].into())
}

fn values(a: MatRef<'_, f64>) -> Result<Vec<f64>, LinalgError> {
    // faer's iteration does not support NaN.
    let svd = if a.norm_max().is_finite() { thin_svd(a) } else { None };
    let failed = || LinalgError::NotConverged {
        name: "principal angles".into(),
        residual: f64::NAN,
        tolerance: f64::EPSILON,
        blocks: 0,
    };
    Ok(svd.ok_or_else(failed)?.s)
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;

    use super::*;

    #[test]
    fn the_defect_of_scaled_columns_has_a_closed_form() {
        let u = Mat::<f32>::from_fn(5, 3, |i, j| if i == j { 2.0 } else { 0.0 });
        assert_relative_eq!(orthonormality_defect(u.as_ref()), 27f64.sqrt(), epsilon = 1e-12);
        assert_relative_eq!(relative_orthonormality_defect(u.as_ref()), 3.0, epsilon = 1e-12);
    }

    #[test]
    fn principal_angles_are_exact_from_tiny_to_right() {
        let angles = [1e-9, 1e-4, 0.7, 1.2, std::f64::consts::FRAC_PI_2];
        // Plane i is rotated by angles[i]. One more column makes the dimensions of the spaces differ.
        let a = Mat::<f64>::from_fn(11, 6, |i, j| f64::from(i == j));
        let b = Mat::from_fn(11, 5, |i, j| match i {
            i if i == j => angles[j].cos(),
            i if i == j + 6 => angles[j].sin(),
            _ => 0.0,
        });
        for found in [principal_angles(a.as_ref(), b.as_ref()), principal_angles(b.as_ref(), a.as_ref())] {
            for (found, expected) in found.unwrap().into_iter().zip(angles) {
                assert_relative_eq!(found, expected, max_relative = 1e-10);
            }
        }
    }

    #[test]
    fn angles_between_spaces_that_do_not_match_are_an_error() {
        let (a, b) = (Mat::<f64>::identity(4, 2), Mat::<f64>::identity(5, 2));
        let error = principal_angles(a.as_ref(), b.as_ref()).unwrap_err();
        assert!(matches!(error, LinalgError::RowsDiffer { left: 4, right: 5 }));
        let nan = Mat::<f64>::full(4, 2, f64::NAN);
        assert!(principal_angles(a.as_ref(), nan.as_ref()).is_err());
    }

    #[test]
    fn the_nuclear_norm_is_the_sum_of_the_singular_values_of_a_matrix_of_any_shape() {
        // Orthogonal columns of length 2 and 3, then the same turned.
        let a = Mat::<f32>::from_fn(40, 2, |i, j| if i == 7 * j + 3 { 2.0 + j as f32 } else { 0.0 });
        assert_relative_eq!(nuclear_norm("a", a.as_ref()).unwrap(), 5.0, max_relative = 1e-6);
        assert_relative_eq!(nuclear_norm("a", a.transpose()).unwrap(), 5.0, max_relative = 1e-6);
        let waves = Mat::<f64>::from_fn(70, 90, |i, j| ((i * 31 + j * 17) as f64 * 0.37).sin());
        let narrow = Mat::<f32>::from_fn(70, 90, |i, j| waves[(i, j)] as f32);
        let expected: f64 = values(waves.as_ref()).unwrap().iter().sum();
        assert_relative_eq!(nuclear_norm("w", waves.as_ref()).unwrap(), expected, max_relative = 1e-10);
        assert_relative_eq!(nuclear_norm("w", narrow.as_ref()).unwrap(), expected, max_relative = 1e-5);
        assert_eq!(nuclear_norm("empty", Mat::<f32>::zeros(0, 3).as_ref()).unwrap(), 0.0);
        let error = nuclear_norm("n", Mat::<f32>::full(4, 2, f32::NAN).as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("matrix `n` has 8 entries that are not finite"), "{error}");
    }

    #[test]
    fn spectra_have_closed_forms() {
        assert_relative_eq!(effective_rank(&[3.0f32; 7]), 7.0, max_relative = 1e-12);
        assert_eq!(effective_rank(&[5.0, 0.0, 0.0]), 1.0);
        assert_eq!(effective_rank(&[0.0; 3]), 0.0);
        // p = 3/4, 1/4.
        assert_relative_eq!(effective_rank(&[3.0, 1.0]), 4.0 / 3f64.powf(0.75), max_relative = 1e-12);
        assert_eq!(condition_number(&[8.0f32, 3.0, 2.0]), 4.0);
        assert_eq!(condition_number(&[8.0, 0.0]), f64::INFINITY);
        assert_eq!([condition_number(&[0.0, 0.0]), condition_number(&[0.0])], [f64::INFINITY; 2]);
    }
}
