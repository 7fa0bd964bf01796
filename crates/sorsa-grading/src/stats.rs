//! How far a measured number can be trusted.

use serde::{Deserialize, Serialize};

use crate::GradingError;
use crate::significance::{detectable, student_p};

/// A 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// So many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proportion {
    /// How many.
    pub successes: u64,
    /// Of how many.
    pub total: u64,
}

impl Proportion {
    /// The share in `0..=1`; NaN of none.
    pub fn rate(self) -> f64 {
        self.successes as f64 / self.total as f64
    }

    /// The 95 % score interval of Wilson (1927), which stays within `0..=1` and holds for small samples and rates near
    /// the ends. All of `0..=1` for an empty sample.
    ///
    /// With `p` the rate, `n` the total and `z = 1.96`:
    /// `(p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`.
    ///
    /// ```
    /// use sorsa_grading::stats::Proportion;
    ///
    /// let interval = Proportion { successes: 739, total: 1319 }.interval();
    /// assert!((interval.low - 0.5334).abs() < 1e-4 && (interval.high - 0.5868).abs() < 1e-4);
    /// ```
    pub fn interval(self) -> Interval {
        score_interval(self.rate(), self.total)
    }
}

/// Wilson's 95 % interval of a rate over `total` trials. For a mean of chances, such as pass@k over problems, it is too
/// wide rather than too narrow: no spread of numbers within `0..=1` is larger than that of zeros and ones.
pub fn score_interval(rate: f64, total: u64) -> Interval {
    score_interval_of(rate, total as f64)
}

/// The same for a number of trials that need not be whole.
pub(crate) fn score_interval_of(rate: f64, total: f64) -> Interval {
    /// The 97.5 % quantile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if total <= 0.0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (p, n) = (rate, total);
    let denominator = 1.0 + Z * Z / n;
    let center = (p + Z * Z / (2.0 * n)) / denominator;
    let half = Z * (p * (1.0 - p) / n + (Z / (2.0 * n)).powi(2)).sqrt() / denominator;
    Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) }
}

/// The chance that at least one of `k` answers is right, if `correct` of `total` sampled ones are: the unbiased
/// estimator of Chen et al. 2021 (arXiv 2107.03374), `1 - C(n - c, k) / C(n, k)`. `None` for `k` of 0 or beyond `total`.
///
/// ```
/// use sorsa_grading::stats::pass_at_k;
///
/// assert_eq!(pass_at_k(4, 1, 1), Some(0.25));
/// assert_eq!(pass_at_k(4, 1, 4), Some(1.0));
/// ```
pub fn pass_at_k(total: u64, correct: u64, k: u64) -> Option<f64> {
    if k == 0 || k > total || correct > total {
        return None;
    }
    if total - correct < k {
        return Some(1.0);
    }
    let all_wrong: f64 = (total - correct + 1..=total).map(|n| 1.0 - k as f64 / n as f64).product();
    Some(1.0 - all_wrong)
}

/// The mean of a sample, such as one number per seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Standard deviation of the sample (divisor `n - 1`); `None` of a single value.
    pub deviation: Option<f64>,
    /// Student's 95 % interval of the mean; `None` of a single value.
    pub interval: Option<Interval>,
    /// Size of the sample.
    pub count: usize,
}

impl Mean {
    /// The mean of `values`; `None` of an empty sample.
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let deviation = (count > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (count - 1) as f64).sqrt()
        });
        let interval = deviation.map(|deviation| {
            let half = t_quantile(count - 1) * deviation / (count as f64).sqrt();
            Interval { low: mean - half, high: mean + half }
        });
        Some(Self { mean, deviation, interval, count })
    }

    /// The mean of `after - before` over pairs, such as two methods with the same seeds: its interval is narrower than
    /// the two means' own, because what the pairs share cancels. `None` of no pairs.
    ///
    /// # Errors
    /// [`GradingError::Unpaired`] for samples of different length.
    pub fn of_differences(before: &[f64], after: &[f64]) -> Result<Option<Self>, GradingError> {
        if before.len() != after.len() {
            return Err(GradingError::Unpaired { left: before.len(), right: after.len() });
        }
        let differences: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        Ok(Self::of(&differences))
    }

    /// The standard error of the mean; `None` of a single value.
    fn standard_error(&self) -> Option<f64> {
        self.deviation.map(|deviation| deviation / (self.count as f64).sqrt())
    }

    /// The two-sided p-value of Student's test of a mean of 0; `None` of a single value.
    pub fn p_value(&self) -> Option<f64> {
        let error = self.standard_error()?;
        Some(if self.mean == 0.0 { 1.0 } else { student_p(self.mean / error, self.count - 1) })
    }

    /// The mean that Student's test at `level` finds with the chance [`POWER`](crate::significance::POWER); `None` of a single value.
    pub fn detectable(&self, level: f64) -> Option<f64> {
        Some(detectable(self.standard_error()?, self.count - 1, level))
    }
}

/// The `t` with `P(|T| <= t) = 0.95` for Student's distribution.
pub(crate) fn t_quantile(degrees: usize) -> f64 {
    t_quantile_of(0.95, degrees)
}

/// The `t` with `P(|T| <= t) = share` for Student's distribution, by bisection.
pub(crate) fn t_quantile_of(share: f64, degrees: usize) -> f64 {
    let (mut low, mut high) = (0.0, 13.0);
    while t_central(high, degrees) < share {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if t_central(middle, degrees) < share { low = middle } else { high = middle }
    }
    low
}

/// `P(|T| <= t)` for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4.
pub(crate) fn t_central(t: f64, degrees: usize) -> f64 {
    let angle = (t / (degrees as f64).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    // The powers of the cosine go by twos, from `first` to `degrees - 2`.
    let first = degrees % 2;
    let mut term = if first == 1 { cos } else { 1.0 };
    let mut sum = 0.0;
    for power in (first..degrees.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= cos * cos * (power + 1) as f64 / (power + 2) as f64;
    }
    if first == 1 { std::f64::consts::FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() < tolerance, "found {found}, expected {expected}");
    }

    #[test]
    fn wilson_s_interval_is_the_published_one() {
        // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (successes, total, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let interval = Proportion { successes, total }.interval();
            close(interval.low, low, 5e-5);
            close(interval.high, high, 5e-5);
        }
        assert_eq!(Proportion { successes: 0, total: 0 }.interval(), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_answer() {
        // By hand: of the subsets of k out of n answers, those that hold one of the first c.
        for (n, c) in [(1u64, 0u64), (1, 1), (5, 0), (5, 2), (6, 3), (6, 6)] {
            for k in 1..=n {
                let subsets = (0u64..1 << n).filter(|subset| u64::from(subset.count_ones()) == k);
                let (all, hits) = subsets
                    .fold((0, 0), |(all, hits), subset| (all + 1, hits + u64::from(subset & ((1 << c) - 1) != 0)));
                close(pass_at_k(n, c, k).unwrap(), f64::from(hits as u32) / f64::from(all), 1e-12);
            }
        }
        assert_eq!((pass_at_k(3, 1, 0), pass_at_k(3, 1, 4), pass_at_k(3, 4, 1)), (None, None, None));
    }

    #[test]
    fn student_s_quantiles_are_those_of_the_tables() {
        for (degrees, quantile) in
            [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423), (1000, 1.9623)]
        {
            close(t_quantile(degrees), quantile, 1e-4);
        }
    }

    #[test]
    fn the_interval_of_a_mean_narrows_with_the_sample() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        close(mean.mean, 3.0, 1e-12);
        close(mean.deviation.unwrap(), 2.5f64.sqrt(), 1e-12);
        close(mean.interval.unwrap().low, 3.0 - 2.776_445 * 0.5f64.sqrt(), 1e-5);
        assert_eq!(Mean::of(&[7.0]).unwrap().interval, None);
        assert_eq!(Mean::of(&[]), None);
    }

    #[test]
    fn pairs_cancel_what_they_share() {
        let (before, after) = ([10.0, 20.0, 30.0], [11.0, 21.5, 30.5]);
        let difference = Mean::of_differences(&before, &after).unwrap().unwrap();
        close(difference.mean, 1.0, 1e-12);
        close(difference.deviation.unwrap(), 0.5, 1e-12);
        let message = Mean::of_differences(&before, &after[..2]).unwrap_err().to_string();
        assert_eq!(message, "paired samples differ in length: 3 and 2");
    }
}
