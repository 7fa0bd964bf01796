//! The search for a learning rate: a grid that is extended if its best rate is at an end.

/// Rates to try, ascending. A grid around a rate that is still to be found has none yet.
#[derive(Debug, Clone, PartialEq)]
pub struct RateGrid {
    rates: Vec<f64>,
    extensions: usize,
    /// The most extensions.
    limit: usize,
    /// Multiples of the rate that is still to be found; none if the rates are known.
    factors: Vec<f64>,
}

impl RateGrid {
    /// A grid of these rates, in any order, that is extended at most `limit` times.
    pub fn new(mut rates: Vec<f64>, limit: usize) -> Self {
        rates.sort_by(f64::total_cmp);
        rates.dedup();
        Self { rates, extensions: 0, limit, factors: Vec::new() }
    }

    /// A grid of multiples of a rate that is still to be found.
    pub fn around_found_rate(factors: &[f64], limit: usize) -> Self {
        Self { rates: Vec::new(), extensions: 0, limit, factors: factors.to_vec() }
    }

    /// The multiples of a rate that is still to be found.
    pub fn factors(&self) -> &[f64] {
        &self.factors
    }

    /// Whether the rate in the middle is still to be found.
    pub fn waits_for_rate(&self) -> bool {
        !self.factors.is_empty()
    }

    /// Gives a grid that waits for a rate its middle.
    pub fn centre(&mut self, rate: f64) {
        let factors = std::mem::take(&mut self.factors);
        self.rates = factors.iter().map(|factor| rounded(rate * factor)).collect();
    }

    /// The grid with its middle alone, which is never extended.
    pub fn middle(&self) -> Self {
        let middle = |values: &[f64]| values.get(values.len() / 2).copied().into_iter().collect();
        Self { rates: middle(&self.rates), factors: middle(&self.factors), extensions: 0, limit: 0 }
    }

    /// Number of rates, known or not.
    pub fn size(&self) -> usize {
        self.rates.len().max(self.factors.len())
    }

    /// The rates, ascending.
    pub fn rates(&self) -> &[f64] {
        &self.rates
    }

    /// If the best rate is at an end of the grid, adds a rate one step beyond this end, unless the limit is reached. Returns whether there is a
    /// new rate to try. `losses` holds the loss of each rate, `None` if its run diverged. If all diverged, the new rate is smaller.
    pub fn extend(&mut self, losses: &[Option<f64>]) -> bool {
        let last = self.rates.len() - 1;
        if last == 0 || self.extensions >= self.limit {
            return false;
        }
        let rate = match best(losses) {
            None | Some(0) => self.rates[0] * self.rates[0] / self.rates[1],
            Some(index) if index == last => self.rates[last] * self.rates[last] / self.rates[last - 1],
            Some(_) => return false,
        };
        self.extensions += 1;
        self.rates.push(rounded(rate));
        self.rates.sort_by(f64::total_cmp);
        true
    }

    /// Whether the rate `index` is at an end of the grid, so that a better rate may lie beyond it.
    pub fn ends_at(&self, index: usize) -> bool {
        self.rates.len() > 1 && (index == 0 || index + 1 == self.rates.len())
    }
}

/// The index of the lowest loss.
pub fn best(losses: &[Option<f64>]) -> Option<usize> {
    let known = losses.iter().enumerate().filter_map(|(index, loss)| Some((index, (*loss)?)));
    known.filter(|(_, loss)| loss.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
}

/// Rounds to three digits, so that rates have short names.
pub fn rounded(rate: f64) -> f64 {
    format!("{rate:.2e}").parse().unwrap_or(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with the losses that `loss` gives. Returns the grid at the end.
    fn search(rates: &[f64], limit: usize, loss: impl Fn(f64) -> Option<f64>) -> RateGrid {
        let mut grid = RateGrid::new(rates.to_vec(), limit);
        while grid.extend(&grid.rates().iter().map(|rate| loss(*rate)).collect::<Vec<_>>()) {}
        grid
    }

    #[test]
    fn a_grid_grows_until_its_best_rate_lies_within() {
        let bowl = |best: f64| move |rate: f64| Some((rate / best).ln().powi(2));
        assert_eq!(search(&[2e-3, 1e-3, 4e-3], 2, bowl(2e-3)).rates(), [1e-3, 2e-3, 4e-3]);
        assert_eq!(search(&[1e-3, 2e-3, 4e-3], 2, bowl(8e-3)).rates(), [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]);
        assert_eq!(search(&[1e-3, 2e-3], 3, bowl(3e-4)).rates(), [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3]);
    }

    #[test]
    fn a_grid_grows_no_more_than_it_may() {
        let falling = |rate: f64| Some(-rate);
        let grid = search(&[1e-3, 2e-3], 2, falling);
        assert_eq!(grid.rates(), [1e-3, 2e-3, 4e-3, 8e-3]);
        assert!(grid.ends_at(3) && grid.ends_at(0) && !grid.ends_at(1));
        let single = search(&[1e-3], 2, falling);
        assert_eq!(single.rates(), [1e-3]);
        assert!(!single.ends_at(0), "one rate was asked for");
    }

    #[test]
    fn a_grid_around_a_found_rate_has_rates_once_it_is_known() {
        let mut grid = RateGrid::around_found_rate(&[0.5, 1.0, 2.0], 1);
        assert!(grid.waits_for_rate() && grid.rates().is_empty() && grid.size() == 3);
        grid.centre(3.1e-4);
        assert!(!grid.waits_for_rate() && grid.size() == 3);
        assert_eq!(grid.rates(), [1.55e-4, 3.1e-4, 6.2e-4]);
        assert!(grid.extend(&[Some(1.0), Some(2.0), Some(3.0)]));
        assert_eq!(grid.rates()[0], 7.75e-5);
    }

    #[test]
    fn rates_that_diverge_are_never_the_best() {
        assert_eq!(best(&[Some(f64::NAN), Some(2.0), None, Some(1.0), Some(f64::INFINITY)]), Some(3));
        assert_eq!(best(&[None, Some(f64::NAN)]), None);
        let grid = search(&[1e-1, 2e-1], 3, |rate| (rate < 0.06).then_some(1.0 / rate));
        assert_eq!(grid.rates(), [2.5e-2, 5e-2, 1e-1, 2e-1], "smaller ones are tried, and then one below the best");
    }
}
