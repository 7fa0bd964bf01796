//! Means over seeds and problems if every seed answers the same problems, and differences between two methods.
//!
//! `x_ij` is what seed `j` of `m` got for problem `i` of `n`. Both are samples: other seeds would have trained other models, and
//! other problems would have been easier or harder. With `x_ij = mu + p_i + s_j + e_ij` the variance of the grand mean is
//!
//! ```text
//! V = var(p) / n + var(s) / m + var(e) / (n m)
//! ```
//!
//! and the mean squares of the two-way analysis of variance without replication estimate its parts
//! (`E MS_p = m var(p) + var(e)`, `E MS_s = n var(s) + var(e)`, `E MS_e = var(e)`), each set to 0 if it is negative:
//!
//! ```text
//! V = (MS_e + max(0, MS_p - MS_e) + max(0, MS_s - MS_e)) / (n m)
//! ```
//!
//! The interval is Student's, with the degrees of freedom of Satterthwaite (1946), `(sum a_k MS_k)^2 / sum (a_k MS_k)^2 / df_k`
//! over its mean squares: if the seeds differ much, three of them give wide intervals, and they should. A difference of two
//! methods is the same with `x_ij - y_ij`: hard problems and lucky orders of the data are in both, and cancel.

use serde::{Deserialize, Serialize};

use crate::GradingError;
use crate::significance::{detectable, student_p};
use crate::stats::{Interval, score_interval_of, t_quantile};

/// The mean of a table of problems and seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CrossedMean {
    /// The mean of all cells.
    pub mean: f64,
    /// Its standard error; `None` of a single cell.
    pub standard_error: Option<f64>,
    /// Degrees of freedom of the standard error; 0 if there is none.
    pub degrees: f64,
    /// The standard error over the seeds alone, for these problems, with one degree of freedom less than there are seeds; `None` of one seed.
    pub seed_error: Option<f64>,
    /// Problems, `n`.
    pub problems: usize,
    /// Seeds, `m`.
    pub seeds: usize,
}

impl CrossedMean {
    /// The mean over `seeds`, each a list with one value for every problem, in the same order. `None` without a value.
    ///
    /// ```
    /// use sorsa_grading::comparison::CrossedMean;
    ///
    /// // Two seeds that agree are no more problems: the interval is that of four answers, not of eight.
    /// let answers = vec![1.0, 1.0, 0.0, 1.0];
    /// let one = CrossedMean::of(&[answers.clone()]).unwrap().unwrap();
    /// let two = CrossedMean::of(&[answers.clone(), answers]).unwrap().unwrap();
    /// assert_eq!(one.standard_error, two.standard_error);
    /// ```
    ///
    /// # Errors
    /// [`GradingError::Unpaired`] for seeds with different numbers of problems.
    pub fn of(seeds: &[Vec<f64>]) -> Result<Option<Self>, GradingError> {
        let (m, n) = (seeds.len(), seeds.first().map_or(0, Vec::len));
        if let Some(other) = seeds.iter().find(|seed| seed.len() != n) {
            return Err(GradingError::Unpaired { left: n, right: other.len() });
        }
        if n == 0 {
            return Ok(None);
        }
        let cells = (n * m) as f64;
        let mean = seeds.iter().flatten().sum::<f64>() / cells;
        let by_seed: Vec<f64> = seeds.iter().map(|seed| seed.iter().sum::<f64>() / n as f64).collect();
        let by_problem: Vec<f64> = (0..n).map(|i| seeds.iter().map(|seed| seed[i]).sum::<f64>() / m as f64).collect();
        // Sums of squares of problems, seeds and residual, each with its degrees of freedom.
        let squares = |means: &[f64]| means.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let problems = (m as f64 * squares(&by_problem), (n - 1) as f64);
        let seeds_part = (n as f64 * squares(&by_seed), (m - 1) as f64);
        let left = |(j, seed): (usize, &Vec<f64>)| {
            let deviation = |(i, value): (usize, &f64)| (value - by_seed[j] - by_problem[i] + mean).powi(2);
            seed.iter().enumerate().map(deviation).sum::<f64>()
        };
        let rest = (seeds.iter().enumerate().map(left).sum::<f64>(), ((n - 1) * (m - 1)) as f64);
        let square = |(sum, degrees): (f64, f64)| if degrees > 0.0 { sum / degrees } else { 0.0 };
        let noise = square(rest);
        // The mean squares that V is made of, with their degrees of freedom and signs.
        let made_of: &[((f64, f64), f64)] = match (square(problems) > noise, square(seeds_part) > noise) {
            (true, true) => &[(problems, 1.0), (seeds_part, 1.0), (rest, -1.0)],
            (true, false) => &[(problems, 1.0)],
            (false, true) => &[(seeds_part, 1.0)],
            (false, false) => &[(rest, 1.0)],
        };
        let total: f64 = made_of.iter().map(|(part, sign)| sign * square(*part)).sum();
        let curvature: f64 =
            made_of.iter().filter(|(part, _)| part.1 > 0.0).map(|(part, _)| square(*part).powi(2) / part.1).sum();
        let known = n * m > 1;
        Ok(Some(Self {
            mean,
            standard_error: known.then(|| (total / cells).sqrt()),
            degrees: match known {
                true if curvature > 0.0 => total * total / curvature,
                true => (n.max(m) - 1) as f64,
                false => 0.0,
            },
            seed_error: (m > 1).then(|| (square(seeds_part) / cells).sqrt()),
            problems: n,
            seeds: m,
        }))
    }

    /// The mean of `after - before`, cell by cell.
    ///
    /// # Errors
    /// [`GradingError::Unpaired`] for tables of different size.
    pub fn of_differences(before: &[Vec<f64>], after: &[Vec<f64>]) -> Result<Option<Self>, GradingError> {
        if before.len() != after.len() {
            return Err(GradingError::Unpaired { left: before.len(), right: after.len() });
        }
        let mut differences = Vec::with_capacity(before.len());
        for (before, after) in before.iter().zip(after) {
            if before.len() != after.len() {
                return Err(GradingError::Unpaired { left: before.len(), right: after.len() });
            }
            differences.push(before.iter().zip(after).map(|(before, after)| after - before).collect());
        }
        Self::of(&differences)
    }

    /// The degrees of freedom, rounded down, at least 1.
    fn whole_degrees(&self) -> usize {
        (self.degrees.floor() as usize).max(1)
    }

    /// Student's quantile for a 95 % interval.
    fn quantile(&self) -> f64 {
        t_quantile(self.whole_degrees())
    }

    /// The two-sided p-value of a mean of differences that is 0: the larger of two, that of the standard error and that of the seeds alone.
    /// 1 if no cell differs, `None` of a single cell.
    ///
    /// The standard error leaves out a variance of the seeds that is not larger than the noise. That makes little of intervals of 95 %, but far
    /// smaller p-values than there should be: in simulations, many comparisons then claim differences where there are none.
    pub fn p_value(&self) -> Option<f64> {
        let crossed = match self.standard_error? {
            0.0 => 1.0,
            error => student_p(self.mean / error, self.whole_degrees()),
        };
        Some(match self.seed_error {
            None => crossed,
            Some(0.0) if self.mean == 0.0 => 1.0,
            Some(error) => crossed.max(student_p(self.mean / error, self.seeds - 1)),
        })
    }

    /// The mean of differences that a test at `level` finds with the chance [`POWER`](crate::significance::POWER). If no cell differs, the
    /// end of [`Self::difference_interval`]. `None` of a single cell.
    pub fn detectable(&self, level: f64) -> Option<f64> {
        let crossed = match self.standard_error? {
            0.0 => self.difference_interval().high,
            error => detectable(error, self.whole_degrees(), level),
        };
        Some(match self.seed_error {
            None => crossed,
            Some(error) => crossed.max(detectable(error, self.seeds - 1, level)),
        })
    }

    /// The 95 % interval of a mean of differences between right (1) and wrong (0) answers, within `-1..=1`. Where no cell differs
    /// there is no variance to go by: then `3 / n` on both sides, the rule of three for an event that `n` problems did not show.
    /// All of `-1..=1` for a single cell.
    pub fn difference_interval(&self) -> Interval {
        let half = match self.standard_error {
            None => 1.0,
            Some(0.0) => 3.0 / self.problems as f64,
            Some(error) => self.quantile() * error,
        };
        Interval { low: (self.mean - half).max(-1.0), high: (self.mean + half).min(1.0) }
    }

    /// The 95 % interval of a mean of right (1) and wrong (0) answers: Wilson's, for the number of independent answers that would
    /// have this standard error, `p (1 - p) / V`, less what the degrees of freedom cost (`(1.96 / t)^2`), like Korn and Graubard
    /// (1998) for samples in clusters. It stays within `0..=1` and has a width even if all answers are right, or all wrong.
    pub fn rate_interval(&self) -> Interval {
        /// The 97.5 % quantile of the normal distribution.
        const Z: f64 = 1.959_963_984_540_054;
        let spread = self.mean * (1.0 - self.mean);
        let effective = match self.standard_error {
            Some(error) if error > 0.0 && spread > 0.0 => spread / error.powi(2) * (Z / self.quantile()).powi(2),
            // All alike: seeds that agree add nothing to the problems.
            _ => self.problems as f64,
        };
        score_interval_of(self.mean, effective.min((self.problems * self.seeds) as f64))
    }
}

impl Interval {
    /// Whether 0 lies outside: a difference with this interval is larger than its uncertainty.
    pub fn excludes_zero(self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Mean;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() < tolerance, "found {found}, expected {expected}");
    }

    /// Normal numbers from a linear congruential generator, by sums of twelve.
    struct Normal(u64);

    impl Normal {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn draw(&mut self, deviation: f64) -> f64 {
            deviation * ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0)
        }

        fn table(&mut self, (n, m): (usize, usize), [problem, seed, noise]: [f64; 3]) -> Vec<Vec<f64>> {
            let problems: Vec<f64> = (0..n).map(|_| self.draw(problem)).collect();
            (0..m)
                .map(|_| {
                    let shift = self.draw(seed);
                    problems.iter().map(|p| p + shift + self.draw(noise)).collect()
                })
                .collect()
        }
    }

    #[test]
    fn the_mean_squares_are_those_of_the_slow_form() {
        // Differences of every two cells: MS_s = n/2 of the mean squared difference of two seeds' means, and so on.
        let x = vec![vec![1.0, 4.0, 2.0, 7.0], vec![2.0, 3.0, 5.0, 9.0], vec![0.5, 6.0, 2.5, 6.0]];
        let (n, m) = (4.0, 3.0);
        let seed_mean: Vec<f64> = x.iter().map(|row| row.iter().sum::<f64>() / n).collect();
        let problem_mean: Vec<f64> = (0..4).map(|i| x.iter().map(|row| row[i]).sum::<f64>() / m).collect();
        let pairs = |values: &[f64]| {
            let all = values.iter().flat_map(|a| values.iter().map(move |b| (a - b).powi(2) / 2.0)).sum::<f64>();
            all / (values.len() * (values.len() - 1)) as f64
        };
        let (ms_s, ms_p) = (n * pairs(&seed_mean), m * pairs(&problem_mean));
        // Interaction contrasts of every two seeds and two problems.
        let mut contrasts = Vec::new();
        for (j, k) in [(0, 1), (0, 2), (1, 2)] {
            for a in 0..4 {
                for b in 0..a {
                    contrasts.push((x[j][a] - x[j][b] - x[k][a] + x[k][b]).powi(2) / 4.0);
                }
            }
        }
        let ms_e = contrasts.iter().sum::<f64>() / contrasts.len() as f64;
        let found = CrossedMean::of(&x).unwrap().unwrap();
        assert!(ms_p > ms_e && ms_s < ms_e, "the seeds' part is taken as 0: {ms_p}, {ms_s}, {ms_e}");
        close(found.standard_error.unwrap().powi(2), ms_p / (n * m), 1e-12);
        let degrees = 3.0;
        close(found.degrees, degrees, 1e-9);

        // A seed far from the others: all three parts count.
        let mut x = x;
        x[1].iter_mut().for_each(|value| *value += 10.0);
        let seed_mean: Vec<f64> = x.iter().map(|row| row.iter().sum::<f64>() / n).collect();
        let ms_s = n * pairs(&seed_mean);
        let found = CrossedMean::of(&x).unwrap().unwrap();
        close(found.standard_error.unwrap().powi(2), (ms_p + ms_s - ms_e) / (n * m), 1e-12);
        let degrees = (ms_p + ms_s - ms_e).powi(2) / (ms_p * ms_p / 3.0 + ms_s * ms_s / 2.0 + ms_e * ms_e / 6.0);
        close(found.degrees, degrees, 1e-9);
    }

    #[test]
    fn one_seed_is_a_sample_of_problems_and_one_problem_a_sample_of_seeds() {
        let values = [1.0, 2.5, 0.0, 4.0, 3.0];
        let expected = Mean::of(&values).unwrap().interval.unwrap();
        let one_seed = CrossedMean::of(&[values.to_vec()]).unwrap().unwrap();
        let one_problem = CrossedMean::of(&values.map(|value| vec![value])).unwrap().unwrap();
        for found in [one_seed, one_problem] {
            close(found.degrees, 4.0, 1e-9);
            let half = found.quantile() * found.standard_error.unwrap();
            close(found.mean - half, expected.low, 1e-9);
            close(found.mean + half, expected.high, 1e-9);
        }
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        let mut normal = Normal(7);
        for parts in [[1.0, 0.0, 1.0], [1.0, 0.3, 1.0], [0.5, 1.0, 0.5], [0.0, 0.0, 1.0]] {
            let trials = 2_000;
            let covered = (0..trials).filter(|_| {
                let found = CrossedMean::of(&normal.table((40, 3), parts)).unwrap().unwrap();
                found.mean.abs() <= found.quantile() * found.standard_error.unwrap()
            });
            let share = covered.count() as f64 / f64::from(trials);
            // Where a part is small its variance is often estimated as 0 or too large: such intervals are on the wide side.
            let most = if parts == [0.5, 1.0, 0.5] { 0.985 } else { 1.0 };
            assert!(share > 0.92 && share < most, "{share} of the intervals cover 0, with deviations {parts:?}");
        }
    }

    #[test]
    fn pairs_cancel_what_two_methods_share() {
        let mut normal = Normal(3);
        let before = normal.table((50, 3), [2.0, 1.0, 0.1]);
        let after: Vec<Vec<f64>> =
            before.iter().map(|row| row.iter().map(|x| x + 0.5 + normal.draw(0.1)).collect()).collect();
        let difference = CrossedMean::of_differences(&before, &after).unwrap().unwrap();
        close(difference.mean, 0.5, 0.05);
        assert!(
            difference.standard_error.unwrap()
                < 0.05 * CrossedMean::of(&before).unwrap().unwrap().standard_error.unwrap()
        );
        let shorter = CrossedMean::of_differences(&before, &after[..2]).unwrap_err().to_string();
        assert_eq!(shorter, "paired samples differ in length: 3 and 2");
        assert!(CrossedMean::of(&[vec![1.0], vec![]]).is_err());
    }

    #[test]
    fn rates_keep_an_interval_where_all_answers_are_alike() {
        let table = [(); 3].map(|()| vec![1.0; 100]);
        let all_right = CrossedMean::of(&table).unwrap().unwrap();
        let interval = all_right.rate_interval();
        // Wilson's of 100 of 100, not of 300 of 300.
        close(interval.low, 0.9630, 1e-4);
        close(interval.high, 1.0, 1e-12);
        let none = CrossedMean::of_differences(&table, &table).unwrap().unwrap();
        assert_eq!(none.difference_interval(), Interval { low: -0.03, high: 0.03 });
        assert!(!none.difference_interval().excludes_zero());
        assert_eq!(CrossedMean::of(&[]).unwrap(), None);
        let single = CrossedMean::of(&[vec![1.0]]).unwrap().unwrap();
        assert_eq!(single.difference_interval(), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn a_single_seed_s_rate_has_nearly_wilson_s_interval() {
        let answers: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i % 5 != 0))).collect();
        let found = CrossedMean::of(&[answers]).unwrap().unwrap().rate_interval();
        let wilson = crate::stats::score_interval(0.8, 400);
        close(found.low, wilson.low, 1e-3);
        close(found.high, wilson.high, 1e-3);
    }
}
