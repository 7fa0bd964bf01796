//! Tests of differences: p-values, their correction for many comparisons, and the difference that a test can find.

use std::f64::consts::PI;

use crate::stats::{t_central, t_quantile_of};

/// The level of all tests: the chance that a report claims a difference if there is none.
pub const LEVEL: f64 = 0.05;

/// The chance with which a test should find the difference that [`detectable`] gives.
pub const POWER: f64 = 0.8;

/// The two-sided p-value of Student's `t` with `degrees` degrees of freedom, at least 1.
///
/// ```
/// use sorsa_grading::significance::student_p;
///
/// assert!((student_p(4.3026527, 2) - 0.05).abs() < 1e-6);
/// ```
pub fn student_p(t: f64, degrees: usize) -> f64 {
    (1.0 - t_central(t.abs(), degrees)).clamp(0.0, 1.0)
}

/// The p-values, corrected by the method of Holm (1979): if every value below 0.05 counts as a difference, the chance that
/// one of them is none is at most 0.05, however the tests depend on each other. The order is that of `p`.
///
/// The k-th smallest of m values becomes the largest of `(m - j + 1) p_j` for `j <= k`, at most 1.
///
/// ```
/// use sorsa_grading::significance::holm;
///
/// assert_eq!(holm(&[0.25, 0.0625, 0.5]), [0.5, 0.1875, 0.5]);
/// ```
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (smaller, index) in order.into_iter().enumerate() {
        largest = largest.max((p.len() - smaller) as f64 * p[index]).min(1.0);
        corrected[index] = largest;
    }
    corrected
}

/// The chance that a two-sided test of Student's t at `level` finds a difference which is `ratio` times its standard error:
/// `P(|T| > c)` for the noncentral t distribution with noncentrality `ratio`, and `c` the quantile at `level`.
///
/// With `T = (Z + ratio) / sqrt(V / n)`, `Z` normal and `V` chi-squared with `n` degrees of freedom, it is an integral over
/// `w = sqrt(V)`, by Simpson's rule.
pub fn power(ratio: f64, degrees: usize, level: f64) -> f64 {
    const INTERVALS: usize = 2_000;
    let n = degrees as f64;
    let critical = t_quantile_of(1.0 - level, degrees) / n.sqrt();
    // The density of w has its mode at sqrt(n - 1) and a deviation below 1.
    let (low, high) = (((n - 1.0).sqrt() - 9.0).max(0.0).sqrt(), ((n - 1.0).sqrt() + 9.0).sqrt());
    let constant = (1.0 - 0.5 * n) * 2f64.ln() - ln_gamma_of_half(degrees);
    // Over the root of w, as the integrand may fall steeply at 0.
    let at = |root: f64| {
        let w = root * root;
        let density = match degrees {
            1 => (constant - 0.5 * w * w).exp(),
            _ => (constant + (n - 1.0) * w.ln() - 0.5 * w * w).exp(),
        };
        2.0 * root * density * (normal(ratio - critical * w) + normal(-ratio - critical * w))
    };
    let width = (high - low) / INTERVALS as f64;
    let mut sum = at(low) + at(high);
    for index in 1..INTERVALS {
        let weight = if index % 2 == 1 { 4.0 } else { 2.0 };
        sum += weight * at(low + width * index as f64);
    }
    (sum * width / 3.0).clamp(0.0, 1.0)
}

/// The difference that a two-sided test at `level` finds with the chance [`POWER`], if the standard error of the difference is
/// `standard_error` with `degrees` degrees of freedom. Smaller differences are likely to be missed.
pub fn detectable(standard_error: f64, degrees: usize, level: f64) -> f64 {
    let critical = t_quantile_of(1.0 - level, degrees);
    let (mut low, mut high) = (0.0, 2.0 * critical + 10.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if power(middle, degrees, level) < POWER { low = middle } else { high = middle }
    }
    low * standard_error
}

/// The distribution function of the normal distribution: `1/2 + phi(x) (x + x^3/3 + x^5/15 + ..)`.
fn normal(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while f64::abs(term) > 1e-17 * f64::abs(sum) {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// The logarithm of the gamma function at `n / 2`, from `gamma(x + 1) = x gamma(x)`, `gamma(1/2) = sqrt(pi)` and `gamma(1) = 1`.
fn ln_gamma_of_half(n: usize) -> f64 {
    let (first, start) = if n % 2 == 1 { (1, 0.5 * PI.ln()) } else { (2, 0.0) };
    start + (first..n).step_by(2).map(|k| (0.5 * k as f64).ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() < tolerance, "found {found}, expected {expected}");
    }

    #[test]
    fn the_normal_distribution_is_that_of_the_tables() {
        for (x, expected) in [(0.0, 0.5), (1.0, 0.841_344_746), (-1.96, 0.024_997_895), (3.5, 0.999_767_371)] {
            close(normal(x), expected, 1e-9);
        }
        assert_eq!((normal(9.0), normal(-9.0)), (1.0, 0.0));
    }

    #[test]
    fn without_a_difference_the_power_is_the_level() {
        for degrees in [1, 2, 4, 29, 200] {
            for level in [0.05, 0.01] {
                close(power(0.0, degrees, level), level, 1e-7);
            }
        }
    }

    #[test]
    fn the_detectable_difference_has_the_power_that_it_promises() {
        for degrees in [1, 2, 4, 30] {
            close(power(detectable(2.0, degrees, 0.05 / 7.0) / 2.0, degrees, 0.05 / 7.0), POWER, 1e-6);
        }
    }

    #[test]
    fn holm_s_correction_is_never_less_than_the_value() {
        assert_eq!(holm(&[]), [0.0; 0]);
        assert_eq!(holm(&[0.04]), [0.04]);
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }
}
